"""The oracle constraint of Problem 1: the perturbation must not change what a second classifier sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Linear
from epsball.objectives import Margin, two_class
from epsball.randomness import Generators
from epsball.sets.base import Bounds, ConstraintSet
from epsball.target_model import TargetModel
from epsball.tensors import dot, expand
from epsball.validation import check_callable, check_model, check_scores

__all__ = ["Cut", "Oracle"]

_BISECTIONS = 100
_HALVINGS = 12


@dataclass(frozen=True, eq=False)
class Cut(ConstraintSet):
    """base ∩ {η : ⟨normal, η⟩ ≥ -room_left}: any set cut by one half-space, solved through its one dual variable.

    base: a convex set or `Groups`. normal: (B, *S). room_left: (B,). lmo, project and smallest bisect the multiplier of
    the half-space to rounding; for a convex base the answer then lies exactly on the cut (a convex combination of the
    two sides' solutions), for `Groups` on its feasible side.
    """

    base: ConstraintSet
    normal: Tensor
    room_left: Tensor

    def __post_init__(self) -> None:
        """Leave the checks to the base set."""

    @property
    def eps(self) -> float | Tensor:  # type: ignore[override]
        """The base set's budget."""
        return self.base.eps

    @property
    def bounds(self) -> Bounds | None:  # type: ignore[override]
        """The base set's bounds."""
        return self.base.bounds

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over the cut set, (B, *S): the dual min_μ≥0 support(g + μ h) + μ m over the base."""
        return self._along(lambda mu: self.base.lmo(g + expand(mu, g) * self.normal, x), self._scale(g))

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over the cut set, (B, *S): the base's projection of eta + μ h."""
        return self._along(lambda mu: self.base.project(eta + expand(mu, eta) * self.normal, x), self._scale(eta))

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min size(η) subject to ⟨g, η⟩ ≥ gap, the cut and the bounds, whatever eps is; (B, *S).

        Through the ratio ν of the two multipliers: the least size for ⟨g + ν h, η⟩ ≥ gap - ν m, largest over ν.
        """

        def solve(nu: Tensor) -> Tensor:
            return self.base.smallest(g + expand(nu, g) * self.normal, gap - nu * self.room_left, x)

        return self._along(solve, self._scale(g))

    def size(self, eta: Tensor) -> Tensor:
        """Compute the base set's norm, (B,)."""
        return self.base.size(eta)

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell whether eta is in the base set and on the right side of the cut, up to rounding; (B,) bool."""
        slack = 1e-5 if x.dtype == torch.float32 else 1e-9
        scale = dot(self.normal.abs(), eta.abs()) + self.room_left.abs()
        return self.base.contains(eta, x, tol) & (dot(self.normal, eta) >= -self.room_left - slack * scale)

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw from the base set and shrink what crosses the cut; (B, *S)."""
        eta = self.base.sample(x, generators, boundary=boundary)
        reach = dot(self.normal, eta)
        share = torch.where(reach < -self.room_left, self.room_left / -reach, 1.0)
        return eta * expand(share.clamp(0.0, 1.0), eta)

    def step(self, share: float, eta: Tensor) -> Cut:
        """Return the base set's step, cut by the same half-space."""
        return replace(self, base=self.base.step(share, eta))

    def onward(self, eta: Tensor) -> Cut:
        """Return the base set's further steps, cut by the same half-space."""
        return replace(self, base=self.base.onward(eta))

    def scaled(self, share: float) -> Cut:
        """Return the base set with its budget multiplied, cut by the same half-space."""
        return replace(self, base=self.base.scaled(share))

    def with_eps(self, eps: float | Tensor) -> Cut:
        """Return the base set with another budget, cut by the same half-space."""
        return replace(self, base=self.base.with_eps(eps))

    def take(self, index: Tensor) -> Cut:
        """Keep some samples."""
        return replace(self, base=self.base.take(index), normal=self.normal[index], room_left=self.room_left[index])

    def total(self, eta: Tensor) -> Cut:
        """Return the set of whole perturbations when this one was made for steps from x + eta."""
        return replace(self, room_left=self.room_left - dot(self.normal, eta))

    def _scale(self, g: Tensor) -> Tensor:
        """Return the multiplier at which both terms of g + μ h weigh alike, to start the bracket."""
        top = torch.linalg.vector_norm(g.flatten(1), dim=1)
        bottom = torch.linalg.vector_norm(self.normal.flatten(1), dim=1)
        return torch.where(bottom > 0, top / bottom, 0.0).clamp_min(torch.finfo(g.dtype).tiny)

    def _along(self, solve: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        """Find the multiplier at which the solution meets the cut; 0 where it does not reach it."""

        def left(eta: Tensor) -> Tensor:
            return dot(self.normal, eta) + self.room_left

        low, high = torch.zeros_like(start), start
        outside = free = solve(low)
        crossing = left(free) < 0
        if not bool(crossing.any()):
            return free
        inside = solve(high)
        for _ in range(_BISECTIONS):
            short = left(inside) < 0
            if not bool((short & crossing).any()):
                break
            outside = torch.where(expand(short, inside), inside, outside)
            low, high = torch.where(short, high, low), torch.where(short, 2.0 * high, high)
            inside = torch.where(expand(short, inside), solve(high), inside)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            if bool(((middle <= low) | (middle >= high) | ~crossing).all()):
                break
            eta = solve(middle)
            good = left(eta) >= 0
            low, high = torch.where(good, low, middle), torch.where(good, middle, high)
            inside = torch.where(expand(good, eta), eta, inside)
            outside = torch.where(expand(good, eta), outside, eta)
        if not self.base.convex:
            return torch.where(expand(crossing, free), inside, free)
        above, below = left(inside), left(outside)
        share = torch.where(above - below > 0, above / (above - below), 0.0).clamp(0.0, 1.0)
        met = inside + expand(share, inside) * (outside - inside)
        return torch.where(expand(crossing, free), met, free)


@dataclass(frozen=True, eq=False)
class Oracle(ConstraintSet):
    """base ∩ {η : g_k(x + η) > max_{l≠k} g_l(x + η)}: a classifier g, standing for the human eye, keeps its class.

    model: the oracle, x -> (B, K); its class k is the one it gives the unperturbed input. base: any other set. In the
    attack its margin is linearised at each step, the step solved over the base cut by that half-space, and shortened
    by halves where the oracle itself would change its class; the result is verified on the oracle. Its passes are not
    counted in the result.

    Source: equation (2) and Problem 1 (AGP) of Balda, Behboodi, Mathar (2018).
    """

    model: Callable[[Tensor], Any]
    base: ConstraintSet
    label: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse an oracle that cannot be called and a base that is no set."""
        check_callable("model", self.model)
        if not isinstance(self.base, ConstraintSet):
            raise InputError(f"expected base as a set such as eb.LpBall, got {type(self.base).__name__}.")

    @property
    def eps(self) -> float | Tensor:  # type: ignore[override]
        """The base set's budget."""
        return self.base.eps

    @property
    def bounds(self) -> Bounds | None:  # type: ignore[override]
        """The base set's bounds."""
        return self.base.bounds

    def aligned(self, x: Tensor) -> Tensor:
        """Return x where the base set has it, (B, *S)."""
        return self.base.aligned(x)

    def place(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return x + η where the base set places it, (B, *S)."""
        return self.base.place(x, eta)

    def check(self, x: Tensor) -> None:
        """Refuse a batch that the base does not fit or for which the oracle gives no scores."""
        self.base.check(x)
        check_model(self.model, x)
        if len(x):
            check_scores(self._scores(x[:1]), 1, what="the oracle")

    def prepare(self, x: Tensor) -> Oracle:
        """Ask the oracle for the class of each unperturbed input."""
        return replace(self, base=self.base.prepare(x), label=self._scores(x).argmax(1))

    def at(self, x: Tensor, eta: Tensor) -> Cut:
        """Linearise the oracle's margin at x + eta: the set of steps from there."""
        label = self._label(x)
        with TargetModel(self.model) as judge:
            expansion = Linear().expand(lambda points: two_class(judge(points)), Margin("runner-up"), x + eta, label)
        return Cut(self.base.at(x, eta), -expansion.gradient[:, 0], (-expansion.value[:, 0]).clamp_min(0.0))

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over the base cut by the oracle's margin linearised at x; (B, *S)."""
        return self.at(x, torch.zeros_like(x)).lmo(g, x)

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over the base cut by the oracle's margin linearised at x; (B, *S)."""
        return self.at(x, torch.zeros_like(x)).project(eta, x)

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min size(η) with ⟨g, η⟩ ≥ gap over the cut linearised at x; (B, *S)."""
        return self.at(x, torch.zeros_like(x)).smallest(g, gap, x)

    def size(self, eta: Tensor) -> Tensor:
        """Compute the base set's norm, (B,)."""
        return self.base.size(eta)

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell whether eta is in the base set and the oracle itself keeps its class; (B,) bool."""
        return self.base.contains(eta, x, tol) & (self._scores(x + eta).argmax(1) == self._label(x))

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw from the base set and shrink by halves what changes the oracle's class; (B, *S)."""
        return self.repair(x, torch.zeros_like(x), self.base.sample(x, generators, boundary=boundary))

    def step(self, share: float, eta: Tensor) -> Oracle:
        """Return the base set's step under the same oracle."""
        return replace(self, base=self.base.step(share, eta))

    def scaled(self, share: float) -> Oracle:
        """Return the base set with its budget multiplied, under the same oracle."""
        return replace(self, base=self.base.scaled(share))

    def with_eps(self, eps: float | Tensor) -> Oracle:
        """Return the base set with another budget, under the same oracle."""
        return replace(self, base=self.base.with_eps(eps))

    def take(self, index: Tensor) -> Oracle:
        """Keep some samples."""
        label = None if self.label is None else self.label[index]
        return replace(self, base=self.base.take(index), label=label)

    def repair(self, x: Tensor, eta: Tensor, updated: Tensor) -> Tensor:
        """Halve the step from eta until the oracle keeps its class; eta itself where it never does."""
        label = self._label(x)
        for _ in range(_HALVINGS):
            changed = self._scores(x + updated).argmax(1) != label
            if not bool(changed.any()):
                return updated
            updated = torch.where(expand(changed, eta), eta + 0.5 * (updated - eta), updated)
        changed = self._scores(x + updated).argmax(1) != label
        return torch.where(expand(changed, eta), eta, updated)

    def _label(self, x: Tensor) -> Tensor:
        return self._scores(x).argmax(1) if self.label is None else self.label

    def _scores(self, x: Tensor) -> Tensor:
        with TargetModel(self.model) as judge, torch.no_grad():
            return two_class(judge(x))
