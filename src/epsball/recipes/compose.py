"""From a name and its options to an attack."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from epsball.attack import Attack
from epsball.errors import InputError
from epsball.recipes.catalogue import find
from epsball.recipes.row import Recipe
from epsball.sets import ConstraintSet, Groups, LpBall, Partition
from epsball.sets.partition import pixels_or_entries
from epsball.validation import check_count, check_p

__all__ = ["recipe"]

# What every recipe takes, and what other libraries call it.
_COMMON = ("p", "eps", "steps", "bounds", "weights", "lattice", "groups", "k", "prepare", "restarts", "stop")
_ELSEWHERE = {
    "p": ("norm", "ord", "order"),
    "eps": ("epsilon", "epsilons", "radius", "budget", "max_norm"),
    "steps": ("iterations", "iters", "num_steps", "n_steps", "num_iter", "nb_iter", "max_iter", "T"),
    "bounds": ("clip", "clip_values", "range", "box", "valid_range"),
    "restarts": ("num_restarts", "n_restarts"),
    "groups": ("partition",),
}


def recipe(
    name: str,
    *,
    p: float | None = None,
    eps: float | Tensor | None = None,
    steps: int | None = None,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    weights: Tensor | None = None,
    lattice: int | None = None,
    groups: Partition | Tensor | Sequence[Sequence[int]] | str | None = None,
    k: int | None = None,
    restarts: int = 1,
    stop: str | None = None,
    prepare: str | None = None,
    **options: Any,
) -> Attack:
    """Compose the attack of a catalogue row over a set.

    name: a row of `epsball.recipes()`; where it ends in "-T", with the number of steps: "alg1-10". p: the norm order,
    inf by default (the random baselines fix it). eps: the budget in units of x; not needed by minimal-norm recipes,
    where it only limits what counts as a success. steps: T, where the name does not say it. bounds: the valid input
    range or None. weights, lattice: of `LpBall` or `Groups`. groups, k: of `Groups`, for group recipes; by default one
    pixel, of flat samples (B, M) one entry; "linear-pixel-T" changes k new groups a step, and "nearest" with groups
    finds the fewest that fool the model, each entry within eps. restarts and stop: as in
    `Schedule`. prepare: as in `Attack`. options: what the row lists, such as label= for "targeted", surrogates= for
    "ensemble", dither= (a share of eps) for "alg1-T", memory= (GB) for the quadratic ones, passes= for "best" and
    "nearest".
    Raises InputError for an unknown name or an option the row does not have.
    """
    row, named = find(name)
    row = row.over(groups)
    _check_options(name, row, options)
    if named is not None and steps is not None and steps != named:
        raise InputError(f"expected steps={named} as the name {name!r} says, got {steps}; give one of the two.")
    count = named if named is not None else row.steps if steps is None else steps
    if "passes" in row.options:
        count = _passes(name, row, steps, restarts, options)
    check_count("steps", count)
    if not row.iterative and row.family == "ball" and count != 1:
        raise InputError(
            f"{name!r} takes one step, got steps={count}; use an iterative recipe such as 'bim' or 'alg1-10'."
        )
    if eps is None and row.needs_eps:
        raise InputError(f"expected eps for {name!r}, the budget in units of x; got none.")
    if row.order is not None and p is not None and p != row.order:
        raise InputError(f"expected p={row.order:g} for {name!r}, got p={p!r}.")
    if p is not None:
        check_p(p)
    order = row.order if row.order is not None else math.inf if p is None else p
    objective = row.objective({**options, "p": order})
    made = row.scheduled(order)
    schedule = made(1 if row.family == "groups" and not row.iterative else count)
    changes: dict[str, Any] = {"restarts": restarts} if restarts != 1 else {}
    if stop is not None:
        changes["stop"] = stop
    if "dither" in options:
        changes["dither"] = options["dither"]
    model = {name: options[name] for name in ("memory", "products") if name in options}
    return Attack(
        constraint=_constraint(row, p, eps, bounds, weights, lattice, groups, _number(name, row, k, count)),
        objective=objective,
        local_model=replace(row.local_model, **model) if model else row.local_model,
        formulation=row.formulation,
        schedule=replace(schedule, **changes),
        prepare=prepare,
    )


def _number(name: str, row: Recipe, k: int | None, steps: int) -> int | None:
    """Return how many groups may change in all, None where that is what is made small."""
    if not row.formulation.follows:
        return (1 if k is None else k) * (steps if row.family == "groups" else 1)
    if row.family == "groups" and k is not None:
        raise InputError(f"{name!r} finds the fewest groups, got k={k!r}; leave k out.")
    return None


def _passes(name: str, row: Recipe, steps: int | None, restarts: int, options: dict[str, Any]) -> int:
    """Return the budget of passes of a recipe that divides it into attempts and steps itself."""
    if steps is not None or restarts != 1:
        raise InputError(
            f"expected passes for {name!r}, which divides them into attempts and steps itself, got "
            f"{f'steps={steps}' if steps is not None else f'restarts={restarts}'}; use passes=100."
        )
    passes: int = options.get("passes", row.steps)
    check_count("passes", passes)
    return passes


def _check_options(name: str, row: Recipe, options: Iterable[str]) -> None:
    """Refuse an option that the row does not have, with the one that was probably meant."""
    unknown = next((option for option in options if option not in row.options), None)
    if unknown is None:
        return
    meant = _meant(unknown, (*_COMMON, *row.options))
    own = f"; of its own it takes {', '.join(row.options)}" if row.options else ""
    raise InputError(
        f"unexpected option {unknown!r} for {name!r}: {f'did you mean {meant}? ' if meant else ''}every recipe takes "
        f"{', '.join(_COMMON[:-1])} and {_COMMON[-1]} where they apply{own}."
    )


def _meant(option: str, known: Sequence[str]) -> str:
    """Return the known option that is nearest to this one, "" if none is."""
    from difflib import get_close_matches

    elsewhere = (own for own, others in _ELSEWHERE.items() if option.lower() in map(str.lower, others))
    near = get_close_matches(option.lower(), known, n=1)
    return next(elsewhere, near[0] if near else "")


def _constraint(
    row: Recipe,
    p: float | None,
    eps: float | Tensor | None,
    bounds: tuple[float | Tensor, float | Tensor] | None,
    weights: Tensor | None,
    lattice: int | None,
    groups: Partition | Tensor | Sequence[Sequence[int]] | str | None,
    k: int | None,
) -> ConstraintSet:
    budget = math.inf if eps is None else eps
    if row.family == "groups":
        if p not in (None, math.inf):
            raise InputError(
                f"{row.name!r} changes groups by at most eps in each entry (p = inf), got p={p!r}; leave p out."
            )
        chosen = pixels_or_entries() if groups is None else groups
        return Groups(chosen, k=k, eps=budget, bounds=bounds, weights=weights, lattice=lattice)
    if groups is not None:
        raise InputError(
            f"{row.name!r} is no group recipe; leave groups out, or use 'nearest' or one whose name contains 'pixel'."
        )
    order = row.order if row.order is not None else math.inf if p is None else p
    return LpBall(p=order, eps=budget, bounds=bounds, weights=weights, lattice=lattice)
