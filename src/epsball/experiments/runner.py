"""Run a configuration: check everything, do the jobs, then write the whole folder or nothing."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from epsball.data.optional import require
from epsball.engines import local
from epsball.engines.local import Chunk, Job, Work
from epsball.experiments.collect import Examples, PerturbedFile
from epsball.experiments.config import RunConfig
from epsball.experiments.grid import distance_grid, spread
from epsball.experiments.manifest import manifest
from epsball.experiments.measures import distances_table, measure
from epsball.experiments.pictures import PictureFolder
from epsball.experiments.plan import Plan, prepare
from epsball.experiments.storage import Archive, RunFolder, results_table, write_json, write_table
from epsball.experiments.work import choose_examples, gather, slices
from epsball.local_models import Quadratic
from epsball.metrics import Robustness, first_order_distance
from epsball.objectives import Margin

__all__ = ["Progress", "RunResult", "run"]


class Progress(Protocol):
    """Called as work is done."""

    def __call__(self, label: str, done: int, total: int, share: float | None = None) -> None:
        """Tell what is being done, the samples done of those in all, and the share of the whole work, if it differs."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the rows as a pyarrow table, the manifest, and what `robustness` measured."""

    directory: Path
    table: Any
    manifest: dict[str, Any]
    robustness: Robustness | None


def run(
    config: RunConfig, out: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
) -> RunResult:
    """Run the configuration and write results.parquet, manifest.json, examples.npz, figures and report.html to `out`.

    "attack" also writes perturbed.npz, and PNG files where asked for, "robustness" distances.parquet. The folder is
    filled when all is there, or stays as it was. Raises InputError for whatever does not fit, before any work, and for
    a folder with other results unless `overwrite`; a demo replaces an earlier one.
    """
    for module, package in (("pyarrow.parquet", "pyarrow"), ("matplotlib", "matplotlib"), ("jinja2", "jinja2")):
        require(module, package, "a run with its report")
    from epsball.report.page import write_page

    folder = RunFolder(out, overwrite=overwrite, replaces="demo" if config.command == "demo" else None)
    plan = prepare(config)
    with folder:
        started = time.perf_counter()
        work = gather(plan)
        middle, largest = (work.eps[len(work.eps) // 2], work.eps[-1]) if work.eps else (math.inf, math.inf)
        examples = choose_examples(plan, work, middle)
        with ExitStack() as stack:
            saved = None
            if config.command == "attack":
                path = folder.path / "perturbed.npz"
                saved = stack.enter_context(PerturbedFile(path, work, largest))
            pictures = PictureFolder(folder.path / "png", largest) if config.save == "png" else None
            chunks = _attack(plan, work, examples, saved, pictures, progress)
        measured = _measure(plan, work, chunks, progress) if config.command == "robustness" else None
        grid = config.eps or distance_grid(chunks)
        if not work.eps:
            chunks = [part for chunk in chunks for part in spread(chunk, grid, work.x.dtype)]

        table = results_table(chunks)
        write_table(folder.path / "results.parquet", table)
        with Archive(folder.path / "examples.npz") as archive:
            archive.write(examples.arrays(work, grid[len(grid) // 2]))
        if measured is not None:
            distances = distances_table(measured, work.sample_id, work.target, work.clean[config.model])
            write_table(folder.path / "distances.parquet", distances)
        content = manifest(plan, work, grid, chunks, time.perf_counter() - started, measured)
        write_json(folder.path / "manifest.json", content)
        write_page(folder.path)
        folder.commit()
    return RunResult(folder.out, table, content, measured)


def _jobs(plan: Plan, work: Work) -> Iterator[Job]:
    """List what is done: every attack on the model; with transfer, one of them crafted on each network."""
    config, own = plan.config, plan.config.model
    for name, attack in plan.attacks.items():
        crafted = "+".join(config.surrogates) if getattr(attack.objective, "surrogates", ()) else own
        for rows in slices(plan):
            yield Job(name, attack, rows, own, crafted, (own,), main=True)
    if config.transfer:
        # An attack that stops at its own model's border spends too little of the budget to transfer.
        attack = config.compose(config.transferred, plan.bounds, [], stop="never")
        for crafted in work.models:
            judges = tuple(judge for judge in work.models if (crafted, judge) != (own, own))
            for rows in slices(plan):
                yield Job(config.transferred, attack, rows, crafted, crafted, judges)


def _attack(
    plan: Plan,
    work: Work,
    examples: Examples,
    saved: PerturbedFile | None,
    pictures: PictureFolder | None,
    progress: Progress | None,
) -> list[Chunk]:
    """Do all jobs; of the perturbed inputs only the examples stay, and those that go to the file."""
    chunks: list[Chunk] = []
    jobs = list(_jobs(plan, work))
    costs = [(job.rows.stop - job.rows.start) * _cost(job, work) for job in jobs]
    spent = 0.0
    for outcome, cost in zip(local.run(jobs, work), costs, strict=True):
        chunks += outcome.chunks
        if outcome.job.main:
            examples.take(outcome)
            if saved is not None:
                saved.take(outcome)
            if pictures is not None:
                pictures.take(outcome, work.sample_id[outcome.job.rows].numpy())
        spent += cost
        if progress is not None:
            progress(outcome.job.name, outcome.job.rows.stop, len(work.x), spent / sum(costs))
    return chunks


def _measure(plan: Plan, work: Work, chunks: list[Chunk], progress: Progress | None) -> Robustness:
    r2: list[Tensor] = []
    for rows in slices(plan):
        x, target = plan.x[rows].to(plan.device), work.target[rows].to(plan.device)
        r2.append(first_order_distance(plan.model.module, x, target, p=plan.config.p).cpu())
        if progress is not None:
            progress("first-order distance", rows.stop, len(plan.x))
    return measure(chunks, plan.x, torch.cat(r2), plan.config.p)


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
    return float(passes * attack.schedule.steps * grid)
