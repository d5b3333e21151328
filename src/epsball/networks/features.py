"""What an image classifier trained elsewhere says of an image: the global features of a colorization network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.networks.layers import Standardise

__all__ = ["INCEPTION", "Features", "features_of", "inception"]

INCEPTION = "inception_resnet_v2"


class Features(nn.Module):
    """The scores that a frozen classifier of colour images gives grey ones, (B, 1, H, W) in [0, 1] -> (B, F).

    Grey stands in all three channels, resized to side x side where H x W is something else. Never in training mode.
    source  what its trained weights are known by, a network of the catalogue or of timm; None: it comes trained
    """

    def __init__(self, network: nn.Module, side: int, count: int, source: str | None = None) -> None:
        super().__init__()
        self.network, self.side, self.count, self.source = network.requires_grad_(False), side, count, source
        self.train()

    def train(self, mode: bool = True) -> Features:
        """Stay in evaluation mode: its running means are not this task's to change."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        size = (self.side, self.side)
        if tuple(x.shape[-2:]) != size:
            x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        scores: Tensor = self.network(x.expand(-1, 3, -1, -1))
        return scores

    def prepare(self) -> None:
        """Take the trained weights, rounded as a weights file in half precision holds them; InputError without any."""
        if self.source is not None:
            self.network.load_state_dict(_trained(self.source).state_dict())
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.copy_(parameter.half())


def _trained(source: str) -> nn.Module:
    if source == INCEPTION:
        return inception(trained=True)
    from epsball import networks  # the catalogue holds networks with features too

    path = networks.shipped(source)
    if not path.is_file():
        raise InputError(
            f"the colours are learnt on the scores of {source}, whose trained weights are not at {path}; train it to "
            f"there first: epsball train {source} --out {path.name}."
        )
    return networks.load(source)


def features_of(given: str | nn.Module) -> Features:
    """Build the features of a classifier: a name as `colorization` takes it, fresh, or a trained module."""
    if isinstance(given, nn.Module):
        own = copy.deepcopy(given).to("cpu", torch.float32).eval()
        with torch.no_grad():
            return Features(own, 32, own(torch.zeros(1, 3, 32, 32)).shape[1])
    if given == INCEPTION:
        return Features(inception(trained=False), 299, 1000, INCEPTION)
    from epsball import networks

    row = networks.spec(given)
    if row.task != "classification" or row.input_shape != (3, 32, 32):
        raise InputError(
            f"features must be a classifier of 32x32 colour images, such as 'cifar10-nin', or {INCEPTION!r}, got "
            f"{given!r}."
        )
    return Features(row.build(), 32, row.outputs, given)


def inception(*, trained: bool) -> nn.Module:
    """Build Inception-ResNet-v2 for 299x299 colour images in [0, 1], with timm's weights for ImageNet or fresh."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision, which timm loads, is not for this torch
        raise InputError(
            f"features={INCEPTION!r} needs the package timm, which cannot be imported ({error}); install it with: "
            "pip install 'epsball[timm]', or use features='cifar10-nin'."
        ) from error
    half = (0.5, 0.5, 0.5)
    return nn.Sequential(Standardise(half, half), timm.create_model(INCEPTION, pretrained=trained))
