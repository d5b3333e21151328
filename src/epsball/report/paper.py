"""The paper's tables and figures beside ours, from the records that `epsball paper` makes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epsball.report.figures import Curve, FoolingCurves
from epsball.report.paper_table3 import deviations
from epsball.report.paper_text import method_name
from epsball.report.style import INK, MUTED, new_figure, save, show_image
from epsball.report.tables import to_markdown
from epsball.report.text import listed

__all__ = ["draw_figure3", "figure3_markdown", "panel_grid", "save_figure1", "save_figure3", "table3_markdown"]

Record = Mapping[str, Any]


def table3_markdown(record: Record) -> str:
    """Write Table 3 with the paper's value, ours with its 95 % interval, and the deviation."""
    rows = [
        {
            "Network": f"{row['title']}, {row['range']}",
            "Test error in %": _cell(row["error"], 2),
            "ρ̂₁": _cell(row["rho1"], 4),
            "ρ̂₂": _cell(row["rho2"], 4),
            "ε₉₉": _cell(row["eps99"], 4),
            "images": f"{row['count']:,}",
            "DeepFool fails on": str(row["deepfool_fails"]),
            "DeepFool's passes an image": f"{row['passes']:.1f}",
        }
        for row in record["rows"]
    ]
    lines = [
        "Table 3 (p = ∞). Each cell: the paper's value → ours (95 % interval), deviation.",
        "",
        to_markdown(rows).rstrip(),
        "",
        "ρ̂₁ and ρ̂₂ are means over the images classified correctly; ρ̂₂, the first-order distance, knows no range.",
        *_explained(record),
        *_left_out(record),
        _versions(record),
    ]
    return "\n".join(lines)


def figure3_markdown(record: Record) -> str:
    """Write the curves of Figure 3 as tables, what each method costs, and the verdict on each claim."""
    lines = ["Fooling ratio in % of the correctly classified test images (p = ∞)."]
    for panel in record["panels"]:
        lines += ["", f"## {panel['title']}, {panel['range']}: n = {panel['count']:,} of {panel['total']:,}", ""]
        rows = []
        for name, curve in panel["curves"].items():
            row = {"method": name}
            row |= {f"ε = {e:g}": f"{p:.1f}" for e, p in zip(panel["eps"], curve["percent"], strict=True)}
            forwards, backwards = (float(np.mean(curve[key])) for key in ("forwards", "backwards"))
            row |= {
                "forwards": f"{forwards:.1f}",
                "backwards": f"{backwards:.1f}",
                "seconds": f"{curve['seconds']:.0f}",
            }
            rows.append(row)
        lines += [to_markdown(rows).rstrip(), ""]
        claims = [{"claim": c["text"], "source": c["source"], "here": c["sentence"]} for c in panel["claims"]]
        lines.append(to_markdown(claims).rstrip())
    bands = [band for panel in record["panels"] for curve in panel["curves"].values() for band in _bands(curve)]
    widest = max(((high - low) / 2 for low, high in bands), default=0.0)
    lines += [
        "",
        *_wrapped(
            f"Ratios are within ±{widest:.1f} points (95 % Wilson intervals); differences of methods are judged on the "
            "same images, by paired 95 % intervals at each ε. Passes are means over the grid, for each sample and ε; "
            "seconds are for the whole grid, with what does not depend on ε computed once."
        ),
        *_left_out(record),
        _versions(record),
    ]
    return "\n".join(lines)


def save_figure3(record: Record, directory: Path) -> list[Path]:
    """Draw Figure 3, one file for each range: its networks two by two, the methods named once below them."""
    paths = []
    for number, label in enumerate(dict.fromkeys(panel["range"] for panel in record["panels"])):
        figure = draw_figure3([panel for panel in record["panels"] if panel["range"] == label])
        paths += save(figure, directory, f"figure3-{('unbounded', 'bounded')[number]}")
    return paths


def draw_figure3(panels: Sequence[Record]) -> Any:
    """Return a matplotlib figure of these panels: a method has one line in all of them, also where one has fewer."""
    names = tuple(dict.fromkeys(name for panel in panels for name in panel["curves"]))
    figure, axes = panel_grid(len(panels), 5.6, 4.1)
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        eps = np.array([0.0, *panel["eps"]])
        curves = tuple(_curve(name, eps, values, panel["count"]) for name, values in panel["curves"].items())
        title = f"({panel['key']}) {panel['title']}, {panel['range']}, n = {panel['count']:,}"
        FoolingCurves(curves, title, names).plot(ax)
        for band in ax.collections:
            band.set_alpha(0.04)  # ten bands on top of each other must not hide the curves
        legend = ax.get_legend()
        handles |= dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
        legend.remove()
    if panels:
        shown = [name for name in names if name in handles]
        style: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 10, "handlelength": 3.4}
        style |= {"loc": "outside lower center", "ncols": 5 if len(panels) > 1 else 3}
        figure.legend([handles[name] for name in shown], [method_name(name) for name in shown], **style)
    return figure


def panel_grid(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure with so many Axes, two in a row, each so many inches wide and high."""
    columns = min(2, max(1, count))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(width * columns, height * rows + 0.6)
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def save_figure1(record: Record, directory: Path) -> list[Path]:
    """Draw Figure 1, a file a panel: original and perturbed images, each under the class that the network sees.

    Where no image was misclassified there is nothing to draw.
    """
    paths: list[Path] = []
    for panel in record["panels"]:
        examples: Sequence[Record] = panel["examples"]
        if not examples:
            continue
        columns = math.ceil(len(examples) / 2)
        figure = new_figure(max(2.5 * columns, 8.0), 3.6)  # the title needs 8 inches
        figure.suptitle(
            f"({panel['key']}) Algorithm 1 on {panel['network']}, ε = {panel['eps']:g} (ℓ∞, unbounded): "
            "original → perturbed",
            fontsize=12,
            color=INK,
        )
        grid = figure.subplots(2, columns * 2, squeeze=False)
        for ax in grid.ravel():
            ax.set_axis_off()
        for place, example in enumerate(examples):
            pair = grid[place // columns, 2 * (place % columns) : 2 * (place % columns) + 2]
            texts = (example["name"], f"→ {example['predicted']}")
            for ax, key, text, colour in zip(pair, ("x", "perturbed"), texts, (MUTED, INK), strict=True):
                show_image(ax, np.asarray(example[key]))
                ax.set_title(text, fontsize=11, color=colour)
        paths += save(figure, directory, f"figure1{panel['key']}")
    return paths


def _curve(name: str, eps: Any, values: Record, count: int) -> Curve:
    """Return a curve that starts at ε = 0, where nothing is fooled by definition."""
    percent, low, high = (np.array([0.0, *values[key]]) for key in ("percent", "low", "high"))
    return Curve(name, math.inf, eps, percent, low, high, count)


def _cell(value: Record, digits: int) -> str:
    ours, low, high = (_number(value[key], digits) for key in ("ours", "low", "high"))
    if value["ours"] is None:
        return f"{value['paper']:g} → {ours}"
    deviation = f"{100.0 * (value['ours'] / value['paper'] - 1.0):+.0f} %"
    return f"{value['paper']:g} → {ours}{_interval(low, high)}, {deviation}"


def _interval(low: str, high: str) -> str:
    """Write an interval with the ends that are known: one image has none, few bound a quantile on one side only."""
    if "∞" not in (low, high):
        return f" ({low} to {high})"
    if low == high:
        return ""
    return f" (from {low})" if high == "∞" else f" (up to {high})"


def _explained(record: Record) -> list[str]:
    """List the deviations above 30 % with what was tested to explain them."""
    lines = [
        textwrap.fill(
            f"- {off.name} of {off.title} ({off.percent:+.0f} %): {off.explanation or 'no explanation was tested.'}",
            118,
            subsequent_indent="  ",
        )
        for off in deviations(record)
        if off.is_large and off.percent is not None and not off.covered
    ]
    return ["", "Deviations above 30 %:", "", *lines, ""] if lines else []


def _number(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"


def _bands(curve: Record) -> list[tuple[float, float]]:
    return list(zip(curve["low"], curve["high"], strict=True))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118)


def _left_out(record: Record) -> list[str]:
    reasons = {"left_out": "for want of weights", "none_correct": "since none of the images is classified correctly"}
    return [f"Left out, {why}: {listed(record[key])}." for key, why in reasons.items() if record.get(key)]


def _versions(record: Record) -> str:
    versions = record["versions"]
    command = record["made_by"] + (f" --limit {record['limit']}" if record.get("limit") else "")
    made = f"epsball {versions['epsball']}, PyTorch {versions['torch']}, {versions['threads']} threads"
    return f"Made by `{command} --out DIR` with {made}."
