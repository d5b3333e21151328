"""The quadratic problem over groups: the best signs on one group, and more groups added greedily."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.local_models import GaussNewton
from epsball.solvers.box import flip, greedy_signs

__all__ = ["GroupGrams", "best_groups", "group_grams", "table_of"]

#: Groups of up to this many entries are solved by enumeration.
ENUMERATED = 12
_CORNERS = 2**20  # entries of corners that are tried at once
_SKETCH = 64  # random combinations of outputs by which groups are ranked where all products are too many
_EXAMINED = 24  # groups whose Gram matrix is then computed exactly


def table_of(ids: Tensor) -> Tensor:
    """Return the entries of each group, (S, Z) int64, groups with fewer entries than others filled up with -1."""
    count = ids.bincount()
    order = ids.argsort(stable=True)
    start = count.cumsum(0) - count
    place = torch.arange(len(ids), device=ids.device) - start[ids[order]]
    table = torch.full((len(count), int(count.max())), -1, dtype=torch.int64, device=ids.device)
    table[ids[order], place] = order
    return table


@dataclass(frozen=True, eq=False)
class GroupGrams:
    """J_sᵀJ_s of some groups: gram (B, S, Z, Z), zero rows for missing entries; which groups they are, (B, S)."""

    gram: Tensor
    group: Tensor
    exact: bool


def group_grams(model: GaussNewton, table: Tensor, gain: Tensor, allowed: Tensor, limit: int) -> GroupGrams:
    """Compute the Gram matrix of every group's columns, streaming the smaller of K Jᵀw and M Ju in chunks.

    Where both exceed `limit`, random combinations of the outputs estimate the matrices, and those of the most promising
    of the allowed groups (B, S) alone are computed exactly; gain (B, M), the largest |δ| of each entry, ranks them.
    """
    columns, rows = model.entries
    if min(columns, rows) > limit:
        return _sketched(model, table, gain, allowed)
    batch, (groups, size) = len(model.point), table.shape
    present = (table >= 0).to(gain.dtype)
    gram = gain.new_zeros(batch, groups, size, size)
    if rows <= columns:
        for chunk in model.basis(rows):
            _add(gram, model.vjps(model.unit(chunk, rows)), table, present)
    else:
        for start in range(0, groups, max(1, model.basis(columns)[0].stop // size)):
            part = table[start : start + max(1, model.basis(columns)[0].stop // size)]
            unit = torch.nn.functional.one_hot(part.clamp_min(0).flatten(), columns).to(gain.dtype)
            image = model.jvps(unit[:, None].expand(-1, batch, -1)).reshape(*part.shape, batch, rows)
            image = image * (part >= 0).to(gain.dtype)[:, :, None, None]
            gram[:, start : start + len(part)] = torch.einsum("szbk,sybk->bszy", image, image)
    return GroupGrams(gram, torch.arange(groups, device=gain.device).expand(batch, -1), True)


def _add(gram: Tensor, rows: Tensor, table: Tensor, present: Tensor) -> None:
    """Add the outer products of some rows of J, (n, B, M), to the groups' matrices."""
    picked = rows[:, :, table.clamp_min(0)] * present
    gram += torch.einsum("nbsz,nbsy->bszy", picked, picked)


def _sketched(model: GaussNewton, table: Tensor, gain: Tensor, allowed: Tensor) -> GroupGrams:
    """Rank the groups by estimated matrices, and compute those of the best few exactly."""
    batch, (groups, size) = len(gain), table.shape
    present = (table >= 0).to(gain.dtype)
    estimate = gain.new_zeros(batch, groups, size, size)
    generator = torch.Generator().manual_seed(0)
    chunk = max(1, model.basis(max(model.entries))[0].stop)
    for start in range(0, _SKETCH, chunk):
        count = min(chunk, _SKETCH - start)
        w = torch.randn(count, 1, model.entries[1], generator=generator).to(gain) / _SKETCH**0.5
        _add(estimate, model.vjps(w.expand(-1, batch, -1)), table, present)
    reach = gain[:, table.clamp_min(0)] * present
    # Σ |G_ij| c_i c_j bounds what any signs can gain on the group.
    promise = (estimate.abs() * reach[..., None] * reach[..., None, :]).sum((2, 3))
    promise = promise + 2.0 * (model.gradient()[:, table.clamp_min(0)].abs() * reach).sum(2)
    promise = torch.where(allowed, promise, -1.0)
    chosen = promise.topk(min(_EXAMINED, groups), dim=1).indices
    gram = gain.new_zeros(batch, chosen.shape[1], size, size)
    for s in range(chosen.shape[1]):
        part = table[chosen[:, s]]  # (B, Z): another group for each sample
        unit = torch.nn.functional.one_hot(part.clamp_min(0), model.entries[0]).to(gain.dtype)
        image = model.jvps((unit * (part >= 0).to(gain.dtype)[..., None]).transpose(0, 1))
        gram[:, s] = torch.einsum("zbk,ybk->bzy", image, image)
    return GroupGrams(gram, chosen, False)


def best_groups(
    model: GaussNewton,
    table: Tensor,
    down: Tensor,
    up: Tensor,
    number: Tensor,
    allowed: Tensor,
    *,
    limit: int,
    grams: GroupGrams | None = None,
) -> tuple[Tensor, Tensor]:
    """Maximise ‖r + Jδ‖² over δ with -down ≤ δ ≤ up that changes at most `number` (B,) of the allowed groups (B, S).

    Returns δ (B, M) and whether it is known to be a global solution, (B,) bool. One group: equations (18)-(21), exact
    by enumeration of the corners for groups of up to 12 entries, greedy (20) with single flips beyond. Further groups
    are added one by one, each the best beside those that stand: greedy. grams: where they are known already.
    """
    gain = torch.maximum(down, up)
    grams = group_grams(model, table, gain, allowed, limit) if grams is None else grams
    entries = table.clamp_min(0)[grams.group]  # (B, S, Z)
    present = (table >= 0)[grams.group]
    low, high = (_pick(bound, entries) * present.to(bound.dtype) * sign for bound, sign in ((down, -1.0), (up, 1.0)))
    delta, free = torch.zeros_like(gain), allowed.gather(1, grams.group)
    linear = model.gradient()
    for turn in range(int(number.max())):
        slope = _pick(linear, entries) * present.to(linear.dtype)
        value, corner = _best_corner(grams.gram, slope, low, high)
        value = torch.where(free, value, -torch.inf)
        best = value.argmax(1, keepdim=True)
        chosen = (turn < number) & (value.gather(1, best)[:, 0] > 0)
        if not bool(chosen.any()):
            break
        step = torch.zeros_like(delta)
        where = best[:, :, None].expand(-1, -1, entries.shape[2])
        step.scatter_add_(1, entries.gather(1, where)[:, 0], (corner * present).gather(1, where)[:, 0])
        delta = delta + step * chosen[:, None].to(step.dtype)
        free = free & ~torch.zeros_like(free).scatter(1, best, chosen[:, None])
        if turn + 1 < int(number.max()):
            more = chosen & (turn + 1 < number)
            linear = model.vjp(model.residual + model.jvp(delta, more), more)
    exact = (number <= 1) & bool(grams.exact and table.shape[1] <= ENUMERATED)
    return delta, exact


def _pick(values: Tensor, entries: Tensor) -> Tensor:
    """Take the entries (B, S, Z) of values (B, M)."""
    return values.gather(1, entries.flatten(1)).view_as(entries)


def _best_corner(gram: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Maximise ηᵀGη + 2⟨b, η⟩ over the corners of low ≤ η ≤ high for every group: value (B, S), η (B, S, Z)."""
    size = gram.shape[2]
    if size <= ENUMERATED:
        patterns = torch.arange(2**size, device=gram.device)[:, None] >> torch.arange(size, device=gram.device) & 1
        best, value = low, torch.full_like(low[..., 0], -torch.inf)
        # Many patterns at once where the groups are few, one after another where they are many.
        for bits in torch.split(patterns.bool(), max(1, _CORNERS // max(1, low.numel()))):
            corner = torch.where(bits, high[..., None, :], low[..., None, :])  # (B, S, n, Z)
            now, first = _corner_value(gram, slope, corner).max(-1)
            chosen = corner.gather(-2, first[..., None, None].expand(*first.shape, 1, size))[..., 0, :]
            best = torch.where((now > value)[..., None], chosen, best)
            value = torch.maximum(value, now)
        return value, best
    # In centred coordinates the corners are signs.
    centre, half = 0.5 * (low + high), 0.5 * (high - low)
    shape = gram.shape[:2]
    pull = (gram @ centre[..., None])[..., 0] + slope
    scaled = (gram * half[..., None] * half[..., None, :]).flatten(0, 1)
    linear = (pull * half).flatten(0, 1)
    signs = greedy_signs(scaled, linear)
    signs, _ = flip(scaled, linear, signs, torch.arange(len(signs), device=gram.device))
    corner = centre + half * signs.view(*shape, -1)
    return _corner_value(gram, slope, corner[..., None, :])[..., 0], corner


def _corner_value(gram: Tensor, slope: Tensor, corner: Tensor) -> Tensor:
    """Compute ηᵀGη + 2⟨b, η⟩ for the corners η (B, S, n, Z); (B, S, n)."""
    return (corner * (corner @ gram + 2.0 * slope[..., None, :])).sum(-1)
