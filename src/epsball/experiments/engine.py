"""Where the work of a run is done: in this process, or by a pool of Ray actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from epsball.engines.memory import Batches
from epsball.experiments.plan import Plan
from epsball.experiments.shard import Shared, Tick, do_shard

__all__ = ["Engine", "Local", "Make", "Models", "engine_of", "kind_of", "unperturbed"]

Models = Mapping[str, Callable[[Tensor], Any]]
Make = Callable[[Path], Mapping[str, Any]]

UNPERTURBED = "the model itself"


class Engine(Protocol):
    """What a run needs of the place where it is done."""

    @property
    def device(self) -> str:
        """The kind of device that results depend on."""

    def unperturbed(self, name: str, function: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return function(the model of this name, x) of all samples, on the CPU."""

    def shards(self, shared: Shared, numbers: Sequence[int], tick: Tick) -> Iterator[tuple[int, Make]]:
        """Yield the numbers of these shards, in any order, each with what writes its files into a folder."""

    def said(self) -> dict[str, Any]:
        """Return what the manifest is to say."""


class Local:
    """The process itself, on the device of the plan; what it learns of the memory holds for the whole run."""

    def __init__(self, plan: Plan, models: Models) -> None:
        self.plan, self.models, self.batches = plan, models, Batches(plan.config.batch_size)

    @property
    def device(self) -> str:
        """The kind of device that results depend on."""
        return kind_of(self.plan.device)

    def unperturbed(self, name: str, function: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return function(the model of this name, x) of all samples, on the CPU."""
        return unperturbed(self.models[name], function, self.plan.x, self.plan.device, self.batches)

    def shards(self, shared: Shared, numbers: Sequence[int], tick: Tick) -> Iterator[tuple[int, Make]]:
        """Yield the numbers of these shards in order, each with what does the work and writes the files."""
        for number in numbers:
            yield number, partial(do_shard, shared, number, batches=self.batches, tick=tick)

    def said(self) -> dict[str, Any]:
        """Return nothing but what the memory asked for."""
        return {"reduced": self.batches.reduced}


def engine_of(plan: Plan, models: Models) -> AbstractContextManager[Engine]:
    """Return the engine that the configuration asks for."""
    if plan.config.engine == "local":
        return nullcontext(Local(plan, models))
    from epsball.experiments.ray_engine import RayEngine

    return RayEngine(plan, models)


def kind_of(device: torch.device) -> str:
    """Return the type of a device, with the name of a GPU."""
    return device.type if device.type != "cuda" else f"cuda ({torch.cuda.get_device_name(device)})"


def unperturbed(
    model: Any, function: Callable[[Any, Tensor], Tensor], x: Tensor, device: torch.device, batches: Batches
) -> Tensor:
    """Compute function(model, x) batch by batch on the device; the result is on the CPU."""

    def on(rows: slice) -> Tensor:
        return function(model, x[rows].to(device)).cpu()

    return torch.cat([found for _, found in batches.each(UNPERTURBED, slice(0, len(x)), on)])
