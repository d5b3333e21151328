"""Per-sample arithmetic: the first dimension is the batch, everything after it belongs to one sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["between", "dot", "expand", "finite", "flat", "norm", "order"]


def expand(value: Tensor, like: Tensor) -> Tensor:
    """View a (B,) tensor so that it broadcasts against a (B, *S) one."""
    return value.reshape(value.shape[0], *([1] * (like.dim() - 1)))


def flat(a: Tensor) -> Tensor:
    """View (B, *S) as (B, M), also where there is nothing after the batch: (B,) as (B, 1)."""
    return a.reshape(len(a), math.prod(a.shape[1:]))


def between(a: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp a (B, *S) in place to [low, high], which broadcast against it; return it."""
    # With both limits at once it takes ten times as long where they broadcast.
    return a.clamp_min_(low).clamp_max_(high)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute ⟨a, b⟩ of each sample, (B, *S) x (B, *S) -> (B,)."""
    return (a * b).flatten(1).sum(1)


def norm(a: Tensor, p: float) -> Tensor:
    """Compute ‖a‖_p of each sample for any p in [1, inf], (B, *S) -> (B,), without overflow or underflow."""
    flat = a.flatten(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(flat.shape[0])
    if p == 1.0:
        return flat.abs().sum(1)
    largest = torch.maximum(flat.amax(1), -flat.amin(1))
    if p == math.inf:
        return largest
    # Divided by the largest entry, no power over- or underflows; a sample of zeros stays at zero.
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    ratio = flat.abs() / scale[:, None]
    total = ratio.square().sum(1).sqrt() if p == 2.0 else ratio.pow(p).sum(1).pow(1.0 / p)
    return scale * total


def order(p: float) -> float:
    """Return the dual order q = p / (p - 1) of p."""
    if p == 1.0:
        return math.inf
    return 1.0 if p == math.inf else p / (p - 1.0)


def finite(a: Tensor) -> Tensor:
    """Tell for each sample whether all its entries are finite, (B, *S) -> (B,) bool."""
    # A sum would overflow on large finite values; the largest magnitude is not finite exactly when an entry is not.
    rows = flat(a)
    if not rows.shape[1] or not rows.is_floating_point():
        return rows.isfinite().all(1)
    largest: Tensor = torch.linalg.vector_norm(rows, math.inf, 1)
    return largest < math.inf
