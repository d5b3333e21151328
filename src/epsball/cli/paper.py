"""`epsball paper ...`: the tables and figures of the paper, made again."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer

from epsball.cli import options as o
from epsball.cli.display import ProgressBar, write, write_markdown

__all__ = ["paper"]

paper = typer.Typer(help="Make the paper's tables and figures again, its values beside ours.", no_args_is_help=False)


def _make(name: str, out: Path, data_root: str | None, limit: int | None, seed: int, batch_size: int) -> None:
    function = getattr(import_module("epsball.experiments.paper"), name)
    with ProgressBar() as bar:
        text = function(out, data_root=data_root, limit=limit, seed=seed, batch_size=batch_size, progress=bar)
    write_markdown(text)
    write("", f"written to {out}")


@paper.command()
def table3(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Test error, rho1, rho2 and eps99 of the MNIST networks (Table 3)."""
    _make("table3", out, data_root, limit, seed, batch_size)


@paper.command()
def figure1(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Perturbed images and their predictions (Figure 1)."""
    _make("figure1", out, data_root, limit, seed, batch_size)


@paper.command()
def figure3(
    out: o.Out, data_root: o.DataRoot = None, limit: o.Limit = None, seed: o.Seed = 0, batch_size: o.BatchSize = 500
) -> None:
    """Fooling ratio over eps of every method (Figure 3)."""
    _make("figure3", out, data_root, limit, seed, batch_size)
