"""Local models of the gain around a point: what one linearisation of the network says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.objectives import Objective
from epsball.tensors import dot, norm

__all__ = ["Expansion", "Linear"]

Candidates = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Expansion:
    """The affine pieces gain_c(δ) ≈ value_c + ⟨gradient_c, δ⟩ around a point; their maximum models the gain.

    value: (B, C). gradient: (B, C, *S). piece: which of the objective's pieces each one is, (B, C); a sample with fewer
    candidates than others repeats its first. outputs: the model's outputs at the point (B, *O). forwards, backwards:
    the passes each sample takes by itself, (B,) int64: what a batch repeats for others is not counted, so that the
    counts do not depend on the batch.
    """

    value: Tensor
    gradient: Tensor
    piece: Tensor
    outputs: Tensor
    forwards: Tensor
    backwards: Tensor

    def around(self, offset: Tensor) -> Expansion:
        """Return the same affine functions with δ counted from the point minus offset (B, *S)."""
        pieces = self.gradient.shape[1]
        shift = torch.stack([dot(self.gradient[:, c], offset) for c in range(pieces)], 1)
        return replace(self, value=self.value - shift)

    def mixed(self, other: Expansion, share: float) -> Expansion:
        """Return (1 - share) times these affine functions and share times those of another expansion."""
        value, gradient = self.value.lerp(other.value, share), self.gradient.lerp(other.gradient, share)
        return replace(other, value=value, gradient=gradient)

    def spent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the forward passes, backward passes and JVPs of each sample, (B,) int64 each."""
        return self.forwards, self.backwards, self.forwards.new_zeros(()).expand_as(self.forwards)

    def recounted(self) -> Expansion:
        """Return the expansion for another run, whose passes are the same."""
        return self

    def take(self, index: Tensor) -> Expansion:
        """Keep some samples."""
        return Expansion(*(getattr(self, field.name)[index] for field in fields(self)))

    def finite_and_flat(self) -> tuple[Tensor, Tensor]:
        """Tell for each sample whether all values and gradients are finite, and whether all gradients are zero."""
        if not self.gradient.numel():
            return self.value.isfinite().all(1), self.value.new_ones(len(self.value), dtype=torch.bool)
        length = torch.linalg.vector_norm(self.gradient.flatten(2), dim=2)
        if bool(((length > 0) & (length + self.value.abs() < math.inf)).all()):
            fine = self.value.new_ones(len(self.value), dtype=torch.bool)
            return fine, ~fine
        # A length may over- or underflow. The largest magnitude is NaN or inf where an entry is, and 0 where all are.
        largest = torch.stack([norm(gradient, math.inf) for gradient in self.gradient.unbind(1)], 1).amax(1)
        return (largest < math.inf) & (self.value.abs().amax(1) < math.inf), largest == 0  # NaN is not below either


@dataclass(frozen=True)
class Linear:
    """Expand each piece of the objective to first order: one forward pass, one backward pass a piece.

    gradients: how all pieces are differentiated: "loop", one backward pass after another; "batched", all in one
    vectorised pass (`is_grads_batched`); "auto", batched for networks without convolutions, where it was measured to be
    faster (benchmarks/class_gradients.py), and a loop for the others.

    growth: after the first step of a margin over all classes, only the classes that can still win the linearised
    problem are differentiated, if no gradient's dual norm has changed by more than this factor since it was last
    computed; inf differentiates all classes at every step. What it saves and changes: benchmarks/class_gradients.py.
    """

    gradients: Literal["auto", "loop", "batched"] = "auto"
    growth: float = 2.0

    def __post_init__(self) -> None:
        """Refuse an unknown way of differentiating and a growth below 1."""
        if self.gradients not in ("auto", "loop", "batched"):
            raise InputError(f'expected gradients as "auto", "loop" or "batched", got {self.gradients!r}.')
        if not self.growth >= 1.0:
            raise InputError(f"expected growth >= 1 (inf: differentiate all classes), got {self.growth!r}.")

    def check(self, objective: Objective) -> None:
        """Accept every objective."""

    @torch.enable_grad()
    def expand(
        self,
        model: Callable[[Tensor], Tensor],
        objective: Objective,
        point: Tensor,
        target: Tensor,
        *,
        convolutional: bool = True,
        candidates: Candidates | None = None,
    ) -> Expansion:
        """Linearise the objective's pieces at the point (B, *S); gradients are taken to the input alone.

        candidates: from the values (B, C) of all pieces, which of them to differentiate, (B, C) bool; all by default.
        """
        point, outputs, pieces = _forward(model, objective, point, target)
        batch, count = pieces.shape
        value, once = pieces.detach(), torch.ones(len(point), dtype=torch.int64, device=point.device)
        if count == 1 or candidates is None:
            batched = self.gradients == "batched" or (self.gradients == "auto" and not convolutional)
            gradient = _all_gradients(pieces, point, batched=batched)
            piece = torch.arange(count, device=point.device).expand(batch, count)
            return Expansion(value, gradient, piece, outputs.detach(), once, once if count == 1 else count * once)

        wanted = candidates(value)
        number, order = wanted.sum(1).clamp_min(1), wanted.to(torch.uint8).sort(dim=1, descending=True, stable=True)[1]
        width = int(number.max())
        # A sample with fewer candidates repeats its first one, which changes no maximum.
        rank = torch.arange(width, device=point.device)[None].expand(batch, width)
        piece = order.gather(1, torch.where(rank < number[:, None], rank, 0))
        gradients = _empty(point, width)
        rows: Tensor | None = None
        for c in range(width):
            more = (number > c).nonzero()[:, 0]
            if rows is None and c and 2 * len(more) < batch:
                # Few samples have further candidates: a forward pass of these alone costs less than a backward of all.
                rows = more
                point, _, pieces = _forward(model, objective.take(rows), point.detach()[rows], target[rows])
            chosen = piece[:, c : c + 1] if rows is None else piece[rows, c : c + 1]
            total = pieces.gather(1, chosen).sum()
            gradient = _gradient(total, point, keep=c < width - 1).detach()
            if rows is None:
                gradients[:, c] = gradient
            else:
                gradients[:, c] = gradients[:, 0]
                gradients[rows, c] = gradient
        return Expansion(value.gather(1, piece), gradients, piece, outputs.detach(), once, number)


def _forward(
    model: Callable[[Tensor], Tensor], objective: Objective, point: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the point as a leaf, the outputs and the pieces with their graph."""
    point = point.detach().requires_grad_()
    outputs = model(point)
    pieces = objective.pieces(outputs, target)
    if not pieces.requires_grad:
        raise InputError(
            "expected a model that is differentiable in its input, got outputs without a gradient; remove detach, "
            "no_grad, argmax or rounding between x and the output."
        )
    return point, outputs, pieces


def _all_gradients(pieces: Tensor, point: Tensor, *, batched: bool) -> Tensor:
    """Differentiate every piece, (B, C, *S)."""
    count = pieces.shape[1]
    if count == 1:
        return _gradient(pieces.sum(), point, keep=False)[:, None].detach()
    if batched:
        basis = torch.eye(count, dtype=pieces.dtype, device=pieces.device)[:, None].expand(count, *pieces.shape)
        try:
            (stacked,) = torch.autograd.grad(pieces, point, basis, retain_graph=True, is_grads_batched=True)
            return stacked.transpose(0, 1).detach()
        except RuntimeError:
            pass  # a backward that reads values (.item()) cannot be vectorised; the loop does the same one by one
    gradients = _empty(point, count)
    for c in range(count):
        gradients[:, c] = _gradient(pieces[:, c].sum(), point, keep=c < count - 1).detach()
    return gradients


def _empty(point: Tensor, count: int) -> Tensor:
    """Return room for `count` gradients, (B, C, *S), piece after piece in memory, as they are written and read."""
    return point.detach().new_empty(count, *point.shape).transpose(0, 1)


def _gradient(total: Tensor, point: Tensor, *, keep: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(total, point, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient
