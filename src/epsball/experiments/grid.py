"""Minimal-norm attacks run once, without a limit: their rows at every eps, and a grid where none is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from epsball.engines.local import STATUSES, Array, Chunk
from epsball.errors import Status

__all__ = ["distance_grid", "spread", "within"]

POINTS = 20


def within(sizes: Array, eps: float, dtype: torch.dtype) -> Array:
    """Tell which norms are at most eps up to rounding, with the tolerance of `ConstraintSet.contains`."""
    inside: Array = sizes <= eps * (1.0 + (1e-5 if dtype == torch.float32 else 1e-9))
    return inside


def spread(chunk: Chunk, grid: Sequence[float], dtype: torch.dtype) -> Iterator[Chunk]:
    """Yield the rows of a run without a limit at every eps: beyond it, a success does not count."""
    reached, status = chunk.columns["success"], chunk.columns["status"]
    for eps in grid:
        success = reached & within(chunk.columns["norm"], eps, dtype)
        ended = np.where(reached & ~success, STATUSES.index(Status.BEYOND.name), status)
        yield replace(chunk, eps=eps, columns=chunk.columns | {"success": success, "status": ended})


def distance_grid(chunks: Iterable[Chunk]) -> tuple[float, ...]:
    """Return even budgets from zero to the one that fools 99 % of the correctly classified samples, rounded up."""
    found = [np.zeros(0)]
    for chunk in chunks:
        right = chunk.columns["clean_prediction"] == chunk.columns["target"]
        found.append(chunk.columns["norm"][right & chunk.columns["success"]].astype(np.float64))
    sizes = np.concatenate(found)
    top = float(np.quantile(sizes, 0.99, method="higher")) if len(sizes) else 0.0
    if not 0.0 < top < math.inf:
        return (0.0, 1.0)
    scale = 10.0 ** (math.floor(math.log10(top / POINTS)) - 1)  # so that a step has two significant digits
    step = math.ceil(top / POINTS / scale) * scale
    return tuple(float(f"{step * k:.6g}") for k in range(POINTS + 1))
