"""The flags that commands share, and how their text becomes values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from epsball.errors import InputError

__all__ = [
    "Address",
    "Attacks",
    "BatchSize",
    "Bounds",
    "ChannelOrder",
    "Cpus",
    "Data",
    "DataRoot",
    "Device",
    "Dtype",
    "Engine",
    "Eot",
    "Eps",
    "Groups",
    "K",
    "Lattice",
    "Limit",
    "Mean",
    "Model",
    "Out",
    "Output",
    "Overwrite",
    "P",
    "Passes",
    "Prepare",
    "Resize",
    "Resume",
    "Save",
    "Seed",
    "ShardSize",
    "SkipBad",
    "SomeAttacks",
    "Split",
    "Std",
    "Steps",
    "Surrogates",
    "Target",
    "Task",
    "Transfer",
    "Weights",
    "Workers",
    "XColumns",
    "YColumns",
    "fractions",
    "names",
    "norm_order",
    "numbers",
    "valid_range",
]


def _option(help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help_text, metavar=metavar, show_default=True)


Model = Annotated[
    str,
    _option(
        "Network under attack: a name of `epsball list networks`, FILE.pt2, FILE.onnx, timm:NAME, or file.py:factory "
        "or package.module:factory. A Python file that is named here is run, with all that it does.",
        "MODEL",
    ),
]
Weights = Annotated[
    str | None,
    _option(
        "Weights, .safetensors or a .pt of plain tensors, or 'pretrained' for timm's own; default: those that come "
        "with the network.",
        "FILE",
    ),
]
Data = Annotated[
    str | None,
    _option(
        "Data set, or a path or URL (s3://...) to a folder of images, .npz, .pt or .parquet, or file.py:factory, which "
        "is run; default: the network's.",
        "NAME|PATH|URL",
    ),
]
Mean = Annotated[
    str | None, _option("Subtracted inside the model, in data units: one number or one a channel.", "M1,M2")
]
Std = Annotated[str | None, _option("Divided by inside the model, such as 0.229,0.224,0.225 or 1/255.", "S1,S2")]
Resize = Annotated[str | None, _option("Images are resized inside the model; none: also not for timm.", "HxW|none")]
ChannelOrder = Annotated[str, _option("Order in which the model takes the channels of RGB data: rgb or bgr.", "ORDER")]
Output = Annotated[
    str | None,
    _option(
        "Which part of the outputs counts: a key or index such as logits or 0; several heads as a,b; the scores of one "
        "pixel of a map as '[:,12,20]'.",
        "KEY|INDEX",
    ),
]
XColumns = Annotated[str | None, _option("Parquet: columns of x; default: the images, else all numbers.", "A,B")]
YColumns = Annotated[str | None, _option("Parquet: columns of y; default: the one called label, target, ...", "A,B")]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out samples that cannot be read, and list them in the manifest."),
]
DataRoot = Annotated[str | None, _option("Folder of the data sets; default: EPSBALL_DATA, else the cache.", "DIR")]
Split = Annotated[str, _option("Which part of the data: test, train, or another that the set has.")]
Attacks = Annotated[str, _option("Attacks, separated by commas; `epsball list attacks` names them.", "A,B")]
SomeAttacks = Annotated[
    str | None,
    _option("Attacks, separated by commas; `epsball list attacks` names them; default: a few for the task.", "A,B"),
]
Eps = Annotated[str | None, _option("Budgets in units of x, increasing: 0.1 of [0, 1], never of 255.", "E1,E2")]
P = Annotated[str, _option("Norm order from 1 to inf.")]
Steps = Annotated[int | None, _option("Steps of the attacks whose name leaves them open.")]
Passes = Annotated[
    int | None, _option("Pairs of a forward and a backward pass that best and nearest may spend on a sample.")
]
Bounds = Annotated[str | None, _option("Valid range of x, or none; default: that of the data set.", "LO,HI|none")]
Lattice = Annotated[
    int | None, _option("Perturbed inputs stay on so many steps of the range: 255 for 8-bit image files.", "LEVELS")
]
Eot = Annotated[int, _option("Of a model that draws random numbers: attack and judge the mean over so many draws.")]
Prepare = Annotated[
    str | None,
    _option("Make passes on a faster copy of the model: auto, fold, channels_last, fold+channels_last.", "FORM"),
]
Limit = Annotated[int | None, _option("Only the first so many samples.")]
BatchSize = Annotated[int, _option("Samples at a time; results do not depend on it.")]
ShardSize = Annotated[
    int | None, _option("Samples after which what was measured is kept for --resume; default: 1,000, in whole batches.")
]
Engine = Annotated[str, _option("Where the work is done: local, this process, or ray, a pool of workers.", "local|ray")]
Address = Annotated[
    str | None, _option("Ray: the cluster, such as auto or HOST:6379; default: started here.", "ADDRESS")
]
Workers = Annotated[int | None, _option("Ray: so many workers; default: as many as there are CPUs or GPUs for.")]
Cpus = Annotated[int, _option("Ray: threads of each worker; rows are those of a local run on as many.")]
Save = Annotated[str | None, _option("Also write the perturbed images as files; with --lattice 255.", "png")]
Seed = Annotated[int, _option("Seed of all random draws.")]
Device = Annotated[str, _option("Where the network runs: cpu, cuda, ...")]
Dtype = Annotated[str, _option("Number format: float32 or float64.")]
Out = Annotated[Path, _option("Folder for the results.", "DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results that DIR holds.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where a run into DIR was stopped or killed, with the same results.")
]
Surrogates = Annotated[str | None, _option("Networks that `ensemble` is crafted on.", "NET,NET")]
Transfer = Annotated[
    bool, typer.Option("--transfer", help="Also craft one attack on each network and judge it on all of them.")
]
Task = Annotated[str | None, _option("classification or regression; default: the network's.", "TASK")]
Target = Annotated[
    str | None,
    _option(
        "Reference output y of a regression run: input (y = x, for autoencoders), output (y := f(x), where no truth is "
        "known), data (y of the file); default: data where it has y, else input for autoencoders, else output.",
        "input|output|data",
    ),
]
Groups = Annotated[
    str | None,
    _option(
        "What group attacks change: pixels (default), patches:SIZE or channels; nearest then changes as few as it can.",
        "GROUPS",
    ),
]
K = Annotated[int | None, _option("How many groups a group attack changes, in each of its steps; default: one.")]


def names(text: str | None) -> tuple[str, ...]:
    """Split "a,b" into names."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def numbers(flag: str, text: str | None) -> tuple[float, ...]:
    """Read "0.02,0.05" as numbers."""
    if text is None:
        return ()
    return tuple(_number(flag, part, "numbers separated by commas, such as 0.02,0.05") for part in text.split(","))


def norm_order(text: str) -> float:
    """Read 2, 1.5 or inf."""
    return _number("--p", text, "a number from 1 to inf")


def valid_range(text: str | None) -> tuple[float, float] | Literal["data"] | None:
    """Read "0,1" or "none"; None, the flag left out, means the data set's own range."""
    if text is None:
        return "data"
    if text.strip().lower() == "none":
        return None
    ends = tuple(_number("--bounds", part, "LO,HI such as 0,1, or none") for part in text.split(","))
    if len(ends) != 2:
        raise InputError(f"expected --bounds as LO,HI such as 0,1, or none, got {text!r}.")
    return ends[0], ends[1]


def fractions(flag: str, text: str | None) -> tuple[float, ...]:
    """Read "0.5,1/255" as numbers."""

    def read(part: str) -> float:
        above, slash, below = part.partition("/")
        return float(above) / float(below) if slash else float(above)

    if text is None:
        return ()
    return tuple(
        _number(flag, part, "numbers separated by commas, such as 0.5 or 1/255", read) for part in text.split(",")
    )


def _number(flag: str, text: str, expected: str, read: Callable[[str], float] = float) -> float:
    try:
        value = read(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"expected {flag} as {expected}, got {text!r}.") from error
    if math.isnan(value):
        raise InputError(f"expected {flag} as {expected}, got {text!r}.")
    return value
