"""The one record in which every loader hands over its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from epsball.data.skipping import Skipped
from epsball.errors import InputError

__all__ = ["Dataset", "digest_of"]


def digest_of(x: torch.Tensor, target: torch.Tensor | None) -> str:
    """Return the sha256, in hex, of the bytes of x and then of the target, in row-major order."""
    digest = hashlib.sha256()
    for tensor in (x, target):
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of one set and one split, in their official order, with where they came from.

    name     the name in the catalogue, or the path that was loaded
    x        (N, *S) float32, in the units of the data: images lie in [0, 1]
    target   (N,) int64 class index, or the reference output (N, *O) float32, or None
    classes  the class names, by index, where they are known
    bounds   the valid range of x, (0.0, 1.0) for images, or None: no range
    split    "train", "test", or "all" for data that has no splits
    source   for people: where the samples come from, how many of how many
    digest   sha256 of the bytes of x and target, see `digest_of`
    ids      (N,) int64, the position of each sample in the official order
    skipped  samples that could not be read and were left out, where that was asked for
    total    how many samples there are in all, with those beyond a limit and those left out; None: not known
    """

    name: str
    x: torch.Tensor
    target: torch.Tensor | None
    classes: tuple[str, ...] | None
    bounds: tuple[float, float] | None
    split: str
    source: str
    digest: str
    ids: torch.Tensor
    skipped: tuple[Skipped, ...] = ()
    total: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        x: torch.Tensor,
        target: torch.Tensor | None,
        *,
        split: str,
        source: str,
        classes: tuple[str, ...] | None = None,
        bounds: tuple[float, float] | None = None,
        ids: torch.Tensor | None = None,
        skipped: tuple[Skipped, ...] = (),
        total: int | None = None,
    ) -> Dataset:
        """Build a set with its digest; without `ids` the samples are in the official order from the first on."""
        if ids is None:
            ids = torch.arange(len(x))
        return cls(name, x, target, classes, bounds, split, source, digest_of(x, target), ids, skipped, total)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {self.split}, {len(self)} samples of shape {tuple(self.x.shape[1:])})"

    @property
    def labels(self) -> torch.Tensor:
        """The class indices, (N,) int64; InputError where the samples have none."""
        if self.target is None or self.target.is_floating_point():
            raise InputError(f"{self.name} has no class labels; give samples with y, or in a folder for each class.")
        return self.target

    def head(self, n: int) -> Dataset:
        """Return the first n samples, or all where there are fewer; n >= 1."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"the number of samples must be an integer of at least 1, got {n!r}.")
        return self if n >= len(self) else self._pick(torch.arange(n), f"the first {n:,} of these")

    def take(self, index: torch.Tensor | Sequence[int]) -> Dataset:
        """Return the samples at these positions, in this order; positions count from 0 within this set."""
        index = torch.as_tensor(index)
        if index.numel() == 0:
            index = index.long()
        if index.ndim != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise InputError(
                f"positions must be a 1-D sequence of integers, got {index.dtype} of shape {tuple(index.shape)}."
            )
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise InputError(
                f"positions must lie in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}; "
                "`ids` holds positions in the official order, which may not be those of this set."
            )
        return self._pick(index.long(), f"{len(index):,} of these, chosen by position")

    def _pick(self, index: torch.Tensor, how: str) -> Dataset:
        target = None if self.target is None else self.target[index]
        return Dataset.of(
            self.name,
            self.x[index],
            target,
            split=self.split,
            source=f"{self.source}; {how}",
            classes=self.classes,
            bounds=self.bounds,
            ids=self.ids[index],
            skipped=self.skipped,
            total=self.total,
        )
