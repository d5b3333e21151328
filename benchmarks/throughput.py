"""Samples a second: the local engine over the bare loop, Ray over as many processes, and what a data set would take.

The bare loop calls the attack on the same batches and keeps nothing. Each process of the comparison with Ray attacks
its own part of the samples by itself, on one thread, at the same time as the others. Whole runs are timed, with the
checks, the files and the report; of Ray without the seconds in which it starts. --images says how many samples a data
set has whose time is to be worked out, --hour what a device costs.

    python -m benchmarks.throughput [--model mnist-lenet5] [--limit 2000] [--device cuda] [--parts loop,ray,cost]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import epsball as eb
from epsball.experiments.config import RunConfig
from epsball.experiments.plan import Plan, prepare
from epsball.experiments.runner import run
from epsball.metrics.fooling import batches

EPS = (0.05, 0.1, 0.2)


def configuration(arguments: argparse.Namespace, **more: object) -> RunConfig:
    return RunConfig(
        command="evaluate",
        model=arguments.model,
        data=arguments.data,
        attacks=tuple(arguments.attacks.split(",")),
        eps=EPS,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        device=arguments.device,
        **more,  # type: ignore[arg-type]
    )


def bare(plan: Plan) -> None:
    for rows in batches(len(plan.x), plan.config.batch_size):
        x, target = plan.x[rows].to(plan.device), plan.target[rows].to(plan.device)
        for attack in plan.attacks.values():
            attack.over(plan.model.module, x, target, eps=EPS, sample_id=plan.dataset.ids[rows])
    if plan.device.type == "cuda":
        torch.cuda.synchronize()


def loop(arguments: argparse.Namespace) -> None:
    plan, seconds = prepare(configuration(arguments)), {"bare loop": [], "run": []}
    for repeat in range(arguments.repeats + 1):  # the first round warms up
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            bare(plan)
            between = time.perf_counter()
            run(configuration(arguments), Path(folder) / "r")
            ended = time.perf_counter()
        if repeat:
            seconds["bare loop"].append(between - started)
            seconds["run"].append(ended - between)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"bare loop {medians['bare loop']:.1f} s, whole run {medians['run']:.1f} s, {len(plan.x):,} samples")
    print(f"throughput of the run over that of the bare loop: {medians['bare loop'] / medians['run']:.3f}")


def against_processes(arguments: argparse.Namespace) -> None:
    import ray

    plan = prepare(configuration(arguments))
    count, workers = len(plan.x), arguments.workers
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"part{i}.npz" for i in range(workers)]
        for part, rows in zip(parts, batches(count, -(-count // workers)), strict=True):
            data_of(plan, rows, part)
        for repeat in range(arguments.repeats):
            started = time.perf_counter()
            running = [
                subprocess.Popen(
                    command(arguments, part, Path(folder) / f"p{repeat}-{i}"),
                    env=environment,
                    stdout=subprocess.DEVNULL,
                )
                for i, part in enumerate(parts)
            ]
            if any(child.wait() for child in running):
                sys.exit("a process failed")
            between = time.perf_counter()
            more = {"engine": "ray", "workers": workers, "shard_size": arguments.shard_size}
            run(configuration(arguments, **more), Path(folder) / f"r{repeat}")
            ended = time.perf_counter()
            ratios.append((between - started) / (ended - between))
            print(f"{workers} processes {between - started:.1f} s, Ray {ended - between:.1f} s", flush=True)
    ray.shutdown()
    print(f"throughput of {workers} Ray workers over {workers} processes: {statistics.median(ratios):.3f}")


def data_of(plan: Plan, rows: slice, path: Path) -> None:
    import numpy as np

    np.savez(path, x=plan.x[rows].numpy(), y=plan.target[rows].numpy())


def command(arguments: argparse.Namespace, part: Path, out: Path) -> list[str]:
    words = ["evaluate", "--model", arguments.model, "--data", str(part), "--attacks", arguments.attacks]
    words += ["--eps", ",".join(map(str, EPS)), "--batch-size", str(arguments.batch_size), "--bounds", "0,1"]
    return [sys.executable, "-m", "epsball", *words, "--out", str(out)]


def cost(arguments: argparse.Namespace) -> None:
    """Time one attack on one batch of images and multiply."""
    model, shape = network(arguments.network)
    device = torch.device(arguments.device)
    model.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(arguments.batch_size, *shape, generator=generator)
    with torch.no_grad():
        target = torch.cat([model(part.to(device)).argmax(1).cpu() for part in x.split(16)])
    # Every step of every image, and of the classes those nearest to the decision.
    attack = eb.recipe("alg1-10", eps=4 / 255, bounds=(0.0, 1.0), classes=10, stop="never", prepare=arguments.prepare)
    attack(model, x[:2].to(device), target[:2].to(device))
    started = time.perf_counter()
    result = attack(model, x.to(device), target.to(device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = len(x) / (time.perf_counter() - started)
    passes = float((result.forwards + result.backwards).double().mean())
    print(f"{arguments.network} at {shape} on {device}, batch {len(x)}: {rate:.2f} samples/s, {passes:.0f} passes each")
    for devices in (1, 8, 64):
        hours = arguments.images / rate / devices / 3600
        price = (
            "" if arguments.hour is None else f", {hours * devices * arguments.hour:,.0f} at {arguments.hour} an hour"
        )
        print(f"{arguments.images:,} images on {devices}: {hours:,.1f} hours{price}")


def network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name.startswith("timm:"):
        from benchmarks.peers import environment

        environment.prepare()  # timm imports torchvision, whose compiled operators may not load
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=21_841), (3, 224, 224)
    from epsball import networks

    return networks.load(name), networks.spec(name).input_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="loop,ray")
    parser.add_argument("--model", default="mnist-lenet5")
    parser.add_argument("--data")
    parser.add_argument("--attacks", default="alg1-10")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--shard-size", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="timm:resnet50", help="of the part `cost`")
    parser.add_argument("--prepare", help="of the part `cost`")
    parser.add_argument("--images", type=int, default=14_197_122, help="of the part `cost`; default: ImageNet-21k")
    parser.add_argument("--hour", type=float, help="price of a device for an hour")
    arguments = parser.parse_args()
    parts = {"loop": loop, "ray": against_processes, "cost": cost}
    for name in arguments.parts.split(","):
        parts[name](arguments)


if __name__ == "__main__":
    main()
