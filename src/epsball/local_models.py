"""Local models of the gain around a point: what one linearisation of the network says (DESIGN.md 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.objectives import Objective
from epsball.tensors import dot

__all__ = ["Expansion", "Linear", "LocalModel"]


@dataclass(frozen=True, eq=False)
class Expansion:
    """The affine pieces gain_c(δ) ≈ value_c + ⟨gradient_c, δ⟩ around a point; their maximum models the gain.

    value: (B, C). gradient: (B, C, *S). outputs: the model's outputs at the point (B, *O). backwards: passes a sample.
    """

    value: Tensor
    gradient: Tensor
    outputs: Tensor
    backwards: int

    def take(self, index: Tensor) -> Expansion:
        """Keep the pieces of some samples."""
        return replace(self, value=self.value[index], gradient=self.gradient[index], outputs=self.outputs[index])

    def around(self, offset: Tensor) -> Expansion:
        """Return the same affine functions with δ counted from the point minus offset (B, *S)."""
        pieces = self.gradient.shape[1]
        shift = torch.stack([dot(self.gradient[:, c], offset) for c in range(pieces)], 1)
        return replace(self, value=self.value - shift)

    def finite_and_flat(self) -> tuple[Tensor, Tensor]:
        """Tell for each sample whether all values and gradients are finite, and whether all gradients are exactly zero."""
        # One reduction answers both: the largest magnitude is NaN or inf where an entry is.
        largest = torch.linalg.vector_norm(self.gradient.flatten(1), torch.inf, dim=1)
        return largest.isfinite() & self.value.isfinite().all(1), largest == 0


@dataclass(frozen=True)
class Linear:
    """Expand each piece of the objective to first order: one forward pass, one backward pass a piece.

    gradients: how several pieces are differentiated: "loop", one backward pass after another; "batched", all in one
    vectorised pass (`is_grads_batched`); "auto", batched for networks without convolutions, where it was measured to be
    faster (benchmarks/class_gradients.py), and a loop for the others.
    """

    gradients: Literal["auto", "loop", "batched"] = "auto"

    def __post_init__(self) -> None:
        """Refuse an unknown way of differentiating."""
        if self.gradients not in ("auto", "loop", "batched"):
            raise InputError(f'expected gradients as "auto", "loop" or "batched", got {self.gradients!r}.')

    def expand(
        self,
        model: Callable[[Tensor], Tensor],
        objective: Objective,
        point: Tensor,
        target: Tensor,
        *,
        convolutional: bool = True,
    ) -> Expansion:
        """Linearise the objective's pieces at the point (B, *S); gradients are taken to the input alone."""
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            outputs = model(point)
            pieces = objective.pieces(outputs, target)
        count = pieces.shape[1]
        if not pieces.requires_grad:
            raise InputError(
                "expected a model that is differentiable in its input, got outputs without a gradient; remove detach, "
                "no_grad, argmax or rounding between x and the output."
            )
        batched = self.gradients == "batched" or (self.gradients == "auto" and not convolutional)
        if count == 1:
            gradient = _gradient(pieces.sum(), point, keep=False)[:, None]
        elif batched:
            basis = torch.eye(count, dtype=pieces.dtype, device=pieces.device)[:, None].expand(count, *pieces.shape)
            (stacked,) = torch.autograd.grad(pieces, point, basis, is_grads_batched=True)
            gradient = stacked.transpose(0, 1)
        else:
            each = [_gradient(pieces[:, c].sum(), point, keep=c < count - 1) for c in range(count)]
            gradient = torch.stack(each, 1)
        return Expansion(pieces.detach(), gradient.detach(), outputs.detach(), backwards=count)


LocalModel = Linear


def _gradient(total: Tensor, point: Tensor, *, keep: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(total, point, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient
