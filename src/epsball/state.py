"""What is known of each sample while the loop runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["State"]


@dataclass
class State:
    """What is known of each sample while the loop runs; every field is (B, ...) and updated by index."""

    eta: Tensor
    forwards: Tensor
    backwards: Tensor
    jvps: Tensor
    flat: Tensor
    broken: Tensor
    feasible: Tensor
    exact: Tensor  # whether every local problem was solved globally
    kkt: Tensor  # the largest relative KKT residual, NaN where no solver has one
    stalled: Tensor  # whether it left an attempt that would have led nowhere
    trusted: Tensor  # whether the linear model at x had promised what a search has found
    bent: Tensor  # whether a search has gained much less than the linear model promised
    size: Tensor  # of the smallest success that a minimal-norm search has kept in eta, inf before the first

    def count(self, index: Tensor, spent: tuple[Tensor, Tensor, Tensor]) -> None:
        """Add forward passes, backward passes and JVPs of some samples."""
        for total, more in zip((self.forwards, self.backwards, self.jvps), spent, strict=True):
            if len(index) == len(total):  # everyone, in order
                total += more
            else:
                total.index_add_(0, index, more)

    @classmethod
    def new(cls, x: Tensor, forwards: int) -> State:
        """Start at no perturbation, with the forward passes made so far."""
        flag = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(
            eta=torch.zeros_like(x),
            forwards=count + forwards,
            backwards=count.clone(),
            jvps=count.clone(),
            flat=flag,
            broken=flag.clone(),
            feasible=~flag,
            exact=~flag,
            stalled=flag.clone(),
            trusted=flag.clone(),
            bent=flag.clone(),
            kkt=torch.full((len(x),), math.nan, dtype=torch.float64, device=x.device),
            size=torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device),
        )

    def offer(self, index: Tensor, eta: Tensor, size: Tensor, success: Tensor) -> Tensor:
        """Keep η (b, *S) of the samples `index` where it succeeds and is smaller than what is known; return where."""
        # By more than rounding, which differs from batch to batch.
        smaller = success & (size < self.size[index] * (1.0 - 64.0 * torch.finfo(size.dtype).eps))
        self.eta[index[smaller]], self.size[index[smaller]] = eta[smaller], size[smaller]
        return smaller
