"""Figures of the page: fooling ratio over passes, and robustness curves with their envelope.

They draw our attacks and the strongest of each peer; the tables have them all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.peers.adapters.row import name_of
from benchmarks.peers.cells import by_cell, read
from benchmarks.peers.summary import OURS, Row

from epsball.report import style


def ratios(rows: Sequence[Row], network: str, p: float, eps: float, folder: Path) -> str | None:
    """Draw the fooling ratio of each attack over the passes that it took, with its band; return the file's name."""
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if (row["network"], row["p"], row["eps"]) == (network, p, eps) and not row["error"]:
            curves[row["library"], row["attack"]].append(row)
    if not curves:
        return None
    strength = {key: max(curve, key=lambda row: row["budget"])["ratio"] for key, curve in curves.items()}
    curves = {key: curves[key] for key in _strongest(strength)}
    figure = style.new_figure(7.2, 4.2)
    ax = figure.add_subplot()
    for (library, attack), look in zip(curves, style.line_styles([" ".join(key) for key in curves]), strict=True):
        curve = sorted(curves[library, attack], key=lambda row: row["budget"])
        passes = [row["passes"] for row in curve]
        mine = {"linewidth": 2.4, "zorder": 3} if library == OURS else {"linewidth": 1.1}
        ax.plot(passes, [row["ratio"] for row in curve], label=f"{library} {attack}", markersize=4, **(look | mine))
        ax.fill_between(
            passes, [row["low"] for row in curve], [row["high"] for row in curve], color=look["color"], alpha=0.08
        )
    ax.set_xscale("log")
    ax.set_xlabel("passes a sample, (forwards + backwards) / 2")
    ax.set_ylabel("fooling ratio")
    ax.set_title(f"{network}, p = {name_of(p)}, eps = {eps:.4g}")
    return _finish(figure, ax, folder, f"peers-fixed-{network}-p{name_of(p)}")


def robustness(root: Path, network: str, p: float, budget: int, folder: Path) -> str | None:
    """Draw the share of samples that still stands over the norm, at one number of propagations."""
    curves: dict[tuple[str, str], np.ndarray] = {}
    everything: list[np.ndarray] = []
    for head, columns in by_cell(read(root, "minimal")):
        if (head["network"], head["p"]) != (network, p) or head["error"]:
            continue
        distance = np.where(columns["success"].astype(bool), columns["norm"].astype(float), math.inf)
        everything.append(distance)
        if head["budget"] == budget:
            curves[head["library"], head["attack"]] = distance
    count = {len(distance) for distance in everything}
    if not curves or len(count) != 1:
        return None
    best = np.min(everything, axis=0)
    limit = 1.5 * float(np.max(best[np.isfinite(best)], initial=0.0)) or 1.0
    figure = style.new_figure(7.2, 4.2)
    ax = figure.add_subplot()
    kept = _strongest({key: -float(np.minimum(distance, limit).mean()) for key, distance in curves.items()})
    for key, look in zip(kept, style.line_styles([" ".join(key) for key in kept]), strict=True):
        mine = {"linewidth": 2.4, "zorder": 3} if key[0] == OURS else {"linewidth": 1.1}
        _steps(ax, curves[key], limit, label=" ".join(key), **({**look, "marker": None} | mine))
    _steps(ax, best, limit, label="envelope, all budgets", color="black", linestyle=":", zorder=4)
    ax.set_xlabel(f"norm of the perturbation, p = {name_of(p)}")
    ax.set_ylabel("share that stands")
    ax.set_title(f"{network}, {budget:,} propagations")
    return _finish(figure, ax, folder, f"peers-minimal-{network}-p{name_of(p)}-{budget}")


def _strongest(strength: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Return ours and the strongest attack of each other library, (library, attack), the strongest first."""
    ranked = sorted(strength, key=lambda key: (-strength[key], key))
    first = {library: (library, attack) for library, attack in reversed(ranked)}
    return [key for key in ranked if key[0] == OURS or first[key[0]] == key]


def _steps(ax, distance: np.ndarray, limit: float, **look) -> None:
    found = np.sort(distance[distance < limit])
    stand = 1 - np.arange(len(found) + 1) / len(distance)
    ax.step([0.0, *found, limit], [*stand, stand[-1]], where="post", **look)


def _finish(figure, ax, folder: Path, name: str) -> str:
    style.tidy(ax)
    ax.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.01, 0.5))
    style.write_atomic(folder / f"{name}.png", style.Drawing(figure, name).png)
    return f"{name}.png"
