"""`epsball paper ...`: the tables and figures of the paper, made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from epsball.cli import options as o
from epsball.cli.display import ProgressBar, write, write_markdown
from epsball.cli.stopping import Stopped
from epsball.errors import InputError

__all__ = ["paper"]

paper = typer.Typer(help="Make the paper's tables and figures again, its values beside ours.", no_args_is_help=False)

_COMMANDS = {
    "all": "Everything below, on one page; a run that was killed goes on with --resume.",
    "table3": "Test error, rho1, rho2 and eps99 of the classifiers (Table 3).",
    "figure1": "Perturbed images and their predictions (Figure 1).",
    "figure2": "Images, adversarial and noisy versions, and what regression networks make of them (Figure 2).",
    "figure3": "Fooling ratio over eps of every method (Figure 3).",
    "figure4": "Output PSNR of the regression networks over input PSNR or eps (Figure 4).",
}

Weights = Annotated[
    list[str] | None,
    typer.Option(
        help="NETWORK=FILE, instead of the weights that come with epsball. An autoencoder without weights is "
        "trained first, another network left out."
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", "--samples", help="So many test images of each network; default: all, or 1,000."),
]
BatchSize = Annotated[int | None, typer.Option(help="Samples at a time; default: what each network is fast with.")]
Panels = Annotated[str, typer.Option(help="Which panels, as letters such as ab; default: all.")]
Resume = Annotated[bool, typer.Option(help="Keep what an earlier run into the same folder has measured.")]


def _add(name: str, text: str) -> None:
    def command(
        out: o.Out,
        data_root: o.DataRoot = None,
        limit: Limit = None,
        seed: o.Seed = 0,
        batch_size: BatchSize = None,
        weights: Weights = None,
        panels: Panels = "",
        resume: Resume = False,
    ) -> None:
        _make(
            name,
            out=out,
            data_root=data_root,
            limit=limit,
            seed=seed,
            batch_size=batch_size,
            weights=_files(weights),
            panels=panels,
            resume=resume,
        )

    paper.command(name, help=text)(command)


for _name, _text in _COMMANDS.items():
    _add(_name, _text)


def _make(name: str, out: Path, **options: Any) -> None:
    from epsball.experiments import paper as experiments
    from epsball.experiments.paper.setting import Setting

    function: Callable[[Setting], str] = getattr(experiments, "everything" if name == "all" else name)
    try:
        with ProgressBar() as bar:
            text = function(Setting(out=out, progress=bar, **options))
    except Stopped as error:
        kept = len(list((out / "parts").glob("*.parquet")))
        if kept:
            error.add_note(f"finished parts are kept: {kept}; the same command with --resume goes on from there.")
        raise
    write_markdown(text)
    write("", f"written to {out}")


def _files(weights: list[str] | None) -> dict[str, str]:
    """Read NETWORK=FILE pairs."""
    pairs = [pair.partition("=") for pair in weights or []]
    wrong = next((pair for pair in pairs if not (pair[0] and pair[2])), None)
    if wrong is not None:
        raise InputError(
            f"expected --weights NETWORK=FILE, got {''.join(wrong)!r}; such as cifar10-autoencoder=weights.safetensors."
        )
    return {network: file for network, _, file in pairs}
