"""Named attacks: rows of a catalogue, each a composition of objective, set, problem and schedule."""

from epsball.recipes.catalogue import find, recipes
from epsball.recipes.compose import recipe
from epsball.recipes.row import Recipe

__all__ = ["Recipe", "find", "recipe", "recipes"]
