"""The strongest attacks on classifiers for a stated number of passes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from epsball.objectives import CrossEntropy, Margin, Objective, Ranked
from epsball.recipes.row import Recipe
from epsball.schedule import Schedule
from epsball.solvers import FewestGroups, ShrinkingBall

__all__ = ["SEARCH"]

_RANKING = 5  # passes that a ranking takes: one forward, nine gradients
_POLISHING = 2  # passes that the polish and the judging of a search take
_EARLY = 35  # passes below which `nearest` does without a ranking
_FIRST = 0.4  # share of the passes that the untargeted attempt takes
_LEAST = 15  # steps of the others, below which longer ones gain more than further ones
_FIRST_SPARSE, _LEAST_SPARSE = 0.5, 8  # the same of `nearest` at p = 1, whose attempts need not end on the boundary:
_ALONG, _ALONG_MOST = 0.2, 40  # share of the passes that it takes along the boundary after them, and at most so many
_LONGEST = 60  # steps of the untargeted attempt, and
_SHORT = 20  # of the others, where many passes are divided into attempts from corners
_ENOUGH = 10  # steps from which it pays at p = 1 to begin over a larger ball
_MANY = 400  # passes from which further gradient steps gain less than random moves of blocks
_STEP_BALL = (1.5, 0.7)  # over which `best` solves its steps at p = 1, whose own move too few entries too far, and
_SMALLER = (4 / 3, 0.4)  # those of `nearest` and of its own first attempt of several;
_BENT = (1.5, 0.3)  # the same of samples on which the model is so bent that even these go too far;
_ONE_STEP = (1.5, 0.15)  # of one step, tried beside the exact one
_GO_ON, _GO_ON_SPARSE = (2.0, 0.4), (2.0, 0.2)  # those of `nearest` where a sample goes on, and at p = 1
_NEAR = 1.5  # classes that many times as far as the nearest, by the linear model, have no attempts of `nearest`
_FEW = 9  # attempts up to which it does: with more all classes have their turn, and that is worth more
_LONGER, _SOME = 3.0, 5  # the first step of a single attempt of `best` for 1 < p <= 2, and from how many steps on
_TURN = 0.5  # the share of its steps after which samples may turn to another class,
_TURNS, _TWICE = 10, 18  # from so many steps on, and to two classes


def _spend(
    passes: int,
    *,
    sparse: bool = False,
    nearest: bool = False,
    share: float = _FIRST,
    least: int = _LEAST,
    spared: int = 0,
    finds: bool = False,
    bends: bool = False,
    narrows: bool = False,
    rounded: bool = False,
    turns: bool = False,
) -> Schedule:
    """Divide the passes into attempts with falling steps: one untargeted, then one a class.

    Where there is but one attempt, `best` ranks nothing, and `nearest` where it pays. spared: passes that are left
    for something else. finds: the first of several attempts of `best` is a search with a shrinking ball. bends: where
    the model is bent, `nearest` goes on from what it has found; narrows: where it is not, it leaves far classes out.
    rounded: the ball has no corners, and a single attempt of `best` begins with longer steps. turns: from samples that
    such an attempt leads nowhere the steps that are left go to other classes.
    """
    early = passes >= _EARLY + _POLISHING
    fewest, boundary = 1, 0
    if sparse and nearest and early:
        share, least, fewest = _FIRST_SPARSE, _LEAST_SPARSE, 2
        boundary = min(_ALONG_MOST, int(_ALONG * passes))
    if nearest:
        # Steps along the boundary begin with a linearisation.
        narrowing = 1 if narrows and early else 0  # two forward passes
        passes = max(1, passes - _POLISHING - narrowing - (boundary + 1 if boundary else 0))
    first = int(share * passes)
    # Judging the result takes a pass, and of a norm-constrained attack each attempt too.
    judging = 0 if nearest else 1
    left = max(0, passes - _RANKING - first - judging - 1 - spared)
    several = early if nearest else passes >= _EARLY
    others = left // max(least, int(1.6 * left**0.5)) if several else 0
    if others >= fewest:
        steps, restarts, length = first, 1 + others, left // others - judging
    else:
        ranking = _RANKING if nearest and early else 0
        steps, restarts, length = max(1, passes - ranking - spared), 1, None
    finds = finds and restarts > 1
    ball = _SMALLER if nearest or finds else _STEP_BALL if steps > 1 else _ONE_STEP
    longer = rounded and restarts == 1 and steps >= _SOME
    turns = turns and restarts == 1 and steps >= _TURNS
    if turns:
        # Judged in forward passes alone, two a class, what it takes is what one attempt does.
        others = 1 if steps < _TWICE else 2
        restarts, length = 1 + others, (steps - math.ceil(_TURN * steps) - 1) // others - 1
    wide = (6.0, 0.8) if several else (3.0, 0.5) if steps >= _ENOUGH else None
    return Schedule(
        steps=steps,
        step_size="falling",
        falls_from=_LONGER if longer else 2.0,
        turn_after=_TURN if turns else None,
        widening="found" if finds else wide if sparse and not nearest else None,
        step_ball=ball if sparse else None,
        restart_step_ball=_STEP_BALL if finds and sparse else None,
        restart_near=_NEAR if narrows and restarts > 1 else None,
        bent_step_ball=_BENT if sparse and (nearest or finds) else None,
        update="project",
        restarts=restarts,
        restart_steps=length,
        keep="last" if nearest else "best",
        boundary_steps=boundary,
        continue_step_ball=(_GO_ON_SPARSE if sparse else _GO_ON) if bends and 2 < restarts <= _FEW else None,
    )


def _spend_in_a_box(passes: int) -> Schedule:
    """Of many passes spend half on short attempts from corners, and half on forward passes alone, two for the one."""
    if passes < _MANY:
        return _spend(passes)
    steps = passes - passes // 2
    first = min(_LONGEST, int(_FIRST * steps))
    return replace(
        _spend(passes),
        steps=first,
        # As in `_spend`; the moves are judged with the result.
        restarts=1 + (steps - _RANKING - first - 2) // (_SHORT + 1),
        restart_steps=_SHORT,
        restart_corners=True,
        restart_momentum=0.25,
        block_moves=2 * (passes // 2),
    )


def _first(options: dict[str, Any]) -> Objective:
    """Return what the untargeted attempt follows.

    Of a single step the margin, which that step is to bring down, and of a search with a shrinking ball too.
    """
    passes = options.get("passes", 100)
    finds = options.get("p", math.inf) < math.inf and _spend(passes, finds=True).widening == "found"
    return Margin("runner-up") if passes == 1 or finds else CrossEntropy()


def _classes(options: dict[str, Any]) -> int:
    """Return how many classes take part: with many short attempts the first few, again and again."""
    many = options.get("p") == math.inf and options.get("passes", 0) >= _MANY
    classes: int = options.get("classes", 4 if many else 9)
    return classes


def _spend_on_groups(passes: int) -> Schedule:
    """Divide the passes in the same way, with steps over the whole set on an average of the linearisations.

    Their polish tries four points, two more than that of a ball.
    """
    return replace(_spend(passes, nearest=True, share=0.3, least=11, spared=1), average=True)


SEARCH = (
    Recipe(
        "best",
        "the strongest within eps for so many passes: first in a ball that shrinks to eps as successes are found (for "
        "p = inf, and where the passes allow one attempt alone, within eps), then class after class as the linear "
        "model ranks them; for p = inf and 400 passes or more in short attempts from corners, with random moves of "
        "blocks at the end",
        "this library",
        lambda o: Ranked(_first(o), _classes(o)),
        partial(_spend, finds=True),
        steps=100,
        sparse=partial(_spend, sparse=True, finds=True),
        rounded=partial(_spend, finds=True, rounded=True),
        euclidean=partial(_spend, finds=True, rounded=True, turns=True),
        boxed=_spend_in_a_box,
        options=("passes", "classes"),
    ),
    Recipe(
        "nearest",
        "the smallest perturbation: attempts class after class in a ball that shrinks to what has been found",
        "this library",
        lambda o: Ranked(Margin("runner-up"), o.get("classes", 9), early=o.get("passes", 100) >= _EARLY + _POLISHING),
        partial(_spend, nearest=True, narrows=True),
        steps=100,
        sparse=partial(_spend, sparse=True, nearest=True, bends=True),
        rounded=partial(_spend, nearest=True, bends=True, narrows=True),
        formulation=ShrinkingBall(),
        over_groups=(_spend_on_groups, FewestGroups()),
        options=("passes", "classes"),
    ),
)
