"""docs/peers.md and its figures, from whatever cells are finished."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import adapters, environment, figures, summary
from benchmarks.peers.adapters.row import name_of
from benchmarks.peers.summary import Row
from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
# Offered by a library and left out, and why.
LEFT_OUT = (
    (
        "ART",
        "CarliniL2Method, CarliniLInfMethod",
        "loop over samples in NumPy; at 200 propagations minutes for 16 images",
    ),
    ("Foolbox, ART", "BrendelBethge", "needs a starting point of the other class for each sample, and numba"),
    ("adv-lib", "perc_al, str_attack, vfga, sigma_zero", "other distances than the three norms"),
    ("SecML-Torch", "its Foolbox and adv-lib back ends", "the same code as those libraries, which are measured"),
)


def make(root: Path, docs: Path = DOCS) -> None:
    """Write the page and its figures from the cells under `root`."""
    fixed = sorted(summary.fixed(root), key=lambda row: (row["network"], row["p"], row["eps"], row["budget"]))
    minimal = sorted(summary.minimal(root), key=lambda row: (row["network"], row["p"], row["budget"]))
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    drawn = [
        figures.ratios(fixed, network, p, _middle(fixed, network, p), docs / "figures")
        for network, p in _keys(fixed, "network", "p")
    ]
    drawn += [
        figures.robustness(root, network, p, budget, docs / "figures")
        for network, p in _keys(minimal, "network", "p")
        for budget in sorted({row["budget"] for row in minimal if (row["network"], row["p"]) == (network, p)})[-1:]
    ]
    rows = adapters.attacks()
    loader = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = loader.get_template("page.md.jinja").render(
        versions=environment.versions(),
        made=summary.made(root),
        settings=[row for row in rows if not row.exact_only],
        failures=adapters.failures,
        left_out=LEFT_OUT,
        fixed_tables=_fixed_tables(fixed),
        duels=_duels(fixed),
        nearest=summary.nearest_duels(minimal, "nearest"),
        minimal_tables=_minimal_tables(minimal),
        exact=_exact(summary.exact(root)),
        overhead=_overhead(summary.plain(root, "overhead")),
        silent=_silent(summary.plain(root, "silent")),
        ensembles=sorted(
            summary.ensembles(root),
            key=lambda row: (row["network"], row["p"], row["library"], row["attack"], row["budget"]),
        ),
        errors=_errors(fixed + minimal + summary.exact(root) + summary.plain(root, "overhead")),
        samples=_counts(fixed, minimal),
        figures=[name for name in drawn if name],
        name_of=name_of,
        math=math,
        json=json,
    )
    (docs / "peers.md").write_text(text.rstrip() + "\n")
    print(f"wrote {docs / 'peers.md'} and {len([name for name in drawn if name])} figures")


def _keys(rows: Sequence[Row], *names: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _middle(rows: Sequence[Row], network: str, p: float) -> float:
    values = sorted({row["eps"] for row in rows if (row["network"], row["p"]) == (network, p)})
    return values[len(values) // 2]


def _fixed_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table for each network and norm, at the middle eps: attacks by steps, and the passes to 90 %."""
    reached, tables = summary.passes_to(rows), []
    for network, p in _keys(rows, "network", "p"):
        eps = _middle(rows, network, p)
        here = [r for r in rows if (r["network"], r["p"], r["eps"]) == (network, p, eps) and not r["error"]]
        steps = sorted({row["budget"] for row in here})
        lines: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        for row in here:
            lines[row["library"], row["attack"]][row["budget"]] = row["ratio"]
        ranked = sorted(lines.items(), key=lambda line: -line[1].get(steps[-1], 0.0))
        body = [
            (*key, [f"{ratio[t]:.3f}" if t in ratio else "–" for t in steps], reached[network, p, eps, *key])
            for key, ratio in ranked
        ]
        tables.append({"network": network, "p": name_of(p), "eps": eps, "steps": steps, "body": body})
    return tables


def _duels(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How our attacks fare against the best peer of each cell, and the cells that are lost or behind."""
    found = []
    for attack in dict.fromkeys(row["attack"] for row in rows if row["library"] == summary.OURS):
        duels = summary.duels(rows, attack)
        count = Counter(duel["verdict"] for duel in duels)
        worse = [duel for duel in duels if duel["verdict"] in ("lost", "behind")]
        found.append({"attack": attack, "cells": len(duels), "count": count, "worse": worse})
    return found


def _minimal_tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    tables = []
    for network, p in _keys(rows, "network", "p"):
        for budget in sorted({r["budget"] for r in rows if (r["network"], r["p"]) == (network, p)}):
            here = [r for r in rows if (r["network"], r["p"], r["budget"]) == (network, p, budget) and not r["error"]]
            here.sort(key=lambda row: -row["optimality"] if not math.isnan(row["optimality"]) else math.inf)
            tables.append({"network": network, "p": name_of(p), "budget": budget, "body": here})
    return tables


def _exact(rows: Sequence[Row]) -> list[dict[str, Any]]:
    tables = []
    for kind in ("affine-fixed", "affine-minimal"):
        here = [row for row in rows if row["network"] == kind and not row["error"]]
        if not here:
            continue
        orders = sorted({row["p"] for row in here})
        lines: dict[tuple[str, str], dict[float, Row]] = defaultdict(dict)
        for row in here:
            lines[row["library"], row["attack"]][row["p"]] = row
        body = [
            (*key, [f"{line[p]['mean']:.3f} ({line[p]['worst']:.2f})" if p in line else "–" for p in orders])
            for key, line in lines.items()
        ]
        tables.append({"kind": kind, "orders": [name_of(p) for p in orders], "body": body})
    return tables


def _overhead(rows: Sequence[Row]) -> list[dict[str, Any]]:
    tables = []
    for network, measure in _keys(rows, "network", "measure"):
        here = [r for r in rows if (r["network"], r["measure"]) == (network, measure) and not math.isnan(r["value"])]
        tables.append({"network": network, "measure": measure, "body": sorted(here, key=lambda row: row["value"])})
    return tables


def _silent(rows: Sequence[Row]) -> list[dict[str, Any]]:
    cases: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        cases[row["case"]].append(row)
    return [{"case": case, "rows": group} for case, group in cases.items()]


def _errors(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    found = {(r["library"], r["attack"], r["error"].replace("|", "/")[:90]) for r in rows if r.get("error")}
    return sorted(found)


def _counts(*parts: Sequence[Row]) -> list[int]:
    return sorted({row["samples"] for part in parts for row in part if "samples" in row})
