"""adv-lib 0.2: functions of (model, inputs, labels); its own names and defaults for every attack."""

from __future__ import annotations

from typing import Any

from adv_lib import attacks as al
from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from torch import Tensor

EVERY = (1.0, 2.0, INF)


def _pgd(loss: str) -> Any:
    def run(job: Job) -> Tensor:
        # The point after the last step is never looked at, so one step more is the same budget.
        return al.pgd_linf(
            job.model,
            job.x,
            job.y,
            job.radius,
            steps=job.budget + 1,
            random_init=job.budget > 1,
            loss_function=loss,
            relative_step_size=2.5 / job.budget,
        )

    return run


def _apgd(loss: str, best: bool = False) -> Any:
    def run(job: Job) -> Tensor:
        # One gradient comes before the first iteration; the three phases of l1 have one each.
        large = job.p == 1.0 and job.budget >= 20 and not best
        steps = max(1, job.budget - (3 if large else 1))
        return al.apgd(
            job.model,
            job.x,
            job.y,
            job.radius,
            job.p,
            n_iter=steps,
            loss_function=loss,
            use_large_reps=large,
            best_loss=best,
        )

    return run


def _apgdt(job: Job) -> Tensor:
    each = job.budget // (job.classes - 1) - 1
    return al.apgd_targeted(job.model, job.x, job.y, job.radius, job.p, n_iter=each)


def _fmn(step: float) -> Any:
    return lambda job: al.fmn(job.model, job.x, job.y, job.p, steps=job.budget // 2, α_init=step)


def _ddn(job: Job) -> Tensor:
    return al.ddn(job.model, job.x, job.y, steps=job.budget // 2, levels=None)


def _alma(job: Job) -> Tensor:
    name, first = ("l1", 0.5) if job.p == 1.0 else ("l2", 0.1)
    steps = job.budget // 2
    # α as its paper sets it: 0.5 for about 100 steps, 0.9 for 1,000.
    return al.alma(
        job.model,
        job.x,
        job.y,
        num_steps=steps,
        distance=name,
        init_lr_distance=first,
        α=0.9 if steps >= 500 else 0.5,
    )


def _df(job: Job) -> Tensor:
    return al.df(job.model, job.x, job.y, steps=max(1, (job.budget + job.classes - 1) // job.classes), norm=job.p)


def _sdf(job: Job) -> Tensor:
    return al.sdf(job.model, job.x, job.y, steps=max(1, (job.budget - 10) // 15), df_steps=max(1, job.budget // 40))


def _fab(job: Job) -> Tensor:
    return al.fab(job.model, job.x, job.y, job.p, n_iter=max(1, job.budget // (job.classes + 1)))


def _fab_t(job: Job) -> Tensor:
    each = job.budget // (3 * (job.classes - 1))
    return al.fab(job.model, job.x, job.y, job.p, n_iter=each, targeted_restarts=True)


def _pdpgd(job: Job) -> Tensor:
    return al.pdpgd(job.model, job.x, job.y, job.p, num_steps=job.budget // 2)


def _pdgd(job: Job) -> Tensor:
    return al.pdgd(job.model, job.x, job.y, num_steps=job.budget // 2)


def _tr(job: Job) -> Tensor:
    # One forward more to judge each step, and the choice of the class: a forward and twelve backwards or so.
    return al.tr(job.model, job.x, job.y, iter=max(1, (job.budget - 2 * job.classes) // 4), adaptive=True, p=job.p)


def _cw(job: Job) -> Tensor:
    return al.carlini_wagner_l2(job.model, job.x, job.y, max_iterations=job.budget // 18)


def _cw_linf(job: Job) -> Tensor:
    return al.carlini_wagner_linf(job.model, job.x, job.y, max_iterations=max(1, job.budget // 40))


ATTACKS = [
    Attack("adv-lib", "pgd-ce", FIXED, (INF,), "step 2.5 eps/T, T + 1 steps, random start for T > 1", _pgd("ce")),
    Attack("adv-lib", "pgd-dl", FIXED, (INF,), "the same on the difference of logits", _pgd("dl")),
    Attack("adv-lib", "apgd-ce", FIXED, EVERY, "n_iter=T-1, loss ce; l1: large_reps for T >= 20", _apgd("ce"), 2),
    Attack("adv-lib", "apgd-dlr", FIXED, EVERY, "n_iter=T-1, loss dlr; l1: large_reps for T >= 20", _apgd("dlr"), 2),
    Attack("adv-lib", "apgd-t", FIXED, EVERY, "nine targets, n_iter=T/9-1", _apgdt, 27),
    Attack(
        "adv-lib",
        "apgd-best",
        FIXED,
        EVERY,
        "loss ce, best_loss=True, which takes 100 iterations whatever n_iter says",
        _apgd("ce", True),
        100,
        exact_only=True,
    ),
    Attack("adv-lib", "fmn", MINIMAL, EVERY, "defaults (α_init=1)", _fmn(1.0), 2),
    Attack("adv-lib", "fmn-10", MINIMAL, EVERY, "α_init=10, as its paper for linf", _fmn(10.0), 2),
    Attack("adv-lib", "ddn", MINIMAL, (2.0,), "levels=None", _ddn, 2),
    Attack("adv-lib", "alma", MINIMAL, (1.0, 2.0), "init_lr_distance 0.5 (l1), 0.1 (l2); α 0.5 or 0.9", _alma, 2),
    Attack("adv-lib", "deepfool", MINIMAL, (2.0, INF), "overshoot=0.02", _df, 11),
    Attack("adv-lib", "sdf", MINIMAL, (2.0,), "steps and df_steps by budget", _sdf, 30),
    Attack("adv-lib", "fab", MINIMAL, EVERY, "all classes, n_iter=propagations/11", _fab, 11),
    Attack("adv-lib", "fab-t", MINIMAL, EVERY, "targeted restarts, n_iter=propagations/27", _fab_t, 54),
    Attack("adv-lib", "pdpgd", MINIMAL, EVERY, "defaults", _pdpgd, 2),
    Attack("adv-lib", "pdgd", MINIMAL, (2.0,), "defaults", _pdgd, 2),
    Attack("adv-lib", "tr", MINIMAL, (2.0, INF), "adaptive=True", _tr, 30),
    Attack("adv-lib", "cw", MINIMAL, (2.0,), "9 searches of propagations/18 steps", _cw, 180),
    Attack("adv-lib", "cw-linf", MINIMAL, (INF,), "propagations/40 iterations a constant", _cw_linf, 180),
]
