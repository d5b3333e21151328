"""Do perturbed images fool the model when they are read back from PNG files?

    EPSBALL_DATA=... python benchmarks/eight_bit.py --limit 1000

The network is the shipped Network in Network on CIFAR-10 test images, p = inf, inside [0, 1]. For every eps and attack:
`epsball attack --lattice 255 --save png`, each file read back and classified, beside the share that the rows call a
success; and the same attack without a lattice, rounded to 8 bits afterwards as an image file does it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import epsball as eb
from epsball import data, networks
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import run

LEVELS = 255


def read_back(folder: Path, ids: list[int]) -> torch.Tensor:
    """Return the images (N, 3, H, W) in [0, 1] as anyone reads them."""
    images = [np.asarray(Image.open(folder / f"{number:06d}.png")) for number in ids]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / LEVELS


def labels(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the predicted classes, (N,)."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in torch.split(x, 100)])


def main() -> None:
    """Run, read back and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--attacks", default="fgsm,alg1-10,best")
    parser.add_argument("--passes", type=int, default=20)
    given = parser.parse_args()
    attacks = tuple(given.attacks.split(","))
    images, model = data.load("cifar10", split="test").head(given.limit), networks.load("cifar10-nin")
    right = labels(model, images.x) == images.target
    table = Table(
        title=f"{int(right.sum())} correctly classified of {len(images)} images; shares of these fooled, in %"
    )
    for column in (
        "attack",
        "eps",
        "rows say",
        "PNG read back",
        "files that differ",
        "outside eps",
        "rounded afterwards",
    ):
        table.add_column(column, justify="right")
    for steps in (1, 4, 8):
        eps = steps / LEVELS
        passes = given.passes if "best" in attacks else None
        config = RunConfig(
            "attack", "cifar10-nin", attacks, (eps,), passes=passes, limit=given.limit, lattice=LEVELS, save="png"
        )
        with tempfile.TemporaryDirectory() as folder:
            run(config, folder, overwrite=True)
            rows = pq.read_table(Path(folder) / "results.parquet").to_pylist()
            for name in attacks:
                own = [row for row in rows if row["attack"] == name]
                said = torch.tensor([bool(row["success"]) for row in own])
                found = read_back(Path(folder) / "png" / name, [row["sample_id"] for row in own])
                fooled = labels(model, found) != images.target
                outside = (found - images.x).abs().flatten(1).amax(1) > eps * (1.0 + 1e-5)
                options = {"passes": given.passes} if name == "best" else {}
                attack = eb.recipe(name, eps=eps, bounds=(0.0, 1.0), **options)
                plain = [
                    attack(model, x, y, sample_id=ids).perturbed
                    for x, y, ids in zip(
                        torch.split(images.x, 100),
                        torch.split(images.target, 100),
                        torch.split(torch.arange(len(images)), 100),
                        strict=True,
                    )
                ]
                rounded = (torch.cat(plain) * LEVELS).round() / LEVELS
                kept = (rounded - images.x).abs().flatten(1).amax(1) <= eps * (1.0 + 1e-5)
                later = (labels(model, rounded) != images.target) & kept
                share = [100.0 * float(v[right].double().mean()) for v in (said, fooled, later)]
                wrong = int(((fooled != said) & right).sum())
                table.add_row(
                    *(name, f"{steps}/255", f"{share[0]:.1f}", f"{share[1]:.1f}", str(wrong), str(int(outside.sum()))),
                    f"{share[2]:.1f}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
