"""The generalised power method: a convex quadratic over any set with a linear maximisation oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.local_models import GaussNewton
from epsball.sets.base import ConstraintSet

__all__ = ["ascend"]


def ascend(
    model: GaussNewton,
    constraint: ConstraintSet,
    point: Tensor,
    start: Tensor,
    *,
    active: Tensor | None = None,
    steps: int = 50,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Raise ‖r + Jδ‖² over δ in C(x) from a start in C, by δ <- argmax ⟨Jᵀ(r + Jδ), δ⟩; returns δ (B, M), value (B,).

    Monotone: a convex function lies above its linearisation, so each step gains at least what the linear problem does.
    It ends where no step gains more than `tolerance` of the value (1e-6 in float64, 1e-5 in float32), a point that
    satisfies the first-order conditions; which of these points depends on the start. One Jᵀw and one Ju a step, for the
    samples that still rise.

    Source: Journée, Nesterov, Richtárik, Sepulchre 2010, "Generalized power method".
    """
    if tolerance is None:
        tolerance = 1e-5 if point.dtype == torch.float32 else 1e-6
    delta = start
    image = model.residual + model.jvp(delta, active)
    value = image.square().sum(1)
    rising = torch.ones_like(value, dtype=torch.bool) if active is None else active.clone()
    for _ in range(steps):
        if not bool(rising.any()):
            break
        gradient = model.vjp(image, rising)
        new = constraint.lmo(gradient.view_as(point), point).flatten(1)
        new = torch.where((gradient != 0).any(1, keepdim=True), new, delta)
        moved = model.residual + model.jvp(new, rising)
        now = moved.square().sum(1)
        better = rising & (now > value)
        delta = torch.where(better[:, None], new, delta)
        image = torch.where(better[:, None], moved, image)
        rising = better & (now > value * (1.0 + tolerance))
        value = torch.where(better, now, value)
    return delta, value
