"""Networks: the paper's, and small ones for the embedded digits, with their trained weights."""

from epsball.networks.catalogue import CATALOGUE, build, card, load, names, shipped, spec
from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["CATALOGUE", "NetworkSpec", "TrainingRecipe", "build", "card", "load", "names", "shipped", "spec"]
