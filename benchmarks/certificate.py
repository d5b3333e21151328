"""How good quadratic-linf is on the MNIST autoencoder: attained/bound, beside that of greedy signs (20) alone.

Over the first 1,000 test digits, y := f(x), unbounded: the certificate of each sample and the bound's own duality gap.
Needs MNIST (EPSBALL_DATA).

    python benchmarks/certificate.py [--limit 1000] [--eps 0.1] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

import epsball as eb
from epsball import data, networks


def greedy(model: torch.nn.Module, x: Tensor, eps: float) -> Tensor:
    """Equation (20) as the paper has it, on a dense Jacobian built apart from the library's."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None])[0].flatten()))(x).flatten(2)
    gram = jacobian.transpose(1, 2) @ jacobian
    order = gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    rows, signs = torch.arange(len(x)), torch.zeros(len(x), gram.shape[1])
    pull = torch.zeros_like(signs)
    for entry in order.unbind(1):
        sign = torch.where(pull[rows, entry] < 0, -1.0, 1.0)
        signs[rows, entry] = sign
        pull += sign[:, None] * gram[rows, entry]
    return eps * signs.view_as(x)


def plot(ratios: dict[str, list[float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    low = min(min(values) for values in ratios.values())
    bins = [low + (1.0 - low) * i / 60 for i in range(61)]
    for (name, values), colour in zip(ratios.items(), ("#d05a00", "#0072b2"), strict=True):
        mean = sum(values) / len(values)
        ax.hist(values, bins=bins, color=colour, alpha=0.6, label=f"{name}: mean {mean:.3f}")
    ax.set_xlabel("attained / upper bound")
    ax.set_ylabel("digits")
    ax.set_title(f"MNIST autoencoder, ℓ∞, {len(values):,} test digits; 1 would prove a global solution", fontsize=10.5)
    ax.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model = networks.load("mnist-autoencoder")
    digits = data.load("mnist", limit=arguments.limit)
    attack = eb.recipe("quadratic-lp", p=math.inf, eps=arguments.eps)
    ratios: dict[str, list[float]] = {"greedy (20)": [], "quadratic-l∞": []}
    gaps: list[float] = []
    wide = 0
    started = time.perf_counter()
    for x, ids in zip(digits.x.split(arguments.batch_size), digits.ids.split(arguments.batch_size), strict=True):
        found = attack(model, x, sample_id=ids).perturbation
        bound = eb.upper_bound(model, x, arguments.eps, perturbation=found, sample_id=ids)
        ratios["quadratic-l∞"] += bound.ratio.tolist()
        gaps += bound.gap.tolist()
        wide += int((~bound.converged).sum())
        image = torch.func.jvp(model, (x,), (greedy(model, x, arguments.eps),))[1]
        ratios["greedy (20)"] += (image.flatten(1).square().sum(1).double() / bound.value).tolist()
    means = {name: sum(values) / len(values) for name, values in ratios.items()}
    below = sum(q < g * (1.0 - 1e-6) for g, q in zip(ratios["greedy (20)"], ratios["quadratic-l∞"], strict=True))
    for name, values in ratios.items():
        print(f"{name:14s} attained/bound: mean {means[name]:.4f}, least {min(values):.4f}, largest {max(values):.4f}")
    print(f"difference of the means {means['quadratic-l∞'] - means['greedy (20)']:+.4f}; samples below greedy: {below}")
    print(f"the bound's own duality gap: mean {sum(gaps) / len(gaps):.1e}, largest {max(gaps):.1e}")
    print(f"digits on which the gap is above the bound's tolerance: {wide}")
    print(f"{len(gaps)} digits, {time.perf_counter() - started:.0f} s, torch {torch.__version__}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "certificate.json").write_text(json.dumps({"ratios": ratios, "gaps": gaps}) + "\n")
        plot(ratios, arguments.out / "certificate.png")


if __name__ == "__main__":
    main()
