"""Local models of the gain around a point: what one linearisation of the network says."""

from epsball.local_models.linear import Expansion, Linear
from epsball.local_models.quadratic import GaussNewton, Quadratic

__all__ = ["Expansion", "GaussNewton", "Linear", "LocalModel", "Quadratic"]

LocalModel = Linear | Quadratic
