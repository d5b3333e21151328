"""SecML-Torch 1.5: its native attacks; its other back ends are Foolbox and adv-lib, measured by themselves."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from secmlt.adv.evasion.ddn import DDN
from secmlt.adv.evasion.fmn import FMN
from secmlt.adv.evasion.pgd import PGD
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

NORMS = {1.0: "l1", 2.0: "l2", INF: "linf"}


def _run(attack: Any, job: Job) -> Tensor:
    loader = attack(job.model, DataLoader(TensorDataset(job.x, job.y), batch_size=len(job.x)))
    return loader.dataset.tensors[0].detach()


def _pgd(job: Job) -> Tensor:
    # The point after the last step is never looked at, so one step more is the same budget.
    attack = PGD(
        perturbation_model=NORMS[job.p],
        epsilon=job.radius,
        num_steps=job.budget + 1,
        step_size=2.5 * job.radius / job.budget,
        random_start=job.budget > 1,
        backend="native",
    )
    return _run(attack, job)


def _fmn(step: float) -> Any:
    def run(job: Job) -> Tensor:
        steps = job.budget // 2
        return _run(FMN(perturbation_model=NORMS[job.p], num_steps=steps, step_size=step, backend="native"), job)

    return run


def _ddn(job: Job) -> Tensor:
    return _run(DDN(num_steps=job.budget // 2, eps_init=1.0, backend="native"), job)


ATTACKS = [
    Attack("SecML-Torch", "pgd", FIXED, (1.0, 2.0, INF), "native; step 2.5 eps/T, T + 1 steps", _pgd),
    Attack("SecML-Torch", "fmn", MINIMAL, (1.0, 2.0, INF), "native; step_size=1", _fmn(1.0), 2),
    Attack("SecML-Torch", "fmn-10", MINIMAL, (INF,), "native; step_size=10", _fmn(10.0), 2),
    Attack("SecML-Torch", "ddn", MINIMAL, (2.0,), "native; eps_init=1", _ddn, 2),
]
