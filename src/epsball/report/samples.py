"""Sample by sample: how near each is to a wrong answer, or how far its output moves, and what each attack did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.report.rows import FAILURES, NORMS, Columns
from epsball.report.tables import Row
from epsball.report.text import decibels, number, printable

__all__ = ["MOST", "attempts", "distance_rows", "output_rows"]

MOST = 1000  # samples that a page lists


def distance_rows(
    table: Any, judge: str, p: float, classes: Sequence[str] = (), most: int = MOST
) -> tuple[list[Row], int]:
    """List the correctly classified samples, those nearest to a wrong answer first; also return how many there are.

    sample_id, label and prediction (as names where `classes` has them); distance: the least norm, in p, of a
    perturbation of this run after which the answer is wrong, whatever the budget; attack: whose it was; eps: the least
    budget within which an attack fooled the sample. None where there is none: then prediction and attack are empty.
    Attacks in another norm than p do not count, nor results outside their set or not finite.
    """
    columns = Columns.of(table)
    mine = _judged(columns, judge) & columns.correct & (columns["p"] == p)
    ids, first = np.unique(columns["sample_id"][mine], return_index=True)
    labels = columns["target"][mine][first]
    found = mine & (columns["prediction"] != columns["target"]) & ~_failed(columns) & np.isfinite(columns["prediction"])
    norm = columns.norm if p in NORMS else columns["eps"]
    best = _least(ids, columns["sample_id"], norm, found & np.isfinite(norm))
    least = _least(ids, columns["sample_id"], columns["eps"], mine & columns.fooled & np.isfinite(columns["eps"]))
    distance, eps = _taken(norm, best), _taken(columns["eps"], least)
    rows: list[Row] = []
    for k in np.lexsort((ids, eps, distance))[:most].tolist():
        at = int(best[k])
        rows.append(
            {
                "sample_id": int(ids[k]),
                "label": _class(labels[k], classes),
                "prediction": "" if at < 0 else _class(columns["prediction"][at], classes),
                "distance": _finite(distance[k]) if p in NORMS else None,
                "eps": _finite(eps[k]),
                "attack": "" if at < 0 else columns.names["attack"][columns.codes["attack"][at]],
            }
        )
    return rows, len(ids)


def output_rows(table: Any, judge: str, eps: float, most: int = MOST) -> tuple[list[Row], int]:
    """List the samples of a regression run at one budget, the worst output first; also return how many there are.

    sample_id; psnr_out, psnr_in, error_increase and distance, the norm, of the attack with the lowest output PSNR on
    it; attack: which it was. Random noise does not count where there is another attack. None where a value is not
    finite.
    """
    columns = Columns.of(table)
    mine = _judged(columns, judge) & (columns["eps"] == eps) & ~_failed(columns)
    noise = np.array([name.startswith("random") for name in columns.names["attack"]] or [False])
    aimed = mine & ~noise[columns.codes["attack"]] if len(columns) else mine
    mine = aimed if aimed.any() else mine
    ids = np.unique(columns["sample_id"][mine])
    best = _least(ids, columns["sample_id"], columns["psnr_out"], mine & ~np.isnan(columns["psnr_out"]))
    values = {"distance": columns.norm, **{key: columns[key] for key in ("psnr_out", "psnr_in", "error_increase")}}
    taken = {key: _taken(column, best) for key, column in values.items()}
    rows: list[Row] = []
    for k in np.lexsort((ids, taken["psnr_out"]))[:most].tolist():
        name = "" if best[k] < 0 else columns.names["attack"][columns.codes["attack"][best[k]]]
        rows.append({"sample_id": int(ids[k]), **{key: _finite(v[k]) for key, v in taken.items()}, "attack": name})
    return rows, len(ids)


def attempts(
    table: Any, judge: str, ids: Sequence[int], attacks: Sequence[str], classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return, for a few samples and attacks, what happened at every budget: heads, and rows by [sample][attack]."""
    columns = Columns.of(table)
    regression = bool(np.isnan(columns["target"]).all()) if len(columns) else False
    mine = _judged(columns, judge) & np.isin(columns["sample_id"], list(ids))
    codes = columns.codes["attack"]
    rows = []
    for sample in ids:
        of_sample = np.flatnonzero(mine & (columns["sample_id"] == sample))
        found = []
        for name in attacks:
            place = next((k for k, known in enumerate(columns.names["attack"]) if printable(known) == name), -1)
            index = of_sample[codes[of_sample] == place]
            _, first = np.unique(columns["eps"][index], return_index=True)
            found.append([_attempt(columns, at, regression, classes) for at in index[first]])
        rows.append(found)
    heads = ["eps", "size"]
    heads += ["input PSNR", "output PSNR", "ended"] if regression else ["answer", "gain", "ended"]
    return {"heads": heads, "attempts": rows}


def _attempt(columns: Columns, at: int, regression: bool, classes: Sequence[str]) -> list[str]:
    norm = columns.norm[at]
    start = [number(columns["eps"][at]), number(float(norm))]
    status = printable(columns.names["status"][columns.codes["status"][at]])
    if regression:
        return [*start, decibels(float(columns["psnr_in"][at])), decibels(float(columns["psnr_out"][at])), status]
    return [*start, _class(columns["prediction"][at], classes), number(float(columns["gain"][at])), status]


def _judged(columns: Columns, judge: str) -> NDArray[np.bool_]:
    """Tell which rows are of attacks on the judging model itself; all it judged where it crafted none."""
    names = columns.names
    judged = columns.codes["judged_on"] == (names["judged_on"].index(judge) if judge in names["judged_on"] else -1)
    own = columns.codes["crafted_on"] == (names["crafted_on"].index(judge) if judge in names["crafted_on"] else -1)
    return np.asarray(judged & own if (judged & own).any() else judged)


def _failed(columns: Columns) -> NDArray[np.bool_]:
    bad = [code for code, name in enumerate(columns.names["status"]) if name in FAILURES]
    return np.isin(columns.codes["status"], bad)


def _least(
    wanted: NDArray[Any], ids: NDArray[Any], values: NDArray[Any], among: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return, for each wanted sample, the row with the least value among some, of equal ones the first; -1 for none."""
    rows = np.flatnonzero(among)
    order = rows[np.lexsort((rows, values[rows], ids[rows]))]
    samples, first = np.unique(ids[order], return_index=True)
    found = np.full(len(wanted), -1, dtype=np.int64)
    found[np.searchsorted(wanted, samples)] = order[first]
    return found


def _taken(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the values of some rows, inf for the row -1."""
    return np.where(rows < 0, np.inf, values[rows]) if len(values) else np.full(len(rows), np.inf)


def _class(value: Any, classes: Sequence[str]) -> str:
    if not np.isfinite(value):
        return "–"
    return printable(classes[int(value)]) if 0 <= value < len(classes) else str(int(value))


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
