"""Every number of a result, measured on the tensor that is returned."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from epsball.errors import Status
from epsball.problem import Problem
from epsball.result import AttackResult
from epsball.sets.base import ConstraintSet
from epsball.solvers import Formulation
from epsball.state import State
from epsball.tensors import flat

__all__ = ["certify", "empty"]


def certify(
    problem: Problem, constraint: ConstraintSet, state: State, started: float, placed: Tensor, formulation: Formulation
) -> AttackResult:
    """Recompute success, norm and range from the tensor that is returned."""
    x = problem.x
    perturbed, budgeted = placed, formulation.budgeted
    outputs = problem.outputs(perturbed)
    state.forwards += 1
    perturbation = perturbed - x
    gain = problem.objective.gain(outputs, problem.target)
    inside = constraint.verify(x, perturbation)
    succeeds = problem.objective.success(outputs, problem.target)
    success = succeeds & inside
    broken = state.broken | ~flat(outputs).isfinite().all(1)
    untouched = (perturbation == 0).flatten(1).all(1)
    # A minimal-norm attack is beyond eps only with a perturbation that succeeds.
    outside = ~inside if budgeted else ~inside & succeeds

    # The first rule that holds names the status.
    rules = [
        (success & untouched, Status.ALREADY),
        (success, Status.SUCCESS),
        (broken, Status.NON_FINITE),
        (outside, Status.CONSTRAINT_VIOLATED if budgeted else Status.BEYOND),
        (state.flat, Status.ZERO_GRADIENT),
        (~state.feasible, Status.INFEASIBLE),
    ]
    code = torch.full((len(x),), len(rules), dtype=torch.int64, device=x.device)
    for number, (holds, _) in reversed(list(enumerate(rules))):
        code = torch.where(holds, number, code)
    names = [status for _, status in rules] + [Status.STANDS]
    return AttackResult(
        perturbed=perturbed,
        perturbation=perturbation,
        success=success,
        status=tuple(names[c] for c in code.tolist()),
        gain=gain,
        norm=formulation.searched(constraint).size(perturbation),
        outputs=outputs,
        forwards=state.forwards,
        backwards=state.backwards,
        jvps=state.jvps,
        exact=state.exact & ~broken,
        kkt=state.kkt,
        seconds=time.perf_counter() - started,
        classifies=problem.classifies,
    )


def empty(x: Tensor) -> AttackResult:
    """Return the result for no samples."""
    none, count = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
    return AttackResult(
        perturbed=x,
        perturbation=x,
        success=torch.zeros(0, dtype=torch.bool, device=x.device),
        status=(),
        gain=none,
        norm=none,
        outputs=none,
        forwards=count,
        backwards=count,
        jvps=count,
        exact=torch.zeros(0, dtype=torch.bool, device=x.device),
        kkt=none.double(),
        seconds=0.0,
    )
