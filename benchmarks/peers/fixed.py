"""Part `fixed`: fooling ratio against eps at T gradient steps; part `minimal`: norms at a number of propagations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.peers import networks
from benchmarks.peers.adapters import FIXED, MINIMAL, Attack
from benchmarks.peers.cells import Cell, run

STEPS = (1, 5, 10, 40, 100)
PROPAGATIONS = (30, 200, 2000)
ORDERS = (1.0, 2.0, math.inf)


def fixed(
    attacks: Sequence[Attack],
    names: Sequence[str],
    count: int,
    root: Path,
    steps: Sequence[int] = STEPS,
    orders: Sequence[float] = ORDERS,
    batch_size: int = 250,
) -> None:
    """Attack each network within every budget: all libraries at one cell, then the next cell."""
    able = [attack for attack in attacks if attack.kind == FIXED and not attack.exact_only]
    for name, p in product(names, orders):
        _cells("fixed", able, name, count, root, p, networks.SUBJECTS[name].eps[p], steps, batch_size)


def minimal(
    attacks: Sequence[Attack],
    names: Sequence[str],
    count: int,
    root: Path,
    budgets: Sequence[int] = PROPAGATIONS,
    orders: Sequence[float] = ORDERS,
    batch_size: int = 250,
) -> None:
    """Look for the nearest adversarial input on each network at every number of propagations."""
    able = [attack for attack in attacks if attack.kind == MINIMAL]
    for name, p in product(names, orders):
        _cells("minimal", able, name, count, root, p, [None], budgets, batch_size)


def _cells(
    part: str,
    attacks: Sequence[Attack],
    name: str,
    count: int,
    root: Path,
    p: float,
    radii: Sequence[float | None],
    budgets: Sequence[int],
    batch_size: int,
) -> None:
    load = partial(networks.load, name)
    data = networks.samples(name, load(), count)
    for eps, budget, attack in product(radii, budgets, attacks):
        if attack.takes(p, budget):
            cell = Cell(part, name, attack.library, attack.name, p, eps, budget, len(data[0]))
            report(cell, run(cell, attack, load, data, root, batch_size, networks.SUBJECTS[name].classes))


def report(cell: Cell, ran: bool) -> None:
    if ran:
        eps = "" if cell.eps is None else f" eps={cell.eps:.4g}"
        print(f"{cell.network} p={cell.p:g}{eps} budget={cell.budget} {cell.library}/{cell.attack}", flush=True)
