"""The small residual network of the comparison with other libraries: batch norm, 12 million multiply-adds.

    EPSBALL_DATA=... python -m benchmarks.peers.resnet

trains it on CIFAR-10 and writes the weights and their card to `weights/`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from epsball.networks.layers import CIFAR10_MEAN, CIFAR10_STD, Standardise
from epsball.networks.spec import NetworkSpec, TrainingRecipe, crop_and_flip

__all__ = ["CIFAR10_RESNET", "WEIGHTS", "build"]

WEIGHTS = Path(__file__).parent / "weights" / "cifar10-resnet.safetensors"


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

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


def build() -> nn.Sequential:
    """Build the network: eight layers, a block for each of the widths 16, 32 and 64; logits (B, 10)."""
    return nn.Sequential(
        Standardise(CIFAR10_MEAN, CIFAR10_STD),
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Block(16, 16, 1),
        _Block(16, 32, 2),
        _Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


CIFAR10_RESNET = NetworkSpec(
    name="cifar10-resnet",
    summary="residual network of eight layers with batch norm, widths 16, 32 and 64",
    data="cifar10",
    input_shape=(3, 32, 32),
    outputs=10,
    task="classification",
    reference="He, Zhang, Ren, Sun 2016, Section 4.2, with n = 1 and projections for shortcuts",
    build=build,
    recipe=TrainingRecipe(
        epochs=20,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        optimiser="sgd",
        warm_up=0.1,
        augment=crop_and_flip,
        sizes=((0.5, 16), (0.75, 24)),
        half=True,
    ),
)


def main() -> None:
    """Train and save."""
    from epsball.networks.storage import save
    from epsball.training import train

    torch.set_num_threads(1)
    result = train(CIFAR10_RESNET, out=WEIGHTS, resume=True, progress=_say)
    card = {**result.card, "command": "python -m benchmarks.peers.resnet"}
    print(save(result.model, card, WEIGHTS, half=CIFAR10_RESNET.recipe.half))


def _say(done: int, steps: int, loss: float) -> None:
    if done % 100 == 0:
        print(f"{done}/{steps} loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
