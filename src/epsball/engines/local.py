"""Run attacks batch by batch in this process: jobs in, columns of rows out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from epsball.attack import Attack
from epsball.errors import Status
from epsball.metrics.fooling import sweep
from epsball.metrics.psnr import psnr
from epsball.objectives import as_objective, two_class
from epsball.result import AttackResult
from epsball.target_model import TargetModel
from epsball.tensors import norm

__all__ = ["STATUSES", "Chunk", "Job", "Kept", "Outcome", "Work", "run"]

Array = np.ndarray[Any, Any]
STATUSES = tuple(status.name for status in Status)
_CODE = {status: code for code, status in enumerate(Status)}


@dataclass(frozen=True)
class Job:
    """One attack on one batch.

    model: the name in `Work.models` of the one under attack. crafted_on: what the rows call the crafting model, the
    same but for attacks with surrogates of their own. judged_on: the models that see the perturbed inputs. main: an
    attack on the run's own model, whose perturbed inputs at `Work.keep` the caller wants to see.
    """

    name: str
    attack: Attack
    rows: slice
    model: str
    crafted_on: str
    judged_on: tuple[str, ...]
    main: bool = False


@dataclass(frozen=True)
class Work:
    """What all jobs share: models by name, samples on the CPU, and the predictions of each model on them.

    eps: the grid; empty where every attack is minimal-norm, then each runs without a limit and has one chunk at inf.
    keep: the budgets whose perturbed inputs the caller wants to see before they are dropped.
    """

    models: Mapping[str, nn.Module]
    x: Tensor
    target: Tensor
    sample_id: Tensor
    clean: Mapping[str, Tensor]
    eps: tuple[float, ...]
    keep: frozenset[float]
    seed: int
    device: torch.device
    peak: float


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
    """The perturbed inputs of one batch at one eps, judged by the model under attack."""

    perturbed: Array
    prediction: Array
    success: Array
    norm: Array


@dataclass(frozen=True)
class Outcome:
    """A finished job."""

    job: Job
    chunks: tuple[Chunk, ...]
    kept: dict[float, Kept]


def run(jobs: Iterable[Job], work: Work) -> Iterator[Outcome]:
    """Do the jobs one after another; every row is a function of its sample, not of the batch around it."""
    for job in jobs:
        yield _do(job, work)


def _do(job: Job, work: Work) -> Outcome:
    x = work.x[job.rows].to(work.device)
    target = work.target[job.rows].to(work.device)
    ids = work.sample_id[job.rows]
    if work.eps:
        found = sweep(job.attack, work.models[job.model], x, target, work.eps, seed=work.seed, sample_id=ids)
    else:
        free = job.attack.with_eps(math.inf)(work.models[job.model], x, target, seed=work.seed, sample_id=ids)
        found = [(math.inf, free, free.success)]
    chunks, kept = [], {}
    for eps, result, success in found:
        shared, own = _measured(job, work, x, result), _own(result, success)
        for judge in job.judged_on:
            seen = own if judge == job.model else _judged(job, work.models[judge], target, result)
            chunks.append(_chunk(job, judge, eps, shared | seen | {"clean_prediction": work.clean[judge][job.rows]}))
        if job.main and eps in work.keep:
            kept[eps] = Kept(*map(_array, (result.perturbed, own["prediction"], success, result.norm)))
    return Outcome(job, tuple(chunks), kept)


def _measured(job: Job, work: Work, x: Tensor, result: AttackResult) -> dict[str, Tensor]:
    """Return the columns that do not depend on who judges."""
    eta, rows = result.perturbation, job.rows
    return {
        "sample_id": work.sample_id[rows],
        "target": work.target[rows],
        "norm": result.norm,
        "norm_l1": norm(eta, 1.0),
        "norm_l2": norm(eta, 2.0),
        "norm_linf": norm(eta, math.inf),
        "psnr_in": psnr(x, result.perturbed, work.peak),
        "forwards": result.forwards,
        "backwards": result.backwards,
        "seconds": torch.full((len(x),), result.seconds / len(x), dtype=torch.float64),
    }


def _own(result: AttackResult, success: Tensor) -> dict[str, Tensor]:
    """Return what the model under attack says; a minimal-norm success outside eps is beyond it."""
    codes = torch.tensor([_CODE[status] for status in result.status])
    beyond = (result.success & ~success).cpu()
    return {
        "prediction": two_class(result.outputs).argmax(1),
        "success": success,
        "gain": result.gain,
        "status": torch.where(beyond, _CODE[Status.BEYOND], codes),
    }


def _judged(job: Job, model: nn.Module, target: Tensor, result: AttackResult) -> dict[str, Tensor]:
    """Return what another model says of inputs that were crafted elsewhere."""
    objective = as_objective(job.attack.objective)
    with TargetModel(model) as judge, torch.no_grad():
        outputs = two_class(judge(result.perturbed))
        gain, success = objective.gain(outputs, target), objective.success(outputs, target)
    outside = result.having(Status.CONSTRAINT_VIOLATED)
    success = success & ~outside
    ended = torch.where(success, _CODE[Status.SUCCESS], _CODE[Status.STANDS])
    return {
        "prediction": outputs.argmax(1),
        "success": success,
        "gain": gain,
        "status": torch.where(outside, _CODE[Status.CONSTRAINT_VIOLATED], ended),
    }


def _chunk(job: Job, judge: str, eps: float, columns: dict[str, Tensor]) -> Chunk:
    p = float(getattr(job.attack.constraint, "p", math.inf))  # groups limit every entry: the norm is ℓ∞
    arrays = {name: _array(values) for name, values in columns.items()}
    return Chunk(job.name, job.crafted_on, judge, p, job.attack.schedule.steps, eps, job.main, arrays)


def _array(values: Tensor) -> Array:
    return values.detach().cpu().numpy()
