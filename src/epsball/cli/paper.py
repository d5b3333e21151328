"""`epsball paper ...`: the tables and figures of the paper, made again."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from epsball.cli import options as o
from epsball.cli.display import ProgressBar, write, write_markdown
from epsball.errors import InputError

__all__ = ["paper"]

paper = typer.Typer(help="Make the paper's tables and figures again, its values beside ours.", no_args_is_help=False)

Weights = Annotated[
    list[str] | None,
    typer.Option(
        help="NETWORK=FILE, for a network whose weights do not come with epsball; trained first if not given."
    ),
]


def _make(name: str, out: Path, **options: Any) -> None:
    function = getattr(import_module("epsball.experiments.paper"), name)
    with ProgressBar() as bar:
        text = function(out, progress=bar, **options)
    write_markdown(text)
    write("", f"written to {out}")


@paper.command()
def table3(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Test error, rho1, rho2 and eps99 of the MNIST networks (Table 3)."""
    _make("table3", out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size)


@paper.command()
def figure1(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Perturbed images and their predictions (Figure 1)."""
    _make("figure1", out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size)


@paper.command()
def figure2(
    out: o.Out,
    data_root: o.DataRoot = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 250,
    weights: Weights = None,
    panels: Annotated[str, typer.Option(help="Which panels, of ab.")] = "ab",
) -> None:
    """Images, adversarial and noisy versions, and what the autoencoders make of them (Figure 2)."""
    files = _files(weights)
    _make("figure2", out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size, weights=files,
          panels=_panels(panels, "ab"))  # fmt: skip


@paper.command()
def figure3(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Fooling ratio over eps of every method (Figure 3)."""
    _make("figure3", out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size)


@paper.command()
def figure4(
    out: o.Out,
    data_root: o.DataRoot = None,
    limit: o.Limit = None,
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 250,
    weights: Weights = None,
    panels: Annotated[str, typer.Option(help="Which panels, of abc.")] = "abc",
) -> None:
    """Output PSNR of the autoencoders over input PSNR or eps (Figure 4)."""
    files = _files(weights)
    _make("figure4", out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size, weights=files,
          panels=_panels(panels, "abc"))  # fmt: skip


def _files(weights: list[str] | None) -> dict[str, str]:
    """Read NETWORK=FILE pairs."""
    pairs = [pair.partition("=") for pair in weights or []]
    wrong = next((pair for pair in pairs if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise InputError(
            f"expected --weights NETWORK=FILE, got {''.join(wrong)!r}; such as cifar10-autoencoder=weights.safetensors."
        )
    return {network: file for network, _, file in pairs}


def _panels(panels: str, known: str) -> str:
    if not panels or set(panels) - set(known):
        raise InputError(f"expected --panels as letters of {known!r}, got {panels!r}.")
    return panels
