"""What was tried in the cells that `best` and `nearest` do not win: each trial beside the recipe, on the same samples.

EPSBALL_DATA=... python -m benchmarks.peers.tried
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from benchmarks.peers import networks

import epsball as eb

Trials = Iterator[tuple[str, eb.Attack]]


def search_first(eps: float, passes: int) -> Trials:
    """`best` at p = 1 with several attempts."""
    whole = eb.recipe("best", p=1.0, eps=eps, passes=passes, bounds=(0.0, 1.0))
    plan = whole.schedule
    yield "whole", whole
    yield "rounder steps of the search for all", replace(whole, schedule=replace(plan, step_ball=(1.5, 0.3)))
    yield "the same steps of it for all", replace(whole, schedule=replace(plan, bent_step_ball=None))
    if plan.restarts > 2:
        longer = replace(plan, steps=plan.steps + plan.length(1) + 1, restarts=plan.restarts - 1)
        yield "a longer search, an attempt fewer", replace(whole, schedule=longer)


def nearest() -> Trials:
    """`nearest` at p = 2 with 100 passes."""
    whole = eb.recipe("nearest", p=2.0, passes=100, bounds=(0.0, 1.0))
    plan = whole.schedule
    others = (plan.restarts - 1) * plan.length(1)
    yield "whole", whole
    yield "all classes, at the first pace", replace(whole, schedule=replace(plan, restart_near=None))
    longer = replace(plan, restarts=3, restart_steps=others // 2)
    yield "two longer attempts after the first", replace(whole, schedule=longer)


def sparse() -> Trials:
    """`nearest` at p = 1 with 100 passes."""
    whole = eb.recipe("nearest", p=1.0, passes=100, bounds=(0.0, 1.0))
    yield "whole", whole
    yield "far classes left out", replace(whole, schedule=replace(whole.schedule, restart_near=1.5))


def compare(network: str, title: str, trials: Trials, measure: Callable[[eb.AttackResult], float]) -> None:
    model = networks.load(network)
    x, y, _ = networks.samples(network, model, 64 if network.startswith("cifar10") else 256)
    for name, attack in trials:
        value = measure(attack(model, x, y, seed=0, sample_id=torch.arange(len(x))))
        print(f"{network:15s} {title:38s} {name:36s} {value:.4f}", flush=True)


def fooled(result: eb.AttackResult) -> float:
    return float(result.success.float().mean())


def size(result: eb.AttackResult) -> float:
    return float(torch.where(result.success, result.norm, math.inf).mean())


def main() -> None:
    torch.set_num_threads(1)
    for network, eps in (("cifar10-resnet", 3.0), ("mnist-robust", 10.0)):
        for passes in (40, 100):
            compare(network, f"best, p = 1, eps {eps:g}, {passes} passes", search_first(eps, passes), fooled)
    for network in ("cifar10-resnet", "mnist-lenet5"):
        compare(network, "nearest, p = 2, 100 passes", nearest(), size)
    for network in ("mnist-fcnn", "mnist-lenet5"):
        compare(network, "nearest, p = 1, 100 passes", sparse(), size)


if __name__ == "__main__":
    main()
