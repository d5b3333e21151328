"""Reading and writing weights and their cards: safetensors and JSON, never a pickle that could run code."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.data.optional import require
from epsball.errors import InputError

__all__ = ["card_path", "check_writable", "fill", "read_card", "read_tensors", "replace_file", "save"]
__all__ += ["weights_digest"]

CHECKPOINTS = (".pt", ".pth")


def card_path(path: Path) -> Path:
    """Return where the card of these weights lies: beside them, with the suffix .json."""
    return path.with_suffix(".json")


def read_card(path: Path) -> dict[str, Any]:
    """Return the JSON card at `path`; InputError if it is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no card here; a card is written beside the weights by `epsball train`.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON card ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a card is a JSON object, found a {type(content).__name__}.")
    return content


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a .safetensors file or a .pt/.pth checkpoint read with weights_only=True.

    A checkpoint is a state dict, or a dict with one under "state_dict". Where a card lies beside a .safetensors file
    and gives its sha256, the file must have it: damage inside a tensor shows in no other way. InputError, naming the
    file, for whatever is absent, damaged, or something else.
    """
    if not path.is_file():
        raise InputError(f"weights: {path} does not exist or is not a file; give a .safetensors or .pt file.")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    if path.suffix.lower() in CHECKPOINTS:
        return _read_checkpoint(path)
    raise InputError(f"weights: {path} must end in .safetensors, {' or '.join(CHECKPOINTS)}.")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    safetensors = require("safetensors.torch", "safetensors", "reading weights")
    try:
        raw = path.read_bytes()
        tensors: dict[str, torch.Tensor] = safetensors.load(raw)
    except Exception as error:  # SafetensorError, and KeyError for a type that PyTorch lacks
        raise InputError(f"{path}: not a sound safetensors file ({error}); it is damaged or truncated.") from error
    beside = card_path(path)
    expected = read_card(beside).get("weights_sha256") if beside.is_file() else None
    if expected is not None and hashlib.sha256(raw).hexdigest() != expected:
        raise InputError(
            f"{path}: its sha256 is not the one on its card {beside.name}: the weights are damaged, or the card is not "
            "theirs; train again, or remove the card if you replaced the weights yourself."
        )
    return tensors


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle stream may raise nearly any type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a sound checkpoint of plain tensors ({reason}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path}: expected a dict of tensors (a state dict), found a {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy the tensors into the module if they are exactly its own by name and shape, finite and of like type.

    InputError names `source` and the first problem, and the module is left as it was.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in tensors]
    extra = [key for key in tensors if key not in own]
    if missing:
        raise InputError(f"{source}: the tensor {missing[0]!r} is missing ({len(missing)} of {len(own)} are).")
    if extra:
        raise InputError(f"{source}: the tensor {extra[0]!r} is not one of this network ({len(extra)} are not).")
    for key, value in own.items():
        given = tensors[key]
        if given.shape != value.shape:
            raise InputError(
                f"{source}: {key!r} has shape {tuple(given.shape)}, the network's is {tuple(value.shape)}."
            )
        if given.is_floating_point() != value.is_floating_point() or given.is_complex() != value.is_complex():
            raise InputError(f"{source}: {key!r} is {given.dtype}, the network's is {value.dtype}.")
        if not torch.isfinite(given).all():
            raise InputError(f"{source}: {key!r} holds NaN or infinite values.")
    module.load_state_dict(dict(tensors))


def check_writable(path: Path) -> None:
    """Make the folder of `path` and see that a file can be written there, before hours of training are spent."""
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"out must end in .safetensors, got {path}.")
    if path.is_dir():
        raise InputError(f"out: {path} is a folder; give the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"out: cannot write in {path.parent} ({error}).") from error


def save(module: nn.Module, card: dict[str, Any], path: Path, *, half: bool = False) -> dict[str, Any]:
    """Write the weights and their card beside them, each in one step, and return the card with the sha256 added.

    half  parameters go out in half precision; buffers, such as running variances, stay as they are
    """
    safetensors = require("safetensors.torch", "safetensors", "writing weights")
    trained = {key for key, _ in module.named_parameters()} if half else set()
    raw: bytes = safetensors.save(
        {
            key: (value.half() if key in trained else value).cpu().clone(memory_format=torch.contiguous_format)
            for key, value in module.state_dict().items()
        }
    )
    card = {**card, "weights_sha256": hashlib.sha256(raw).hexdigest()}
    replace_file(path, raw)
    replace_file(card_path(path), (json.dumps(card, indent=2) + "\n").encode())
    return card


def weights_digest(module: nn.Module) -> str:
    """Return the sha256, in hex, of all tensors of a module by name."""
    digest = hashlib.sha256()
    for key, value in module.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads it finds the old content or the new, also after a kill."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp makes it private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
