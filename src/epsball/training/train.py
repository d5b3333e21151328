"""Training of a network of the catalogue from its name: data, recipe, test error, card."""

from __future__ import annotations

import math
import os
import shlex
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from epsball import data as datasets
from epsball import networks
from epsball.data import Dataset
from epsball.data.dataset import digest_of
from epsball.errors import InputError
from epsball.networks import NetworkSpec, TrainingRecipe
from epsball.networks.storage import check_writable, save, weights_digest
from epsball.training.checkpoint import Checkpoint, checkpoint_path
from epsball.training.fit import MOMENTUM, Progress, fit

__all__ = ["Schedule", "TrainingResult", "test_error", "train"]

Schedule = Literal["full", "short"]

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
    schedule: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Minimise the recipe's mean loss over the training split with AdamW or SGD and a cosine schedule.

    name        a network of the catalogue, or a `NetworkSpec` of your own
    data        a name or path as `epsball.data.load` takes it; default: the network's own set. Data without splits
                give one sample in five, drawn with the seed, to the test
    epochs, batch_size   default: the network's recipe
    limit       train on the first so many samples only; the test error is always on the whole test split
    out         .safetensors file to write; its card (.json) is written beside it. While training, a checkpoint lies
                there too, at most five minutes old
    schedule    "full" or "short", the network's recipe for an accelerator or for a CPU of few cores; default: by device
    resume      go on from the checkpoint of `out` where there is one, to the weights that the undisturbed run gives
    progress    called after every step: (steps done, steps in all, loss)

    The same seed, device, number of threads and PyTorch version give the same weights. The global random generators
    are left as they were. InputError, before any training, for whatever does not fit together.
    """
    spec = name if isinstance(name, NetworkSpec) else networks.spec(name)
    place = _device(device)
    asked, own = _recipe(spec, schedule, place)
    recipe = replace(
        own,
        epochs=own.epochs if epochs is None else _positive("epochs", epochs),
        batch_size=own.batch_size if batch_size is None else _positive("batch_size", batch_size),
    )
    chosen = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "seed": seed, "limit": limit}
    model = networks.build(spec, seed)
    path = None if out is None else Path(out).expanduser()
    if path is not None:
        check_writable(path)
    elif resume:
        raise InputError("resume needs out: the checkpoint lies beside the weights.")
    given = spec.data if data is None else os.fspath(data)
    fitting, testing = _splits(given, data_root, limit, seed)
    x, target = _pair(spec, fitting)
    test_x, test_target = _pair(spec, testing)

    start = time.perf_counter()
    trained, fit_x, fit_target = model.to(place), x.to(place), target.to(place)
    if spec.part is not None:
        trained, fit_x, fit_target = spec.part(trained, fit_x, fit_target)
    identity = {
        "network": spec.name,
        "schedule": asked,
        "recipe": _described(recipe),
        **chosen,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "data": fitting.digest,
        "inputs": digest_of(fit_x, fit_target),
        "fresh weights": weights_digest(model),
    }
    checkpoint = Checkpoint(None if path is None else checkpoint_path(path), identity)
    if not resume:
        checkpoint.remove()
    seconds = time.perf_counter() - start
    seconds += fit(trained, recipe, fit_x, fit_target, seed, checkpoint, progress)
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
        "schedule": asked,
        "optimiser": _optimiser(recipe),
        "augmentation": getattr(recipe.augment, "__name__", None),
        "sizes": [list(size) for size in recipe.sizes],
        "dropout": recipe.dropout,
        "precision": "float16" if recipe.half else "float32",
        **chosen,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "command": _command(spec, given, own, chosen, asked, path),
    }
    model = model.cpu().eval()
    if path is not None:
        card = save(model, card, path, half=recipe.half)
        checkpoint.remove()
    return TrainingResult(model, card, error, psnr)


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
    """Return the mean PSNR in dB where the output is meant to be the data's sample, of known range; else None."""
    reconstructs = spec.recipe.target_is_input or spec.pairs is not None
    if spec.task != "regression" or not reconstructs or part.bounds is None:
        return None
    peak = part.bounds[1] - part.bounds[0]
    value = float((10.0 * (peak * peak / errors).log10()).mean())
    return value if math.isfinite(value) else None


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
    if spec.pairs is None:
        x, target = part.x, part.x if spec.recipe.target_is_input else part.target
    else:
        x, target = spec.pairs(part.x)
    shape = tuple(x.shape[1:])
    if not spec.takes(shape):
        raise InputError(
            f"{spec.name} takes samples of shape {spec.input_shape}, those of {part.name} are {shape}; "
            f"use data of that shape, such as {spec.data!r}, or another network."
        )
    if target is None:
        raise InputError(f"{part.name} has no targets, {spec.name} needs them; add y, or class sub-folders.")
    if spec.task == "classification":
        if target.is_floating_point() or int(target.max()) >= spec.outputs:
            found = f"{target.dtype} targets" if target.is_floating_point() else f"class {int(target.max())}"
            raise InputError(f"{spec.name} needs class indices from 0 to {spec.outputs - 1}, {part.name} has {found}.")
    elif not target.is_floating_point() or (spec.multiple is None and math.prod(target.shape[1:]) != spec.outputs):
        raise InputError(
            f"{spec.name} needs floating targets of {spec.outputs} values a sample, {part.name} has "
            f"{target.dtype} of shape {tuple(target.shape)}."
        )
    return x, target


def _positive(what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be an integer of at least 1, got {value!r}.")
    return value


def _recipe(spec: NetworkSpec, schedule: str | None, place: torch.device) -> tuple[Schedule, TrainingRecipe]:
    if schedule not in (None, "full", "short"):
        raise InputError(f"schedule must be 'full' or 'short', got {schedule!r}.")
    if spec.short is None or schedule == "full" or (schedule is None and place.type != "cpu"):
        return "full", spec.recipe
    return "short", spec.short


def _described(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return every field of a recipe as JSON knows it, functions by their name."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return {name: getattr(value, "__qualname__", value) for name, value in values.items()}


def _optimiser(recipe: TrainingRecipe) -> str:
    name = "AdamW" if recipe.optimiser == "adamw" else f"SGD with Nesterov momentum {MOMENTUM}"
    rising = f"rising from 0 over {recipe.warm_up:.0%} of the steps, then " if recipe.warm_up > 0.0 else ""
    return f"{name}, learning rate {recipe.learning_rate} {rising}falling to 0 along a cosine, weight decay " + str(
        recipe.weight_decay
    )


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


def _command(
    spec: NetworkSpec, data: str, own: TrainingRecipe, chosen: dict[str, Any], schedule: str, path: Path | None
) -> str:
    words = ["epsball", "train", spec.name, "--data", data]
    if spec.short is not None:
        words += ["--schedule", schedule]
    defaults = {"epochs": own.epochs, "batch_size": own.batch_size, "seed": 0, "limit": None}
    for option, value in chosen.items():
        if value != defaults[option]:
            words += [f"--{option.replace('_', '-')}", str(value)]
    words += ["--out", path.name if path is not None else f"{spec.name}.safetensors"]
    return shlex.join(words)
