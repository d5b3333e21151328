"""The quadratic problem over the box and over p = 1 balls, against all corners and against all vertices."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.solvers.box import best_signs, flip, greedy_signs, homogenised, low_rank
from helpers import generator


def signs_of(n):
    """All sign patterns, (2^n, n)."""
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def np_best_corner(jacobian, residual, low, high):
    """The largest ‖r + Jη‖² over all corners."""
    corners = np.where(signs_of(len(low)) > 0, high, low)
    return float(((residual + corners @ jacobian.T) ** 2).sum(1).max())


def np_greedy(jacobian, eps):
    """Equation (20) of the paper: columns by falling norm, each with the sign that agrees with the sum so far."""
    total = np.zeros(len(jacobian))
    eta = np.zeros(jacobian.shape[1])
    for i in sorted(range(jacobian.shape[1]), key=lambda i: -np.linalg.norm(jacobian[:, i])):
        eta[i] = eps * (1.0 if total @ jacobian[:, i] >= 0 else -1.0)
        total = total + eta[i] * jacobian[:, i]
    return eta


def net(kind, columns, rows, seed, batch):
    """A curved model, a batch, the Jacobian of each sample by autograd."""
    draw = generator(seed)
    model = nn.Sequential(nn.Linear(columns, 20), kind(), nn.Linear(20, rows)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.rand(batch, columns, generator=draw, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(model, sample).numpy() for sample in x]
    return model, x, jacobians


def step_of(model, x, target, constraint, **options):
    local = GaussNewton(model, x, target, eb.Quadratic(memory=options.pop("memory", 1.0)), batched=True)
    formulation = eb.NormConstrained(eb.QuadraticOptions(**options))
    return formulation.solve(local, constraint, x, Generators.of(3, torch.arange(len(x))))


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("columns", [3, 8, 12, 14])
@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU])
def test_p_inf_against_all_corners_and_greedy(kind, columns, shifted, bounds):
    batch, eps = 12, 0.3
    model, x, jacobians = net(kind, columns, 10, columns, batch)
    with torch.no_grad():
        target = model(x)
        if shifted:
            target = target + torch.randn(target.shape, generator=generator(1), dtype=x.dtype)
        residual = (model(x) - target).numpy()
    ball = eb.LpBall(p=math.inf, eps=eps, bounds=bounds)
    found = step_of(model, x, target, ball)
    assert ball.contains(found.delta, x).all()
    assert (found.exact == (columns <= 12)).all()
    low, high = np.full(x.shape, -eps), np.full(x.shape, eps)
    if bounds:
        low, high = np.maximum(low, -x.numpy()), np.minimum(high, 1.0 - x.numpy())
    for i in range(batch):
        value = np.sum((residual[i] + jacobians[i] @ found.delta[i].numpy()) ** 2)
        best = np_best_corner(jacobians[i], residual[i], low[i], high[i])
        assert value <= best * (1.0 + 1e-9)
        assert value >= (1.0 - 1e-9 if columns <= 12 else 0.99) * best
        if not shifted and bounds is None:
            greedy = np.sum((jacobians[i] @ np_greedy(jacobians[i], eps)) ** 2)
            assert value >= greedy * (1.0 - 1e-12)


def test_p_inf_with_weights_and_without_room():
    model, x, jacobians = net(nn.Tanh, 10, 6, 0, 4)
    target = torch.zeros(4, 6, dtype=x.dtype)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 0.0, 3.0, 1.0, 1.0], dtype=x.dtype)
    x[1, 2], x[2, :] = 1.0, 0.0
    jacobians = [torch.autograd.functional.jacobian(model, sample).numpy() for sample in x]
    for eps, bounds in ((0.2, None), (0.2, (0.0, 1.0)), (math.inf, (0.0, 1.0))):
        found = step_of(model, x, target, eb.LpBall(p=math.inf, eps=eps, bounds=bounds, weights=weights))
        assert found.exact.all()
        for i in range(4):
            radius = np.where(weights.numpy() > 0, 1e9 if eps == math.inf else eps * weights.numpy(), 0.0)
            low, high = -radius, radius
            if bounds:
                low, high = np.maximum(low, -x[i].numpy()), np.minimum(high, 1.0 - x[i].numpy())
            residual = model(x[i]).detach().numpy()
            value = np.sum((residual + jacobians[i] @ found.delta[i].numpy()) ** 2)
            assert value == pytest.approx(np_best_corner(jacobians[i], residual, low, high), rel=1e-9)
            assert (found.delta[i][weights == 0] == 0).all()


def test_a_memory_budget_that_holds_few_jacobians_changes_nothing_but_the_passes():
    model, x, _ = net(nn.Tanh, 16, 9, 2, 6)
    target = torch.zeros(6, 9, dtype=x.dtype)
    ball = eb.LpBall(p=math.inf, eps=0.2)
    whole = step_of(model, x, target, ball)
    size = 3.0 * 16 * 16 * 8
    for samples in (1, 2, 4):
        part = step_of(model, x, target, ball, memory=(samples + 0.5) * size / 1e9)
        torch.testing.assert_close(part.delta, whole.delta, rtol=0, atol=1e-12)
    # Less than one: the power method alone, which is never exact and stays close.
    free = step_of(model, x, target, ball, memory=0.5 * size / 1e9)
    assert not free.exact.any()
    local = GaussNewton(model, x, target, eb.Quadratic(), batched=False)
    values = [local.value(step.delta) for step in (free, whole)]
    assert (values[0] >= 0.9 * values[1]).all()
    assert (values[0] <= 1.000001 * values[1]).all()


# ----------------------------------------------------------------------------------------------- signs, on matrices


def matrices(batch, rows, n, seed, linear=True):
    draw = np.random.default_rng(seed)
    jacobian = draw.normal(size=(batch, rows, n)) * np.geomspace(0.2, 3.0, n)
    residual = draw.normal(size=(batch, rows)) * (3.0 if linear else 0.0)
    gram = np.einsum("bki,bkj->bij", jacobian, jacobian)
    return jacobian, residual, torch.from_numpy(gram), torch.from_numpy(np.einsum("bki,bk->bi", jacobian, residual))


def np_value(gram, linear, signs):
    return signs @ gram @ signs + 2.0 * linear @ signs


@pytest.mark.parametrize("linear", [False, True])
def test_greedy_flips_and_starts(linear):
    jacobian, _, gram, b = matrices(8, 5, 11, 0, linear)
    greedy = greedy_signs(gram, b)
    assert set(greedy.flatten().tolist()) == {-1.0, 1.0}
    for i in range(8):
        pull, order = b[i].numpy().copy(), np.argsort(-np.diag(gram[i].numpy()), kind="stable")
        for entry in order:
            assert greedy[i, entry] == (-1.0 if pull[entry] < 0 else 1.0)
            pull = pull + greedy[i, entry].item() * gram[i, entry].numpy()
        if not linear:
            np.testing.assert_array_equal(greedy[i].numpy(), np_greedy(jacobian[i], 1.0))
    start = torch.from_numpy(signs_of(11)[np.random.default_rng(1).integers(0, 2**11, 24)])
    index = torch.arange(8).repeat_interleave(3)
    polished, value = flip(gram, b, start, index)
    for row in range(24):
        i, zeta = int(index[row]), polished[row].numpy()
        own = np_value(gram[i].numpy(), b[i].numpy(), zeta)
        assert value[row] == pytest.approx(own, rel=1e-12)
        assert own >= np_value(gram[i].numpy(), b[i].numpy(), start[row].numpy()) * (1.0 - 1e-12)
        for entry in range(11):  # no single flip gains
            other = zeta.copy()
            other[entry] *= -1.0
            assert np_value(gram[i].numpy(), b[i].numpy(), other) <= own * (1.0 + 1e-12)
    best, value = best_signs(gram, b, Generators.of(0, torch.arange(8)), 4)
    for i in range(8):
        all_signs = signs_of(11)
        top = max(np_value(gram[i].numpy(), b[i].numpy(), s) for s in all_signs)
        assert value[i] == pytest.approx(np_value(gram[i].numpy(), b[i].numpy(), best[i].numpy()), rel=1e-12)
        assert value[i] >= 0.99 * top


def test_the_low_rank_relaxation_rises_and_is_above_every_pattern():
    _, _, gram, b = matrices(3, 6, 9, 4)
    whole = homogenised(gram, b)
    zeta = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=9))
    extended = torch.cat([zeta, zeta.new_ones(1)])
    for i in range(3):
        direct = np_value(gram[i].numpy(), b[i].numpy(), zeta.numpy())
        assert float(extended @ whole[i] @ extended) == pytest.approx(direct)
    streams = Generators.of(0, torch.arange(3))
    values = []
    for sweeps in (0, 1, 3, 10, 100):
        factor = low_rank(whole, streams, 12, sweeps)
        torch.testing.assert_close(torch.linalg.vector_norm(factor, dim=2), torch.ones(3, 10, dtype=gram.dtype))
        values.append(torch.einsum("bij,bir,bjr->b", whole, factor, factor))
    for before, after in itertools.pairwise(values):
        assert (after >= before * (1.0 - 1e-9)).all()
    for i in range(3):
        top = max(np_value(gram[i].numpy(), b[i].numpy(), s) for s in signs_of(9))
        assert values[-1][i] >= 0.999 * top


# ---------------------------------------------------------------------------------------------------------------- p = 1


def np_vertices(low, high, weights, eps):
    """All vertices of {‖η/w‖₁ ≤ eps, low ≤ η ≤ high}: entries at 0, low or high but for one that spends the rest."""
    n = len(low)
    for free in [None, *range(n)]:
        for ends in itertools.product(*[(0,) if i == free else (0, 1, 2) for i in range(n)]):
            eta = np.array([(0.0, low[i], high[i])[end] for i, end in enumerate(ends)])
            spent = np.sum(np.abs(eta[weights > 0]) / weights[weights > 0])
            if spent > eps * (1.0 + 1e-12):
                continue
            if free is None:
                yield eta
                continue
            left = (eps - spent) * weights[free]
            for sign in (-1.0, 1.0):
                eta[free] = np.clip(sign * left, low[free], high[free])
                yield eta.copy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [3, 9])
def test_p_1_without_bounds_is_the_best_vertex(rows, weighted):
    model, x, jacobians = net(nn.Tanh, 6, rows, rows, 8)
    with torch.no_grad():
        target = model(x) + torch.randn(8, rows, generator=generator(2), dtype=x.dtype)
        target[:2] = model(x)[:2]
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 4.0, 1.0], dtype=x.dtype) if weighted else None
    w = np.ones(6) if weights is None else weights.numpy()
    eps = torch.linspace(0.1, 2.0, 8, dtype=x.dtype)
    found = step_of(model, x, target, eb.LpBall(p=1, eps=eps, weights=weights))
    assert found.exact.all()
    for i in range(8):
        residual = (model(x[i]) - target[i]).detach().numpy()
        vertices = [s * float(eps[i]) * w[k] * np.eye(6)[k] for k in range(6) for s in (-1.0, 1.0)]
        best = max(np.sum((residual + jacobians[i] @ v) ** 2) for v in vertices)
        value = np.sum((residual + jacobians[i] @ found.delta[i].numpy()) ** 2)
        assert value == pytest.approx(best, rel=1e-9)
        assert (found.delta[i] != 0).sum() == 1


@pytest.mark.parametrize("eps", [0.05, 0.4, 1.5, math.inf])
def test_p_1_inside_bounds_is_never_said_to_be_exact_where_it_is_not(eps):
    batch, columns = 16, 4
    model, x, _ = net(nn.Tanh, columns, 5, 7, batch)
    x = x.clamp(0.02, 0.98)
    x[::3, 1] = 0.0
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=x.dtype)
    with torch.no_grad():
        target = model(x) + 0.5 * torch.randn(batch, 5, generator=generator(8), dtype=x.dtype)
        target[::2] = model(x)[::2]
    ball = eb.LpBall(p=1, eps=eps, bounds=(0.0, 1.0), weights=weights)
    found = step_of(model, x, target, ball)
    assert ball.contains(found.delta, x).all()
    shares = []
    for i in range(batch):
        jacobian = torch.autograd.functional.jacobian(model, x[i]).numpy()
        residual = (model(x[i]) - target[i]).detach().numpy()
        low, high = -x[i].numpy(), 1.0 - x[i].numpy()
        limit = eps if eps < math.inf else 1e3
        values = [np.sum((residual + jacobian @ v) ** 2) for v in np_vertices(low, high, weights.numpy(), limit)]
        value = np.sum((residual + jacobian @ found.delta[i].numpy()) ** 2)
        assert value <= max(values) * (1.0 + 1e-9)
        alone = [
            np.clip(s * limit * weights[k].item(), low[k], high[k]) * np.eye(4)[k] for k in range(4) for s in (-1, 1)
        ]
        assert value >= max(np.sum((residual + jacobian @ v) ** 2) for v in alone) * (1.0 - 1e-9)
        if found.exact[i]:
            assert value == pytest.approx(max(values), rel=1e-9)
        shares.append(value / max(values))
    assert np.mean(shares) > 0.95
    assert found.exact.any() == (eps < 0.5 or eps == math.inf)  # without a limit it is a box of 4 entries
