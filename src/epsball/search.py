"""The minimal-norm search: attempts in a ball that shrinks to what has been found, and a polish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from epsball.batch import Batch, Parts, place
from epsball.boundary import border_of, follow_boundary
from epsball.iteration import attempt, attempt_in_turn, linearised
from epsball.objectives import Ranked
from epsball.problem import Problem
from epsball.sets.base import ConstraintSet
from epsball.solvers.shrinking import ShrinkingBall, rounding_of
from epsball.state import State
from epsball.tensors import expand

__all__ = ["search"]

_JUDGED = 2  # attempts of a search after which samples go on where the linear model at x has misled
_TRUSTED = (0.4, 1.5)  # it has not where what was found is so many times as large as it had promised


def search(
    attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, everyone: Tensor, *, shared: bool
) -> None:
    """Make the attempts of a minimal-norm search, each with the sizes of those before it to beat, and polish."""
    formulation, objective = attack.formulation, problem.objective
    promised, sizes, direct = torch.zeros_like(state.size), state.size[:, None], problem.x
    if isinstance(objective, Ranked) and objective.early and isinstance(formulation, ShrinkingBall):
        batch = Batch.of(problem, constraint, state, problem.streams, everyone)
        expansion = linearised(problem, objective.ranking, batch, state)
        order, sizes, state.eta = formulation.smallest(expansion, batch.constraint, batch.x)
        promised = constraint.size(state.eta)
        if attack.schedule.restart_near is not None:
            gap = rounding_of(expansion) - expansion.value.gather(1, order[:, :1])[:, 0]
            direct = batch.constraint.smallest(expansion.gradient[everyone, order[:, 0]], gap, batch.x)
        state.eta = torch.where(expand(objective.success(expansion.outputs, problem.target), state.eta), 0.0, state.eta)
        labels = objective.ranking.chosen(expansion.outputs, problem.target).gather(1, order)
        problem = problem.turned(objective.ranked(labels, everyone, len(everyone)))
    others, stuck = everyone, everyone[:0]
    for number in range(attack.schedule.restarts):
        if number == 1 and attack.schedule.restart_near is not None and len(others):
            # On an affine model this is the solution, which steps may miss where two classes are as near.
            _offer(problem, constraint, state, others, direct[others])
            others, direct = others[state.size[others] > constraint.unit], problem.x
            state.trusted = _kept(state.size, promised)
            problem = _narrowed(problem, constraint, state, others, sizes, attack.schedule.restart_near)
        elif number == _JUDGED and attack.schedule.continue_step_ball is not None:
            bent = state.size[others].isfinite() & ~_kept(state.size[others], promised[others])
            stuck = _go_on(attack, problem, constraint, state, others[bent])
            others = others[~bent]
        elif number == _JUDGED + 1 and len(stuck):
            # In place of the steps that they could not take.
            others = torch.cat([others, stuck]).sort()[0]
        if len(others) == 0:
            continue
        attempt_in_turn(attack, problem, constraint, state, others, number, stops=False, shared=shared)
        others = others[state.size[others] > constraint.unit]
    left = active = everyone[state.size > constraint.unit]
    for _ in range(formulation.polish):
        left = _polish(attack, problem, constraint, state, left)
        if len(left) == 0:
            break
    if attack.schedule.boundary_steps:
        follow_boundary(problem, constraint, state, active, attack.schedule.boundary_steps)


def _kept(size: Tensor, promised: Tensor) -> Tensor:
    """Tell where what has been found is about as large as the linear model at x had promised, (B,) bool."""
    share = size / promised
    return (share > _TRUSTED[0]) & (share < _TRUSTED[1])


def _narrowed(
    problem: Problem, constraint: ConstraintSet, state: State, others: Tensor, sizes: Tensor, near: float
) -> Problem:
    """Leave the classes out of the attempts to come that are far by the linear model, where that can be trusted."""
    if len(others) == 0:
        return problem
    objective = cast(Ranked, problem.objective)
    # By more than rounding, which differs from batch to batch.
    within = (sizes <= near * (1.0 + 64.0 * torch.finfo(sizes.dtype).eps) * sizes[:, :1]).sum(1)
    found, known = torch.full_like(within, -1), others[state.size[others].isfinite()]
    if len(known):
        point = place(problem.x[known], state.eta[known], constraint.take(known))
        found[known] = problem.craft_outputs(point).argmax(1)
        state.forwards[known] += 1
    return problem.turned(objective.narrowed(torch.where(state.trusted, within, sizes.shape[1]), found))


def _go_on(attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, bent: Tensor) -> Tensor:
    """Let samples go on from their smallest success, with the steps of the attempts that are left.

    Return who could not take a step, since the gradient there is zero or not finite.
    """
    if len(bent) == 0:
        return bent
    plan = attack.schedule
    steps = (plan.restarts - _JUDGED) * plan.length(_JUDGED)
    longer = replace(
        cast(Any, attack), schedule=replace(plan, restart_steps=steps, restart_step_ball=plan.continue_step_ball)
    )
    before = state.backwards[bent]
    attempt(longer, problem, constraint, state, bent, _JUDGED, stops=False, shared=False, start="found")
    return bent[(state.flat[bent] | state.broken[bent]) & (state.backwards[bent] <= before + 1)]


def _polish(attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, active: Tensor) -> Tensor:
    """Try what the formulation proposes in place of the smallest successes; return who became smaller."""
    if not isinstance(attack.formulation, ShrinkingBall):
        return active[:0]
    active = active[state.size[active].isfinite()]
    if len(active) == 0:
        return active
    batch = Batch.of(problem, constraint, state, problem.streams, active)
    expansion = linearised(problem, border_of(batch.objective), batch, state)
    value, gradient = expansion.around(batch.eta).value[:, 0], expansion.gradient[:, 0]
    gap, smaller = rounding_of(expansion) - value, torch.zeros_like(state.flat[active])
    for eta in attack.formulation.polished(gradient, gap, batch.eta.clone(), batch.constraint, batch.x):
        smaller |= _offer(problem, constraint, state, active, eta)
    return active[smaller]


def _offer(problem: Problem, constraint: ConstraintSet, state: State, index: Tensor, eta: Tensor) -> Tensor:
    """Judge η (b, *S) of the samples `index` and keep it where it is a smaller success; return where, (b,)."""
    x, own = problem.x[index], constraint.take(index)
    placed = place(x, eta, own)
    if constraint.lattice is not None:
        eta = placed - x
    size = own.size(eta).to(state.size.dtype)
    state.forwards[index] += 1
    success = problem.objective.take(index).success(problem.outputs(placed), problem.target[index])
    return state.offer(index, eta, size, success)
