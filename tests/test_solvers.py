"""The two formulations on a linear model: optimal against CVXPY, every piece tried by hand."""

import dataclasses
import math

import cvxpy as cp
import numpy as np
import pytest
import torch

import epsball as eb
from epsball.solvers import Formulation
from helpers import ORDERS, affine, dual, generator, np_lmo, np_norm

# CLARABEL says so at 1e-11 where a cone is flat; what is compared is compared to 1e-6.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
BOX = (0.0, 1.0)
TIGHT = {"solver": "CLARABEL", "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def expansion_of(problem):
    return eb.Linear().expand(problem.model, eb.Margin(), problem.x, problem.target)


def program(gradient, gap, x, p, *, eps=None):
    """The value of the norm-constrained problem (eps given) or of the minimal-norm problem on one piece in the box."""
    eta = cp.Variable(len(x))
    size = cp.norm(eta, "inf" if p == math.inf else p)
    inside = [x + eta >= 0.0, x + eta <= 1.0]
    if eps is not None:
        solved = cp.Problem(cp.Maximize(gradient @ eta - gap), [size <= eps, *inside])
    else:
        solved = cp.Problem(cp.Minimize(size), [gradient @ eta >= gap, *inside])
    solved.solve(**TIGHT)
    return math.inf if solved.status.startswith("infeasible") else float(solved.value)


@pytest.mark.parametrize("p", ORDERS)
def test_norm_constrained_takes_the_best_piece(p):
    problem = affine(30, batch=8, classes=6)
    expansion = expansion_of(problem)
    eps = torch.linspace(0.05, 1.0, 8, dtype=torch.float64)
    step = eb.NormConstrained().solve(expansion, eb.LpBall(p=p, eps=eps), problem.x)
    assert step.feasible.all()
    chosen = set()
    for i in range(8):
        gaps, rows = problem.margins(i)
        reach = [float(eps[i]) * np_norm(g, dual(p)) - gap for gap, g in zip(gaps, rows, strict=True)]
        best = int(np.argmax(reach))
        chosen.add(best)
        np.testing.assert_allclose(step.delta[i].numpy(), np_lmo(rows[best], float(eps[i]), p), rtol=1e-7, atol=1e-12)
    assert len(chosen) > 1


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_norm_constrained_inside_the_box(p):
    problem = affine(31, batch=2, faces=True)
    expansion = expansion_of(problem)
    step = eb.NormConstrained().solve(expansion, eb.LpBall(p=p, eps=0.6, bounds=BOX), problem.x)
    for i in range(2):
        gaps, rows = problem.margins(i)
        x, delta = problem.x[i].numpy(), step.delta[i].numpy()
        best = max(program(g, gap, x, p, eps=0.6) for gap, g in zip(gaps, rows, strict=True))
        assert max(g @ delta - gap for gap, g in zip(gaps, rows, strict=True)) == pytest.approx(
            best, rel=1e-6, abs=1e-8
        )
        assert np_norm(delta, p) <= 0.6 * (1 + 1e-9)


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("p", ORDERS)
def test_min_norm_takes_the_nearest_piece(p, overshoot):
    problem = affine(32, batch=8, classes=6)
    step = eb.MinNorm(overshoot=overshoot).solve(expansion_of(problem), eb.LpBall(p=p), problem.x)
    assert step.feasible.all()
    for i in range(8):
        gaps, rows = problem.margins(i)
        sizes = [(1 + overshoot) * gap / np_norm(g, dual(p)) for gap, g in zip(gaps, rows, strict=True)]
        nearest = int(np.argmin(sizes))
        np.testing.assert_allclose(
            step.delta[i].numpy(), np_lmo(rows[nearest], sizes[nearest], p), rtol=1e-7, atol=1e-12
        )


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_min_norm_inside_the_box_reaches_further_and_says_when_it_cannot(p):
    """Gaps from easy to impossible: the least size while the box allows it, its best corner when not."""
    problem = affine(33, batch=1, faces=True)
    base = expansion_of(problem)
    gaps, rows = problem.margins(0)
    x = problem.x[0].numpy()
    corner = [np.abs(g) @ np.where(g > 0, 1.0 - x, x) for g in rows]  # what the whole box gains on each piece
    seen = set()
    for raise_by in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 50.0):
        raised = gaps + raise_by
        expansion = dataclasses.replace(base, value=base.value - raise_by)
        step = eb.MinNorm(overshoot=0.0).solve(expansion, eb.LpBall(p=p, bounds=BOX), problem.x)
        delta = step.delta[0].numpy()
        possible = [c >= gap for c, gap in zip(corner, raised, strict=True)]
        assert bool(step.feasible) is any(possible)
        seen.add(bool(step.feasible))
        if any(possible):
            least = min(program(g, gap, x, p) for gap, g, ok in zip(raised, rows, possible, strict=True) if ok)
            assert np_norm(delta, p) == pytest.approx(least, rel=2e-6)
            assert max(g @ delta - gap for gap, g in zip(raised, rows, strict=True)) > -1e-9
        else:
            best = max(c - gap for c, gap in zip(corner, raised, strict=True))
            assert max(g @ delta - gap for gap, g in zip(raised, rows, strict=True)) == pytest.approx(best, rel=1e-9)
        assert (x + delta >= -1e-12).all()
        assert (x + delta <= 1 + 1e-12).all()
    assert seen == {True, False}


def test_min_norm_crosses_a_tie():
    """At a margin of exactly zero the argmax may still be the true class: the step must be more than nothing."""
    problem = affine(34, batch=1)
    gaps, _ = problem.margins(0)
    expansion = expansion_of(problem)
    tied = dataclasses.replace(expansion, value=expansion.value + float(gaps.min()))
    delta = eb.MinNorm().solve(tied, eb.LpBall(p=2.0), problem.x).delta
    moved = tied.value[0] + (tied.gradient[0] * delta[0]).sum(1)
    assert float(moved.max()) > 0
    assert float(delta.norm()) < 1e-10


def test_frozen_entries_and_groups():
    problem = affine(35)
    expansion = expansion_of(problem)
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    for formulation in (eb.NormConstrained(), eb.MinNorm()):
        delta = formulation.solve(expansion, eb.LpBall(p=2.0, eps=0.3, weights=weights), problem.x).delta
        assert (delta[:, [1, 3]] == 0).all()
        assert (delta[:, [0, 2, 4, 5, 6]] != 0).all()
    groups = eb.Groups([[0, 1, 2], [3, 4], [5, 6]], k=1, eps=0.3)
    delta = eb.NormConstrained().solve(expansion, groups, problem.x).delta
    for i in range(len(problem.x)):
        gaps, rows = problem.margins(i)
        # Every class with every group, by hand.
        reach = max(
            0.3 * np.abs(g[list(s)]).sum() - gap
            for gap, g in zip(gaps, rows, strict=True)
            for s in ((0, 1, 2), (3, 4), (5, 6))
        )
        assert max(rows @ delta[i].numpy() - gaps) == pytest.approx(reach, rel=1e-12)


def test_each_sample_is_solved_by_itself():
    problem = affine(36, batch=6, classes=5)
    expansion = expansion_of(problem)
    eps = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    for formulation in (eb.NormConstrained(), eb.MinNorm()):
        ball = eb.LpBall(p=1.5, eps=eps, bounds=BOX)
        whole = formulation.solve(expansion, ball, problem.x).delta
        for i in range(6):
            one = eb.Linear().expand(problem.model, eb.Margin(), problem.x[i : i + 1], problem.target[i : i + 1])
            alone = formulation.solve(one, ball.take(torch.tensor([i])), problem.x[i : i + 1]).delta
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("growth", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("formulation", [eb.NormConstrained(), eb.MinNorm()], ids=repr)
def test_candidates_never_leave_out_a_piece_that_can_win(formulation, growth):
    """Slopes that changed by at most the factor: whatever they became, the winner was among the candidates."""
    draw = generator(8)
    left_out = 0
    for _ in range(200):
        value = -torch.rand(1, 6, generator=draw, dtype=torch.float64) * 3
        slope = torch.rand(1, 6, generator=draw, dtype=torch.float64) + 0.1
        ball = eb.LpBall(p=2.0, eps=0.5)
        keep = formulation.candidates(value, slope, growth, ball, torch.zeros(1, 4, dtype=torch.float64))
        left_out += int((~keep).sum())
        for _ in range(20):
            now = slope * growth ** (2 * torch.rand(1, 6, generator=draw, dtype=torch.float64) - 1)
            best = (
                (value + 0.5 * now).argmax() if isinstance(formulation, eb.NormConstrained) else (value / now).argmax()
            )
            assert keep[0, best]
    assert left_out > 0


def test_overshoot_is_not_negative():
    for value in (-0.1, math.nan):
        with pytest.raises(eb.InputError, match="expected overshoot >= 0"):
            eb.MinNorm(overshoot=value)


def test_formulations_are_frozen_values():
    assert eb.MinNorm(0.1) == eb.MinNorm(overshoot=0.1)
    assert all(isinstance(f, Formulation) for f in (eb.MinNorm(), eb.NormConstrained(), eb.RandomPoint()))
    assert not eb.MinNorm().budgeted
    assert not eb.RandomPoint().uses_model
    point = torch.ones(2, 3)
    assert not eb.RandomPoint().solve(None, eb.LpBall(eps=0.1), point).delta.any()
