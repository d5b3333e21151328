"""The networks that are attacked, their samples and their budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
    )
}


def load(name: str) -> nn.Module:
    """Return a trained network in eval mode, its parameters still asking for gradients, as a user's would."""
    from epsball import networks

    if name == "mnist-robust":
        from benchmarks.peers import robust

        from epsball.networks.storage import fill, read_tensors

        if not robust.WEIGHTS.is_file():
            raise FileNotFoundError(
                f"no weights at {robust.WEIGHTS.name}; make them with benchmarks/peers/train_robust.py"
            )
        module = robust.build()
        fill(module, read_tensors(robust.WEIGHTS), str(robust.WEIGHTS))
        return module.eval()
    return networks.load(name)


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


def resnet(seed: int = 0) -> nn.Module:
    """Build a small residual network with batch norm for 32x32 images, untrained: for times and memory alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        blocks = [_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)]
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        # Statistics as training leaves them, so that folding the normalisation is no identity.
        with torch.no_grad():
            for _ in range(5):
                model(torch.rand(64, 3, 32, 32))
    return model.eval()


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.second(self.first(x)) + self.short(x))
        return result
