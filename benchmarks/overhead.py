"""Time and peak memory of whole attacks over their floor, in one process and interleaved.

The floor of T steps is T x (one forward + one backward to the input, parameters frozen) on one batch. DeepFool is
held against the floor of the passes that it makes: the same forwards and backwards on batches of the same sizes.

    python -m benchmarks.overhead [--repeats 5] [--networks lenet5,conv] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import epsball as eb
from epsball import networks


def conv_net() -> tuple[nn.Module, tuple[int, ...]]:
    """A plain convolutional network of about 110 MFLOP (55 million multiply-adds) on 32x32 images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 52, 1), (52, 52, 1), (52, 64, 2), (64, 96, 1), (96, 128, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), (3, 32, 32)


def build(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    if name == "lenet5":
        return networks.load("mnist-lenet5"), (1, 28, 28), 1000
    if name == "fcnn":
        return networks.load("mnist-fcnn"), (1, 28, 28), 1000
    model, shape = conv_net()
    return model.eval(), shape, 128


def floor(model: nn.Module, x: Tensor, target: Tensor, steps: int) -> None:
    """T forwards and backwards to the input, nothing else."""
    for _ in range(steps):
        point = x.detach().requires_grad_()
        torch.autograd.grad(functional.cross_entropy(model(point), target, reduction="sum"), point)


def record(model: nn.Module, attack: eb.Attack, x: Tensor, target: Tensor) -> list[tuple[int, int]]:
    """Note the batch size of each forward that the attack makes, and how many backwards follow it."""
    passes: list[list[int]] = []
    hooks = [
        model.register_forward_pre_hook(lambda module, inputs: passes.append([len(inputs[0]), 0])),
        model.register_full_backward_pre_hook(lambda module, gradients: passes[-1].__setitem__(1, passes[-1][1] + 1)),
    ]
    attack(model, x, target)
    for hook in hooks:
        hook.remove()
    return [(size, backwards) for size, backwards in passes]


def replay(model: nn.Module, x: Tensor, passes: list[tuple[int, int]]) -> None:
    """Make the same forwards and backwards, and nothing else."""
    for size, backwards in passes:
        point = x[:size].detach().requires_grad_(backwards > 0)
        outputs = model(point)
        for c in range(backwards):
            torch.autograd.grad(outputs[:, c].sum(), point, retain_graph=c < backwards - 1)


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time each call once a round, so that a slow spell of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(name: str, repeats: int, steps: int) -> dict[str, float]:
    model, shape, batch = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, *shape, generator=generator)
    with torch.no_grad():
        target = model(x).argmax(1)
    options = {"p": math.inf, "eps": 1e-4, "bounds": (0.0, 1.0), "stop": "never"}
    pgd = eb.recipe("pgd", steps=steps, **options)
    alg1 = eb.recipe(f"alg1-{steps}", classes="runner-up", **options)
    result: dict[str, float] = {}

    calls = {
        "floor": lambda: floor(model, x, target, steps),
        f"pgd-{steps}": lambda: pgd(model, x, target),
        f"alg1-{steps}-runner-up": lambda: alg1(model, x, target),
    }
    seconds = interleaved(calls, repeats)
    for attack in list(calls)[1:]:
        ratios = [a / b for a, b in zip(seconds[attack], seconds["floor"], strict=True)]
        result[f"{name}: time of {attack} over the floor"] = statistics.median(ratios)

    for label, bounds in (("", None), (" inside [0, 1]", (0.0, 1.0))):
        deepfool = eb.recipe("deepfool", p=math.inf, bounds=bounds)
        passes = record(model, deepfool, x, target)
        calls = {
            "floor": lambda passes=passes: replay(model, x, passes),
            "deepfool": lambda deepfool=deepfool: deepfool(model, x, target),
        }
        seconds = interleaved(calls, repeats)
        ratios = [a / b for a, b in zip(seconds["deepfool"], seconds["floor"], strict=True)]
        result[f"{name}: time of deepfool{label} over the floor of its passes"] = statistics.median(ratios)
    return result


def allocated(call: Callable[[], object]) -> float:
    """Count the largest number of MB that tensors hold at one time during a call, above what was held before.

    From PyTorch's record of every allocation, so the same in each run; the resident size swings by a fifth.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record_of_memory:
        call()
    events = record_of_memory.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = itertools.accumulate(size for _, size in changes)
    return max(held) / 2**20


def peaks(name: str, steps: int) -> dict[str, float]:
    """Compare the peak memory of attacks with that of the floor."""
    model, shape, batch = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = model(x).argmax(1)
    options = {"p": math.inf, "eps": 1e-4, "bounds": (0.0, 1.0), "stop": "never"}
    least = allocated(lambda: floor(model, x, target, steps))
    return {
        f"{name}: peak memory of {what} over the floor": allocated(lambda attack=attack: attack(model, x, target))
        / least
        for what, attack in (
            ("pgd", eb.recipe("pgd", steps=steps, **options)),
            ("alg1", eb.recipe(f"alg1-{steps}", classes="runner-up", **options)),
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--networks", default="lenet5,conv")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    for name in arguments.networks.split(","):
        results |= measure(name, arguments.repeats, arguments.steps)
        results |= peaks(name, 5)
    for label, value in results.items():
        print(f"{label:65s} {value:.3f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), **results}, file, indent=2)


if __name__ == "__main__":
    main()
