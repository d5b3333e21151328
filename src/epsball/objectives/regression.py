"""Objectives of any outputs (B, *O) with a reference output as target."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from epsball.errors import InputError
from epsball.objectives.base import Objective
from epsball.tensors import flat

__all__ = ["SquaredError"]


@dataclass(frozen=True)
class SquaredError(Objective):
    """Raise ‖f(x + η) - y‖², y the target, or f(x) where no target is given.

    A success is an error above `threshold`. With y = f(x) the gradient at η = 0 is exactly zero: dither.
    """

    threshold: float = 0.0
    classifies = False

    def __post_init__(self) -> None:
        """Refuse a threshold that is no number."""
        if not isinstance(self.threshold, Real) or isinstance(self.threshold, bool):
            raise InputError(f"expected threshold as a number, got {self.threshold!r}.")

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the squared error of each sample, (B, 1)."""
        return flat(outputs - target).square().sum(1, keepdim=True)

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether the error exceeds the threshold, (B,); never where outputs are not finite."""
        return (self.gain(outputs, target) > self.threshold) & flat(outputs).isfinite().all(1)

    def check(self, outputs: Tensor, target: Tensor | None, batch: int) -> Tensor:
        """Refuse a target of another shape than the output."""
        target = super().check(outputs, target, batch)
        if target.shape[1:] != outputs.shape[1:]:
            raise InputError(
                f"expected a target of the output's shape {(batch, *outputs.shape[1:])}, got {tuple(target.shape)}; "
                "reshape it, or for class labels use a recipe of classification such as 'pgd'."
            )
        return target.to(outputs.dtype)
