"""The catalogue: a named attack is a row here, a composition with its reference, never a class of its own."""

from __future__ import annotations

import re

from epsball.errors import InputError, unknown_name
from epsball.recipes.classification import CLASSIFICATION
from epsball.recipes.random import RANDOM
from epsball.recipes.regression import REGRESSION
from epsball.recipes.row import Recipe
from epsball.recipes.search import SEARCH

__all__ = ["find", "recipes"]

_ROWS = CLASSIFICATION + SEARCH + REGRESSION + RANDOM
_NAMES = {row.name: row for row in _ROWS}
# A norm in the name, as in "quadratic-l2" or "linear-linf-10".
_NORM = re.compile(r"-l(?P<p>inf|\d+(?:\.\d+)?)(?=-|$)")


def recipes() -> tuple[Recipe, ...]:
    """Return the rows of the catalogue."""
    return _ROWS


def find(name: str) -> tuple[Recipe, int | None]:
    """Return the row that a name belongs to, and the number of steps in the name."""
    for row in _ROWS:
        match = row.pattern.fullmatch(name) if isinstance(name, str) else None
        if match:
            return row, int(match["steps"]) if "steps" in row.pattern.groupindex else None
    hint = _meant(name) if isinstance(name, str) else ""
    if hint:
        raise InputError(f"unknown attack {name!r}; {hint}")
    # Suggest names that can be typed: with the number of steps that was asked for, or the row's own.
    asked = re.search(r"-(\d+)$", str(name))
    known = [row.name.replace("-T", f"-{asked[1] if asked else row.steps}") for row in _ROWS]
    raise unknown_name("attack", name, known)


def _meant(name: str) -> str:
    """Say what a letter or a norm in a name stands for, where the rest is a name of the catalogue; else ""."""
    if name == "random-lp":
        names = [row.name for row in RANDOM if row.order is not None]
        return f"p stands for a norm: {', '.join(map(repr, names[:-1]))} or {names[-1]!r}."
    ending = re.fullmatch(r"(?P<stem>.+)-(?P<steps>\d+|[A-Za-z])", name)
    stem, steps = (ending["stem"], ending["steps"]) if ending else (name, "")
    norm = _NORM.search(stem)
    stem = _NORM.sub("-lp", stem)
    row = _NAMES.get(f"{stem}-T") if steps else _NAMES.get(stem, _NAMES.get(f"{stem}-T"))
    if row is None and stem in _NAMES:
        return _apart(_NAMES[stem], steps)
    if row is None:
        return ""
    number = steps if steps.isdigit() and int(steps) > 0 else "3" if row.family == "groups" else "10"
    typed = row.name.replace("-T", f"-{number}")
    stands = []
    if not steps.isdigit() and row.name.endswith("-T"):
        what = "groups" if row.name.startswith("random-pixel") else "steps"
        stands.append(f"{steps or 'T'} stands for a number of {what}")
    if norm:
        stands.append("p stands for a norm, which is given apart from the name")
        typed = f"{typed!r} with p={_order(norm['p'])}"
    else:
        typed = repr(typed)
    return f"{'; '.join(stands)}, e.g. {typed}." if stands else ""


def _apart(row: Recipe, number: str) -> str:
    """Say where a number goes that is no part of the name, as in "pgd-10"; "" where the attack takes none."""
    what, option = ("groups", "k") if row.family == "groups" else ("steps", "steps")
    if not row.iterative and row.family != "groups":
        return ""
    number = number if number.isdigit() else str(row.steps)
    return f"{row.name!r} takes the number of {what} apart from its name: {option}={number} (--{option} {number})."


def _order(p: str) -> str:
    """Write a norm order as Python and the command line take it."""
    return "math.inf (--p inf)" if p == "inf" else f"{p} (--p {p})"
