"""What an attack achieved, measured on the tensor that it returned and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1e-6
ROUNDING = 2.0**-24  # half a unit in the last place of float32 numbers in [0.5, 1)


@dataclass(frozen=True, eq=False)
class Verdict:
    """success: (B,) bool, a wrong class from a finite input inside the bounds and the ball. norm: (B,) float64 of the
    perturbation, NaN where it is not finite. valid: (B,) bool, finite and inside. wrong: (B,) bool, the class alone.
    """

    success: Tensor
    norm: Tensor
    valid: Tensor
    wrong: Tensor

    @property
    def distance(self) -> Tensor:
        """The norm where the attack succeeded, inf where it did not."""
        return torch.where(self.success, self.norm, math.inf)


def slack(entries: int, p: float) -> float:
    """Return how far a norm may exceed the budget: 1e-6, and the rounding of x + perturbation to float32."""
    return SLACK + ROUNDING * (1.0 if math.isinf(p) else entries ** (1.0 / p))


def judge(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    perturbed: Tensor,
    p: float,
    eps: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 500,
) -> Verdict:
    """Judge perturbed inputs by class, norm, bounds and, where eps is given, budget."""
    if perturbed.shape != x.shape:
        raise ValueError(f"the attack returned shape {tuple(perturbed.shape)} for inputs of {tuple(x.shape)}")
    perturbed = perturbed.detach().to(x)
    finite = perturbed.flatten(1).isfinite().all(1)
    # An input that is not finite is replaced before the model sees it: its class would be an accident.
    safe = torch.where(finite.view(-1, *[1] * (x.dim() - 1)), perturbed, x)
    with torch.no_grad():
        scores = torch.cat([model(part) for part in safe.split(batch_size)]) if len(x) else x.new_zeros(0, 1)
    wrong = (scores.argmax(1) != y) & scores.isfinite().all(1) & finite
    norm = torch.linalg.vector_norm((safe.double() - x.double()).flatten(1), p, dim=1)
    norm = torch.where(finite, norm, math.nan)
    inside = (safe >= bounds[0] - SLACK).flatten(1).all(1) & (safe <= bounds[1] + SLACK).flatten(1).all(1)
    valid = finite & inside
    if eps is not None:
        valid &= norm <= eps + slack(x[0].numel() if len(x) else 1, p)
    return Verdict(success=wrong & valid, norm=norm, valid=valid, wrong=wrong)
