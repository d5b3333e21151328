"""Random blocks of entries: boxes of an image (C, H, W), runs of a signal (C, N), any entries of a flat sample (M,)."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.randomness import Generators

__all__ = ["block_signs", "channel_signs", "one_block"]

_CELLS = 14  # along each axis of a sample that is cut into blocks


def one_block(x: Tensor, streams: Generators, share: float) -> Tensor:
    """Draw a block of about this share of the entries, at least one; (B, *S) bool, equal in all channels."""
    shape = x.shape[1:]
    if len(shape) < 2:
        draw = streams.uniform(shape, x.dtype)
        return (draw < share) | (draw == draw.flatten(1).amin(1).view(-1, *(1,) * len(shape)))
    spans = shape[1:]
    side = share ** (1.0 / len(spans))
    starts = streams.uniform((len(spans),), x.dtype)
    block = torch.ones((len(x), 1, *spans), dtype=torch.bool, device=x.device)
    for axis, length in enumerate(spans):
        size = min(length, max(1, round(side * length)))
        start = (starts[:, axis] * (length - size + 1)).floor()[:, None]
        place_of = torch.arange(length, device=x.device)
        inside = (place_of >= start) & (place_of < start + size)
        block = block & inside.view(len(x), 1, *(length if n == axis else 1 for n in range(len(spans))))
    return block


def channel_signs(x: Tensor, streams: Generators) -> Tensor:
    """Draw a sign for each channel, of a flat sample for each entry; (B, *S) of ±1."""
    shape = x.shape[1:]
    channels = (shape[0], *(1,) * (len(shape) - 1))
    return streams.coin(channels, x.dtype).expand_as(x)


def block_signs(x: Tensor, streams: Generators) -> Tensor:
    """Cut each channel into blocks, at most 14 along an axis, and draw a sign for each; (B, *S) of ±1."""
    shape = x.shape[1:]
    if len(shape) < 2:
        return streams.coin(shape, x.dtype)
    cells = [min(_CELLS, length) for length in shape[1:]]
    signs = streams.coin((shape[0], *cells), x.dtype)
    for axis, (count, length) in enumerate(zip(cells, shape[1:], strict=True)):
        signs = signs.index_select(2 + axis, torch.arange(length, device=x.device) * count // length)
    return signs
