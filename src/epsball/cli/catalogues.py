"""The catalogues as tables: title, headings, rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
        unit = " passes" if "passes" in row.options else ""
        steps = "in the name" if row.name.endswith("-T") else f"{row.steps}{unit}"
        order = "any" if row.order is None else "inf" if row.order == math.inf else f"{row.order:g}"
        budget = "yes" if row.needs_eps else "no"
        rows.append(
            (
                row.name,
                row.summary,
                row.task,
                "groups" if row.family == "groups" else order,
                steps,
                budget,
                row.reference,
            )
        )
    return "attacks", ("name", "what it does", "task", "p", "steps", "needs eps", "reference"), rows


_OWN_MODELS = (
    ("file.py:factory", "a network of your own, or package.module:factory; the code is run"),
    ("FILE.pt2", "a program of torch.export.save"),
    ("FILE.onnx", "an ONNX file (pip install 'epsball[onnx]')"),
    ("timm:NAME", "a network of timm (pip install 'epsball[timm]')"),
)


def _networks() -> Catalogue:
    rows: list[tuple[str, ...]] = []
    for name in networks.names():
        spec = networks.spec(name)
        weights = "come with epsball" if networks.shipped(name).is_file() else "train them"
        error = error_text(name, networks.card(name)) if networks.shipped(name).is_file() else "–"
        rows.append((name, spec.summary, spec.task, spec.data, weights, error, spec.reference))
    for form, what in _OWN_MODELS:
        rows.append((form, what, "either", "yours", "yours", "–", "docs/models.md"))
    return "networks", ("name", "what it is", "task", "data", "weights", "test error", "reference"), rows


def error_text(network: str, card: dict[str, Any]) -> str:
    """Write a card's test error: the share misclassified, or a regression model's mean squared error."""
    if network in networks.names() and networks.spec(network).task == "regression":
        return f"{card['test_error']:.3g} (mean squared)"
    return f"{100 * card['test_error']:.2f} %"


def _datasets() -> Catalogue:
    rows = [(name, data.entry(name).summary, ", ".join(data.entry(name).splits)) for name in data.names()]
    rows.append(
        (
            "PATH or URL",
            "a folder of images (sub-folders are classes), an .npz or .pt with x and y, or .parquet files",
            "as it is",
        )
    )
    rows.append(("file.py:factory", "Python that gives (x, y) or a Dataset; it is run", "as it is"))
    return "data sets", ("name", "what it is", "splits"), rows
