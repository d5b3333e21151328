"""Time and peak memory of whole attacks over their floor, in one process and interleaved.

The floor of T steps is T x (one forward + one backward to the input, parameters frozen) on the same batch. DeepFool
is held against the floor of the passes that it makes: its forwards and its class gradients on the batches it makes them on.

    python benchmarks/overhead.py [--repeats 5] [--networks lenet5,conv] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
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
    """A plain convolutional network of about 110 million multiply-adds on 32x32 images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 64, 1), (64, 64, 1), (64, 96, 2), (96, 128, 1), (128, 128, 2)):
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


def deepfool_floor(model: nn.Module, x: Tensor, target: Tensor, sizes: list[int], classes: int) -> None:
    """The forwards and class gradients that DeepFool made, on batches of the sizes it made them on."""
    for size in sizes[:-1]:
        point = x[:size].detach().requires_grad_()
        outputs = model(point)
        for c in range(classes - 1):
            torch.autograd.grad(outputs[:, c].sum(), point, retain_graph=c < classes - 2)
    with torch.no_grad():
        model(x[: sizes[-1]])


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
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    deepfool(model, x, target)
    hook.remove()
    sizes = [size for size in sizes if size > 1] if batch > 1 else sizes
    classes = model(x[:1]).shape[1]
    calls = {
        "floor": lambda: deepfool_floor(model, x, target, sizes, classes),
        "deepfool": lambda: deepfool(model, x, target),
    }
    seconds = interleaved(calls, repeats)
    ratios = [a / b for a, b in zip(seconds["deepfool"], seconds["floor"], strict=True)]
    result[f"{name}: time of deepfool over the floor of its passes"] = statistics.median(ratios)
    return result


def peak(name: str, what: str, steps: int) -> float:
    """Measure the growth of the process's peak memory in MB; run in a process of its own."""
    model, shape, batch = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in x.split(8)])
    floor(model, x[:8], target[:8], 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"p": math.inf, "eps": 1e-4, "bounds": (0.0, 1.0), "stop": "never"}
    if what == "floor":
        floor(model, x, target, steps)
    elif what == "pgd":
        eb.recipe("pgd", steps=steps, **options)(model, x, target)
    else:
        eb.recipe(f"alg1-{steps}", classes="runner-up", **options)(model, x, target)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


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
