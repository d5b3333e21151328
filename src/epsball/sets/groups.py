"""At most k groups of entries may change, each entry by at most ε: pixel, patch and channel attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.randomness import Generators, as_generators
from epsball.sets._lattice import snap
from epsball.sets._waterfill import fill_gap
from epsball.sets._weights import divided, weights_of
from epsball.sets.base import ConstraintSet
from epsball.sets.partition import Partition, as_partition
from epsball.tensors import expand, norm
from epsball.validation import check_count, check_weights

__all__ = ["Groups"]

_BISECTIONS = 200


@dataclass(frozen=True, eq=False)
class Groups(ConstraintSet):
    """C(x) = {η : ‖η‖_0,S ≤ k, ‖η / w‖_∞ ≤ ε, lo ≤ x + η ≤ hi}, at most k groups of the partition S.

    groups: `eb.pixels(channel_dim=1)`, `eb.patches(size)`, `eb.channels()`, a tensor of group numbers of the shape of
    one sample, or lists of entry numbers. k: None for any number of them. weights: w ≥ 0 of the shape of
    one sample, 1 by default; an entry of weight 0 is frozen. lattice: as in `LpBall`. The set is not convex, but its
    linear problem is exact for every k: the k groups with the largest sum of |g_i| min(ε w_i, c_i), each entry at its
    end. So is the Euclidean projection.

    Source: equations (22) and (23) of Balda, Behboodi, Mathar (2018), extended to k groups and bounds.
    """

    convex: ClassVar[bool] = False

    groups: Partition | Tensor | Sequence[Sequence[int]] | str
    k: int | None = 1
    eps: float | Tensor = math.inf
    bounds: tuple[float | Tensor, float | Tensor] | None = None
    used: Tensor | None = field(default=None, repr=False)  # (B, number of groups) bool: may not change any more
    left: Tensor | None = field(default=None, repr=False)  # (B,): how many more groups may change, at most k
    weights: Tensor | None = None
    lattice: int | None = None

    def __post_init__(self) -> None:
        """Refuse k < 1, negative weights, and groups that overlap or leave entries out."""
        super().__post_init__()
        check_weights(self.weights)
        if self.k is not None:
            check_count("k", self.k)
        object.__setattr__(self, "groups", as_partition(self.groups))

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over at most k groups with |η_i| ≤ ε w_i inside the bounds, (B, *S): equation (23), exact.

        Of equal groups the first; zero where g is zero. Groups marked as used do not change.
        """
        reach = self._reach(g, x)
        return g.sign() * reach * self._best(g.abs() * reach)

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over the set, (B, *S), exact: the k groups in which clipping saves most."""
        limit = self.radius(x)
        clipped = torch.clamp(eta, -limit, limit)
        if self.bounds is not None:
            clipped = torch.clamp(clipped, *self.room(x))
        # What the group saves, eta² - (eta - clipped)², without the cancellation (or overflow) of a large eta.
        return clipped * self._best(clipped * (2.0 * eta - clipped))

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η / w‖_∞ subject to ⟨g, η⟩ ≥ gap, at most k groups and the bounds, whatever eps is; (B, *S).

        The least ε is found by bisection over the groups' choice, then exactly on the chosen groups. Where even the
        whole range falls short, the best corner.
        """
        cap = torch.where(g == 0, 0.0, self.capacity(g, x))
        # In η / w, the gradient is w ⊙ g and the room is divided by w.
        w = x.new_ones(()) if self.weights is None else weights_of(self.weights, x)
        cap = cap if self.weights is None else torch.where(w > 0, cap / torch.where(w > 0, w, 1.0), 0.0)
        weight = g.abs() * w
        # An entry alone reaches the gap at gap / weight: no least ε is larger, also where a bound is infinite.
        alone = expand(gap.clamp_min(0.0), x) / torch.where(weight > 0, weight, 1.0)
        limit = torch.minimum(cap, alone.clamp_max(torch.finfo(x.dtype).max))
        high = limit.flatten(1).amax(1)
        low = torch.zeros_like(high)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if bool(((middle <= low) | (middle >= high)).all()):
                break
            value = self.sums(weight * torch.minimum(limit, expand(middle, x)))
            enough = self._top(value)[0].sum(1) >= gap
            high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
        chosen = self._best(weight * torch.minimum(limit, expand(high, x)))
        t = fill_gap((weight * chosen).flatten(1), cap.flatten(1), gap, math.inf).view_as(x)
        return g.sign() * t * w

    def fewest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η‖_0,S subject to ⟨g, η⟩ ≥ gap, |η| ≤ ε w and the bounds, whatever k is; (B, *S), exact.

        The groups by what each can gain, the most first, up to the gap; each entry of them at its end. Zero where
        gap ≤ 0; where all groups together fall short, all that gain anything: compare ⟨g, η⟩ with gap to know.
        """
        free = replace(self, k=None)
        gained = free._top(self.sums(g.abs() * self._reach(g, x)))[0].cumsum(1)
        count = 1 + (gained < gap[:, None]).sum(1)
        return replace(free, left=torch.where(gap > 0, count, 0)).lmo(g, x)

    def snapped(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return a point of the lattice near x + η whose perturbation is in the set: groups at zero stay; (B, *S)."""
        weights = None if self.weights is None else weights_of(self.weights, x)
        bounds = cast(tuple[float, float], self.bounds)
        return snap(x, eta, self.lattice or 1, bounds, self.eps_of(x), math.inf, weights)

    def size(self, eta: Tensor) -> Tensor:
        """Compute ‖η / w‖_∞, (B,): what eps limits; inf where a frozen entry moved."""
        return norm(eta if self.weights is None else divided(eta, weights_of(self.weights, eta)), math.inf)

    def count(self, eta: Tensor) -> Tensor:
        """Compute ‖η‖_0,S, the number of groups that changed; (B,) int64."""
        return self.changed(eta).sum(1)

    def changed(self, eta: Tensor) -> Tensor:
        """Tell which groups changed, (B, number of groups) bool."""
        return self.sums((eta != 0).to(eta.dtype)) > 0

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell for each sample whether at most k groups changed, by at most ε w, inside the bounds; (B,) bool."""
        inside = super().contains(eta, x, tol)
        return inside if self.k is None else inside & (self.count(eta) <= self.k)

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw k random groups and in each entry a uniform step, or with `boundary` a fair coin ±ε w; (B, *S).

        Groups that are frozen whole are not drawn.
        """
        streams, limit = as_generators(generators, x), self.radius(x)
        if not limit.isfinite().all():
            raise InputError("expected a finite eps to draw from, got eps=inf; give eps.")
        number = self._number(x)
        order = streams.fork(0).uniform((number,), x.dtype)
        if self.weights is not None:
            order = torch.where(self.changed(weights_of(self.weights, x)), order, -1.0)
        unit = streams.fork(1).coin(x.shape[1:], x.dtype)
        if not boundary:
            unit = 2.0 * streams.fork(1).uniform(x.shape[1:], x.dtype) - 1.0
        eta = unit * limit * self._mask(self._top(order)[1], x)
        return eta if self.bounds is None else torch.clamp(eta, *self.room(x))

    def dither(self, x: Tensor, share: float, generators: Generators) -> Tensor:
        """Draw an offset of every entry, uniform in ±share · ε w: one of k groups alone would hide the others."""
        unit = 2.0 * as_generators(generators, x).uniform(x.shape[1:], x.dtype) - 1.0
        eta = unit * self.radius(x) * share
        return eta if self.bounds is None else torch.clamp(eta, *self.room(x))

    def step(self, share: float, eta: Tensor) -> Groups:
        """Return the set of the next new groups at the full ε: those that changed are excluded, k holds for the sum."""
        changed = self.changed(eta)
        most = self._most(eta)
        left = (most - changed.sum(1)).clamp_min(0)
        return replace(self, k=max(1, math.ceil(most * share - 1e-9)), used=changed, left=left)

    def onward(self, eta: Tensor) -> Groups:
        """Return the set of further steps of any size: the groups that changed where they are k, new ones before."""
        changed = self.changed(eta)
        count = changed.sum(1)
        most = self._most(eta)
        full = (count >= most)[:, None]
        left = torch.where(full[:, 0], most, most - count)
        return replace(self, used=torch.where(full, ~changed, changed), left=left)

    def take(self, index: Tensor) -> Groups:
        """Keep the budgets and used groups of some samples."""
        kept = super().take(index)
        used, left = (None if value is None else value[index] for value in (self.used, self.left))
        return replace(kept, used=used, left=left)

    def free(self, x: Tensor) -> Tensor:
        """Tell which groups may change, (B, number of groups) bool."""
        free = torch.ones(len(x), self._number(x), dtype=torch.bool, device=x.device)
        return free if self.used is None else ~self.used

    def remaining(self, x: Tensor) -> Tensor:
        """Return how many groups may change, (B,) int64."""
        most = torch.full((len(x),), self._most(x), dtype=torch.int64, device=x.device)
        return most if self.left is None else torch.minimum(most, self.left)

    def sums(self, value: Tensor) -> Tensor:
        """Add up the entries of each group: (B, *S) -> (B, number of groups)."""
        sums = value.new_zeros(len(value), self._number(value))
        return sums.index_add(1, self.ids(value), value.flatten(1))

    def ids(self, x: Tensor) -> Tensor:
        """Return the group number of each entry, (M,) int64."""
        partition = self.groups
        if not isinstance(partition, Partition):  # __post_init__ made it one
            partition = as_partition(partition)
        return partition.index(x.shape[1:], x.device)

    def radius(self, x: Tensor) -> Tensor:
        """Return how far each entry may move whatever the bounds, ε w, to broadcast against (B, *S)."""
        eps = expand(self.eps_of(x), x)
        if self.weights is None:
            return eps
        w = weights_of(self.weights, x)
        return torch.where(w > 0, eps * w, 0.0)  # also for eps = inf

    def _reach(self, g: Tensor, x: Tensor) -> Tensor:
        """Return how far each entry can move in the direction of g's sign, 0 where g is zero; (B, *S)."""
        reach = torch.where(g == 0, 0.0, torch.minimum(self.radius(x), self.capacity(g, x)))
        if not reach.isfinite().all():
            raise InputError("expected a finite eps for groups without bounds, got eps=inf; give eps.")
        return reach

    def _number(self, x: Tensor) -> int:
        number = int(self.ids(x).max()) + 1
        if self.k is not None and self.k > number:
            raise InputError(
                f"expected k <= {number}, the number of groups, got k={self.k}; a group each entry is "
                "groups=torch.arange(M).view(one sample's shape)."
            )
        return number

    def _most(self, x: Tensor) -> int:
        return self._number(x) if self.k is None else self.k

    def _top(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k largest scores and their groups, the first of equals first, used groups last with score 0."""
        if self.used is not None:
            score = torch.where(self.used, -1.0, score)
        value, index = score.sort(dim=1, descending=True, stable=True)
        allowed = value >= 0
        if self.left is not None:
            allowed = allowed & (torch.arange(value.shape[1], device=value.device) < self.left[:, None])
        return torch.where(allowed, value, 0.0)[:, : self.k], torch.where(allowed, index, -1)[:, : self.k]

    def _best(self, value: Tensor) -> Tensor:
        """Return 1 in the k groups with the largest sum of value, 0 elsewhere; (B, *S)."""
        return self._mask(self._top(self.sums(value))[1], value)

    def _mask(self, chosen: Tensor, x: Tensor) -> Tensor:
        member = x.new_zeros(len(x), self._number(x) + 1).scatter(1, chosen % (self._number(x) + 1), 1.0)
        return member[:, self.ids(x)].view_as(x)
