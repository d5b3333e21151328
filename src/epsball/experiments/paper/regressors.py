"""Section 6.2's panels: which network is attacked how, and over which budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from epsball.attack import Attack
from epsball.recipes import recipe
from epsball.solvers import NormConstrained, QuadraticOptions

__all__ = ["FEW", "PANELS", "Method", "RegressionPanel", "compose"]

#: The paper averages over so many random test images.
FEW = 20


@dataclass(frozen=True)
class Method:
    """A recipe under the name of the legend.

    ours: not in the paper's figure. ranked: pixels are ranked by random combinations of the outputs instead of by all
    products, which for 1,000 images of CIFAR-10 would be three million.
    """

    recipe: str
    options: dict[str, Any] = field(default_factory=dict)
    ours: bool = False
    ranked: bool = False


@dataclass(frozen=True)
class RegressionPanel:
    """One panel of Figure 4. grid: the horizontal axis, input PSNR in dB or ε. baselines: each method's random one."""

    key: str
    title: str
    network: str
    data: str
    p: float
    axis: str  # "psnr" or "eps"
    grid: tuple[float, ...]
    methods: dict[str, Method]
    baselines: dict[str, str]

    def eps(self, entries: int) -> list[float]:
        """Return the budgets, rising; at p = 2 and inf those that leave the input PSNR of the grid (peak 1)."""
        if self.axis == "eps":
            return list(self.grid)
        size = math.sqrt(entries) if self.p == 2.0 else 1.0
        return [size * 10.0 ** (-decibel / 20.0) for decibel in reversed(self.grid)]

    def at(self) -> list[float]:
        """Return the points of the grid in the order of `eps`."""
        return list(self.grid) if self.axis == "eps" else list(reversed(self.grid))


def _balls(p: str, random: str) -> tuple[dict[str, Method], dict[str, str]]:
    methods = {
        f"random-l{p}": Method(random),
        f"linear-l{p}-1": Method("linear-lp-1"),
        f"linear-l{p}-10": Method("linear-lp-10"),
        f"linear-l{p}-20": Method("linear-lp-20"),
        f"quadratic-l{p}": Method("quadratic-lp"),
        # Without a dense Jacobian, of which there would be one for each step.
        f"quadratic-l{p}-10": Method("quadratic-lp-10", {"memory": 0.0}, ours=True),
    }
    return methods, {name: f"random-l{p}" for name in methods if not name.startswith("random")}


def _pixels() -> tuple[dict[str, Method], dict[str, str]]:
    methods = {f"random-pixel-{k}": Method(f"random-pixel-{k}") for k in (1, 10, 100)}
    methods |= {f"linear-pixel-{k}": Method(f"linear-pixel-{k}") for k in (1, 10, 100)}
    methods |= {f"quadratic-pixel-{k}": Method("quadratic-pixel", {"k": k}, ours=True, ranked=True) for k in (1, 10)}
    return methods, {name: f"random-pixel-{name.split('-')[-1]}" for name in methods if not name.startswith("random")}


_DECIBELS = (10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0)
PANELS = (
    RegressionPanel(
        "a", "MNIST autoencoder, ℓ2", "mnist-autoencoder", "mnist", 2.0, "psnr", _DECIBELS, *_balls("2", "random-l2")
    ),
    RegressionPanel(
        "b",
        "MNIST autoencoder, ℓ∞",
        "mnist-autoencoder",
        "mnist",
        math.inf,
        "psnr",
        _DECIBELS,
        *_balls("inf", "random-linf"),
    ),
    RegressionPanel(
        "c",
        "CIFAR-10 autoencoder, pixels",
        "cifar10-autoencoder",
        "cifar10",
        math.inf,
        "eps",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        *_pixels(),
    ),
)


def compose(panel: RegressionPanel, method: Method) -> Attack:
    """Return the attack without a range, as in the paper; its budget is set for each point of the grid."""
    fixed = "pixel" in method.recipe or method.recipe.startswith("random")
    attack = recipe(method.recipe, p=None if fixed else panel.p, eps=1.0, **method.options)
    if method.ranked:
        attack = replace(attack, formulation=NormConstrained(QuadraticOptions(products=0)))
    return attack
