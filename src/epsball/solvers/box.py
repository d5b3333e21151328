"""The quadratic problem over a box with the Gram matrix at hand: greedy signs, rounded relaxations, single flips."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.randomness import Generators

__all__ = ["best_signs", "flip", "greedy_signs", "homogenised", "low_rank"]

_RANK = 12
_ROUNDINGS = 32
_SWEEPS = 30


def homogenised(gram: Tensor, linear: Tensor) -> Tensor:
    """Return H with ζᵀGζ + 2⟨b, ζ⟩ = (ζ, 1)ᵀH(ζ, 1), so that only products of signs matter; (B, n + 1, n + 1)."""
    batch, n = linear.shape
    whole = gram.new_zeros(batch, n + 1, n + 1)
    whole[:, :n, :n] = gram
    whole[:, n, :n] = whole[:, :n, n] = linear
    return whole


def greedy_signs(gram: Tensor, linear: Tensor) -> Tensor:
    """Choose signs one by one, in the order of falling ‖J_i‖, each to agree with what stands: equation (20); (B, n).

    A linear term, the residual's Jᵀr, stands from the beginning; without one the first sign is +1.
    """
    order = torch.diagonal(gram, dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    pull, signs = linear.clone(), torch.zeros_like(linear)
    rows = torch.arange(len(gram), device=gram.device)
    for n in range(order.shape[1]):
        entry = order[:, n]
        sign = torch.where(pull[rows, entry] < 0, -1.0, 1.0)
        signs[rows, entry] = sign.to(signs.dtype)
        pull = pull + sign[:, None].to(pull.dtype) * gram[rows, entry]
    return signs


def best_signs(gram: Tensor, linear: Tensor, streams: Generators, starts: int) -> tuple[Tensor, Tensor]:
    """Maximise ζᵀGζ + 2⟨b, ζ⟩ over signs ζ, (B, n), and its value (B,): the best of several starts, each polished.

    Starts: greedy (20), the signs of b, and the best `starts` of 32 roundings of the low-rank relaxation by random
    hyperplanes (Goemans, Williamson 1995), more of them where n is small. Each is polished by the power method on
    signs, then by single flips until none gains, so the value is never below that of greedy (20). NP-hard in
    general: a local solution.
    """
    batch, n = linear.shape
    whole = homogenised(gram, linear)
    factor = low_rank(whole, streams, _RANK, _SWEEPS)
    planes = streams.fork(1).normal((factor.shape[2], max(starts, _ROUNDINGS)), factor.dtype)
    rounded = _signs(factor @ planes)
    rounded = (rounded[:, :n] * rounded[:, n:]).transpose(1, 2)
    kept = min(rounded.shape[1], max(starts, 512 // n))
    order = _value(gram, linear, rounded).topk(kept, dim=1).indices
    rounded = rounded.gather(1, order[:, :, None].expand(-1, -1, n))
    zeta = torch.cat([torch.stack([greedy_signs(gram, linear), _signs(linear)], 1), rounded], 1)
    count = zeta.shape[1]
    value = _value(gram, linear, zeta)
    for _ in range(_SWEEPS):
        new = _signs(zeta @ gram + linear[:, None])
        now = _value(gram, linear, new)
        better = now > value * (1.0 + 1e-7)
        if not bool(better.any()):
            break
        zeta, value = torch.where(better[:, :, None], new, zeta), torch.where(better, now, value)
    index = torch.arange(batch, device=gram.device).repeat_interleave(count)
    zeta, value = flip(gram, linear, zeta.reshape(batch * count, n), index)
    best = value.view(batch, count).argmax(1)
    rows = torch.arange(batch, device=gram.device)
    return zeta.view(batch, count, n)[rows, best], value.view(batch, count)[rows, best]


def flip(gram: Tensor, linear: Tensor, signs: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Flip the sign that gains most, again and again until none gains; signs (N, n) for the problems index (N,).

    Returns the signs and their values (N,). Flipping ζ_i changes the value by 4 (G_ii - ζ_i (Gζ + b)_i).
    """
    signs = signs.clone()
    pull = linear[index] + _products(gram, signs, index)
    own = torch.diagonal(gram, dim1=1, dim2=2)[index]
    scale = own.amax(1).clamp_min(torch.finfo(gram.dtype).tiny)
    slack = 16.0 * torch.finfo(gram.dtype).eps * scale * signs.shape[1] ** 0.5
    active = torch.arange(len(signs), device=gram.device)
    for _ in range(4 * signs.shape[1]):
        gain, entry = (own[active] - signs[active] * pull[active]).max(1)
        # The least that counts is above rounding, so that no flip is undone by the next one.
        active, entry = active[gain > slack[active]], entry[gain > slack[active]]
        if len(active) == 0:
            break
        turned = -signs[active, entry]
        signs[active, entry] = turned
        pull[active] += 2.0 * turned[:, None] * gram[index[active], entry]
    return signs, (signs * (_products(gram, signs, index) + 2.0 * linear[index])).sum(1)


def low_rank(whole: Tensor, streams: Generators, rank: int, sweeps: int) -> Tensor:
    """Raise ⟨H, VVᵀ⟩ over V (B, n, rank) with rows of length 1 by V <- HV, rows scaled: the low-rank relaxation.

    Source: Burer, Monteiro 2003; monotone for a positive semidefinite H.
    """
    factor = _rows(streams.fork(0).normal((whole.shape[1], rank), whole.dtype))
    # A multiple of the identity changes no solution and makes H positive semidefinite where the linear term is large.
    for _ in range(sweeps):
        factor = _rows(whole @ factor + _lift(whole) * factor)
    return factor


def _lift(whole: Tensor) -> Tensor:
    """Return a shift, (B, 1, 1), that keeps the last row's products from spoiling the ascent."""
    return whole[:, -1, :-1].abs().sum(1)[:, None, None] / max(1, whole.shape[1] - 1)


def _rows(factor: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(factor, dim=2, keepdim=True)
    unit = torch.zeros_like(factor)
    unit[:, :, 0] = 1.0
    return torch.where(length > 0, factor / torch.where(length > 0, length, 1.0), unit)


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0).to(values.dtype)


def _value(gram: Tensor, linear: Tensor, zeta: Tensor) -> Tensor:
    """Compute ζᵀGζ + 2⟨b, ζ⟩ for zeta (B, R, n); (B, R)."""
    return (zeta * (zeta @ gram + 2.0 * linear[:, None])).sum(2)


def _products(gram: Tensor, signs: Tensor, index: Tensor) -> Tensor:
    """Compute Gζ for signs (N, n) of the problems index (N,), which come in equal runs."""
    batch = len(gram)
    if len(index) == len(signs) and len(signs) % batch == 0:
        return (signs.view(batch, -1, signs.shape[1]) @ gram).view_as(signs)
    return torch.bmm(gram[index], signs[:, :, None])[:, :, 0]
