"""Tables 1 and 2: what the framework solves in closed form, and which known attacks are special cases of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from epsball import data, networks
from epsball.recipes import find, recipe

__all__ = ["table1", "table2"]

IMAGES = 8


@dataclass(frozen=True)
class _Problem:
    """A row of Table 1: the paper's problem and solution by equation, and the recipe that solves it here."""

    kind: str
    problem: str
    solution: str
    recipe: str
    p: float


_TABLE1 = (
    _Problem("ℓ2 constrained, quadratic", "(13)", "(14), exact", "quadratic-lp", 2.0),
    _Problem("ℓ1 constrained, quadratic", "(13)", "(15), exact (in the text)", "quadratic-lp", 1.0),
    _Problem("ℓ∞ constrained, quadratic", "(13)", "(21), approximate", "quadratic-lp", math.inf),
    _Problem("ℓ2 constrained, linear", "(16)", "(6), exact", "linear-lp-1", 2.0),
    _Problem("ℓ∞ constrained, linear", "(16)", "(6), exact", "linear-lp-1", math.inf),
    _Problem("single subset, quadratic", "(18)", "(21), approximate", "quadratic-pixel", math.inf),
    _Problem("single subset, linear", "(22)", "(23), exact", "linear-pixel-1", math.inf),
)


def table1() -> list[dict[str, Any]]:
    """Return the rows of Table 1, each solved on eight digits with a regression network.

    exact: the share of the digits for which the solver vouches for the global solution of the relaxed problem, inside
    the bounds [0, 1] (which the paper does not know) and without.
    """
    images = data.load("digits", limit=IMAGES).x
    model = networks.load("digits-autoencoder")
    rows = []
    for row in _TABLE1:
        entry: dict[str, Any] = {"kind": row.kind, "problem": row.problem, "paper": row.solution, "recipe": row.recipe}
        for label, bounds in (("unbounded", None), ("inside [0, 1]", (0.0, 1.0))):
            pixel = "pixel" in row.recipe
            attack = recipe(row.recipe, p=None if pixel else row.p, eps=0.5 if pixel else 0.1, bounds=bounds)
            result = attack(model, images, images, seed=0)
            entry[f"exact {label}"] = float(result.exact.double().mean())
        rows.append(entry)
    return rows


@dataclass(frozen=True)
class _Known:
    """A row of Table 2 as the paper has it, and the recipes that are it."""

    algorithm: str
    objective: str
    iterative: bool
    dithering: bool
    recipes: tuple[str, ...]


_TABLE2 = (
    _Known("FGSM", "cross-entropy", False, False, ("fgsm",)),
    _Known("DeepFool", "(2) with l chosen using ρ̂₁", True, False, ("deepfool",)),
    _Known("BIM", "cross-entropy", True, False, ("bim",)),
    _Known("PGD", "cross-entropy", True, True, ("pgd-paper", "pgd")),
    _Known("Ensemble", "cross-entropy using another f", True, False, ("ensemble",)),
    _Known("Targeted", "(2) with l fixed to the target", True, True, ("targeted",)),
    _Known("Ours", "(2)", True, True, ("alg1-T",)),
)


def table2() -> list[dict[str, Any]]:
    """Return the rows of Table 2, the paper's columns beside what the catalogue's recipes are."""
    return [
        {
            "algorithm": row.algorithm,
            "objective": row.objective,
            "iterative": row.iterative,
            "dithering": row.dithering,
            "recipes": [_described(name) for name in row.recipes],
        }
        for row in _TABLE2
    ]


def _described(name: str) -> dict[str, Any]:
    row, _ = find(name.replace("-T", "-10"))
    schedule = row.schedule(row.steps if row.steps > 1 else 10)
    built = row.objective({"surrogates": [torch.nn.Identity()]} if "surrogates" in row.options else {})
    return {
        "name": name,
        "objective": repr(built).split("(")[0],
        "iterative": row.iterative,
        "dithering": "dither" in row.options or schedule.random_start or any(schedule.dithers()),
        "reference": row.reference,
    }
