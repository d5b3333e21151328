"""When and how far to step: the iteration of Algorithm 1 and its options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from epsball.errors import InputError
from epsball.validation import check_count, check_p

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How the linearised problems are iterated; sizes are shares of ε, so that one schedule serves every budget.

    steps: T, the number of linearisations. step_size: the share of ε that each step may take, a number or one for each
    step, or "falling": 2 (1 - t/T)², from twice the ball down to nothing; 1/T by default. falls_from: with "falling",
    how many balls the first step is long instead of two. step_ball: (p, share), to solve projected steps over an ℓp
    ball of this share of their size instead of the set's own: at p = 1 a step moves few entries all the way, where the
    linear model no longer holds; over (4/3, 0.4) it moves more of them less. dither: the radius ε̃ of the random offset
    at which each step linearises, as a share of ε, a number or one for each step; None: ε/T for objectives that do not
    classify, whose gradient may be zero at x, and none for those that do. random_start: begin at a random point of the
    set.
    update: "accumulate" adds the steps (the sum of the shares is at most 1, so the triangle inequality keeps it in the
    ball: Algorithm 1); "project" projects onto the set after each step, of any size (Madry's PGD).
    average: solve each problem over the whole set, from x, on a running average of the linearisations (dual averaging),
    for sets without small steps such as "at most k groups"; step_size is then the weight of each linearisation,
    "falling" from 0.4 to 0.05.
    stop: "success" leaves a sample at its first success and drops it from the batch, "never" takes all steps; by
    default "success" for objectives that classify, but for a budgeted attack on a mean over random draws. A step that
    is dithered does not see the point it starts from, so with dither at every step a success shows only at the end.
    restarts: attempts with new random draws, the best kept. restart_steps: T of the attempts after the first, the same
    by default. keep: of an attempt's points the "last", or the "best", the one with the largest gain (one more forward
    pass; no dither): then the last step solves the problem over the whole set anew, from x instead of from the current
    point, so that affine models are solved exactly; without other attempts the usual last step is tried too, for one
    further pass, unless that success stops it. block_moves: after the attempts of a norm-constrained attack in the ℓ∞
    norm, so many random moves of blocks to the faces of the ball or, with restarts, to where another of the last 20
    attempts ended; one forward pass each, kept where the gain rises: where gradients are zero or lead nowhere it goes
    on. restart_corners: of such an attack, attempts after the first begin at random corners of the ball, the same one
    throughout a block of entries. restart_momentum: the share that each projected step of the attempts after the first
    takes of the movement before it instead of its own, 0.25 as in APGD.
    widening: (factor, share), with keep="best": the steps of the first attempt go over a ball that is `factor` times
    as large at first and falls geometrically to the set itself after this share of the steps; only points of the set
    itself count. At p = 1, where a small ball lets few entries move, this finds what steps inside it do not.
    "found", with restarts: the first attempt is a search with a shrinking ball that ends at the set, so how large the
    ball is follows from what is found, not from the step; for eb.Ranked(first=eb.Margin("runner-up")), and not where
    stop="never". restart_step_ball: step_ball of the attempts after the first, the same by default.
    bent_step_ball: (p, share), in a search with a shrinking ball, also in that of widening="found": what takes the
    place of step_ball for samples whose first step gained less than half of what the linear model had promised.
    boundary_steps: after the attempts of a minimal-norm search in the ℓ1 norm, so many trust-region steps along the
    decision boundary, one forward and one backward pass each.
    continue_step_ball: (p, share), with at least 3 attempts of a minimal-norm search: where the size of what two
    attempts found is far from what the linear model at x had promised, the model is bent, and the steps of the other
    attempts are spent on one that goes on from there and raises what the first did, over a ball as in step_ball. Where
    there is no gradient, all other attempts but one are made.
    restart_near: with restarts of a minimal-norm search: where what the first attempt found is about as far as the
    linear model at x had promised, classes more than so many times as far as the nearest by that model are left out of
    the others, which go to the nearer ones in rounds, from random points where they have been to them before, and the
    radius moves a third as fast. The class of what has been found by then comes last; the solution of the linear model
    at x is tried as well. Two forward passes.
    turn_after: with keep="best", restarts and eb.Ranked, the share of the steps of the first attempt after which it
    leaves samples that hardly gain any more and at their pace would not succeed, and before it those without a
    gradient. Only these make the other attempts, from x to the wrong classes with the second, third and further highest
    score there, or from random points where there are none; nobody does where samples do not stop at success.
    """

    steps: int = 1
    step_size: float | tuple[float, ...] | Literal["falling"] | None = None
    step_ball: tuple[float, float] | None = None
    dither: float | tuple[float, ...] | None = 0.0
    random_start: bool = False
    update: Literal["accumulate", "project"] = "accumulate"
    stop: Literal["success", "never"] | None = None
    restarts: int = 1
    restart_steps: int | None = None
    keep: Literal["last", "best"] = "last"
    average: bool = False
    block_moves: int = 0
    restart_corners: bool = False
    restart_momentum: float = 0.0
    widening: tuple[float, float] | Literal["found"] | None = None
    restart_step_ball: tuple[float, float] | None = None
    boundary_steps: int = 0
    continue_step_ball: tuple[float, float] | None = None
    falls_from: float = 2.0
    turn_after: float | None = None
    bent_step_ball: tuple[float, float] | None = None
    restart_near: float | None = None

    def __post_init__(self) -> None:
        """Refuse schedules that cannot be run or that would leave the ball."""
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        if self.restart_steps is not None:
            check_count("restart_steps", self.restart_steps)
        if self.block_moves != 0:
            check_count("block_moves", self.block_moves)
        if self.boundary_steps != 0:
            check_count("boundary_steps", self.boundary_steps)
        if self.update not in ("accumulate", "project"):
            raise InputError(f'expected update as "accumulate" or "project", got {self.update!r}.')
        if self.stop not in ("success", "never", None):
            raise InputError(f'expected stop as "success", "never" or None, got {self.stop!r}.')
        if self.keep not in ("last", "best"):
            raise InputError(f'expected keep as "last" or "best", got {self.keep!r}.')
        if self.keep == "best" and (self.update != "project" or any(self.dithers(True))):
            raise InputError('expected keep="best" with update="project" and without dither; leave keep out.')
        if self.restart_corners and (self.update != "project" or self.average):
            raise InputError(
                'expected update="project" without average=True for restart_corners: a corner spends the budget that '
                "accumulated steps need; leave it out."
            )
        if self.bent_step_ball is not None and self.step_ball is None:
            raise InputError("expected step_ball with bent_step_ball, which takes its place; give both or neither.")
        if self.restart_step_ball is not None and self.restarts == 1:
            raise InputError("restart_step_ball is of the attempts after the first, got restarts=1; leave it out.")
        if self.continue_step_ball is not None and self.restarts < 3:
            raise InputError(
                f"continue_step_ball takes the place of attempts after two, got restarts={self.restarts}; leave it out."
            )
        for name in ("step_ball", "restart_step_ball", "continue_step_ball", "bent_step_ball"):
            if getattr(self, name) is not None:
                self._check_step_ball(name, getattr(self, name))
        near = self.restart_near
        if near is not None and (isinstance(near, bool) or not isinstance(near, Real) or not near >= 1.0):
            raise InputError(f"expected restart_near >= 1, in distances of the nearest class, got {near!r}.")
        if near is not None and self.restarts == 1:
            raise InputError("restart_near is of the attempts after the first, got restarts=1; leave it out.")
        if self.turn_after is not None:
            self._check_turn(self.turn_after)
        length = self.falls_from
        if isinstance(length, bool) or not isinstance(length, Real) or not 0.0 < length < math.inf:
            raise InputError(f"expected falls_from > 0, in balls, got {self.falls_from!r}.")
        if self.falls_from != 2.0 and (self.step_size != "falling" or self.average):
            raise InputError('expected step_size="falling" without average=True for falls_from; leave it out.')
        if self.widening is not None:
            self._check_widening(self.widening)
        momentum = self.restart_momentum
        if not isinstance(momentum, Real) or not 0.0 <= momentum < 1.0:
            raise InputError(f"expected 0 <= restart_momentum < 1, got {momentum!r}.")
        if momentum and (self.update != "project" or self.average):
            raise InputError('expected update="project" without average=True for restart_momentum; leave it out.')
        if self.average and (self.update != "project" or any(self.dithers(True)) or self.keep == "best"):
            raise InputError(
                'expected update="project" without dither and keep with average=True, whose steps are whole.'
            )
        further = () if self.continue_step_ball is None else ((self.restarts - 2) * self.length(2),)
        for steps in (self.steps, self.length(1), *further):
            self._check_sizes(steps)

    def _check_step_ball(self, name: str, given: object) -> None:
        if not isinstance(given, tuple) or len(given) != 2 or not all(isinstance(v, Real) for v in given):
            raise InputError(f"expected {name} as (p, share), such as (4/3, 0.4), got {given!r}.")
        check_p(given[0])
        if not 0.0 < given[1] < math.inf:
            raise InputError(f"expected the share of {name} > 0, got {given[1]!r}.")
        if self.update != "project" or self.average:
            raise InputError(
                f'expected update="project" without average=True for {name}, whose steps leave the set; leave it out.'
            )

    def _check_turn(self, given: object) -> None:
        if isinstance(given, bool) or not isinstance(given, Real) or not 0.0 < float(given) < 1.0:
            raise InputError(f"expected 0 < turn_after < 1, a share of the steps, got {given!r}.")
        if self.keep != "best" or self.restarts == 1 or self.widening is not None or self.block_moves:
            raise InputError(
                'expected keep="best" and restarts, without widening and block_moves, for turn_after; leave it out.'
            )
        if not 3 <= self.turn(self.steps) < self.steps:
            raise InputError(
                f"expected three steps or more before turn_after and one after it, got {given:g} of {self.steps} steps."
            )

    def _check_widening(self, given: object) -> None:
        if given == "found":
            if self.keep != "best" or self.average or self.restarts == 1:
                raise InputError('expected keep="best", restarts and no average with widening="found"; leave it out.')
            return
        if not isinstance(given, tuple) or len(given) != 2 or not all(isinstance(v, Real) for v in given):
            raise InputError(f"expected widening as (factor, share), such as (6.0, 0.8), or 'found', got {given!r}.")
        if not 1.0 <= given[0] < math.inf or not 0.0 < given[1] <= 1.0:
            raise InputError(f"expected widening with a factor >= 1 and a share in (0, 1], got {given!r}.")
        if self.keep != "best" or self.average:
            raise InputError('expected keep="best" without average=True for widening, whose steps leave the set.')

    def _check_sizes(self, steps: int) -> None:
        """Refuse sizes that do not fit an attempt of so many steps."""
        sizes = self.shares(steps)
        self.dithers(steps=steps)  # refuses what they cannot be
        if self.average and max(sizes) > 1.0:
            raise InputError(f"expected step_size <= 1 with average=True, a weight, got {max(sizes):g}.")
        if self.update == "accumulate" and math.fsum(sizes) > 1.0 + 1e-9:
            raise InputError(
                f"expected step sizes that add up to at most 1 (they are shares of eps), got {math.fsum(sizes):g}; "
                'use smaller steps or update="project".'
            )
        if self.update == "accumulate" and self.random_start:
            raise InputError('a random start spends the budget that accumulated steps need; use update="project".')

    def length(self, attempt: int) -> int:
        """Return the number of steps of an attempt."""
        return self.steps if attempt == 0 or self.restart_steps is None else self.restart_steps

    def turn(self, steps: int) -> int:
        """Return the step of so many at which the first attempt leaves samples that it leads nowhere."""
        return math.ceil((self.turn_after or 0.0) * steps)

    def ball(self, attempt: int) -> tuple[float, float] | None:
        """Return the ball over which an attempt's projected steps are solved, None: the set's own."""
        return self.step_ball if attempt == 0 or self.restart_step_ball is None else self.restart_step_ball

    def shares(self, steps: int | None = None) -> tuple[float, ...]:
        """Return the share of ε of each step of an attempt of so many steps, by default the first."""
        count = self.steps if steps is None else steps
        if self.step_size == "falling" and self.average:
            return tuple(0.4 - 0.35 * step / count for step in range(count))
        if self.step_size == "falling":
            return tuple(self.falls_from * (1.0 - step / count) ** 2 for step in range(count))
        size = 1.0 / count if self.step_size is None else self.step_size
        return self._each("step_size", size, count)

    def factors(self, steps: int, attempt: int = 0) -> tuple[float, ...]:
        """Return how many times as large as the set the ball of each step of an attempt of so many steps is."""
        if attempt or not isinstance(self.widening, tuple):
            return (1.0,) * steps
        factor, share = self.widening
        # Whatever the share, the last step ends in the set itself.
        return (*(max(1.0, factor ** (1.0 - step / (share * steps))) for step in range(steps - 1)), 1.0)

    def dithers(self, classifies: bool = False, steps: int | None = None) -> tuple[float, ...]:
        """Return the dithering radius of each step as a share of ε, for an objective that classifies or does not."""
        count = self.steps if steps is None else steps
        automatic = 0.0 if classifies else 1.0 / count
        return self._each("dither", automatic if self.dither is None else self.dither, count)

    def _each(self, name: str, value: float | str | tuple[float, ...], count: int) -> tuple[float, ...]:
        given = value if isinstance(value, (tuple, list)) else (value,) * count
        values = tuple(float(v) for v in given if isinstance(v, Real) and math.isfinite(v) and v >= 0)
        if len(values) != len(given):
            raise InputError(f"expected {name} >= 0 as a share of eps, got {value!r}.")
        if len(values) != count:
            raise InputError(f"expected {name} as a number or one for each of the {count} steps, got {len(values)}.")
        return values
