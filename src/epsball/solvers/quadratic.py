"""The quadratic problem max ‖r + Jδ‖² over a set: which solver for which set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.sets import Groups, LpBall
from epsball.sets.base import ConstraintSet
from epsball.solvers.base import Step
from epsball.solvers.box import best_signs
from epsball.solvers.power import ascend
from epsball.solvers.sign_patterns import ENUMERATED, best_groups, group_grams, table_of
from epsball.solvers.trust_region import trust_region
from epsball.solvers.view import View
from epsball.tensors import expand

__all__ = ["QuadraticOptions", "solve_quadratic"]

_TRIAL = 12  # steps of the power method after which many starts are compared: nearly all of what they gain


@dataclass(frozen=True)
class QuadraticOptions:
    """How hard the solvers of the quadratic problem try.

    tolerance: of the relative KKT residual at p = 2; None: 1e-7 in float64, 1e-4 in float32. starts: random starts
    where the problem is NP-hard. products: up to this many Jᵀw or Ju, J's columns are measured exactly (p = 1, groups,
    p = inf); beyond, they are ranked by random combinations.
    """

    tolerance: float | None = None
    starts: int = 4
    products: int = 4096


@dataclass(frozen=True, eq=False)
class _Problem:
    """One problem: the model, the set, the point, and how far each entry may go down and up, (B, M) ≥ 0."""

    model: GaussNewton
    constraint: ConstraintSet
    point: Tensor
    streams: Generators
    options: QuadraticOptions
    eps: Tensor
    down: Tensor
    up: Tensor

    @property
    def tolerance(self) -> float:
        if self.options.tolerance is not None:
            return self.options.tolerance
        return 1e-4 if self.point.dtype == torch.float32 else 1e-7

    def flags(self, value: bool) -> Tensor:
        return torch.full_like(self.eps, value, dtype=torch.bool)

    def lmo(self, direction: Tensor) -> Tensor:
        return self.constraint.lmo(direction.view_as(self.point), self.point).flatten(1)

    def random_starts(self) -> list[Tensor]:
        """Return the set's answers (B, M) to random directions, as many as the options say."""
        shape = self.down.shape[1:]
        draws = [self.streams.fork(n).normal(shape, self.point.dtype) for n in range(self.options.starts)]
        return [self.lmo(draw) for draw in draws]

    def turned(self, delta: Tensor) -> Tensor:
        """Turn δ (B, M) around where the residual is zero, -δ lies inside the bounds and δ does not."""
        within = ((delta <= self.up) & (delta >= -self.down)).all(1)
        mirrored = ((-delta <= self.up) & (-delta >= -self.down)).all(1)
        turn = ~within & mirrored & (self.model.residual == 0).all(1)
        return torch.where(turn[:, None], -delta, delta)

    def ascend(self, starts: list[Tensor], active: Tensor | None = None, trial: int | None = None) -> Tensor:
        """Raise each start by the power method and keep the best; trial: so many steps, then the best to the end."""
        best, value = starts[0], torch.full_like(self.eps, -math.inf)
        for start in starts:
            delta, now = self._raise(start, active, trial)
            best = torch.where((now > value)[:, None], delta, best)
            value = torch.maximum(value, now)
        return best if trial is None else self._raise(best, active, None)[0]

    def _raise(self, start: Tensor, active: Tensor | None, steps: int | None) -> tuple[Tensor, Tensor]:
        limit = {} if steps is None else {"steps": steps}
        return ascend(self.model, self.constraint, self.point, start, active=active, **limit)


def solve_quadratic(
    model: GaussNewton, constraint: ConstraintSet, point: Tensor, streams: Generators, options: QuadraticOptions
) -> Step:
    """Solve max ‖r + Jδ‖² over δ in C(x): problems (12), (13) and (18) of the paper; δ (B, *S).

    Global for one output over a ball or groups; up to its tolerance for p = 2 and p = 1 without bounds, for p = inf
    with up to 12 entries and for one group of up to 12 entries; otherwise the best of several local solutions
    (`Step.exact` says which).
    """
    eps = constraint.eps_of(point)
    down, up = (bound.abs().flatten(1) for bound in constraint.room(point))
    weights, boxed = None, torch.zeros_like(eps, dtype=torch.bool)
    if isinstance(constraint, LpBall):
        weights = None if constraint.weights is None else constraint.weights.to(point).flatten()[None]
        down, up = (bound if weights is None else bound.where(weights > 0, 0.0) for bound in (down, up))
        largest = constraint.size(torch.maximum(down, up).view_as(point))  # of all δ inside the bounds
        boxed, eps = largest <= eps, torch.minimum(eps, largest)
        if not eps.isfinite().all():
            raise InputError("expected a finite eps, or finite bounds in every entry, got neither; give eps.")
    if model.entries[1] == 1:
        return _one_output(model, constraint, point)
    # Samples whose problems are of different kinds are solved apart, as each would be alone.
    kind = 2 * (boxed & (getattr(constraint, "p", math.inf) != math.inf)) + (model.residual != 0).any(1)
    if bool((kind != kind[0]).any()):
        return _apart(model, constraint, point, streams, options, kind)
    problem = _Problem(model, constraint, point, streams, options, eps, down, up)
    kkt = torch.full_like(eps, math.nan)
    mirrored = True
    if isinstance(constraint, LpBall):
        if constraint.p != math.inf and bool(boxed.all()):  # the bounds alone limit δ, whatever p is
            delta, exact = _box(problem, down, up)
        elif constraint.p == 2.0:
            delta, exact, kkt = _euclidean(problem, weights)
        elif constraint.p == 1.0:
            delta, exact = _vertices(problem, weights)
        elif constraint.p == math.inf:
            radius = eps[:, None] if weights is None else eps[:, None] * weights
            delta, exact = _box(problem, torch.minimum(down, radius), torch.minimum(up, radius))
        else:
            delta, exact = _general(problem)
    elif isinstance(constraint, Groups):
        delta, exact = _groups(problem, constraint)
    else:
        delta, exact = _general(problem)
        mirrored = False
    mirror = torch.minimum(torch.maximum(-delta, -down), up).view_as(point) if mirrored else None
    feasible = problem.flags(True)
    return Step(delta.view_as(point), feasible, exact=exact, kkt=kkt, mirror=mirror)


def _one_output(model: GaussNewton, constraint: ConstraintSet, point: Tensor) -> Step:
    """Solve max (r + ⟨g, δ⟩)² for one output: the set's answer to g or to -g, exact where the answer is."""
    slope = model.probe().view_as(point)  # along g, whichever way
    ways = [constraint.lmo(way, point) for way in (slope, -slope)]
    first, second = (model.value(delta.flatten(1)) for delta in ways)
    turn = expand(second > first, point)
    delta, mirror = torch.where(turn, ways[1], ways[0]), torch.where(turn, ways[0], ways[1])
    always = torch.ones_like(first, dtype=torch.bool)
    exact = always & isinstance(constraint, (LpBall, Groups))  # a set of one's own may answer nearly
    return Step(delta, always, exact=exact, kkt=torch.full_like(first, math.nan), mirror=mirror)


def _apart(
    model: GaussNewton,
    constraint: ConstraintSet,
    point: Tensor,
    streams: Generators,
    options: QuadraticOptions,
    kind: Tensor,
) -> Step:
    """Solve for the samples of each kind (B,) apart from the others."""
    delta, mirrors = torch.zeros_like(point), torch.zeros_like(point)
    mirror: Tensor | None = mirrors
    exact = torch.zeros_like(kind, dtype=torch.bool)
    kkt = torch.full_like(kind, math.nan, dtype=torch.float64)
    for rows in ((kind == k).nonzero()[:, 0] for k in sorted(set(kind.tolist()))):
        part = model.take(rows)
        step = solve_quadratic(part, constraint.take(rows), point[rows], streams.take(rows), options)
        model.also_spent(rows, part)
        delta[rows] = step.delta
        if step.mirror is None:  # of the set, not of the sample
            mirror = None
        else:
            mirrors[rows] = step.mirror
        if step.exact is not None and step.kkt is not None:
            exact[rows], kkt[rows] = step.exact, step.kkt.to(kkt.dtype)
    return Step(delta, torch.ones_like(exact), exact=exact, kkt=kkt, mirror=mirror)


def _euclidean(problem: _Problem, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for p = 2: exactly without bounds; inside them from that solution by the power method."""
    view = View(problem.model, None if weights is None else weights.expand(len(problem.eps), -1))
    solved = trust_region(view, problem.eps, tolerance=problem.tolerance)
    delta = problem.turned(view.delta(solved.zeta))
    inside = torch.minimum(torch.maximum(delta, -problem.down), problem.up)
    cut = (inside != delta).any(1)
    if not bool(cut.any()):
        return delta, solved.converged, solved.kkt
    other = torch.minimum(torch.maximum(-delta, -problem.down), problem.up)
    raised = problem.ascend([inside, other, problem.lmo(view.delta(solved.top))], cut)
    kkt = torch.where(cut, math.nan, solved.kkt)
    return torch.where(cut[:, None], raised, delta), solved.converged & ~cut, kkt


def _vertices(problem: _Problem, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve for p = 1: the best vertex ±ε w_k e_k, exactly (15) without bounds; inside them by the power method."""
    entries = problem.down.shape[1]
    radius = problem.eps[:, None] * (torch.ones_like(problem.down) if weights is None else weights)
    alone = torch.arange(entries, device=radius.device)[:, None]
    one = torch.ones_like(problem.eps, dtype=torch.int64)
    free = torch.ones_like(radius, dtype=torch.bool)
    limit = problem.options.products
    grams = group_grams(problem.model, alone, radius, free, limit)
    delta, exact = best_groups(problem.model, alone, radius, radius, one, free, limit=limit, grams=grams)
    # The best vertex of the whole ball is a solution wherever it lies inside the bounds.
    delta = problem.turned(delta)
    inside = torch.minimum(torch.maximum(delta, -problem.down), problem.up)
    cut = (inside != delta).any(1)
    if not bool(cut.any()):
        return delta, exact
    low, high = torch.minimum(problem.down, radius), torch.minimum(problem.up, radius)
    vertex, _ = best_groups(problem.model, alone, low, high, one, free, limit=limit, grams=grams)
    probe, slope = problem.model.probe(), problem.model.gradient()
    starts = [vertex, problem.lmo(probe), problem.lmo(-probe), problem.lmo(slope), *problem.random_starts()]
    raised = problem.ascend(starts, cut, _TRIAL)
    return torch.where(cut[:, None], raised, delta), exact & ~cut


def _box(problem: _Problem, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for p = inf: by enumeration up to 12 entries; else the best of many polished starts."""
    model, entries = problem.model, down.shape[1]
    if entries <= ENUMERATED:
        table = torch.arange(entries, device=down.device)[None]
        one = torch.ones_like(problem.eps, dtype=torch.int64)
        free = torch.ones_like(one, dtype=torch.bool)[:, None]
        return best_groups(model, table, down, up, one, free, limit=problem.options.products)
    if model.fits(copies=3.0 * max(1.0, entries / model.entries[1])) and min(model.entries) <= problem.options.products:
        return _dense_box(problem, down, up), problem.flags(False)
    return _general(problem)


def _dense_box(problem: _Problem, down: Tensor, up: Tensor) -> Tensor:
    """Solve for p = inf with the Gram matrices of a few samples at a time, in centred coordinates."""
    model, entries = problem.model, down.shape[1]
    centre, half = 0.5 * (up - down), 0.5 * (up + down)
    one = 3.0 * model.bytes_of_jacobian() * max(1.0, entries / model.entries[1])
    width = max(1, int(model.options.memory * 1e9 // one))
    delta = torch.empty_like(down)
    for start in range(0, len(down), width):
        rows = torch.arange(start, min(start + width, len(down)), device=down.device)
        part = model if len(rows) == len(down) else model.take(rows)
        jacobian = part.jacobian()
        if part is not model:
            model.also_spent(rows, part)
        residual = part.residual + (jacobian @ centre[rows][:, :, None])[:, :, 0]
        scaled = jacobian * half[rows][:, None]
        gram = scaled.transpose(1, 2) @ scaled
        linear = (scaled.transpose(1, 2) @ residual[:, :, None])[:, :, 0]
        signs, _ = best_signs(gram, linear, problem.streams.take(rows), problem.options.starts)
        delta[rows] = centre[rows] + half[rows] * signs
    return delta


def _groups(problem: _Problem, constraint: Groups) -> tuple[Tensor, Tensor]:
    """Solve for groups: exactly for one of up to 12 entries, greedily for more; several are polished together."""
    point = problem.point
    radius = constraint.radius(point).expand_as(point).flatten(1)
    down, up = (torch.minimum(bound, radius) for bound in (problem.down, problem.up))
    ids = constraint.ids(point)
    free, number = constraint.free(point), constraint.remaining(point)
    table = table_of(ids)
    size = table.shape[1]
    if size > ENUMERATED and not problem.model.fits(3.0 * table.numel() * size / math.prod(problem.model.entries)):
        return _general(problem)
    delta, exact = best_groups(problem.model, table, down, up, number, free, limit=problem.options.products)
    several = number > 1
    if bool(several.any()):
        raised = problem.ascend([delta, *problem.random_starts()], several, _TRIAL)
        delta = torch.where(several[:, None], raised, delta)
    return delta, exact


def _general(problem: _Problem) -> tuple[Tensor, Tensor]:
    """Solve over any set by the power method from the Euclidean solution, both ways, the gradient and random points."""
    model = problem.model
    # A ball of about the set's size in each entry, so that r and Jδ have the weight that they will have.
    size = torch.linalg.vector_norm(problem.lmo(model.probe()), dim=1)
    rough = trust_region(View(model), size, tolerance=1e-2, limit=24)
    starts = [problem.lmo(rough.zeta), problem.lmo(-rough.zeta)]
    if bool((model.residual != 0).any()):  # then for all samples; without a residual the gradient is zero
        starts.append(problem.lmo(model.gradient()))
    delta = problem.ascend(starts + problem.random_starts(), trial=_TRIAL)
    return delta, problem.flags(False)
