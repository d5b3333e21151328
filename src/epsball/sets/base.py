"""The geometry that every set of allowed perturbations answers, under one batch-first signature."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.randomness import Generators
from epsball.sets._lattice import check_lattice, on_lattice
from epsball.tensors import between, dot
from epsball.validation import check_bounds, check_eps

__all__ = ["Bounds", "ConstraintSet"]

Bounds = tuple[float | Tensor, float | Tensor]


class ConstraintSet(ABC):
    """C(x), the perturbations η allowed around x: a ball of size `eps` in the set's own norm, inside `bounds` - x.

    eps: the budget in the units of x, a number or one for each sample (B,); inf leaves only the bounds.
    bounds: the valid input range (lo, hi), numbers or tensors that broadcast to one sample; None for no range.

    Every method takes batches: g, eta and x are (B, *S), gap is (B,). Entries outside the bounds already may only move
    towards the range.
    """

    #: Whether a convex combination of two of its points lies in the set.
    convex: ClassVar[bool] = True
    #: The least difference of two sizes: 1 where the size is a count.
    unit: ClassVar[float] = 0.0
    # Fields of the concrete sets, which are frozen dataclasses and order them as their callers expect.
    eps: float | Tensor
    bounds: Bounds | None
    #: Levels of the lattice on which perturbed inputs lie: lo + (hi - lo) k / lattice; None: anywhere.
    lattice: int | None = None

    def __post_init__(self) -> None:
        """Refuse a set that has no meaning."""
        check_eps(self.eps)
        check_bounds(self.bounds)
        check_lattice(self.lattice, self.bounds)

    @abstractmethod
    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over η in C(x); returns η (B, *S), zero where g is zero."""

    @abstractmethod
    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over η in C(x): the Euclidean projection, (B, *S)."""

    def ascend(self, g: Tensor, share: float, x: Tensor, eta: Tensor) -> Tensor:
        """Solve max ⟨g, δ⟩ over δ in share · C around x + η, and project η + δ onto C(x): a projected step; (B, *S)."""
        return self.project(eta + self.scaled(share).lmo(g, self.place(x, eta)), x)

    @abstractmethod
    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min size(η) subject to ⟨g, η⟩ ≥ gap and the bounds, whatever eps is; (B, *S).

        Zero where gap ≤ 0. Where even the whole box falls short, the best corner: compare ⟨g, η⟩ with gap to know.
        """

    def least_size(self, g: Tensor, gap: Tensor) -> Tensor:
        """Compute a lower bound on the size of `smallest`, (B,): its size without bounds; 0 where none is known."""
        return torch.zeros_like(gap)

    @abstractmethod
    def size(self, eta: Tensor) -> Tensor:
        """Compute the norm that `eps` limits, (B, *S) -> (B,)."""

    @abstractmethod
    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw a random η in C(x), (B, *S); `boundary` spends the whole budget (the random baselines)."""

    def dither(self, x: Tensor, share: float, generators: Generators) -> Tensor:
        """Draw a random offset of size at most share · ε at which to linearise, (B, *S)."""
        return self.scaled(share).sample(x, generators)

    @abstractmethod
    def step(self, share: float, eta: Tensor) -> ConstraintSet:
        """Return the set for one of 1/share accumulated steps when eta has been accumulated so far."""

    def support(self, g: Tensor, x: Tensor) -> Tensor:
        """Compute max ⟨g, η⟩ over η in C(x): the support function, (B,)."""
        return dot(g, self.lmo(g, x))

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell for each sample whether eta is in C(x), up to rounding (or the relative tolerance `tol`); (B,) bool."""
        eps = self.eps_of(x)
        if tol is None:
            tol = 1e-5 if x.dtype == torch.float32 else 1e-9
        # eta may come from a subtraction (x + eta) - x, which rounds in every entry at the scale of x.
        noise = 2.0 * torch.finfo(x.dtype).eps * self.size(torch.where(eta == 0, 0.0, x.abs() + eta.abs()))
        noise = torch.where(noise.isfinite(), noise, 0.0)
        size = self.size(eta)
        inside = (size <= eps * (1.0 + tol) + noise) & size.isfinite()  # a frozen entry that moved has size inf
        if self.bounds is not None and x.numel():
            lo, hi = self.room(x)
            slack = 4.0 * torch.finfo(x.dtype).eps * (1.0 + x.abs())
            inside = inside & ((eta >= lo - slack) & (eta <= hi + slack)).flatten(1).all(1)
        return inside & eta.flatten(1).isfinite().all(1)

    def check(self, x: Tensor) -> None:
        """Refuse a batch that the set does not fit: a wrong number of eps, weights or groups of another shape."""
        self.size(x[:0])
        self.eps_of(x)

    def aligned(self, x: Tensor) -> Tensor:
        """Return x on the set's lattice, to which it may lie off by rounding alone, (B, *S); x without a lattice."""
        return x if self.lattice is None else on_lattice(x, self.lattice, cast(tuple[float, float], self.bounds))

    def place(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return x + η, brought back by the rounding error of the addition where it left the bounds; (B, *S).

        With a lattice, a point of it near x + η whose perturbation is in the set.
        """
        if self.lattice is not None:
            return self.snapped(x, eta)
        moved = x + eta
        return moved if self.bounds is None else self._clamped(moved)

    def _clamped(self, moved: Tensor) -> Tensor:
        """Clamp inputs (B, *S) to the bounds in place, which must be there."""
        lo, hi = cast(Bounds, self.bounds)
        if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
            return moved.clamp_(lo, hi)
        return between(moved, *(torch.as_tensor(b, dtype=moved.dtype, device=moved.device) for b in (lo, hi)))

    def snapped(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return a point of the lattice near x + η whose perturbation is in the set, (B, *S)."""
        raise NotImplementedError

    def prepare(self, x: Tensor) -> ConstraintSet:
        """Return the set with what it needs to know of the unperturbed inputs."""
        return self

    def repair(self, x: Tensor, eta: Tensor, updated: Tensor) -> Tensor:
        """Return a point between eta and updated that lies in the set itself; convex sets return `updated`."""
        return updated

    def at(self, x: Tensor, eta: Tensor) -> ConstraintSet:
        """Return this set as it is known at the current point; sets that do not depend on it return themselves."""
        return self

    def verify(self, x: Tensor, eta: Tensor) -> Tensor:
        """Tell whether eta is in the set itself rather than in its model at one point; (B,) bool."""
        return self.contains(eta, x)

    def scaled(self, share: float) -> Self:
        """Return the same set with its budget multiplied by share."""
        return cast(Self, replace(cast(Any, self), eps=self.eps * share))

    def with_eps(self, eps: float | Tensor) -> Self:
        """Return the same set with another budget."""
        return cast(Self, replace(cast(Any, self), eps=eps))

    def onward(self, eta: Tensor) -> ConstraintSet:
        """Return the set of further steps of any size after eta; sets without a count return themselves."""
        return self

    def total(self, eta: Tensor) -> ConstraintSet:
        """Return the set of whole perturbations, for a set made by `at` for steps from x + eta."""
        return self

    def take(self, index: Tensor) -> Self:
        """Keep the budgets of some samples of the batch (an index may repeat)."""
        if not isinstance(self.eps, Tensor) or self.eps.dim() == 0:
            return self
        return cast(Self, replace(cast(Any, self), eps=self.eps[index]))

    def eps_of(self, x: Tensor) -> Tensor:
        """Return eps as a (B,) tensor of x's type and device."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if eps.dim() and len(eps) != len(x):
            raise InputError(f"expected eps as a number or one for each of the {len(x)} samples, got {len(eps)}.")
        return eps.expand(len(x))

    def room(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far each entry may move down (≤ 0) and up (≥ 0) inside the bounds."""
        if self.bounds is None:
            return torch.full_like(x, -math.inf), torch.full_like(x, math.inf)
        lo, hi = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in self.bounds)
        return (lo - x).clamp_max_(0.0), (hi - x).clamp_min_(0.0)

    def capacity(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the room of each entry in the direction of g's sign, ≥ 0."""
        if self.bounds is None:
            return torch.full_like(x, math.inf)
        down, up = self.room(x)
        return torch.where(g > 0, up, -down)
