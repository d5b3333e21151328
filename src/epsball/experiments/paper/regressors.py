"""Section 6.2's panels: which network is attacked how, and over which budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from epsball.attack import Attack
from epsball.experiments.paper.setting import Setting
from epsball.metrics.regression import model_outputs
from epsball.recipes import recipe
from epsball.solvers import NormConstrained, QuadraticOptions

__all__ = ["FEW", "PANELS", "Method", "RegressionPanel", "chosen", "compose", "reference"]

#: The paper averages over so many random test images.
FEW = 20
#: So many of 96x96, where a pass through the network takes as long as a thousand through an autoencoder of digits.
FEW_LARGE = 40


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
    """One panel of Figure 4.

    grid        the horizontal axis, input PSNR in dB or ε
    baselines   each method's random one
    reference   y, which the output PSNR is measured against: "input" for autoencoders, or "output": y := f(x)
    count       test images, unless a limit says otherwise; most: at most so many whatever the limit
    trains      without weights the network is trained first; else the panel is left out
    """

    key: str
    title: str
    network: str
    data: str
    p: float
    axis: str  # "psnr" or "eps"
    grid: tuple[float, ...]
    methods: dict[str, Method]
    baselines: dict[str, str]
    reference: Literal["input", "output"] = "input"
    count: int = 1000
    most: int | None = None
    trains: bool = True

    def can_be_made(self, setting: Setting) -> bool:
        """Tell whether the network has weights, or is trained for it."""
        return self.trains or setting.has_weights(self.network)

    def images(self, limit: int | None) -> int:
        """Return how many test images are asked for."""
        wanted = limit or self.count
        return wanted if self.most is None else min(wanted, self.most)

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


def _linear(p: str, random: str) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the methods of `_balls` without the quadratic ones, as in the paper's panel (d)."""
    methods, baselines = _balls(p, random)
    names = [name for name in methods if not name.startswith("quadratic")]
    return {name: methods[name] for name in names}, {name: baselines[name] for name in names if name in baselines}


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
    RegressionPanel(
        "d",
        "STL-10 colorization, ℓ∞",
        "stl10-colorization",
        "stl10",
        math.inf,
        "psnr",
        _DECIBELS,
        *_linear("inf", "random-linf"),
        reference="output",
        count=FEW_LARGE,
        most=FEW_LARGE,
        trains=False,
    ),
)


def chosen(setting: Setting, panels: Sequence[RegressionPanel]) -> list[RegressionPanel]:
    """Return the panels that are asked for and whose networks have weights, or are trained for them."""
    return [panel for panel in panels if setting.has(panel.key) and panel.can_be_made(setting)]


def reference(panel: RegressionPanel, model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the reference outputs y: x itself, or f(x)."""
    return x if panel.reference == "input" else model_outputs(model, x)


def compose(panel: RegressionPanel, method: Method) -> Attack:
    """Return the attack without a range, as in the paper; its budget is set for each point of the grid."""
    fixed = "pixel" in method.recipe or method.recipe.startswith("random")
    attack = recipe(method.recipe, p=None if fixed else panel.p, eps=1.0, **method.options)
    if method.ranked:
        attack = replace(attack, formulation=NormConstrained(QuadraticOptions(products=0)))
    return attack
