"""Quadratic attacks on one image of a convolutional autoencoder whose Jacobian could not be stored.

One 680x480 RGB image, which the paper calls not tractable: quadratic-l2 to a relative KKT residual of 1e-3,
quadratic-linf and a single pixel, each with time, products and peak memory above the loaded network; then quadratic-l2
over image sizes from 64x64 to one 3840x2160 frame. Every measurement runs in a process of its own (Linux).

    python benchmarks/megapixel.py [--out FOLDER] [--sizes 64x64,...] [--attacks l2,linf,pixel]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import epsball as eb

SIZES = "64x64,128x128,256x256,680x480,1280x720,1920x1080,3840x2160"


def autoencoder() -> nn.Module:
    """A convolutional autoencoder with a bottleneck of a quarter of the pixels, weights from a seed (never trained)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1),
    ).eval()


def scene(width: int, height: int) -> Tensor:
    """An image of smooth shapes and texture, (1, 3, height, width) in [0, 1]: the same scene at every size."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 16, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(1, 3, height, width, generator=generator)).clamp(0.0, 1.0)


def resident(field: str) -> float:
    """Read a line of the process's memory status in GB (Linux)."""
    with open("/proc/self/status") as status:
        return next(float(line.split()[1]) for line in status if line.startswith(field)) / 1024**2


def attack(name: str) -> eb.Attack:
    if name == "l2":
        return eb.Attack(
            eb.LpBall(p=2.0, eps=10.0),
            eb.SquaredError(),
            eb.Quadratic(),
            eb.NormConstrained(eb.QuadraticOptions(tolerance=1e-3)),
        )
    if name == "linf":
        return eb.recipe("quadratic-lp", p=math.inf, eps=0.02)
    return eb.recipe("quadratic-pixel", eps=0.5)


def measure(name: str, width: int, height: int) -> dict[str, float | bool]:
    """Attack one image and say what it took; memory is the growth of the peak above the loaded network and image."""
    model, x = autoencoder(), scene(width, height)
    attack(name)(model, x[:, :, :64, :64].contiguous())  # what a process does once: kernels, allocations
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew from here
    started = time.perf_counter()
    result = attack(name)(model, x)
    seconds = time.perf_counter() - started
    memory = resident("VmHWM") - before
    with torch.no_grad():
        clean = model(x)
    noise = result.perturbation[:, :, torch.randperm(height)][..., torch.randperm(width)]
    with torch.no_grad():
        random = float((model(x + noise) - clean).square().sum())
    return {
        "seconds": seconds,
        "memory_gb": memory,
        "products": int(result.jvps + result.backwards),
        "kkt": float(result.kkt),
        "exact": bool(result.exact),
        "norm": float(result.norm),
        "gain": float(result.gain),
        "gain_shuffled": random,
        "entries": x.numel(),
    }


def run(name: str, size: str) -> dict[str, float | bool]:
    command = [sys.executable, __file__, "--one", name, size]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    content: dict[str, float | bool] = json.loads(found.splitlines()[-1])
    return content


def plot(rows: list[dict[str, float | bool | str]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    pixels = [float(row["entries"]) / 3 for row in rows]
    for ax, key, label in zip(axes, ("seconds", "memory_gb"), ("seconds", "peak memory (GB)"), strict=True):
        values = [float(row[key]) for row in rows]
        linear = [values[-1] * p / pixels[-1] for p in pixels]
        ax.loglog(pixels, linear, "--", color="#6a727b", linewidth=1.2, label="in proportion to the pixels")
        ax.loglog(pixels, values, "o-", color="#0072b2", linewidth=1.8, label="measured")
        ax.set_xticks(pixels, [str(row["size"]) for row in rows], rotation=40, ha="right", fontsize=9)
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=9.5)
        ax.set_ylabel(label)
        ax.margins(x=0.06, y=0.1)
        ax.grid(alpha=0.3)
    figure.suptitle("quadratic-ℓ2 on one RGB image, relative KKT residual 1e-3", fontsize=11)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--attacks", default="l2,linf,pixel")
    parser.add_argument("--one", nargs=2, metavar=("ATTACK", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        width, height = (int(n) for n in arguments.one[1].split("x"))
        print(json.dumps(measure(arguments.one[0], width, height)))
        return
    rows: list[dict[str, float | bool | str]] = []
    todo = [(name, "680x480") for name in arguments.attacks.split(",") if name]
    todo += [("l2", size) for size in arguments.sizes.split(",") if size and ("l2", size) not in todo]
    for name, size in todo:
        row = {"attack": name, "size": size, **run(name, size)}
        rows.append(row)
        print(
            f"{name:6s} {size:>10s}  {row['seconds']:8.2f} s  {row['memory_gb']:6.3f} GB  {row['products']:6d} products"
            f"  kkt {row['kkt']:.1e}  exact {row['exact']}  gain {row['gain']:.4g} (its entries shuffled: "
            f"{row['gain_shuffled']:.4g})",
            flush=True,
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        (arguments.out / "megapixel.json").write_text(json.dumps(record, indent=2) + "\n")
        by_size = sorted((row for row in rows if row["attack"] == "l2"), key=lambda row: float(row["entries"]))
        if len(by_size) > 1:
            plot(by_size, arguments.out / "megapixel.png")


if __name__ == "__main__":
    main()
