"""The curves of Figures 3 and 4 in words and as tables, and what each method cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from epsball.report.paper_text import method_name
from epsball.report.text import listed

__all__ = ["clean_output", "cost_rows", "curve_table", "described"]

Record = Mapping[str, Any]


def described(figure: str, panel: Record) -> str:
    """Say in a sentence or two what one panel shows here."""
    title = f"({panel['key']}) {panel['title']}" if "title" in panel else f"({panel['key']})"
    if figure == "figure1":
        return (
            f"({panel['key']}) {len(panel['examples'])} images that {panel['network']} classifies correctly and, after "
            f"one step of Algorithm 1 at ε = {panel['eps']:g}, misclassifies."
        )
    if figure == "figure2":
        shown = panel["shown"]
        means = {label: np.mean(pictures["psnr_out"]) for label, pictures in shown.items() if pictures["psnr_out"]}
        clean = f"{means['original']:.1f} dB without a perturbation, " if "original" in means else ""
        against = "" if clean else ", against the output without a perturbation,"
        return method_name(
            f"{title}, ε = {panel['eps']:g}: mean output PSNR{against} {clean}{means['noisy']:.1f} dB under "
            f"{panel['noise']}, {means['adversarial']:.1f} dB under {panel['attack']}."
        )
    return _fooling(title, panel) if figure == "figure3" else _psnr(title, panel)


def _fooling(title: str, panel: Record) -> str:
    place = len(panel["eps"]) // 2 - 1
    at = {name: curve["percent"][place] for name, curve in panel["curves"].items()}
    order = sorted(at, key=lambda name: -at[name])
    return (
        f"{title}, {panel['range']}: half-way along the axis, at ε = {panel['eps'][place]:g}, from the top: "
        + ", ".join(f"{method_name(name)} {at[name]:.1f}\u00a0%" for name in order)
        + "."
    )


def _psnr(title: str, panel: Record) -> str:
    order = np.argsort(panel["at"])
    place = int(order[len(order) // 2])
    value = panel["at"][place]
    where = f"at an input PSNR of {value:g} dB" if panel["axis"] == "psnr" else f"at ε = {value:g}"
    at = {name: curve["mean"][place] for name, curve in panel["curves"].items()}
    names = sorted(at, key=lambda name: at[name])
    means = [value for curve in panel["curves"].values() for value in curve["mean"]]
    return method_name(
        f"{title}: {clean_output(panel, 1)}; {where}, from the lowest: "
        + ", ".join(f"{name} {at[name]:.1f}\u00a0dB" for name in names)
        + f". All curves lie between {min(means):.1f} and {max(means):.1f} dB."
    )


def clean_output(panel: Record, digits: int) -> str:
    """Say what a network's output is without an attack, or that it is what the others are measured against."""
    if panel["clean"] is None:
        return "against the output without an attack"
    return f"{panel['clean']['mean']:.{digits}f} dB without an attack"


def curve_table(figure: str, panel: Record) -> dict[str, Any]:
    """Return a panel's numbers: heads over the columns; lines of (method, cells of (value, low, high, few))."""
    if figure == "figure3":
        heads = [f"ε = {eps:g}" for eps in panel["eps"]]
        lines = [
            (method_name(name), [(f"{v:.1f}", f"{a:.1f}", f"{b:.1f}", "") for v, a, b in _columns(curve, "percent")])
            for name, curve in panel["curves"].items()
        ]
        title = f"({panel['key']}) {panel['title']}, {panel['range']}"
        caption = f"Fooling ratio in %, n = {panel['count']:,} correctly classified of {panel['total']:,}"
        return {"title": title, "caption": caption, "heads": heads, "lines": lines, "few": None}
    order = [int(i) for i in np.argsort(panel["at"])]
    unit = "{:g} dB" if panel["axis"] == "psnr" else "ε = {:g}"
    lines = []
    for name, curve in panel["curves"].items():
        cells = list(_columns(curve, "mean"))
        few = [f"{value:.2f}" for value in curve["few"]]
        row = [(f"{cells[i][0]:.2f}", f"{cells[i][1]:.2f}", f"{cells[i][2]:.2f}", few[i]) for i in order]
        lines.append((method_name(name) + (" *" if curve["ours"] else ""), row))
    return {
        "title": f"({panel['key']}) {panel['title']}",
        "caption": f"Mean output PSNR in dB, n = {panel['count']:,}; {clean_output(panel, 2)}",
        "heads": [unit.format(panel["at"][i]) for i in order],
        "lines": lines,
        "few": panel["few"] if panel["few"] < panel["count"] else None,
    }


def _columns(curve: Record, key: str) -> list[tuple[float, float, float]]:
    return list(zip(curve[key], curve["low"], curve["high"], strict=True))


def cost_rows(record: Record) -> list[dict[str, Any]]:
    """List what each method cost: passes a sample and point, and seconds for all samples and points, by panel."""
    found = []
    for number in (3, 4):
        panels = [p for p in record[f"figure{number}"]["panels"] if p.get("range", "unbounded") == "unbounded"]
        names = list(dict.fromkeys(name for panel in panels for name in panel["curves"]))
        # Panels of one set of methods stand in one table.
        groups: dict[tuple[str, ...], list[Record]] = {}
        for panel in panels:
            groups.setdefault(tuple(panel["curves"]) if number == 4 else tuple(names), []).append(panel)
        for methods, mine in groups.items():
            lines = [
                (
                    method_name(name),
                    [_cost(panel["curves"][name]) if name in panel["curves"] else None for panel in mine],
                )
                for name in methods
            ]
            heads = [f"({panel['key']}) {panel['title']}" for panel in mine]
            found.append({"title": f"Figure {number}: {listed(heads, 9)}", "heads": heads, "lines": lines})
    return found


def _cost(curve: Record) -> tuple[str, str]:
    passes = curve.get("passes", 0.0) + curve.get("jvps", 0.0)
    if "forwards" in curve:
        passes = float(np.mean(curve["forwards"]) + np.mean(curve["backwards"]))
    seconds = curve["seconds"]
    return f"{passes:.1f}", f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"
