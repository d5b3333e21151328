"""Separable linear problems with one coupling constraint, solved exactly (docs/sets.md).

All arrays are (B, M) and non-negative: `weight` w, `cap` c. The solution of both problems has the form
t_i = min(λ w_i^(q-1), c_i): entries rise together with the level λ and stop at their capacity. λ is exact: for
p ≥ 1.5 by stopping entries until no further one has to stop (Newton's method on a concave piecewise linear function,
which ends), for p nearer to 1 by sorting the levels at which the entries stop and one cumulative sum, with the powers
in the logarithm, so that none underflows, and sums in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.tensors import order

__all__ = ["fill_budget", "fill_gap", "greedy_fill", "soft_threshold"]

#: From this order on w^q cannot underflow where it matters, and no logarithm is needed.
_PLAIN = 1.5


def fill_budget(weight: Tensor, cap: Tensor, eps: Tensor, p: float) -> Tensor:
    """Solve max Σ w_i t_i subject to Σ t_i^p ≤ ε^p, 0 ≤ t_i ≤ c_i; (B, M), exact. ε may be 0, not inf."""
    if p == math.inf:
        return torch.where(weight > 0, torch.minimum(cap, eps[:, None]), torch.zeros_like(cap))
    if p == 1.0:
        return greedy_fill(weight, cap, torch.ones_like(cap), eps)
    if p >= _PLAIN:
        scale = torch.where(eps > 0, eps, torch.ones_like(eps))[:, None]
        ratio, room = _relative(weight), (cap / scale).clamp_max(1.0)
        level = _stop_until_filled(ratio.pow(order(p)), room.pow(p), torch.ones_like(eps).double())
        level = level.pow(1.0 / p).clamp_max(torch.finfo(weight.dtype).max).to(weight.dtype)
        t = torch.minimum(level[:, None] * ratio.pow(order(p) - 1.0), room) * scale
        return torch.minimum(t, cap) * eps.sign()[:, None]
    scale = torch.where(eps > 0, eps, torch.ones_like(eps)).double()[:, None]
    log_w = _log_relative(weight)
    # In units of ε no entry can exceed 1, so its power cannot overflow, and one that underflows did not count.
    room = (cap.double() / scale).clamp_max(1.0)
    log_level = _level(log_w, room, room.pow(p), torch.ones_like(eps).double(), p, power=p)
    # Not above the room, ε at most: where rounding puts the level behind the last stop, it is infinite.
    t = torch.minimum(torch.minimum((log_level[:, None] + _rate(log_w, p)).exp(), room) * scale, cap.double())
    return torch.where((eps[:, None] > 0) & (weight > 0), t, 0.0).to(weight.dtype)


def fill_gap(weight: Tensor, cap: Tensor, gap: Tensor, p: float) -> Tensor:
    """Solve min ‖t‖_p subject to Σ w_i t_i ≥ gap, 0 ≤ t_i ≤ c_i; (B, M), exact. All c_i where they fall short."""
    if p == 1.0:
        return greedy_fill(weight, cap, weight, gap)
    if p >= _PLAIN:
        ratio, limits = _relative(weight), torch.finfo(weight.dtype)
        cap = cap.clamp_max(limits.max)
        total = gap.double().clamp_min(0.0) / weight.amax(1).clamp_min(limits.tiny).double()
        slope = ratio if p == math.inf else ratio.pow(order(p))
        level = _stop_until_filled(slope, ratio * cap, total).clamp_max(limits.max).to(weight.dtype)
        rate = ratio.sign_() if p == math.inf else ratio.pow_(order(p) - 1.0)
        return torch.minimum(rate.mul_(level[:, None]), cap, out=rate)
    largest = weight.amax(1).clamp_min(torch.finfo(weight.dtype).tiny).double()
    log_w = _log_relative(weight)
    saturated = (weight.double() / largest[:, None]) * cap.double()
    saturated = torch.where(saturated.isfinite(), saturated, 0.0)  # an entry without a capacity never stops
    total = (gap.double() / largest).clamp_min(0.0)
    log_level = _level(log_w, cap.double(), saturated, total, p, power=1.0)
    t = torch.minimum((log_level[:, None] + _rate(log_w, p)).exp(), cap.double())
    t = torch.where(t.isfinite(), t, 0.0)  # an infinite level over an infinite capacity: no weight at all
    return torch.where((gap[:, None] > 0) & (weight > 0), t, 0.0).to(weight.dtype)


def _relative(weight: Tensor) -> Tensor:
    """Return w / max w, 0 for a sample of zeros."""
    return weight / weight.amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def _stop_until_filled(slope: Tensor, stop: Tensor, total: Tensor) -> Tensor:
    """Solve Σ min(s slope_i, stop_i) = total for s, (B,) float64; +inf where all stop below it. stop is finite.

    The sum is concave and piecewise linear in s, so Newton's method from the left rises, stops more entries each time,
    and is exact as soon as no further entry stops.
    """
    largest = torch.finfo(slope.dtype).max
    count = slope.new_zeros(len(slope))
    rises, work = torch.empty_like(slope), torch.empty_like(slope)
    level = _level_of(slope.sum(1), total)
    # Masks are floating-point: where() costs several times as much on a CPU; and all is written in place, since fresh
    # memory costs as much as the arithmetic. A sum of PyTorch's is a cascade, so its error does not grow with M.
    for _ in range(slope.shape[1] + 1):
        torch.mul(slope, level.clamp_max(largest)[:, None].to(slope.dtype), out=work)
        number = slope.shape[1] - torch.lt(work, stop, out=rises).sum(1)
        if bool((number <= count).all()):
            break
        rate = torch.mul(slope, rises, out=work).sum(1)
        filled = torch.sub(1.0, rises, out=work).mul_(stop).sum(1)
        # Where nothing new stopped the level stays, whatever rounding says; it never falls.
        following = torch.maximum(level, _level_of(rate, total - filled))
        level = torch.where(number > count, following, level)
        count = number
    return level


def _level_of(rising: Tensor, left: Tensor) -> Tensor:
    """Return the level at which entries that rise at this rate together fill what is left."""
    return torch.where(rising > 0, left / rising.double(), math.inf)


def _log_relative(weight: Tensor) -> Tensor:
    """Return log(w / max w), -inf where w is zero."""
    largest = weight.amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight.double() / largest.double()).log()


def _rate(log_w: Tensor, p: float) -> Tensor:
    """Return the logarithm of the rate w^(q-1); for p = inf every entry with a weight rises alike."""
    return torch.where(log_w == -math.inf, log_w, (order(p) - 1.0) * log_w)


def _level(log_w: Tensor, cap: Tensor, saturated: Tensor, total: Tensor, p: float, power: float) -> Tensor:
    """Return log λ with Σ_stopped saturated_i + λ^power Σ_rising w_i^q = total; +inf where all stop below it."""
    log_stop = cap.log() - _rate(log_w, p)
    log_stop = torch.where(cap > 0, log_stop, -math.inf)
    log_stop, index = log_stop.sort(dim=1, stable=True)
    stopped = saturated.gather(1, index)
    before = stopped.cumsum(1) - stopped
    slope = (order(p) * log_w).gather(1, index)
    rising = slope.flip(1).logcumsumexp(1).flip(1)
    log_level = ((total[:, None] - before).clamp_min(0.0).log() - rising) / power
    valid = log_level <= log_stop
    first = valid.to(torch.uint8).argmax(1, keepdim=True)
    # The level lies beyond the previous stop; where rounding put it below, that stop is the answer.
    floor = torch.where(first > 0, log_stop.gather(1, (first - 1).clamp_min(0)), -math.inf)
    log_level = torch.maximum(log_level.gather(1, first), floor)[:, 0]
    return torch.where(valid.any(1), log_level, math.inf)


def greedy_fill(weight: Tensor, cap: Tensor, cost: Tensor, budget: Tensor) -> Tensor:
    """Fill entries in the order of falling weight until Σ cost_i t_i = budget, 0 ≤ t_i ≤ c_i; of equals the first.

    With cost 1 it is the fractional knapsack (p = 1 inside bounds); with cost = weight the least ‖t‖₁ for a gap.
    """
    # An unlimited entry can take everything that is left, so all of the budget is capacity enough for it.
    ordered, index = weight.sort(dim=1, descending=True, stable=True)
    unit = cost.gather(1, index).double()
    share = (
        (unit * cap.gather(1, index).double()).nan_to_num(nan=0.0).clamp_max(budget.double().clamp_min(0.0)[:, None])
    )
    before = share.cumsum(1) - share
    spent = torch.minimum((budget.double()[:, None] - before).clamp_min(0.0), share)
    t = torch.where((ordered > 0) & (unit > 0), spent / unit, 0.0)
    t = torch.minimum(t, cap.gather(1, index).double())
    return torch.zeros_like(t).scatter(1, index, t).to(weight.dtype)


def soft_threshold(z: Tensor, cap: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """Solve min ‖t - z‖₂ subject to Σ t_i / w_i ≤ ε, 0 ≤ t_i ≤ c_i; (B, M), exact: t_i = clamp(z_i - λ / w_i, 0, c_i).

    Σ t_i / w_i is piecewise linear in λ with breakpoints w_i z_i (entry i leaves zero) and w_i (z_i - c_i) (it stops).
    """
    z, cap, weight, eps = z.double(), cap.double(), weight.double(), eps.double()
    free = weight > 0
    inverse = torch.where(free, 1.0 / weight, 0.0)
    start = torch.where(free, weight * z, 0.0)
    stop = torch.where(free, (weight * (z - cap)).clamp_min(0.0), 0.0)
    levels, index = torch.cat([start, stop], 1).sort(dim=1, descending=True)
    slopes = torch.cat([inverse.square(), -inverse.square()], 1).gather(1, index).cumsum(1)
    drop = levels[:, :-1] - levels[:, 1:]
    value = torch.cat([torch.zeros_like(levels[:, :1]), (slopes[:, :-1] * drop).cumsum(1)], 1)
    reached = value >= eps[:, None]
    first = reached.to(torch.uint8).argmax(1, keepdim=True)
    previous = (first - 1).clamp_min(0)
    slope = slopes.gather(1, previous)
    level = levels.gather(1, previous) - (eps[:, None] - value.gather(1, previous)) / torch.where(slope > 0, slope, 1.0)
    level = torch.where(reached.any(1, keepdim=True), level.clamp_min(0.0), 0.0)
    # The set of entries between zero and their capacity is known now; solving for λ on it undoes the sums' rounding.
    moving = free & (start > level) & (stop <= level)
    full = free & (stop > level)
    fixed = torch.where(full, cap * inverse, 0.0).sum(1, keepdim=True)
    squares = torch.where(moving, inverse.square(), 0.0).sum(1, keepdim=True)
    # Measured from the last entry to leave its capacity or zero, so that a small ε is not lost beside a large z.
    anchor = torch.where(moving, start, -math.inf).amax(1, keepdim=True)
    anchor = torch.where((level > 0) & (squares > 0), anchor, level)
    above = torch.where(free, z - anchor * inverse, 0.0)
    used = torch.where(moving, above * inverse, 0.0).sum(1, keepdim=True)
    rise = (eps[:, None] - fixed - used) / torch.where(squares > 0, squares, 1.0)
    rise = torch.where((level > 0) & (squares > 0), rise, 0.0)
    t = torch.minimum((above + rise * inverse).clamp_min(0.0), cap)
    t = torch.where(free, torch.where(full & (level > 0), cap, t), 0.0)
    # Where ε is below the rounding of z, the projection cannot be told from the point that maximises ⟨z, t⟩.
    outside = (torch.minimum(z, cap) * inverse).sum(1) > eps
    far = outside & (z.amax(1) > 1e15 * eps * torch.where(free, weight, math.inf).amin(1))
    corner = weight * greedy_fill(start, (cap * inverse).nan_to_num(nan=0.0), torch.ones_like(cap), eps)
    t = torch.where(far[:, None], corner, t)
    spent = (t * inverse).sum(1)
    over = outside & (spent > eps)
    return t * torch.where(over, eps / torch.where(over, spent, 1.0), 1.0)[:, None]
