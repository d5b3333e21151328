"""pyautoattack 0.2: the stages of AutoAttack by themselves; the whole of it is a part of its own."""

from __future__ import annotations

import logging
from typing import Any

from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor

EVERY = (1.0, 2.0, INF)
NORMS = {1.0: "L1", 2.0: "L2", INF: "Linf"}
LOGGER = logging.getLogger("auto-attack")


def _options(job: Job) -> dict[str, Any]:
    return {"norm": NORMS[job.p], "eps": job.radius, "seed": job.seed, "device": job.x.device, "logger": LOGGER}


def _apgd(loss: str, best: bool = False) -> Any:
    def run(job: Job) -> Tensor:
        large = job.p == 1.0 and job.budget >= 20 and not best
        steps = max(1, job.budget - (3 if large else 1))
        attack = APGDAttack(job.model, n_iter=steps, loss=loss, use_largereps=large, **_options(job))
        found = attack.perturb(job.x, job.y, best_loss=best)
        return found[0] if isinstance(found, tuple) else found

    return run


def _apgdt(job: Job) -> Tensor:
    targets = job.classes - 1
    each = job.budget // targets - 1
    return APGDAttack_targeted(job.model, n_iter=each, n_target_classes=targets, **_options(job)).perturb(job.x, job.y)


def _fab(job: Job) -> Tensor:
    steps = max(1, job.budget // (job.classes + 2))
    attack = FABAttack_PT(job.model, n_iter=steps, norm=NORMS[job.p], eps=1e6, seed=job.seed, device=job.x.device)
    return attack.perturb(job.x, job.y)


ATTACKS = [
    Attack("pyautoattack", "apgd-ce", FIXED, EVERY, "n_iter=T-1; l1: large_reps for T >= 20", _apgd("ce"), 2),
    Attack("pyautoattack", "apgd-dlr", FIXED, EVERY, "n_iter=T-1; l1: large_reps for T >= 20", _apgd("dlr"), 2),
    Attack("pyautoattack", "apgd-t", FIXED, EVERY, "nine targets, n_iter=T/9-1", _apgdt, 27),
    Attack("pyautoattack", "apgd-best", FIXED, EVERY, "loss ce, best_loss=True", _apgd("ce", True), 2, exact_only=True),
    Attack("pyautoattack", "fab", MINIMAL, EVERY, "eps=1e6: no limit", _fab, 12),
]
