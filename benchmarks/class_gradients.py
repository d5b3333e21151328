"""What the gradients of all classes cost, and what differentiating only the classes that can still win saves.

First the time of nine class gradients over one forward and backward pass: one after another ("loop") and in one
vectorised pass ("batched"). Then Algorithm 1-10, 1-5 and DeepFool with several values of `Linear(growth=...)`: backward
passes a sample, and on how many samples the outcome differs from differentiating all classes (growth = inf).

    EPSBALL_DATA=... python benchmarks/class_gradients.py [--limit 1000] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional

import epsball as eb
from epsball import data, networks


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def gradients(name: str, dataset: data.Dataset, batch: int = 500) -> list[dict[str, object]]:
    model, x, target = networks.load(name), dataset.x[:batch], dataset.target[:batch]
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    def one() -> None:
        point = x.clone().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(model(point), target, reduction="sum"), point)

    floor = seconds(one)
    rows = []
    for way in ("loop", "batched"):
        expand = eb.Linear(way).expand
        cost = seconds(lambda expand=expand: expand(model, eb.Margin("all"), x, target))
        rows.append({"network": name, "nine class gradients": way, "in forward+backward passes": cost / floor})
    return rows


def growth(name: str, eps: float, dataset: data.Dataset) -> list[dict[str, object]]:
    model, rows = networks.load(name), []
    for attack_name in ("alg1-10", "alg1-5", "deepfool"):
        attack = eb.recipe(attack_name, p=math.inf, eps=None if attack_name == "deepfool" else eps)
        reference: eb.AttackResult | None = None
        for factor in (math.inf, 4.0, 2.0, 1.5, 1.2):
            result = replace(attack, local_model=eb.Linear(growth=factor))(model, dataset.x, dataset.target)
            reference = reference or result
            moved = (result.perturbation - reference.perturbation).flatten(1).abs().amax(1) > 1e-6
            rows.append(
                {
                    "network": name,
                    "attack": attack_name,
                    "growth": str(factor),
                    "backwards": float(result.backwards.double().mean()),
                    "forwards": float(result.forwards.double().mean()),
                    "success in %": 100.0 * float(result.success.double().mean()),
                    "samples perturbed otherwise": int(moved.sum()),
                    "samples judged otherwise": int((result.success != reference.success).sum()),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    dataset = data.load("mnist", limit=arguments.limit)
    rows = []
    for name, eps in (("mnist-fcnn", 0.05), ("mnist-lenet5", 0.1)):
        rows += gradients(name, dataset) + growth(name, eps, dataset)
    for row in rows:
        print(
            "  ".join(
                f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}" for key, value in row.items()
            )
        )
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
