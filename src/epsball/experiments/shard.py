"""One shard of a run: all that is done with some of its samples, from what all shards share to files in a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from epsball.engines.local import Array, Chunk, Job, Work, do
from epsball.engines.memory import Batches
from epsball.experiments.archive import Archive
from epsball.experiments.collect import Examples, PerturbedFile
from epsball.experiments.rows import merge, write_rows
from epsball.local_models import Quadratic
from epsball.metrics import first_order_distance
from epsball.objectives import Margin

__all__ = ["ARRAYS", "PERTURBED", "ROWS", "Shared", "Tick", "do_shard"]

ROWS, ARRAYS, PERTURBED = "rows.parquet", "arrays.npz", "perturbed.npz"
DISTANCE = "first-order distance"

Tick = Callable[[str, slice, float], None]  # what was done, on which samples, at how many passes a sample


@dataclass(frozen=True)
class Shared:
    """What all shards of a run share: samples and models, jobs, and how they are cut; it can be sent to a worker.

    size: samples a shard. examples: those to show. perturbed_at: the eps whose perturbed inputs are kept, None for
    none. distance: the norm order of the first-order distances, None for none.
    """

    work: Work
    jobs: tuple[Job, ...]
    size: int
    batch_size: int
    examples: Examples
    perturbed_at: float | None = None
    distance: float | None = None

    @property
    def count(self) -> int:
        """How many shards there are."""
        return math.ceil(len(self.work.x) / self.size)

    def rows(self, number: int) -> slice:
        """Return the samples of a shard."""
        return slice(number * self.size, min((number + 1) * self.size, len(self.work.x)))

    def cost(self) -> float:
        """Estimate the passes of one sample under all jobs."""
        return sum(cost for _, cost in self.costs())

    def costs(self) -> list[tuple[str, float]]:
        """Estimate the passes of one sample under each job."""
        found = [(job.name, _cost(job, self.work)) for job in self.jobs]
        return found if self.distance is None else [*found, (DISTANCE, _DISTANCE_COST)]

    def part(self, number: int) -> Shared:
        """Return what is needed of this for one shard, as its only one, without models and jobs."""
        rows = self.rows(number)
        return replace(self, work=self.work.part(rows), jobs=(), examples=self.examples.part(rows))

    def completed(self, models: Mapping[str, Callable[[Tensor], Any]], jobs: tuple[Job, ...]) -> Shared:
        """Return a part with models and jobs."""
        return replace(self, work=replace(self.work, models=models), jobs=jobs)


def do_shard(
    shared: Shared, number: int, folder: Path, batches: Batches | None = None, tick: Tick | None = None
) -> dict[str, Any]:
    """Do all jobs on the samples of one shard, write the files into `folder`, and return what is to be known of it.

    rows.parquet holds the rows, arrays.npz the examples and first-order distances, perturbed.npz the perturbed inputs.
    The files are a function of what is shared and the number, but for the column `seconds`.
    """
    started, rows, work = time.perf_counter(), shared.rows(number), shared.work
    batches = Batches(shared.batch_size) if batches is None else batches
    tick = _silent if tick is None else tick
    chunks: list[Chunk] = []
    arrays: dict[str, list[Array]] = {}
    with ExitStack() as stack:
        saved = None
        if shared.perturbed_at is not None:
            file = PerturbedFile(folder / PERTURBED, shared.perturbed_at, rows.stop - rows.start)
            saved = stack.enter_context(file)
        for job in shared.jobs:
            for part, outcome in batches.each(job.name, rows, partial(do, job, work=work)):
                chunks += outcome.chunks
                if job.main:
                    for name, array in shared.examples.of(outcome).items():
                        arrays.setdefault(name, []).append(array)
                    if saved is not None:
                        saved.take(outcome)
                tick(job.name, part, _cost(job, work))
    if shared.distance is not None:
        for part, r2 in batches.each(DISTANCE, rows, partial(_distance, shared)):
            arrays.setdefault("r2", []).append(r2.numpy())
            tick(DISTANCE, part, _DISTANCE_COST)
    write_rows(folder / ROWS, merge(chunks))
    with Archive(folder / ARRAYS) as archive:
        archive.write((name, np.concatenate(parts)) for name, parts in arrays.items())
    return {"seconds": time.perf_counter() - started, "reduced": batches.reduced}


def _distance(shared: Shared, rows: slice) -> Tensor:
    work = shared.work
    (own, *_) = work.models.values()
    x, target = work.x[rows].to(work.device), work.target[rows].to(work.device)
    return first_order_distance(own, x, target, p=shared.distance or math.inf).cpu()


_DISTANCE_COST = 6.0


def _cost(job: Job, work: Work) -> float:
    """Estimate the passes of one sample, for the time left alone: gradients x steps x budgets."""
    attack, grid = job.attack, max(1, len(work.eps))
    if not attack.formulation.uses_model:
        return float(grid)
    passes = 6 if attack.objective == Margin("all") else 2
    if isinstance(attack.local_model, Quadratic):
        passes = 80
    if not attack.formulation.budgeted:
        return float(passes * min(attack.schedule.steps, 5))
    others = 0 if attack.schedule.turn_after is not None else attack.schedule.restarts - 1  # in place of the steps left
    steps = attack.schedule.steps + others * attack.schedule.length(1)
    return float((passes * steps + attack.schedule.block_moves) * grid)


def _silent(name: str, rows: slice, cost: float) -> None:
    """Tell nobody."""
