"""Trust-region steps along the boundary at p = 1: every step a linear program, and what the search gains by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import epsball as eb
from epsball import networks
from epsball.data import load
from helpers import generator

ENTRIES = 12


def least_norm(
    rows: np.ndarray, gaps: np.ndarray, low: np.ndarray, high: np.ndarray, weights: np.ndarray
) -> float | None:
    """Solve min ‖η / w‖₁ subject to rows η ≥ gaps and low ≤ η ≤ high with SciPy; None where nothing meets them."""
    # η = u - v with u, v ≥ 0: the cost of what a bound forces is then counted too.
    count = len(low)
    cost = np.concatenate([1 / weights, 1 / weights])
    both = np.concatenate([np.hstack([-rows, rows]), np.eye(count, 2 * count) - np.eye(count, 2 * count, count)])
    both = np.concatenate([both, -both[len(rows) :]])
    solved = linprog(cost, both, np.concatenate([-gaps, high, -low]), bounds=(0, None))
    return float(solved.fun) if solved.status == 0 else None


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_solves_the_linear_program_inside_the_trust_region(bounds, weighted):
    g = generator(0)
    x = torch.rand(200, ENTRIES, generator=g, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.3, x.round(), x)
    weights = 0.2 + torch.rand(ENTRIES, generator=g, dtype=torch.float64) if weighted else None
    ball = eb.LpBall(1.0, bounds=bounds, weights=weights)
    gradient = torch.randn(x.shape, generator=g, dtype=torch.float64)
    gradient[:, 0] = 0.0
    eta = ball.project(0.7 * torch.randn(x.shape, generator=g, dtype=torch.float64), x)
    radius = 0.5 * torch.rand(len(x), generator=g, dtype=torch.float64)
    gap = (gradient * eta).sum(1) + torch.randn(len(x), generator=g, dtype=torch.float64)
    found = ball.nearby(gradient, gap, x, eta, radius)

    w = np.ones(ENTRIES) if weights is None else weights.numpy()
    solvable = 0
    for i in range(len(x)):
        low, high = (eta[i] - radius[i] * torch.from_numpy(w)), (eta[i] + radius[i] * torch.from_numpy(w))
        if bounds is not None:
            low, high = torch.maximum(low, -x[i]), torch.minimum(high, 1.0 - x[i])
        assert bool(((found[i] >= low - 1e-12) & (found[i] <= high + 1e-12)).all())
        best = least_norm(gradient[i : i + 1].numpy(), gap[i : i + 1].numpy(), low.numpy(), high.numpy(), w)
        if best is None:
            reach = torch.where(gradient[i] > 0, high, low)
            free = gradient[i] != 0
            torch.testing.assert_close(found[i][free], reach[free])
            continue
        solvable += 1
        assert float(gradient[i] @ found[i]) >= float(gap[i]) - 1e-9
        assert float(ball.size(found[i : i + 1])) == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert 40 < solvable < 200


class Kinked(nn.Module):
    """Class 1 wins where all of some affine functions of x are positive: the boundary is the rim of a polytope."""

    def __init__(self, rows: Tensor, offset: float = 1.0) -> None:
        super().__init__()
        self.rows, self.offset = rows, offset

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        margin = (x @ self.rows.T - self.offset).amin(1)
        return torch.stack([torch.zeros_like(margin), margin], 1)


def search(steps: int, along: int, **changes: object) -> eb.Attack:
    schedule = eb.Schedule(steps=steps, step_size="falling", update="project", boundary_steps=along)
    return eb.Attack(
        eb.LpBall(1.0, **changes), eb.Margin("runner-up"), formulation=eb.ShrinkingBall(), schedule=schedule
    )


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_steps_along_a_boundary_with_kinks_reach_the_linear_programs_optimum(bounds):
    ratios = []
    for seed in range(12):
        rows = 0.3 + torch.rand(3, ENTRIES, generator=generator(seed), dtype=torch.float64)
        model, x, y = Kinked(rows), torch.zeros(1, ENTRIES, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        low = np.full(ENTRIES, -np.inf if bounds is None else 0.0)
        best = least_norm(rows.numpy(), np.ones(3), np.maximum(low, -9.0), np.full(ENTRIES, 1.0), np.ones(ENTRIES))
        start, end = (search(8, along, bounds=bounds)(model, x, y) for along in (0, 80))
        assert bool(end.success.all())
        assert best is not None
        assert float(end.norm) >= best * (1 - 1e-9)
        ratios.append((float(start.norm) / best, float(end.norm) / best))
    before, after = np.array(ratios).mean(0)
    assert before > 1.03  # the search alone is not there
    assert after < 1.0 + 0.4 * (before - 1.0)


def test_a_perturbation_never_becomes_larger_and_the_passes_are_counted():
    data, model = load("digits", split="test").head(60), networks.load("digits-fcnn")
    plain, along = (search(6, steps, bounds=data.bounds)(model, data.x, data.target) for steps in (0, 12))
    assert torch.equal(plain.success, along.success)
    found = plain.success & (plain.norm > 0)
    assert bool((along.norm <= plain.norm)[found].all())
    assert float(along.norm[found].mean()) < 0.97 * float(plain.norm[found].mean())
    more = along.backwards - plain.backwards
    assert bool(((more >= 1) & (more <= 13))[found].all())
    assert torch.equal(along.forwards - plain.forwards, more)


def test_a_sample_comes_out_the_same_in_every_batch():
    data, model = load("digits", split="test").head(20), networks.load("digits-fcnn").double()
    x, attack = data.x.double(), search(5, 10, bounds=data.bounds)
    whole = attack(model, x, data.target)
    for i in (0, 7, 19):
        one = attack(model, x[i : i + 1], data.target[i : i + 1], sample_id=torch.tensor([i]))
        torch.testing.assert_close(one.perturbation[0], whole.perturbation[i], rtol=1e-9, atol=1e-12)


def test_a_lattice_is_not_left():
    data, model = load("digits", split="test").head(20), networks.load("digits-fcnn")
    x = (data.x * 15).round() / 15
    result = search(6, 10, bounds=(0.0, 1.0), lattice=15)(model, x, data.target)
    levels = result.perturbed * 15
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


class Rational(nn.Module):
    """Bent everywhere, without kinks, and not finite beyond a wall."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        total = (x / (0.2 + x.abs())).sum(1) - 1.5
        margin = torch.where(x.abs().amax(1) > 0.9, torch.nan, total)
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_points_without_finite_outputs_are_not_taken():
    x, y = 0.05 * torch.rand(4, 6, generator=generator(1)), torch.zeros(4, dtype=torch.int64)
    result = search(4, 15)(Rational(), x, y)
    assert bool(result.success.all() & result.norm.isfinite().all())
    assert bool(result.outputs.isfinite().all())


@pytest.mark.parametrize("passes", [15, 30, 36])
def test_short_searches_do_without(passes):
    assert eb.recipe("nearest", p=1.0, passes=passes).schedule.boundary_steps == 0


@pytest.mark.parametrize(("passes", "steps"), [(40, 8), (100, 20), (1000, 40)])
def test_nearest_at_p_1_takes_a_fifth_of_its_passes_along_the_boundary(passes, steps):
    assert eb.recipe("nearest", p=1.0, passes=passes).schedule.boundary_steps == steps
    for p in (2.0, math.inf):
        assert eb.recipe("nearest", p=p, passes=passes).schedule.boundary_steps == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda s: eb.Attack(eb.LpBall(2.0), eb.Margin("runner-up"), formulation=eb.ShrinkingBall(), schedule=s),
        lambda s: eb.Attack(eb.LpBall(1.0, eps=1.0), schedule=s),
    ],
)
def test_steps_along_the_boundary_are_refused_where_there_is_none_to_follow(make):
    with pytest.raises(eb.InputError, match="with p=1 for boundary_steps"):
        make(eb.Schedule(update="project", boundary_steps=5))
    with pytest.raises(eb.InputError, match="expected boundary_steps as an integer"):
        eb.Schedule(boundary_steps=-1)
