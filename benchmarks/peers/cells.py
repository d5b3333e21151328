"""One file for each cell of a table, kept when it is finished, so that hours of runs can be cut anywhere.

A cell is one attack on one network at one norm, budget and eps. It has a row for each sample, and the passes and the
time of the whole cell in each; a cell whose attack raised an error has one row with the error.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from benchmarks.peers import environment
from benchmarks.peers.adapters import Attack, Job
from benchmarks.peers.adapters.row import name_of
from benchmarks.peers.counting import Counting
from benchmarks.peers.judging import judge
from torch import Tensor, nn


@dataclass(frozen=True)
class Cell:
    """Where a result lies. eps: None of a minimal attack."""

    part: str
    network: str
    library: str
    attack: str
    p: float
    eps: float | None
    budget: int
    samples: int

    def path(self, root: Path) -> Path:
        eps = "none" if self.eps is None else f"{self.eps:.6g}"
        name = f"{self.library}_{self.attack}_p{name_of(self.p)}_eps{eps}_b{self.budget}_n{self.samples}.parquet"
        return root / self.part / self.network / re.sub(r"[^\w.-]", "-", name)


def attacked(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, job: Job, batch_size: int
) -> tuple[Tensor, int, int, float]:
    """Attack in batches: the perturbed inputs, forwards and backwards of all samples, seconds."""
    counting = Counting(model)
    parts, seconds = [], 0.0
    for place, (xs, ys) in enumerate(zip(x.split(batch_size), y.split(batch_size), strict=True)):
        seed = job.seed + place
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - ART draws from the global generator
        started = time.perf_counter()
        parts.append(attack.call(replace(job, model=counting, x=xs.clone(), y=ys.clone(), seed=seed)).detach())
        seconds += time.perf_counter() - started
    return torch.cat(parts), counting.forwards, counting.backwards, seconds


def run(
    cell: Cell,
    attack: Attack,
    load: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor, Tensor],
    root: Path,
    batch_size: int = 250,
    classes: int = 10,
) -> bool:
    """Run a cell unless its file is there; whether it ran."""
    path = cell.path(root)
    if path.is_file():
        return False
    x, y, ids = data
    constant: dict[str, Any] = {
        "part": cell.part,
        "network": cell.network,
        "library": cell.library,
        "attack": cell.attack,
        "p": cell.p,
        "eps": cell.eps if cell.eps is not None else float("nan"),
        "budget": cell.budget,
        "samples": len(x),
    }
    try:
        # A fresh network for each attack and another for the verdict: some libraries leave theirs changed.
        job = Job(load(), x, y, cell.p, cell.eps, cell.budget, 0, classes)
        perturbed, forwards, backwards, seconds = attacked(attack, job.model, x, y, job, batch_size)
        verdict = judge(load(), x, y, perturbed, cell.p, cell.eps)
    except Exception as error:  # whatever a library raises is its result
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        write(path, {**constant, "error": text[:500]}, {"sample_id": [-1]})
        return True
    constant |= {"forwards": forwards / len(x), "backwards": backwards / len(x), "seconds": seconds, "error": ""}
    rows = {
        "sample_id": ids.tolist(),
        "success": verdict.success.tolist(),
        "wrong": verdict.wrong.tolist(),
        "valid": verdict.valid.tolist(),
        "norm": verdict.norm.tolist(),
    }
    write(path, constant, rows)
    return True


def write(path: Path, constant: dict[str, Any], rows: dict[str, list[Any]]) -> None:
    """Write a table, the constants repeated in each row, and what it was made with, on and when."""
    count = len(next(iter(rows.values())))
    constant = {**constant, "code": environment.code(), **environment.machine()}
    save(pa.table({**{name: [value] * count for name, value in constant.items()}, **rows}), path)


def save(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read(root: Path, part: str) -> pa.Table | None:
    """Return all finished cells of a part as one table, None where there are none."""
    tables = [pq.read_table(path) for path in sorted((root / part).rglob("*.parquet"))]
    return pa.concat_tables(tables, promote_options="permissive") if tables else None


def forget(root: Path, part: str, prefix: str) -> int:
    """Delete the cells of a library, or of LIBRARY/ATTACK, so that they run again; how many."""
    library, _, attack = prefix.partition("/")
    paths = list((root / part).rglob(f"{re.sub(r'[^a-zA-Z0-9_.-]', '-', library)}_{attack or '*'}_p*.parquet"))
    for path in paths:
        path.unlink()
    return len(paths)


def by_cell(table: pa.Table | None) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Take a table apart into its cells: what is constant in each, and its columns."""
    if table is None:
        return
    keys = ["network", "library", "attack", "p", "eps", "budget", "samples"]
    keys = [key for key in keys if key in table.column_names]
    frame = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in table.column_names}
    labels: dict[tuple[str, ...], list[int]] = {}
    for row in range(table.num_rows):
        labels.setdefault(tuple(str(frame[key][row]) for key in keys), []).append(row)
    for rows in labels.values():
        head = {name: frame[name][rows[0]] for name in table.column_names}
        yield head, {name: frame[name][rows] for name in table.column_names}
