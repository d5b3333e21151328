"""The fewest groups: the search with a shrinking ball, where the ball's size is a number of groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Expansion
from epsball.sets import ConstraintSet, GroupCount, Groups
from epsball.solvers.shrinking import ShrinkingBall, rounding_of
from epsball.tensors import dot, expand

__all__ = ["FewestGroups"]


@dataclass(frozen=True)
class FewestGroups(ShrinkingBall):
    """Solve min_η ‖η‖_0,S subject to gain ≥ 0, each entry within ε and the bounds: the fewest groups of S.

    Over `Groups` with k=None; ε limits the entries of every problem. The steps solve (22) and (23) for the largest gain
    with at most k groups, exactly, on a running average of the linearisations (`Schedule(average=True)`); k is what the
    linear model asks for until a success is found, then below the smallest success. After the steps the groups that
    contribute least are taken away where the success stands it. On affine models this is exact.

    Every local problem is solved exactly; the search is local, so what it finds is an upper bound of the number.
    """

    rate: float = 0.1
    budgeted = True

    def check(self, constraint: ConstraintSet, *, average: bool) -> None:
        """Refuse a set without groups, and one that fixes how many of them change."""
        if not isinstance(constraint, Groups) or constraint.k is not None:
            got = f"k={constraint.k}" if isinstance(constraint, Groups) else f"an {type(constraint).__name__}"
            raise InputError(f"expected eb.Groups(groups, k=None) in a search for the fewest groups, got {got}.")
        if not average:
            raise InputError("expected average=True in the schedule of a search for the fewest groups; set it.")

    def searched(self, constraint: ConstraintSet) -> ConstraintSet:
        """Return the set whose size is the number of groups."""
        return GroupCount(constraint) if isinstance(constraint, Groups) else constraint

    def smallest(self, expansion: Expansion, constraint: ConstraintSet, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the fewest groups for every piece around x; return order and numbers, (B, C), and the first one's η.

        η is zero where no piece can be brought to zero. Of equal numbers the one with more to spare comes first.
        """
        best, first, ranks = torch.zeros_like(x), torch.full_like(expansion.value[:, 0], torch.inf), []
        rounding = rounding_of(expansion)
        for value, gradient in zip(expansion.value.unbind(1), expansion.gradient.unbind(1), strict=True):
            gap = rounding - value
            eta = constraint.smallest(gradient, gap, x)
            gained = dot(gradient, eta).to(value.dtype)
            size = constraint.size(eta).to(value.dtype)
            # Pieces that all groups together cannot bring to zero come last, the nearest to zero first.
            short = x[0].numel() + (gap - gained) / gap.abs()
            rank = torch.where(gained >= gap, size - 1.0 + gap / gained.clamp_min(gap), short)
            nearer = (rank < first) & (gained >= gap)
            best, first = torch.where(expand(nearer, eta), eta, best), torch.where(nearer, rank, first)
            ranks.append(rank)
        ordered, order = torch.stack(ranks, 1).sort(dim=1, stable=True)
        return order, ordered, best

    def polished(
        self, gradient: Tensor, gap: Tensor, eta: Tensor, constraint: ConstraintSet, x: Tensor
    ) -> Iterator[Tensor]:
        """Yield the fewest groups for the linear model there, and η without the groups that contribute least."""
        yield constraint.smallest(gradient, gap, x)
        if isinstance(constraint, GroupCount):
            for number in (1, 2, 4):
                yield constraint.without(eta, gradient, number)
