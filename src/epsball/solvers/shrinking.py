"""The minimal-norm problem as norm-constrained ones over a ball whose radius follows what has been found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Expansion
from epsball.sets.base import ConstraintSet
from epsball.solvers.norm_constrained import NormConstrained
from epsball.tensors import dot, expand

__all__ = ["OVERSHOOT", "ShrinkingBall", "ShrinkingToSet", "rounding_of"]


OVERSHOOT = 0.02  # what a boundary is asked to be crossed by, as a share of the gap: DeepFool's
_BEYOND = 1e18


@dataclass(frozen=True)
class ShrinkingBall(NormConstrained):
    """Solve min_η size(η) subject to gain ≥ 0 by steps that solve problem (5) over a ball of changing radius.

    The radius is the linearised distance to the boundary until a success is found; from then on a little below the
    smallest success where the current point succeeds, and a little above the current radius where it does not. rate:
    that little at the first step, as a share of the radius; it falls with the schedule's step sizes. haste: where the
    linear model at a success says that the boundary is nearer than that, the radius of an attempt of T steps may fall
    1 + min(1, haste / T) times as fast, since a short attempt would not get away from a first success that is too
    large. After the steps the smallest success is polished: `polish` times problem (8), linearised there and solved for
    the whole perturbation inside the bounds, is tried, at its solution and half way to it. On affine models this is
    exact.

    Every local problem is solved exactly; the search is local, so what it finds is an upper bound of the distance.
    Sources: the radius as in Rony et al. (2019) and Pintor et al. (2021); problems (5) and (8) of the paper.
    """

    rate: float = 0.3
    haste: int = 15
    polish: int = 1
    within: ClassVar[bool] = False  # whether a success within the set ends the search, whose radius is ε at least
    budgeted = False
    follows = True

    def check(self, constraint: ConstraintSet, *, average: bool) -> None:
        """Refuse a set that the search cannot use; average: whether the schedule averages its linearisations."""
        if not constraint.convex:
            raise InputError("expected a convex set for a search with a shrinking ball, such as eb.LpBall.")

    def rank(self, expansion: Expansion, constraint: ConstraintSet, x: Tensor) -> Tensor:
        """Order the pieces by the smallest perturbation that brings each to zero inside the bounds; (B, C)."""
        return self.smallest(expansion, constraint, x)[0]

    def smallest(self, expansion: Expansion, constraint: ConstraintSet, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solve problem (8) for every piece around x; return their order and sizes in it, (B, C), and the first's η.

        η is zero where the box brings none to zero.
        """
        best, first, sizes = torch.zeros_like(x), torch.full_like(expansion.value[:, 0], torch.inf), []
        for value, gradient in zip(expansion.value.unbind(1), expansion.gradient.unbind(1), strict=True):
            gap = -(1.0 + OVERSHOOT) * value
            eta = constraint.smallest(gradient, gap, x)
            missing = (gap - dot(gradient, eta)).to(value.dtype)
            # Pieces that the whole box cannot bring to zero come last, the nearest to zero first.
            size = torch.where(missing <= 1e-3 * gap, constraint.size(eta).to(value.dtype), missing.abs() + _BEYOND)
            nearer = (size < first) & (size < _BEYOND)
            best, first = torch.where(expand(nearer, eta), eta, best), torch.minimum(size, first)
            sizes.append(size)
        ordered, order = torch.stack(sizes, 1).sort(dim=1, stable=True)
        return order, ordered, best

    def polished(
        self, gradient: Tensor, gap: Tensor, eta: Tensor, constraint: ConstraintSet, x: Tensor
    ) -> Iterator[Tensor]:
        """Yield what is tried in place of a success η (B, *S): the solution of problem (8) there, and half way to it.

        gap (B,): what the linear model there asks of ⟨gradient, η⟩.
        """
        whole = constraint.smallest(gradient, gap, x)
        for share in (1.0, 0.5):
            # Convex sets: on the way from one to the other no size is above the larger.
            yield eta + share * (whole - eta)


@dataclass(frozen=True)
class ShrinkingToSet(ShrinkingBall):
    """The first attempt of a norm-constrained attack as a search: it ends at a success within the set itself."""

    within = True


def rounding_of(expansion: Expansion) -> Tensor:
    """Return what rounding may hide of the scores, (B,): asked for on top of a gap, so that the boundary is crossed."""
    value = expansion.value
    largest = expansion.outputs.flatten(1).abs().amax(1)
    return 16.0 * torch.finfo(value.dtype).eps * (1.0 + largest).to(value.dtype)
