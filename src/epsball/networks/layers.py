"""Layers that PyTorch lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "Standardise"]

# Of the 50,000 training images, each channel over all pixels in [0, 1].
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class Standardise(nn.Module):
    """(x - mean) / std by channel, (B, C, H, W): the network takes pixels in [0, 1], and eps keeps their unit."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: they are constants of the architecture, and the weights file holds what was trained.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", 1.0 / torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x standardised."""
        return (x - self.mean) * self.scale
