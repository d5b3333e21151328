"""The matrix-free quadratic-l2 attack against Jacobian plus SVD, on the MNIST autoencoder at several batch sizes.

Both solve max ||J eta|| over the Euclidean ball for every sample. Times are interleaved in one process; peak memory is
measured in a process of its own each (Linux). Needs MNIST (EPSBALL_DATA).

    python benchmarks/quadratic_vs_dense.py [--repeats 5] [--batches 1,20,256] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import epsball as eb
from epsball import data, networks

EPS = 1.0


def dense(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Build every sample's Jacobian by vmapped backward passes and take its top right singular vector."""
    jacobians = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None])[0]))(x)
    jacobians = jacobians.reshape(len(x), -1, x[0].numel())
    return EPS * torch.linalg.svd(jacobians, full_matrices=False)[2][:, 0].view_as(x)


def free(model: torch.nn.Module, x: Tensor) -> Tensor:
    """Do the same without a Jacobian; the attack also compares both signs and certifies."""
    return eb.recipe("quadratic-lp", p=2.0, eps=EPS)(model, x).perturbation


METHODS: dict[str, Callable[[torch.nn.Module, Tensor], Tensor]] = {"dense": dense, "free": free}


def load(batch: int) -> tuple[torch.nn.Module, Tensor]:
    model = networks.load("mnist-autoencoder")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, data.load("mnist", limit=batch).x


def gain(model: torch.nn.Module, x: Tensor, eta: Tensor) -> Tensor:
    """Compute ||J eta||^2 of each sample."""
    image: Tensor = torch.func.jvp(model, (x,), (eta,))[1]
    return image.flatten(1).square().sum(1)


def resident(field: str) -> float:
    """Read a line of the process's memory status in MB (Linux)."""
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith(field)) / 1024


def peak(name: str, batch: int) -> float:
    """Measure the growth of the process's peak memory in MB."""
    model, x = load(batch)
    METHODS[name](model, x[:1])  # what a process does once
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew from here
    METHODS[name](model, x)
    return max(resident("VmHWM") - before, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", default="1,20,256")
    parser.add_argument("--out")
    parser.add_argument("--peak", nargs=2, metavar=("METHOD", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    rows = []
    for batch in (int(number) for number in arguments.batches.split(",")):
        model, x = load(batch)
        gains = {name: gain(model, x, method(model, x)) for name, method in METHODS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        for _ in range(arguments.repeats):
            for name, method in METHODS.items():
                started = time.perf_counter()
                method(model, x)
                seconds[name].append(time.perf_counter() - started)
        peaks = {}
        for name in METHODS:
            command = [sys.executable, __file__, "--peak", name, str(batch)]
            peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = {
            "batch": batch,
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "time_ratio": statistics.median(d / f for d, f in zip(seconds["dense"], seconds["free"], strict=True)),
            "peak_mb": peaks,
            "memory_ratio": peaks["dense"] / peaks["free"],
            "worst_gain": float((gains["free"] / gains["dense"]).min()),
        }
        rows.append(row)
        print(
            f"batch {batch:4d}: Jacobian + SVD {row['seconds']['dense']:.3f} s, matrix-free "
            f"{row['seconds']['free']:.3f} s: {row['time_ratio']:.1f} times faster; peak {peaks['dense']:.0f} MB, "
            f"{peaks['free']:.0f} MB: {row['memory_ratio']:.1f} times less; least gain ratio {row['worst_gain']:.6f}",
            flush=True,
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
