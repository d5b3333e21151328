"""The quadratic problem over groups against exhaustive search over groups and signs."""

import itertools
import math

import numpy as np
import pytest
import torch

import epsball as eb
from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.solvers.sign_patterns import best_groups, table_of
from helpers import generator
from test_box import net, np_best_corner


def np_best_group(jacobian, residual, low, high, groups, k=1):
    """The largest ‖r + Jη‖² over all choices of k groups and all corners of each choice."""
    best = -math.inf
    for chosen in itertools.combinations(groups, k):
        entries = sorted(itertools.chain.from_iterable(chosen))
        best = max(best, np_best_corner(jacobian[:, entries], residual, low[entries], high[entries]))
    return best


def drawn(columns=12, rows=5, seed=0, batch=6):
    model, x, jacobians = net(torch.nn.Tanh, columns, rows, seed, batch)
    with torch.no_grad():
        target = model(x) + torch.randn(batch, rows, generator=generator(seed + 50), dtype=x.dtype)
        target[: batch // 2] = model(x)[: batch // 2]
        residual = (model(x) - target).numpy()
    return model, x, target, jacobians, residual


def step_of(model, x, target, constraint, batched=True, **options):
    local = GaussNewton(model, x, target, eb.Quadratic(memory=options.pop("memory", 1.0)), batched=batched)
    formulation = eb.NormConstrained(eb.QuadraticOptions(**options))
    return formulation.solve(local, constraint, x, Generators.of(0, torch.arange(len(x)))), local


def room(x, i, eps, bounds):
    if bounds is None:
        return np.full(x.shape[1], -eps), np.full(x.shape[1], eps)
    return np.maximum(-eps, bounds[0] - x[i].numpy()), np.minimum(eps, bounds[1] - x[i].numpy())


def gain(jacobian, residual, delta):
    return float(np.sum((residual + jacobian @ delta.numpy()) ** 2))


THREES = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
UNEQUAL = [[5], [0, 11, 3, 7], [1, 2], [4, 6, 8, 9, 10]]


@pytest.mark.parametrize("rows", [5, 20])  # rows of J by Jᵀw, columns by Ju
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("groups", [THREES, UNEQUAL], ids=["threes", "unequal"])
def test_one_group_is_exact(groups, bounds, rows):
    model, x, target, jacobians, residual = drawn(rows=rows)
    x[1, 4] = 1.0
    jacobians = [torch.autograd.functional.jacobian(model, sample).numpy() for sample in x]
    target[1] = model(x).detach()[1]
    residual[1] = 0.0
    eps = torch.tensor([0.4, 0.4, 0.0, 0.2, 0.4, 5.0], dtype=x.dtype)
    allowed = eb.Groups(groups, k=1, eps=eps, bounds=bounds)
    for batched in (False, True):
        found, local = step_of(model, x, target, allowed, batched)
        assert found.exact.all()
        assert allowed.contains(found.delta, x).all()
        assert allowed.contains(found.mirror, x).all()
        for i in range(len(x)):
            low, high = room(x, i, float(eps[i]), bounds)
            best = np_best_group(jacobians[i], residual[i], low, high, groups)
            assert gain(jacobians[i], residual[i], found.delta[i]) == pytest.approx(best, rel=1e-9)
        _, backwards, jvps = local.spent()
        assert (jvps == 0).all() if rows == 5 else (jvps >= 12).all()
        assert (backwards >= 5).all() if rows == 5 else (backwards < 5).all()


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_more_groups_never_below_one_and_near_the_best(k, bounds):
    model, x, target, jacobians, residual = drawn(seed=3)
    one, _ = step_of(model, x, target, eb.Groups(THREES, k=1, eps=0.3, bounds=bounds))
    found, _ = step_of(model, x, target, eb.Groups(THREES, k=k, eps=0.3, bounds=bounds))
    assert not found.exact.any()
    assert eb.Groups(THREES, k=k, eps=0.3, bounds=bounds).contains(found.delta, x).all()
    shares = []
    for i in range(len(x)):
        low, high = room(x, i, 0.3, bounds)
        value = gain(jacobians[i], residual[i], found.delta[i])
        assert value >= gain(jacobians[i], residual[i], one.delta[i]) * (1.0 - 1e-12)
        best = np_best_group(jacobians[i], residual[i], low, high, THREES, k)
        assert value <= best * (1.0 + 1e-9)
        shares.append(value / best)
    assert min(shares) > 0.8
    assert np.mean(shares) > 0.95


def test_used_groups_and_their_number_hold_for_each_sample():
    model, x, target, jacobians, residual = drawn(seed=4)
    eta = torch.zeros_like(x)
    eta[0, [0, 4]], eta[1, 1], eta[2, 2], eta[2, 3] = 0.1, 0.1, 0.1, 0.1
    limited = eb.Groups(THREES, k=2, eps=0.3).step(0.5, eta)
    found, _ = step_of(model, x, target, limited)
    assert (found.delta[2] == 0).all()  # both of its groups are spent
    for i, used in ((0, [0]), (1, [1]), (3, [])):
        free = [g for n, g in enumerate(THREES) if n not in used]
        low, high = room(x, i, 0.3, None)
        best = np_best_group(jacobians[i], residual[i], low, high, free)
        assert gain(jacobians[i], residual[i], found.delta[i]) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_groups_of_more_than_twelve_entries(bounds):
    model, x, target, jacobians, residual = drawn(columns=28, rows=6, seed=5)
    groups = [list(range(14)), list(range(14, 28))]
    allowed = eb.Groups(groups, k=1, eps=0.3, bounds=bounds)
    found, _ = step_of(model, x, target, allowed)
    assert not found.exact.any()
    assert allowed.contains(found.delta, x).all()
    for i in range(len(x)):
        low, high = room(x, i, 0.3, bounds)
        best = np_best_group(jacobians[i], residual[i], low, high, groups)
        value = gain(jacobians[i], residual[i], found.delta[i])
        assert 0.9 * best <= value <= best * (1.0 + 1e-9)
    # Where the matrices of the groups do not fit, the power method over the same set.
    free, local = step_of(model, x, target, allowed, memory=1e-6)
    assert allowed.contains(free.delta, x).all()
    assert not free.exact.any()
    assert (local.value(free.delta.flatten(1)) >= 0.8 * local.value(found.delta.flatten(1))).all()


def test_where_all_products_are_too_many_a_sketch_ranks_the_groups():
    """90 groups, of which 24 are examined: never exact, and near the best single group all the same."""
    columns, rows = 180, 40
    draw = generator(0)
    matrix = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    matrix *= torch.logspace(-1, 0.5, columns, dtype=torch.float64)[torch.randperm(columns, generator=draw)]
    x = torch.zeros(4, columns, dtype=torch.float64)
    target = torch.randn(4, rows, generator=draw, dtype=torch.float64)
    target[0] = 0.0
    groups = [[2 * i, 2 * i + 1] for i in range(90)]
    allowed = eb.Groups(groups, k=1, eps=0.5)
    exact, _ = step_of(lambda z: z @ matrix.T, x, target, allowed)
    found, local = step_of(lambda z: z @ matrix.T, x, target, allowed, products=30)
    assert exact.exact.all()
    assert not found.exact.any()
    _, backwards, jvps = local.spent()
    assert (jvps == 48).all()
    assert (backwards <= 64 + 3).all()
    values = [local.value(step.delta) for step in (found, exact)]
    assert (values[0] >= 0.999 * values[1]).all()
    # The groups in use are not examined: with the best 30 spent, the best of the others is found.
    order = torch.stack([matrix[:, g].square().sum() for g in groups]).argsort(descending=True)[:30]
    eta = torch.zeros_like(x)
    eta[:, 2 * order] = 0.1
    spent = eb.Groups(groups, k=31, eps=0.5).step(1.0 / 31, eta)
    again, local = step_of(lambda z: z @ matrix.T, x, target, spent, products=30)
    full, _ = step_of(lambda z: z @ matrix.T, x, target, spent)
    assert (again.delta.abs().sum(1) > 0).all()
    assert (local.value(again.delta) >= 0.999 * local.value(full.delta)).all()


def test_table_of_groups():
    table = table_of(torch.tensor([1, 0, 1, 2, 1]))
    assert table.tolist() == [[1, -1, -1], [0, 2, 4], [3, -1, -1]]


def test_nothing_to_gain_changes_nothing():
    x = torch.zeros(2, 4, dtype=torch.float64)
    local = GaussNewton(lambda z: 0.0 * z, x, x, eb.Quadratic(), batched=False)
    one, free = torch.ones(2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)
    reach = torch.ones_like(x)
    delta, exact = best_groups(local, table_of(torch.tensor([0, 0, 1, 1])), reach, reach, one, free, limit=99)
    assert (delta == 0).all()
    assert exact.all()
