"""Samples that are no images, drawn as lines over their entries: small pictures that stand by themselves."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["sketch"]

WIDTH, HEIGHT, MOST = 240, 120, 400
# At least 3:1 on white and on the page's dark ground: a picture cannot follow the page's switch.
COLOURS = {"original": "#3d84c4", "perturbed": "#3d84c4", "perturbation": "#c9661f", "output": "#2b8f6b"}
QUIET = "#848c95"


def sketch(
    values: NDArray[np.float64], span: Sequence[float], kind: str, behind: NDArray[np.float64] | None = None
) -> str:
    """Return one sample as a line over its entries, as a data: address; behind: what it is drawn in front of.

    span: the range from bottom to top. Long samples are thinned to the extremes of equal pieces; where nothing is
    finite, the picture is empty.
    """
    parts = []
    if kind == "perturbation":
        parts.append(f'<path d="M0 {_up(0.0, span):.1f}H{WIDTH}" stroke="{QUIET}" stroke-width="1"/>')
    if behind is not None:
        parts.append(_line(behind, span, QUIET, ' stroke-dasharray="2 4"'))
    parts.append(_line(values, span, COLOURS[kind]))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'fill="none">{"".join(parts)}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("ascii")).decode("ascii")


def _line(values: NDArray[np.float64], span: Sequence[float], colour: str, more: str = "") -> str:
    flat = values.reshape(-1)
    places = np.arange(flat.size)
    if flat.size > MOST:
        pieces = np.array_split(places, MOST // 2)
        ends = [p[np.argsort(np.nan_to_num(flat[p]))[[0, -1]]] for p in pieces]
        places = np.unique(np.concatenate(ends))
    points, pen = [], "M"
    for place in places.tolist():
        if not np.isfinite(flat[place]):
            pen = "M"  # a gap
            continue
        across = WIDTH * (place + 0.5) / flat.size
        points.append(f"{pen}{across:.1f} {_up(float(flat[place]), span):.1f}")
        pen = "L"
    dots = ""
    if flat.size <= 20:  # of a few entries a line alone shows little, of one nothing
        dots = "".join(f'<circle cx="{p[1:].split()[0]}" cy="{p.split()[1]}" r="3" fill="{colour}"/>' for p in points)
    return f'<path d="{"".join(points)}" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{more}/>{dots}'


def _up(value: float, span: Sequence[float]) -> float:
    low, high = span
    return HEIGHT * (1.0 - (min(max(value, low), high) - low) / (high - low))
