"""Do one job on one batch: an attack on some samples in, columns of rows out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from epsball.attack import Attack
from epsball.engines import columns
from epsball.engines.columns import STATUSES, Array, as_array
from epsball.metrics.fooling import sweep

__all__ = ["STATUSES", "Array", "Chunk", "Job", "Kept", "Outcome", "Regression", "Work", "do"]

# What is kept of perturbed inputs, by task.
CLASSIFIED = ("perturbed", "success", "norm", "prediction")
REGRESSED = ("perturbed", "output", "gain", "psnr_in", "psnr_out")


@dataclass(frozen=True)
class Job:
    """One attack on all samples.

    model: the name in `Work.models` of the one under attack. crafted_on: what the rows call the crafting model, the
    same but for attacks with surrogates of their own. judged_on: the models that see the perturbed inputs. main: an
    attack on the run's own model, whose perturbed inputs at `Work.keep` the caller wants to see.
    """

    name: str
    attack: Attack
    model: str
    crafted_on: str
    judged_on: tuple[str, ...]
    main: bool = False


@dataclass(frozen=True)
class Regression:
    """What a regression run measures against; the reference outputs y (N, *O) are the work's target.

    given: whether attacks are told y; if not, y := f(x) is for them to compute. output: f(x), (N, *O). error:
    ‖f(x) - y‖², quality: the PSNR of (y, f(x)), both (N,). peak: the range of y that output PSNR refers to.
    """

    given: bool
    output: Tensor
    error: Tensor
    quality: Tensor
    peak: float

    def part(self, rows: slice) -> Regression:
        """Return some of the samples, as tensors of their own."""
        cut = {name: getattr(self, name)[rows].clone() for name in ("output", "error", "quality")}
        return replace(self, **cut)


@dataclass(frozen=True)
class Work:
    """What all jobs share: models by name, samples on the CPU, and what each model says of them.

    target: class indices (N,), or reference outputs (N, *O) of a regression run. clean: the predictions of each
    classifier; regression: what stands in their place. eps: the grid; empty where every attack is minimal-norm, then
    each runs without a limit and has one chunk at inf. keep: the budgets whose perturbed inputs the caller wants to see
    before they are dropped.
    """

    models: Mapping[str, Callable[[Tensor], Any]]
    x: Tensor
    target: Tensor
    sample_id: Tensor
    clean: Mapping[str, Tensor]
    eps: tuple[float, ...]
    keep: frozenset[float]
    seed: int
    device: torch.device
    peak: float
    regression: Regression | None = None

    def part(self, rows: slice) -> Work:
        """Return some of the samples without the models, as tensors of their own, to be sent elsewhere."""
        return replace(
            self,
            models={},
            x=self.x[rows].clone(),
            target=self.target[rows].clone(),
            sample_id=self.sample_id[rows].clone(),
            clean={name: found[rows].clone() for name, found in self.clean.items()},
            regression=None if self.regression is None else self.regression.part(rows),
        )


@dataclass(frozen=True)
class Chunk:
    """The rows of one batch that agree in all but these columns; status is a code into `STATUSES`.

    Beside the table's columns there is `norm`, the norm that eps limits.
    """

    attack: str
    crafted_on: str
    judged_on: str
    p: float
    steps: int
    eps: float
    main: bool
    columns: dict[str, Array]


@dataclass(frozen=True)
class Kept:
    """What one attack made of one batch at one eps, by name, with one entry a sample: `CLASSIFIED` or `REGRESSED`."""

    arrays: dict[str, Array]


@dataclass(frozen=True)
class Outcome:
    """A job done on one batch."""

    job: Job
    rows: slice
    chunks: tuple[Chunk, ...]
    kept: dict[float, Kept]


def do(job: Job, rows: slice, work: Work) -> Outcome:
    """Do a job on these samples; every row is a function of its sample, not of the batch around it."""
    x = work.x[rows].to(work.device)
    target = work.target[rows].to(work.device)
    ids = work.sample_id[rows]
    known = target if work.regression is None or work.regression.given else None
    model = work.models[job.model]
    if work.eps:
        found = sweep(job.attack, model, x, known, work.eps, seed=work.seed, sample_id=ids)
    else:
        free = job.attack.with_eps(math.inf)(model, x, known, seed=work.seed, sample_id=ids)
        found = [(math.inf, free, free.success)]
    chunks, kept = [], {}
    for eps, result, success in found:
        shared = columns.measured(x, result, job.attack.constraint, work.peak) | {"sample_id": ids}
        if work.regression is None:
            shared["target"] = target
            own = columns.classified(result, success)
        else:
            error = work.regression.error[rows].to(work.device)
            own = columns.regressed(result, target, error, work.regression.peak)
        for judge in job.judged_on:
            seen = own if judge == job.model else columns.transferred(job.attack, work.models[judge], target, result)
            if work.regression is None:
                seen = seen | {"clean_prediction": work.clean[judge][rows]}
            chunks.append(_chunk(job, judge, eps, shared | seen))
        if job.main and eps in work.keep:
            values = {"perturbed": result.perturbed, "output": result.outputs} | shared | own
            kept[eps] = Kept({name: as_array(values[name]) for name in (REGRESSED if work.regression else CLASSIFIED)})
    return Outcome(job, rows, tuple(chunks), kept)


def _chunk(job: Job, judge: str, eps: float, values: dict[str, Tensor]) -> Chunk:
    p = float(getattr(job.attack.constraint, "p", math.inf))  # groups limit every entry: the norm is ℓ∞
    arrays = {name: as_array(column) for name, column in values.items()}
    return Chunk(job.name, job.crafted_on, judge, p, job.attack.schedule.steps, eps, job.main, arrays)
