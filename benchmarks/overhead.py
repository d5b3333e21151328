"""Time and peak memory of whole attacks over their floor, in one process and interleaved.

The floor of T steps is T x (one forward + one backward to the input, parameters frozen) on one batch. DeepFool is
held against the floor of the passes that it makes: the same forwards and backwards on batches of the same sizes.

    python benchmarks/overhead.py [--repeats 5] [--networks lenet5,conv] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

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

    deepfool = eb.recipe("deepfool", p=math.inf, bounds=(0.0, 1.0))
    passes = record(model, deepfool, x, target)
    calls = {
        "floor": lambda: replay(model, x, passes),
        "deepfool": lambda: deepfool(model, x, target),
    }
    seconds = interleaved(calls, repeats)
    ratios = [a / b for a, b in zip(seconds["deepfool"], seconds["floor"], strict=True)]
    result[f"{name}: time of deepfool over the floor of its passes"] = statistics.median(ratios)
    return result


def resident(field: str) -> float:
    """Read a line of the process's memory status in MB (Linux)."""
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith(field)) / 1024


def peak(name: str, what: str, steps: int) -> float:
    """Measure the growth of the process's peak memory in MB; run in a process of its own (Linux)."""
    model, shape, batch = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in x.split(8)])
    floor(model, x[:8], target[:8], 1)
    options = {"p": math.inf, "eps": 1e-4, "bounds": (0.0, 1.0), "stop": "never"}
    calls: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(model, x, target, steps),
        "pgd": lambda: eb.recipe("pgd", steps=steps, **options)(model, x, target),
        "alg1": lambda: eb.recipe(f"alg1-{steps}", classes="runner-up", **options)(model, x, target),
    }
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew from here
    calls[what]()
    return resident("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--networks", default="lenet5,conv")
    parser.add_argument("--out")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(*arguments.peak, 5))
        return
    results: dict[str, float] = {}
    for name in arguments.networks.split(","):
        results |= measure(name, arguments.repeats, arguments.steps)
        peaks = {}
        for what in ("floor", "pgd", "alg1"):
            command = [sys.executable, __file__, "--peak", name, what]
            peaks[what] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for what in ("pgd", "alg1"):
            results[f"{name}: peak memory of {what} over the floor"] = peaks[what] / peaks["floor"]
    for label, value in results.items():
        print(f"{label:65s} {value:.3f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), **results}, file, indent=2)


if __name__ == "__main__":
    main()
