"""Perturbed inputs on a lattice, such as the 8-bit values of an image file, inside the set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.tensors import expand
from epsball.validation import check_count

__all__ = ["check_lattice", "check_on_lattice", "snap"]

_SLACK = 1e-5  # of ε, as `ConstraintSet.contains` allows in float32: 1/255 times 255 may come out below 1
_OFF = 0.01  # how far from the lattice an input may lie, in units of its spacing: rounding, and no more


def check_lattice(lattice: int | None, bounds: object) -> None:
    """Refuse a lattice without finite bounds as numbers, which say where its points lie."""
    if lattice is None:
        return
    check_count("lattice", lattice)
    numbers = isinstance(bounds, tuple) and all(isinstance(b, (int, float)) and math.isfinite(b) for b in bounds)
    if not numbers:
        raise InputError(
            f"expected finite numbers as bounds for lattice={lattice}, got {bounds!r}; give bounds=(0, 1)."
        )


def check_on_lattice(x: Tensor, levels: int, bounds: tuple[float, float]) -> None:
    """Refuse inputs that do not lie on the lattice themselves: no perturbation inside a small ball would."""
    index = (x - bounds[0]) * (levels / (bounds[1] - bounds[0]))
    off = float((index - index.round()).abs().max()) if x.numel() else 0.0
    if off > _OFF:
        raise InputError(
            f"expected x on the lattice of {levels} steps from {bounds[0]:g} to {bounds[1]:g}, got values {off:.2f} of "
            f"a step away from it; round x first: ((x - lo) / (hi - lo) * {levels}).round() / {levels}, or leave "
            "lattice out."
        )


def snap(
    x: Tensor,
    eta: Tensor,
    levels: int,
    bounds: tuple[float, float],
    radius: Tensor,
    p: float,
    weights: Tensor | None,
) -> Tensor:
    """Return a point of the lattice near x + η whose perturbation satisfies ‖η / w‖_p ≤ radius inside the bounds.

    x, η (B, *S), radius (B,), w (1, *S) or None. p = inf: the nearest such point in every entry. Other p: every entry
    is rounded towards x, which only shrinks it, and the entries nearest to the next point move there as long as the
    norm allows. Values are exactly lo + (hi - lo) k / levels.
    """
    lo, hi = bounds
    unit = (hi - lo) / levels
    base = ((x - lo) / unit).round()
    steps = eta / unit
    if p == math.inf:
        limit = expand(radius * ((1.0 + _SLACK) / unit), x)
        limit = (limit if weights is None else limit * weights).clamp_max(levels).floor()
        whole = torch.clamp(steps.round(), -limit, limit)
    else:
        whole = _within(steps, radius * ((1.0 + _SLACK) / unit), p, weights)
    index = torch.clamp(base + whole, 0, levels)
    return lo + (hi - lo) * (index / levels)


def _within(steps: Tensor, radius: Tensor, p: float, weights: Tensor | None) -> Tensor:
    """Round steps (B, *S) to integers of norm at most radius (B,), measured as ‖steps / w‖_p."""
    magnitude = steps.abs()
    low = (magnitude + _SLACK).floor()
    scale = magnitude.new_ones(()) if weights is None else torch.where(weights > 0, weights, 1.0)
    cost = (((low + 1.0) / scale) ** p - (low / scale) ** p).flatten(1).double()
    left = radius.double() ** p - ((low / scale) ** p).flatten(1).double().sum(1)
    rest = (magnitude - low).flatten(1)
    rest, order = rest.sort(dim=1, descending=True, stable=True)
    paid = cost.gather(1, order).cumsum(1)
    up = (rest >= 0.5) & (paid <= left[:, None])
    raised = torch.zeros_like(up).scatter(1, order, up).view_as(steps)
    return steps.sign() * (low + raised)
