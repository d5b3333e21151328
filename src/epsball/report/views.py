"""Rows arranged as the page shows them: a grid over eps, a grid over models, counts of statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from epsball.errors import Status
from epsball.report.figures import curve_name
from epsball.report.rows import Columns, count_ends
from epsball.report.tables import Row
from epsball.report.text import norm_name, number

__all__ = ["Grid", "numbers_view", "status_view", "transfer_view"]

WIDE = 12  # budgets that fit side by side


@dataclass(frozen=True)
class Grid:
    """A table for the page: corner and heads over the columns; lines of (names of the line, a value a column)."""

    corner: str
    heads: list[str]
    lines: Sequence[tuple[tuple[str, ...], Sequence[Any]]]
    best: frozenset[tuple[int, int]] = frozenset()
    meanings: tuple[tuple[str, str], ...] = ()


def numbers_view(rows: Sequence[Row]) -> Grid:
    """Arrange fooling ratios as attack x eps; best: the (line, column) of the highest in each column."""
    eps = sorted({row["eps"] for row in rows})
    lines: dict[tuple[str, float], dict[float, Row]] = {}
    for row in rows:
        lines.setdefault((curve_name(row), row["p"]), {})[row["eps"]] = row
    mixed = len({p for _, p in lines}) > 1
    names = [f"{name}, {norm_name(p)}" if mixed else name for name, p in lines]
    table = [[by_eps.get(e) for e in eps] for by_eps in lines.values()]
    best = set()
    for column in range(len(eps)):
        shares = [(row["percent"] or 0.0) if row else -1.0 for row in (line[column] for line in table)]
        best |= {(place, column) for place, value in enumerate(shares) if value == max(shares) and value > 0}
    budgets = [f"eps {number(e)}" for e in eps]
    if len(eps) > WIDE and len(names) < len(eps) / 2:
        # Many budgets of few attacks read better downwards.
        turned = [((head,), [line[column] for line in table]) for column, head in enumerate(budgets)]
        return Grid(
            "eps",
            names,
            turned,
            frozenset((column, place) for place, column in best) if len(names) > 1 else frozenset(),
        )
    cells = [((name,), line) for name, line in zip(names, table, strict=True)]
    return Grid("attack", budgets, cells, frozenset(best) if len(names) > 1 else frozenset())


def transfer_view(rows: Sequence[Row], judge: str) -> Grid | None:
    """Arrange fooling ratios at one eps as (attack, crafted on) x judged on; None where there is but one model."""
    judged = list(dict.fromkeys(row["judged_on"] for row in rows))
    if len(judged) <= 1 and len({row["crafted_on"] for row in rows}) <= 1:
        return None
    judged.sort(key=lambda name: name != judge)
    moved = {row["attack"] for row in rows if row["crafted_on"] != row["judged_on"]}
    chosen = [row for row in rows if row["attack"] in moved]
    if not any(row["crafted_on"] == row["judged_on"] for row in chosen):
        chosen = list(rows)  # something to compare with
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in chosen:
        lines.setdefault((row["attack"], row["crafted_on"]), {})[row["judged_on"]] = row
    return Grid("attack", judged, [(names, [by.get(name) for name in judged]) for names, by in lines.items()])


def status_view(
    table: Any,
    judge: str,
    eps: float | None,
    counted: Mapping[str, Mapping[str, int]],
    meanings: Mapping[str, str] | None = None,
) -> Grid | None:
    """Count how the attacks on one model ended at one eps, as attack x status with each status's meaning.

    Samples that were classified wrongly from the start are ALREADY under every attack.
    counted: the run's own counts by attack, for a table that has no rows there. meanings: what some statuses mean in
    this run. None if neither knows anything.
    """
    lines = _count(table, judge, eps) or {name: dict(value) for name, value in counted.items()}
    known = {status.name: status.value for status in Status} | dict(meanings or {})
    used = {status for line in lines.values() for status, n in line.items() if n}
    names = [name for name in known if name in used] + sorted(used - set(known))
    if not names:
        return None
    cells: list[tuple[tuple[str, ...], list[int]]] = [
        ((attack,), [line.get(name, 0) for name in names]) for attack, line in lines.items()
    ]
    return Grid("attack", names, cells, meanings=tuple((name, known.get(name, "")) for name in names))


def _count(table: Any, judge: str, eps: float | None) -> dict[str, dict[str, int]]:
    columns = Columns.of(table)
    lines: dict[str, dict[str, int]] = {}
    for values, index in columns.groups(("attack", "crafted_on", "judged_on", "eps")):
        if values["judged_on"] == judge and (eps is None or values["eps"] == eps):
            # Each sample once, also where an attack was run in several norms.
            rows = np.stack([columns["sample_id"][index], columns.codes["status"][index], columns.wrong[index]])
            _, codes, wrong = np.unique(rows, axis=1)
            line = lines.setdefault(curve_name(values), {})
            for name, n in count_ends(codes.astype(np.int64), columns.names["status"], wrong.astype(bool)).items():
                line[name] = line.get(name, 0) + n
    return lines
