"""The one loop: Algorithm 1 of the paper and its options, on the samples that are not finished yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from epsball.local_models import Expansion, GaussNewton, LocalModel
from epsball.objectives import Objective
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.schedule import Schedule
from epsball.sets.base import ConstraintSet
from epsball.solvers import Formulation
from epsball.tensors import expand

__all__ = ["Parts", "State", "attempt", "place"]

_SOLVER = 9  # the tag of the solvers' own random draws


class Parts(Protocol):
    """What the loop needs to know of an attack."""

    @property
    def local_model(self) -> LocalModel:
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
    jvps: Tensor
    flat: Tensor
    broken: Tensor
    feasible: Tensor
    exact: Tensor  # whether every local problem was solved globally
    kkt: Tensor  # the largest relative KKT residual, NaN where no solver has one

    def count(self, index: Tensor, spent: tuple[Tensor, Tensor, Tensor]) -> None:
        """Add forward passes, backward passes and JVPs of some samples."""
        for total, more in zip((self.forwards, self.backwards, self.jvps), spent, strict=True):
            total[index] += more

    @classmethod
    def new(cls, x: Tensor, forwards: int) -> State:
        """Start at no perturbation, with the forward passes made so far."""
        flag = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(
            eta=torch.zeros_like(x),
            forwards=count + forwards,
            backwards=count.clone(),
            jvps=count.clone(),
            flat=flag,
            broken=flag.clone(),
            feasible=~flag,
            exact=~flag,
            kkt=torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device),
        )


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
    dithers, shares = schedule.dithers(problem.classifies), schedule.shares()
    streams = problem.streams.fork(restart)
    batch = Batch.of(problem, constraint, state, streams, everyone)
    if not formulation.uses_model or schedule.random_start:
        batch.eta = batch.constraint.sample(batch.x, batch.streams.fork(0), boundary=not formulation.uses_model)
    for step in range(schedule.steps if formulation.uses_model else 0):
        point = offset = place(batch.x, batch.eta, batch.constraint)
        dithered = dithers[step] > 0
        if dithered:
            offset_by = batch.constraint.dither(point, dithers[step], batch.streams.fork(step + 1))
            point = place(point, offset_by, batch.constraint)
        if step == 0 and not dithered and not schedule.random_start and len(batch.index) == len(problem.x):
            expansion = problem.first(attack.local_model, shared)
        else:
            # At a dithered point the values are not those around which the problem is solved.
            known = None if dithered else batch.candidates(attack, shares[step])
            expansion = problem.expand(attack.local_model, batch.objective, point, batch.target, known)
        done = torch.zeros(len(batch.index), dtype=torch.bool, device=point.device)
        if stops and not dithered:
            done = batch.objective.success(expansion.outputs, batch.target)
        finite, flat = expansion.finite_and_flat()
        state.count(batch.index, expansion.spent())
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
        updated, feasible = _step(attack, problem, batch, state, expansion, offset, step)
        if isinstance(expansion, GaussNewton):
            state.count(batch.index, expansion.spent())
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


def _step(
    attack: Parts,
    problem: Problem,
    batch: Batch,
    state: State,
    expansion: Expansion | GaussNewton,
    point: Tensor,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Solve one local problem around x + η and return the new η (B, *S), and whether there was a solution."""
    local = batch.constraint.at(batch.x, batch.eta)
    limited = batch.limited(attack, local, attack.schedule.shares()[step])
    solution = attack.formulation.solve(expansion, limited, point, batch.streams.fork(step + 1, _SOLVER))
    delta = solution.delta
    if solution.mirror is not None:
        delta = _better(problem, batch, state, delta, solution.mirror)
    updated = batch.eta + delta
    if attack.formulation.budgeted and attack.schedule.update == "project":
        updated = local.total(batch.eta).project(updated, batch.x)
    if solution.slope is not None and batch.objective.fixed_pieces and isinstance(expansion, Expansion):
        batch.learn(expansion.piece, solution.slope)
    if solution.exact is not None:
        state.exact[batch.index] &= solution.exact
    if solution.kkt is not None:
        state.kkt[batch.index] = torch.fmax(state.kkt[batch.index], solution.kkt.to(state.kkt.dtype))
    return batch.constraint.repair(batch.x, batch.eta, updated), solution.feasible


def _better(problem: Problem, batch: Batch, state: State, delta: Tensor, mirror: Tensor) -> Tensor:
    """Choose between two steps that the local model holds for equal, on the model itself."""
    gains = []
    for step in (delta, mirror):
        with torch.no_grad():
            outputs = problem.craft(place(batch.x, batch.eta + step, batch.constraint))
        gains.append(batch.objective.gain(outputs, batch.target))
        state.forwards[batch.index] += 1
    return torch.where(expand(gains[1] > gains[0], delta), mirror, delta)


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
        slope, growth = self.slope, getattr(attack.local_model, "growth", math.inf)
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
