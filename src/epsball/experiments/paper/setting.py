"""How the paper's tables and figures are made: on what, how many samples, where the results go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import epsball
from epsball import data, networks
from epsball.data import Dataset
from epsball.errors import InputError
from epsball.experiments.paper.common import Progress, check_writable, versions
from epsball.experiments.paper.parts import Parts

__all__ = ["Loaded", "Setting"]

_BATCH = 250


@dataclass(frozen=True, eq=False)
class Loaded:
    """A network with the test images that it is measured on, and where its weights are from."""

    model: nn.Module
    images: Dataset
    weights: str
    identity: Mapping[str, Any]  # what `Parts` knows them by: digests of weights and images
    batch_size: int


@dataclass(frozen=True)
class Setting:
    """What all tables and figures take.

    out         folder for the record, the rows, the tables and the figures
    batch_size  samples at a time; None: 250
    limit       test images of each network: the first so many for classifiers, of a seeded order for regressors
    weights     NETWORK: file, instead of the weights that come with epsball
    panels      letters of the panels to make, "" for all
    resume      keep the parts that an earlier run into `out` finished
    """

    out: Path
    data_root: str | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    panels: str = ""
    resume: bool = False
    progress: Progress | None = None
    _trained: set[str] = field(default_factory=set, repr=False)  # by this run, into out/weights

    def prepare(self, panels: str = "") -> Parts:
        """Check, before any work, that the folder can be written and that the panels are among the known ones."""
        if not set(self.panels) <= set(panels):
            raise InputError(f"expected --panels as letters of {panels!r}, got {self.panels!r}.")
        for network, file in self.weights.items():
            networks.load(network, file)
        check_writable(self.out)
        return Parts.at(self.out, resume=self.resume)

    def has(self, panel: str) -> bool:
        """Tell whether a panel is to be made."""
        return not self.panels or panel in self.panels

    def classifier(self, network: str) -> Loaded:
        """Load a network with the first `limit` of its labelled test images."""
        images = data.load(networks.spec(network).data, split="test", data_root=self.data_root, limit=self.limit)
        return self._loaded(network, images)

    def has_weights(self, network: str) -> bool:
        """Tell whether a network has weights: given, or with epsball."""
        return network in self.weights or networks.shipped(network).is_file()

    def weights_of(self, network: str) -> str | None:
        """Return the file of the weights: given, or None for those with epsball, or trained now into out/weights."""
        if self.has_weights(network):
            return self.weights.get(network)
        return str(self._train(network))

    def regressor(self, network: str, dataset: str, count: int) -> Loaded:
        """Load a network with `count` test images in an order drawn from the seed, as it takes them.

        Weights that do not come with epsball and were not given are trained first, into out/weights.
        """
        chosen = data.load(dataset, split="test", data_root=self.data_root)
        order = torch.randperm(len(chosen.x), generator=torch.Generator().manual_seed(self.seed))
        images, spec = chosen.take(order[:count]), networks.spec(network)
        if spec.pairs is not None:
            images = replace(images, x=spec.pairs(images.x)[0])
        shape = tuple(images.x.shape[1:])
        if not spec.takes(shape):
            raise InputError(
                f"expected images of shape {spec.input_shape} for {network}, got {shape} in {images.name}."
            )
        return self._loaded(network, images)

    def _loaded(self, network: str, images: Dataset) -> Loaded:
        given = self.weights_of(network)
        path = networks.shipped(network) if given is None else Path(given).expanduser()
        model = networks.load(network, given)
        # The same function, in the layout that convolutions are faster in.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        identity = {
            "network": network,
            "weights": hashlib.sha256(path.read_bytes()).hexdigest(),
            "images": images.digest,
            "seed": self.seed,
            "code": _code(),
            **versions(),
        }
        return Loaded(model, images, given or "shipped with epsball", identity, self.batch_size or _BATCH)

    def _train(self, network: str) -> Path:
        from epsball.training import train

        path = self.out / "weights" / f"{network}.safetensors"
        if path.is_file() and (self.resume or network in self._trained):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.say(f"training {network}, whose weights do not come along", 0, 1)
        train(
            network,
            data_root=self.data_root,
            out=path,
            resume=self.resume,
            progress=lambda done, total, loss: self.say(f"training {network}, loss {loss:.4g}", done, total),
        )
        self._trained.add(network)
        return path

    def say(self, label: str, done: int, total: int) -> None:
        """Tell how far a part is."""
        if self.progress is not None:
            self.progress(label, done, total, done / total)

    def counter(self, label: str, total: int) -> Callable[[int], None]:
        """Return a function that is told "so many more samples are done"."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.say(label, done, total)

        return advance

    def record(self, figure: str) -> dict[str, Any]:
        """Return what every record begins with: command, seed, limit, versions."""
        made_by = f"epsball paper {figure}" + (f" --panels {self.panels}" if self.panels else "")
        return {"made_by": made_by, "seed": self.seed, "limit": self.limit, **versions()}


@cache
def _code() -> str:
    """Return the digest of this package's source: rows of two versions are never put together."""
    root = Path(epsball.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
