"""Figures of a run: each holds its numbers, and `plot` only draws them, on its own Axes or on yours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError, unknown_name
from epsball.report.examples import ExampleGrid
from epsball.report.rows import Columns
from epsball.report.style import INK, MUTED, PALETTE, line_styles, new_figure, tidy
from epsball.report.tables import Row, fooling_table
from epsball.report.text import count, label, lines, norm_name, number

__all__ = ["Curve", "DistanceHistogram", "ExampleGrid", "FoolingCurves", "curve_name"]

SHORT = 18  # letters of names of which two fit side by side under narrow curves


def curve_name(row: Row) -> str:
    """Name the attack of a row, and the model it was crafted on where that is not the model it was judged on."""
    same = row["crafted_on"] == row["judged_on"]
    return str(row["attack"]) if same else f"{row['attack']} (crafted on {row['crafted_on']})"


@dataclass(frozen=True, eq=False)
class Curve:
    """The fooling ratio of one attack: percent and its 95 % interval low, high at each eps, all (E,); n samples."""

    name: str
    p: float
    eps: NDArray[np.float64]
    percent: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int


@dataclass(frozen=True, eq=False)
class FoolingCurves:
    """Fooling ratio in percent over eps, one curve an attack, with 95 % Wilson intervals.

    among: the names of all curves that stand side by side with these, so that one name has one line everywhere.
    """

    curves: tuple[Curve, ...]
    title: str = ""
    among: tuple[str, ...] = ()

    @classmethod
    def from_table(cls, table: Any, *, judged_on: str | None = None, data: str = "") -> FoolingCurves:
        """Take the curves out of a table of results; judged_on: one model's, data: for the title, as "mnist test"."""
        rows = [row for row in fooling_table(table) if judged_on in (None, row["judged_on"])]
        return cls.from_rows(rows, data=data)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], *, data: str = "") -> FoolingCurves:
        """Take the curves out of rows of `fooling_table`; rows without a finite eps or without samples have none."""
        usable = [row for row in rows if row["n"] and math.isfinite(row["eps"])]
        several = len({row["judged_on"] for row in usable}) > 1
        grouped: dict[tuple[str, float], list[Row]] = {}
        for row in usable:
            name = curve_name(row) + (f" on {row['judged_on']}" if several else "")
            grouped.setdefault((name, row["p"]), []).append(row)
        curves = tuple(_curve(name, p, rows) for (name, p), rows in grouped.items())
        counts = sorted({row["n"] for row in usable})
        n = " to ".join(count(c) for c in {counts[0]: None, counts[-1]: None}) if counts else "0"
        return cls(curves, f"{data}; n = {n} correctly classified" if data else f"n = {n} correctly classified")

    @property
    def one_eps(self) -> bool:
        """Whether there is a single budget, so that points are drawn and not curves."""
        return len({e for curve in self.curves for e in curve.eps.tolist()}) <= 1

    def plot(self, ax: Any = None, *, legend: str = "right") -> Any:
        """Draw, on `ax` or on a new figure, and return the Axes; legend: "right" of the curves or "below" them."""
        if legend not in ("right", "below"):
            raise InputError(f'expected legend as "right" or "below", got {legend!r}.')
        if ax is None:
            entries = len(self.curves) / (1 if any(len(curve.name) > SHORT for curve in self.curves) else 2)
            size = (8.4, 4.4) if legend == "right" else (4.6, 4.2 + 0.22 * entries)
            ax = new_figure(*size).add_subplot()
        tidy(ax)
        if self.title:
            width = 80 if legend == "right" else 44
            title = "\n".join(lines(part, width) for part in self.title.split("; "))
            ax.set_title(title if legend == "below" else lines(self.title, width), fontsize=11, color=INK, loc="left")
        if self.one_eps:
            self._points(ax)
        else:
            self._lines(ax, legend)
        return ax

    def _lines(self, ax: Any, legend: str) -> None:
        handles: list[tuple[float, Any, str]] = []
        orders = {curve.p for curve in self.curves}
        styles = line_styles([curve.name for curve in self.curves])  # two may have one name, in different norms
        if self.among:
            shared = dict(zip(self.among, line_styles(self.among), strict=True))
            styles = [shared[curve.name] for curve in self.curves]
        for curve, style in zip(self.curves, styles, strict=True):
            alpha = 0.16 if len(self.curves) <= 4 else 0.09  # many bands on top of each other would turn to mud
            ax.fill_between(curve.eps, curve.low, curve.high, color=style["color"], alpha=alpha, linewidth=0)
            (line,) = ax.plot(curve.eps, curve.percent, linewidth=1.8, markersize=5.5, **style)
            name = curve.name if len(orders) == 1 else f"{curve.name}, {norm_name(curve.p)}"
            handles.append((float(curve.percent[-1]), line, label(name)))
        handles.sort(key=lambda handle: -handle[0])  # the legend reads in the order of the curves' ends
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        if legend == "below":
            columns = 2 if max((len(name) for _, _, name in handles), default=0) <= SHORT else 1
            place = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.17), "ncols": columns, "columnspacing": 1.2}
        if handles:
            ax.legend(
                [line for _, line, _ in handles],
                [name for _, _, name in handles],
                frameon=False,
                labelcolor=INK,
                fontsize=10,
                handlelength=3.4,
                borderaxespad=0.2,
                **place,
            )
        ax.set_ylim(-2, 102)
        largest = max((float(curve.eps.max()) for curve in self.curves), default=1.0)
        ax.locator_params(axis="x", nbins=9 if legend == "right" else 5)
        ax.set_xlim(-0.02 * largest, 1.02 * largest)  # from zero, where nothing is fooled
        ax.set_xlabel(_eps_label(orders), fontsize=10.5)
        ax.set_ylabel("fooling ratio (%)", fontsize=10.5)

    def _points(self, ax: Any) -> None:
        ordered = sorted(self.curves, key=lambda curve: curve.percent[0])
        styles = dict(zip(self.curves, line_styles([c.name for c in self.curves]), strict=True))
        for place, curve in enumerate(ordered):
            spread = [curve.percent - curve.low, curve.high - curve.percent]
            style = {key: styles[curve][key] for key in ("color", "marker")}
            ax.errorbar(curve.percent, [place], xerr=spread, capsize=4, markersize=7, linewidth=1.8, **style)
        ax.set_yticks(range(len(ordered)), [label(curve.name, 28) for curve in ordered])
        ax.set_ylim(-0.6, max(len(ordered), 1) - 0.4)
        ax.set_xlim(-2, 102)
        budget = f" at eps = {number(float(ordered[0].eps[0]))}" if ordered else ""
        norm = f" ({norm_name(ordered[0].p)} norm)" if len({c.p for c in ordered}) == 1 else ""
        ax.set_xlabel(f"fooling ratio (%){budget}{norm}", fontsize=10.5)


def _curve(name: str, p: float, rows: list[Row]) -> Curve:
    rows = sorted(rows, key=lambda row: row["eps"])
    values = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in ("eps", "percent", "low", "high")}
    return Curve(name=name, p=p, n=max(row["n"] for row in rows), **values)


def _eps_label(orders: set[float]) -> str:
    norm = f"{norm_name(next(iter(orders)))} norm" if len(orders) == 1 else "norm in the legend"
    return f"eps, in units of x ({norm})"


@dataclass(frozen=True, eq=False)
class DistanceHistogram:
    """How far the samples lie from being fooled: the norms of the smallest perturbations found, (n,).

    missing: for how many further samples no fooling perturbation was found, which a histogram cannot show.
    """

    distances: NDArray[np.float64]
    p: float
    name: str = ""
    missing: int = 0

    @classmethod
    def from_table(cls, table: Any, attack: str) -> DistanceHistogram:
        """Take the norms of a minimal-norm attack's fooling perturbations of the correctly classified samples.

        They count at any size, within the grid of eps or beyond, each sample once. Raises InputError for an attack
        that the table does not hold or a p other than 1, 2 and inf, for which it holds no norm.
        """
        columns = Columns.of(table)
        if attack not in columns.names["attack"]:
            raise unknown_name("attack", attack, columns.names["attack"])
        mine = (columns.codes["attack"] == columns.names["attack"].index(attack)) & columns.correct
        _, first = np.unique(columns["sample_id"][mine], return_index=True)
        norm, p = columns.norm[mine][first], columns["p"][mine][first]
        if len(set(p.tolist())) > 1 or np.isnan(norm).all() != (len(norm) == 0):
            raise InputError(f"expected one p of 1, 2 or inf for {attack!r}, got {sorted(set(p.tolist()))}.")
        found = (columns["prediction"] != columns["target"])[mine][first] & np.isfinite(norm)
        return cls(norm[found], float(p[0]) if len(p) else math.nan, attack, int((~found).sum()))

    @property
    def count(self) -> int:
        """How many samples there are, those without a distance included."""
        return len(self.distances) + self.missing

    @property
    def median(self) -> float:
        """The least distance within which at least half of all samples are fooled; inf if fewer are, NaN if none is."""
        place = math.ceil(self.count / 2) - 1
        if place < 0:
            return math.nan
        return float(np.sort(self.distances)[place]) if place < len(self.distances) else math.inf

    def plot(self, ax: Any = None) -> Any:
        """Draw, on `ax` or on a new figure, and return the Axes."""
        ax = new_figure(8.4, 3.4).add_subplot() if ax is None else ax
        tidy(ax, grid="y")
        ax.set_xlabel(f"distance found, in units of x ({norm_name(self.p)} norm)", fontsize=10.5)
        ax.set_ylabel("samples", fontsize=10.5)
        title = f"{label(self.name, 24)}; n = {count(self.count)}" if self.name else f"n = {count(self.count)}"
        ax.set_title(title + (f", {count(self.missing)} not fooled" if self.missing else ""), fontsize=11, loc="left")
        if len(self.distances):
            bins = min(60, max(8, math.isqrt(len(self.distances))))
            ax.hist(self.distances, bins=bins, color=PALETTE[0][0], alpha=0.75)
            if math.isfinite(self.median):
                self._mark(ax)
            ax.set_xlim(left=0)
            ax.margins(y=0.2)  # room for the word above the bars
        else:
            ax.text(0.5, 0.5, "no fooling perturbation found", transform=ax.transAxes, ha="center", color=MUTED)
        return ax

    def _mark(self, ax: Any) -> None:
        ax.axvline(self.median, color=INK, linewidth=1.5, linestyle="--")
        ax.annotate(
            f"half within {number(self.median)}",
            (self.median, 1),
            xycoords=("data", "axes fraction"),
            xytext=(6, -2),
            textcoords="offset points",
            va="top",
            fontsize=10,
            color=INK,
        )
