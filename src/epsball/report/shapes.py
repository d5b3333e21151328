"""Marks, dash patterns and round numbers for the drawings of a page."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["dashes", "marker", "ticks"]

_DASHES = {"--": "7 4", "-.": "9 3 2 3", ":": "2 3.5"}
_CORNERS = {
    "^": (3, -90.0),
    "v": (3, 90.0),
    "<": (3, 180.0),
    ">": (3, 0.0),
    "s": (4, 45.0),
    "D": (4, 0.0),
    "h": (6, 30),
}


def dashes(linestyle: Any) -> str:
    """Return the attribute that draws one of matplotlib's line styles; none for a solid line."""
    pattern = _DASHES.get(linestyle, "") if isinstance(linestyle, str) else "9 3 2 3 2 3"
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def marker(shape: str, x: float, y: float, r: float) -> str:
    """Return one of matplotlib's markers around (x, y) as the commands of a path."""
    if shape in _CORNERS:
        corners, turn = _CORNERS[shape]
        return _polygon([(x, y, r * 1.25, turn + 360.0 * k / corners) for k in range(corners)])
    if shape == "*":
        return _polygon([(x, y, r * (1.4 if k % 2 == 0 else 0.6), -90.0 + 36.0 * k) for k in range(10)])
    if shape in "PX":
        turn = 0.0 if shape == "P" else 45.0
        arms = [(a, b) for a in (0.0, 90.0, 180.0, 270.0) for b in (-20.0, 20.0, 45.0)]
        return _polygon([(x, y, r * (0.6 if b == 45.0 else 1.25), turn + a + b) for a, b in arms])
    return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers within [low, high], evenly spaced, at most one more than `most`."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10, 20) if span / (unit * k) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _polygon(points: list[tuple[float, float, float, float]]) -> str:
    turned = [(x + r * math.cos(math.radians(a)), y + r * math.sin(math.radians(a))) for x, y, r, a in points]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in turned) + "Z"
