"""What every formulation answers: the step δ that solves its problem on the local model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.local_models import Expansion, GaussNewton
from epsball.randomness import Generators
from epsball.sets.base import ConstraintSet

__all__ = ["Formulation", "Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """A solution δ (B, *S), and whether the problem had one, (B,) bool; where not, δ is the best there is.

    slope: what a unit of budget gains on each piece, (B, C); None where nothing was compared. exact: whether δ is known
    to be a global solution, (B,) bool; None: for every sample. kkt: the relative residual of the optimality conditions
    (B,), NaN where the solver has none. mirror: a second solution (B, *S) that is as good for the model where the
    residual is zero; the model under attack decides between the two.
    """

    delta: Tensor
    feasible: Tensor
    slope: Tensor | None = None
    exact: Tensor | None = None
    kkt: Tensor | None = None
    mirror: Tensor | None = None


class Formulation(ABC):
    """Problem (5) or (8) of the paper, or none."""

    #: Whether the local model is needed at all (a random baseline needs none).
    uses_model: bool = True
    #: Whether ε bounds each problem (then an accumulated step gets a share of it) or is only compared with at the end.
    budgeted: bool = True
    #: Whether the loop keeps the smallest success and lets the radius of the ball follow it.
    follows: bool = False
    #: How fast that radius moves at the first step, as a share of it.
    rate: float = 0.0
    #: Steps of an attempt up to which it may fall twice as fast where the linear model says so.
    haste: int = 0
    #: How often the smallest success is polished by the minimal-norm problem.
    polish: int = 0

    @property
    def ascends(self) -> bool:
        """Whether every problem has a solution, and that of one affine piece is the set's `lmo`."""
        return False

    def searched(self, constraint: ConstraintSet) -> ConstraintSet:
        """Return the set whose size a search makes small; the norm of a result is that size."""
        return constraint

    @abstractmethod
    def solve(
        self,
        expansion: Expansion | GaussNewton,
        constraint: ConstraintSet,
        point: Tensor,
        streams: Generators | None = None,
    ) -> Step:
        """Solve the problem over the constraint around the point (B, *S); streams: for solvers that start at random."""

    def candidates(
        self, value: Tensor, slope: Tensor, growth: float, constraint: ConstraintSet, point: Tensor
    ) -> Tensor:
        """Tell which pieces can be the solution's if no slope changed by more than a factor `growth`, (B, C) bool."""
        return torch.ones_like(value, dtype=torch.bool)

    def rank(self, expansion: Expansion, constraint: ConstraintSet, x: Tensor) -> Tensor:
        """Order the pieces of an expansion around x by what the linear model promises, the best first; (B, C)."""
        raise NotImplementedError
