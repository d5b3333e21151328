"""The trust-region problem of a small symmetric matrix, by its secular equation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["secular"]

_BISECTIONS = 80


def secular(theta: Tensor, vectors: Tensor, slope: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Solve max yᵀTy + 2⟨slope, y⟩ subject to ‖y‖ ≤ ε from T's eigenvalues (rising) and vectors.

    Returns y (B, m) and λ - θ_max (B,).

    Σ c_i² / (λ - θ_i)² = ε² in the basis of eigenvectors; at λ = θ_max, where no λ above solves it (the hard case),
    the leading eigenvector makes up the length.
    """
    c = (vectors.transpose(1, 2) @ slope[:, :, None])[:, :, 0]
    gap = theta[:, -1:] - theta
    radius = eps.clamp_min(torch.finfo(torch.float64).tiny)
    total = torch.linalg.vector_norm(c, dim=1)
    least = 1e-14 * theta[:, -1].abs().clamp_min(1e-280)
    low = torch.maximum(c[:, -1].abs() / radius, least)
    high = torch.maximum(total / radius, low)
    low, high = low.log(), high.log()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        longer = torch.linalg.vector_norm(c / (middle.exp()[:, None] + gap), dim=1) > eps
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    above = high.exp()
    y = c / (above[:, None] + gap)
    short = (eps.square() - y[:, :-1].square().sum(1)).clamp_min(0.0).sqrt()
    hard = above <= 2.0 * least
    # Elsewhere the last coordinate is changed by rounding alone, to meet ‖y‖ = ε.
    sign = torch.where(c[:, -1] < 0, -1.0, 1.0)
    y = torch.cat([y[:, :-1], torch.where(hard, sign * short, y[:, -1])[:, None]], 1)
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    y = torch.where(length > 0, y * (eps[:, None] / torch.where(length > 0, length, 1.0)), y)
    return (vectors @ y[:, :, None])[:, :, 0], torch.where(hard, 0.0, above)
