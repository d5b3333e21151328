"""The catalogue: a named attack is a row here, a composition with its reference, never a class of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from epsball.attack import Attack
from epsball.errors import InputError, unknown_name
from epsball.local_models import Linear, LocalModel, Quadratic
from epsball.objectives import (
    ByTarget,
    CrossEntropy,
    Ensemble,
    Margin,
    Objective,
    SquaredError,
    TargetedMargin,
    TrueScore,
)
from epsball.schedule import Schedule
from epsball.sets import ConstraintSet, Groups, LpBall, Partition, pixels
from epsball.solvers import Formulation, MinNorm, NormConstrained, RandomPoint
from epsball.validation import check_count

__all__ = ["Recipe", "recipe", "recipes"]


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
    formulation: Formulation = field(default_factory=NormConstrained)
    local_model: LocalModel = field(default_factory=Linear)
    family: str = "ball"  # or "groups"
    order: float | None = None  # the norm order p, where the recipe fixes it
    options: tuple[str, ...] = ()
    iterative: bool = True
    task: str = "classification"  # "regression", or "any": by the target

    @property
    def needs_eps(self) -> bool:
        """Whether a budget must be given."""
        return self.formulation.budgeted

    @property
    def pattern(self) -> re.Pattern[str]:
        """The names that this row answers to."""
        return re.compile(re.escape(self.name).replace(r"\-T", r"-(?P<steps>\d+)"))


_PAPER = "Balda, Behboodi, Mathar 2018"


def _once(steps: int) -> Schedule:
    return Schedule(steps=steps, stop="never")


def _accumulate(steps: int) -> Schedule:
    return Schedule(steps=steps)


def _dithered(steps: int) -> Schedule:
    return Schedule(steps=steps, dither=None)


_ROWS = (
    Recipe(
        "fgsm",
        "one step on the cross-entropy",
        "Goodfellow, Shlens, Szegedy 2014",
        lambda o: CrossEntropy(),
        _once,
        iterative=False,
    ),
    Recipe(
        "bim",
        "T accumulated steps of eps/T on the cross-entropy",
        "Kurakin, Goodfellow, Bengio 2016",
        lambda o: CrossEntropy(),
        _accumulate,
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
        f"{_PAPER}, section 6.1",
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
        f"{_PAPER}, section 6.1; Carlini, Wagner 2017",
        lambda o: TargetedMargin(o.get("label", "runner-up")),
        _accumulate,
        steps=10,
        options=("label", "dither"),
    ),
    Recipe(
        "ensemble",
        "T accumulated steps on the cross-entropy of surrogate models",
        "Tramèr et al. 2018",
        lambda o: Ensemble(_required(o, "surrogates", "ensemble")),
        _once,
        steps=10,
        options=("surrogates",),
    ),
    Recipe(
        "alg1",
        "one step on the margin over all classes",
        f"{_PAPER}, Algorithm 1 with T = 1",
        lambda o: Margin(o.get("classes", "all")),
        _once,
        options=("classes", "dither"),
        iterative=False,
    ),
    Recipe(
        "alg1-T",
        "T accumulated steps of eps/T on the margin over all classes",
        f"{_PAPER}, Algorithm 1",
        lambda o: Margin(o.get("classes", "all")),
        _accumulate,
        steps=10,
        options=("classes", "dither"),
    ),
    Recipe(
        "alg2",
        "one step on the score of the true class",
        f"{_PAPER}, Algorithm 2",
        lambda o: TrueScore(),
        _once,
        iterative=False,
    ),
    Recipe(
        "linear-lp-T",
        "T accumulated, dithered steps of eps/T on the squared error",
        f"{_PAPER}, section 3.2 and Algorithm 1",
        lambda o: SquaredError(),
        _dithered,
        steps=10,
        options=("dither",),
        task="regression",
    ),
    Recipe(
        "quadratic-lp",
        "one step on the Gauss-Newton model of the squared error, the Jacobian never stored",
        f"{_PAPER}, section 3.1",
        lambda o: SquaredError(),
        _once,
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
        _once,
        steps=10,
        local_model=Quadratic(),
        options=("dither", "memory", "products"),
        task="regression",
    ),
    Recipe(
        "linear-pixel-T",
        "T dithered steps, each on the best new group at the full eps",
        f"{_PAPER}, section 4.2",
        lambda o: ByTarget(Margin("all")),
        _dithered,
        steps=1,
        family="groups",
        options=("dither",),
        task="any",
    ),
    Recipe(
        "quadratic-pixel",
        "one step on the Gauss-Newton model of the squared error over k groups",
        f"{_PAPER}, section 4.1",
        lambda o: SquaredError(),
        _once,
        local_model=Quadratic(),
        family="groups",
        options=("memory", "products"),
        iterative=False,
        task="regression",
    ),
    Recipe(
        "random-l2",
        "a Gaussian direction of norm eps",
        f"{_PAPER}, section 6.2",
        lambda o: ByTarget(),
        _once,
        formulation=RandomPoint(),
        order=2.0,
        iterative=False,
        task="any",
    ),
    Recipe(
        "random-linf",
        "a fair coin between -eps and eps in every entry",
        f"{_PAPER}, section 6.1",
        lambda o: ByTarget(),
        _once,
        formulation=RandomPoint(),
        order=math.inf,
        iterative=False,
        task="any",
    ),
    Recipe(
        "random-pixel-T",
        "a fair coin between -eps and eps on T random groups",
        f"{_PAPER}, section 6.2",
        lambda o: ByTarget(),
        _once,
        formulation=RandomPoint(),
        family="groups",
        iterative=False,
        task="any",
    ),
)


def recipes() -> tuple[Recipe, ...]:
    """Return the rows of the catalogue."""
    return _ROWS


def find(name: str) -> tuple[Recipe, int | None]:
    """Return the row that a name belongs to, and the number of steps in the name."""
    for row in _ROWS:
        match = row.pattern.fullmatch(name) if isinstance(name, str) else None
        if match:
            return row, int(match["steps"]) if "steps" in row.pattern.groupindex else None
    # Suggest names that can be typed: with the number of steps that was asked for, or the row's own.
    asked = re.search(r"-(\d+)$", str(name))
    known = [row.name.replace("-T", f"-{asked[1] if asked else row.steps}") for row in _ROWS]
    raise unknown_name("attack", name, known)


def recipe(
    name: str,
    *,
    p: float | None = None,
    eps: float | Tensor | None = None,
    steps: int | None = None,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    weights: Tensor | None = None,
    groups: Partition | Tensor | Sequence[Sequence[int]] | None = None,
    k: int = 1,
    restarts: int = 1,
    stop: str | None = None,
    **options: Any,
) -> Attack:
    """Compose the attack of a catalogue row over a set.

    name: a row of `epsball.recipes()`; where it ends in "-T", with the number of steps: "alg1-10". p: the norm order,
    inf by default (the random baselines fix it). eps: the budget in units of x; not needed by minimal-norm recipes,
    where it only limits what counts as a success. steps: T, where the name does not say it. bounds: the valid input
    range or None. weights: of `LpBall`. groups, k: of `Groups`, one pixel by default, for group recipes;
    "linear-pixel-T" changes k new groups a step. restarts and stop: as in `Schedule`. options: what the row lists, such
    as label= for "targeted", surrogates= for "ensemble", dither= (a share of eps) for "alg1-T", memory= (GB) for the
    quadratic ones.
    Raises InputError for an unknown name or an option the row does not have.
    """
    row, named = find(name)
    if named is not None and steps is not None and steps != named:
        raise InputError(f"expected steps={named} as the name {name!r} says, got {steps}; give one of the two.")
    count = named if named is not None else row.steps if steps is None else steps
    check_count("steps", count)
    if not row.iterative and row.family == "ball" and count != 1:
        raise InputError(
            f"{name!r} takes one step, got steps={count}; use an iterative recipe such as 'bim' or 'alg1-T'."
        )
    unknown = [option for option in options if option not in row.options]
    if unknown:
        own = f"; of its own it takes {', '.join(row.options)}" if row.options else ""
        raise InputError(
            f"unexpected option {unknown[0]!r} for {name!r}: every recipe takes p, eps, steps, bounds, weights, "
            f"groups, k, restarts and stop where they apply{own}."
        )
    if eps is None and row.needs_eps:
        raise InputError(f"expected eps for {name!r}, the budget in units of x; got none.")
    if row.order is not None and p is not None and p != row.order:
        raise InputError(f"expected p={row.order:g} for {name!r}, got p={p!r}.")
    objective = row.objective(options)
    schedule = row.schedule(1 if row.family == "groups" and not row.iterative else count)
    changes: dict[str, Any] = {"restarts": restarts} if restarts != 1 else {}
    if stop is not None:
        changes["stop"] = stop
    if "dither" in options:
        changes["dither"] = options["dither"]
    model = {name: options[name] for name in ("memory", "products") if name in options}
    return Attack(
        constraint=_constraint(row, p, eps, bounds, weights, groups, k * count if row.family == "groups" else k),
        objective=objective,
        local_model=replace(row.local_model, **model) if model else row.local_model,
        formulation=row.formulation,
        schedule=replace(schedule, **changes),
    )


def _constraint(
    row: Recipe,
    p: float | None,
    eps: float | Tensor | None,
    bounds: tuple[float | Tensor, float | Tensor] | None,
    weights: Tensor | None,
    groups: Partition | Tensor | Sequence[Sequence[int]] | None,
    k: int,
) -> ConstraintSet:
    budget = math.inf if eps is None else eps
    if row.family == "groups":
        if p not in (None, math.inf) or weights is not None:
            raise InputError(
                f"{row.name!r} changes groups by at most eps in each entry; it takes neither p nor weights."
            )
        return Groups(pixels(channel_dim=1) if groups is None else groups, k=k, eps=budget, bounds=bounds)
    if groups is not None:
        raise InputError(f"{row.name!r} is no group recipe; leave groups out or use one whose name contains 'pixel'.")
    order = row.order if row.order is not None else math.inf if p is None else p
    return LpBall(p=order, eps=budget, bounds=bounds, weights=weights)


def _required(options: dict[str, Any], name: str, recipe_name: str) -> Any:
    if name not in options:
        raise InputError(f"expected {name}= for {recipe_name!r}, got none.")
    return options[name]
