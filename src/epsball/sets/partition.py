"""Partitions of a sample's entries into groups: a pixel is its channels, a patch its pixels, a channel its plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.validation import check_count

__all__ = ["Partition", "as_partition", "channels", "patches", "pixels", "pixels_or_entries"]


@dataclass(frozen=True)
class Partition:
    """A rule that gives every entry of a sample of shape S its group number, resolved when S is known."""

    name: str
    rule: Callable[[tuple[int, ...]], Tensor]

    def index(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Return the group number of each entry, (M,) int64 from 0 to the number of groups - 1."""
        ids = self.rule(tuple(shape))
        if ids.shape != tuple(shape):
            raise InputError(f"expected groups for a sample of shape {tuple(shape)}, got {tuple(ids.shape)}.")
        return ids.reshape(-1).to(device)

    def __repr__(self) -> str:
        return self.name


def _axis(dim: int, shape: tuple[int, ...], what: str) -> int:
    """Turn a dimension of the batch into one of the sample."""
    axis = dim - 1 if dim > 0 else dim + len(shape)
    if dim == 0 or not 0 <= axis < len(shape):
        raise InputError(
            f"expected {what} channel_dim to name a dimension of (B, *{shape}) after the first, got {dim}."
        )
    return axis


def pixels(channel_dim: int = 1) -> Partition:
    """Group the channels of each pixel; `channel_dim` counts the batch dimension, as in (B, C, H, W) -> 1."""

    def rule(shape: tuple[int, ...]) -> Tensor:
        axis = _axis(channel_dim, shape, "pixels")
        rest = [1 if i == axis else n for i, n in enumerate(shape)]
        return torch.arange(math.prod(rest)).reshape(rest).expand(shape)

    return Partition(f"pixels(channel_dim={channel_dim})", rule)


def pixels_or_entries() -> Partition:
    """Group the channels of each pixel, (B, C, ...); of flat samples (B, M), tabular data, every entry by itself."""
    of_images = pixels(channel_dim=1)

    def rule(shape: tuple[int, ...]) -> Tensor:
        return torch.arange(shape[0]) if len(shape) == 1 else of_images.rule(shape)

    return Partition("pixels or entries", rule)


def channels(channel_dim: int = 1) -> Partition:
    """Group all entries of each channel."""

    def rule(shape: tuple[int, ...]) -> Tensor:
        axis = _axis(channel_dim, shape, "channels")
        view = [n if i == axis else 1 for i, n in enumerate(shape)]
        return torch.arange(shape[axis]).reshape(view).expand(shape)

    return Partition(f"channels(channel_dim={channel_dim})", rule)


def patches(size: int, channel_dim: int | None = 1) -> Partition:
    """Group square patches of side `size` over all dimensions but the channels; patches at the edge may be smaller."""
    check_count("size", size)

    def rule(shape: tuple[int, ...]) -> Tensor:
        axis = None if channel_dim is None else _axis(channel_dim, shape, "patches")
        ids = torch.zeros(shape, dtype=torch.int64)
        for i, n in enumerate(shape):
            if i != axis:
                view = [n if j == i else 1 for j in range(len(shape))]
                ids = ids * math.ceil(n / size) + (torch.arange(n) // size).reshape(view)
        return ids

    return Partition(f"patches({size}, channel_dim={channel_dim})", rule)


def _named(text: str) -> Partition:
    """Read "pixels", "channels" or "patches:SIZE"."""
    name, _, size = text.partition(":")
    if name == "patches" and size.isdigit():
        return patches(int(size))
    if text in ("pixels", "channels"):
        return pixels_or_entries() if text == "pixels" else channels()
    raise InputError(f"expected groups as 'pixels', 'channels' or 'patches:SIZE' such as 'patches:4', got {text!r}.")


def as_partition(groups: Partition | Tensor | Sequence[Sequence[int]] | str) -> Partition:
    """Accept a partition, its name, a tensor of group numbers of the sample's shape, or lists of flat entry numbers."""
    if isinstance(groups, Partition):
        return groups
    if isinstance(groups, str):
        return _named(groups)
    if isinstance(groups, Tensor):
        if groups.dtype == torch.bool or groups.is_floating_point() or groups.is_complex() or groups.numel() == 0:
            raise InputError(
                "expected groups as an integer tensor of the shape of one sample, got shape "
                f"{tuple(groups.shape)}, {groups.dtype}."
            )
        numbers = groups.to(torch.int64)  # uint8 would index as a mask
        present = sorted(set(numbers.flatten().tolist()))
        if present != list(range(len(present))):
            raise InputError(
                "expected group numbers 0, 1, 2, ... without a gap, got "
                f"{len(present)} numbers from {present[0]} to {present[-1]}; renumber them."
            )
        return Partition(f"{len(present)} groups", lambda shape: numbers)
    try:
        lists = [[index(i) for i in group] for group in groups]
    except TypeError as error:
        raise InputError(
            "expected groups as eb.pixels(), eb.patches(size), eb.channels(), an integer tensor, or lists of entry "
            f"numbers, got {type(groups).__name__}: {error}."
        ) from error
    members = [torch.tensor(group, dtype=torch.int64) for group in lists]
    if not members or any(m.numel() == 0 for m in members):
        raise InputError("expected at least one group, each with at least one entry.")
    flat = torch.cat(members)
    count = flat.bincount(minlength=int(flat.max()) + 1) if int(flat.min()) >= 0 else None
    if count is None or bool((count != 1).any()):
        wrong = "a negative number" if count is None else f"entry {int((count != 1).nonzero()[0])}"
        raise InputError(
            f"expected groups that cover every entry 0 .. M-1 exactly once, but {wrong} is missing or in two groups."
        )
    ids = torch.empty(len(flat), dtype=torch.int64)
    ids[flat] = torch.cat([torch.full((len(m),), i) for i, m in enumerate(members)])

    def rule(shape: tuple[int, ...]) -> Tensor:
        if math.prod(shape) != len(ids):
            raise InputError(f"expected groups that cover the {math.prod(shape)} entries of a sample, got {len(ids)}.")
        return ids.reshape(shape)

    return Partition(f"{len(members)} groups", rule)
