"""Euclidean projection onto the weighted ℓp ball inside capacities: min ‖t - z‖₂, ‖t / w‖_p ≤ ε, 0 ≤ t_i ≤ c_i."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.sets._waterfill import fill_budget, soft_threshold
from epsball.tensors import norm

__all__ = ["project_lp"]

_TOLERANCE = 1e-13
_MAX_STEPS = 200


def project_lp(z: Tensor, cap: Tensor, weight: Tensor | None, eps: Tensor, p: float) -> Tensor:
    """Project z ≥ 0, all arrays (B, M): exact for p in {1, inf} and unweighted p = 2, else to rounding by iteration."""
    inside = torch.minimum(z, cap)
    if weight is None and p == 2.0:
        # t_i = min(z_i / (1 + λ), c_i): the same level problem as the linear one, with rates z.
        outside = norm(inside, p) > eps
        safe = torch.where(outside, eps, torch.ones_like(eps))
        return torch.where(outside[:, None], fill_budget(z, cap, safe, p), inside)
    weight = torch.ones_like(z) if weight is None else weight
    if p == math.inf:
        # A frozen entry stays at zero also when eps is inf, where 0 * inf is not a number.
        return torch.minimum(inside, torch.where(weight > 0, eps[:, None] * weight, 0.0))
    if p == 1.0:
        return soft_threshold(z, cap, weight, eps).to(z.dtype)
    return _by_multiplier(z.double(), cap.double(), weight.double(), eps.double(), p).to(z.dtype)


def _by_multiplier(z: Tensor, cap: Tensor, weight: Tensor, eps: Tensor, p: float) -> Tensor:
    """Find λ with Σ (t_i(λ) / w_i)^p = ε^p by Newton steps in log λ, kept inside a shrinking bracket."""
    free = weight > 0
    inverse = torch.where(free, 1.0 / torch.where(free, weight, 1.0), 0.0)
    z = torch.where(free, z, 0.0)
    start = torch.minimum(z, cap)
    outside = norm(start * inverse, p) > eps
    scale = torch.where(outside & (eps > 0), eps, torch.ones_like(eps))[:, None]

    # In units of ε: u = t / (w ε) with Σ u^p = 1 and u + (λ / w²) u^(p-1) = z / w, so that no w^p overflows.
    ratio = z * inverse / scale
    log_low, log_high = _bracket(z, inverse, scale, p)
    log_level = log_high - 10.0
    t = start
    for _ in range(_MAX_STEPS):
        kappa = log_level.exp()[:, None] * inverse.square()
        unclipped = _root(ratio, kappa, p) * weight * scale
        t = torch.minimum(unclipped, cap)
        u = t * inverse / scale
        total = u.pow(p).sum(1)
        error = total.log() / p
        done = (error.abs() < _TOLERANCE) | ~outside | (log_high - log_low < _TOLERANCE)
        if bool(done.all()):
            break
        log_low = torch.where(error > 0, log_level, log_low)
        log_high = torch.where(error > 0, log_high, log_level)
        # d log t / d log λ = -(z - t) / (t + (p-1) (z - t)) where the entry is not at its capacity.
        pull = (z - t).clamp_min(0.0)
        slope = torch.where((unclipped < cap) & (t > 0), -pull / (t + (p - 1.0) * pull), 0.0)
        gradient = (u.pow(p) * slope).sum(1) / total
        newton = log_level - error / gradient
        good = (newton > log_low) & (newton < log_high)
        log_level = torch.where(done, log_level, torch.where(good, newton, 0.5 * (log_low + log_high)))
    return torch.where(outside[:, None], torch.where(eps[:, None] > 0, t, 0.0), start)


def _bracket(z: Tensor, inverse: Tensor, scale: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return log λ (in units of ε) below and above the root, (B,) each."""
    moves = (z > 0) & (inverse > 0)
    each = torch.where(moves, z / scale, 1.0).log() - torch.where(moves, inverse, 1.0).log()  # log of z w
    # Above: λ so large that even u ≤ (z w / λ)^(1/(p-1)) gives Σ u^p ≤ 1. Below: u ≤ 1 at the root, so an entry that
    # gives way by a share δ there has λ ≥ δ z w, and the norm is met to more than 1e-30.
    high = torch.where(moves, each, -math.inf).amax(1) + (p - 1.0) / p * math.log(z.shape[1]) + 1.0
    low = torch.where(moves, each, math.inf).amin(1) - 75.0
    none = ~moves.any(1)
    return torch.where(none, -1.0, low), torch.where(none, 1.0, high)


def _root(v: Tensor, kappa: Tensor, p: float) -> Tensor:
    """Solve u + κ u^(p-1) = v for u ≥ 0, entry by entry, by Newton's method from the right of a convex function."""
    if p == 2.0:
        return v / (1.0 + kappa)
    # For p < 2 the function is convex in s = u^(p-1) instead; both forms read s^a + c s = r with a > 1.
    power, linear = (p - 1.0, 1.0 / kappa) if p > 2.0 else (1.0 / (p - 1.0), kappa)
    right = v / kappa if p > 2.0 else v
    solve = (right > 0) & right.isfinite() & linear.isfinite() & (linear > 0)
    right, linear = torch.where(solve, right, 1.0), torch.where(solve, linear, 1.0)
    s = torch.minimum(right.pow(1.0 / power), right / linear)
    for _ in range(60 + int(2.0 * power)):
        ahead = s.pow(power)
        change = (ahead + linear * s - right) / (power * ahead / s + linear)
        s = (s - change).clamp_min(1e-300)
        if bool((change.abs() <= 1e-15 * s).all()):
            break
    u = s if p > 2.0 else s.pow(power)
    return torch.where(solve, u, torch.where(kappa > 1.0, 0.0, v))  # beyond the range of numbers: no pull, or all of it
