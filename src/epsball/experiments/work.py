"""What the jobs of a run share: samples, targets, and what each model says of them without a perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from epsball.engines.local import Regression, Work
from epsball.experiments.collect import Examples
from epsball.experiments.plan import Plan, value_range
from epsball.metrics.fooling import batches, predict
from epsball.metrics.psnr import psnr
from epsball.metrics.regression import model_outputs, squared_error

__all__ = ["choose_examples", "gather", "slices"]


def gather(plan: Plan) -> Work:
    """Gather what all jobs share, with what every judge says of the samples as they are."""
    config = plan.config
    models = {config.model: plan.model.module}
    if config.transfer:
        models |= {surrogate.name: surrogate.module for surrogate in plan.surrogates}
    # The distances of `robustness` come from one run without a limit.
    eps = () if config.command == "robustness" else config.eps
    shared: dict[str, Any] = {
        "models": models,
        "x": plan.x,
        "sample_id": plan.dataset.ids,
        "eps": eps,
        "keep": frozenset({eps[len(eps) // 2], eps[-1]} if eps else {math.inf}),
        "seed": config.seed,
        "device": plan.device,
        "peak": plan.peak,
    }
    if config.regresses or plan.target is None:
        target, regression = _regression(plan)
        return Work(target=target, clean={}, regression=regression, **shared)
    clean = {name: _each(plan, partial(predict, model)) for name, model in models.items()}
    return Work(target=plan.target, clean=clean, **shared)


def _regression(plan: Plan) -> tuple[Tensor, Regression]:
    """Return the reference outputs, and how far the model is from them without a perturbation."""
    output = _each(plan, partial(model_outputs, plan.model.module))
    target = output if plan.target is None else plan.target
    # Images made of images, and outputs in the space of x, have its range; of others only the values are known.
    image = target.shape == plan.x.shape or plan.config.spec.maps is not None
    peak = plan.peak if image else value_range(target)
    found = Regression(
        given=plan.target is not None,
        output=output,
        error=squared_error(output, target),
        quality=psnr(target, output, peak),
        peak=peak,
    )
    return target, found


def _each(plan: Plan, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a function of all samples, batch by batch on the device."""
    return torch.cat([function(plan.x[rows].to(plan.device)).cpu() for rows in slices(plan)])


def choose_examples(plan: Plan, work: Work, eps: float) -> Examples:
    """Choose samples to show, for a classifier those that it gets right."""
    labels = plan.dataset.target
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(len(plan.x), dtype=torch.int64)
    wanted = torch.ones(len(plan.x), dtype=torch.bool)
    if work.regression is None:
        wanted = work.clean[plan.config.model] == labels
    return Examples.choose(labels.numpy(), wanted.numpy(), eps)


def slices(plan: Plan) -> Iterator[slice]:
    """Cut the samples into batches."""
    return batches(len(plan.x), plan.config.batch_size)
