"""What passing a batch through the model in parts saves on a CPU: time and peak memory, whole over in parts.

PGD of five steps that stops no sample, on whole batches (`epsball.working_set` switched off) and in parts, interleaved
in one process.

    python -m benchmarks.working_set [--repeats 5] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from benchmarks.overhead import allocated, conv_net
from torch import nn

import epsball as eb
from epsball import networks, working_set

BATCHES = {"mnist-lenet5": 1000, "conv": 128, "cifar10-nin": 128, "cifar10-densenet40": 64}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name == "conv":
        return conv_net()
    return networks.load(name), (1, 28, 28) if name.startswith("mnist") else (3, 32, 32)


@contextmanager
def whole() -> Iterator[None]:
    """Let every batch pass as it is."""
    own, working_set._BYTES = working_set._BYTES, 2**60
    try:
        yield
    finally:
        working_set._BYTES = own


def measure(name: str, repeats: int) -> dict[str, object]:
    model, shape = build(name)
    model.eval()
    x = torch.rand(BATCHES[name], *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in x.split(16)])
    pgd = eb.recipe("pgd", p=math.inf, eps=1e-4, bounds=(0.0, 1.0), steps=5, stop="never")

    def seconds() -> float:
        started = time.perf_counter()
        pgd(model, x, target)
        return time.perf_counter() - started

    seconds()
    ratios, times = [], []
    for _ in range(repeats):
        parts = seconds()
        with whole():
            together = seconds()
        ratios.append(together / parts)
        times.append(parts)
    memory = allocated(lambda: pgd(model, x, target))
    with whole():
        memory_together = allocated(lambda: pgd(model, x, target))
    return {
        "network": name,
        "batch": len(x),
        "ms a sample and step, in parts": 1000.0 * statistics.median(times) / len(x) / 5,
        "time, whole over parts": statistics.median(ratios),
        "least and largest": [min(ratios), max(ratios)],
        "memory, whole over parts": memory_together / memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    rows = []
    for name in BATCHES:
        rows.append(measure(name, arguments.repeats))
        print(rows[-1])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
