"""LeNet-5, and a convolutional network in its manner for 8x8 digits."""

from __future__ import annotations

from torch import nn

from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["DIGITS_CNN", "MNIST_LENET5", "digits_cnn", "lenet5"]


def lenet5() -> nn.Sequential:
    """Build LeNet-5 for 28x28 grey images, with average pooling as in the original, ReLU, and logits as outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def digits_cnn() -> nn.Sequential:
    """Build two 3x3 convolutions, one pooling and one hidden layer for 8x8 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


MNIST_LENET5 = NetworkSpec(
    name="mnist-lenet5",
    summary="LeNet-5: two 5x5 convolutions (6, 16), average pooling, 120-84-10, ReLU",
    data="mnist",
    input_shape=(1, 28, 28),
    outputs=10,
    task="classification",
    reference="LeCun, Bottou, Bengio, Haffner 1998; Balda, Behboodi, Mathar 2018, Section 6.1 (LeNet-5)",
    build=lenet5,
    recipe=TrainingRecipe(epochs=12, batch_size=64, learning_rate=2e-3, weight_decay=0.05),
)

DIGITS_CNN = NetworkSpec(
    name="digits-cnn",
    summary="two 3x3 convolutions (16, 16), max pooling, 64-10, ReLU",
    data="digits",
    input_shape=(1, 8, 8),
    outputs=10,
    task="classification",
    reference="epsball: the small sibling of mnist-lenet5",
    build=digits_cnn,
    recipe=TrainingRecipe(epochs=30, batch_size=32, learning_rate=2e-3, weight_decay=0.05),
)
