"""Searches at p = 1 where the model is bent: a rounder ball, and a radius that waits."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from benchmarks.peers import networks as compared
from torch import Tensor, nn

import epsball as eb
from epsball import networks
from epsball.batch import Batch, State
from epsball.data import load
from epsball.errors import InputError
from epsball.radius import Radius

ENTRIES = 40


class Waves(nn.Module):
    """Two classes whose margin is Σ_i w_i sin(slope x_i) - gap: what an entry gives at first it soon takes back."""

    def __init__(self, slope: float, gap: float) -> None:
        super().__init__()
        self.slope, self.gap = slope, gap
        self.weights = torch.linspace(1.0, 0.5, ENTRIES, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        raised = (self.weights * torch.sin(self.slope * x)).sum(1) - self.gap
        return torch.stack([torch.zeros_like(raised), raised], 1)


def waves(slope: float = 12.0, gap: float = 12.0) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.zeros(5, ENTRIES, dtype=torch.float64)
    return Waves(slope, gap), x, torch.zeros(5, dtype=torch.int64)


def least(model: Waves) -> float:
    """The least ℓ1 norm: on all entries that move w_i slope cos(slope x_i) is the same."""
    low, high = 1e-12, float(model.weights[0]) * model.slope
    for _ in range(200):
        level = (low * high) ** 0.5
        ratio = (level / (model.weights * model.slope)).clamp(max=1.0)
        moved = torch.acos(ratio) / model.slope
        raised = (model.weights * torch.sin(model.slope * moved)).sum()
        low, high = (level, high) if raised > model.gap else (low, level)
    return float(moved.sum())


def without(attack: eb.Attack) -> eb.Attack:
    return replace(attack, schedule=replace(attack.schedule, bent_step_ball=None))


@pytest.mark.parametrize("slope", [3.0, 6.0, 20.0])
@pytest.mark.parametrize("power", [2, 4])
def test_a_search_among_waves_ends_near_the_least_perturbation(power, slope):
    model, x, y = waves(slope)
    model.weights = torch.linspace(1.0, 0.3, ENTRIES, dtype=torch.float64) ** power
    model.gap = 0.7 * float(model.weights.sum())
    result = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0))(model, x, y)
    assert bool(result.success.all())
    assert least(model) * (1 - 1e-9) <= float(result.norm.min())
    assert float(result.norm.max()) <= 1.05 * least(model)


def test_while_nothing_is_found_the_radius_does_not_grow_where_the_gain_falls():
    x, eta = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    ball, missed = eb.LpBall(1.0, bounds=(0.0, 2.0)), torch.zeros(4, dtype=torch.bool)
    gradient = torch.ones(4, 2, dtype=torch.float64)
    radius = Radius.of(eta, torch.full((4,), torch.inf, dtype=torch.float64), 0.3)

    def follow(value: list[float], at: float, *, early: bool = True) -> Tensor:
        here = torch.full_like(eta, at)
        radius.follow(ball, x, here, missed, torch.tensor(value, dtype=torch.float64), gradient, 0.3, early=early)
        return radius.value.clone()

    first = follow([-1.0] * 4, 0.0)
    assert first.tolist() == pytest.approx([1.02] * 4)
    # It rises, falls by less than a quarter of what was gained, by more, and where the box gives less than is missing.
    follow([-0.2] * 4, 0.5)
    second = radius.value.clone()
    third = follow([-0.1, -0.3, -0.9, -3.0], 0.6)
    assert bool((third[:2] > second[:2]).all())
    assert float(third[2]) == float(second[2])
    assert float(third[3]) > float(second[3])
    assert bool((follow([-0.9] * 4, 0.7, early=False) > third)[:3].all())


def test_best_does_so_in_its_search():
    model, x, y = waves()
    passes = 40
    found = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=passes)(model, x, y).norm.max()
    attack = eb.recipe("best", p=1.0, eps=float(found) * 1.02, bounds=(0.0, 1.0), passes=passes)
    assert attack.schedule.widening == "found"
    result = attack(model, x, y)
    assert bool(result.success.all())
    assert bool((result.backwards <= without(attack)(model, x, y).backwards).all())


def test_where_the_linear_model_holds_nothing_changes():
    model, x, y = waves(slope=1e-4, gap=1e-3)
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=30)
    assert torch.equal(attack(model, x, y).perturbation, without(attack)(model, x, y).perturbation)


def test_each_sample_is_asked_by_itself():
    data = load("digits", split="test").head(60)
    model = networks.load("digits-fcnn")
    attack = eb.recipe("nearest", p=1.0, bounds=data.bounds, passes=20)
    # A ball so small that whoever takes it is told from the others.
    marked = replace(attack, schedule=replace(attack.schedule, bent_step_ball=(2.0, 1e-3)))
    result, before = marked(model, data.x, data.target), without(attack)(model, data.x, data.target)
    same = (result.perturbation - before.perturbation).abs().flatten(1).amax(1) < 1e-6
    assert int(same.sum()) > 0
    for i in range(0, 60, 7):
        alone = marked(model, data.x[i : i + 1], data.target[i : i + 1], sample_id=torch.tensor([i]))
        assert torch.allclose(alone.perturbation, result.perturbation[i : i + 1], atol=1e-4)


@pytest.mark.parametrize(
    ("before", "now", "promised", "bent"),
    [
        (-3.0, -2.1, 2.0, True),
        (-3.0, -1.9, 2.0, False),
        (-3.0, -3.5, 2.0, True),
        (-3.0, 4.0, 2.0, False),
        (-3.0, -3.5, 0.0, False),
        (-3.0, float("nan"), 2.0, False),
    ],
)
def test_who_is_bent(before, now, promised, bent):
    from epsball.local_models import Expansion

    one = torch.ones(1, dtype=torch.float64)
    batch = Batch.__new__(Batch)
    batch.index, batch.promise = torch.tensor([1]), (before * one, promised * one)
    state = State.new(torch.zeros(2, 3, dtype=torch.float64), 0)
    expansion = Expansion.__new__(Expansion)
    object.__setattr__(expansion, "value", now * one[:, None])
    batch.compare(state, expansion)
    assert state.bent.tolist() == [False, bent]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: eb.Schedule(bent_step_ball=(1.5, 0.3)), 'update="project"'),
        (lambda: eb.Schedule(update="project", bent_step_ball=(1.5, 0.0)), "share of bent_step_ball > 0"),
        (
            lambda: eb.Attack(
                eb.LpBall(1.0, 1.0), eb.Margin(), schedule=eb.Schedule(update="project", bent_step_ball=(1.5, 0.3))
            ),
            "eb.ShrinkingBall",
        ),
    ],
)
def test_where_there_is_no_search_it_is_refused(made, message):
    with pytest.raises(InputError, match=message):
        made()


@pytest.mark.slow
@pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs CIFAR-10 in EPSBALL_DATA")
def test_on_a_residual_network_it_finds_nearer_points():
    model = compared.load("cifar10-resnet")
    x, y, _ = compared.samples("cifar10-resnet", model, 32)
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=15)
    assert float(attack(model, x, y).norm.mean()) < 0.95 * float(without(attack)(model, x, y).norm.mean())
