"""What the attacker raises: `gain`, and when a sample counts as a `success`."""

from epsball.objectives.base import Objective, two_class
from epsball.objectives.classification import CrossEntropy, Margin, TargetedMargin, TrueScore
from epsball.objectives.composed import ByTarget, Custom, Ensemble, as_objective
from epsball.objectives.ranked import Ranked
from epsball.objectives.regression import SquaredError

__all__ = [
    "ByTarget",
    "CrossEntropy",
    "Custom",
    "Ensemble",
    "Margin",
    "Objective",
    "Ranked",
    "SquaredError",
    "TargetedMargin",
    "TrueScore",
    "as_objective",
    "two_class",
]
