"""The sorted-breakpoint solvers against SciPy: linear programs by HiGHS, levels by bisection without any sorting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from epsball.sets._waterfill import fill_budget, fill_gap, greedy_fill, soft_threshold

PS = [1.05, 1.5, 2.0, 3.0, 10.0]
FEW = settings(max_examples=60, deadline=None, derandomize=True)


def problem(seed, size=9):
    """Weights with zeros and ties, capacities with zeros and without limit."""
    rng = np.random.default_rng(seed)
    w = np.round(rng.exponential(size=size), 1 if seed % 2 else 6)
    c = rng.uniform(0.0, 1.0, size=size)
    c[rng.uniform(size=size) < 0.25] = 0.0
    if seed % 3 == 0:
        c[rng.uniform(size=size) < 0.3] = math.inf
    return w, c


def call(function, *arrays, p=None):
    """Call a batched solver on one problem."""
    rows = [torch.tensor(np.asarray(a), dtype=torch.float64)[None] for a in arrays]
    return (function(*rows) if p is None else function(*rows, p))[0].numpy()


def level_by_bisection(w, c, p, measure, target):
    """t(l) = min(l w^(q-1), c) with measure(t) = target, found on log l; all of c where that falls short."""
    rate = np.where(w > 0, (w / max(w.max(), 1e-300)) ** (1.0 / (p - 1.0)), 0.0)

    def t(log_level):
        with np.errstate(over="ignore"):
            return np.where(w > 0, np.minimum(np.exp(log_level) * rate, c), 0.0)

    with np.errstate(over="ignore"):  # an entry without a capacity, at the far end of the bracket
        if measure(t(300.0)) <= target:
            return t(300.0)
        return t(brentq(lambda m: measure(t(m)) - target, -300.0, 300.0, xtol=1e-14, rtol=1e-14, maxiter=500))


@FEW
@given(seed=st.integers(0, 10_000), p=st.sampled_from(PS), eps=st.sampled_from([1e-3, 0.3, 0.9, 4.0]))
def test_fill_budget_is_the_level_found_by_bisection(seed, p, eps):
    w, c = problem(seed)
    expected = level_by_bisection(w, c, p, lambda t: float((t**p).sum()), eps**p)
    t = call(fill_budget, w, c, eps, p=p)
    assert (t >= 0).all()
    assert (t <= c).all()
    assert (t**p).sum() <= eps**p * (1 + 1e-12)
    assert w @ t == pytest.approx(w @ expected, rel=1e-9, abs=1e-12)
    assert t == pytest.approx(expected, abs=1e-8)


@FEW
@given(seed=st.integers(0, 10_000), p=st.sampled_from(PS), share=st.sampled_from([1e-4, 0.3, 0.9, 1.5]))
def test_fill_gap_is_the_level_found_by_bisection(seed, p, share):
    w, c = problem(seed)
    gap = share * float(w @ np.where(np.isfinite(c), c, 1.0))
    expected = level_by_bisection(w, c, p, lambda t: float(w @ t), gap) if gap > 0 else np.zeros_like(w)
    t = call(fill_gap, w, c, gap, p=p)
    assert (t >= 0).all()
    assert (t <= c).all()
    assert w @ t == pytest.approx(w @ expected, rel=1e-12, abs=1e-15)
    assert t == pytest.approx(expected, rel=1e-7, abs=1e-9)


@FEW
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 0.3, 0.9, 40.0]))
def test_p1_and_p_inf_are_linear_programs(seed, eps):
    w, c = problem(seed)
    n, upper = len(w), [(0.0, None if math.isinf(v) else v) for v in c]
    knapsack = -linprog(-w, A_ub=np.ones((1, n)), b_ub=[eps], bounds=upper).fun
    t = call(fill_budget, w, c, eps, p=1.0)
    assert w @ t == pytest.approx(knapsack, rel=1e-9, abs=1e-12)
    assert t.sum() <= eps * (1 + 1e-12)
    assert (t <= c).all()
    box = -linprog(-w, bounds=[(0.0, min(v, eps)) for v in c]).fun
    assert w @ call(fill_budget, w, c, eps, p=math.inf) == pytest.approx(box, rel=1e-9, abs=1e-12)

    gap = 0.6 * float(w @ np.where(np.isfinite(c), c, 1.0))
    if gap > 1e-3:
        least = linprog(np.ones(n), A_ub=-w[None], b_ub=[-gap], bounds=upper)
        t = call(fill_gap, w, c, gap, p=1.0)
        assert t.sum() == pytest.approx(least.fun, rel=1e-8)
        assert w @ t >= gap * (1 - 1e-12)
        # min r subject to w.t >= gap, t <= r: one more variable.
        tied = np.hstack([np.eye(n), -np.ones((n, 1))])
        least = linprog(
            np.r_[np.zeros(n), 1.0],
            A_ub=np.vstack([np.r_[-w, 0.0], tied]),
            b_ub=np.r_[-gap, np.zeros(n)],
            bounds=[*upper, (0.0, None)],
        )
        t = call(fill_gap, w, c, gap, p=math.inf)
        assert t.max() == pytest.approx(least.fun, rel=1e-8)
        assert w @ t >= gap * (1 - 1e-12)


@FEW
@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 1e-3, 0.5, 3.0]), spread=st.sampled_from([0.0, 1.0, 4.0]))
def test_soft_threshold_is_the_threshold_found_by_bisection(seed, eps, spread):
    rng = np.random.default_rng(seed)
    z, c = problem(seed)
    w = np.exp(spread * rng.normal(size=len(z)))
    w[rng.uniform(size=len(z)) < 0.2] = 0.0
    inverse = np.where(w > 0, 1.0 / np.where(w > 0, w, 1.0), 0.0)

    def t(level):
        return np.where(w > 0, np.clip(z - level * inverse, 0.0, c), 0.0)

    expected = t(0.0)
    if expected @ inverse > eps:
        top = float((z * w).max())
        root = brentq(lambda v: t(v) @ inverse - eps, 0.0, 1.1 * top, xtol=1e-16, rtol=1e-15) if eps else 1.1 * top
        expected = t(root)
    found = call(soft_threshold, z, c, w, eps)
    assert found @ inverse <= eps * (1 + 1e-12)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_soft_threshold_keeps_a_small_budget_beside_large_entries(scale):
    z = scale * (1.0 + 1e-9 * np.arange(4))
    eps = 1e-9 * scale  # the last entry takes it all: it leads by exactly that much
    found = call(soft_threshold, z, np.full(4, math.inf), np.ones(4), eps)
    assert found / eps == pytest.approx([0.0, 0.0, 0.0, 1.0], abs=1e-6)


def test_greedy_fill_takes_the_first_of_equals_and_shares_the_rest():
    t = call(greedy_fill, [1.0, 2.0, 2.0, 0.0], [1.0, 0.25, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0], 0.6)
    assert t == pytest.approx([0.0, 0.25, 0.35, 0.0])
    t = call(greedy_fill, [1.0, 2.0, 2.0, 0.0], [1.0, 0.25, 0.5, 9.0], [1.0, 1.0, 1.0, 1.0], 100.0)
    assert t == pytest.approx([1.0, 0.25, 0.5, 0.0])


@pytest.mark.parametrize("p", [1.0, *PS, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_rows(p, dtype):
    w = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e-30, 2e-30], [1e30, 2e30], [1.0, 0.0]], dtype=dtype)
    c = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [math.inf, math.inf]], dtype=dtype)
    t = fill_budget(w, c, torch.full((5,), 0.5, dtype=dtype), p)
    assert bool((t[:2] == 0).all())
    assert torch.allclose(t[2], t[3])
    assert torch.allclose(t[4], torch.tensor([0.5, 0.0], dtype=dtype))
    assert bool((fill_budget(w, c, torch.zeros(5, dtype=dtype), p) == 0).all())
    t = fill_gap(w, c, torch.tensor([1.0, 1.0, 1e-30, 1e30, 0.25], dtype=dtype), p)
    assert bool((t[:2] == 0).all())
    assert torch.allclose(t[2], t[3])
    assert torch.allclose(t[4], torch.tensor([0.25, 0.0], dtype=dtype))
    assert torch.allclose(
        (t * w).sum(1)[2:] / torch.tensor([1e-30, 1e30, 0.25], dtype=dtype), torch.ones(3, dtype=dtype)
    )
    assert fill_budget(w[:0], c[:0], torch.zeros(0, dtype=dtype), p).shape == (0, 2)
    assert fill_gap(w[:0], c[:0], torch.zeros(0, dtype=dtype), p).shape == (0, 2)


@pytest.mark.parametrize("p", [1.001, 1.04, 1.2, 1.45, 1.5, 2.0])
def test_one_entry_that_can_move_takes_the_budget_and_no_more(p):
    """Rounding may put the level behind the entry's stop; it must not set the entry free."""
    rng = np.random.default_rng(0)
    w = torch.tensor(rng.exponential(size=(2000, 6)))
    cap = torch.zeros_like(w)
    cap[:, 2] = 1.0
    eps = torch.tensor(rng.uniform(0.01, 0.9, size=2000))
    t = fill_budget(w, cap, eps, p)
    assert torch.allclose(t[:, 2], eps, rtol=1e-12)
    assert torch.equal(t.sum(1), t[:, 2])
