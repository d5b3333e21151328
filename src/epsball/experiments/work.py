"""What the shards of a run share: samples, targets, what each model says of them unperturbed, and the jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from epsball.engines.local import Job, Regression, Work
from epsball.experiments.collect import Examples, spread_budgets
from epsball.experiments.engine import Engine, Models
from epsball.experiments.plan import Plan, value_range
from epsball.experiments.shard import Shared
from epsball.metrics.fooling import predict
from epsball.metrics.psnr import psnr
from epsball.metrics.regression import model_outputs, squared_error
from epsball.target_model import TargetModel

__all__ = ["models_of", "share"]


def share(plan: Plan, models: Models, size: int, engine: Engine) -> Shared:
    """Put together what all shards share, cut into shards of `size` samples."""
    config, work = plan.config, _gather(plan, models, engine)
    middle, largest = (work.eps[len(work.eps) // 2], work.eps[-1]) if work.eps else (math.inf, math.inf)
    return Shared(
        work=work,
        jobs=tuple(_jobs(plan, work)),
        size=size,
        batch_size=config.batch_size,
        examples=_choose_examples(plan, work, middle),
        perturbed_at=largest if config.command == "attack" else None,
        distance=config.p if config.command == "robustness" else None,
    )


def _jobs(plan: Plan, work: Work) -> Iterator[Job]:
    """List what is done: every attack on the model; with transfer, one of them crafted on each network."""
    config, own = plan.config, plan.config.model
    for name, attack in plan.attacks.items():
        crafted = "+".join(config.surrogates) if getattr(attack.objective, "surrogates", ()) else own
        yield Job(name, attack, own, crafted, (own,), main=True)
    if config.transfer:
        # An attack that stops at its own model's border spends too little of the budget to transfer.
        attack = config.compose(config.transferred, plan.bounds, [], stop="never")
        for crafted in work.models:
            judges = tuple(judge for judge in work.models if (crafted, judge) != (own, own))
            yield Job(config.transferred, attack, crafted, crafted, judges)


def models_of(plan: Plan) -> Models:
    """Return the models under attack by name, the run's own first."""
    config = plan.config
    models = {config.model: plan.model.module}
    if config.transfer:
        models |= {surrogate.name: surrogate.module for surrogate in plan.surrogates}
    if config.eot == 1:
        return models
    return {name: TargetModel(model, draws=config.eot, seed=config.seed) for name, model in models.items()}


def _gather(plan: Plan, models: Models, engine: Engine) -> Work:
    """Gather samples and models, with what every judge says of the samples as they are."""
    config = plan.config
    # The distances of `robustness` come from one run without a limit.
    eps = () if config.command == "robustness" else config.eps
    shared: dict[str, Any] = {
        "models": models,
        "x": plan.x,
        "sample_id": plan.dataset.ids,
        "eps": eps,
        "keep": frozenset({eps[len(eps) // 2], eps[-1], *_kept(plan, eps)} if eps else {math.inf}),
        "seed": config.seed,
        "device": plan.device,
        "peak": plan.peak,
    }
    if config.regresses or plan.target is None:
        target, regression = _regression(plan, engine)
        return Work(target=target, clean={}, regression=regression, **shared)
    clean = {name: engine.unperturbed(name, predict) for name in models}
    return Work(target=plan.target, clean=clean, **shared)


def _regression(plan: Plan, engine: Engine) -> tuple[Tensor, Regression]:
    """Return the reference outputs, and how far the model is from them without a perturbation."""
    output = engine.unperturbed(plan.config.model, model_outputs)
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


def _choose_examples(plan: Plan, work: Work, eps: float) -> Examples:
    """Choose samples to show, for a classifier those that it gets right."""
    labels = plan.dataset.target
    if labels is None or labels.is_floating_point():
        labels = torch.zeros(len(plan.x), dtype=torch.int64)
    wanted = torch.ones(len(plan.x), dtype=torch.bool)
    if work.regression is None:
        wanted = work.clean[plan.config.model] == labels
    return Examples.choose(labels.numpy(), wanted.numpy(), eps, _kept(plan, work.eps))


def _kept(plan: Plan, eps: tuple[float, ...]) -> tuple[float, ...]:
    """Choose the budgets at which examples are kept for the report."""
    return spread_budgets(eps, len(plan.attacks), math.prod(plan.x.shape[1:]))
