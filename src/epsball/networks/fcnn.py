"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["DIGITS_FCNN", "MNIST_FCNN", "fcnn", "smoothed_cross_entropy"]


def smoothed_cross_entropy(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy with a tenth of the target's mass spread over all classes."""
    return nn.functional.cross_entropy(outputs, target, label_smoothing=0.1)


def fcnn(input_shape: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Build flatten, then linear layers of these widths with ReLU between them; the last gives the outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise((math.prod(input_shape), *widths)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


MNIST_FCNN = NetworkSpec(
    name="mnist-fcnn",
    summary="fully connected 784-150-100-10, ReLU",
    data="mnist",
    input_shape=(1, 28, 28),
    outputs=10,
    task="classification",
    reference="Balda, Behboodi, Mathar 2018, Section 6.1 (FCNN)",
    build=lambda: fcnn((1, 28, 28), (150, 100, 10)),
    recipe=TrainingRecipe(epochs=20, batch_size=64, learning_rate=2e-3, weight_decay=0.05),
)

DIGITS_FCNN = NetworkSpec(
    name="digits-fcnn",
    summary="fully connected 64-64-32-10, ReLU",
    data="digits",
    input_shape=(1, 8, 8),
    outputs=10,
    task="classification",
    reference="epsball: the small sibling of mnist-fcnn",
    build=lambda: fcnn((1, 8, 8), (64, 32, 10)),
    # So few images are learnt by heart within a few epochs: plain cross-entropy stays at 4 % test error.
    recipe=TrainingRecipe(epochs=40, batch_size=32, learning_rate=3e-3, weight_decay=0.05, loss=smoothed_cross_entropy),
)
