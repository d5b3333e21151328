"""The weighted ℓp ball inside a box, for every real p in [1, inf]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.randomness import Generators, as_generators
from epsball.sets._lattice import snap
from epsball.sets._project import project_lp
from epsball.sets._waterfill import fill_budget, fill_gap, greedy_fill
from epsball.sets._weights import divided, weights_of
from epsball.sets.base import ConstraintSet
from epsball.tensors import between, dot, expand, norm, order
from epsball.validation import check_p, check_weights

__all__ = ["LpBall"]

_LARGE = 1e18


@dataclass(frozen=True, eq=False)
class LpBall(ConstraintSet):
    """C(x) = {η : ‖η / w‖_p ≤ ε, lo ≤ x + η ≤ hi}, the ball (not the sphere).

    p: any real number in [1, inf]. eps: the radius in units of x, a number or (B,). bounds: (lo, hi) or None.
    weights: w ≥ 0 of the shape of one sample; an entry of weight 0 is frozen. lattice: perturbed inputs lie on the
    points lo + (hi - lo) k / lattice, 255 for 8-bit images: problems are solved without it, and their solutions are
    judged at points of it inside the set.

    lmo, support and smallest are exact for every p, also inside the bounds (sorted breakpoints, no iteration). project
    is exact for p in {1, inf}, and for p = 2 without weights; otherwise Newton's method on one multiplier, to rounding.

    Source: Theorem 2 and Proposition 1 of Balda, Behboodi, Mathar (2018), equations (6) and (9), extended to bounds.
    """

    p: float = math.inf
    eps: float | Tensor = math.inf
    bounds: tuple[float | Tensor, float | Tensor] | None = None
    weights: Tensor | None = None
    lattice: int | None = None

    def __post_init__(self) -> None:
        """Refuse p < 1, a negative eps, reversed bounds, negative weights."""
        super().__post_init__()
        check_p(self.p)
        check_weights(self.weights)

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over ‖η / w‖_p ≤ ε inside the bounds; (B, *S), equation (6) extended to bounds.

        Exact. Zero where g is zero; of equal entries at p = 1 the first.
        """
        eps = self.eps_of(x)
        unlimited = not eps.isfinite().all()
        if self.bounds is None and unlimited:
            raise self._unlimited()
        if self.p == math.inf:
            # Finite, so that an entry without a gradient stays at zero where only the bounds limit the others.
            radius = expand(eps.clamp_max(_LARGE), x)
            eta = g.sign() * (radius if self.weights is None else radius * self._w(x))
            # Zero is inside the room, so clamping this corner is the exact solution for p = inf, and for it alone.
            eta = self._confined(eta, x)
            if unlimited and bool((eta.abs() >= _LARGE).any()):  # one of the bounds is infinite too
                raise self._unlimited()
            return eta
        weight, scale = self._scaled_gradient(g)
        if self.bounds is None:
            return g.sign() * expand(eps, x) * self._direction(weight).view_as(x) * scale
        cap = self._scaled_cap(g, x)
        full = norm(torch.where(weight > 0, cap, 0.0), self.p)
        if not torch.minimum(eps, full).isfinite().all():
            raise self._unlimited()
        return g.sign() * fill_budget(weight, cap, torch.minimum(eps, full), self.p).view_as(x) * scale

    def support(self, g: Tensor, x: Tensor) -> Tensor:
        """Compute max ⟨g, η⟩ over C(x), (B,): ε‖w g‖_q without bounds, from the exact η with them."""
        if self.bounds is not None:
            return super().support(g, x)
        scaled = g if self.weights is None else g * self._w(g)
        length = norm(scaled, order(self.p))
        return torch.where(length == 0, 0.0, self.eps_of(x) * length)  # also for eps = inf

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η / w‖_p subject to ⟨g, η⟩ ≥ gap inside the bounds, whatever eps is; (B, *S), equation (9).

        Exact. Zero where gap ≤ 0; where even the whole box falls short, its best corner.
        """
        weight, scale = self._scaled_gradient(g)
        if self.bounds is None:
            direction = self._direction(weight)
            reach = (weight * direction).sum(1)  # = ‖w g‖_q
            needed = torch.where(reach > 0, gap.clamp_min(0.0) / torch.where(reach > 0, reach, 1.0), 0.0)
            return g.sign() * expand(needed, x) * direction.view_as(x) * scale
        delta = fill_gap(weight, self._scaled_cap(g, x), gap, self.p).view_as(x).mul_(g.sign())
        return delta if self.weights is None else delta.mul_(scale)

    def nearby(self, g: Tensor, gap: Tensor, x: Tensor, eta: Tensor, radius: Tensor) -> Tensor:
        """Solve min ‖η' / w‖₁ subject to ⟨g, η'⟩ ≥ gap inside the bounds and |η' - η| ≤ w · radius; (B, *S), p = 1.

        radius: (B,). Exact. Where the trust region falls short, its largest ⟨g, η'⟩ with the least ‖η' / w‖₁.
        """
        weight, scale = self._scaled_gradient(g)
        reach = expand(radius, x) * scale
        down, up = self.room(x)
        low, high = torch.maximum(eta - reach, down), torch.minimum(eta + reach, up)
        # From the least |η'| on, every unit in the direction of the gradient costs the same.
        least = between(torch.zeros_like(eta), low, high)
        cap = torch.where(g > 0, high - least, least - low).clamp_min_(0.0)
        cap = cap if self.weights is None else torch.where(scale > 0, cap / torch.where(scale > 0, scale, 1.0), 0.0)
        more = greedy_fill(weight, cap.flatten(1), weight, gap - dot(g, least)).view_as(x)
        return least + g.sign() * more * scale

    def longest(self, eta: Tensor) -> Tensor:
        """Compute max |η / w|, (B,)."""
        return norm(eta if self.weights is None else divided(eta, self._w(eta)), math.inf)

    def least_size(self, g: Tensor, gap: Tensor) -> Tensor:
        """Compute gap / ‖w g‖_q, (B,): the size without bounds, which bounds can only enlarge; inf for a zero g."""
        reach = norm(g if self.weights is None else g * self._w(g), order(self.p))
        return torch.where(gap > 0, gap / reach, 0.0)

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over C(x), the Euclidean projection onto ball and box together; (B, *S)."""
        weight = None if self.weights is None else self._w(x).flatten(1).expand(len(x), -1)
        eps = self.eps_of(x)
        if weight is None and self.p == math.inf:
            radius = expand(eps, x)
            return self._confined(between(eta.clone(), -radius, radius), x)
        cap = self.capacity(eta, x).flatten(1)
        return eta.sign() * project_lp(eta.flatten(1).abs(), cap, weight, eps, self.p).view_as(x)

    def ascend(self, g: Tensor, share: float, x: Tensor, eta: Tensor) -> Tensor:
        """Take one projected step, (B, *S): solve the problem around x + η, add its solution, project."""
        unlimited = not (self.eps_of(x) < math.inf).all() if isinstance(self.eps, Tensor) else self.eps == math.inf
        if self.p < math.inf or self.weights is not None or self.lattice is not None or unlimited:
            return super().ascend(g, share, x, eta)
        # For p = inf both maps are clamps, and the room around x + η is what the projection leaves anyway. In place,
        # since fresh memory costs as much as the arithmetic.
        if isinstance(self.eps, (int, float)):
            moved = g.sign().mul_(share * self.eps).add_(eta).clamp_(-self.eps, self.eps)
        else:
            radius = expand(self.eps_of(x), x)
            moved = between(g.sign().mul_(share * radius).add_(eta), -radius, radius)
        return self._confined(moved, x)

    def size(self, eta: Tensor) -> Tensor:
        """Compute ‖η / w‖_p, (B,); inf where a frozen entry moved."""
        if self.weights is None:
            return norm(eta, self.p)
        return norm(divided(eta, self._w(eta)), self.p)

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw η uniformly from the ball, brought inside the bounds by clamping; (B, *S).

        `boundary`: p = inf a fair coin ±ε in every entry; p = 1 uniform on the sphere, ε times a Dirichlet(1, ..., 1)
        point with random signs; otherwise a Gaussian direction of norm ε (paper 6.2).
        """
        streams, shape = as_generators(generators, x), x.shape[1:]
        eps = self.eps_of(x)
        if not eps.isfinite().all():
            raise self._unlimited()
        if self.p == math.inf:
            unit = streams.coin(shape, x.dtype) if boundary else 2.0 * streams.uniform(shape, x.dtype) - 1.0
        elif boundary:
            unit = self._free(self._sphere(streams, x))
            length = norm(unit, self.p)
            unit = unit / expand(torch.where(length > 0, length, 1.0), unit)
        else:
            # Uniform in the ball: generalised normal entries and one exponential (Barthe et al. 2005).
            # |entry|^p is Gamma(1/p) = Gamma(1 + 1/p) U^p; U^p itself would underflow for a large p.
            entry = streams.fork(0).gamma(1.0 + 1.0 / self.p, shape, x.dtype).pow(1.0 / self.p)
            entry = self._free(entry * streams.fork(3).uniform(shape, x.dtype))
            extra = -streams.fork(1).uniform((1,), x.dtype).log()[:, 0]
            total = (entry.pow(self.p).flatten(1).sum(1) + extra).pow(1.0 / self.p)
            unit = streams.fork(2).coin(shape, x.dtype) * entry / expand(total, x)
        eta = unit * expand(eps, x) if self.weights is None else unit * expand(eps, x) * self._w(x)
        return self._confined(eta, x)

    def snapped(self, x: Tensor, eta: Tensor) -> Tensor:
        """Return a point of the lattice near x + η whose perturbation is in the ball, (B, *S)."""
        weights = None if self.weights is None else self._w(x)
        bounds = cast(tuple[float, float], self.bounds)
        return snap(x, eta, self.lattice or 1, bounds, self.eps_of(x), self.p, weights)

    def step(self, share: float, eta: Tensor) -> LpBall:
        """Return the ball of radius share · ε: the triangle inequality keeps the sum of the steps inside."""
        return self.scaled(share)

    def _confined(self, eta: Tensor, x: Tensor) -> Tensor:
        """Clamp η in place to the room that the bounds leave, one side after the other: fresh memory takes longer."""
        if self.bounds is None:
            return eta
        lo, hi = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in self.bounds)
        eta = eta.clamp_min_((lo - x).clamp_max_(0.0))
        return eta.clamp_max_((hi - x).clamp_min_(0.0))

    def _w(self, x: Tensor) -> Tensor:
        """Return the weights as (1, *S)."""
        return weights_of(self.weights, x)

    def _free(self, unit: Tensor) -> Tensor:
        """Set frozen entries to zero, which would take their share of the norm otherwise."""
        return unit if self.weights is None else unit * self._w(unit).sign()

    def _sphere(self, streams: Generators, x: Tensor) -> Tensor:
        """Draw a direction of any length: exponential entries of random sign for p = 1, normal ones otherwise."""
        if self.p != 1.0:
            return streams.normal(x.shape[1:], x.dtype)
        return streams.fork(0).coin(x.shape[1:], x.dtype) * -streams.fork(1).uniform(x.shape[1:], x.dtype).log()

    def _scaled_gradient(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return |w g| as (B, M) and w, for the problem in η / w."""
        if self.weights is None:
            return g.flatten(1).abs(), g.new_ones(())
        w = self._w(g)
        return (g * w).flatten(1).abs(), w

    def _scaled_cap(self, g: Tensor, x: Tensor) -> Tensor:
        cap = self.capacity(g, x)
        if self.weights is not None:
            w = self._w(x)
            cap = torch.where(w > 0, cap / torch.where(w > 0, w, 1.0), 0.0)
        return cap.flatten(1)

    def _direction(self, weight: Tensor) -> Tensor:
        """Return the η ≥ 0 with ‖η‖_p = 1 that maximises ⟨weight, η⟩, zero for a zero weight; (B, M)."""
        if self.p == math.inf:
            return (weight > 0).to(weight.dtype)
        largest = weight.amax(1, keepdim=True)
        if self.p == 1.0:
            first = torch.zeros_like(weight).scatter(1, weight.argmax(1, keepdim=True), 1.0)
            return torch.where(largest > 0, first, 0.0)
        ratio = weight / torch.where(largest > 0, largest, 1.0)  # so that no power overflows for p near 1
        power = ratio if self.p == 2.0 else ratio.pow(order(self.p) - 1.0)
        length = norm(power, self.p)[:, None]
        return power / torch.where(length > 0, length, 1.0)

    def _unlimited(self) -> InputError:
        return InputError("expected a finite eps for a norm-constrained problem without bounds, got eps=inf; give eps.")
