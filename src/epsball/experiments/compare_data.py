"""A run as a comparison reads it: rows by attack, p and eps, and whether two runs were made on the same data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError
from epsball.experiments.config import PIXELS
from epsball.report.manifest import Manifest
from epsball.report.rows import Columns, is_regression, read_manifest, read_results
from epsball.report.text import listed, norm_name, number

__all__ = ["Part", "RunRows", "check_same_data", "settings_that_differ"]

# By name, with what is used where nothing is given.
SETTINGS = {"bounds": None, "lattice": None, "groups": PIXELS, "k": 1, "seed": None, "dtype": None, "eot": None}


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one attack at one p and eps by sample: ids increasing, (n,) each; steps: of the attack."""

    ids: NDArray[np.int64]
    target: NDArray[np.float64]
    correct: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    gain: NDArray[np.float64]
    steps: float

    def take(self, index: NDArray[Any]) -> Part:
        """Return some samples."""
        whole = replace(self, ids=self.ids[index], target=self.target[index], correct=self.correct[index])
        return replace(whole, fooled=self.fooled[index], gain=self.gain[index])


@dataclass(frozen=True, eq=False)
class RunRows:
    """A run folder: its manifest, and the rows of attacks on its own model."""

    folder: Path
    manifest: Manifest
    regression: bool
    parts: Mapping[tuple[str, float, float], Part]

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> RunRows:
        """Read a folder; InputError if it holds no run, or one that is damaged."""
        folder = Path(directory).expanduser()
        table, content = read_results(folder), read_manifest(folder)
        columns, manifest = Columns.of(table), Manifest(content)
        judge = manifest.judge(columns.names["judged_on"])
        groups = list(columns.groups(("judged_on", "attack", "p", "eps", "crafted_on")))
        groups = [(values, index) for values, index in groups if values["judged_on"] == judge]
        # Attacks on the model itself come before those with the same name that were crafted on another.
        groups.sort(key=lambda group: group[0]["crafted_on"] != judge)
        parts: dict[tuple[str, float, float], Part] = {}
        for values, index in groups:
            # A budget written as 0.1 and one computed as 0.1 are the same.
            key = (str(values["attack"]), float(values["p"]), float(f"{values['eps']:.9g}"))
            ids, first = np.unique(columns["sample_id"][index].astype(np.int64), return_index=True)
            rows = index[first]
            steps = float(np.nanmax(columns["steps"][rows])) if np.isfinite(columns["steps"][rows]).any() else np.nan
            each = (columns["target"][rows], columns.correct[rows], columns.fooled[rows], columns["gain"][rows])
            parts.setdefault(key, Part(ids, *each, steps))
        order = {name: place for place, name in enumerate(columns.names["attack"])}
        ordered = dict(sorted(parts.items(), key=lambda item: (order[item[0][0]], *item[0][1:])))
        return cls(folder, manifest, is_regression(table, content), ordered)

    @property
    def summary(self) -> str:
        """Say which attacks, norms and budgets there are."""
        if not self.parts:
            return "no rows"
        names = listed(list(dict.fromkeys(name for name, _, _ in self.parts)))
        norms = listed([norm_name(p) for p in sorted({p for _, p, _ in self.parts})])
        return f"{names} in {norms} at eps {listed([number(e) for e in sorted({e for _, _, e in self.parts})])}"

    @property
    def largest(self) -> Part | None:
        """The attack, p and eps with the most samples."""
        return max(self.parts.values(), key=lambda part: len(part.ids), default=None)


def check_same_data(first: RunRows, second: RunRows) -> None:
    """Refuse runs of two tasks, against two references, or on two data sets."""
    where = f"{first.folder} and {second.folder}"
    if first.regression != second.regression:
        kinds = ["a regression run" if run.regression else "a classification run" for run in (first, second)]
        raise InputError(f"expected two runs of one task, got {kinds[0]} and {kinds[1]} in {where}.")
    if first.regression and first.manifest.text("reference") != second.manifest.text("reference"):
        given = " and ".join(repr(run.manifest.text("reference")) for run in (first, second))
        raise InputError(
            f"expected outputs measured against the same reference, got {given} in {where}; give --target."
        )
    one, other = (run.manifest.part("data") for run in (first, second))
    digests = [data.get("digest") for data in (one, other)]
    if digests[0] and digests[0] == digests[1]:
        return
    what = [run.manifest.data_name or "unnamed data" for run in (first, second)]
    advice = f"in {where}; run both models on the same data."
    same_size = one.get("count") == other.get("count") and all(digests)
    if (one.get("name"), one.get("split")) != (other.get("name"), other.get("split")):
        raise InputError(f"expected two runs on one data set, got {what[0]} and {what[1]} {advice}")
    if same_size:
        raise InputError(f"expected two runs on one data set, got {what[0]} twice, but with other samples {advice}")
    parts = first.largest, second.largest
    if first.regression or parts[0] is None or parts[1] is None:
        return
    _, mine, theirs = np.intersect1d(parts[0].ids, parts[1].ids, assume_unique=True, return_indices=True)
    if not np.array_equal(parts[0].target[mine], parts[1].target[theirs]):
        raise InputError(f"expected the same classes for the same samples, got {what[0]} with two labellings {advice}")


def settings_that_differ(first: RunRows, second: RunRows) -> tuple[str, ...]:
    """Say what else than the model differs, since it changes the numbers as well."""
    one, other = (run.manifest.configuration for run in (first, second))
    notes = []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        notes = [
            f"{name} is {a} in the first run and {b} in the second."
            for name, usual in SETTINGS.items()
            for a, b in [tuple(usual if run.get(name) is None else run[name] for run in (one, other))]
            if a != b
        ]
    steps = {
        f"{key[0]} takes {part.steps:g} steps in the first run and {second.parts[key].steps:g} in the second."
        for key, part in first.parts.items()
        if key in second.parts and part.steps != second.parts[key].steps and part.steps == part.steps
    }
    return (*notes, *sorted(steps))
