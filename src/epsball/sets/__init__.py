"""Sets of allowed perturbations with their whole geometry."""

from epsball.sets._lattice import on_lattice
from epsball.sets.base import ConstraintSet
from epsball.sets.group_count import GroupCount
from epsball.sets.groups import Groups
from epsball.sets.lp_ball import LpBall
from epsball.sets.oracle import Oracle
from epsball.sets.partition import Partition, channels, patches, pixels

__all__ = [
    "ConstraintSet",
    "GroupCount",
    "Groups",
    "LpBall",
    "Oracle",
    "Partition",
    "channels",
    "on_lattice",
    "patches",
    "pixels",
]
