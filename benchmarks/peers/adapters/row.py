"""What the benchmark knows of an attack: where it comes from, what it was set to, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

FIXED, MINIMAL = "fixed", "minimal"
INF = math.inf


@dataclass(frozen=True, eq=False)
class Job:
    """One batch to attack.

    budget: of a fixed attack the gradient steps T of each sample; of a minimal one the propagations of each sample,
    forwards and backwards together. eps: None for minimal attacks.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    p: float
    eps: float | None
    budget: int
    seed: int = 0
    classes: int = 10

    @property
    def radius(self) -> float:
        if self.eps is None:
            raise ValueError("expected eps for a fixed-budget attack")
        return self.eps


@dataclass(frozen=True)
class Attack:
    """kind: FIXED or MINIMAL. orders: the norms p it takes. settings: what differs from its defaults, for the page.

    least: the smallest budget that it can run on. exact_only: offered in the affine part alone.
    """

    library: str
    name: str
    kind: str
    orders: tuple[float, ...]
    settings: str
    call: Callable[[Job], Tensor]
    least: int = 1
    exact_only: bool = False

    @property
    def key(self) -> str:
        return f"{self.library}/{self.name}"

    def takes(self, p: float, budget: int) -> bool:
        return p in self.orders and budget >= self.least


def name_of(p: float) -> str:
    """Write a norm as the libraries' arguments and this benchmark's files do: "1", "2", "inf"."""
    return "inf" if math.isinf(p) else f"{p:g}"
