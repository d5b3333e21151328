"""Everything a run needs, read and checked before any work."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball import data as datasets
from epsball import networks
from epsball.attack import Attack
from epsball.data import Dataset
from epsball.errors import InputError
from epsball.experiments.config import RunConfig
from epsball.experiments.devices import device_of, here_of
from epsball.experiments.pictures import check_pictures
from epsball.metrics.regression import model_outputs
from epsball.models import OwnSpec, check_model_door, load_model, opened
from epsball.sets import on_lattice
from epsball.validation import check_bounds_contain, check_class_range

__all__ = ["LoadedModel", "Plan", "prepare", "value_range"]


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, in the run's type and on its device, and what the manifest says of it."""

    name: str
    module: nn.Module
    summary: str
    digest: str
    parameters: int
    card: dict[str, Any] | None
    details: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the manifest's entry; digest is the sha256 of the weights file, or of what `details` says instead."""
        return {
            "name": self.name,
            "summary": self.summary,
            "digest": self.digest,
            "parameters": self.parameters,
            "card": self.card,
        } | self.details


@dataclass(frozen=True)
class Plan:
    """A run that can start. x is in the run's type on the CPU; batches move to the device one by one.

    of: how many samples the data set holds, None where the limit kept it from being counted. target: class indices
    (N,), or reference outputs (N, *O), None where they are the model's own. reference: where those of a regression run
    come from, "data", "input" or "output". peak: the range of x that PSNR refers to.
    """

    config: RunConfig
    dataset: Dataset
    of: int | None
    x: torch.Tensor
    target: torch.Tensor | None
    reference: str | None
    model: LoadedModel
    surrogates: tuple[LoadedModel, ...]
    bounds: tuple[float, float] | None
    attacks: dict[str, Attack]
    device: torch.device
    peak: float

    @property
    def here(self) -> torch.device:
        """Where the models of this process are: workers of Ray move theirs to `device` themselves."""
        return here_of(self.config, self.device)


def prepare(config: RunConfig) -> Plan:
    """Read the data and the weights of a run and check that they fit each other; InputError if they do not."""
    spec = config.spec
    if not config.wraps:
        _check_surrogates(config, spec)
    device, dtype = device_of(config), getattr(torch, config.dtype)
    here = here_of(config, device)
    if config.wraps:
        model = _wrapped_model(config, here, dtype)
    else:
        model = _load_model(config.model, config.weights, here, dtype)
    surrogates = tuple(_load_model(name, None, here, dtype) for name in config.surrogates)
    dataset, of = _load_data(config, spec.data)
    made = None
    if config.wraps:
        spec = _tried(config, spec, model, dataset, here, dtype)
        _check_surrogates(config, spec)
    else:
        dataset, made = _inputs(dataset, spec)
    x, reference = dataset.x.to(dtype), None
    target: torch.Tensor | None
    if config.regresses:
        target, reference = _reference(dataset, made, spec, config.target, x)
        if config.wraps and target is not None and target.dim() == 1:
            target = target[:, None]  # as the wrapped model returns one number a sample
        _check_output(model, x, here, target, reference)
    else:
        target = _labels(dataset, spec)
    bounds = dataset.bounds if config.bounds == "data" else config.bounds
    check_bounds_contain(x, bounds)
    if config.lattice is not None and bounds is not None:
        x = on_lattice(x, config.lattice, bounds)
    if config.save is not None:
        check_pictures(tuple(x.shape[1:]), bounds, config.lattice)
    return Plan(
        config=config,
        dataset=dataset,
        of=of,
        x=x,
        target=target,
        reference=reference,
        model=model,
        surrogates=surrogates,
        bounds=bounds,
        attacks={
            name: config.compose(name, bounds, [s.module for s in surrogates], shape=tuple(x.shape[1:]))
            for name in config.attacks
        },
        device=device,
        peak=value_range(x, dataset.bounds or bounds),
    )


def _load_model(name: str, weights: str | None, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    module = networks.load(name, weights)
    path = networks.shipped(name) if weights is None else Path(weights).expanduser()
    try:
        card = networks.card(name, weights)
    except InputError:  # weights of one's own need no card
        card = None
    return LoadedModel(
        name=name,
        module=module.to(device=device, dtype=dtype),
        summary=networks.spec(name).summary,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        card=card,
    )


def _wrapped_model(config: RunConfig, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a model of one's own, or one of the catalogue with preprocessing or a choice of outputs around it."""
    module = load_model(
        config.model,
        config.weights,
        mean=config.mean or None,
        std=config.std or None,
        resize=config.resize,
        channel_order=config.channel_order,
        output=config.output,
        device=device,
    )
    details = module.describe()
    return LoadedModel(
        name=config.model,
        module=module.to(dtype=dtype),
        summary=config.spec.summary,
        digest=str(details.pop("digest", None) or ""),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        card=None,
        details=details,
    )


def _tried(
    config: RunConfig,
    spec: networks.NetworkSpec,
    model: LoadedModel,
    dataset: Dataset,
    device: torch.device,
    dtype: torch.dtype,
) -> OwnSpec:
    """Run the model forward and back on a sample or two, and return the row with the shapes that it has."""
    shape = check_model_door(model.module, dataset.x[:2].to(device=device, dtype=dtype), config.model)
    if not config.regresses and len(shape) != 1:
        raise InputError(
            f"expected {config.model} to return class scores (B, K), or one logit (B, 1), got (B, "
            f"{', '.join(map(str, shape))}); choose a part with --output, such as --output '[:,0,0]' for the scores of "
            "one pixel of a map, or give --task regression, which measures how far the whole output moves."
        )
    # One logit stands for two classes.
    outputs = 2 if shape == (1,) and not config.regresses else math.prod(shape)
    return opened(spec, tuple(dataset.x.shape[1:]), outputs)


def _check_surrogates(config: RunConfig, spec: networks.NetworkSpec) -> None:
    for name in config.surrogates:
        other = networks.spec(name)
        if (other.input_shape, other.outputs) != (spec.input_shape, spec.outputs):
            raise InputError(
                f"expected surrogates that take {spec.input_shape} and return {spec.outputs} scores as {spec.name} "
                f"does, got {name} with {other.input_shape} and {other.outputs}; choose another."
            )


def _load_data(config: RunConfig, default: str) -> tuple[Dataset, int | None]:
    name = config.data or default
    if name in datasets.names():
        if config.x_columns or config.y_columns:
            raise InputError(f"expected a Parquet file for x_columns and y_columns, got {name!r}; leave them out.")
        whole = datasets.load(name, split=config.split, data_root=config.data_root)
        return (whole if config.limit is None else whole.head(config.limit)), len(whole)
    # Samples of a folder or a table are read one by one: not more of them than asked for.
    found = datasets.load(
        name,
        split=config.split,
        data_root=config.data_root,
        limit=config.limit,
        skip_bad=config.skip_bad,
        x_columns=config.x_columns,
        y_columns=config.y_columns,
    )
    if found.total is not None:
        return found, found.total
    return found, None if len(found) == config.limit else len(found)


def _inputs(dataset: Dataset, spec: networks.NetworkSpec) -> tuple[Dataset, torch.Tensor | None]:
    """Return the samples that the network takes, and the reference outputs where both are made of the data."""
    shape = tuple(dataset.x.shape[1:])
    if spec.takes(shape):
        return dataset, None
    if spec.pairs is not None and len(shape) == 3 and spec.takes((spec.input_shape[0], *shape[1:])):
        x, made = spec.pairs(dataset.x)
        return replace(dataset, x=x), made
    sizes = "" if spec.multiple is None else f", or of any height and width that are multiples of {spec.multiple}"
    raise InputError(
        f"expected samples of shape {spec.input_shape} for {spec.name}{sizes}, got {shape} in {dataset.name}; use data "
        f"of that shape, such as {spec.data!r}, or another network."
    )


def _labels(dataset: Dataset, spec: networks.NetworkSpec) -> torch.Tensor:
    """Return the class indices as the classifier takes them, or say what does not fit."""
    if dataset.target is None:
        raise InputError(f"expected class labels in {dataset.name}, got none; add y, or class sub-folders.")
    if dataset.target.is_floating_point() or dataset.target.dim() != 1:
        raise InputError(
            f"expected class indices (N,) as targets in {dataset.name}, got {dataset.target.dtype} of shape "
            f"{tuple(dataset.target.shape)}; classification needs integer labels."
        )
    check_class_range(dataset.target, spec.outputs)
    return dataset.target


def _reference(
    dataset: Dataset, made: torch.Tensor | None, spec: networks.NetworkSpec, asked: str | None, x: torch.Tensor
) -> tuple[torch.Tensor | None, str]:
    """Return the reference outputs, None for the model's own, and where they come from; made: those of `_inputs`."""
    own = dataset.target if dataset.target is not None and dataset.target.is_floating_point() else None
    # Labels are no reference outputs; an autoencoder's input is one, since it was trained to give it back.
    kind = asked or ("data" if own is not None else "input" if spec.recipe.target_is_input else "output")
    if kind == "data":
        own = made if own is None else own
        if own is None:
            raise InputError(
                f"expected reference outputs (a floating y) in {dataset.name}, got "
                f"{'none' if dataset.target is None else 'class labels'}; give --target input or --target output."
            )
        return own.to(x.dtype), kind
    return (x if kind == "input" else None), kind


def _check_output(
    model: LoadedModel, x: torch.Tensor, device: torch.device, target: torch.Tensor | None, reference: str
) -> None:
    """Refuse a reference of another shape than the output, from the output of one sample."""
    shape = tuple(model_outputs(model.module, x[:1].to(device)).shape[1:])
    if target is not None and tuple(target.shape[1:]) != shape:
        source = "the input as reference output" if reference == "input" else "reference outputs y"
        raise InputError(
            f"expected {source} of the shape {shape} that {model.name} returns, got {tuple(target.shape[1:])}; give "
            "--target output to measure against the network's own output, or data with a y of that shape."
        )


def value_range(x: torch.Tensor, bounds: tuple[float, float] | None = None) -> float:
    """Return the length of the range, that of the values where no range is known, 1 where they are all one."""
    lo, hi = bounds if bounds is not None else (float(x.min()), float(x.max()))
    return hi - lo if hi > lo else 1.0
