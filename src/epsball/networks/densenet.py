"""DenseNet: each layer reads the outputs of all layers before it in its block."""

from __future__ import annotations

import torch
from torch import nn

from epsball.networks.layers import CIFAR10_MEAN, CIFAR10_STD, Standardise
from epsball.networks.spec import NetworkSpec, TrainingRecipe, crop_and_flip

__all__ = ["CIFAR10_DENSENET40", "DenseLayer", "densenet"]

BLOCKS = 3


class DenseLayer(nn.Sequential):
    """Append `growth` maps, a 3x3 convolution of all maps so far, normalised and rectified: (B, C + growth, H, W)."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__(nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, growth, 3, padding=1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the maps before, and the new ones behind them."""
        new = x
        for layer in self:
            new = layer(new)
        return torch.cat((x, new), 1)


def densenet(depth: int = 40, growth: int = 12, width: int = 16, classes: int = 10) -> nn.Sequential:
    """Build the DenseNet of `depth` convolutions and fully connected layers for 32x32 colour images in [0, 1].

    `width` maps from the first convolution, then three blocks of (depth - 4) / 3 layers without bottleneck or
    compression; logits (B, classes).
    """
    layers: list[nn.Module] = [
        Standardise(CIFAR10_MEAN, CIFAR10_STD),
        nn.Conv2d(3, width, 3, padding=1, bias=False),
    ]
    for block in range(BLOCKS):
        for _ in range((depth - 4) // BLOCKS):
            layers.append(DenseLayer(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if block < BLOCKS - 1:
            layers += [nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


CIFAR10_DENSENET40 = NetworkSpec(
    name="cifar10-densenet40",
    summary="DenseNet of 40 layers, growth 12: three blocks of twelve 3x3 convolutions, batch normalisation, ReLU",
    data="cifar10",
    input_shape=(3, 32, 32),
    outputs=10,
    task="classification",
    reference="Huang, Liu, van der Maaten, Weinberger 2017; Balda, Behboodi, Mathar 2018, Section 6.1 (DenseNet)",
    build=densenet,
    recipe=TrainingRecipe(
        epochs=300,
        batch_size=64,
        learning_rate=0.1,
        weight_decay=1e-4,
        optimiser="sgd",
        warm_up=0.02,
        augment=crop_and_flip,
        half=True,
    ),
    short=TrainingRecipe(
        epochs=6,
        batch_size=128,
        learning_rate=0.2,
        weight_decay=2e-4,
        optimiser="sgd",
        warm_up=0.2,
        augment=crop_and_flip,
        sizes=((0.6, 16), (0.85, 24)),
        half=True,
    ),
)
