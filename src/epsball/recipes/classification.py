"""Attacks on classifiers."""

from __future__ import annotations

from typing import Any

from epsball.errors import InputError
from epsball.objectives import CrossEntropy, Ensemble, Margin, TargetedMargin, TrueScore
from epsball.recipes.row import PAPER, Recipe, accumulate, once
from epsball.schedule import Schedule
from epsball.solvers import MinNorm

__all__ = ["CLASSIFICATION"]


def _surrogates(options: dict[str, Any]) -> Any:
    if "surrogates" not in options:
        raise InputError("expected surrogates= for 'ensemble', got none.")
    return options["surrogates"]


CLASSIFICATION = (
    Recipe(
        "fgsm",
        "one step on the cross-entropy",
        "Goodfellow, Shlens, Szegedy 2014",
        lambda o: CrossEntropy(),
        once,
        iterative=False,
    ),
    Recipe(
        "bim",
        "T accumulated steps of eps/T on the cross-entropy",
        "Kurakin, Goodfellow, Bengio 2016",
        lambda o: CrossEntropy(),
        accumulate,
        steps=10,
    ),
    Recipe(
        "pgd",
        "T projected steps of 2.5 eps/T on the cross-entropy from a random start",
        "Madry et al. 2018",
        lambda o: CrossEntropy(),
        lambda steps: Schedule(steps=steps, step_size=2.5 / steps, update="project", random_start=True),
        steps=40,
    ),
    Recipe(
        "pgd-paper",
        "T accumulated steps on the cross-entropy, the first linearised at a random point of the ball",
        f"{PAPER}, section 6.1",
        lambda o: CrossEntropy(),
        lambda steps: Schedule(steps=steps, dither=(1.0,) + (0.0,) * (steps - 1)),
        steps=10,
    ),
    Recipe(
        "deepfool",
        "smallest step to the nearest linearised class boundary, repeated",
        "Moosavi-Dezfooli, Fawzi, Frossard 2016",
        lambda o: Margin("all"),
        lambda steps: Schedule(steps=steps, step_size=0.0, stop="success"),
        steps=50,
        formulation=MinNorm(overshoot=0.02),
    ),
    Recipe(
        "targeted",
        "T accumulated steps on the margin towards a given class",
        f"{PAPER}, section 6.1; Carlini, Wagner 2017",
        lambda o: TargetedMargin(o.get("label", "runner-up")),
        accumulate,
        steps=10,
        options=("label", "dither"),
    ),
    Recipe(
        "ensemble",
        "T accumulated steps on the cross-entropy of surrogate models",
        "Tramèr et al. 2018",
        lambda o: Ensemble(_surrogates(o)),
        once,
        steps=10,
        options=("surrogates",),
    ),
    Recipe(
        "alg1",
        "one step on the margin over all classes",
        f"{PAPER}, Algorithm 1 with T = 1",
        lambda o: Margin(o.get("classes", "all")),
        once,
        options=("classes", "dither"),
        iterative=False,
    ),
    Recipe(
        "alg1-T",
        "T accumulated steps of eps/T on the margin over all classes",
        f"{PAPER}, Algorithm 1",
        lambda o: Margin(o.get("classes", "all")),
        accumulate,
        steps=10,
        options=("classes", "dither"),
    ),
    Recipe(
        "alg2",
        "one step on the score of the true class",
        f"{PAPER}, Algorithm 2",
        lambda o: TrueScore(),
        once,
        iterative=False,
    ),
)
