"""The half-space cut against CVXPY, and the oracle constraint in whole attacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.sets.oracle import Cut

cp = pytest.importorskip("cvxpy", reason="CVXPY is an optional extra")

ORDERS = [1.0, 1.5, 2.0, 3.0, math.inf]
BATCH, SIZE = 6, 8


def problem(p: float, bounds: tuple[float, float] | None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(BATCH, SIZE, generator=generator, dtype=torch.float64)
    x[:, ::2] = x[:, ::2].round()
    g = torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    normal = -g + 0.7 * torch.randn(BATCH, SIZE, generator=generator, dtype=torch.float64)
    room = torch.tensor([0.01, 0.05, 0.0, 0.2, 1.0, 0.1], dtype=torch.float64)
    return x, g, Cut(eb.LpBall(p, 0.5, bounds), normal, room)


def oracle_solution(cut: Cut, x, b: int, eta, objective, extra):
    """Solve one sample inside the cut and the bounds with CVXPY."""
    constraints = [cut.normal[b].numpy() @ eta >= -float(cut.room_left[b]), *extra]
    if cut.bounds is not None:
        constraints += [x[b].numpy() + eta >= 0, x[b].numpy() + eta <= 1]
    solved = cp.Problem(objective, constraints)
    solved.solve(solver=cp.CLARABEL)
    return solved


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_cut_lmo_and_project_against_cvxpy(p, bounds):
    x, g, cut = problem(p, bounds)
    order = "inf" if p == math.inf else p
    best, nearest = cut.lmo(g, x), cut.project(g, x)
    assert cut.contains(best, x).all()
    assert cut.contains(nearest, x).all()
    # The half-space must matter, or the test would pass without it.
    assert (~cut.contains(cut.base.lmo(g, x), x)).sum() >= 3
    for b in range(BATCH):
        eta = cp.Variable(SIZE)
        gb, ball = g[b].numpy(), [cp.norm(eta, order) <= 0.5]
        solved = oracle_solution(cut, x, b, eta, cp.Maximize(gb @ eta), ball)
        assert float((g[b] * best[b]).sum()) == pytest.approx(solved.value, abs=1e-6)
        oracle_solution(cut, x, b, eta, cp.Minimize(cp.sum_squares(eta - gb)), ball)
        np.testing.assert_allclose(nearest[b].numpy(), eta.value, atol=2e-4)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_cut_smallest_against_cvxpy(p, bounds):
    x, g, cut = problem(p, bounds)
    gap = torch.full((BATCH,), 0.3, dtype=torch.float64)
    found = cut.smallest(g, gap, x)
    order = "inf" if p == math.inf else p
    compared = 0
    for b in range(BATCH):
        gb, eta = g[b].numpy(), cp.Variable(SIZE)
        solved = oracle_solution(cut, x, b, eta, cp.Minimize(cp.norm(eta, order)), [gb @ eta >= 0.3])
        reached = float((g[b] * found[b]).sum())
        if solved.status == "optimal":
            compared += 1
            assert reached >= 0.3 - 1e-6
            assert float((cut.normal[b] * found[b]).sum()) >= -float(cut.room_left[b]) - 1e-6
            assert float(cut.size(found)[b]) == pytest.approx(solved.value, abs=1e-5)
    assert compared >= 3


@pytest.mark.parametrize("update", ["accumulate", "project"])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_attack_leaves_the_oracle_unchanged(update, p):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    eye = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (1.0 if parameter.dim() > 1 else 0.1))
        for a, b in zip(eye.parameters(), model.parameters(), strict=True):
            a.copy_(b + 0.1 * torch.randn_like(b))
    x = torch.rand(80, 12, dtype=torch.float64)
    target = model(x).argmax(1)
    eps = {1.0: 2.0, 2.0: 0.8, math.inf: 0.3}[p]
    ball = eb.LpBall(p, eps, bounds=(0.0, 1.0))
    schedule = eb.Schedule(steps=8, update=update, step_size=0.125 if update == "accumulate" else 0.3)
    free = eb.Attack(ball, eb.Margin(), schedule=schedule)(model, x, target)
    kept = eb.Attack(eb.Oracle(eye, ball), eb.Margin(), schedule=schedule)(model, x, target)
    same = eye(x).argmax(1)
    assert (eye(kept.perturbed).argmax(1) == same).all()
    assert ball.contains(kept.perturbation, x).all()
    # The eye sees the unconstrained attack on most samples, and the constrained one still fools some of them.
    assert (eye(free.perturbed).argmax(1) != same).double().mean() > 0.25
    assert kept.success.sum() > 0
    assert kept.success.sum() < free.success.sum()
    assert eye.training
    assert all(parameter.requires_grad for parameter in eye.parameters())


def test_minimal_norm_attack_under_an_oracle():
    torch.manual_seed(1)
    model, eye = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()
    x = torch.randn(50, 6, dtype=torch.float64)
    target = model(x).argmax(1)
    deepfool = eb.Attack(
        eb.Oracle(eye, eb.LpBall(2.0)),
        eb.Margin(),
        formulation=eb.MinNorm(),
        schedule=eb.Schedule(steps=30, step_size=0.0, stop="success"),
    )
    result = deepfool(model, x, target)
    free = eb.recipe("deepfool", p=2.0)(model, x, target)
    # On the eye's boundary rounding decides between two classes, and each processor rounds in its own way.
    seen, same = eye(result.perturbed), eye(x).argmax(1, keepdim=True)
    assert (seen.gather(1, same)[:, 0] >= seen.amax(1) - 1e-12).all()
    assert result.success.double().mean() > 0.5
    # A shortened step may stop between the boundary and the overshoot of 2 %.
    both = result.success & free.success
    assert (result.norm[both] >= free.norm[both] / 1.02 - 1e-9).all()


def test_oracle_refuses_what_is_no_set():
    with pytest.raises(eb.InputError, match="expected base as a set"):
        eb.Oracle(nn.Linear(2, 2), "ball")
