"""LpBall against certificates of optimality: a feasible point and a bound of weak duality that meet, computed in NumPy.

With u = |eta| / w, a = w |g| (so <g, eta> = a.u) and capacities c, every split a = s + (a - s), 0 <= s <= a, proves
  a.u <= eps ||s||_q + (a - s).c           for every u with ||u||_p <= eps, 0 <= u <= c   (lmo, support), and
  ||u||_p >= (gap - (a - s).c) / ||s||_q   for every u with a.u >= gap, 0 <= u <= c        (smallest).
A split that meets the returned point proves it optimal, whatever way it was found. P is the projection of z iff
<z - P, y - P> <= 0 for all y in the set: the first bound again, with g = z - P.
"""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epsball.errors import InputError
from epsball.randomness import Generators
from epsball.sets import LpBall

PS = [1.0, 1.05, 1.5, 2.0, 3.0, 10.0, math.inf]
GRID = [(bounds, weighted) for bounds in (None, (0.0, 1.0), "tensor") for weighted in (False, True)]
SHAPE = (2, 3, 4)


# ------------------------------------------------------------------------------------------------ the oracle, in NumPy


def best_split(value, a, c, p):
    """Minimise value(log s), vectorised over rows, on the curve s = min(a, mu c^(p-1)) that holds the optimum.

    First over its kinks, then on finer and finer grids around the best one. Whatever comes out is a valid split.
    """
    power = (p - 1.0) * np.log(c)
    kinks = np.unique(np.log(a) - power)
    levels = np.unique(np.concatenate([kinks[:1] - 60.0, *np.linspace(kinks[:-1], kinks[1:], 9), kinks]))
    least = math.inf
    for _ in range(9):
        values = value(np.minimum(np.log(a), levels[:, None] + power))
        best = int(np.argmin(values))
        least = min(least, values[best])
        gap = 1e-9 * (levels[-1] - levels[0])  # two kinks that differ by rounding are one
        low = levels[levels < levels[best] - gap].max(initial=levels[0])
        high = levels[levels > levels[best] + gap].min(initial=levels[-1])
        levels = np.linspace(low, high, 21)
    return least


def dual_norm(log_s, p):
    if p == 1.0:
        return np.exp(log_s.max(1))
    q = p / (p - 1.0)
    top = log_s.max(1, keepdims=True)
    return np.exp(top[:, 0] + np.log(np.exp(q * (log_s - top)).sum(1)) / q)


def rest(a, c, log_s):
    """(a - s).c for each row."""
    return np.where(log_s < np.log(a), (a - np.exp(log_s)) * c, 0.0).sum(1)


def support_bound(a, c, eps, p):
    """An upper bound of a.u over ||u||_p <= eps, 0 <= u <= c; tight at the optimum."""
    keep = (a > 0) & (c > 0)
    a, c = a[keep], np.minimum(c[keep], eps)  # ||u||_p <= eps implies u <= eps
    if not len(a) or eps == 0:
        return 0.0
    if p == math.inf:
        return float((a * c).sum())
    return best_split(lambda s: eps * dual_norm(s, p) + rest(a, c, s), a, c, p)


def smallest_bound(a, c, gap, p):
    """A lower bound of ||u||_p over a.u >= gap, 0 <= u <= c; tight at the optimum."""
    keep = (a > 0) & (c > 0)
    a, c = a[keep], np.minimum(c[keep], gap / a[keep])  # a u_i beyond gap / a_i alone would do: no optimum needs it
    if p == math.inf:  # ||u||_inf = r reaches sum a min(c, r): piecewise linear and increasing in r
        before = (0.0, 0.0)
        for r in np.sort(c):
            reach = float((a * np.minimum(c, r)).sum())
            if reach >= gap:
                return before[0] + (r - before[0]) * (gap - before[1]) / (reach - before[1])
            before = (r, reach)
        return before[0]
    return -best_split(lambda s: -(gap - rest(a, c, s)) / dual_norm(s, p), a, c, p)


# ----------------------------------------------------------------------------------------------------------- the cases


def batch(seed, shape=SHAPE, dtype=torch.float64, face=0.6):
    """Inputs in [0, 1] with 60 % of the entries on a face; gradients with a zero row, ties, zeros, one entry."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(7, *shape))
    side = rng.uniform(size=x.shape)
    x = np.where(side < face / 2, 0.0, np.where(side < face, 1.0, x))
    g = rng.normal(size=x.shape)
    g[1] = 0.0
    g[2] = np.sign(g[2])
    g[3][rng.uniform(size=shape) < 0.5] = 0.0
    g[4] = 0.0
    g[4].reshape(-1)[rng.integers(g[4].size)] = -2.5
    g[5] = np.round(g[5])
    return torch.tensor(x, dtype=dtype), torch.tensor(g, dtype=dtype)


def make_ball(p, bounds, weighted, seed, eps, shape=SHAPE, dtype=torch.float64):
    rng = np.random.default_rng(seed + 1000)
    weights = None
    if weighted:
        w = rng.uniform(0.2, 3.0, size=shape)
        w.reshape(-1)[:: max(2, w.size // 5)] = 0.0
        weights = torch.tensor(w, dtype=dtype)
    if bounds == "tensor":
        lo = torch.tensor(-rng.uniform(0.0, 0.3, size=shape), dtype=dtype)
        bounds = (lo, lo + 1.3 + torch.tensor(rng.uniform(0.0, 0.5, size=shape), dtype=dtype))
    return LpBall(p, eps, bounds, weights)


def standard(ball, g, x):
    """The problem of one batch in the oracle's form: a = |w g| and c = room / w, (B, M) in float64, and w."""
    x, g = x.double(), g.double()
    w = torch.ones_like(x[:1]) if ball.weights is None else ball.weights.double()[None]
    w = w.expand_as(x).flatten(1).numpy()
    room = np.full(w.shape, math.inf)
    if ball.bounds is not None:
        lo, hi = (torch.as_tensor(b, dtype=torch.float64) for b in ball.bounds)
        room = torch.where(g > 0, hi - x, x - lo).clamp_min(0.0).flatten(1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.where(w > 0, room / w, 0.0)
    return np.abs(g.flatten(1).numpy()) * w, c, w


def size(eta, w, p):
    """||eta / w||_p in NumPy, inf where a frozen entry moves."""
    u = np.array([0.0 if e == 0 else (abs(e) / v if v > 0 else math.inf) for e, v in zip(eta, w, strict=True)])
    if not u.any() or p == math.inf:
        return u.max(initial=0.0)
    return u.max() * ((u / u.max()) ** p).sum() ** (1.0 / p)


def check_feasible(ball, eta, x, tol=1e-12):
    """In the ball and in the box, computed apart from `contains`; and `contains` agrees."""
    eps = torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(x)).numpy()
    _, _, w = standard(ball, torch.zeros_like(x), x)
    flat = eta.double().flatten(1).numpy()
    for i in range(len(x)):
        assert size(flat[i], w[i], ball.p) <= eps[i] * (1 + tol) + 1e-300
    if ball.bounds is not None:
        lo, hi = (torch.as_tensor(b, dtype=torch.float64) for b in ball.bounds)
        moved = x.double() + eta.double()
        assert bool((moved >= torch.minimum(lo, x.double()) - tol).all())
        assert bool((moved <= torch.maximum(hi, x.double()) + tol).all())
    assert bool(ball.contains(eta, x).all())


def check_lmo(ball, g, x, tol=1e-9, feasible=1e-12):
    eta = ball.lmo(g, x)
    assert eta.shape == x.shape
    assert eta.dtype == x.dtype
    check_feasible(ball, eta, x, feasible)
    assert bool((eta[g == 0] == 0).all())
    a, c, _ = standard(ball, g, x)
    gain = (g.double() * eta.double()).flatten(1).sum(1).numpy()
    support = ball.support(g, x).double().numpy()
    eps = torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(x)).numpy()
    for i in range(len(x)):
        bound = support_bound(a[i], c[i], eps[i], ball.p)
        assert gain[i] >= bound * (1 - tol), (i, gain[i], bound)
        assert support[i] == pytest.approx(bound, rel=tol, abs=1e-300)


def check_smallest(ball, g, gap, x, tol=1e-9):
    eta = ball.smallest(g, gap, x)
    assert eta.shape == x.shape
    assert eta.dtype == x.dtype
    a, c, w = standard(ball, g, x)
    flat, gains = eta.double().flatten(1).numpy(), (g.double() * eta.double()).flatten(1).sum(1).numpy()
    for i in range(len(x)):
        need = float(gap[i])
        if need <= 0 or not a[i].any():
            assert not flat[i].any()
            continue
        with np.errstate(invalid="ignore"):
            whole = np.where(a[i] > 0, a[i] * c[i], 0.0).sum()
        assert (np.abs(flat[i]) <= c[i] * w[i] * (1 + tol)).all()
        assert gains[i] >= min(need, whole) * (1 - tol), (i, gains[i], need, whole)
        if need < whole:
            assert size(flat[i], w[i], ball.p) <= smallest_bound(a[i], c[i], need, ball.p) * (1 + tol)


def check_project(ball, z, x, tol=1e-11, feasible=1e-12):
    """Feasible, and no y in the set has <z - P, y - P> > 0; so ||P - exact||^2 is at most the slack found."""
    eta = ball.project(z, x)
    assert eta.shape == x.shape
    assert eta.dtype == x.dtype
    check_feasible(ball, eta, x, feasible)
    rest_of = (z.double() - eta.double()).reshape(x.shape)
    a, c, _ = standard(ball, rest_of, x)
    done = (rest_of * eta.double()).flatten(1).sum(1).numpy()
    eps = torch.as_tensor(ball.eps, dtype=torch.float64).expand(len(x)).numpy()
    for i in range(len(x)):
        bound = support_bound(a[i], c[i], eps[i], ball.p)
        assert bound - done[i] <= tol * max(1.0, bound), (i, bound - done[i])


# ----------------------------------------------------------------------------------------- every map, every combination


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize(("bounds", "weighted"), GRID)
def test_lmo_and_support_meet_the_dual_bound(p, bounds, weighted):
    x, g = batch(1)
    for eps in (0.35, torch.linspace(0.01, 3.0, len(x), dtype=torch.float64)):
        check_lmo(make_ball(p, bounds, weighted, 1, eps), g, x)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize(("bounds", "weighted"), GRID)
def test_smallest_meets_the_dual_bound(p, bounds, weighted):
    x, g = batch(2)
    ball = make_ball(p, bounds, weighted, 2, 1e-3)  # eps must not matter
    for gap in (torch.linspace(-0.5, 4.0, len(x)).double(), torch.full((len(x),), 0.3).double()):
        check_smallest(ball, g, gap, x)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize(("bounds", "weighted"), GRID)
def test_project_satisfies_the_variational_inequality(p, bounds, weighted):
    x, g = batch(3)
    for eps in (0.35, torch.linspace(0.01, 3.0, len(x), dtype=torch.float64)):
        ball = make_ball(p, bounds, weighted, 3, eps)
        check_project(ball, g, x)
        check_project(ball, 0.05 * g, x)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize(("bounds", "weighted"), GRID)
def test_float32_agrees_to_its_precision(p, bounds, weighted):
    x, g = batch(4, dtype=torch.float32)
    ball = make_ball(p, bounds, weighted, 4, 0.35, dtype=torch.float32)
    check_lmo(ball, g, x, tol=5e-6, feasible=2e-6)
    check_smallest(ball, g, torch.linspace(-0.5, 4.0, len(x)), x, tol=5e-6)
    check_project(ball, g, x, tol=2e-5, feasible=2e-6)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1, 3), (3, 2, 2, 2)])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_every_sample_shape(p, shape):
    x, g = batch(5, shape)
    ball = make_ball(p, (0.0, 1.0), len(shape) > 1, 5, 0.3, shape)
    check_lmo(ball, g, x)
    check_smallest(ball, g, torch.full((len(x),), 0.2).double(), x)
    check_project(ball, g, x)
    assert bool(ball.contains(ball.sample(x, Generators.of(0, torch.arange(len(x)))), x).all())


# --------------------------------------------------------------------------------------------- CVXPY, a second opinion


def cvxpy_solve(kind, ball, x, g, gap, eps):
    """One sample through CVXPY and CLARABEL: the optimal value."""
    lo, hi = (-x, 1.0 - x) if ball.bounds is not None else (None, None)
    w = np.ones_like(x) if ball.weights is None else ball.weights.numpy().reshape(-1)
    u = cp.Variable(len(x))
    eta, length = cp.multiply(w, u), cp.pnorm(u, ball.p)
    box = [] if lo is None else [eta >= lo, eta <= hi]
    problem = {
        "lmo": lambda: cp.Problem(cp.Maximize(g @ eta), [length <= eps, *box]),
        "smallest": lambda: cp.Problem(cp.Minimize(length), [g @ eta >= gap, *box]),
        "project": lambda: cp.Problem(cp.Minimize(cp.sum_squares(eta - g)), [length <= eps, *box]),
    }[kind]()
    for tol in (1e-9, 1e-8):
        problem.solve(solver="CLARABEL", **dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], tol))
        if problem.status == "optimal":
            return problem.value
    raise RuntimeError(problem.status)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # such a solution is not used, see cvxpy_solve
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_cvxpy(p, weighted):
    x, g = batch(6, (3, 2))
    x, g = x[[0, 2, 6]], g[[0, 2, 6]]
    ball = make_ball(p, (0.0, 1.0), weighted, 6, 0.4, (3, 2))
    whole = LpBall(math.inf, 1.0, (0.0, 1.0))
    frozen = torch.ones(3, 2).double() if ball.weights is None else (ball.weights > 0).double()
    gap = 0.4 * whole.support(g * frozen, x)
    lmo, smallest, project = ball.support(g, x), ball.size(ball.smallest(g, gap, x)), ball.project(g, x)
    for i in range(len(x)):
        args = x[i].flatten().numpy(), g[i].flatten().numpy(), float(gap[i]), 0.4
        assert float(lmo[i]) == pytest.approx(cvxpy_solve("lmo", ball, *args), rel=1e-6, abs=1e-8)
        assert float(smallest[i]) == pytest.approx(cvxpy_solve("smallest", ball, *args), rel=1e-6, abs=1e-8)
        distance = float((project[i] - g[i]).square().sum())
        assert distance == pytest.approx(cvxpy_solve("project", ball, *args), rel=1e-6, abs=1e-8)


# ---------------------------------------------------------------------------------------------------------- properties

CASE = {
    "seed": st.integers(0, 10_000),
    "p": st.sampled_from(PS) | st.floats(1.001, 30.0),
    "bounded": st.booleans(),
    "weighted": st.booleans(),
    "eps": st.sampled_from([0.0, 1e-6, 0.1, 0.7, 5.0]),
}
FEW = settings(max_examples=25, deadline=None, derandomize=True)


def draw(seed, p, bounded, weighted, eps, shape=(3, 4)):
    x, g = batch(seed, shape)
    return make_ball(p, (0.0, 1.0) if bounded else None, weighted, seed, eps, shape), x, g


@FEW
@given(**CASE)
def test_projection_is_idempotent_and_not_expansive(seed, p, bounded, weighted, eps):
    ball, x, z = draw(seed, p, bounded, weighted, eps)
    other = torch.tensor(np.random.default_rng(seed).normal(size=z.shape))
    a, b = ball.project(z, x), ball.project(other, x)
    assert bool(ball.contains(a, x).all())
    assert torch.allclose(ball.project(a, x), a, rtol=0, atol=1e-12)
    assert bool(((a - b).flatten(1).norm(dim=1) <= (z - other).flatten(1).norm(dim=1) + 1e-12).all())
    small = 1e-9 * ball.sample(x, Generators.of(seed, torch.arange(len(x))))
    assert torch.allclose(ball.project(small, x), small, rtol=0, atol=1e-15)


@FEW
@given(**CASE)
def test_projection_is_nearer_than_every_sampled_point(seed, p, bounded, weighted, eps):
    ball, x, z = draw(seed, p, bounded, weighted, eps)
    nearest = ball.project(z, x)
    for step in range(4):
        y = ball.sample(x, Generators.of(seed, torch.arange(len(x)), step), boundary=step % 2 == 1)
        assert bool(ball.contains(y, x).all())
        assert bool((((z - nearest) * (y - nearest)).flatten(1).sum(1) <= 1e-11).all())


@FEW
@given(**CASE)
def test_support_is_convex_and_positively_homogeneous(seed, p, bounded, weighted, eps):
    ball, x, g = draw(seed, p, bounded, weighted, eps)
    other = torch.tensor(np.random.default_rng(seed).normal(size=g.shape))
    one, two = ball.support(g, x), ball.support(other, x)
    assert bool((ball.support(g + other, x) <= one + two + 1e-12).all())
    assert torch.allclose(ball.support(7.0 * g, x), 7.0 * one, rtol=1e-12)
    y = ball.sample(x, Generators.of(seed, torch.arange(len(x))), boundary=True)
    assert bool(((g * y).flatten(1).sum(1) <= one + 1e-12).all())
    eta = ball.lmo(g, x)
    assert bool(ball.contains(eta, x).all())
    assert torch.allclose((g * eta).flatten(1).sum(1), one, rtol=1e-12, atol=1e-300)


@FEW
@given(**{k: v for k, v in CASE.items() if k != "eps"}, share=st.floats(0.01, 0.95))
def test_smallest_and_support_undo_each_other(seed, p, bounded, weighted, share):
    """At eps = size(smallest(g, gap)) the support is the gap: the two formulations are one curve."""
    ball, x, g = draw(seed, p, bounded, weighted, 1.0)
    whole = LpBall(math.inf, 1.0, ball.bounds)
    frozen = 1.0 if ball.weights is None else (ball.weights > 0).double()
    gap = share * whole.support(g * frozen, x)
    eta = ball.smallest(g, gap, x)
    keep = gap > 0
    again = make_ball(p, (0.0, 1.0) if bounded else None, weighted, seed, ball.size(eta), (3, 4))
    assert torch.allclose(again.support(g, x)[keep], gap[keep], rtol=1e-9)
    assert bool((eta[~keep] == 0).all())


@FEW
@given(**CASE)
def test_a_sample_does_not_depend_on_its_batch(seed, p, bounded, weighted, eps):
    ball, x, g = draw(seed, p, bounded, weighted, torch.linspace(0.0, eps, 7).double())
    gap = torch.linspace(-0.1, 1.0, 7).double()
    ids = torch.arange(7) * 11
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    maps = {
        "lmo": lambda b, i: b.lmo(g[i], x[i]),
        "support": lambda b, i: b.support(g[i], x[i]),
        "smallest": lambda b, i: b.smallest(g[i], gap[i], x[i]),
        "project": lambda b, i: b.project(g[i], x[i]),
        "sample": lambda b, i: b.sample(x[i], Generators.of(seed, ids[i])),
    }
    for name, compute in maps.items():
        together = compute(ball, torch.arange(7))
        assert torch.allclose(compute(ball.take(order), order), together[order], rtol=1e-13, atol=0), name
        alone = torch.cat([compute(ball.take(torch.tensor([i])), torch.tensor([i])) for i in range(7)])
        assert torch.allclose(alone, together, rtol=1e-13, atol=1e-15), name


# ------------------------------------------------------------------------------------------------------------ extremes


@pytest.mark.parametrize("p", [1.001, 1000.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_extreme_orders(p, weighted, bounds):
    x, g = batch(7)
    ball = make_ball(p, bounds, weighted, 7, 0.3)
    check_lmo(ball, g, x)
    check_smallest(ball, g, torch.full((len(x),), 0.3).double(), x)
    check_project(ball, g, x, tol=1e-9)


@pytest.mark.parametrize("p", [*PS, 1.001, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_gradients_of_any_magnitude_give_the_same_answer(p, dtype, bounds):
    x, g = batch(8, dtype=dtype)
    ball, tol = LpBall(p, 0.3, bounds), 2e-5 if dtype == torch.float32 else 1e-12
    reference = ball.lmo(g, x)
    assert bool((reference != 0).any())
    for scale in (1e30, 1e-30):
        assert torch.allclose(ball.lmo(g * scale, x), reference, rtol=tol, atol=tol * 0.3)
        gap = 0.3 * ball.support(g, x)
        small = ball.smallest(g, gap, x)
        assert torch.allclose(ball.smallest(g * scale, gap * scale, x), small, rtol=tol, atol=tol * 0.3)
        assert torch.allclose(ball.support(g * scale, x) / scale, ball.support(g, x), rtol=tol)


@pytest.mark.parametrize("p", [*PS, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_projection_of_huge_and_tiny_points(p, dtype, weighted):
    x, z = batch(9, dtype=dtype)
    ball = make_ball(p, (0.0, 1.0), weighted, 9, 0.3, dtype=dtype)
    far = ball.project(z * 1e30, x)
    assert bool(far.isfinite().all())
    assert bool(ball.contains(far, x).all())
    # Far away the projection tends to the lmo: no point of the set has a larger product with z.
    assert torch.allclose((z * far).flatten(1).sum(1), ball.support(z, x), rtol=1e-4)
    near, expected = ball.project(z * 1e-30, x), (z * 1e-30).clamp(*ball.room(x))
    if ball.weights is not None:
        expected = expected * (ball.weights > 0)
    assert torch.equal(near, expected)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_budget_and_tiny_budgets(p, weighted):
    x, g = batch(10)
    none = make_ball(p, (0.0, 1.0), weighted, 10, 0.0)
    assert bool((none.lmo(g, x) == 0).all())
    assert bool((none.support(g, x) == 0).all())
    assert bool(none.contains(none.project(g, x), x).all())
    assert float(none.project(g, x).abs().max()) <= 1e-15
    assert bool(none.contains(torch.zeros_like(x), x).all())
    for bounds in (None, (0.0, 1.0)):
        check_lmo(make_ball(p, bounds, weighted, 10, 1e-12), g, x)
        check_project(make_ball(p, bounds, weighted, 10, 1e-12), g, x)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("weighted", [False, True])
def test_unlimited_budget_inside_bounds_is_the_corner(p, weighted):
    x, g = batch(11)
    ball = make_ball(p, (0.0, 1.0), weighted, 11, math.inf)
    corner = torch.where(g > 0, 1.0 - x, torch.where(g < 0, -x, 0.0))
    if ball.weights is not None:
        corner = corner * (ball.weights > 0)
    assert torch.allclose((g * ball.lmo(g, x)).flatten(1).sum(1), (g * corner).flatten(1).sum(1), rtol=1e-12)
    assert bool(ball.contains(ball.lmo(g, x), x).all())
    free = torch.ones_like(x) if ball.weights is None else (ball.weights > 0).double().expand_as(x)
    assert torch.equal(ball.project(g, x), torch.clamp(g, -x, 1.0 - x) * free)
    assert not bool(ball.contains(torch.full_like(x, 2.0), x).any())
    if ball.weights is not None:
        moved = (1e-3 * (ball.weights == 0)).expand_as(x)
        assert not bool(LpBall(p, math.inf, None, ball.weights).contains(moved, x).any())


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_unlimited_budget_with_one_infinite_bound_is_refused_where_it_matters(p):
    ball, x = LpBall(p=p, bounds=(0.0, math.inf)), torch.full((1, 2), 0.5)
    with pytest.raises(InputError, match="finite eps"):
        ball.lmo(torch.tensor([[1.0, 0.0]]), x)
    assert torch.allclose(ball.lmo(torch.tensor([[-1.0, 0.0]]), x), torch.tensor([[-0.5, 0.0]]))


@pytest.mark.parametrize("p", PS)
def test_unlimited_budget_without_bounds_is_refused(p):
    x, g = batch(12)
    with pytest.raises(InputError, match="finite eps"):
        LpBall(p, math.inf).lmo(g, x)
    with pytest.raises(InputError, match="finite eps"):
        LpBall(p, math.inf).sample(x, Generators.of(0, torch.arange(len(x))))
    assert torch.equal(LpBall(p, math.inf).project(g, x), g)


@pytest.mark.parametrize("p", PS)
def test_all_entries_capped_and_entries_without_room(p):
    x = torch.tensor([[1.0, 0.0, 1.0], [0.999, 1.0, 0.001], [0.5, 0.5, 0.5]], dtype=torch.float64)
    g = torch.tensor([[1.0, -2.0, 0.5], [1.0, 1.0, -1.0], [3.0, -1.0, 0.0]], dtype=torch.float64)
    ball = LpBall(p, 10.0, (0.0, 1.0))
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.001, 0.0, -0.001], [0.5, -0.5, 0.0]], dtype=torch.float64)
    assert torch.allclose(ball.lmo(g, x), expected, atol=1e-15)
    assert torch.allclose(ball.smallest(g, torch.full((3,), 100.0).double(), x), expected, atol=1e-15)
    assert torch.equal(ball.project(10 * g, x), torch.clamp(10 * g, -x, 1 - x))


@pytest.mark.parametrize("p", PS)
def test_inputs_slightly_outside_the_bounds_may_only_come_back(p):
    x = torch.tensor([[1.0 + 1e-6, -1e-6, 0.5]], dtype=torch.float64)
    g = torch.tensor([[1.0, -1.0, 0.1]], dtype=torch.float64)
    ball = LpBall(p, 0.2, (0.0, 1.0))
    for eta in (ball.lmo(g, x), ball.project(g, x), ball.smallest(g, torch.tensor([1.0]).double(), x)):
        assert float(eta[0, 0]) == 0.0
        assert float(eta[0, 1]) == 0.0
        assert float(eta[0, 2]) > 0.05
    back = ball.lmo(-g, x)
    assert float(back[0, 0]) <= 0.0 <= float(back[0, 1])
    assert bool(ball.contains(back, x).all())


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_batch(p, weighted):
    x = torch.zeros(0, 2, 3)
    ball = make_ball(p, (0.0, 1.0), weighted, 13, 0.1, (2, 3), torch.float32)
    for eta in (ball.lmo(x, x), ball.project(x, x), ball.smallest(x, torch.zeros(0), x)):
        assert eta.shape == x.shape
    assert ball.sample(x, Generators.of(0, torch.zeros(0, dtype=torch.int64))).shape == x.shape
    assert ball.support(x, x).shape == ball.size(x).shape == ball.contains(x, x).shape == (0,)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_non_finite_gradient_leaves_the_other_samples_alone(p, bounds):
    x, g = batch(14)
    ball = LpBall(p, 0.3, bounds)
    bad = g.clone()
    bad[3, 0, 0, 0] = math.nan
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(ball.lmo(bad, x)[others], ball.lmo(g, x)[others])
    gap = torch.full((7,), 0.2).double()
    assert torch.equal(ball.smallest(bad, gap, x)[others], ball.smallest(g, gap, x)[others])
    assert torch.equal(ball.project(bad, x)[others], ball.project(g, x)[others])


def test_of_equal_entries_at_p1_the_first_is_taken():
    g = torch.tensor([[0.0, -2.0, 2.0, 2.0]])
    x = torch.tensor([[0.5, 0.1, 0.5, 0.5]])
    assert torch.allclose(LpBall(1.0, 0.3).lmo(g, x), torch.tensor([[0.0, -0.3, 0.0, 0.0]]))
    assert torch.allclose(LpBall(1.0, 0.3, (0.0, 1.0)).lmo(g, x), torch.tensor([[0.0, -0.1, 0.2, 0.0]]))


# ------------------------------------------------------------------------------------------- contains, take, refuse


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contains_tells_just_outside_from_just_inside(p, dtype):
    x, g = batch(15, dtype=dtype)
    ball = LpBall(p, 0.4)
    eta, keep = ball.lmo(g, x), (g != 0).flatten(1).any(1)
    assert torch.equal(ball.contains(eta * 1.01, x), ~keep)
    assert bool(ball.contains(eta * 0.999, x).all())
    # The subtraction (x + eta) - x that a caller makes rounds; it must not be held against the perturbation.
    assert bool(ball.contains((x + eta) - x, x).all())
    box = LpBall(p, 100.0, (0.0, 1.0))
    assert bool(box.contains(1.0 - x, x).all())
    assert not bool(box.contains(1.001 - x, x).any())
    assert not bool(ball.contains(torch.full_like(x, math.nan), x).any())
    weighted = LpBall(p, 0.4, None, torch.full(SHAPE, 0.5, dtype=dtype))
    assert torch.equal(weighted.contains(0.51 * eta, x), ~keep)
    assert bool(weighted.contains(0.499 * eta, x).all())


def test_budgets_per_sample_follow_take_and_scaled():
    x, g = batch(16)
    ball = LpBall(2.0, torch.arange(7).double())
    assert torch.equal(ball.take(torch.tensor([6, 0, 6])).eps, torch.tensor([6.0, 0.0, 6.0]).double())
    assert LpBall(2.0, 0.5).take(torch.tensor([0])).eps == 0.5
    assert torch.allclose(ball.size(ball.scaled(0.5).lmo(g, x))[[0, 2]], 0.5 * ball.eps[[0, 2]])
    assert torch.allclose(ball.size(ball.step(0.1, g).lmo(g, x))[[2, 6]], 0.1 * ball.eps[[2, 6]])
    with pytest.raises(InputError, match=r"each of the 7 samples, got 3"):
        LpBall(2.0, torch.ones(3)).lmo(g, x)
    with pytest.raises(InputError, match="shape of one sample"):
        LpBall(2.0, 1.0, None, torch.ones(5)).lmo(g, x)


@pytest.mark.parametrize("arguments", [{"p": 0.5}, {"p": math.nan}, {"p": "2"}, {"eps": -1.0}, {"eps": "a"}])
def test_a_set_without_meaning_is_refused(arguments):
    with pytest.raises(InputError, match=r"expected .* got"):
        LpBall(**arguments)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 7.0])
def test_frozen_entries_take_nothing_of_a_random_draw(p):
    """On the boundary the free entries spend the whole budget; inside, draws are as in the ball of these alone."""
    w = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    x = torch.zeros(4000, 5, dtype=torch.float64)
    ball = LpBall(p=p, eps=0.7, weights=w)
    streams = Generators.of(0, torch.arange(4000))
    edge = ball.sample(x, streams, boundary=True)
    torch.testing.assert_close(ball.size(edge), torch.full((4000,), 0.7, dtype=torch.float64))
    inside = ball.size(ball.sample(x, streams)) / 0.7
    # Uniform in a ball of three dimensions: the norm to the power 3 is uniform in [0, 1].
    assert float(inside.pow(3).mean()) == pytest.approx(0.5, abs=0.02)
    assert float(inside.pow(3).square().mean()) == pytest.approx(1.0 / 3.0, abs=0.02)


@FEW
@given(**CASE, share=st.floats(0.01, 3.0))
def test_a_projected_step_is_the_lmo_added_and_projected(seed, p, bounded, weighted, eps, share):
    ball, x, g = draw(seed, p, bounded, weighted, eps)
    eta = ball.sample(x, Generators.of(seed, torch.arange(len(x))))
    before = g.clone(), x.clone(), eta.clone()
    for limit in (ball, ball.with_eps(torch.full((len(x),), eps, dtype=x.dtype))):
        expected = limit.project(eta + limit.scaled(share).lmo(g, x + eta), x)
        assert torch.allclose(limit.ascend(g, share, x, eta), expected, atol=1e-12)
    for given_, now in zip(before, (g, x, eta), strict=True):
        assert torch.equal(given_, now)


def test_projected_steps_with_bounds_for_each_entry_or_without_a_radius():
    x, g = torch.rand(3, 2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    low, high = torch.tensor([[0.0, -1.0], [-2.0, 0.0]], dtype=torch.float64), torch.full((2, 2), 1.5).double()
    for ball in (LpBall(math.inf, 0.7, (low, high)), LpBall(math.inf, math.inf, (low, 2.0))):
        eta = torch.zeros_like(x)
        expected = ball.project(ball.scaled(0.5).lmo(g, x), x)
        assert torch.allclose(ball.ascend(g, 0.5, x, eta), expected, atol=1e-12)


def test_small_projected_steps_add_up_and_inputs_outside_the_bounds_do_not_jump():
    x, g = torch.full((1, 3), 0.7), torch.ones(1, 3)
    ball, eta = LpBall(math.inf, 1e-5, (0.0, 1.0)), torch.zeros(1, 3)
    for _ in range(1000):
        eta = ball.ascend(g, 2.5e-3, x, eta)
    assert torch.allclose(eta, torch.full_like(eta, 1e-5), rtol=1e-4)
    outside = torch.full((1, 3), -0.2)
    assert bool((LpBall(math.inf, 0.1, (0.0, 1.0)).ascend(-g, 0.5, outside, torch.zeros(1, 3)) == 0).all())


def test_bounds_and_inputs_that_ask_for_gradients_do_not_stop_a_projected_step():
    x, g, eta = torch.rand(3, 4), torch.randn(3, 4), torch.zeros(3, 4)
    low, high = torch.zeros(4), torch.ones(4)
    expected = LpBall(math.inf, 0.1, (low, high)).ascend(g, 0.1, x, eta)
    asking = LpBall(math.inf, 0.1, (low.clone().requires_grad_(), high.clone().requires_grad_()))
    torch.testing.assert_close(asking.ascend(g, 0.1, x.clone().requires_grad_(), eta), expected)
