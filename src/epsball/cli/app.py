"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import epsball
from epsball.cli import display
from epsball.cli import options as o
from epsball.cli.compare import compare
from epsball.cli.group import OneLineGroup
from epsball.cli.paper import paper
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import RunResult, run
from epsball.experiments.tasks import default_attacks
from epsball.models import spec_of

__all__ = ["app"]

app = typer.Typer(
    cls=OneLineGroup,
    help="Worst-case perturbations of a trained model's inputs, and how robust the model is.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(paper, name="paper")
app.command()(compare)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Print the version or the help where no command is given."""
    if version:
        display.write(f"epsball {epsball.__version__}")
    elif context.invoked_subcommand is None:
        display.write(context.get_help())


@app.command()
def demo(
    out: o.Out = Path("runs/demo"), batch_size: o.BatchSize = 500, seed: o.Seed = 0, overwrite: o.Overwrite = False
) -> None:
    """Attack a classifier and a regressor on embedded digits, and write their reports: no argument, no download."""
    from epsball.experiments.demo import demo_runs

    with display.ProgressBar("steps") as bar:
        runs = demo_runs(out, batch_size=batch_size, seed=seed, overwrite=overwrite, progress=bar)
        for config, folder in runs:
            _show(_run(config, folder, overwrite))
    display.write(
        "",
        "Next: the same for networks trained on MNIST (downloaded once, or from --data-root DIR):",
        "  epsball evaluate --model mnist-lenet5 --limit 1000 --eps 0.05,0.1,0.2 --out runs/lenet5",
        "  epsball evaluate --model mnist-autoencoder --p 2 --limit 1000 --eps 1,2,4 --out runs/autoencoder",
        "and `epsball list attacks`, `epsball robustness --help`.",
    )


@app.command()
def evaluate(
    model: o.Model,
    out: o.Out,
    attacks: o.SomeAttacks = None,
    eps: o.Eps = None,
    p: o.P = "inf",
    data: o.Data = None,
    split: o.Split = "test",
    weights: o.Weights = None,
    steps: o.Steps = None,
    passes: o.Passes = None,
    bounds: o.Bounds = None,
    lattice: o.Lattice = None,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 500,
    shard_size: o.ShardSize = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "float32",
    data_root: o.DataRoot = None,
    surrogates: o.Surrogates = None,
    transfer: o.Transfer = False,
    groups: o.Groups = None,
    k: o.K = None,
    task: o.Task = None,
    target: o.Target = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    channel_order: o.ChannelOrder = "rgb",
    output: o.Output = None,
    x_columns: o.XColumns = None,
    y_columns: o.YColumns = None,
    skip_bad: o.SkipBad = False,
    eot: o.Eot = 1,
    prepare: o.Prepare = None,
    engine: o.Engine = "local",
    address: o.Address = None,
    workers: o.Workers = None,
    cpus: o.Cpus = 1,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
) -> None:
    """Measure what each attack does at each eps: how many samples it fools, or how far a regression output moves.

    Writes the rows, the manifest and the report.
    """
    given = dict(locals())
    _show(_run(_config("evaluate", given), out, overwrite, resume))


@app.command()
def attack(
    model: o.Model,
    attacks: o.Attacks,
    out: o.Out,
    eps: o.Eps = None,
    p: o.P = "inf",
    data: o.Data = None,
    split: o.Split = "test",
    weights: o.Weights = None,
    steps: o.Steps = None,
    passes: o.Passes = None,
    bounds: o.Bounds = None,
    lattice: o.Lattice = None,
    save: o.Save = None,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 500,
    shard_size: o.ShardSize = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "float32",
    data_root: o.DataRoot = None,
    surrogates: o.Surrogates = None,
    transfer: o.Transfer = False,
    groups: o.Groups = None,
    k: o.K = None,
    task: o.Task = None,
    target: o.Target = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    channel_order: o.ChannelOrder = "rgb",
    output: o.Output = None,
    x_columns: o.XColumns = None,
    y_columns: o.YColumns = None,
    skip_bad: o.SkipBad = False,
    eot: o.Eot = 1,
    prepare: o.Prepare = None,
    engine: o.Engine = "local",
    address: o.Address = None,
    workers: o.Workers = None,
    cpus: o.Cpus = 1,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
) -> None:
    """Perturb the samples: as evaluate, and the perturbed inputs at the largest eps go to DIR/perturbed.npz."""
    given = dict(locals())
    _show(_run(_config("attack", given), out, overwrite, resume))


@app.command()
def robustness(
    model: o.Model,
    out: o.Out,
    eps: o.Eps = None,
    p: o.P = "inf",
    data: o.Data = None,
    split: o.Split = "test",
    weights: o.Weights = None,
    steps: o.Steps = None,
    bounds: o.Bounds = None,
    limit: o.Limit = None,
    batch_size: o.BatchSize = 500,
    shard_size: o.ShardSize = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    dtype: o.Dtype = "float32",
    data_root: o.DataRoot = None,
    task: o.Task = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    channel_order: o.ChannelOrder = "rgb",
    output: o.Output = None,
    x_columns: o.XColumns = None,
    y_columns: o.YColumns = None,
    skip_bad: o.SkipBad = False,
    eot: o.Eot = 1,
    prepare: o.Prepare = None,
    engine: o.Engine = "local",
    address: o.Address = None,
    workers: o.Workers = None,
    cpus: o.Cpus = 1,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
) -> None:
    """Measure how far samples are from being misclassified: rho1, rho2 and eps99 of the paper."""
    given = dict(locals())
    result = _run(_config("robustness", given | {"attacks": "deepfool"}), out, overwrite, resume)
    display.show_measures(result)
    _where(result)


@app.command()
def train(
    network: Annotated[str, typer.Argument(help="Network; `epsball list networks` names them.", metavar="NETWORK")],
    out: Annotated[Path, typer.Option(help="Weights to write; the card lies beside them.", metavar="FILE.safetensors")],
    data: o.Data = None,
    data_root: o.DataRoot = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; default: the network's recipe.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step; default: the network's recipe.")] = None,
    seed: o.Seed = 0,
    limit: o.Limit = None,
    device: o.Device = "cpu",
    schedule: Annotated[
        str | None, typer.Option(help="full or short, where a network has both; default: short on a CPU.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside --out, where there is one.")] = False,
) -> None:
    """Train a network and write its weights with a card: data, seed, epochs, test error, command."""
    from epsball.training import train as fit

    with display.ProgressBar("steps") as bar:
        result = fit(
            network,
            data=data,
            data_root=data_root,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            limit=limit,
            out=out,
            device=device,
            schedule=schedule,
            resume=resume,
            progress=lambda done, total, loss: bar(f"training, loss {loss:.3g},", done, total),
        )
    display.show_card(result.card)
    display.write(f"weights: {out}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="DIR")],
) -> None:
    """Write the report of a run again from its files."""
    from epsball.report.page import write_page

    display.write(f"report: {write_page(directory)}")


@app.command(name="list")
def list_catalogue(
    kind: Annotated[str, typer.Argument(help="attacks, networks or datasets", metavar="attacks|networks|datasets")],
) -> None:
    """Print what there is by name."""
    from epsball.cli.catalogues import catalogue

    display.show_catalogue(*catalogue(kind))


def _config(command: str, given: dict[str, Any]) -> RunConfig:
    """Read the flags of a run."""
    p, attacks = o.norm_order(given.pop("p")), o.names(given.pop("attacks"))
    values: dict[str, Any] = {
        "attacks": attacks or default_attacks(spec_of(given["model"], given["task"]).task, p),
        "eps": o.numbers("--eps", given.pop("eps")),
        "p": p,
        "bounds": o.valid_range(given.pop("bounds")),
        "surrogates": o.names(given.pop("surrogates", None)),
        "mean": o.fractions("--mean", given.pop("mean")),
        "std": o.fractions("--std", given.pop("std")),
        "x_columns": o.names(given.pop("x_columns")),
        "y_columns": o.names(given.pop("y_columns")),
    }
    values |= {key: value for key, value in given.items() if key not in ("out", "overwrite", "resume")}
    return RunConfig(command=command, **values)


def _run(config: RunConfig, out: Path, overwrite: bool, resume: bool = False) -> RunResult:
    with display.ProgressBar() as bar:
        return run(config, out, overwrite=overwrite, resume=resume, progress=bar)


def _show(result: RunResult) -> None:
    display.show_result(result)
    display.show_transfer(result)
    _where(result)


def _where(result: RunResult) -> None:
    display.write(f"report: {result.directory / 'report.html'}")
