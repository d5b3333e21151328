"""The numbers of a regression run: mean output and input PSNR, error increase and cost of each attack at each eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from epsball.metrics.intervals_student import student_interval
from epsball.report.rows import Columns
from epsball.report.tables import Row, cost, whole
from epsball.report.text import count, decibels, listed, number, printable
from epsball.report.views import Grid

__all__ = ["QualityAnswer", "is_noise", "psnr_table", "psnr_view", "quality_answer"]

NBSP = "\u00a0"
_EQUAL = 1e-6  # dB that are rounding
MEANS = ("psnr_out", "psnr_in", "error_increase")


def psnr_table(table: Any) -> list[Row]:
    """List what each attack does to a regression model's output at each eps, with its uncertainty and cost.

    table: a pyarrow table of results. One row for each attack x p x eps, attacks in the order of the table and eps
    ascending. n: the samples. psnr_out, psnr_in, error_increase: means over the samples with a finite value, each with
    the ends of its 95 % interval (_low, _high); infinite where all are, NaN where there is none; unmeasured: how many
    samples have no finite output PSNR. exact: the share in percent whose local problems were all solved globally.
    forwards, backwards, jvps, passes, seconds_per_1000: means. Raises InputError for a table without the columns of a
    run.
    """
    columns = Columns.of(table)
    rows = []
    for values, index in columns.groups(("attack", "p", "eps")):
        row = values | {"steps": whole(columns["steps"][index]), "n": len(index)}
        for name in MEANS:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), student_interval(columns[name][index]), strict=True))
        row["unmeasured"] = sum(not math.isfinite(value) for value in columns["psnr_out"][index])
        row |= {"exact": 100.0 * float(columns["exact"][index].mean())} | cost(columns, index)
        row["passes"] = row["forwards"] + row["backwards"] + row["jvps"]
        rows.append(row)
    return rows


def is_noise(row: Row) -> bool:
    """Tell whether a row is of random noise, which attacks are measured against."""
    return str(row["attack"]).startswith("random")


def psnr_view(rows: Sequence[Row]) -> Grid:
    """Arrange rows as attack x eps; best: the (line, column) of the lowest output PSNR in each column."""
    eps = sorted({row["eps"] for row in rows})
    names = list(dict.fromkeys(row["attack"] for row in rows))
    cells = {(row["attack"], row["eps"]): row for row in rows}
    table = [[cells.get((name, e)) for e in eps] for name in names]
    best = set()
    for column in range(len(eps)):
        found = [row["psnr_out"] if row else math.nan for row in (line[column] for line in table)]
        least = min((value for value in found if math.isfinite(value)), default=math.nan)
        best |= {(place, column) for place, value in enumerate(found) if value == least}
    lines = [((name,), line) for name, line in zip(names, table, strict=True)]
    return Grid("attack", [f"eps {number(e)}" for e in eps], lines, frozenset(best) if len(names) > 1 else frozenset())


@dataclass(frozen=True)
class QualityAnswer:
    """The sentences that answer a regression run's question; strongest and noise: the rows they speak of, at eps.

    The text names every attack that is as strong, and those within the interval of the strongest.
    """

    text: str
    reason: str = ""
    eps: float | None = None
    strongest: Row | None = None
    noise: Row | None = None


def quality_answer(rows: Sequence[Row], clean: float | None, unit: str = "samples") -> QualityAnswer:
    """Answer "how far is the output pushed" from the rows of `psnr_table`; clean: the output PSNR without an attack."""
    usable = [row for row in rows if math.isfinite(row["psnr_out"])]
    if not usable:
        return QualityAnswer(
            f"The output of none of these {unit} moved by a measurable amount." if rows else "The run holds no rows."
        )
    attacks = [row for row in usable if not is_noise(row)] or usable
    grid = sorted({row["eps"] for row in attacks})
    eps = grid[len(grid) // 2]
    strongest = _lowest(attacks, eps)
    quiet = None
    if not is_noise(strongest):
        quiet = _lowest([row for row in usable if is_noise(row)], eps)
    start = "" if clean is None or not math.isfinite(clean) else f"from {decibels(clean)} without a perturbation "
    equal, near = _tied(attacks, strongest)
    names = listed([printable(row["attack"]) for row in equal])
    lead = f"attack run, {names}, brings" if len(equal) == 1 else f"attacks run, {names}, each bring"
    text = (
        f"At eps = {number(eps)} the strongest {lead} the output PSNR {start}to {decibels(strongest['psnr_out'])} "
        f"({_ends(strongest)}), the mean over {count(strongest['n'])} {unit}; "
    )
    if near:
        others = [f"{printable(row['attack'])} ({decibels(row['psnr_out'])})" for row in near]
        text += f"{listed(others)} {'lies' if len(near) == 1 else 'lie'} within that interval; "
    text += f"the perturbed inputs themselves are at {decibels(strongest['psnr_in'])}."
    if quiet is not None:
        text += f" Random noise within the same eps leaves {decibels(quiet['psnr_out'])}."
    last = _lowest(attacks, grid[-1])
    reason = ""
    if len(grid) > 1:
        reason = (
            f"{number(eps)} is the {'largest' if eps == grid[-1] else 'middle'} of the {len(grid)} budgets tried "
            f"({number(grid[0])} to {number(grid[-1])})"
        )
        if eps != grid[-1]:
            reason += f"; at the largest, {printable(last['attack'])} brings it to {decibels(last['psnr_out'])}"
        reason += "."
    return QualityAnswer(text, reason, eps, strongest, quiet)


def _lowest(rows: Sequence[Row], eps: float) -> Any:
    # A tie goes to the cheaper attack.
    there = [row for row in rows if row["eps"] == eps]
    return min(there, key=lambda row: (row["psnr_out"], row["passes"]), default=None)


def _tied(rows: Sequence[Row], strongest: Row) -> tuple[list[Row], list[Row]]:
    """Return the rows as strong as the strongest at its eps, itself first, and those within its interval."""
    there = [row for row in rows if row["eps"] == strongest["eps"] and row is not strongest]
    there.sort(key=lambda row: (row["psnr_out"], row["passes"]))
    equal = [row for row in there if abs(row["psnr_out"] - strongest["psnr_out"]) < _EQUAL]
    near = [row for row in there if row not in equal and row["psnr_out"] <= strongest["psnr_out_high"] < math.inf]
    return [strongest, *equal], near


def _ends(row: Row) -> str:
    low, high = row["psnr_out_low"], row["psnr_out_high"]
    return f"{low:.1f} to {high:.1f}" if math.isfinite(low) and math.isfinite(high) else "one sample, no interval"
