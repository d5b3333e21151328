"""The one loop: Algorithm 1 of the paper and its options, on the samples that are not finished yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from epsball.local_models import Expansion, Linear
from epsball.objectives import Objective
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.schedule import Schedule
from epsball.sets.base import ConstraintSet
from epsball.solvers import Formulation

__all__ = ["Parts", "State", "attempt", "place"]


class Parts(Protocol):
    """What the loop needs to know of an attack."""

    @property
    def local_model(self) -> Linear:
        """How the gain is modelled around a point."""

    @property
    def formulation(self) -> Formulation:
        """The problem solved on the model."""

    @property
    def schedule(self) -> Schedule:
        """When and how far to step."""


@dataclass
class State:
    """What is known of each sample while the loop runs; every field is (B, ...) and updated by index."""

    eta: Tensor
    forwards: Tensor
    backwards: Tensor
    flat: Tensor
    broken: Tensor
    feasible: Tensor

    @classmethod
    def new(cls, x: Tensor, forwards: int) -> State:
        """Start at no perturbation, with the forward passes made so far."""
        flag = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(torch.zeros_like(x), count + forwards, count.clone(), flag, flag.clone(), ~flag)


def attempt(
    attack: Parts,
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    everyone: Tensor,
    restart: int,
    *,
    stops: bool,
    shared: bool,
) -> None:
    """Run the T steps of Algorithm 1 on the samples `everyone`, dropping those that are finished."""
    schedule, formulation = attack.schedule, attack.formulation
    dithers, shares = schedule.dithers(), schedule.shares()
    streams = problem.streams.fork(restart)
    batch = Batch.of(problem, constraint, state, streams, everyone)
    if not formulation.uses_model or schedule.random_start:
        batch.eta = batch.constraint.sample(batch.x, batch.streams.fork(0), boundary=not formulation.uses_model)
    for step in range(schedule.steps if formulation.uses_model else 0):
        point = offset = place(batch.x, batch.eta, batch.constraint)
        dithered = dithers[step] > 0
        if dithered:
            radius = batch.constraint.scaled(dithers[step])
            point = place(point, radius.sample(point, batch.streams.fork(step + 1)), batch.constraint)
        if step == 0 and not dithered and not schedule.random_start and len(batch.index) == len(problem.x):
            expansion = problem.first(attack.local_model, shared)
        else:
            # At a dithered point the values are not those around which the problem is solved.
            known = None if dithered else batch.candidates(attack, shares[step])
            expansion = problem.expand(attack.local_model, batch.objective, point, batch.target, known)
        state.forwards[batch.index] += expansion.forwards
        state.backwards[batch.index] += expansion.backwards

        done = torch.zeros(len(batch.index), dtype=torch.bool, device=point.device)
        if stops and not dithered:
            done = batch.objective.success(expansion.outputs, batch.target)
        finite, flat = expansion.finite_and_flat()
        broken = ~finite
        state.broken[batch.index] = broken & ~done
        state.flat[batch.index] = flat & ~done
        # Without dither to come, a zero gradient stays where it is.
        done = done | broken | (flat if not any(dithers[step + 1 :]) else torch.zeros_like(flat))

        if bool(done.any()):
            # Finished samples leave before the problem is solved.
            left = (~done).nonzero()[:, 0]
            state.eta[batch.index[done]] = batch.eta[done]
            state.feasible[batch.index[done]] = True
            if len(left) == 0:
                return
            batch, expansion = batch.take(left), expansion.take(left)
            point, offset = point[left], offset[left]
        if dithered:
            expansion = expansion.around(point - offset)
        updated, feasible = _step(attack, batch, expansion, offset, shares[step])
        del expansion  # not kept through the next linearisation, where memory peaks
        state.feasible[batch.index] = feasible
        # A minimal-norm step that no longer moves has reached its best corner.
        stuck = ~feasible & (updated == batch.eta).flatten(1).all(1)
        batch.eta = updated
        if bool(stuck.any()):
            state.eta[batch.index[stuck]] = batch.eta[stuck]
            batch = batch.take((~stuck).nonzero()[:, 0])
            if len(batch.index) == 0:
                return
    state.eta[batch.index] = batch.eta


def _step(attack: Parts, batch: Batch, expansion: Expansion, point: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Solve one linearised problem around x + η and return the new η (B, *S), and whether there was a solution."""
    local = batch.constraint.at(batch.x, batch.eta)
    limited = batch.limited(attack, local, share)
    solution = attack.formulation.solve(expansion, limited, point)
    updated = batch.eta + solution.delta
    if attack.formulation.budgeted and attack.schedule.update == "project":
        updated = local.total(batch.eta).project(updated, batch.x)
    if solution.slope is not None and batch.objective.fixed_pieces:
        batch.learn(expansion.piece, solution.slope)
    return batch.constraint.repair(batch.x, batch.eta, updated), solution.feasible


@dataclass
class Batch:
    """The samples still under attack, without those that are finished."""

    index: Tensor
    x: Tensor
    eta: Tensor
    target: Tensor
    constraint: ConstraintSet
    objective: Objective
    streams: Generators
    slope: Tensor | None = None  # what a unit of budget gained on each of the objective's pieces when last computed

    @classmethod
    def of(cls, problem: Problem, constraint: ConstraintSet, state: State, streams: Generators, index: Tensor) -> Batch:
        whole = len(index) == len(problem.x)
        if whole:
            return cls(index, problem.x, state.eta, problem.target, constraint, problem.objective, streams)
        return cls(
            index,
            problem.x[index],
            state.eta[index],
            problem.target[index],
            constraint.take(index),
            problem.objective.take(index),
            streams.take(index),
        )

    def take(self, index: Tensor) -> Batch:
        """Keep some samples."""
        return Batch(
            self.index[index],
            self.x[index],
            self.eta[index],
            self.target[index],
            self.constraint.take(index),
            self.objective.take(index),
            self.streams.take(index),
            None if self.slope is None else self.slope[index],
        )

    def limited(self, attack: Parts, local: ConstraintSet, share: float) -> ConstraintSet:
        """Return the set over which one step is solved."""
        if not attack.formulation.budgeted:
            return local.onward(self.eta)
        return local.step(share, self.eta) if attack.schedule.update == "accumulate" else local.scaled(share)

    def learn(self, piece: Tensor, slope: Tensor) -> None:
        """Remember the slopes of the pieces that were differentiated."""
        self.slope = slope if self.slope is None else self.slope.scatter(1, piece, slope)

    def candidates(self, attack: Parts, share: float) -> Callable[[Tensor], Tensor] | None:
        """Return the rule for the pieces worth differentiating, None while nothing is known of them."""
        slope, growth = self.slope, attack.local_model.growth
        if slope is None or growth == math.inf:
            return None
        # The rule compares sizes; where in the set the sample stands does not matter to it.
        limited = self.limited(attack, self.constraint, share)
        return lambda value: attack.formulation.candidates(value, slope, growth, limited, self.x)


def place(x: Tensor, eta: Tensor, constraint: ConstraintSet) -> Tensor:
    """Return x + η, brought back by the rounding error of the addition where it left the bounds."""
    moved = x + eta
    if constraint.bounds is None:
        return moved
    lo, hi = constraint.bounds
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        return torch.clamp(moved, lo, hi)
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (lo, hi))
    return torch.clamp(moved, low, high)
