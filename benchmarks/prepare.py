"""Time of PGD over its floor, on the model itself and on copies that are prepared to be faster, interleaved.

The floor is that of benchmarks/overhead.py: T x (one forward + one backward to the input) on the user's model. The copy
is made before the clock starts, and what making it takes is printed beside: "auto" times the others on the batch.

    python -m benchmarks.prepare [--repeats 5] [--networks resnet,nin,lenet5] [--forms fold,auto] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmarks.overhead import allocated, floor, interleaved
from benchmarks.peers import networks as peers
from torch import Tensor, nn

import epsball as eb
from epsball import networks

FORMS = "fold,channels_last,fold+channels_last,auto"


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name == "resnet":
        return peers.load("cifar10-resnet"), (3, 32, 32)
    full = {"nin": "cifar10-nin", "lenet5": "mnist-lenet5"}.get(name, name)
    return networks.load(full), networks.spec(full).input_shape


def measure(name: str, forms: list[str], repeats: int, steps: int, batch: int) -> dict[str, float | str | None]:
    model, shape = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = model(x).argmax(1)

    def pgd(form: str | None, eps: float = 1e-4) -> eb.Attack:
        return eb.recipe("pgd", steps=steps, p=math.inf, eps=eps, bounds=(0.0, 1.0), stop="never", prepare=form)

    result: dict[str, float | str | None] = {}
    attacks: dict[str, eb.Attack] = {"the model": pgd(None)}
    for form in forms:
        started = time.perf_counter()
        used = eb.recipe("fgsm", eps=1e-4, prepare=form)(model, x, target).prepared
        result[f"{name}: {form}: seconds until the first answer"] = time.perf_counter() - started
        result[f"{name}: {form}: passes made on"] = used or "the model"
        attacks[form] = pgd(form)
    calls: dict[str, Callable[[], object]] = {"floor": lambda: floor(model, x, target, steps)}
    calls |= {form: partial(attack, model, x, target) for form, attack in attacks.items()}
    seconds = interleaved(calls, repeats)
    for form in attacks:
        ratios = [a / b for a, b in zip(seconds[form], seconds["floor"], strict=True)]
        result[f"{name}: pgd-{steps} on {form}: time over the floor"] = statistics.median(ratios)
    least = allocated(lambda: floor(model, x, target, 2))
    for form, attack in attacks.items():
        result[f"{name}: pgd on {form}: peak memory over the floor"] = _peak(attack, model, x, target) / least
    return result


def _peak(attack: eb.Attack, model: nn.Module, x: Tensor, target: Tensor) -> float:
    short = eb.Attack(
        constraint=attack.constraint,
        objective=attack.objective,
        schedule=eb.Schedule(steps=2, stop="never"),
        prepare=attack.prepare,
    )
    return allocated(lambda: short(model, x, target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--networks", default="resnet,nin,lenet5")
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    results: dict[str, float | str | None] = {}
    for name in arguments.networks.split(","):
        found = measure(name, arguments.forms.split(","), arguments.repeats, arguments.steps, arguments.batch)
        for label, value in found.items():
            print(f"{label:75s} {value:.3f}" if isinstance(value, float) else f"{label:75s} {value}", flush=True)
        results |= found
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    if arguments.out:
        content = {"torch": torch.__version__, "threads": torch.get_num_threads(), **results}
        Path(arguments.out).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
