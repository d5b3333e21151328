"""Tables of a run: fooling ratios, transfer and cost as plain rows, and those rows as Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from epsball.metrics.intervals import wilson_interval
from epsball.report.rows import Columns
from epsball.report.text import printable

__all__ = [
    "HEADINGS",
    "LEFT",
    "Row",
    "cost",
    "cost_table",
    "fooling_table",
    "to_csv",
    "to_markdown",
    "transfer_table",
    "whole",
]

Row = dict[str, Any]

# What a column is called in front of people; the keys are what programs use.
HEADINGS = {
    "attack": "attack",
    "crafted_on": "crafted on",
    "judged_on": "judged on",
    "p": "p",
    "eps": "eps",
    "steps": "steps",
    "n": "samples",
    "fooled": "fooled",
    "percent": "fooling ratio (%)",
    "low": "95 % from",
    "high": "to",
    "median_norm": "median norm",
    "median_groups": "median groups",
    "forwards": "forwards",
    "backwards": "backwards",
    "jvps": "JVPs",
    "passes": "passes",
    "seconds_per_1000": "s per 1,000",
    "psnr_out": "output PSNR (dB)",
    "psnr_out_low": "95 % from",
    "psnr_out_high": "to",
    "psnr_in": "input PSNR (dB)",
    "psnr_in_low": "95 % from",
    "psnr_in_high": "to",
    "error_increase": "error increase",
    "error_increase_low": "95 % from",
    "error_increase_high": "to",
    "exact": "solved exactly (%)",
    "measure": "measure",
    "value": "value",
    "sample_id": "sample",
    "label": "class",
    "prediction": "taken for",
    "distance": "distance",
}


def fooling_table(table: Any) -> list[Row]:
    """List the fooling ratio of each attack at each eps, with its uncertainty and cost.

    table: a pyarrow table of results. One row for each judged_on x attack x crafted_on x p x eps, attacks in the order
    of the table and eps ascending. n: the samples classified correctly without a perturbation, the only ones that
    count; fooled, percent: how many of them and what share succeed; low, high: the 95 % Wilson interval in percent.
    median_norm: over the fooled samples, in the row's own p; None where nothing was fooled or p is not 1, 2 or inf.
    median_groups: how many groups changed in them; None of attacks that are not over groups.
    forwards, backwards, seconds_per_1000: means over every sample that was run, not only those that count. percent is
    None where n = 0. Raises InputError for a table without the columns of a run.
    """
    columns = Columns.of(table)
    keys = ("judged_on", "attack", "crafted_on", "p", "eps")
    rows = [_fooling_row(columns, values, index) for values, index in columns.groups(keys)]
    judged, attacks = columns.names["judged_on"], columns.names["attack"]
    places = {name: place for place, name in enumerate(attacks)}
    judges = {name: place for place, name in enumerate(judged)}
    # What was crafted on the judging model itself comes before what was transferred to it.
    return sorted(rows, key=lambda r: (judges[r["judged_on"]], places[r["attack"]], r["crafted_on"] != r["judged_on"]))


def transfer_table(table: Any, eps: float | None = None) -> list[Row]:
    """List how well perturbations crafted on one model fool another: attack x crafted_on x judged_on at one eps.

    eps: a budget of the table, the largest finite one by default. The columns are those of `fooling_table`; a row with
    crafted_on = judged_on is the attack on the model itself. Samples count that the judging model classifies correctly.
    """
    rows = fooling_table(table)
    if eps is None:
        eps = max((row["eps"] for row in rows if math.isfinite(row["eps"])), default=math.inf)
    return [row for row in rows if row["eps"] == eps]


def cost_table(table: Any) -> list[Row]:
    """List what each attack costs: mean passes through the crafting model for one sample, and seconds for 1,000.

    Means over all samples and eps; passes = forwards + backwards + jvps. A minimal-norm attack is run once for
    the whole grid, and its rows repeat that run's cost, so that the mean is still the cost of one run.
    """
    columns = Columns.of(table)
    rows = []
    for values, index in columns.groups(("attack", "crafted_on")):
        row = values | {"steps": whole(columns["steps"][index]), "n": len(np.unique(columns["sample_id"][index]))}
        row |= cost(columns, index)
        row["passes"] = row["forwards"] + row["backwards"] + row["jvps"]
        rows.append(row)
    return rows


def _fooling_row(columns: Columns, values: Row, index: Any) -> Row:
    n, fooled = int(columns.correct[index].sum()), int(columns.fooled[index].sum())
    low, high = wilson_interval(fooled, n)
    norms, groups = columns.norm[index][columns.fooled[index]], columns["groups"][index][columns.fooled[index]]
    return values | {
        "steps": whole(columns["steps"][index]),
        "n": n,
        "fooled": fooled,
        "percent": 100.0 * fooled / n if n else None,
        "low": 100.0 * low,
        "high": 100.0 * high,
        "median_norm": float(np.median(norms)) if len(norms) and np.isfinite(norms).all() else None,
        "median_groups": float(np.median(groups)) if len(groups) and np.isfinite(groups).all() else None,
        **{key: value for key, value in cost(columns, index).items() if key != "jvps"},
    }


def cost(columns: Columns, index: Any) -> Row:
    """Return the mean passes for one sample and the seconds for 1,000, over these rows."""
    names = {"forwards": "forwards", "backwards": "backwards", "jvps": "jvps", "seconds": "seconds_per_1000"}
    scale = {"seconds": 1000.0}
    return {key: float(columns[name][index].mean()) * scale.get(name, 1.0) for name, key in names.items()}


def whole(values: Any) -> int | None:
    """Return the largest of the values that are known; None if none is."""
    known = values[np.isfinite(values)]
    return int(known.max()) if len(known) else None


def to_markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Write rows as a Markdown table with rounded numbers; columns: which keys, all by default."""
    keys = _keys(rows, columns)
    heads = [_markdown(HEADINGS.get(key, key)) for key in keys]
    text = {key for key in keys if key in LEFT or any(_is_text(row.get(key)) for row in rows)}
    lines = [heads, ["---" if key in text else "---:" for key in keys]]
    lines += [[_markdown(format_cell(key, row.get(key))) for key in keys] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if keys else ""


def _is_text(value: Any) -> bool:
    """Tell whether a value is text, and not a number that was written already."""
    try:
        return isinstance(value, str) and value != "" and not math.isfinite(float(value))
    except ValueError:
        return True


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Write rows as CSV with the keys as header and numbers in full; None is an empty field.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    keys = _keys(rows, columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if keys:
        writer.writerow(keys)
    for row in rows:
        cells = (row.get(key) for key in keys)
        writer.writerow(["" if c is None else _field(c) if isinstance(c, str) else c for c in cells])
    return out.getvalue()


LEFT = ("attack", "crafted_on", "judged_on", "measure", "label", "prediction")
_DECIMALS = dict.fromkeys(("percent", "low", "high", "forwards", "backwards", "jvps", "passes", "exact"), 1)
_DECIMALS |= dict.fromkeys(("psnr_out", "psnr_out_low", "psnr_out_high", "psnr_in", "psnr_in_low", "psnr_in_high"), 2)


def format_cell(key: str, value: Any) -> str:
    """Write one cell for people: percentages and passes to a tenth, other numbers to four digits, "–" for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int):
        return f"{value:,}"
    if key in _DECIMALS and math.isfinite(value):
        return f"{value:,.{_DECIMALS[key]}f}"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3g}" if key == "seconds_per_1000" and value < 100 else f"{value:.4g}"


def _keys(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None) -> list[str]:
    return list(columns) if columns is not None else list(rows[0]) if rows else []


def _markdown(text: str) -> str:
    # A cell must stay one cell, and must not become a link, an image or HTML where the table is rendered.
    text = re.sub(r"([\\`*_\[\]|!~])", r"\\\1", text.replace("\n", " "))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _field(text: str) -> str:
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
