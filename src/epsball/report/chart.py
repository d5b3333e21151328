"""Curves as inline SVG for a page: real text, the page's own colours, and the numbers that its script shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from epsball.report.figures import FoolingCurves
from epsball.report.quality_figures import PsnrCurves
from epsball.report.shapes import dashes, marker, ticks
from epsball.report.style import PALETTE, line_styles
from epsball.report.text import data_text, norm_name, number, one_line, percent

__all__ = ["Chart", "Series", "fooling_chart", "quality_chart"]

WIDE, NARROW = (760, 400), (400, 340)
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 48


@dataclass(frozen=True)
class Series:
    """One curve: x, y and the interval low, high at each point, `at` which budget it is, and how it is read aloud."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    at: Sequence[float]
    text: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """Curves with bands; y_range: fixed, or from the values. levels: horizontal lines, each a value and its name.

    unit: what a point is called by, "eps". from_zero: whether x begins at 0.
    """

    series: tuple[Series, ...]
    x_label: str
    y_label: str
    unit: str = "eps"
    y_range: tuple[float, float] | None = None
    levels: tuple[tuple[float, str], ...] = ()
    from_zero: bool = True

    @property
    def legend(self) -> list[dict[str, Any]]:
        """The curves in the order of their ends, each with its place, name and a swatch of its line."""
        order = sorted(range(len(self.series)), key=lambda i: -self.series[i].y[-1])
        return [{"place": i, "name": self.series[i].name, "swatch": self._swatch(i)} for i in order]

    @property
    def wide(self) -> str:
        """The drawing for a wide page."""
        return self._svg(*WIDE)

    @property
    def narrow(self) -> str:
        """The drawing for a narrow page."""
        return self._svg(*NARROW)

    @property
    def _styles(self) -> list[tuple[str, str, str]]:
        colours = [light for light, _ in PALETTE]
        found = []
        for style in line_styles([series.name for series in self.series]):
            place = colours.index(style["color"]) if style["color"] in colours else None
            colour = "var(--noise)" if place is None else f"var(--s{place})"
            found.append((colour, dashes(style["linestyle"]), style["marker"]))
        return found

    def _swatch(self, place: int) -> str:
        colour, dash, shape = self._styles[place]
        return (
            '<svg viewBox="0 0 44 14" width="44" height="14" aria-hidden="true" focusable="false" '
            f'style="color:{colour}">'
            f'<path class="line" d="M1 7H43"{dash}/><path class="mark" d="{marker(shape, 22, 7, 4)}"/></svg>'
        )

    def _svg(self, width: int, height: int) -> str:
        xs = [v for series in self.series for v in series.x]
        ys = [v for s in self.series for v in (*s.low, *s.high, *s.y)] + [value for value, _ in self.levels]
        x_low, x_high = (0.0 if self.from_zero else min(xs)), max(xs)
        y_low, y_high = self.y_range or (min(ys), max(ys))
        if self.y_range is None:
            room = 0.05 * (y_high - y_low) or 1.0
            y_low, y_high = y_low - room, y_high + room
        if x_high <= x_low:
            x_low, x_high = x_low - 0.5, x_high + 0.5
        inner, tall = width - LEFT - RIGHT, height - TOP - BOTTOM
        pad = 0.02 * inner

        def px(x: float) -> float:
            return round(LEFT + pad + (x - x_low) / (x_high - x_low) * (inner - 2 * pad), 1)

        def py(y: float) -> float:
            return round(TOP + (y_high - y) / (y_high - y_low) * tall, 1)

        few = 6 if width > 500 else 4
        parts = [f'<g class="rules">{"".join(_rule_y(y, py(y), width) for y in ticks(y_low, y_high, 6))}']
        parts += [_rule_x(x, px(x), height) for x in ticks(x_low, x_high, few)]
        parts += [f'<path class="axis" d="M{LEFT} {TOP}V{height - BOTTOM}H{width - RIGHT}"/></g>']
        for value, name in self.levels:
            parts.append(f'<path class="level" d="M{LEFT} {py(value)}H{width - RIGHT}"/>')
            parts.append(f'<text class="note" x="{width - RIGHT}" y="{py(value) - 5}">{_text(name)}</text>')
        at = sorted({budget for series in self.series for budget in series.at})
        points, bands, lines = [], [], []
        for place, (series, (colour, dash, shape)) in enumerate(zip(self.series, self._styles, strict=True)):
            across = [px(x) for x in series.x]
            up = [py(y) for y in series.y]
            edge = [*zip(across, map(py, series.high), strict=True)]
            edge += [*zip(across[::-1], [py(y) for y in series.low][::-1], strict=True)]
            start = f'data-series="{place}" style="color:{colour}"'
            bands.append(f'<path class="band" {start} d="{_path(edge)}Z"/>')
            middle = [*zip(across, up, strict=True)]
            marks = "".join(marker(shape, x, y, 4) for x, y in middle[:: 1 + len(middle) // 30])
            lines.append(
                f'<g {start}><path class="line" d="{_path(middle)}"{dash}/><path class="mark" d="{marks}"/></g>'
            )
            found = zip(series.at, middle, series.text, strict=True)
            points.append({at.index(budget): [x, y, text] for budget, (x, y), text in found})
        parts += bands + lines
        parts.append(
            f'<text class="title" x="{LEFT + inner / 2:g}" y="{height - 8}">{_text(self.x_label)}</text>'
            f'<text class="title" transform="translate(13 {TOP + tall / 2:g}) rotate(-90)">{_text(self.y_label)}</text>'
        )
        known = {
            "at": [f"{self.unit} {number(budget)}" for budget in at],
            "names": [series.name for series in self.series],
            "points": points,
            "box": [TOP, height - BOTTOM],
            "rule": self.unit in self.x_label,
        }
        return (
            f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false" '
            f'data-points="{escape(data_text(known))}">{"".join(parts)}</svg>'
        )


def fooling_chart(display: FoolingCurves) -> Chart:
    """Return the chart of fooling ratios over eps."""
    orders = {curve.p for curve in display.curves}
    series = [
        Series(
            curve.name if len(orders) == 1 else f"{curve.name}, {norm_name(curve.p)}",
            *(curve.eps.tolist(), curve.percent.tolist(), curve.low.tolist(), curve.high.tolist(), curve.eps.tolist()),
            [
                f"{percent(y)} % ({percent(low)} to {percent(high)})"
                for y, low, high in zip(curve.percent, curve.low, curve.high, strict=True)
            ],
        )
        for curve in display.curves
    ]
    norm = f"{norm_name(orders.pop())} norm" if len(orders) == 1 else "norm in the legend"
    return Chart(tuple(series), f"eps, in units of x ({norm})", "fooling ratio (%)", y_range=(0.0, 100.0))


def quality_chart(display: PsnrCurves, over: str) -> Chart:
    """Return the chart of output PSNR over "psnr_in" or "eps"."""
    series = []
    for curve in display.curves:
        values = zip(curve.psnr_out, curve.low, curve.high, curve.psnr_in, strict=True)
        text = [f"{y:.1f} dB ({low:.1f} to {high:.1f}), input {x:.1f} dB" for y, low, high, x in values]
        across = getattr(curve, over).tolist()
        ends = (curve.psnr_out.tolist(), curve.low.tolist(), curve.high.tolist())
        series.append(Series(curve.name, across, *ends, curve.eps.tolist(), text))
    orders = sorted({curve.p for curve in display.curves})
    norm = f" ({norm_name(orders[0])} norm)" if len(orders) == 1 else ""
    label = f"eps, in units of x{norm}" if over == "eps" else "input PSNR (dB); smaller perturbations to the right"
    levels: tuple[tuple[float, str], ...] = ()
    if display.clean is not None and math.isfinite(display.clean):
        levels = ((display.clean, f"no perturbation, {display.clean:.1f} dB"),)
    return Chart(tuple(series), label, "output PSNR (dB)", levels=levels, from_zero=over == "eps")


def _text(value: str) -> str:
    return escape(one_line(value))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _rule_y(value: float, y: float, width: int) -> str:
    return (
        f'<path d="M{LEFT} {y:g}H{width - RIGHT}"/><text class="y" x="{LEFT - 7}" y="{y + 4:g}">{number(value)}</text>'
    )


def _rule_x(value: float, x: float, height: int) -> str:
    end = height - BOTTOM
    return f'<path d="M{x:g} {TOP}V{end}"/><text class="x" x="{x:g}" y="{end + 17}">{number(value)}</text>'
