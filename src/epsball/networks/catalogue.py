"""The networks by name: fresh, or with the weights that come with epsball or with your own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.errors import InputError, unknown_name
from epsball.networks import autoencoders, colorization, densenet, fcnn, lenet5, nin
from epsball.networks.spec import NetworkSpec
from epsball.networks.storage import card_path, fill, read_card, read_tensors

__all__ = ["CATALOGUE", "build", "card", "load", "names", "shipped", "spec"]

# A new network is one file with its module and its spec, and one row here.
CATALOGUE: dict[str, NetworkSpec] = {
    row.name: row
    for row in (
        fcnn.DIGITS_FCNN,
        lenet5.DIGITS_CNN,
        autoencoders.DIGITS_AUTOENCODER,
        fcnn.MNIST_FCNN,
        lenet5.MNIST_LENET5,
        autoencoders.MNIST_AUTOENCODER,
        nin.CIFAR10_NIN,
        densenet.CIFAR10_DENSENET40,
        autoencoders.CIFAR10_AUTOENCODER,
        colorization.STL10_COLORIZATION,
    )
}


def names() -> list[str]:
    """Return the names of the networks in the catalogue."""
    return list(CATALOGUE)


def spec(name: str) -> NetworkSpec:
    """Return the catalogue's row of this name; InputError with the nearest names if there is none."""
    if name not in CATALOGUE:
        raise unknown_name("network", name, CATALOGUE)
    return CATALOGUE[name]


def build(name: str | NetworkSpec, seed: int = 0) -> nn.Module:
    """Return the network with fresh weights, in training mode; the global generators are left as they were."""
    row = name if isinstance(name, NetworkSpec) else spec(name)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer from 0 to 2^63 - 1, got {seed!r}.")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        return row.build()


def shipped(name: str) -> Path:
    """Return where the weights of this network lie inside the package, whether or not they are there."""
    return Path(__file__).parent / "weights" / f"{spec(name).name}.safetensors"


def load(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Return the network with trained weights, in evaluation mode, on the CPU.

    weights  a .safetensors file, or a .pt/.pth checkpoint of plain tensors; None: those that come with epsball.
    InputError, naming the file and the first problem, if the tensors are not exactly this network's.
    """
    path = _path(name, weights)
    module = build(name)
    fill(module, read_tensors(path), str(path))
    return module.eval()


def card(name: str, weights: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Return the card of the weights: data, seed, epochs, test error, the command that makes them again."""
    return read_card(card_path(_path(name, weights)))


def _path(name: str, given: str | os.PathLike[str] | None) -> Path:
    row = spec(name)
    if given is not None:
        return Path(given).expanduser()
    path = shipped(name)
    if not path.is_file():
        raise InputError(
            f"no weights for {name!r} come with epsball; train them and give the file: "
            f"epsball train {name} --data {row.data} --out {name}.safetensors"
        )
    return path
