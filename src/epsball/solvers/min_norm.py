"""The minimal-norm problem: the smallest step that brings one linearised piece to zero."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Expansion
from epsball.sets.base import ConstraintSet
from epsball.solvers.base import Formulation, Step, each_piece
from epsball.tensors import dot

__all__ = ["MinNorm"]


@dataclass(frozen=True)
class MinNorm(Formulation):
    """Solve min_δ size(δ) subject to value_c + ⟨gradient_c, δ⟩ ≥ 0 for one piece c: problem (8), Proposition 1.

    Exact, inside the bounds too; the piece of least size (DeepFool's choice of class). `overshoot` asks for
    (1 + overshoot) times the gap, so that the boundary is crossed; inside the bounds this is solved, not scaled.
    Where no piece can be brought to zero inside the bounds: not feasible, and the corner with the largest gain.
    """

    overshoot: float = 0.02
    budgeted = False

    def __post_init__(self) -> None:
        """Refuse a negative overshoot."""
        number = isinstance(self.overshoot, Real) and not isinstance(self.overshoot, bool)
        if not number or not 0 <= self.overshoot < torch.inf:
            raise InputError(f"expected overshoot >= 0 and finite, got {self.overshoot!r}.")

    def solve(self, expansion: Expansion, constraint: ConstraintSet, point: Tensor) -> Step:
        """Take the piece that can be brought to zero with the least size; δ (B, *S)."""
        value = expansion.value
        gradient, repeated, points = each_piece(expansion, constraint, point)
        # At a tie the gap is zero and so would be the step: ask for a rounding error more than the scores can hide.
        floor = 16.0 * torch.finfo(value.dtype).eps * (1.0 + expansion.outputs.flatten(1).abs().amax(1, keepdim=True))
        gap = ((1.0 + self.overshoot) * -value).clamp_min(floor.to(value.dtype))
        delta = repeated.smallest(gradient, gap.reshape(-1), points)
        reached = dot(gradient, delta).view_as(value)
        size = repeated.size(delta).view_as(value)
        # A box corner may stop between the boundary and its overshoot; crossing the boundary is what counts.
        slack = 1e-5 if value.dtype == torch.float32 else 1e-9
        crossed = reached >= torch.minimum(gap * (1.0 - slack), -value + 0.5 * floor)
        feasible = crossed.any(1)
        nearest = torch.where(crossed, size, torch.inf).argmin(1)
        corner = (value + reached).nan_to_num(nan=-torch.inf).argmax(1)
        best = torch.where(feasible, nearest, corner)
        rows = torch.arange(len(point), device=point.device)
        slope = reached / size.clamp_min(torch.finfo(size.dtype).tiny)
        return Step(delta.view(*value.shape, *delta.shape[1:])[rows, best], feasible, slope)

    def candidates(
        self, value: Tensor, slope: Tensor, growth: float, constraint: ConstraintSet, point: Tensor
    ) -> Tensor:
        """Keep the pieces whose least possible size is not above the largest possible least one; (B, C)."""
        size = -value / slope
        return ~(size / growth > (size * growth).amin(1, keepdim=True))  # NaN stays a candidate
