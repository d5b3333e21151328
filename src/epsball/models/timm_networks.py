"""Networks of timm by name, with the preprocessing that they were trained with."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import parse_qsl

from torch import Tensor, nn

from epsball.errors import InputError, unknown_name
from epsball.models.optional import import_adapter
from epsball.models.wrapped import Interpolation, Preprocessing

__all__ = ["OPTIONS", "build_timm", "read_timm"]

OPTIONS = ("num_classes", "in_chans", "img_size")


def read_timm(text: str) -> tuple[str, dict[str, int]]:
    """Read "timm:resnet18?num_classes=10" as the name and the whole numbers that are given to timm."""
    name, _, query = text[len("timm:") :].partition("?")
    options: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in OPTIONS or not value.isdigit() or int(value) < 1:
            raise InputError(
                f"expected {', '.join(OPTIONS)} as whole numbers after the ?, got {key}={value!r} in {text!r}."
            )
        options[key] = int(value)
    if not name:
        raise InputError(f"expected timm:NAME such as timm:resnet18, got {text!r}.")
    return name, options


def build_timm(
    name: str, options: dict[str, int], tensors: dict[str, Tensor] | None, *, pretrained: bool
) -> tuple[nn.Module, Preprocessing]:
    """Return the network and its preprocessing: mean, std and input size of its configuration in timm.

    tensors: weights that will be filled in; the number of classes and channels is theirs where the options leave it
    open. pretrained: with timm's own weights, downloaded once. Without either the weights are random.
    """
    timm = import_adapter("timm", "timm")
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise unknown_name("timm network", name, timm.list_models())
    if tensors is not None:
        options = _sizes(timm, name, tensors) | options
    try:
        module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # no such weights, no network, a wrong size, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "its weights cannot be fetched" if pretrained else "timm cannot build it"
        remedy = "give a file with --weights FILE" if pretrained else "check the numbers after the ?"
        raise InputError(f"timm:{name}: {what} ({type(error).__name__}: {reason}); {remedy}.") from error
    config = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    mean, std = (tuple(config[key]) for key in ("mean", "std"))
    if channels != len(mean):
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation = "bicubic" if config.get("interpolation") == "bicubic" else "bilinear"
    return module, Preprocessing(mean, std, (height, width), "rgb", cast(Interpolation, interpolation))


def _sizes(timm: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Read the number of classes and of input channels off the weights."""
    found: dict[str, int] = {}
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    for key, layer, dim in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        place = getattr(config, layer, None)
        place = place[0] if isinstance(place, (tuple, list)) and place else place
        weight = tensors.get(f"{place}.weight")
        if weight is not None and weight.dim() > dim:
            found[key] = int(weight.shape[dim])
    return found
