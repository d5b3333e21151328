"""The norm-constrained problem: the largest linearised gain inside the set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from epsball.local_models import Expansion, GaussNewton
from epsball.randomness import Generators
from epsball.sets.base import ConstraintSet
from epsball.solvers.base import Formulation, Step
from epsball.solvers.quadratic import QuadraticOptions, solve_quadratic

__all__ = ["NormConstrained"]


@dataclass(frozen=True)
class NormConstrained(Formulation):
    """Solve max_δ max_c value_c + ⟨gradient_c, δ⟩ over δ in C: problems (5), (10), (16) and (22) of the paper.

    Exact: the maximum of affine functions over C is the largest of value_c + support_C(gradient_c), attained at
    that piece's lmo. Of equal pieces the first. Always feasible.

    With a quadratic local model: max ‖r + Jδ‖² over δ in C, problems (12), (13) and (18); `quadratic` has the options
    of its solvers, and `AttackResult.exact` says where the solution is known to be global.
    """

    quadratic: QuadraticOptions = field(default_factory=QuadraticOptions, repr=False)

    @property
    def ascends(self) -> bool:
        """Whether the problems are those solved here, not a subclass's."""
        return type(self).solve is NormConstrained.solve

    def solve(
        self,
        expansion: Expansion | GaussNewton,
        constraint: ConstraintSet,
        point: Tensor,
        streams: Generators | None = None,
    ) -> Step:
        """Take the piece with the largest value plus support, or solve the quadratic problem; δ (B, *S)."""
        if isinstance(expansion, GaussNewton):
            if streams is None:
                streams = Generators.of(0, torch.arange(len(point), device=point.device))
            return solve_quadratic(expansion, constraint, point, streams, self.quadratic)
        feasible = torch.ones(len(point), dtype=torch.bool, device=point.device)
        if expansion.value.shape[1] == 1:
            return Step(constraint.lmo(expansion.gradient[:, 0], point), feasible)
        # Piece by piece, so that no copy of all the gradients is made.
        support = torch.stack([constraint.support(g, point) for g in expansion.gradient.unbind(1)], 1)
        best = (expansion.value + support).nan_to_num(nan=-torch.inf).argmax(1)
        chosen = expansion.gradient[torch.arange(len(point), device=point.device), best]
        slope = support / constraint.eps_of(point)[:, None]
        return Step(constraint.lmo(chosen, point), feasible, slope)

    def rank(self, expansion: Expansion, constraint: ConstraintSet, x: Tensor) -> Tensor:
        """Order the pieces by their largest linearised gain inside the set, the largest first; (B, C)."""
        support = torch.stack([constraint.support(g, x) for g in expansion.gradient.unbind(1)], 1)
        return (expansion.value + support).argsort(dim=1, descending=True, stable=True)

    def candidates(
        self, value: Tensor, slope: Tensor, growth: float, constraint: ConstraintSet, point: Tensor
    ) -> Tensor:
        """Keep the pieces whose largest possible value plus support reaches the least possible best one; (B, C)."""
        support = slope * constraint.eps_of(point)[:, None]
        least = (value + support / growth).amax(1, keepdim=True)
        return ~(value + support * growth < least)  # NaN stays a candidate
