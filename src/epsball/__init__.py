"""Worst-case perturbations of differentiable models as convex programs, and how robust the model is."""

from epsball import adapters
from epsball.attack import Attack
from epsball.errors import EpsballWarning, InputError, Status
from epsball.local_models import Linear, Quadratic
from epsball.metrics import Robustness, first_order_distance, fooling_curve, psnr, robustness
from epsball.metrics.bound import UpperBound, upper_bound
from epsball.objectives import (
    ByTarget,
    CrossEntropy,
    Custom,
    Ensemble,
    Margin,
    Objective,
    Ranked,
    SquaredError,
    TargetedMargin,
    TrueScore,
)
from epsball.recipes import Recipe, recipe, recipes
from epsball.result import AttackResult
from epsball.schedule import Schedule
from epsball.sets import ConstraintSet, Groups, LpBall, Oracle, Partition, channels, patches, pixels
from epsball.sets.custom import CustomSet
from epsball.solvers import FewestGroups, MinNorm, NormConstrained, QuadraticOptions, RandomPoint, ShrinkingBall
from epsball.target_model import TargetModel

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "AttackResult",
    "ByTarget",
    "ConstraintSet",
    "CrossEntropy",
    "Custom",
    "CustomSet",
    "Ensemble",
    "EpsballWarning",
    "FewestGroups",
    "Groups",
    "InputError",
    "Linear",
    "LpBall",
    "Margin",
    "MinNorm",
    "NormConstrained",
    "Objective",
    "Oracle",
    "Partition",
    "Quadratic",
    "QuadraticOptions",
    "RandomPoint",
    "Ranked",
    "Recipe",
    "Robustness",
    "Schedule",
    "ShrinkingBall",
    "SquaredError",
    "Status",
    "TargetModel",
    "TargetedMargin",
    "TrueScore",
    "UpperBound",
    "adapters",
    "channels",
    "first_order_distance",
    "fooling_curve",
    "patches",
    "pixels",
    "psnr",
    "recipe",
    "recipes",
    "robustness",
    "upper_bound",
]
