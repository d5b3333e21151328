"""The catalogues as tables: title, headings, rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from epsball import data, networks
from epsball.errors import unknown_name
from epsball.recipes import recipes

__all__ = ["catalogue"]

Catalogue = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]


def catalogue(kind: str) -> Catalogue:
    """Return the attacks, networks or data sets that there are."""
    known = {"attacks": _attacks, "networks": _networks, "datasets": _datasets}
    if kind not in known:
        raise unknown_name("catalogue", kind, known)
    return known[kind]()


def _attacks() -> Catalogue:
    rows = []
    for row in recipes():
        steps = "in the name" if row.name.endswith("-T") else str(row.steps)
        order = "any" if row.order is None else "inf" if row.order == math.inf else f"{row.order:g}"
        budget = "yes" if row.needs_eps else "no"
        rows.append(
            (row.name, row.summary, "groups" if row.family == "groups" else order, steps, budget, row.reference)
        )
    return "attacks", ("name", "what it does", "p", "steps", "needs eps", "reference"), rows


def _networks() -> Catalogue:
    rows = []
    for name in networks.names():
        spec = networks.spec(name)
        weights = "come with epsball" if networks.shipped(name).is_file() else "train them"
        error = f"{100 * networks.card(name)['test_error']:.2f} %" if networks.shipped(name).is_file() else "–"
        rows.append((name, spec.summary, spec.data, weights, error, spec.reference))
    return "networks", ("name", "what it is", "data", "weights", "test error", "reference"), rows


def _datasets() -> Catalogue:
    rows = [(name, data.entry(name).summary, ", ".join(data.entry(name).splits)) for name in data.names()]
    rows.append(
        ("PATH", "a folder of images (sub-folders are classes), an .npz with x and y, or a .pt file", "as it is")
    )
    return "data sets", ("name", "what it is", "splits"), rows
