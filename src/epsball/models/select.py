"""Which part of a model's outputs counts: a key, an index, a slice, or several heads side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.target_model import TargetModel

__all__ = ["Output"]

_HEAD = re.compile(r"(?P<path>[^\[\],]*)(?:\[(?P<slice>[-\d:,\s]*)\])?")


@dataclass(frozen=True)
class Output:
    """The outputs that `text` selects from what a model returns.

    text  parts separated by dots, each a key, an attribute or an index: `logits`, `0`, `heads.depth`; then perhaps a
          slice of the dimensions after the batch, `out[:,12,20]`: of maps (B, K, H, W) the K scores of one pixel.
          Several, separated by commas, such as `depth,normal`, are flattened and put side by side as (B, O)

    InputError if the text cannot be read, and when called on outputs that it does not fit, with what there is.
    """

    text: str

    def __post_init__(self) -> None:
        """Refuse text that is no selector."""
        for head in self._heads():
            match = _HEAD.fullmatch(head)
            if match is None or not (match["path"] or match["slice"]) or ".." in head:
                raise InputError(
                    f"expected output as a key, an index, or several separated by commas, such as logits, 0 or "
                    f"'out[:,12,20]', got {self.text!r}."
                )

    def __call__(self, outputs: Any) -> Any:
        """Return the selected outputs, (B, *O)."""
        found = [_head(outputs, head) for head in self._heads()]
        if len(found) == 1:
            return found[0]
        for head, value in zip(self._heads(), found, strict=True):
            if not isinstance(value, Tensor):
                raise InputError(f"expected {head!r} of the model's output to be a tensor, got {type(value).__name__}.")
        return torch.cat([value.reshape(len(value), -1) for value in found], 1)

    def _heads(self) -> list[str]:
        return [head.strip() for head in re.split(r",(?![^\[]*\])", self.text)]


def _head(outputs: Any, head: str) -> Any:
    match = _HEAD.fullmatch(head)
    path, inside = ("", None) if match is None else (match["path"], match["slice"])
    for part in filter(None, path.split(".")):
        outputs = _part(outputs, part)
    if inside is None:
        return outputs
    try:
        return outputs[(slice(None), *map(_index, inside.split(",")))]
    except (IndexError, TypeError, ValueError) as error:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"output {head!r} does not fit a tensor of shape {shape}: {error}.") from error


def _part(outputs: Any, part: str) -> Any:
    by_index = re.fullmatch(r"-?\d+", part) and not (isinstance(outputs, dict) and part in outputs)
    # The selection and its messages are those of the library's own wrapper.
    return TargetModel(_identity, selector=int(part) if by_index else part).select(outputs)


def _identity(x: Tensor) -> Tensor:
    return x


def _index(text: str) -> int | slice:
    if ":" not in text:
        return int(text)
    return slice(*(int(end) if end.strip() else None for end in text.split(":")))
