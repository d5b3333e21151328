"""Foolbox 3.3: fixed attacks return the clipped perturbation, minimal ones run without early stopping."""

from __future__ import annotations

from typing import Any

import foolbox
from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from foolbox import attacks as fb
from foolbox.criteria import Misclassification
from torch import Tensor

PGD = {
    1.0: fb.L1ProjectedGradientDescentAttack,
    2.0: fb.L2ProjectedGradientDescentAttack,
    INF: fb.LinfProjectedGradientDescentAttack,
}
FMN = {1.0: fb.L1FMNAttack, 2.0: fb.L2FMNAttack, INF: fb.LInfFMNAttack}
DEEPFOOL = {2.0: fb.L2DeepFoolAttack, INF: fb.LinfDeepFoolAttack}


def _run(attack: Any, job: Job) -> Tensor:
    model = foolbox.PyTorchModel(job.model, bounds=(0.0, 1.0), device=job.x.device)
    _, clipped, _ = attack(model, job.x, Misclassification(job.y), epsilons=job.eps)
    return clipped


def _pgd(job: Job) -> Tensor:
    return _run(PGD[job.p](rel_stepsize=2.5 / job.budget, steps=job.budget, random_start=job.budget > 1), job)


def _slide(job: Job) -> Tensor:
    return _run(fb.SparseL1DescentAttack(steps=job.budget, rel_stepsize=max(0.2, 1.0 / job.budget)), job)


def _fmn(job: Job) -> Tensor:
    return _run(FMN[job.p](steps=job.budget // 2), job)


def _fmn_10(job: Job) -> Tensor:
    return _run(FMN[job.p](steps=job.budget // 2, max_stepsize=10.0), job)


def _ddn(job: Job) -> Tensor:
    return _run(fb.DDNAttack(steps=job.budget // 2), job)


def _deepfool(job: Job) -> Tensor:
    # Every class gradient is a forward and a backward of its own.
    return _run(DEEPFOOL[job.p](steps=max(1, (job.budget - 1) // (2 * (job.classes - 1)))), job)


def _cw(job: Job) -> Tensor:
    return _run(fb.L2CarliniWagnerAttack(binary_search_steps=9, steps=job.budget // 18), job)


def _ead(job: Job) -> Tensor:
    # An iteration takes a gradient and one more forward to judge the shrunk point.
    return _run(fb.EADAttack(binary_search_steps=9, steps=job.budget // 27, decision_rule="L1"), job)


ATTACKS = [
    Attack("Foolbox", "pgd", FIXED, (1.0, 2.0, INF), "rel_stepsize=2.5/T, random start for T > 1", _pgd),
    Attack("Foolbox", "slide", FIXED, (1.0,), "quantile=0.99, rel_stepsize=max(0.2, 1/T)", _slide),
    Attack("Foolbox", "fmn", MINIMAL, (1.0, 2.0, INF), "defaults (max_stepsize=1, gamma=0.05)", _fmn, 2),
    Attack("Foolbox", "fmn-10", MINIMAL, (INF,), "max_stepsize=10, as its paper for linf", _fmn_10, 2),
    Attack("Foolbox", "ddn", MINIMAL, (2.0,), "defaults (init_epsilon=1, gamma=0.05)", _ddn, 2),
    Attack("Foolbox", "deepfool", MINIMAL, (2.0, INF), "candidates=10, overshoot=0.02", _deepfool, 19),
    Attack("Foolbox", "cw", MINIMAL, (2.0,), "9 searches of propagations/18 steps each", _cw, 180),
    Attack("Foolbox", "ead", MINIMAL, (1.0,), "9 searches of propagations/27 steps, rule L1", _ead, 180),
]
