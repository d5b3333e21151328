"""Fully connected autoencoders: one hidden layer, narrower than the image that it must give back."""

from __future__ import annotations

import math

import torch
from torch import nn

from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["CIFAR10_AUTOENCODER", "DIGITS_AUTOENCODER", "MNIST_AUTOENCODER", "autoencoder"]


def autoencoder(input_shape: tuple[int, ...], width: int, hidden: nn.Module, output: nn.Module) -> nn.Sequential:
    """Build flatten, linear to `width`, `hidden`, linear back, `output`, unflatten; (B, *S) -> (B, *S).

    The fresh weights W (width, n) are orthonormal rows, and Wᵀ on the way back: a projection on random directions.
    """
    size = math.prod(input_shape)
    encoder, decoder = nn.Linear(size, width), nn.Linear(width, size)
    # From PyTorch's own start the networks for digits end about 2 dB of PSNR lower, and the wide one learns far slower.
    nn.init.orthogonal_(encoder.weight)
    with torch.no_grad():
        decoder.weight.copy_(encoder.weight.T)
    return nn.Sequential(nn.Flatten(), encoder, hidden, decoder, output, nn.Unflatten(1, input_shape))


def _recipe(epochs: int, batch_size: int, learning_rate: float) -> TrainingRecipe:
    """The loss is the error that an attack on an autoencoder raises."""
    return TrainingRecipe(
        epochs, batch_size, learning_rate, weight_decay=0.0, loss=nn.functional.mse_loss, target_is_input=True
    )


# Sigmoid output: most pixels of a digit are 0 or nearly 1, which it reaches and a linear output does not.
MNIST_AUTOENCODER = NetworkSpec(
    name="mnist-autoencoder",
    summary="fully connected autoencoder 784-31-784 (96 % compression), ReLU, sigmoid output",
    data="mnist",
    input_shape=(1, 28, 28),
    outputs=784,
    task="regression",
    reference="Balda, Behboodi, Mathar 2018, Section 6.2 (MNIST autoencoder)",
    build=lambda: autoencoder((1, 28, 28), 31, nn.ReLU(), nn.Sigmoid()),
    recipe=_recipe(epochs=30, batch_size=128, learning_rate=3e-3),
)

DIGITS_AUTOENCODER = NetworkSpec(
    name="digits-autoencoder",
    summary="fully connected autoencoder 64-16-64 (75 % compression), ReLU, sigmoid output",
    data="digits",
    input_shape=(1, 8, 8),
    outputs=64,
    task="regression",
    reference="epsball: the small sibling of mnist-autoencoder",
    build=lambda: autoencoder((1, 8, 8), 16, nn.ReLU(), nn.Sigmoid()),
    recipe=_recipe(epochs=100, batch_size=32, learning_rate=5e-3),
)

# Linear output: the pixels of photographs seldom lie at 0 or 1, where a sigmoid would help. tanh keeps both signs of
# every direction, and half the dimensions are too few to spend two on one, as ReLU does.
CIFAR10_AUTOENCODER = NetworkSpec(
    name="cifar10-autoencoder",
    summary="fully connected autoencoder 3072-1536-3072 (50 % compression), tanh, linear output",
    data="cifar10",
    input_shape=(3, 32, 32),
    outputs=3072,
    task="regression",
    reference="Balda, Behboodi, Mathar 2018, Section 6.2 (CIFAR-10 autoencoder)",
    build=lambda: autoencoder((3, 32, 32), 1536, nn.Tanh(), nn.Identity()),
    recipe=_recipe(epochs=10, batch_size=256, learning_rate=3e-4),
)
