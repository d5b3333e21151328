"""What the paper reports of the networks of Section 6.1, and the methods it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["METHODS", "PAPER", "PaperRow"]


@dataclass(frozen=True)
class PaperRow:
    """What the paper reports of one network (Table 3 and Figure 3)."""

    title: str
    error: float
    rho1: float
    rho2: float
    eps99: float
    grid: tuple[float, ...]


def _grid(top: float) -> tuple[float, ...]:
    return tuple(round(top * i / 10, 6) for i in range(1, 11))


PAPER = {
    "mnist-fcnn": PaperRow("FCNN (MNIST)", 1.7, 0.036, 0.034, 0.076, _grid(0.10)),
    "mnist-lenet5": PaperRow("LeNet-5 (MNIST)", 0.9, 0.077, 0.061, 0.164, _grid(0.20)),
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
