"""The set of `Groups` with the number of changed groups as its budget and its norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from epsball.randomness import Generators
from epsball.sets.base import Bounds, ConstraintSet
from epsball.sets.groups import Groups

__all__ = ["GroupCount"]


@dataclass(frozen=True, eq=False)
class GroupCount(ConstraintSet):
    """C(x) = {η in `within` : ‖η‖_0,S ≤ eps}, eps being a number of groups, one for all or one for each sample.

    within: the groups, and what limits the entries. A search for the fewest groups moves this budget, where `Groups`
    keeps its number of groups and moves the limit of the entries.
    """

    convex: ClassVar[bool] = False
    unit: ClassVar[float] = 1.0

    within: Groups
    eps: float | Tensor = math.inf
    bounds: Bounds | None = field(init=False, repr=False)
    lattice: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the range over."""
        object.__setattr__(self, "bounds", self.within.bounds)
        object.__setattr__(self, "lattice", self.within.lattice)
        super().__post_init__()

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over at most eps groups, (B, *S): exact, as in `Groups`."""
        return self._limited(x).lmo(g, x)

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over the set, (B, *S), exact."""
        return self._limited(x).project(eta, x)

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η‖_0,S subject to ⟨g, η⟩ ≥ gap inside `within`, whatever eps is; (B, *S), exact."""
        return self.within.fewest(g, gap, x)

    def least_size(self, g: Tensor, gap: Tensor) -> Tensor:
        """Return 1 where something must change, (B,)."""
        return (gap > 0).to(g.dtype)

    def size(self, eta: Tensor) -> Tensor:
        """Compute ‖η‖_0,S, the number of groups that changed, (B,); inf where a frozen entry moved."""
        moved = self.within.size(eta)
        return torch.where(moved.isfinite(), self.within.count(eta).to(eta.dtype), math.inf)

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell for each sample whether eta is in `within` and changes at most eps groups, (B,) bool."""
        return self.within.contains(eta, x, tol) & (self.size(eta) <= self.eps_of(x))

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw as many random groups as may change, as `Groups` does; (B, *S). Without a limit: across the range."""
        down, up = self.room(x)
        widest = torch.maximum(-down, up).flatten(1).amax(1)
        finite = replace(self._limited(x), eps=torch.minimum(self.within.eps_of(x), widest))
        return finite.sample(x, generators, boundary=boundary)

    def step(self, share: float, eta: Tensor) -> GroupCount:
        """Return the set of the next new groups: counts add up, limits of entries do not."""
        used = replace(self.within, used=self.within.changed(eta))
        return replace(self, within=used, eps=self.eps * share)

    def without(self, eta: Tensor, g: Tensor, number: int) -> Tensor:
        """Return η without the changed groups that contribute least to ⟨g, η⟩, `number` of them; (B, *S)."""
        worth = torch.where(self.within.changed(eta), self.within.sums(g * eta), math.inf)
        rank = worth.argsort(dim=1, stable=True).argsort(dim=1)
        return torch.where((rank >= number)[:, self.within.ids(eta)].view_as(eta), eta, 0.0)

    def snapped(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return a point of the lattice near x + η whose perturbation is in the set, (B, *S)."""
        return self.within.snapped(x, eta)

    def take(self, index: Tensor) -> GroupCount:
        """Keep the budgets of some samples."""
        return replace(super().take(index), within=self.within.take(index))

    def _limited(self, x: Tensor) -> Groups:
        """Return `within` with each sample's own number of groups."""
        most = self.eps_of(x).clamp_max(x[0].numel() if len(x) else 0).floor().to(torch.int64)
        return replace(self.within, left=most)
