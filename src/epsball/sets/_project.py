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
        return torch.minimum(inside, eps[:, None] * weight)
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

    # In units of ε: u = t / (w ε) with Σ u^p = 1, and t + λ t^(p-1) / w^p = z.
    log_low, log_high = _bracket(z, cap, inverse, scale, p)
    log_level = 0.5 * (log_low + log_high)
    t = start
    for _ in range(_MAX_STEPS):
        kappa = log_level.exp()[:, None] * inverse.pow(p)
        unclipped = _root(z / scale, kappa, p) * scale
        t = torch.minimum(unclipped, cap)
        u = t * inverse / scale
        total = u.pow(p).sum(1)
        error = total.log() / p
        done = (error.abs() < _TOLERANCE) | ~outside | (log_high - log_low < _TOLERANCE)
        if bool(done.all()):
            break
        log_low = torch.where(error > 0, log_level, log_low)
        log_high = torch.where(error > 0, log_high, log_level)
        # d log t / d log λ = -κ t^(p-1) / (t + (p-1) κ t^(p-1)) where the entry is not at its capacity, with κ t^(p-1) = z - t.
        pull = (z - t).clamp_min(0.0)
        slope = torch.where((unclipped < cap) & (t > 0), -pull / (t + (p - 1.0) * pull), 0.0)
        gradient = (u.pow(p) * slope).sum(1) / total
        newton = log_level - error / gradient
        good = (newton > log_low) & (newton < log_high)
        log_level = torch.where(done, log_level, torch.where(good, newton, 0.5 * (log_low + log_high)))
    return torch.where(outside[:, None], torch.where(eps[:, None] > 0, t, 0.0), start)


def _bracket(z: Tensor, cap: Tensor, inverse: Tensor, scale: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Return log λ (in units of ε) below and above the root, (B,) each."""
    count = z.shape[1]
    # Above: λ so large that even t ≤ (z w^p / λ)^(1/(p-1)) gives Σ u^p ≤ 1; below: 1e-30 of the least multiplier that matters.
    log_z = torch.where(z > 0, (z / scale).log(), -math.inf)
    log_w = torch.where(inverse > 0, -inverse.clamp_min(1e-300).log(), 0.0)
    each = log_z + p * log_w + (p - 1.0) * (math.log(count) / p - log_w)
    high = each.amax(1).nan_to_num(nan=0.0, neginf=0.0) + 1.0
    return high - 75.0 - 2.0 * p * (log_w.amax(1) - log_w.amin(1)), high


def _root(z: Tensor, kappa: Tensor, p: float) -> Tensor:
    """Solve t + κ t^(p-1) = z for t ≥ 0, entry by entry, by Newton's method from the right of a convex function."""
    if p == 2.0:
        return z / (1.0 + kappa)
    # For p < 2 the function is convex in s = t^(p-1) instead; both forms read s^a + c s = z with a > 1.
    power, linear = (p - 1.0, 1.0 / kappa) if p > 2.0 else (1.0 / (p - 1.0), kappa)
    right = z / kappa if p > 2.0 else z
    positive = (right > 0) & kappa.isfinite() & (kappa > 0)
    right, linear = torch.where(positive, right, 1.0), torch.where(positive, linear, 1.0)
    s = torch.minimum(right.pow(1.0 / power), right / linear)
    for _ in range(60 + int(2.0 * power)):
        ahead = s.pow(power)
        change = (ahead + linear * s - right) / (power * ahead / s + linear)
        s = (s - change).clamp_min(1e-300)
        if bool((change.abs() <= 1e-15 * s).all()):
            break
    t = s if p > 2.0 else s.pow(power)
    return torch.where(positive, t, torch.where(kappa > 0, 0.0, z))
