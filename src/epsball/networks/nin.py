"""Network in Network: every convolution is followed by two of size 1x1, and the classes are pooled, not connected."""

from __future__ import annotations

from torch import nn

from epsball.networks.layers import CIFAR10_MEAN, CIFAR10_STD, Standardise
from epsball.networks.spec import NetworkSpec, TrainingRecipe, crop_and_flip

__all__ = ["CIFAR10_NIN", "nin"]


def _block(before: int, widths: tuple[int, int, int], size: int, *, last: bool = False) -> list[nn.Module]:
    """Convolve `size` x `size`, then 1x1 twice; each is normalised and rectified, but for the last of the network."""
    layers: list[nn.Module] = []
    for index, (width, kernel) in enumerate(zip(widths, (size, 1, 1), strict=True)):
        end = last and index == 2
        layers.append(nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=end))
        if not end:
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return layers


def nin(classes: int = 10) -> nn.Sequential:
    """Build Network in Network for 32x32 colour images in [0, 1]; logits (B, classes).

    Widths, kernels, pooling and dropout of the original; batch normalisation, which it did not know yet, makes it train
    within an hour.
    """
    return nn.Sequential(
        Standardise(CIFAR10_MEAN, CIFAR10_STD),
        *_block(3, (192, 160, 96), 5),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(0.5),
        *_block(96, (192, 192, 192), 5),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Dropout(0.5),
        *_block(192, (192, 192, classes), 3, last=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CIFAR10_NIN = NetworkSpec(
    name="cifar10-nin",
    summary="Network in Network: three blocks of one 5x5 or 3x3 and two 1x1 convolutions, batch normalisation, ReLU",
    data="cifar10",
    input_shape=(3, 32, 32),
    outputs=10,
    task="classification",
    reference="Lin, Chen, Yan 2013; Balda, Behboodi, Mathar 2018, Section 6.1 (NIN)",
    build=nin,
    recipe=TrainingRecipe(
        epochs=160,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        optimiser="sgd",
        warm_up=0.05,
        augment=crop_and_flip,
        half=True,
    ),
    # Dropout pays over many epochs only.
    short=TrainingRecipe(
        epochs=10,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        optimiser="sgd",
        warm_up=0.2,
        augment=crop_and_flip,
        sizes=((0.65, 16), (0.85, 24)),
        dropout=0.0,
        half=True,
    ),
)
