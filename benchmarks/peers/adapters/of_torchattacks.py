"""torchattacks 3.5: images in [0, 1] of four dimensions, the norm in the class or as a string."""

from __future__ import annotations

from typing import Any

import torchattacks as ta
from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from torch import Tensor

NORMS = {1.0: "L1", 2.0: "L2", INF: "Linf"}


def _run(attack: Any, job: Job) -> Tensor:
    return attack(job.x, job.y)


def _pgd(job: Job) -> Tensor:
    kind = ta.PGDL2 if job.p == 2.0 else ta.PGD
    step = 2.5 * job.radius / job.budget
    return _run(kind(job.model, eps=job.radius, alpha=step, steps=job.budget, random_start=job.budget > 1), job)


def _mifgsm(job: Job) -> Tensor:
    return _run(ta.MIFGSM(job.model, eps=job.radius, alpha=2.5 * job.radius / job.budget, steps=job.budget), job)


def _apgd(loss: str) -> Any:
    def run(job: Job) -> Tensor:
        # It takes one gradient before the first step.
        steps = max(1, job.budget - 1)
        attack = ta.APGD(job.model, norm=NORMS[job.p], eps=job.radius, steps=steps, loss=loss, seed=job.seed)
        return _run(attack, job)

    return run


def _apgdt(job: Job) -> Tensor:
    each = job.budget // (job.classes - 1) - 1
    attack = ta.APGDT(job.model, norm=NORMS[job.p], eps=job.radius, steps=each, seed=job.seed, n_classes=job.classes)
    return _run(attack, job)


def _deepfool(job: Job) -> Tensor:
    return _run(ta.DeepFool(job.model, steps=max(1, job.budget // (job.classes + 1))), job)


def _cw(job: Job) -> Tensor:
    return _run(ta.CW(job.model, c=1, steps=job.budget // 2, lr=0.01), job)


def _fab(job: Job) -> Tensor:
    # An iteration takes a forward, a gradient of each class, and a forward to judge.
    steps = max(1, job.budget // (job.classes + 2))
    return _run(ta.FAB(job.model, norm=NORMS[job.p], eps=1e6, steps=steps, seed=job.seed, n_classes=job.classes), job)


def _ead(job: Job) -> Tensor:
    return _run(ta.EADL1(job.model, max_iterations=max(1, job.budget // 27)), job)


ATTACKS = [
    Attack("torchattacks", "pgd", FIXED, (2.0, INF), "alpha=2.5 eps/T, random start for T > 1", _pgd),
    Attack("torchattacks", "mifgsm", FIXED, (INF,), "alpha=2.5 eps/T, decay=1", _mifgsm),
    Attack("torchattacks", "apgd-ce", FIXED, (2.0, INF), "steps=T-1, loss=ce", _apgd("ce"), 2),
    Attack("torchattacks", "apgd-dlr", FIXED, (2.0, INF), "steps=T-1, loss=dlr", _apgd("dlr"), 2),
    Attack("torchattacks", "apgd-t", FIXED, (2.0, INF), "nine targets, steps=T/9-1", _apgdt, 27),
    Attack("torchattacks", "deepfool", MINIMAL, (2.0,), "overshoot=0.02", _deepfool, 11),
    Attack("torchattacks", "cw", MINIMAL, (2.0,), "c=1, lr=0.01", _cw, 2),
    Attack("torchattacks", "fab", MINIMAL, (1.0, 2.0, INF), "defaults, eps=1e6: no limit", _fab, 12),
    Attack("torchattacks", "ead", MINIMAL, (1.0,), "9 searches of propagations/27 steps", _ead, 270),
]
