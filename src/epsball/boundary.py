"""A minimal ℓ1 perturbation made smaller along the decision boundary: problem (8) inside a trust region."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor

from epsball.batch import Batch, place
from epsball.local_models import Expansion, Linear
from epsball.objectives import Margin, Objective
from epsball.problem import Problem
from epsball.sets import LpBall
from epsball.sets.base import ConstraintSet
from epsball.solvers.shrinking import rounding_of
from epsball.state import State
from epsball.tensors import dot, expand

__all__ = ["border_of", "follow_boundary"]

_FIRST = 0.03
_GROWS, _SHRINKS = 1.6, 0.4  # chosen on the networks of benchmarks/peers
_PENALTY = 2.0  # what a missing unit of gain weighs, in what it costs the linear model without bounds
_ENOUGH = 0.1  # share of the decrease promised by the linear model from which a step is taken
_LEAST = 1e-6  # the same share at which a sample is done


@dataclass
class _Centre:
    """Where each sample stands, η (B, *S), what the model is there, (B,) and (B, *S), and its trust radius, (B,).

    least: the radius at which it is done, (B,).
    """

    eta: Tensor
    value: Tensor
    gradient: Tensor
    radius: Tensor
    least: Tensor

    def take(self, index: Tensor) -> _Centre:
        """Keep some samples."""
        return _Centre(*(getattr(self, field.name)[index] for field in fields(self)))


def follow_boundary(problem: Problem, constraint: ConstraintSet, state: State, active: Tensor, steps: int) -> None:
    """Make the smallest successes smaller: min ‖η / w‖₁ subject to gain ≥ 0, by up to so many trust-region steps.

    Each step solves problem (8) for the whole perturbation, linearised where the sample stands, inside the bounds and
    no entry further than a trust radius from where it is: exact, a linear program. It is taken if ‖η / w‖₁ and what is
    missing of the gain, weighed as an exact penalty, fall by a tenth of what a gain of zero there would promise; then
    the radius grows, else it shrinks. Where a step is refused, the gradients of both its ends are averaged: at a kink
    of the boundary neither alone leads down, some mixture does. One forward and one backward pass a step.

    Sources: problem (8) of the paper; the trust region of Fletcher (1987, section 14.5) for composite functions.
    """
    active = active[state.size[active].isfinite()]
    if len(active) == 0:
        return
    batch = Batch.of(problem, constraint, state, problem.streams, active)
    objective = border_of(batch.objective)
    expansion = _expand(problem, objective, batch, state, batch.eta)
    rounding, longest = rounding_of(expansion), _ball(batch).longest(batch.eta)
    centre = _Centre(
        batch.eta.clone(),  # the state's own, which is written to
        expansion.value[:, 0],
        expansion.gradient[:, 0],
        _FIRST * longest,
        _LEAST * longest,
    )
    for _ in range(steps):
        left = (centre.radius > centre.least).nonzero()[:, 0]
        if len(left) == 0:
            return
        if len(left) < len(batch.index):
            batch, centre, rounding = batch.take(left), centre.take(left), rounding[left]
        ball, gap = _ball(batch), rounding - centre.value + dot(centre.gradient, centre.eta)
        eta = ball.nearby(centre.gradient, gap, batch.x, centre.eta, centre.radius)
        if ball.lattice is not None:
            eta = place(batch.x, eta, ball) - batch.x
        found = _expand(problem, objective, batch, state, eta)
        success = batch.objective.success(found.outputs, batch.target)
        state.offer(batch.index, eta, batch.constraint.size(eta).to(state.size.dtype), success)
        _move(ball, centre, found, eta)


def border_of(objective: Objective) -> Objective:
    """Return what is zero where a sample is about to change sides, as one piece."""
    return Margin("runner-up") if objective.classifies else objective


def _ball(batch: Batch) -> LpBall:
    return cast(LpBall, batch.constraint)  # as the attack checks


def _expand(problem: Problem, objective: Objective, batch: Batch, state: State, eta: Tensor) -> Expansion:
    point = place(batch.x, eta, batch.constraint)
    found = cast(Expansion, problem.expand(Linear(), objective, point, batch.target))
    state.count(batch.index, found.spent())
    return replace(found, value=found.value.to(eta.dtype))


def _move(ball: LpBall, centre: _Centre, found: Expansion, eta: Tensor) -> None:
    """Take the steps that lead down, average the gradients of the others, and choose the next radius."""
    value, gradient = found.value[:, 0], found.gradient[:, 0]
    price = _PENALTY * ball.least_size(centre.gradient, torch.ones_like(value))
    was, now = ball.size(centre.eta), ball.size(eta)
    before, after = was + price * (-centre.value).clamp_min(0.0), now + price * (-value).clamp_min(0.0)
    usable = found.finite_and_flat()[0]
    taken = usable & (after < before - _ENOUGH * (before - now))
    centre.radius = centre.radius * torch.where(taken, _GROWS, _SHRINKS)
    mixed = torch.where(expand(usable, gradient), 0.5 * (centre.gradient + gradient), centre.gradient)
    centre.gradient = torch.where(expand(taken, gradient), gradient, mixed)
    centre.eta = torch.where(expand(taken, eta), eta, centre.eta)
    centre.value = torch.where(taken, value, centre.value)
