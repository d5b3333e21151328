"""An upper bound on ‖r + Jδ‖² over a box, from the semidefinite relaxation and its dual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.solvers.view import View

__all__ = ["BoxBound", "bound_box"]

_CHECK = 20  # sweeps between two looks at the ascent
_ROUND = 100  # sweeps after a step along the eigenvector that the bound hangs on
_FREE_RANK = 8  # columns of V where every sweep costs products with the network
_LANCZOS = 40


@dataclass(frozen=True, eq=False)
class BoxBound:
    """value (B,): the bound. relaxed (B,): what the relaxation attains, so that value - relaxed bounds its own gap.

    exact: whether the largest eigenvalue behind the bound is exact, (B,) bool; where not, `value` holds with the
    confidence that was asked for.
    """

    value: Tensor
    relaxed: Tensor
    exact: Tensor


def bound_box(
    model: GaussNewton,
    down: Tensor,
    up: Tensor,
    streams: Generators,
    *,
    tolerance: float,
    confidence: float,
    sweeps: int,
) -> BoxBound:
    """Bound max ‖r + Jδ‖² over -down ≤ δ ≤ up from above; down, up (B, M) ≥ 0.

    With δ = c + h ⊙ ζ and F = (J diag(h), r + Jc) it is max ‖Fζ‖² over signs ζ (M + 1; M where r + Jc = 0), at most
    μ Σ d_i for any d > 0 and μ = λ_max(D^{-1/2} FᵀF D^{-1/2}). d_i = ‖(FᵀF V)_i‖ from the low-rank ascent
    V <- rows of FᵀF V scaled to length 1, which makes μ Σ d_i the value of the semidefinite relaxation as it converges.
    Dense where FᵀF fits the model's memory budget, and μ then exact, with rounds of `_raised` for the samples whose
    relative duality gap is above the tolerance; else by products alone and μ from Lanczos with a random start, raised
    to hold with the given confidence.

    Source: the relaxation of Goemans, Williamson 1995 and Nesterov 1998 (its value is at most π/2 times the maximum);
    Burer, Monteiro 2003 (low rank); Kuczyński, Woźniakowski 1992 (how much Lanczos can miss).
    """
    centre, half = 0.5 * (up - down), 0.5 * (up + down)
    view = View(model, half, centre if bool((centre != 0).any()) else None)
    columns, rows = model.entries
    if model.fits(copies=4.0 * max(1.0, columns / rows)):
        return _dense(model, view, streams, tolerance, sweeps)
    return _free(view, streams, tolerance, confidence, sweeps)


def _dense(model: GaussNewton, view: View, streams: Generators, tolerance: float, sweeps: int) -> BoxBound:
    """Work with FᵀF, a few samples at a time."""
    columns, rows = model.entries
    width = max(1, int(model.options.memory * 1e9 // (4.0 * model.bytes_of_jacobian() * max(1.0, columns / rows))))
    value, relaxed = (torch.empty(len(model.point), dtype=torch.float64, device=model.point.device) for _ in range(2))
    for start in range(0, len(value), width):
        index = torch.arange(start, min(start + width, len(value)), device=value.device)
        part = model if len(index) == len(value) else model.take(index)
        jacobian = part.jacobian()
        if part is not model:
            model.also_spent(index, part)
        factor = jacobian if view.scale is None else jacobian * view.scale[index][:, None]
        factor = torch.cat([factor, view.residual[index][:, :, None]], 2)
        gram = factor.transpose(1, 2) @ factor

        def product(v: Tensor, gram: Tensor = gram) -> Tensor:
            return gram @ v

        rank = math.ceil((2.0 * gram.shape[1]) ** 0.5) + 1
        start_at = streams.take(index).normal((gram.shape[1], rank), gram.dtype)
        factor, weight, relaxed[index] = _ascend(product, start_at, tolerance, sweeps)
        value[index] = _dual(gram, weight)
        for _ in range(sweeps // _ROUND):
            wide = value[index] - relaxed[index] > tolerance * value[index]
            if not bool(wide.any()):
                break
            index, gram, factor = index[wide], gram[wide], factor[wide]
            factor, weight, attained = _raised(gram, factor)
            value[index] = torch.minimum(value[index], _dual(gram, weight))
            relaxed[index] = torch.maximum(relaxed[index], attained)
    return BoxBound(value, torch.minimum(relaxed, value), torch.ones_like(value, dtype=torch.bool))


def _raised(gram: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step along the top eigenvector of D^{-1/2} FᵀF D^{-1/2}, then sweep; returns V, the weights d, the value.

    With Z = FV and Y = ZZᵀ the relaxation is max 2 Σ (f_iᵀ Y f_i)^{1/2} - tr Y over Y ⪰ 0: concave, and its gradient
    is FD⁻¹Fᵀ - I. Sweeps multiply the part of Y along an eigenvector u of FD⁻¹Fᵀ by μ², which takes long where u has
    all but gone from Y and μ is little above 1; Y + s uuᵀ with the best s puts it there at once, as a column of V.
    """
    image = gram @ factor
    weight = _weights(image.double())
    largest, vectors = (part[..., -1] for part in torch.linalg.eigh(_scaled(gram, weight)))
    column = largest[:, None] * weight.sqrt() * vectors  # Fᵀu
    square, amount = column.square(), torch.zeros_like(largest)
    for _ in range(20):  # Newton from the left on a convex falling derivative: no step overshoots
        length = (weight.square() + amount[:, None] * square).sqrt()
        slope = (square / length).sum(1) - largest
        curvature = 0.5 * (square.square() / length**3).sum(1)
        amount = torch.where(curvature > 0, (amount + slope / curvature).clamp_min(0.0), amount)
    factor = _unit_rows(torch.cat([image, (amount.sqrt()[:, None] * column)[:, :, None].to(image.dtype)], 2))
    for _ in range(_ROUND):
        factor = _unit_rows(gram @ factor)
    image = (gram @ factor).double()
    return factor, _weights(image), (factor.double() * image).sum((1, 2))


def _dual(gram: Tensor, weight: Tensor) -> Tensor:
    """Return the bound μ Σ d_i, (B,)."""
    return _rounded_up(torch.linalg.eigvalsh(_scaled(gram, weight))[:, -1] * weight.sum(1), gram.dtype)


def _scaled(gram: Tensor, weight: Tensor) -> Tensor:
    """Return D^{-1/2} FᵀF D^{-1/2} in float64."""
    inverse = weight.rsqrt()
    return gram.double() * inverse[:, :, None] * inverse[:, None, :]


def _free(view: View, streams: Generators, tolerance: float, confidence: float, sweeps: int) -> BoxBound:
    """Work with products alone."""
    residual, model = view.residual, view.model
    scale = view.scale if view.scale is not None else torch.ones_like(model.point.flatten(1))

    def product(v: Tensor) -> Tensor:
        """Compute FᵀF v for v (B, M + 1, n)."""
        inner = (v[:, :-1] * scale[:, :, None]).permute(2, 0, 1)
        image = model.jvps(inner) + residual * v[:, -1:].permute(2, 0, 1)
        back = (model.vjps(image) * scale).permute(1, 2, 0)
        return torch.cat([back, (image * residual).sum(2).transpose(0, 1)[:, None]], 1)

    entries = scale.shape[1] + 1
    start = streams.fork(0).normal((entries, _FREE_RANK), scale.dtype)
    _, weight, relaxed = _ascend(product, start, tolerance, sweeps)
    inverse = weight.rsqrt().to(scale.dtype)[:, :, None]
    first = streams.fork(1).normal((entries, 1), scale.dtype)
    largest, steps = _lanczos(lambda v: inverse * product(inverse * v), first)
    # Lanczos misses nothing where its space is the whole one.
    missed = (math.log(1.648 * entries**0.5 / (1.0 - confidence)) / (2 * steps - 1)) ** 2 if steps < entries else 0.0
    if missed >= 1.0:
        return BoxBound(torch.full_like(relaxed, math.inf), relaxed, torch.zeros_like(relaxed, dtype=torch.bool))
    value = _rounded_up(largest / (1.0 - missed) * weight.sum(1), model.point.dtype)
    return BoxBound(value, relaxed, torch.zeros_like(value, dtype=torch.bool))


def _ascend(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Raise ⟨H, VVᵀ⟩ by V <- HV, rows scaled to length 1; returns V, the weights d (B, n), the value (B,), float64."""
    factor = _unit_rows(start)
    before = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    running = torch.ones_like(before, dtype=torch.bool)
    for sweep in range(1, sweeps + 1):
        image = product(factor)
        factor = torch.where(running[:, None, None], _unit_rows(image), factor)
        if sweep % _CHECK == 0:
            value = torch.linalg.vector_norm(image, dim=2).double().sum(1)
            # Linear convergence: what the last sweeps gained is about what is still to come.
            running = running & (value - before > 0.05 * tolerance * value)
            before = value
            if not bool(running.any()):
                break
    image = product(factor).double()
    return factor, _weights(image), (factor.double() * image).sum((1, 2))


def _weights(image: Tensor) -> Tensor:
    """Return d, the lengths of the rows of HV (B, n, rank), with a floor that keeps 1/d finite; (B, n)."""
    weight = torch.linalg.vector_norm(image, dim=2)
    mean = weight.mean(1, keepdim=True)
    return torch.maximum(weight, torch.where(mean > 0, 1e-9 * mean, 1.0))


def _unit_rows(factor: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(factor, dim=2, keepdim=True)
    return torch.where(length > 0, factor / torch.where(length > 0, length, 1.0), factor.shape[2] ** -0.5)


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, int]:
    """Return the largest Ritz value after Lanczos with full reorthogonalisation from a random start, (B,) float64."""
    batch, entries, _ = start.shape
    steps = min(_LANCZOS, entries)
    basis = start.new_zeros(steps, batch, entries)
    alpha = torch.zeros(batch, steps, dtype=torch.float64, device=start.device)
    beta = torch.zeros_like(alpha)
    vector = start[:, :, 0]
    for k in range(steps):
        length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        basis[k] = torch.where(length > 0, vector / torch.where(length > 0, length, 1.0), 0.0)
        if k:
            beta[:, k - 1] = length[:, 0].double()
        image = product(basis[k][:, :, None])[:, :, 0]
        alpha[:, k] = (basis[k] * image).sum(1).double()
        vector = image
        for _ in range(2):
            inside = torch.einsum("kbn,bn->kb", basis[: k + 1], vector)
            vector = vector - torch.einsum("kbn,kb->bn", basis[: k + 1], inside)
        # What is left of an invariant space is rounding, and would bring back what has been found.
        left = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        gone = left <= 100.0 * torch.finfo(vector.dtype).eps * torch.linalg.vector_norm(image, dim=1, keepdim=True)
        vector = torch.where(gone, 0.0, vector)
    matrix = torch.diag_embed(alpha) + torch.diag_embed(beta[:, :-1], 1) + torch.diag_embed(beta[:, :-1], -1)
    return torch.linalg.eigvalsh(matrix)[:, -1], steps


def _rounded_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bound with the rounding of the products on top."""
    return value * (1.0 + 16.0 * torch.finfo(dtype).eps)
