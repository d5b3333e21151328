"""Two runs side by side: what every common attack does to both models on the same samples, and whether that differs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from epsball.errors import InputError
from epsball.experiments.compare_data import Part, RunRows, check_same_data, settings_that_differ
from epsball.experiments.paired import holm, mcnemar, ratio_interval, sign_flip
from epsball.metrics.intervals import paired_difference
from epsball.report.compare_page import compare_page
from epsball.report.style import write_atomic

__all__ = ["Cell", "Comparison", "compare_runs", "write_comparison"]

LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One attack at one p and eps on the samples that count in both runs.

    first, second: the fooling ratios, or the mean gains of a regression run. difference, with its 95 % interval low,
    high: second - first, or second / first - 1. only_first, only_second: the samples fooled in one run alone (0 of a
    regression run). p_value: of the paired test; adjusted: allowing for the number of cells (Holm). fell: whether
    robustness fell by more than the tolerance: low > tolerance and adjusted < 0.05.
    """

    attack: str
    p: float
    eps: float
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    only_first: int = 0
    only_second: int = 0
    adjusted: float = 1.0
    fell: bool = False

    @property
    def verdict(self) -> str:
        """What the numbers say, in a word or two."""
        if self.fell:
            return "fell"
        if self.adjusted >= LEVEL:
            return "no difference shown"
        return "less robust" if self.difference > 0 else "more robust"


@dataclass(frozen=True)
class Comparison:
    """What two runs say of two models. names: of the models, or of the folders where those are the same model's name.

    clean: how often each is right without a perturbation, a cell; None for regression. notes: sentences on what else
    differs between the runs. common: samples in both; alone: in the first and in the second only.
    """

    names: tuple[str, str]
    regression: bool
    cells: tuple[Cell, ...]
    clean: Cell | None
    notes: tuple[str, ...]
    common: int
    alone: tuple[int, int]
    tolerance: float
    manifests: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The cells as rows, each with its verdict."""
        return [dict(vars(cell)) | {"verdict": cell.verdict} for cell in self.cells]

    @property
    def fell(self) -> tuple[Cell, ...]:
        """The cells at which robustness fell by more than the tolerance, the largest fall first."""
        return tuple(sorted((cell for cell in self.cells if cell.fell), key=lambda cell: -cell.difference))


def compare_runs(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, tolerance: float = 0.02
) -> Comparison:
    """Compare two run folders cell by cell, an attack with its p and eps, on the samples that both runs have.

    Classifiers: the fooling ratio over the samples that both models classify correctly; the interval is that of a
    paired difference of shares, the test McNemar's exact one. Regression: the mean gain, relative to the first run; the
    interval is that of a ratio of paired means, the test the sign-flip test with a fixed seed. Robustness fell at a
    cell if the whole 95 % interval of the difference lies above `tolerance`, and the p-value adjusted by Holm's method
    for the number of cells is below 0.05. Raises InputError for a folder that holds no run, runs on other data or of
    another task, and runs with no attack, p and eps in common.
    """
    if not (isinstance(tolerance, int | float) and 0.0 <= tolerance < math.inf):
        raise InputError(f"expected a tolerance of at least 0, such as 0.02, got {tolerance!r}.")
    runs = RunRows.read(first), RunRows.read(second)
    check_same_data(*runs)
    parts = list(_common(*runs))
    if not parts:
        raise InputError(
            f"expected runs with an attack, p and eps in common on the same samples, got {runs[0].summary} in "
            f"{runs[0].folder} and {runs[1].summary} in {runs[1].folder}; run both with the same --attacks, --p, --eps."
        )
    regression = runs[0].regression
    if regression:
        _refuse_broken(runs, parts)
    cells = [(_gains if regression else _ratios)(key, *pair) for key, *pair in parts]
    cells = [cell for cell in cells if cell.n]
    if not cells:
        raise InputError("expected samples that both models classify correctly, got none; there is nothing to compare.")
    allowed = [_allow(cell, p, tolerance) for cell, p in zip(cells, holm([c.p_value for c in cells]), strict=True)]
    ids = [np.unique(np.concatenate([part.ids for part in run.parts.values()])) for run in runs]
    both = len(np.intersect1d(ids[0], ids[1], assume_unique=True))
    largest = max((pair for _, *pair in parts), key=lambda pair: len(pair[0].ids))
    return Comparison(
        names=_names(*runs),
        regression=regression,
        cells=tuple(allowed),
        clean=None if regression else _clean(*largest),
        notes=settings_that_differ(*runs),
        common=both,
        alone=(len(ids[0]) - both, len(ids[1]) - both),
        tolerance=float(tolerance),
        manifests=(runs[0].manifest.content, runs[1].manifest.content),
    )


def write_comparison(found: Comparison, out: str | os.PathLike[str]) -> Path:
    """Write OUT/compare.html, one self-contained page; InputError for a folder that cannot be written."""
    page = compare_page(found, found.rows)
    try:
        return write_atomic(Path(out).expanduser() / "compare.html", page.encode("utf-8"))
    except OSError as error:
        raise InputError(f"expected a folder that can be written, got {out} ({error}); give --out DIR.") from error


Key = tuple[str, float, float]


def _common(first: RunRows, second: RunRows) -> Iterator[tuple[Key, Part, Part]]:
    """Yield what both runs have, in the order of the first, each cut to the samples of both."""
    for key, part in first.parts.items():
        other = second.parts.get(key)
        if other is None:
            continue
        _, mine, theirs = np.intersect1d(part.ids, other.ids, assume_unique=True, return_indices=True)
        if len(mine):
            yield key, part.take(mine), other.take(theirs)


def _ratios(key: Key, first: Part, second: Part) -> Cell:
    both = first.correct & second.correct
    a, b = first.fooled[both], second.fooled[both]
    difference, low, high = paired_difference(b.tolist(), a.tolist())
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    shares = (float(a.mean()), float(b.mean())) if len(a) else (math.nan, math.nan)
    p_value = mcnemar(only_first, only_second)
    return Cell(*key, len(a), *shares, difference, max(low, -1.0), min(high, 1.0), p_value, only_first, only_second)


def _clean(first: Part, second: Part) -> Cell:
    """Compare the shares classified correctly without a perturbation."""
    a, b = first.correct, second.correct
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    ends = paired_difference(b.tolist(), a.tolist())
    shares = float(a.mean()), float(b.mean())
    return Cell("", math.nan, 0.0, len(a), *shares, *ends, mcnemar(only_first, only_second), only_first, only_second)


def _gains(key: Key, first: Part, second: Part) -> Cell:
    a, b = first.gain, second.gain
    means = float(a.mean()), float(b.mean())
    return Cell(*key, len(a), *means, *ratio_interval(a, b), sign_flip(b - a))


def _refuse_broken(runs: Sequence[RunRows], parts: Sequence[tuple[Key, Part, Part]]) -> None:
    """Refuse outputs that are not finite: without them a model that broke would look as robust as before."""
    for place, run in enumerate(runs):
        for (attack, _, eps), *pair in parts:
            broken = int((~np.isfinite(pair[place].gain)).sum())
            if broken:
                raise InputError(
                    f"expected finite gains, got {broken} of {len(pair[place].gain)} samples under {attack} at eps = "
                    f"{eps:g} in {run.folder} whose output is not finite; look at these rows of its results.parquet."
                )


def _allow(cell: Cell, adjusted: float, tolerance: float) -> Cell:
    return replace(cell, adjusted=adjusted, fell=bool(cell.low > tolerance and adjusted < LEVEL))


def _names(first: RunRows, second: RunRows) -> tuple[str, str]:
    """Name the models; those of one name by their folders, and where these agree too by their order."""
    pairs: Sequence[tuple[str, str]] = (
        (first.manifest.model_name, second.manifest.model_name),
        (first.folder.resolve().name, second.folder.resolve().name),
        ("/".join(first.folder.resolve().parts[-2:]), "/".join(second.folder.resolve().parts[-2:])),
    )
    return next((pair for pair in pairs if pair[0] != pair[1] and all(pair)), ("the first", "the second"))
