"""The adversarially trained MNIST network of the comparison with other libraries."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["MNIST_ROBUST", "WEIGHTS", "build"]

WEIGHTS = Path(__file__).parent / "weights" / "mnist-robust.safetensors"


def build() -> nn.Sequential:
    """Build the small convolutional network of Wong, Rice, Kolter (2020) for MNIST: two convolutions of stride 2."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


MNIST_ROBUST = NetworkSpec(
    name="mnist-robust",
    summary="two convolutions of stride 2 and two fully connected layers, trained on projected perturbations",
    data="mnist",
    input_shape=(1, 28, 28),
    outputs=10,
    task="classification",
    reference="Wong, Rice, Kolter 2020 (architecture); Madry et al. 2018 (training)",
    build=build,
    recipe=TrainingRecipe(epochs=12, batch_size=256, learning_rate=2e-3, weight_decay=0.0),
)
