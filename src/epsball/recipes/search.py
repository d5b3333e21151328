"""The strongest attacks on classifiers for a stated number of passes."""

from __future__ import annotations

from typing import Any

from epsball.objectives import CrossEntropy, Margin, Objective, Ranked
from epsball.recipes.row import Recipe
from epsball.schedule import Schedule
from epsball.solvers import ShrinkingBall

__all__ = ["SEARCH"]

_RANKING = 5  # passes: nine gradients from one forward pass
_FIRST = 0.4  # share of the passes that the untargeted attempt takes
_SPARSE = 400  # passes below which p = 1 takes one attempt: its steps move few entries, and it needs many
_LEAST = 18  # steps of the others, below which longer ones gain more than further ones


def _objective(first: Objective, options: dict[str, Any]) -> Objective:
    return Ranked(first, options.get("classes", 9))


def _spend(passes: int) -> Schedule:
    """Divide the passes into attempts with falling steps: one untargeted, then one a class."""
    first = int(_FIRST * passes)
    left = passes - _RANKING - first
    others = left // max(_LEAST, int(1.6 * left**0.5)) if left > 0 else 0
    if others == 0:
        return Schedule(steps=passes, step_size="falling", update="project")
    steps = left // others
    return Schedule(steps=first, step_size="falling", update="project", restarts=1 + others, restart_steps=steps)


def _sparse(passes: int) -> Schedule:
    return _spend(passes) if passes >= _SPARSE else Schedule(steps=passes, step_size="falling", update="project")


SEARCH = (
    Recipe(
        "best",
        "the strongest within a budget: cross-entropy, then class after class as the linear model ranks them",
        "this library",
        lambda o: _objective(CrossEntropy(), o),
        _spend,
        steps=100,
        sparse=_sparse,
        options=("passes", "classes"),
    ),
    Recipe(
        "nearest",
        "the smallest perturbation: the same search in a ball that shrinks to what has been found",
        "this library",
        lambda o: _objective(Margin("runner-up"), o),
        _spend,
        steps=100,
        sparse=_sparse,
        formulation=ShrinkingBall(),
        options=("passes", "classes"),
    ),
)
