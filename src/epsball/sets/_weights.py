"""Weights w ≥ 0 of the entries: a set limits η / w, and an entry of weight 0 is frozen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.errors import InputError

__all__ = ["divided", "weights_of"]


def weights_of(weights: Tensor | None, x: Tensor) -> Tensor:
    """Return the weights as (1, *S), of x's type and device."""
    own = torch.as_tensor(weights, dtype=x.dtype, device=x.device)
    if own.shape != x.shape[1:]:
        raise InputError(f"expected weights of the shape of one sample, {tuple(x.shape[1:])}, got {tuple(own.shape)}.")
    return own[None]


def divided(eta: Tensor, w: Tensor) -> Tensor:
    """Compute η / w, (B, *S): infinite where a frozen entry moved, 0 where it did not."""
    frozen = torch.where(eta == 0, 0.0, math.inf)
    return torch.where(w > 0, eta / torch.where(w > 0, w, 1.0), frozen)
