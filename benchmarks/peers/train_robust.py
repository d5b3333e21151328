"""Train the adversarially trained MNIST network: every batch is perturbed by epsball's own `pgd` first.

    EPSBALL_DATA=... python -m benchmarks.peers.train_robust

min over the weights of the mean cross-entropy at the perturbed inputs, ‖η‖_inf <= 0.3 inside [0, 1]; eps rises from 0
over the first third of the steps. Writes the weights and their card beside this file.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from benchmarks.peers.robust import MNIST_ROBUST, WEIGHTS, build
from rich.progress import track

import epsball as eb
from epsball import data
from epsball.networks.storage import save
from epsball.training import test_error

EPS, STEPS, RISING = 0.3, 7, 1 / 3


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=MNIST_ROBUST.recipe.epochs)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    recipe = MNIST_ROBUST.recipe
    training, testing = data.load("mnist", split="train", limit=None), data.load("mnist", split="test", limit=None)
    x, y = training.x, training.target
    torch.manual_seed(given.seed)
    model = build()
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    order = torch.Generator().manual_seed(given.seed)
    each = math.ceil(len(x) / recipe.batch_size)
    total, start, step, loss = given.epochs * each, time.perf_counter(), 0, 0.0
    for _ in track(range(given.epochs), description="epochs"):
        for rows in torch.split(torch.randperm(len(x), generator=order), recipe.batch_size):
            share = step / total
            attack = eb.recipe("pgd", eps=EPS * min(1.0, share / RISING), steps=STEPS, bounds=(0.0, 1.0), stop="never")
            perturbed = attack(model, x[rows], y[rows], seed=step).perturbed
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(model.train()(perturbed), y[rows])
            value.backward()
            optimiser.step()
            step, loss = step + 1, float(value)
        print(f"{step}/{total} loss {loss:.3f}", flush=True)
    model.eval()
    seconds = time.perf_counter() - start
    judge = eb.recipe("pgd", eps=EPS, steps=40, bounds=(0.0, 1.0))
    stands = 1.0 - float(judge(model, testing.x[:1000], testing.target[:1000]).success.double().mean())
    card = {
        "network": MNIST_ROBUST.name,
        "summary": MNIST_ROBUST.summary,
        "task": "classification",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": "mnist",
        "test_error": test_error(model, testing.x, testing.target),
        "test_count": len(testing),
        "robust_accuracy": stands,
        "robust_accuracy_of": f"pgd, 40 steps, p = inf, eps {EPS}, bounds [0, 1], the first 1,000 test images",
        "training_attack": f"pgd, {STEPS} steps, p = inf, eps {EPS} (rising over a third of the steps)",
        "optimiser": f"AdamW, learning rate {recipe.learning_rate} falling to 0 along a cosine",
        "epochs": given.epochs,
        "batch_size": recipe.batch_size,
        "seed": given.seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "command": f"python -m benchmarks.peers.train_robust --epochs {given.epochs} --seed {given.seed}",
    }
    print(save(model, card, WEIGHTS))


if __name__ == "__main__":
    main()
