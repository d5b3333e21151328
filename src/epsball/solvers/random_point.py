"""The random baseline: no problem is solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.local_models import Expansion, GaussNewton
from epsball.randomness import Generators
from epsball.sets.base import ConstraintSet
from epsball.solvers.base import Formulation, Step

__all__ = ["RandomPoint"]


@dataclass(frozen=True)
class RandomPoint(Formulation):
    """Draw a random η that spends the whole budget: the paper's random-ℓ2, random-ℓ∞ and random-pixel baselines.

    The attack draws it with the set's `sample(boundary=True)`; no gradient is taken. Bounds cut off what leaves them,
    so that inside bounds less than the whole budget is spent.
    """

    uses_model = False

    def solve(
        self,
        expansion: Expansion | GaussNewton,
        constraint: ConstraintSet,
        point: Tensor,
        streams: Generators | None = None,
    ) -> Step:
        """Return no step: the drawn point is the answer."""
        return Step(torch.zeros_like(point), torch.ones(len(point), dtype=torch.bool, device=point.device))
