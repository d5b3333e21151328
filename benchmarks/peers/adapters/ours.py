"""epsball: any recipe of the catalogue by name, at the budget that a peer gets."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from benchmarks.peers.adapters.row import FIXED, INF, MINIMAL, Attack, Job
from torch import Tensor

import epsball as eb
from epsball.recipes import find

EVERY = (1.0, 1.5, 2.0, 3.0, INF)
DEFAULT = ("pgd", "alg1-T", "best", "deepfool", "nearest")
SETTINGS = {
    "pgd": "step 2.5 eps/T, random start",
    "alg1-T": "steps of eps/T, classes=runner-up: one backward a step",
    "best": "passes=T",
    "deepfool": "at most (propagations - 1)/10 steps",
    "nearest": "passes=propagations/2",
}


def attacks(recipes: tuple[str, ...] = ()) -> list[Attack]:
    """Return the default recipes that this version of epsball has, and those asked for."""
    known = {row.name for row in eb.recipes()}
    rows = []
    for name in dict.fromkeys((*(n for n in DEFAULT if n in known), *recipes)):
        budgeted = find(name.replace("-T", "-1"))[0].needs_eps
        kind = FIXED if budgeted else MINIMAL
        least = 1 if kind == FIXED else 11 if name == "deepfool" else 2
        rows.append(Attack("epsball", name, kind, EVERY, SETTINGS.get(name, ""), partial(_call, name), least))
    return rows


def compose(name: str, p: float, eps: float | None, budget: int) -> eb.Attack:
    """Compose a recipe for a budget: T steps or passes where eps is given, else propagations, two to a pass."""
    row, _ = find(re.sub(r"-T$", "-1", name))
    options: dict[str, Any] = {"p": p, "bounds": (0.0, 1.0)}
    if eps is not None and row.needs_eps:
        options["eps"] = eps
    # Some forwards have no backward: the first, those that judge, and a few samples looked at once a call.
    passes = budget if row.needs_eps else max(1, budget // 2)
    if "passes" in row.options:
        options["passes"] = passes
    elif name.endswith("-T"):
        name = name.replace("-T", f"-{budget}")
    elif row.iterative and not re.search(r"-\d+$", name):
        # A minimal step takes one forward and the gradients of nine classes; one more forward judges the result.
        options["steps"] = budget if row.needs_eps else max(1, (budget - 1) // 10)
    if row.name == "alg1-T":
        options["classes"] = "runner-up"
    return eb.recipe(name, **options)


def _call(name: str, job: Job) -> Tensor:
    attack = compose(name, job.p, job.eps, job.budget)
    return attack(job.model, job.x, job.y, seed=job.seed).perturbed
