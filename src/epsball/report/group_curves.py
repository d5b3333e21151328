"""The figure of a search for the fewest groups: what share of the samples so few changed pixels fool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import unknown_name
from epsball.report.rows import Columns
from epsball.report.style import INK, line_styles, new_figure, tidy
from epsball.report.text import count, label, number

__all__ = ["FewestGroupsCurves"]

COUNTS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)  # of groups, in the table


@dataclass(frozen=True, eq=False)
class FewestGroupsCurves:
    """Share of the correctly classified samples that are fooled where at most k groups change, a curve each eps.

    needed: eps to the numbers of groups of the fooled samples, ascending; n: samples, fooled or not. of: "pixels".
    """

    name: str
    of: str
    n: int
    needed: Mapping[float, NDArray[np.float64]]

    @classmethod
    def from_table(cls, table: Any, attack: str, of: str, judged_on: str) -> FewestGroupsCurves:
        """Take the numbers of groups of one attack, crafted and judged on one model, out of a table of results.

        Raises InputError for an attack or a model that the table does not hold.
        """
        columns = Columns.of(table)
        ours = columns.correct.copy()
        for key, name, kind in (
            ("attack", attack, "attack"),
            ("judged_on", judged_on, "model"),
            ("crafted_on", judged_on, "model"),
        ):
            if name not in columns.names[key]:
                raise unknown_name(kind, name, columns.names[key])
            ours &= columns.codes[key] == columns.names[key].index(name)
        needed, n = {}, 0
        for eps in np.unique(columns["eps"][ours]).tolist():
            mine = ours & (columns["eps"] == eps)
            needed[eps], n = np.sort(columns["groups"][mine & columns.fooled]), int(mine.sum())
        return cls(attack, of, n, needed)

    def percent(self, eps: float, groups: float) -> float:
        """Return what share of the samples at most so many changed groups fool, in percent."""
        within = np.searchsorted(self.needed[eps], groups, side="right")
        return 100.0 * float(within) / self.n if self.n else float("nan")

    @property
    def largest(self) -> int:
        """The most groups that any sample needed."""
        return int(max((values[-1] for values in self.needed.values() if len(values)), default=1))

    @property
    def counts(self) -> list[int]:
        """Numbers of groups at which to tell the shares."""
        return [*(k for k in COUNTS if k < self.largest), self.largest]

    def plot(self, ax: Any = None, *, legend: str = "right") -> Any:
        """Draw, on `ax` or on a new figure, and return the Axes; legend: "right" of the curves or "below" them."""
        ax = new_figure(8.4, 3.6).add_subplot() if ax is None else ax
        tidy(ax)
        styles = line_styles([str(eps) for eps in self.needed])
        for (eps, values), style in zip(self.needed.items(), styles, strict=True):
            places = np.concatenate([[0.0], values, [self.largest]])
            shares = np.concatenate([[0.0], np.arange(1, len(values) + 1), [len(values)]])
            style = {key: style[key] for key in ("color", "linestyle")}
            name = f"eps = {number(eps)}" if np.isfinite(eps) else "any eps"
            ax.plot(places, 100.0 * shares / max(self.n, 1), drawstyle="steps-post", linewidth=1.8, label=name, **style)
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        if legend == "below":
            place = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.2), "ncols": 3, "columnspacing": 1.2}
        if self.needed:
            ax.legend(frameon=False, labelcolor=INK, fontsize=10, **place)
        ax.set_ylim(-2, 102)
        ax.set_xlim(0, 1.02 * self.largest)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel(f"{self.of} changed, at most", fontsize=10.5)
        ax.set_ylabel("fooled (%)", fontsize=10.5)
        ax.set_title(f"{label(self.name, 24)}; n = {count(self.n)} correctly classified", fontsize=11, loc="left")
        return ax
