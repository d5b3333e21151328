"""The radius of a minimal-norm search: it follows the smallest success that each sample has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.sets.base import ConstraintSet
from epsball.solvers.shrinking import OVERSHOOT
from epsball.tensors import dot, expand

__all__ = ["Radius"]

_FAR = 1e18
_CALM = 1 / 3  # how fast it moves then, of its rate
_LEAST = 0.001  # how far the radius moves at the last steps, as a share of itself


@dataclass
class Radius:
    """The smallest success η (B, *S) with its size (B,), inf where there is none yet, and the radius (B,).

    rate: by what share of itself it moves at the first step, (B,). floor: what it does not fall below, (B,).
    """

    eta: Tensor
    size: Tensor
    value: Tensor
    rate: Tensor
    floor: Tensor

    @classmethod
    def of(cls, eta: Tensor, size: Tensor, rate: float, calm: Tensor, floor: Tensor | None = None) -> Radius:
        """Start from what earlier attempts found; calm (B,): whose size is about what it will be, and moves less."""
        floor = torch.zeros_like(size) if floor is None else floor
        rates = torch.full_like(size, rate)
        rates = torch.where(calm, _CALM * rates, rates)
        return cls(eta.clone(), size.clone(), size * (1.0 - 0.5 * rates), rates, floor)

    def take(self, index: Tensor) -> Radius:
        """Keep some samples."""
        return Radius(self.eta[index], self.size[index], self.value[index], self.rate[index], self.floor[index])

    @property
    def found(self) -> Tensor:
        """Whether there is a success, (B,) bool."""
        return self.size.isfinite()

    def offer(self, eta: Tensor, size: Tensor, success: Tensor) -> Tensor:
        """Keep η where it succeeds and is smaller than what was known; return where, (B,) bool."""
        # By more than rounding, which differs from batch to batch.
        smaller = success & (size < self.size * (1.0 - 64.0 * torch.finfo(size.dtype).eps))
        self.size = torch.where(smaller, size, self.size)
        self.eta = torch.where(expand(smaller, eta), eta, self.eta)
        return smaller

    def follow(
        self,
        constraint: ConstraintSet,
        x: Tensor,
        eta: Tensor,
        success: Tensor,
        value: Tensor,
        gradient: Tensor,
        share: float,
        leap: float = 1.0,
    ) -> None:
        """Move the radius after a linearisation at x + η with this value (B,) and gradient (B, *S) of the gain.

        share: of `rate`, by which it moves now. leap: how many times as far it may fall where the linear model says so.
        """
        size, unit = constraint.size(eta).to(value.dtype), constraint.unit
        self.offer(eta, size, success)
        known, rows = torch.where(self.value.isfinite(), self.value, 0.0), (~self.found).nonzero()[:, 0]
        reach = known.clone()
        if len(rows):
            # Nothing found yet: as far as the linear model says, from x or from here, and no less far than before.
            part, slope, gap = constraint.take(rows), gradient[rows], -(1.0 + OVERSHOOT) * value[rows]
            needed = gap + dot(slope, eta[rows])
            whole = part.smallest(slope, needed, x[rows])
            within, inside = needed - dot(slope, whole) <= 1e-3 * gap, part.size(whole).to(value.dtype)
            onward = size[rows] + part.least_size(slope, gap).to(value.dtype).clamp_max(_FAR)
            # Where the box falls short, the distance is between the one without bounds and that to its corner.
            reach[rows] = onward.maximum(torch.where(within, inside, (onward * inside).sqrt()))
        rate = self.rate * share + _LEAST
        onward = (self.value * (1.0 + rate)).maximum(self.value.floor() + unit if unit else self.value)
        moved = torch.where(success, torch.minimum(self.value, self.size) * (1.0 - rate), onward)
        beyond = (success & (value > 0)).nonzero()[:, 0] if leap > 1.0 else rows[:0]
        if len(beyond):
            part, slope = constraint.take(beyond), gradient[beyond]
            whole = part.smallest(slope, dot(slope, eta[beyond]) - value[beyond], x[beyond])
            least = self.size[beyond] * (1.0 - leap * rate[beyond])
            moved[beyond] = moved[beyond].minimum(least.maximum(part.size(whole).to(value.dtype)))
        # Another point as large as the smallest success would be no gain.
        moved = moved.minimum(self.size * (1.0 - 0.5 * rate)).minimum(self.size - unit)
        value = torch.where(self.found, moved, reach.maximum(known + unit)).clamp_min(unit).maximum(self.floor)
        self.value = torch.where(value.isnan(), known, value)  # of a sample that leaves: its gain is not a number
