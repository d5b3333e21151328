"""Formulations: which convex problem is solved over the set at each linearisation."""

from epsball.solvers.base import Formulation, Step
from epsball.solvers.fewest import FewestGroups
from epsball.solvers.min_norm import MinNorm
from epsball.solvers.norm_constrained import NormConstrained
from epsball.solvers.quadratic import QuadraticOptions
from epsball.solvers.random_point import RandomPoint
from epsball.solvers.shrinking import ShrinkingBall

__all__ = [
    "FewestGroups",
    "Formulation",
    "MinNorm",
    "NormConstrained",
    "QuadraticOptions",
    "RandomPoint",
    "ShrinkingBall",
    "Step",
]
