"""The minimal-norm problem: the smallest step that brings one linearised piece to zero."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Expansion, GaussNewton
from epsball.randomness import Generators
from epsball.sets.base import ConstraintSet
from epsball.solvers.base import Formulation, Step
from epsball.tensors import dot, flat

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

    def solve(
        self,
        expansion: Expansion | GaussNewton,
        constraint: ConstraintSet,
        point: Tensor,
        streams: Generators | None = None,
    ) -> Step:
        """Take the piece that can be brought to zero with the least size; δ (B, *S)."""
        if isinstance(expansion, GaussNewton):
            raise InputError("expected a linear local model for the minimal-norm problem; use eb.Linear().")
        value, gradient = expansion.value, expansion.gradient
        batch = len(value)
        # At a tie the gap is zero and so would be the step: ask for a rounding error more than the scores can hide.
        floor = 16.0 * torch.finfo(value.dtype).eps * (1.0 + flat(expansion.outputs).abs().amax(1, keepdim=True))
        floor = floor.to(value.dtype)
        gap = ((1.0 + self.overshoot) * -value).clamp_min(floor)
        needed = torch.minimum(gap * (1.0 - (1e-5 if value.dtype == torch.float32 else 1e-9)), -value + 0.5 * floor)
        least = torch.stack(
            [constraint.least_size(g, needs) for g, needs in zip(gradient.unbind(1), gap.unbind(1), strict=True)], 1
        )
        found = _Found(
            delta=torch.zeros_like(point),
            reached=torch.zeros_like(value),
            size=torch.full_like(value, torch.inf),
            rank=torch.full_like(value[:, 0], torch.inf),
            feasible=torch.zeros(batch, dtype=torch.bool, device=value.device),
        )
        # First the piece whose bound is least, then those whose bounds are below what it needs: the others cannot be
        # nearer. One piece a sample at a time, so that no copy of all the gradients is made.
        untried = torch.ones_like(value, dtype=torch.bool)
        rows = torch.arange(batch, device=value.device)
        while len(rows):
            piece = torch.where(untried[rows], least[rows], torch.inf).argmin(1)
            untried[rows, piece] = False
            part = constraint if len(rows) == batch else constraint.take(rows)
            chosen, at = gradient[rows, piece], point if len(rows) == batch else point[rows]
            delta = part.smallest(chosen, gap[rows, piece], at)
            reached, size = dot(chosen, delta).to(value.dtype), part.size(delta).to(value.dtype)
            found.take(rows, piece, delta, reached, size, value[rows, piece], reached >= needed[rows, piece])
            limit = torch.where(found.feasible, found.rank, torch.inf)[:, None]
            rows = (untried & (least < limit)).any(1).nonzero()[:, 0]
        slope = found.reached / found.size.clamp_min(torch.finfo(value.dtype).tiny)
        # What was not solved for is known by its bound: at most this much is gained by a unit of size.
        return Step(found.delta, found.feasible, torch.where(untried, gap / least, slope))

    def candidates(
        self, value: Tensor, slope: Tensor, growth: float, constraint: ConstraintSet, point: Tensor
    ) -> Tensor:
        """Keep the pieces whose least possible size is not above the largest possible least one; (B, C)."""
        size = -value / slope
        return ~(size / growth > (size * growth).amin(1, keepdim=True))  # NaN stays a candidate


@dataclass
class _Found:
    """The best step of each sample so far, and what each piece needs: delta (B, *S), reached and size (B, C).

    rank: the least size where the step is feasible; else the negated gain of the best corner.
    """

    delta: Tensor
    reached: Tensor
    size: Tensor
    rank: Tensor
    feasible: Tensor

    def take(
        self, rows: Tensor, piece: Tensor, delta: Tensor, reached: Tensor, size: Tensor, value: Tensor, crossed: Tensor
    ) -> None:
        """Keep the steps for one piece of each of these samples where they are better."""
        self.reached[rows, piece], self.size[rows, piece] = reached, size
        rank = torch.where(crossed, size, -(value + reached))
        known, feasible = self.rank[rows], self.feasible[rows]
        better = torch.where(crossed == feasible, rank < known, crossed)
        if bool(better.all()) and len(rows) == len(self.delta):
            self.delta = delta.clone()  # the set may keep what it returned
        else:
            self.delta[rows[better]] = delta[better]
        self.rank[rows] = torch.where(better, rank, known)
        self.feasible[rows] = feasible | crossed
