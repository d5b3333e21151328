"""The page of a comparison: which model is the more robust, where, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from epsball.report import style
from epsball.report.chart import Chart, Series
from epsball.report.manifest import Fact, Manifest
from epsball.report.render import render
from epsball.report.tables import Row
from epsball.report.text import count, listed, norm_name, number, one_line, printable

__all__ = ["Compared", "answer", "compare_page", "p_text", "points"]

NBSP = "\u00a0"
CSV: tuple[str, ...] = (
    "attack",
    "p",
    "eps",
    "n",
    "first",
    "second",
    "difference",
    "low",
    "high",
    "only_first",
    "only_second",
)
CSV += ("p_value", "adjusted", "verdict")


class Compared(Protocol):
    """What the page needs of a comparison; see `experiments.compare.Comparison`."""

    @property
    def names(self) -> tuple[str, str]:
        """What the two models are called."""

    @property
    def regression(self) -> bool:
        """Whether gains are compared, and not fooling ratios."""

    @property
    def clean(self) -> Any:
        """How often each is right without a perturbation; None for regression."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What else differs between the runs."""

    @property
    def common(self) -> int:
        """The samples in both runs."""

    @property
    def alone(self) -> tuple[int, int]:
        """The samples in the first and in the second run only."""

    @property
    def tolerance(self) -> float:
        """By how much robustness may fall."""

    @property
    def manifests(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The manifests of the two runs."""


def compare_page(found: Compared, rows: Sequence[Row]) -> str:
    """Return the page; rows: the cells of the comparison, each with its verdict. Everything from outside is escaped."""
    manifests = [Manifest(content) for content in found.manifests]
    context = {
        "interactive": True,
        "palette": style.PALETTE,
        "noise": style.BASELINE,
        "found": found,
        "names": [one_line(name, 60) for name in found.names],
        "rows": rows,
        "sentences": answer(found, rows),
        "chart": _chart(found, rows),
        "runs": [_facts(manifest) for manifest in manifests],
        "data": manifests[0].data_name,
        "points": points,
        "ends": _ends,
        "p_text": p_text,
        "csv": [{key: row[key] for key in CSV} for row in rows],
        "orders": len({row["p"] for row in rows}),
    }
    return render("compare", context)


def answer(found: Compared, rows: Sequence[Row]) -> list[str]:
    """Say in one sentence whether the second model is less robust than the first, and in a second what was compared."""
    first, second = (one_line(name, 60) for name in found.names)
    fell = sorted((row for row in rows if row["fell"]), key=lambda row: -row["difference"])
    allowed = points(found.tolerance, found.regression)
    what = "the mean gain" if found.regression else "the fooling ratio"
    if fell:
        worst = fell[0]
        text = (
            f"{second} is less robust than {first}: under {printable(worst['attack'])} at eps = {number(worst['eps'])} "
            f"{what} rose by {points(worst['difference'], found.regression)} ({_ends(worst)}), and in "
            f"{count(len(fell))} of {count(len(rows))} comparisons by more than the {allowed} allowed."
        )
    else:
        text = (
            f"In none of {count(len(rows))} comparisons is {second} less robust than {first} by more than the "
            f"{allowed} allowed, beyond what the interval explains."
        )
    better = [row for row in rows if row["verdict"] == "more robust"]
    worse = [row for row in rows if row["verdict"] == "less robust"]
    more = []
    if better:
        more.append(f"It is more robust in {count(len(better))} ({_attacks(better)})")
    if worse:
        more.append(f"it is less robust in {count(len(worse))} more, within the tolerance ({_attacks(worse)})")
    if not fell and not better and not worse:
        more.append(f"No comparison shows a difference on these {count(found.common)} samples")
    second_line = "; ".join(more)
    return [text, second_line[:1].upper() + second_line[1:] + "."] if more else [text]


def points(value: float, relative: bool, sign: bool = False) -> str:
    """Write a difference: percentage points of a fooling ratio, or percent of a gain."""
    if math.isnan(value):
        return "–"
    unit = f"{NBSP}%" if relative else f"{NBSP}points"
    return f"{100.0 * value:{'+' if sign else ''}.1f}".replace("inf", "∞") + unit


def p_text(value: float) -> str:
    """Write a p-value to three digits, or that it is below 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _attacks(rows: Sequence[Row]) -> str:
    return listed(list(dict.fromkeys(printable(row["attack"]) for row in rows)))


def _ends(row: Row) -> str:
    if not all(math.isfinite(row[key]) for key in ("low", "high")):
        return "no interval"
    return f"{100.0 * row['low']:+.1f} to {100.0 * row['high']:+.1f}"


def _chart(found: Compared, rows: Sequence[Row]) -> Chart | None:
    """Draw the difference over eps, a curve an attack; None where no attack has two budgets with an interval."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if all(math.isfinite(row[key]) for key in ("eps", "difference", "low", "high")):
            groups.setdefault((row["attack"], row["p"]), []).append(row)
    orders = {p for _, p in groups}
    series = []
    for (name, p), group in groups.items():
        group.sort(key=lambda row: row["eps"])
        eps = [row["eps"] for row in group]
        middle, low, high = ([100.0 * row[key] for row in group] for key in ("difference", "low", "high"))
        text = [f"{points(row['difference'], found.regression, True)} ({_ends(row)})" for row in group]
        series.append(
            Series(name if len(orders) == 1 else f"{name}, {norm_name(p)}", eps, middle, low, high, eps, text)
        )
    if not any(len(one.x) > 1 for one in series):
        return None
    norm = f"{norm_name(orders.pop())} norm" if len(orders) == 1 else "norm in the legend"
    unit = "relative gain (%)" if found.regression else "fooling ratio (points)"
    levels: tuple[tuple[float, str], ...] = ((0.0, ""),)
    if found.tolerance > 0:
        levels += ((100.0 * found.tolerance, f"tolerance, {points(found.tolerance, found.regression)}"),)
    return Chart(tuple(series), f"eps, in units of x ({norm})", f"rise of the {unit}", levels=levels)


def _facts(manifest: Manifest) -> list[Fact]:
    wanted = ("Device", "Seed", "Valid range of x", "Time", "Made", "Command", "Reference output")
    facts = [*manifest.model_facts, ("Data", manifest.data_name)]
    facts += [(name, value) for name, value in manifest.run_facts if name in wanted]
    facts += [("epsball", value) for name, value in manifest.versions if name == "epsball"]
    return [(name, value) for name, value in facts if value]
