"""The one door to all models: a text, perhaps weights, and a module in data units comes back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball import networks
from epsball.data.user_code import call, load_object, source_digest
from epsball.errors import InputError
from epsball.models.exported import load_exported
from epsball.models.onnx_files import load_onnx
from epsball.models.reference import Reference, parse
from epsball.models.select import Output
from epsball.models.timm_networks import build_timm, read_timm
from epsball.models.wrapped import Preprocessing, WrappedModel, read_size
from epsball.networks.storage import fill, read_tensors

__all__ = ["PRETRAINED", "load_model"]

PRETRAINED = "pretrained"


def load_model(
    text: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    resize: str | tuple[int, int] | None = None,
    channel_order: str = "rgb",
    output: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> WrappedModel:
    """Return a model x (B, *S) in data units -> outputs (B, *O), in evaluation mode, its preprocessing inside.

    text     a network of the catalogue; `file.py:factory` or `package.module:factory`, Python that is run and whose
             factory returns the network; an exported program FILE.pt2; FILE.onnx; or timm:NAME
    weights  .safetensors, or a .pt/.pth checkpoint of plain tensors, exactly those of the network; "pretrained" for
             timm's own. Without: the catalogue's; of Python code and timm, what it builds, with random numbers from
             `seed`; .pt2 and .onnx have their own
    mean, std, resize, channel_order  as in `Preprocessing`; resize also as "224x224", or "none" to keep timm's network
             from resizing to its own input size
    output   which part of the outputs counts, as in `Output`

    InputError for whatever is absent, damaged or does not fit. Models are data and nothing is unpickled, but Python
    code of your own is run.
    """
    reference, where = parse(text), torch.device(device)
    selected = None if output is None else Output(output)
    if reference.kind in ("pt2", "onnx") and weights is not None:
        raise InputError(f"expected no weights for {text}, which holds its own, got {str(weights)!r}; leave them out.")
    if weights == PRETRAINED and reference.kind != "timm":
        raise InputError(f"expected a file of weights for {text}, got 'pretrained', which is for timm:NAME.")
    network, own, source = _network(reference, weights, seed, where)
    size = read_size(resize) if isinstance(resize, str) else resize
    preprocessing = Preprocessing(
        mean=_numbers(own.mean if mean is None else mean),
        std=_numbers(own.std if std is None else std),
        resize=own.resize if resize is None else size,
        channel_order=channel_order,
        interpolation=own.interpolation,
    )
    model = WrappedModel(network, preprocessing, selected, {"source": text} | source)
    for module in model.modules():
        module.training = False  # eval() is refused by exported programs
    return model.to(where)


def _network(
    reference: Reference, weights: str | os.PathLike[str] | None, seed: int, device: torch.device
) -> tuple[Callable[..., Any], Preprocessing, dict[str, Any]]:
    """Return the network, the preprocessing that comes with it, and what the manifest says of it."""
    plain = Preprocessing()
    path = Path(reference.text).expanduser()
    if reference.kind in ("pt2", "onnx") and not path.is_file():
        raise InputError(f"model: {path} does not exist or is not a file; check the path.")
    if reference.kind == "catalogue":
        file = networks.shipped(reference.text) if weights is None else Path(weights).expanduser()
        module: nn.Module = networks.load(reference.text, weights)
        return module, plain, {"kind": "catalogue", "digest": hashlib.sha256(file.read_bytes()).hexdigest()}
    if reference.kind == "pt2":
        program, known = load_exported(path, device)
        return program, plain, known
    if reference.kind == "onnx":
        module, known = load_onnx(path)
        return module, plain, known
    if reference.kind == "timm":
        return _timm(reference.text, weights, seed)
    return _python(reference.text, weights, seed)


def _timm(
    text: str, weights: str | os.PathLike[str] | None, seed: int
) -> tuple[nn.Module, Preprocessing, dict[str, Any]]:
    name, options = read_timm(text)
    theirs = weights == PRETRAINED
    tensors = None if weights is None or theirs else read_tensors(Path(weights).expanduser())
    with _seeded(seed):
        module, preprocessing = build_timm(name, options, tensors, pretrained=theirs)
    if tensors is not None:
        fill(module, tensors, str(weights))
    found = "timm's weights" if theirs else "your weights" if tensors is not None else f"random weights, seed {seed}"
    return module, preprocessing, {"kind": f"timm network, {found}", "digest": _digest(module)}


def _python(
    text: str, weights: str | os.PathLike[str] | None, seed: int
) -> tuple[Callable[..., Any], Preprocessing, dict[str, Any]]:
    with _seeded(seed):
        found = load_object(text, "model")
        if not isinstance(found, nn.Module) and callable(found):
            found = call(found, text, "model")
    if not callable(found):
        raise InputError(
            f"model: expected {text} to be a factory that takes no arguments and returns a torch.nn.Module, or to be "
            f"one; got {type(found).__name__}."
        )
    known = {"kind": "Python code", "code_digest": source_digest(text)}
    if not isinstance(found, nn.Module):
        if weights is not None:
            raise InputError(f"expected no weights for {text}, which returns no torch.nn.Module; leave them out.")
        return found, Preprocessing(), known | {"digest": source_digest(text)}
    if weights is not None:
        fill(found, read_tensors(Path(weights).expanduser()), str(weights))
    return found, Preprocessing(), known | {"digest": _digest(found)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed, and give PyTorch's global generator back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _numbers(values: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    return (float(values),) if isinstance(values, (int, float)) else tuple(float(v) for v in values)


def _digest(module: nn.Module) -> str:
    """Return the sha256, in hex, of all tensors by name, of any type."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
