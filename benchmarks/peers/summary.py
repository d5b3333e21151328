"""From cells to the numbers of the tables; nothing here knows a library or a model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.peers.cells import by_cell, read
from benchmarks.peers.environment import PARTS

from epsball.metrics import optimality
from epsball.metrics.intervals import paired_difference, wilson_interval

OURS = "epsball"
Row = dict[str, Any]


def fixed(root: Path) -> list[Row]:
    """Return a row for each finished cell: ratio, its 95 % interval, passes; and the errors."""
    rows = []
    for head, columns in by_cell(read(root, "fixed")):
        row = {key: head[key] for key in ("network", "library", "attack", "p", "eps", "budget", "error")}
        if not head["error"]:
            fooled = columns["success"].astype(bool)
            low, high = wilson_interval(int(fooled.sum()), len(fooled))
            row |= {"ratio": float(fooled.mean()), "low": low, "high": high, "fooled": fooled.tolist()}
            row |= {"passes": (head["forwards"] + head["backwards"]) / 2, "backwards": head["backwards"]}
            row |= {"samples": len(fooled), "seconds": head["seconds"]}
        rows.append(row)
    return rows


def duels(rows: Sequence[Row], attack: str) -> list[Row]:
    """Set our attack against the best peer of each cell: the difference of their ratios, paired, and the verdict.

    won, lost: the 95 % interval of the difference leaves out 0. saturated: nobody is below 99.5 %.
    """
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row["error"]:
            cells[row["network"], row["p"], row["eps"], row["budget"]].append(row)
    found = []
    for (network, p, eps, budget), group in cells.items():
        mine = [row for row in group if row["library"] == OURS and row["attack"] == attack]
        peers = [row for row in group if row["library"] != OURS]
        if not mine or not peers:
            continue
        best = max(peers, key=lambda row: row["ratio"])
        mean, low, high = paired_difference(mine[0]["fooled"], best["fooled"])
        verdict = (
            "won" if low > 0 else "lost" if high < 0 else "ahead" if mean > 0 else "behind" if mean < 0 else "even"
        )
        if min(mine[0]["ratio"], best["ratio"]) >= 0.995:
            verdict = "saturated"
        found.append(
            {"network": network, "p": p, "eps": eps, "budget": budget, "ours": mine[0]["ratio"]}
            | {"peer": f"{best['library']} {best['attack']}", "theirs": best["ratio"]}
            | {"difference": mean, "low": low, "high": high, "verdict": verdict}
        )
    return found


def passes_to(rows: Iterable[Row], share: float = 0.9) -> dict[tuple[Any, ...], Row]:
    """Return for (network, p, eps, library, attack) the least measured passes that reach a share of a final ratio.

    own: of the attack's own ratio at the most steps; common: of the best ratio of any attack there. inf: never.
    """
    curves: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row["error"]:
            curves[row["network"], row["p"], row["eps"], row["library"], row["attack"]].append(row)
    last: dict[tuple[Any, ...], float] = defaultdict(float)
    for (network, p, eps, *_), curve in curves.items():
        final = max(curve, key=lambda row: row["budget"])["ratio"]
        last[network, p, eps] = max(last[network, p, eps], final)
    found = {}
    for key, curve in curves.items():
        final = max(curve, key=lambda row: row["budget"])["ratio"]
        found[key] = {
            name: min((r["passes"] for r in curve if bar > 0 and r["ratio"] >= share * bar), default=math.inf)
            for name, bar in (("own", final), ("common", last[key[:3]]))
        }
    return found


def minimal(root: Path) -> list[Row]:
    """Return a row for each finished cell: success, mean and median norm, optimality, propagations; and the errors.

    The envelope of (network, p) is that of all attacks at all budgets, so that a small budget is held to the best
    that is known. The mean is over the samples where the attack succeeded; the median counts a failure as infinite.
    """
    rows, groups = [], defaultdict(list)
    for head, columns in by_cell(read(root, "minimal")):
        row = {key: head[key] for key in ("network", "library", "attack", "p", "budget", "error")}
        rows.append(row)
        if head["error"]:
            continue
        won = columns["success"].astype(bool)
        distance = np.where(won, columns["norm"].astype(float), math.inf)
        row |= {"found": float(won.mean()), "median": float(np.median(distance)), "samples": len(won)}
        row |= {"mean": float(distance[won].mean()) if won.any() else math.nan, "seconds": head["seconds"]}
        row |= {"propagations": head["forwards"] + head["backwards"]}
        groups[head["network"], head["p"], len(won)].append((row, distance))
    for group in groups.values():
        values = optimality(torch.from_numpy(np.stack([distance for _, distance in group])))
        for (row, _), value in zip(group, values.tolist(), strict=True):
            row["optimality"] = value
    return rows


def nearest_duels(rows: Sequence[Row], attack: str) -> list[Row]:
    """Set our minimal attack against the peers: its optimality and theirs, its mean and their least at most passes.

    The least mean is of the peers that found something for every sample, at the largest budget that was run.
    """
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row["error"]:
            cells[row["network"], row["p"], row["budget"]].append(row)
    found = []
    for (network, p, budget), group in sorted(cells.items()):
        mine = [row for row in group if row["library"] == OURS and row["attack"] == attack]
        peers = [row for row in group if row["library"] != OURS]
        if not mine or not peers:
            continue
        best = max(peers, key=lambda row: row["optimality"])
        most = max(key[2] for key in cells if key[:2] == (network, p))
        whole = [r for r in cells[network, p, most] if r["library"] != OURS and r["found"] == 1.0]
        least = min(whole, key=lambda row: row["mean"], default=None)
        found.append(
            {"network": network, "p": p, "budget": budget, "ours": mine[0], "peer": best, "most": most, "least": least}
        )
    return found


def exact(root: Path) -> list[Row]:
    """Return a row for each attack at the budget that serves it best: mean and worst objective over optimum."""
    best: dict[tuple[Any, ...], Row] = {}
    for head, columns in by_cell(read(root, "exact")):
        ratio = columns["ratio"].astype(float)
        row = {key: head[key] for key in ("network", "library", "attack", "p", "budget", "error")}
        row |= {"mean": float(ratio.mean()), "worst": float(ratio.min()), "counted": float((ratio > 0).mean())}
        key = (row["network"], row["library"], row["attack"], row["p"])
        # A budget that ended in an error says nothing where another did not.
        known = best.get(key)
        if known is None or (not row["error"] and (known["error"] or row["mean"] > known["mean"])):
            best[key] = row
    return list(best.values())


def made(root: Path) -> list[Row]:
    """Return what the cells were measured with, on and when: a row for each that differs, with its parts."""
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    keys = ("date", "code", "processor", "threads", "Python")
    for part in PARTS:
        table = read(root, part)
        if table is not None:
            columns = [table[key].to_pylist() if key in table.column_names else [None] * len(table) for key in keys]
            for row in sorted(
                {tuple("unknown" if v is None else v for v in row) for row in zip(*columns, strict=True)}
            ):
                parts[row].append(part)
    return [dict(zip(keys, row, strict=True)) | {"parts": ", ".join(parts[row])} for row in sorted(parts)]


def plain(root: Path, part: str) -> list[Row]:
    """Return the rows of a part whose table is its own summary."""
    table = read(root, part)
    return table.to_pylist() if table is not None else []


def ensembles(root: Path) -> list[Row]:
    """Return a row for each ensemble, stage and recipe: the accuracy left, and the passes a sample took until then."""
    rows = []
    for head, columns in by_cell(read(root, "autoattack")):
        row = {key: head[key] for key in ("network", "library", "attack", "p", "eps", "budget", "error")}
        if not head["error"]:
            fooled = columns["success"].astype(bool)
            row |= {"standing": int((~fooled).sum()), "samples": len(fooled)}
            row |= {"forwards": head["forwards"], "backwards": head["backwards"], "seconds": head["seconds"]}
        rows.append(row)
    return rows
