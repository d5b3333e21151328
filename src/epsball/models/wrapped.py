"""A model with its preprocessing and its choice of outputs inside, so that eps and bounds stay in data units."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from epsball.errors import InputError
from epsball.models.select import Output
from epsball.target_model import _held, describe_outputs

__all__ = ["Preprocessing", "WrappedModel", "read_size"]

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """x in data units -> what the network was trained on: resized, channels in its order, then (x - mean) / std.

    mean, std       one number, or one for each channel in the network's own order; in data units
    resize          (height, width), with antialiasing, of images (B, C, H, W); None: as they are
    channel_order   "bgr" reverses the channels of the data, which are in RGB order
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, int] | None = None
    channel_order: str = "rgb"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None:
                values = (values,) if isinstance(values, (int, float)) else tuple(float(v) for v in values)
                if not values or not all(math.isfinite(v) for v in values):
                    raise InputError(f"expected {name} as finite numbers, one or one a channel, got {values}.")
                object.__setattr__(self, name, values)
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"expected std > 0 in data units, got {self.std}; images in [0, 1] have about 0.2.")
        if self.mean and self.std and 1 not in (len(self.mean), len(self.std)) and len(self.mean) != len(self.std):
            raise InputError(f"expected as many std as mean, got {len(self.mean)} mean and {len(self.std)} std.")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise InputError(f"expected resize as HEIGHTxWIDTH of at least 1x1, got {self.resize}.")
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError(f"expected channel_order 'rgb' or 'bgr', got {self.channel_order!r}.")

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self.mean is None and self.std is None and self.resize is None and self.channel_order == "rgb"

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the network takes, from x (B, *S) in data units."""
        image = x.dim() == 4
        if (self.resize is not None or self.channel_order == "bgr") and not image:
            raise InputError(
                f"expected images (B, C, H, W) to resize or reorder, got shape {tuple(x.shape)}; leave resize and "
                "channel_order out."
            )
        if self.resize is not None and tuple(x.shape[2:]) != tuple(self.resize):
            x = functional.interpolate(
                x, size=self.resize, mode=self.interpolation, align_corners=False, antialias=True
            )
        if self.channel_order == "bgr":
            x = x.flip(1)
        if self.mean is not None:
            x = x - self._column("mean", self.mean, x)
        if self.std is not None:
            x = x / self._column("std", self.std, x)
        return x

    def describe(self) -> dict[str, Any]:
        """Return what is done, for the manifest; only what changes something."""
        found = {
            "resize": None if self.resize is None else f"{self.resize[0]}x{self.resize[1]}, {self.interpolation}",
            "channel_order": None if self.channel_order == "rgb" else self.channel_order,
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }
        return {name: value for name, value in found.items() if value is not None}

    @staticmethod
    def _column(name: str, values: Sequence[float], x: Tensor) -> Tensor:
        if len(values) not in (1, x.shape[1]):
            raise InputError(
                f"expected {name} as one number or one for each of the {x.shape[1]} channels of x, got {len(values)}; "
                "give as many as the data have channels, or data with as many channels."
            )
        return torch.as_tensor(values, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.dim() - 2))


class WrappedModel(nn.Module):
    """x (B, *S) in data units -> outputs (B, *O): preprocessing, the network, the selected outputs.

    source: where the network comes from and what is known of it, for the manifest.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Any],
        preprocessing: Preprocessing | None = None,
        output: Output | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network  # a plain callable is kept as it is, a module becomes a sub-module
        if not isinstance(network, nn.Module):
            # The modules that it holds are moved, put in eval mode and counted like sub-modules.
            self.held = nn.ModuleList(dict.fromkeys(_held(network, 3)))
        self.preprocessing = preprocessing or Preprocessing()
        self.output = output
        self.source = source or {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected outputs; InputError, saying what there is, where they are no tensor."""
        outputs = self.network(self.preprocessing(x))
        found = outputs if self.output is None else self.output(outputs)
        if not isinstance(found, Tensor):
            raise InputError(
                f"expected the model to return a tensor, got {describe_outputs(found)}; choose a part of it with "
                "output= (--output), a key or an index."
            )
        # One number a sample, (B,), is (B, 1): the logit of two classes, or a regression output.
        return found[:, None] if found.dim() == 1 else found

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the model, beside its name and its weights."""
        found = dict(self.source)
        if not self.preprocessing.identity:
            found["preprocessing"] = self.preprocessing.describe()
        if self.output is not None:
            found["output"] = self.output.text
        return found


def read_size(text: str) -> tuple[int, int] | None:
    """Read "224x160" as (height, width) = (224, 160), "224" as a square, "none" as None."""
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"\s*(\d{1,5})(?:\s*[xX,]\s*(\d{1,5}))?\s*", text)
    if match is None:
        raise InputError(f"expected resize as HEIGHTxWIDTH such as 224x224, or none, got {text!r}.")
    return int(match[1]), int(match[2] or match[1])
