"""The networks that are attacked, their samples and their budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from benchmarks.peers import resnet, robust
from torch import Tensor, nn

from epsball.networks.storage import fill, read_tensors

OWN = {  # networks that were trained for this comparison alone, and lie beside it
    "mnist-robust": (robust.build, robust.WEIGHTS),
    "cifar10-resnet": (resnet.build, resnet.WEIGHTS),
}
EVERY = (1.0, 2.0, math.inf)


@dataclass(frozen=True)
class Subject:
    """A network by name. eps: for each norm the budgets of the fixed part, small to large. data: of the catalogue."""

    name: str
    data: str
    eps: dict[float, tuple[float, ...]]
    classes: int = 10
    robust: bool = field(default=False)


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("mnist-fcnn", "mnist", {1.0: (2.0, 4.0, 6.0), 2.0: (0.5, 1.0, 1.5), math.inf: (0.02, 0.05, 0.1)}),
        Subject("mnist-lenet5", "mnist", {1.0: (4.0, 8.0, 12.0), 2.0: (1.0, 1.5, 2.0), math.inf: (0.05, 0.1, 0.15)}),
        Subject(
            "mnist-robust",
            "mnist",
            {1.0: (5.0, 10.0, 20.0), 2.0: (1.0, 2.0, 3.0), math.inf: (0.2, 0.3, 0.35)},
            robust=True,
        ),
        Subject(
            "cifar10-nin",
            "cifar10",
            {1.0: (1.0, 3.0, 6.0), 2.0: (0.1, 0.25, 0.5), math.inf: (1 / 255, 2 / 255, 4 / 255)},
        ),
        Subject(
            "cifar10-resnet",
            "cifar10",
            {1.0: (1.0, 3.0, 6.0), 2.0: (0.1, 0.25, 0.5), math.inf: (1 / 255, 2 / 255, 4 / 255)},
        ),
    )
}


def load(name: str) -> nn.Module:
    """Return a trained network in eval mode, its parameters still asking for gradients, as a user's would."""
    from epsball import networks

    if name not in OWN:
        return networks.load(name)
    build, weights = OWN[name]
    module = build()
    fill(module, read_tensors(weights), str(weights))
    return module.eval()


def samples(name: str, model: nn.Module, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first `count` test images that the model classifies correctly: x, y, their places in the test set."""
    from epsball import data

    found: list[tuple[Tensor, Tensor, Tensor]] = []
    held = 0
    everything = data.load(SUBJECTS[name].data, split="test")
    assert everything.target is not None
    for start in range(0, len(everything.x), 500):
        x, y = everything.x[start : start + 500], everything.target[start : start + 500]
        with torch.no_grad():
            right = model(x).argmax(1) == y
        found.append((x[right], y[right], everything.ids[start : start + 500][right]))
        held += int(right.sum())
        if held >= count:
            break
    x, y, ids = (torch.cat(parts)[:count] for parts in zip(*found, strict=True))
    return x, y, ids
