"""The random baselines, for both tasks."""

from __future__ import annotations

import math

from epsball.objectives import ByTarget
from epsball.recipes.row import PAPER, Recipe, once
from epsball.solvers import RandomPoint

__all__ = ["RANDOM"]

RANDOM = (
    Recipe(
        "random-l1",
        "a point drawn uniformly from the sphere of norm eps",
        "epsball; not in the paper",
        lambda o: ByTarget(),
        once,
        formulation=RandomPoint(),
        order=1.0,
        iterative=False,
        task="any",
    ),
    Recipe(
        "random-l2",
        "a Gaussian direction of norm eps",
        f"{PAPER}, section 6.2",
        lambda o: ByTarget(),
        once,
        formulation=RandomPoint(),
        order=2.0,
        iterative=False,
        task="any",
    ),
    Recipe(
        "random-linf",
        "a fair coin between -eps and eps in every entry",
        f"{PAPER}, section 6.1",
        lambda o: ByTarget(),
        once,
        formulation=RandomPoint(),
        order=math.inf,
        iterative=False,
        task="any",
    ),
    Recipe(
        "random-pixel-T",
        "a fair coin between -eps and eps on T random groups",
        f"{PAPER}, section 6.2",
        lambda o: ByTarget(),
        once,
        formulation=RandomPoint(),
        family="groups",
        iterative=False,
        task="any",
    ),
)
