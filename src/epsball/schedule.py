"""When and how far to step: the iteration of Algorithm 1 and its options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from epsball.errors import InputError
from epsball.validation import check_count

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How the linearised problems are iterated; sizes are shares of ε, so that one schedule serves every budget.

    steps: T, the number of linearisations. step_size: the share of ε that each step may take, a number or one for each
    step; 1/T by default. dither: the radius ε̃ of the random offset at which each step linearises, as a share of ε, a
    number or one for each step; None: ε/T for objectives that do not classify, whose gradient may be zero at x, and
    none for those that do. random_start: begin at a random point of the set.
    update: "accumulate" adds the steps (the sum of the shares is at most 1, so the triangle inequality keeps it in the
    ball: Algorithm 1); "project" projects onto the set after each step, of any size (Madry's PGD).
    stop: "success" leaves a sample at its first success and drops it from the batch, "never" takes all steps; by
    default "success" for objectives that classify. A step that is dithered does not see the point it starts from, so
    with dither at every step a success shows only at the end. restarts: attempts with new random draws, the best kept.
    """

    steps: int = 1
    step_size: float | tuple[float, ...] | None = None
    dither: float | tuple[float, ...] | None = 0.0
    random_start: bool = False
    update: Literal["accumulate", "project"] = "accumulate"
    stop: Literal["success", "never"] | None = None
    restarts: int = 1

    def __post_init__(self) -> None:
        """Refuse schedules that cannot be run or that would leave the ball."""
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.update not in ("accumulate", "project"):
            raise InputError(f'expected update as "accumulate" or "project", got {self.update!r}.')
        if self.stop not in ("success", "never", None):
            raise InputError(f'expected stop as "success", "never" or None, got {self.stop!r}.')
        sizes, dithers = self.shares(), self.dithers()
        if self.update == "accumulate" and math.fsum(sizes) > 1.0 + 1e-9:
            raise InputError(
                f"expected step sizes that add up to at most 1 (they are shares of eps), got {math.fsum(sizes):g}; "
                'use smaller steps or update="project".'
            )
        if self.update == "accumulate" and self.random_start:
            raise InputError('a random start spends the budget that accumulated steps need; use update="project".')
        if self.restarts > 1 and not self.random_start and not any(dithers):
            raise InputError("restarts without random_start or dither would repeat the same attempt; set one of them.")

    def shares(self) -> tuple[float, ...]:
        """Return the share of ε of each step."""
        return self._each("step_size", 1.0 / self.steps if self.step_size is None else self.step_size)

    def dithers(self, classifies: bool = False) -> tuple[float, ...]:
        """Return the dithering radius of each step as a share of ε, for an objective that classifies or does not."""
        automatic = 0.0 if classifies else 1.0 / self.steps
        return self._each("dither", automatic if self.dither is None else self.dither)

    def _each(self, name: str, value: float | tuple[float, ...]) -> tuple[float, ...]:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.steps
        if not all(isinstance(v, Real) and math.isfinite(v) and v >= 0 for v in values):
            raise InputError(f"expected {name} >= 0 as a share of eps, got {value!r}.")
        if len(values) != self.steps:
            raise InputError(
                f"expected {name} as a number or one for each of the {self.steps} steps, got {len(values)}."
            )
        return values
