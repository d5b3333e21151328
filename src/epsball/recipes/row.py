"""A row of the catalogue: a named composition with its reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from epsball.local_models import Linear, LocalModel
from epsball.objectives import Objective
from epsball.schedule import Schedule
from epsball.solvers import Formulation, NormConstrained

__all__ = ["PAPER", "Recipe", "accumulate", "dithered", "once"]

PAPER = "Balda, Behboodi, Mathar 2018"


@dataclass(frozen=True)
class Recipe:
    """One row of the catalogue.

    name: with a trailing "-T" where the number of steps is part of the name, as in "alg1-10". summary: one line for
    `epsball list attacks`. reference: where it was proposed. objective, schedule: built from the steps T and options.
    """

    name: str
    summary: str
    reference: str
    objective: Callable[[dict[str, Any]], Objective]
    schedule: Callable[[int], Schedule]
    steps: int = 1
    sparse: Callable[[int], Schedule] | None = None  # the schedule at p = 1, where it is another
    rounded: Callable[[int], Schedule] | None = None  # the one for 1 < p <= 2,
    euclidean: Callable[[int], Schedule] | None = None  # and for p = 2 itself
    boxed: Callable[[int], Schedule] | None = None  # the one at p = inf
    formulation: Formulation = field(default_factory=NormConstrained)
    local_model: LocalModel = field(default_factory=Linear)
    family: str = "ball"  # or "groups"
    over_groups: tuple[Callable[[int], Schedule], Formulation] | None = None  # of a "ball" recipe that takes groups too
    order: float | None = None  # the norm order p, where the recipe fixes it
    options: tuple[str, ...] = ()
    iterative: bool = True
    task: str = "classification"  # "regression", or "any": by the target

    @property
    def needs_eps(self) -> bool:
        """Whether a budget must be given."""
        return self.formulation.budgeted and not self.formulation.follows

    def over(self, groups: object) -> Recipe:
        """Return the row over these groups: of a "ball" recipe that takes groups too, what it does there."""
        if groups is None or self.over_groups is None:
            return self
        schedule, formulation = self.over_groups
        plain = replace(self, sparse=None, rounded=None, euclidean=None)
        return replace(plain, family="groups", schedule=schedule, formulation=formulation)

    def scheduled(self, order: object) -> Callable[[int], Schedule]:
        """Return what makes the schedule in the norm of this order; the set refuses what is none."""
        if order == 1.0:
            return self.sparse or self.schedule
        if order == math.inf:
            return self.boxed or self.schedule
        if order == 2.0 and self.euclidean is not None:
            return self.euclidean
        rounded = isinstance(order, Real) and order <= 2.0
        return (self.rounded if rounded else None) or self.schedule

    @property
    def pattern(self) -> re.Pattern[str]:
        """The names that this row answers to."""
        return re.compile(re.escape(self.name).replace(r"\-T", r"-(?P<steps>\d+)"))


def once(steps: int) -> Schedule:
    """Return the schedule that takes all its steps."""
    return Schedule(steps=steps, stop="never")


def accumulate(steps: int) -> Schedule:
    """Return the schedule of steps of ε/T that leaves a classified sample at its first success."""
    return Schedule(steps=steps)


def dithered(steps: int) -> Schedule:
    """Return the same with dithering where the objective does not classify."""
    return Schedule(steps=steps, dither=None)
