"""Curves of a regression run: mean output PSNR over mean input PSNR, and over eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError
from epsball.report.quality import psnr_table
from epsball.report.style import INK, MUTED, line_styles, new_figure, tidy
from epsball.report.tables import Row
from epsball.report.text import count, decibels, label, lines, norm_name

__all__ = ["PsnrCurves", "QualityCurve"]

SHORT = 18  # letters of names of which two fit side by side under narrow curves


@dataclass(frozen=True, eq=False)
class QualityCurve:
    """One attack at each eps: mean output PSNR with its 95 % interval low, high, and mean input PSNR; all (E,)."""

    name: str
    p: float
    eps: NDArray[np.float64]
    psnr_in: NDArray[np.float64]
    psnr_out: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: int


@dataclass(frozen=True, eq=False)
class PsnrCurves:
    """Mean output PSNR in dB, one curve an attack, with 95 % intervals; clean: the PSNR without a perturbation."""

    curves: tuple[QualityCurve, ...]
    clean: float | None = None
    title: str = ""

    @classmethod
    def from_table(cls, table: Any, *, clean: float | None = None, data: str = "") -> PsnrCurves:
        """Take the curves out of a table of results; data: for the title, as "mnist-autoencoder on mnist test"."""
        return cls.from_rows(psnr_table(table), clean=clean, data=data)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], *, clean: float | None = None, data: str = "") -> PsnrCurves:
        """Take the curves out of rows of `psnr_table`; rows without finite means have none."""
        grouped: dict[str, list[Row]] = {}
        for row in rows:
            if all(math.isfinite(row[key]) for key in ("eps", "psnr_in", "psnr_out")):
                grouped.setdefault(str(row["attack"]), []).append(row)
        curves = tuple(_curve(name, found) for name, found in grouped.items())
        n = count(max((curve.n for curve in curves), default=0))
        return cls(curves, clean, data or f"n = {n}")

    def plot(self, ax: Any = None, *, over: str = "psnr_in", legend: str = "right") -> Any:
        """Draw, on `ax` or on a new figure, and return the Axes.

        over: "psnr_in", where small perturbations stand on the right, or "eps". legend: "right" of the curves or
        "below" them.
        """
        if over not in ("psnr_in", "eps") or legend not in ("right", "below"):
            raise InputError(f"expected over='psnr_in' or 'eps', legend='right' or 'below', got {over!r}, {legend!r}.")
        if ax is None:
            entries = len(self.curves) / (1 if any(len(curve.name) > SHORT for curve in self.curves) else 2)
            ax = new_figure(*((8.4, 4.4) if legend == "right" else (4.6, 4.2 + 0.22 * entries))).add_subplot()
        tidy(ax)
        if self.title:
            width = 80 if legend == "right" else 44
            title = "\n".join(lines(part, width) for part in self.title.split("; "))
            ax.set_title(title if legend == "below" else lines(self.title, width), fontsize=11, color=INK, loc="left")
        handles: list[tuple[float, Any, str]] = []
        for curve, style in zip(self.curves, line_styles([c.name for c in self.curves]), strict=True):
            across = getattr(curve, over)
            alpha = 0.16 if len(self.curves) <= 4 else 0.09
            ax.fill_between(across, curve.low, curve.high, color=style["color"], alpha=alpha, linewidth=0)
            (line,) = ax.plot(across, curve.psnr_out, linewidth=1.8, markersize=5.5, **style)
            handles.append((float(curve.psnr_out[-1]), line, label(curve.name)))
        handles.sort(key=lambda handle: -handle[0])  # the legend reads in the order of the curves' ends
        if self.clean is not None and math.isfinite(self.clean) and self.curves:
            line = ax.axhline(self.clean, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
            handles.insert(0, (self.clean, line, f"no perturbation ({decibels(self.clean)})"))
        self._legend(ax, handles, legend)
        ax.locator_params(axis="x", nbins=9 if legend == "right" else 5)
        orders = sorted({curve.p for curve in self.curves})
        norm = f" ({norm_name(orders[0])} norm)" if len(orders) == 1 else ""
        if over == "eps":
            largest = max((float(curve.eps.max()) for curve in self.curves), default=1.0)
            ax.set_xlim(-0.02 * largest, 1.02 * largest)
        text = {"eps": f"eps, in units of x{norm}", "psnr_in": "input PSNR (dB); smaller perturbations to the right"}
        ax.set_xlabel(text[over], fontsize=10.5)
        ax.set_ylabel("output PSNR (dB)", fontsize=10.5)
        return ax

    def _legend(self, ax: Any, handles: list[tuple[float, Any, str]], legend: str) -> None:
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


def _curve(name: str, rows: list[Row]) -> QualityCurve:
    rows = sorted(rows, key=lambda row: row["eps"])

    def values(key: str) -> NDArray[np.float64]:
        return np.array([row[key] for row in rows], dtype=np.float64)

    middle = values("psnr_out")
    low, high = (values(f"psnr_out_{end}") for end in ("low", "high"))
    # One sample has no interval: its band has no width.
    low, high = np.where(np.isnan(low), middle, low), np.where(np.isnan(high), middle, high)
    return QualityCurve(
        name=name,
        p=rows[0]["p"],
        eps=values("eps"),
        psnr_in=values("psnr_in"),
        psnr_out=middle,
        low=low,
        high=high,
        n=max(row["n"] for row in rows),
    )
