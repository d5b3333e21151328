"""Perturbed inputs on a lattice, such as the 8-bit values of an image file, inside the set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.tensors import expand
from epsball.validation import check_count

__all__ = ["check_lattice", "on_lattice", "slack", "snap"]

_SLACK = 1e-5  # of a step: a whole number of steps may come out a little below itself
_MANY = 1e6  # steps of the whole lattice beyond which no limit is felt; finite, for weights of zero
_OFF = 1e-3  # how far from the lattice an input may lie, in units of its spacing: rounding, and no more


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


def on_lattice(x: Tensor, levels: int, bounds: tuple[float, float]) -> Tensor:
    """Return x with the rounding that it came with taken off, such as that of float32 values in float64; (B, *S).

    InputError where it does not lie on the lattice: no perturbation inside a small ball would.
    """
    index = (x - bounds[0]) * (levels / (bounds[1] - bounds[0]))
    whole = index.round()
    off = float((index - whole).abs().max()) if x.numel() else 0.0
    if off > _OFF:
        raise InputError(
            f"expected x on the lattice of {levels} steps from {bounds[0]:g} to {bounds[1]:g}, got values {off:.2f} of "
            f"a step away from it; round x first: ((x - lo) / (hi - lo) * {levels}).round() / {levels}, or leave "
            "lattice out."
        )
    return bounds[0] + (bounds[1] - bounds[0]) * (whole / levels)


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
    norm allows. Entries that move get exactly lo + (hi - lo) k / levels; those that do not stay as they are.
    """
    lo, hi = bounds
    unit = (hi - lo) / levels
    base = ((x - lo) / unit).round()
    steps = eta / unit
    reach = radius * ((1.0 + slack(x.dtype)) / unit)
    if p == math.inf:
        limit = expand(reach.clamp_max(_MANY * levels), x)
        limit = (limit if weights is None else limit * weights).floor()
        whole = torch.clamp(steps.round(), -limit, limit)
    else:
        whole = _within(steps, reach, p, weights)
    moved = lo + (hi - lo) * (torch.clamp(base + whole, 0, levels) / levels)
    return torch.where(whole == 0, x, moved)


def slack(dtype: torch.dtype) -> float:
    """Return the share of ε by which rounding may exceed it, as `ConstraintSet.contains` allows: 255 (1/255) < 1."""
    return 0.5e-5 if dtype == torch.float32 else 0.5e-9


def _within(steps: Tensor, radius: Tensor, p: float, weights: Tensor | None) -> Tensor:
    """Round steps (B, *S) to integers of norm at most radius (B,), measured as ‖steps / w‖_p."""
    magnitude = steps.abs().double()
    low = (magnitude + _SLACK).floor()
    scale = magnitude.new_ones(()) if weights is None else torch.where(weights > 0, weights, 1.0).double()
    # In units of the radius, so that no power overflows; a radius of inf leaves every entry free.
    scale = scale * expand(radius.double().clamp_min(torch.finfo(torch.float64).tiny), steps)
    spent = (low / scale) ** p
    cost = (((low + 1.0) / scale) ** p - spent).flatten(1)
    left = 1.0 - spent.flatten(1).sum(1)
    rest, order = (magnitude - low).flatten(1).sort(dim=1, descending=True, stable=True)
    paid = cost.gather(1, order).cumsum(1)
    up = (rest >= 0.5) & (paid <= left[:, None])
    raised = torch.zeros_like(up).scatter(1, order, up).view_as(steps)
    return steps.sign() * (low + raised).to(steps.dtype)
