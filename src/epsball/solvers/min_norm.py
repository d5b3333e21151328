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
        delta, tried = self._solve(gradient, repeated, points, gap)
        reached = dot(gradient, delta).view_as(value)
        size = repeated.size(delta).view_as(value)
        slack = 1e-5 if value.dtype == torch.float32 else 1e-9
        crossed = reached >= torch.minimum(gap * (1.0 - slack), -value + 0.5 * floor)
        feasible = (crossed & tried).any(1)
        nearest = torch.where(crossed & tried, size, torch.inf).argmin(1)
        corner = (value + reached).nan_to_num(nan=-torch.inf).argmax(1)
        best = torch.where(feasible, nearest, corner)
        rows = torch.arange(len(point), device=point.device)
        slope = reached / size.clamp_min(torch.finfo(size.dtype).tiny)
        # What was not solved for is known by its bound: at most this much is gained by a unit of size.
        slope = torch.where(tried, slope, gap / repeated.least_size(gradient, gap.reshape(-1)).view_as(value))
        return Step(delta.view(*value.shape, *delta.shape[1:])[rows, best], feasible, slope)

    def _solve(self, gradient: Tensor, repeated: ConstraintSet, points: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for the pieces that can have the least size: δ (B·C, *S), and for which it was done, (B, C) bool."""
        batch, count = gap.shape
        needed = gap.reshape(-1)
        tried = torch.ones_like(gap, dtype=torch.bool)
        if count == 1 or repeated.bounds is None:
            return repeated.smallest(gradient, needed, points), tried
        # First the piece that would be nearest without bounds, then those that without bounds are nearer than it is
        # with them: the others cannot be.
        least = repeated.least_size(gradient, needed).view_as(gap)
        first = least.argmin(1)
        rows = torch.arange(batch, device=gap.device)
        delta = torch.zeros_like(gradient)
        tried = torch.zeros_like(tried)
        chosen = rows * count + first
        for _ in range(2):
            part = repeated.take(chosen)
            found = part.smallest(gradient[chosen], needed[chosen], points[chosen])
            delta[chosen] = found
            tried.view(-1)[chosen] = True
            size = part.size(found)
            short = dot(gradient[chosen], found) < needed[chosen] * (1.0 - 1e-5)
            if len(chosen) == batch and not tried.all():
                limit = torch.where(short, torch.inf, size)[:, None]
                chosen = ((least <= limit) & ~tried).view(-1).nonzero()[:, 0]
                if len(chosen):
                    continue
            break
        return delta, tried

    def candidates(
        self, value: Tensor, slope: Tensor, growth: float, constraint: ConstraintSet, point: Tensor
    ) -> Tensor:
        """Keep the pieces whose least possible size is not above the largest possible least one; (B, C)."""
        size = -value / slope
        return ~(size / growth > (size * growth).amin(1, keepdim=True))  # NaN stays a candidate
