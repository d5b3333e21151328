"""CustomSet against the closed forms of LpBall, and on sets that have no closed form here."""

import math
import pickle
import subprocess
import sys
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch

from epsball.errors import EpsballWarning, InputError
from epsball.randomness import Generators
from epsball.sets import LpBall
from epsball.sets.custom import CustomSet

SHAPE = (2, 3)


def batch(seed, size=4, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(size, *SHAPE))
    side = rng.uniform(size=x.shape)
    x = np.where(side < 0.3, 0.0, np.where(side < 0.6, 1.0, x))
    return torch.tensor(x, dtype=dtype), torch.tensor(rng.normal(size=x.shape), dtype=dtype)


def ids(x):
    return Generators.of(0, torch.arange(len(x)))


def l2(eta, x, eps):
    return [cp.norm2(eta) <= eps]


def l2_and_linf(eta, x, eps):
    return [cp.norm2(eta) <= eps, cp.norm_inf(eta) <= 0.5 * eps]


def balanced(eta, x, eps):
    return [cp.norm2(eta) <= eps, cp.sum(eta) == 0]


NORMS = {1.0: cp.norm1, 1.5: lambda e: cp.pnorm(e, 1.5), 2.0: cp.norm2, math.inf: cp.norm_inf}


@pytest.mark.parametrize("p", list(NORMS))
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0.0, math.inf)])
def test_an_lp_ball_in_cvxpy_is_the_lp_ball(p, bounds):
    x, g = batch(1)
    eps = torch.tensor([0.1, 0.4, 0.9, 0.4], dtype=torch.float64)
    ball = LpBall(p, eps, bounds)
    custom = CustomSet(lambda eta, x, eps: [NORMS[p](eta) <= eps], eps, bounds, NORMS[p])
    gap = torch.tensor([0.3, -0.1, 0.05, 100.0 if bounds == (0.0, 1.0) else 1.0], dtype=torch.float64)
    assert torch.allclose(custom.support(g, x), ball.support(g, x), rtol=1e-7)
    assert bool(ball.contains(custom.lmo(g, x), x, tol=1e-6).all())
    small, expected = custom.smallest(g, gap, x), ball.smallest(g, gap, x)
    assert torch.allclose(custom.size(small), ball.size(expected), rtol=1e-6, atol=1e-9)
    assert torch.allclose((g * small).sum((1, 2)), (g * expected).sum((1, 2)), rtol=1e-7, atol=1e-9)
    near, exact = custom.project(g, x), ball.project(g, x)
    assert torch.allclose((near - g).flatten(1).norm(dim=1), (exact - g).flatten(1).norm(dim=1), rtol=1e-6)
    assert torch.allclose(near, exact, atol=1e-4)
    assert torch.allclose(custom.size(g), ball.size(g), rtol=1e-10)
    for eta in (custom.sample(x, ids(x)), custom.sample(x, ids(x), boundary=True)):
        assert bool(ball.contains(eta, x, tol=1e-6).all())
        assert bool((ball.size(eta) > 0).all())


def test_intersection_of_two_balls():
    x, g = batch(2)
    custom = CustomSet(l2_and_linf, 0.6, None, lambda e: cp.maximum(cp.norm2(e), 2.0 * cp.norm_inf(e)))
    box = LpBall(2.0, 0.6, (0.5 - 0.3, 0.5 + 0.3))  # the l-infinity ball is the box around x = 0.5
    half = torch.full_like(x, 0.5)
    assert torch.allclose(custom.support(g, x), box.support(g, half), rtol=1e-7)
    assert torch.allclose(custom.project(g, x), box.project(g, half), atol=1e-4)
    eta = custom.lmo(g, x)
    assert bool((custom.size(eta) <= 0.6 * (1 + 1e-7)).all())
    assert bool(custom.contains(eta, x).all())
    assert not bool(custom.contains(1.01 * eta, x).any())
    # The two formulations are one curve: at eps = size(smallest) the support is the gap.
    gap = 0.7 * custom.support(g, x)
    radius = custom.size(custom.smallest(g, gap, x))
    assert torch.allclose(radius, torch.full_like(radius, 0.42), rtol=1e-6)
    again = CustomSet(l2_and_linf, radius)
    assert torch.allclose(again.support(g, x), gap, rtol=1e-6)


def test_equality_constraint_sum_zero():
    x, g = batch(3)
    custom = CustomSet(balanced, 0.5)
    centred = g - g.mean((1, 2), keepdim=True)
    norm = centred.flatten(1).norm(dim=1)
    assert torch.allclose(custom.support(g, x), 0.5 * norm, rtol=1e-7)
    assert torch.allclose(custom.lmo(g, x), 0.5 * centred / norm[:, None, None], atol=1e-5)
    assert torch.allclose(custom.project(g, x), LpBall(2.0, 0.5).project(centred, x), atol=1e-4)
    # eps is free in `smallest`, the equality is not: the least norm is gap / ||g - mean||.
    gap = torch.tensor([0.1, 0.5, 2.0, 7.0], dtype=torch.float64)
    small = custom.smallest(g, gap, x)
    assert torch.allclose(custom.size(small), gap / norm, rtol=1e-6)
    assert float(small.sum((1, 2)).abs().max()) < 1e-7
    assert not bool(custom.contains(torch.full_like(x, 0.01), x).any())
    assert bool(custom.contains(torch.zeros_like(x), x).all())
    inside = CustomSet(balanced, 0.5, (0.0, 1.0))
    eta = inside.lmo(g, x)
    assert bool(((x + eta >= 0) & (x + eta <= 1)).all())
    assert bool(inside.contains(eta, x).all())
    # Where the bounds and the equality leave less than the gap: the best point that they leave.
    best = CustomSet(balanced, 100.0, (0.0, 1.0)).support(g, x)
    corner = inside.smallest(g, best + 1.0, x)
    assert torch.allclose((g * corner).sum((1, 2)), best, rtol=1e-6, atol=1e-8)


def test_a_set_that_depends_on_the_input():
    x, g = batch(4)
    custom = CustomSet(lambda eta, x, eps: [cp.abs(eta) <= eps * cp.abs(x)], 0.1)
    assert torch.allclose(custom.lmo(g, x), 0.1 * x * g.sign(), atol=1e-7)


def test_order_of_entries_is_that_of_the_sample():
    """Only the second row of each sample may change: rows are contiguous in the flat variable."""
    x, g = batch(5)
    custom = CustomSet(lambda eta, x, eps: [cp.norm_inf(eta) <= eps, eta[:3] == 0], 0.2)
    eta = custom.lmo(g, x)
    assert torch.allclose(eta[:, 1], 0.2 * g[:, 1].sign(), atol=1e-7)
    assert float(eta[:, 0].abs().max()) < 1e-7


def test_steps_accumulate_inside_the_set_of_the_first_input():
    """Constraints that ignore eps (|eta| <= 0.1) or depend on x hold for the sum of the steps, not for each alone."""
    x, _ = batch(6)

    def build(eta, x, eps):
        return [cp.norm2(eta) <= eps, cp.norm_inf(eta) <= 0.1, cp.abs(eta) <= 0.3 * x]

    whole, eta = CustomSet(build, 0.5, (0.0, 1.0)), torch.zeros_like(x)
    g = torch.ones_like(x)
    for _ in range(4):
        part = whole.step(0.25, eta)
        eta = eta + part.lmo(g, x + eta)
    assert bool(whole.contains(eta, x).all())
    assert torch.allclose((g * eta).sum((1, 2)), whole.support(g, x), rtol=1e-6, atol=1e-7)
    part, picked = whole.step(0.25, eta), torch.tensor([2, 0])
    assert torch.allclose(
        part.take(picked).support(g[picked], (x + eta)[picked]), part.support(g, x + eta)[picked], rtol=1e-6, atol=1e-8
    )
    half = whole.step(0.5, torch.zeros_like(x))
    assert torch.allclose(half.support(g, x), 0.5 * whole.support(g, x), rtol=1e-6, atol=1e-8)
    assert torch.allclose(half.project(g, x), 0.5 * whole.project(2.0 * g, x), atol=1e-4)
    assert bool(half.contains(half.lmo(g, x), x).all())
    assert not bool(half.contains(whole.lmo(g, x), x)[whole.support(g, x) > 1e-3].any())


def test_each_problem_is_compiled_once_and_shared():
    x, g = batch(7)
    calls = []

    def build(eta, x, eps):
        calls.append(eps)
        return [cp.norm2(eta) <= eps]

    custom = CustomSet(build, torch.linspace(0.1, 0.4, 4).double())
    first = custom.lmo(g, x)
    assert len(calls) == 1
    custom.lmo(g, x)
    assert torch.allclose(custom.scaled(0.5).lmo(g, x), 0.5 * first, atol=1e-6)
    custom.take(torch.tensor([3, 1])).lmo(g[[3, 1]], x[[3, 1]])
    custom.step(0.5, torch.zeros_like(x)).lmo(g, x)
    assert len(calls) == 1
    assert all(program.dpp for program in custom.programs.values())
    copy = pickle.loads(pickle.dumps(CustomSet(l2, 0.5)))
    assert copy.programs == {}
    assert copy.eps == 0.5


def test_a_problem_that_is_not_dpp_still_works():
    x, g = batch(8)
    custom = CustomSet(lambda eta, x, eps: [cp.sum_squares(eta) <= eps**2], 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(custom.support(g, x), 0.5 * g.flatten(1).norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_magnitudes_types_and_empty_batches(dtype):
    x, g = batch(9, dtype=dtype)
    g[1] = 0.0
    custom = CustomSet(l2, 0.5, (0.0, 1.0))
    ball = LpBall(2.0, 0.5, (0.0, 1.0))
    eta = custom.lmo(g, x)
    assert eta.dtype == dtype
    assert bool((eta[1] == 0).all())
    assert bool(custom.contains(eta, x).all())
    for scale in (1e30, 1e-30):
        assert torch.allclose(custom.lmo(g * scale, x), ball.lmo(g, x), atol=1e-4)
    gap = torch.tensor([0.1, 0.1, 0.0, -1.0], dtype=dtype)
    small = custom.smallest(g, gap, x)
    assert bool((small[1:] == 0).all())
    assert torch.allclose(small[0], ball.smallest(g, gap, x)[0], atol=1e-4)
    inside = 0.3 * ball.lmo(g, x)
    assert torch.equal(custom.project(inside, x), inside)
    bad = g.clone()
    bad[0, 0, 0] = math.nan
    assert bool(custom.lmo(bad, x)[0].isnan().all())
    assert bool(custom.lmo(bad, x)[1:].isfinite().all())
    assert bool(custom.project(bad, x)[0].isnan().all())
    assert custom.contains(bad, x)[0].item() is False
    none = x[:0]
    for empty in (custom.lmo(none, none), custom.project(none, none), custom.sample(none, ids(none))):
        assert empty.shape == none.shape
    assert custom.smallest(none, gap[:0], none).shape == none.shape
    assert custom.contains(none, none).shape == custom.size(none).shape == (0,)


def test_a_failed_solve_is_nan_and_says_so():
    x, g = batch(10)
    unbounded = CustomSet(lambda eta, x, eps: [eta[0] <= eps], 0.1)
    with pytest.warns(EpsballWarning, match=r"4 of 4 samples \(unbounded\)"):
        assert bool(unbounded.lmo(g, x).isnan().all())
    empty = CustomSet(lambda eta, x, eps: [cp.sum(eta) >= x[0] + 1.0, cp.norm2(eta) <= eps], 0.1)
    with pytest.warns(EpsballWarning, match="infeasible"):
        assert bool(empty.project(g, x).isnan().all())
    hurried = CustomSet(l2, 0.1, (0.0, 1.0), options={"solver": "CLARABEL", "max_iter": 1})
    with pytest.warns(EpsballWarning, match="their rows are NaN"):
        assert bool(hurried.lmo(g, x).isnan().all())
    some = CustomSet(lambda eta, x, eps: [cp.norm2(eta) <= eps, cp.sum(eta) >= x[0] - 0.5], 0.1)
    with pytest.warns(EpsballWarning, match="1 of 2 samples"):
        rows = some.lmo(g[:2], torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE) * 9.0]).double())
    assert bool(rows[0].isfinite().all())
    assert bool(rows[1].isnan().all())
    options = {"solver": "SCS", "eps_abs": 1e-8, "eps_rel": 1e-8}
    assert torch.allclose(CustomSet(l2, 0.1, options=options).lmo(g, x), LpBall(2.0, 0.1).lmo(g, x), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"build": 3}, "build to be callable"),
        ({"build": l2, "measure": 2.0}, "measure to be callable"),
        ({"build": l2, "eps": -1.0}, "eps >= 0"),
        ({"build": l2, "eps": math.inf}, "finite eps"),
        ({"build": l2, "bounds": (1.0, 0.0)}, "lo < hi"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        CustomSet(**arguments)


def test_what_is_no_convex_problem_is_refused():
    x, g = batch(11)
    with pytest.raises(InputError, match="convex"):
        CustomSet(lambda eta, x, eps: [cp.norm2(eta) >= eps], 0.1).lmo(g, x)
    for build in (lambda eta, x, eps: cp.norm2(eta) <= eps, lambda eta, x, eps: [True], lambda eta, x, eps: None):
        with pytest.raises(InputError, match="list of CVXPY constraints"):
            CustomSet(build, 0.1).lmo(g, x)


def test_without_cvxpy_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)  # makes the import system raise
    with pytest.raises(InputError, match=r'pip install "epsball\[cvxpy\]"'):
        CustomSet(l2, 0.1)


def test_importing_the_module_does_not_import_cvxpy():
    code = "import sys, epsball.sets.custom; sys.exit(any(m in sys.modules for m in ('cvxpy', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
