"""What the paper reports of the networks of Section 6.1, and the methods it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["METHODS", "PAPER", "PaperRow"]


@dataclass(frozen=True)
class PaperRow:
    """What the paper reports of one network (Table 3 and Figure 3).

    nested: an image fooled within a smaller ε counts within larger ones, and is not attacked again. Every pass through
    the networks for CIFAR-10 takes a hundred times as long as through those for MNIST, so that of the two methods that
    the paper does not show, the one that all but repeats PGD is left out there.
    """

    key: str
    title: str
    error: float
    rho1: float
    rho2: float
    eps99: float
    grid: tuple[float, ...]
    nested: bool = False

    def shows(self, method: str) -> bool:
        """Tell whether the curve of a method is measured."""
        return not (self.nested and method == "bim")


def _grid(top: float) -> tuple[float, ...]:
    return tuple(round(top * i / 10, 6) for i in range(1, 11))


#: Figure 3 shows them as panels (a) to (d).
PAPER = {
    "mnist-fcnn": PaperRow("a", "FCNN (MNIST)", 1.7, 0.036, 0.034, 0.076, _grid(0.10)),
    "mnist-lenet5": PaperRow("b", "LeNet-5 (MNIST)", 0.9, 0.077, 0.061, 0.164, _grid(0.20)),
    "cifar10-nin": PaperRow("c", "NIN (CIFAR-10)", 13.8, 0.012, 0.004, 0.018, _grid(0.03), nested=True),
    "cifar10-densenet40": PaperRow("d", "DenseNet (CIFAR-10)", 5.2, 0.006, 0.002, 0.010, _grid(0.01)[1:], nested=True),
}

#: The methods of Figure 3 under their names here, then two that the paper does not show, at the same T.
METHODS: dict[str, dict[str, Any]] = {
    "deepfool": {},
    "alg1-10": {},
    "alg1-5": {},
    "alg1": {},
    "alg2": {},
    "fgsm": {},
    "pgd-paper": {"steps": 10},
    "random-linf": {},
    "bim": {"steps": 10},
    "pgd": {"steps": 10},
}
