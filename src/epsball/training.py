"""Plain training of the catalogue's networks: seeded, recorded on a card, written in one step."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball import data as datasets
from epsball import networks
from epsball.data import Dataset
from epsball.errors import InputError
from epsball.networks import NetworkSpec, TrainingRecipe
from epsball.networks.storage import check_writable, save

__all__ = ["Progress", "TrainingResult", "test_error", "train"]

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the loss of that step."""

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class TrainingResult:
    """A trained network (evaluation mode), its card, and its test error.

    error  share of test samples misclassified, or the mean squared error per sample and output of a regression model
    psnr   dB, mean over the test samples of 10 log₁₀(peak² / mean squared error) of a reconstruction; None for a
           classifier, where the data have no range that gives the peak, and where it is not finite
    """

    model: nn.Module
    card: dict[str, Any]
    error: float
    psnr: float | None = None


def train(
    name: str | NetworkSpec,
    *,
    data: str | os.PathLike[str] | None = None,
    data_root: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> TrainingResult:
    """Minimise the recipe's mean loss over the training split with AdamW and a cosine schedule.

    name        a network of the catalogue, or a `NetworkSpec` of your own
    data        a name or path as `epsball.data.load` takes it; default: the network's own set. Data without splits
                give one sample in five, drawn with the seed, to the test
    epochs, batch_size   default: the network's recipe
    limit       train on the first so many samples only; the test error is always on the whole test split
    out         .safetensors file to write; its card (.json) is written beside it
    progress    called after every step: (steps done, steps in all, loss)

    The same seed, device, number of threads and PyTorch version give the same weights. The global random generators
    are left as they were. InputError, before any training, for whatever does not fit together.
    """
    spec = name if isinstance(name, NetworkSpec) else networks.spec(name)
    recipe = replace(
        spec.recipe,
        epochs=spec.recipe.epochs if epochs is None else _positive("epochs", epochs),
        batch_size=spec.recipe.batch_size if batch_size is None else _positive("batch_size", batch_size),
    )
    chosen = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": seed, "limit": limit}
    place = _device(device)
    model = networks.build(spec, seed)
    path = None if out is None else Path(out).expanduser()
    if path is not None:
        check_writable(path)
    given = spec.data if data is None else os.fspath(data)
    fitting, testing = _splits(given, data_root, limit, seed)
    x, target = _pair(spec, fitting)
    test_x, test_target = _pair(spec, testing)

    start = time.perf_counter()
    _fit(model.to(place), recipe, x.to(place), target.to(place), seed, progress)
    seconds = time.perf_counter() - start
    errors = _errors(model, test_x, test_target)
    error, psnr = float(errors.mean()), _psnr(spec, errors, testing)
    card = {
        "network": spec.name,
        "summary": spec.summary,
        "task": spec.task,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": given,
        "training": _describe(fitting),
        "test": _describe(testing),
        "test_error": error,
        **({} if psnr is None else {"test_psnr": psnr}),
        "test_count": len(testing),
        "loss": getattr(recipe.loss, "__name__", repr(recipe.loss)),
        "optimiser": f"AdamW, learning rate {recipe.learning_rate} falling to 0 along a cosine, "
        f"weight decay {recipe.weight_decay}",
        **chosen,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "command": _command(spec, given, chosen, path),
    }
    model = model.cpu().eval()
    return TrainingResult(model, card if path is None else save(model, card, path), error, psnr)


def test_error(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> float:
    """Return the share of x misclassified where the target is class indices, else the mean squared error.

    The model is evaluated on its own device, in evaluation mode, and its mode is restored. NaN outputs are errors.
    """
    return float(_errors(model, x, target).mean())


test_error.__test__ = False  # type: ignore[attr-defined]  # its name looks like a test to pytest


def _errors(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the error of each sample, (N,) float64: 0 or 1 for a class, else the mean squared error of its outputs."""
    place = next((parameter.device for parameter in model.parameters()), x.device)
    was_training = model.training
    model.eval()
    errors = []
    try:
        with torch.no_grad():
            for part, truth in zip(
                torch.split(x, EVALUATION_BATCH), torch.split(target, EVALUATION_BATCH), strict=True
            ):
                outputs, truth = model(part.to(place)), truth.to(place)
                if truth.is_floating_point():
                    error = (outputs - truth).square().flatten(1).mean(1)
                else:
                    error = (outputs.argmax(1) != truth) | ~torch.isfinite(outputs).all(1)
                errors.append(error.cpu().double())
    finally:
        model.train(was_training)
    return torch.cat(errors)


def _psnr(spec: NetworkSpec, errors: torch.Tensor, part: Dataset) -> float | None:
    """Return the mean PSNR in dB where the output is meant to be the input, whose range is known; else None."""
    if spec.task != "regression" or not spec.recipe.target_is_input or part.bounds is None:
        return None
    peak = part.bounds[1] - part.bounds[0]
    value = float((10.0 * (peak * peak / errors).log10()).mean())
    return value if math.isfinite(value) else None


def _fit(
    model: nn.Module,
    recipe: TrainingRecipe,
    x: torch.Tensor,
    target: torch.Tensor,
    seed: int,
    progress: Progress | None,
) -> None:
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(len(x) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    done = 0
    model.train()
    with _reproducible(x.device, seed):
        for _ in range(recipe.epochs):
            shuffled = torch.randperm(len(x), generator=order).to(x.device)
            for index in torch.split(shuffled, recipe.batch_size):
                optimiser.zero_grad()
                loss = recipe.loss(model(x[index]), target[index])
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(f"training diverged: the loss is {value} at step {done + 1} of {steps}")
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, steps, value)
    model.eval()


@contextmanager
def _reproducible(place: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators, which dropout draws from, and give them back as they were."""
    index = [] if place.type == "cpu" else [place.index or 0]
    kind = "cuda" if place.type == "cpu" else place.type
    with (
        torch.random.fork_rng(devices=index, device_type=kind),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        torch.default_generator.manual_seed(seed)
        if place.type != "cpu":
            torch.get_device_module(place).manual_seed(seed)
        yield


def _splits(data: str, root: str | os.PathLike[str] | None, limit: int | None, seed: int) -> tuple[Dataset, Dataset]:
    fitting = datasets.load(data, split="train", data_root=root, limit=None)
    if fitting.split == "all":
        if len(fitting) < 2:
            raise InputError(f"data: {data} holds one sample, training needs at least 2: one is kept for the test.")
        order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed))
        kept = max(1, len(fitting) // 5)
        fitting, testing = fitting.take(order[kept:].sort().values), fitting.take(order[:kept].sort().values)
    else:
        testing = datasets.load(data, split="test", data_root=root)
    return fitting if limit is None else fitting.head(limit), testing


def _pair(spec: NetworkSpec, part: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x, target) as the network's loss takes them, or say what does not fit."""
    shape = tuple(part.x.shape[1:])
    if shape != spec.input_shape:
        raise InputError(
            f"{spec.name} takes samples of shape {spec.input_shape}, those of {part.name} are {shape}; "
            f"use data of that shape, such as {spec.data!r}, or another network."
        )
    target = part.x if spec.recipe.target_is_input else part.target
    if target is None:
        raise InputError(f"{part.name} has no targets, {spec.name} needs them; add y, or class sub-folders.")
    if spec.task == "classification":
        if target.is_floating_point() or int(target.max()) >= spec.outputs:
            found = f"{target.dtype} targets" if target.is_floating_point() else f"class {int(target.max())}"
            raise InputError(f"{spec.name} needs class indices from 0 to {spec.outputs - 1}, {part.name} has {found}.")
    elif not target.is_floating_point() or math.prod(target.shape[1:]) != spec.outputs:
        raise InputError(
            f"{spec.name} needs floating targets of {spec.outputs} values a sample, {part.name} has "
            f"{target.dtype} of shape {tuple(target.shape)}."
        )
    return part.x, target


def _positive(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be an integer of at least 1, got {value!r}.")
    return value


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); use 'cpu'.") from error
    return place


def _describe(part: Dataset) -> dict[str, Any]:
    return {"split": part.split, "count": len(part), "source": part.source, "digest": part.digest}


def _command(spec: NetworkSpec, data: str, chosen: dict[str, Any], path: Path | None) -> str:
    words = ["epsball", "train", spec.name, "--data", data]
    defaults = {"epochs": spec.recipe.epochs, "batch_size": spec.recipe.batch_size, "seed": 0, "limit": None}
    for option, value in chosen.items():
        if value != defaults[option]:
            words += [f"--{option.replace('_', '-')}", str(value)]
    words += ["--out", path.name if path is not None else f"{spec.name}.safetensors"]
    return shlex.join(words)
