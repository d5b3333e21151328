"""The samples under attack: where each stands, and what is known of it while the loop runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Expansion, LocalModel
from epsball.objectives import Objective
from epsball.pace import Pace
from epsball.problem import Problem
from epsball.radius import Radius
from epsball.randomness import Generators
from epsball.schedule import Schedule
from epsball.sets import LpBall
from epsball.sets.base import ConstraintSet
from epsball.solvers import Formulation, ShrinkingBall
from epsball.state import State
from epsball.tensors import expand

__all__ = ["Batch", "Parts", "place"]

_BENT = 0.5  # the share of what a first step was to gain below which a shorter one is taken for the better


class Parts(Protocol):
    """What the loop needs to know of an attack."""

    @property
    def constraint(self) -> ConstraintSet:
        """C, the allowed perturbations."""

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
    best: tuple[Tensor, Tensor] | None = None  # the η (B, *S) with the largest gain so far, and that gain (B,)
    radius: Radius | None = None  # of a minimal-norm search
    leap: float = 1.0  # how many times faster its radius may fall
    momentum: float = 0.0  # of projected steps
    before: Tensor | None = None  # η one step ago, where they have
    average: Expansion | None = None  # of the linearisations so far, as functions of the whole perturbation
    step_ball: tuple[float, float] | None = None  # over which steps are solved
    bent_ball: tuple[float, float] | None = None  # over which those of bent samples are
    goal: ConstraintSet | None = None  # the set itself, while the steps go over one as large or larger
    pace: Pace | None = None  # of an attempt that leaves samples which it leads nowhere
    # The gain before a search's first step, and what that is to add, (B,): until the second; nobody leaves before.
    promise: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, problem: Problem, constraint: ConstraintSet, state: State, streams: Generators, index: Tensor) -> Batch:
        """Gather what the samples `index` are attacked with."""
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
            None if self.best is None else (self.best[0][index], self.best[1][index]),
            None if self.radius is None else self.radius.take(index),
            self.leap,
            self.momentum,
            None if self.before is None else self.before[index],
            None if self.average is None else self.average.take(index),
            self.step_ball,
            self.bent_ball,
            None if self.goal is None else self.goal.take(index),
            None if self.pace is None else self.pace.take(index),
        )

    def widen(self, factor: float) -> None:
        """Let the steps to come go over a ball `factor` times as large as the set."""
        if self.goal is None:
            if factor == 1.0:
                return
            self.goal = self.constraint
        self.constraint = self.goal if factor == 1.0 else self.goal.scaled(factor)

    def outside(self) -> Tensor | None:
        """Tell which samples a larger ball has let leave the set itself, (B,) bool; None where there is none."""
        if self.goal is None:
            return None
        return ~self.goal.contains(self.eta, self.x)

    def averaged(self, expansion: Expansion, share: float) -> Expansion:
        """Take a linearisation as a function of the whole perturbation into the average with this weight."""
        self.average = expansion if self.average is None else self.average.mixed(expansion, share)
        return self.average

    def carried(self, updated: Tensor) -> Tensor:
        """Mix a step, to `updated`, with the movement before it; (B, *S)."""
        before, self.before = self.before, self.eta
        if before is None:
            return updated
        return self.eta + (1.0 - self.momentum) * (updated - self.eta) + self.momentum * (self.eta - before)

    def keep(self, outputs: Tensor) -> None:
        """Remember where the samples stand if no gain was larger so far; outputs (B, *O) are those at this point."""
        gain = self.objective.gain(outputs, self.target)
        outside = self.outside()
        gain = gain if outside is None else torch.where(outside, -torch.inf, gain)
        if self.best is None:
            self.best = self.eta, gain
            return
        better = ~(gain <= self.best[1])
        if bool(better.all()):
            self.best = self.eta, gain
            return
        self.best = (
            torch.where(expand(better, self.eta), self.eta, self.best[0]),
            torch.where(better, gain, self.best[1]),
        )

    def search(self, state: State, formulation: Formulation, steps: int, *, continues: bool) -> None:
        """Begin a minimal-norm search of so many steps with what earlier attempts found as the size to beat.

        From zero, or from where the samples stand: where it continues, and where nothing was found.
        """
        self.leap = 1.0 + min(1.0, formulation.haste / steps)
        within = isinstance(formulation, ShrinkingBall) and formulation.within
        self.goal = self.constraint if within else None
        floor = self.constraint.eps_of(self.x) if within else None
        self.radius = Radius.of(
            self.eta, state.size[self.index], formulation.rate, calm=state.trusted[self.index], floor=floor
        )
        if not continues:
            self.eta = torch.where(expand(self.radius.found, self.eta), 0.0, self.eta)

    def start(self, *, boundary: bool) -> Tensor:
        """Draw a random point of the set, of a minimal-norm search within the size to beat; (B, *S)."""
        inside = self.constraint
        if self.radius is not None:
            inside = inside.with_eps(torch.where(self.radius.found, self.radius.value, 0.0))
        return inside.sample(self.x, self.streams.fork(0), boundary=boundary)

    def follow(self, radius: Radius, expansion: Expansion, point: Tensor, share: float) -> Tensor:
        """Let the radius follow what was found at the current point and limit the set; return who is done, (B,)."""
        if expansion.value.shape[1] != 1:
            raise InputError(
                "expected an objective of one piece for a search with a shrinking ball, got "
                f"{expansion.value.shape[1]}; "
                'use eb.Margin("runner-up") or eb.Ranked(first=eb.Margin("runner-up")).'
            )
        success = self.objective.success(expansion.outputs, self.target)
        # On a lattice, what was judged is not the point that the steps go on from.
        eta = self.eta if self.constraint.lattice is None else point - self.x
        value, gradient = expansion.value[:, 0].to(self.x.dtype), expansion.gradient[:, 0]
        radius.follow(self.constraint, self.x, eta, success, value, gradient, share, self.leap)
        self.constraint = self.constraint.with_eps(radius.value)
        if self.goal is not None:
            return radius.found & self.goal.contains(radius.eta, self.x)
        return radius.size <= self.constraint.unit

    def compare(self, state: State, expansion: Expansion) -> None:
        """Tell who has gained much less at the first step of a search than the linear model promised."""
        if self.promise is not None:
            before, promised = self.promise
            state.bent[self.index] = (promised > 0) & (expansion.value[:, 0] - before < _BENT * promised)

    def leave(self, state: State, which: Tensor) -> None:
        """Write the perturbations of the samples that leave: the point reached, or the smallest success of a search."""
        index, eta = self.index[which], (self.eta if self.best is None else self.best[0])[which]
        if self.radius is not None:
            best = self.radius.take(which.nonzero()[:, 0])
            eta = torch.where(expand(best.found, eta), best.eta, eta)
            state.size[index] = best.size
            if self.goal is not None:
                goal, x = self.goal.take(which.nonzero()[:, 0]), self.x[which]
                eta = torch.where(expand(goal.contains(eta, x), eta), eta, goal.project(eta, x))
        state.eta[index] = eta

    def limited(
        self, attack: Parts, local: ConstraintSet, share: float, ball: tuple[float, float] | None
    ) -> ConstraintSet:
        """Return the set over which one step is solved; ball: as in `Schedule.step_ball`."""
        if attack.schedule.average:
            return local
        if not attack.formulation.budgeted and self.radius is None:
            return local.onward(self.eta)
        if attack.schedule.update == "accumulate" and self.radius is None:
            return local.step(share, self.eta)
        step = local.scaled(share)
        if ball is not None and isinstance(step, LpBall):
            order, part = ball
            step = replace(step.scaled(part), p=order)
        return step

    def ascends(self, attack: Parts, expansion: Expansion, local: ConstraintSet) -> bool:
        """Tell whether a step, over the set `local` at the current point, is the set's own projected step."""
        plan = attack.schedule
        plain = plan.update == "project" and self.step_ball is None and not plan.average and not self.momentum
        return plain and attack.formulation.ascends and local is self.constraint and expansion.value.shape[1] == 1

    def learn(self, piece: Tensor, slope: Tensor) -> None:
        """Remember the slopes of the pieces that were differentiated."""
        self.slope = slope if self.slope is None else self.slope.scatter(1, piece, slope)

    def candidates(self, attack: Parts, share: float) -> Callable[[Tensor], Tensor] | None:
        """Return the rule for the pieces worth differentiating, None while nothing is known of them."""
        slope, growth = self.slope, getattr(attack.local_model, "growth", math.inf)
        if slope is None or growth == math.inf or attack.schedule.average:  # an average is one of the same pieces
            return None
        # The rule compares sizes; where in the set the sample stands does not matter to it.
        limited = self.limited(attack, self.constraint, share, self.step_ball)
        return lambda value: attack.formulation.candidates(value, slope, growth, limited, self.x)


def place(x: Tensor, eta: Tensor, constraint: ConstraintSet) -> Tensor:
    """Return the perturbed inputs, (B, *S): x + η inside the bounds, on the set's lattice where it has one."""
    return constraint.place(x, eta)
