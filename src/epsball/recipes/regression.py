"""Attacks on regression models, and on few groups of entries; `linear-pixel-T` serves both tasks."""

from __future__ import annotations

from epsball.local_models import Quadratic
from epsball.objectives import ByTarget, Margin, SquaredError
from epsball.recipes.row import PAPER, Recipe, dithered, once

__all__ = ["REGRESSION"]

REGRESSION = (
    Recipe(
        "linear-lp-T",
        "T accumulated, dithered steps of eps/T on the squared error",
        f"{PAPER}, section 3.2 and Algorithm 1",
        lambda o: SquaredError(),
        dithered,
        steps=10,
        options=("dither",),
        task="regression",
    ),
    Recipe(
        "quadratic-lp",
        "one step on the Gauss-Newton model of the squared error, the Jacobian never stored",
        f"{PAPER}, section 3.1",
        lambda o: SquaredError(),
        once,
        local_model=Quadratic(),
        options=("memory", "products"),
        iterative=False,
        task="regression",
    ),
    Recipe(
        "quadratic-lp-T",
        "T accumulated steps of eps/T on the Gauss-Newton model of the squared error",
        "epsball; left open in section 3 of the paper",
        lambda o: SquaredError(),
        once,
        steps=10,
        local_model=Quadratic(),
        options=("dither", "memory", "products"),
        task="regression",
    ),
    Recipe(
        "linear-pixel-T",
        "T dithered steps, each on the best new group at the full eps",
        f"{PAPER}, section 4.2",
        lambda o: ByTarget(Margin("all")),
        dithered,
        steps=1,
        family="groups",
        options=("dither",),
        task="any",
    ),
    Recipe(
        "quadratic-pixel",
        "one step on the Gauss-Newton model of the squared error over k groups",
        f"{PAPER}, section 4.1",
        lambda o: SquaredError(),
        once,
        local_model=Quadratic(),
        family="groups",
        options=("memory", "products"),
        iterative=False,
        task="regression",
    ),
)
