"""Searches at p = 1 where the model is bent: their first step says whether the others go over a rounder ball."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from benchmarks.peers import networks as compared
from torch import Tensor, nn

import epsball as eb
from epsball.batch import Batch
from epsball.errors import InputError
from epsball.state import State

ENTRIES = 40


def without(attack: eb.Attack) -> eb.Attack:
    return replace(attack, schedule=replace(attack.schedule, bent_step_ball=None))


class Steep(nn.Module):
    """A margin that a few entries raise at once and no further, and all of them slowly: one step shows it.

    Not for samples whose last entry is above a half, which changes neither score: all entries raise theirs steadily.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slopes = torch.where(torch.arange(ENTRIES) % 4 == 0, 100.0, 2.0).double()

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        steady, x = x[:, -1] > 0.5, x[:, :-1]
        raised = (0.5 * torch.tanh(self.slopes * x) / self.slopes.sqrt()).sum(1) + 0.3 * x.sum(1)
        raised = torch.where(steady, (self.slopes / 50.0 * x).sum(1), raised) - 2.0
        return torch.stack([0.0 * raised, raised], 1)


def steep(samples: int = 5, steady: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    x = torch.zeros(samples, ENTRIES + 1, dtype=torch.float64)
    x[samples - steady :, -1] = 1.0
    return Steep(), x, torch.zeros(samples, dtype=torch.int64)


def seen(attack: eb.Attack, model: nn.Module, x: Tensor, y: Tensor) -> list[tuple[float, float]]:
    """The balls over which the steps of an attack are solved: order and ε as a share of the radius, where rounder."""
    balls: list[tuple[float, float]] = []
    lmo = eb.LpBall.lmo

    def watched(ball: eb.LpBall, gradient: Tensor, at: Tensor) -> Tensor:
        balls.append((ball.p, len(gradient)))
        return lmo(ball, gradient, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eb.LpBall, "lmo", watched)
        attack(model, x, y)
    return balls


@pytest.mark.parametrize("passes", [12, 100])
def test_bent_samples_step_over_the_rounder_ball_after_their_first_step(passes):
    model, x, y = steep()
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=passes)
    orders = [p for p, _ in seen(attack, model, x, y)]
    assert orders[0] == pytest.approx(4 / 3)
    assert orders.count(1.5) >= attack.schedule.steps - 2
    assert 1.5 not in [p for p, _ in seen(without(attack), model, x, y)]
    result, before = attack(model, x, y), without(attack)(model, x, y)
    assert bool(result.success.all())
    assert not torch.equal(result.perturbation, before.perturbation)


def test_where_samples_go_on_the_ball_is_that_of_going_on():
    model, x, y = steep()
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=100)
    attack = replace(attack, schedule=replace(attack.schedule, continue_step_ball=(3.0, 0.2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("epsball.search._TRUSTED", (2.0, 1.0))  # nobody is
        orders = [p for p, _ in seen(attack, model, x, y)]
    plan = attack.schedule
    assert orders.count(3.0) == (plan.restarts - 2) * plan.length(2)
    assert 1.5 not in orders[orders.index(3.0) :]


def test_the_search_of_best_does_so_and_its_other_attempts_have_their_own():
    model, x, y = steep()
    attack = eb.recipe("best", p=1.0, eps=1e-3, bounds=(0.0, 1.0), passes=40)
    assert attack.schedule.widening == "found"
    assert attack.schedule.bent_step_ball == eb.recipe("nearest", p=1.0).schedule.bent_step_ball
    attack = replace(attack, schedule=replace(attack.schedule, bent_step_ball=(3.0, 0.2)))
    orders = [p for p, _ in seen(attack, model, x, y)]
    assert orders.count(3.0) == attack.schedule.steps - 1
    assert 1.5 in orders[len(orders) - 1 - orders[::-1].index(3.0) :]


@pytest.mark.parametrize("passes", [10, 100])
@pytest.mark.parametrize("lattice", [None, 16])
def test_where_the_linear_model_holds_nothing_changes(lattice, passes):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(60, 4, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.rand(4, 60, generator=generator, dtype=torch.float64) / 4 - 0.125)
        model.bias.zero_()
    x = torch.randint(0, 17, (180, 60), generator=generator).double() / 16
    y = model(x).argmax(1)
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=passes, lattice=lattice)
    result, before = attack(model, x, y), without(attack)(model, x, y)
    assert torch.equal(result.perturbation, before.perturbation)


def test_each_sample_is_asked_by_itself():
    model, x, y = steep(7, steady=3)
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0), passes=20)
    result, before = attack(model, x, y), without(attack)(model, x, y)
    changed = (result.perturbation - before.perturbation).abs().flatten(1).amax(1) > 1e-9
    assert changed.tolist() == [True] * 4 + [False] * 3
    for i in (0, 6):
        alone = attack(model, x[i : i + 1], y[i : i + 1], sample_id=torch.tensor([i]))
        assert torch.allclose(alone.perturbation, result.perturbation[i : i + 1], atol=1e-9)


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
        (lambda: eb.Schedule(bent_step_ball=(1.5, 0.3)), "expected step_ball with bent_step_ball"),
        (
            lambda: eb.Schedule(update="project", step_ball=(1.5, 0.5), bent_step_ball=(1.5, 0.0)),
            "share of bent_step_ball > 0",
        ),
        (
            lambda: eb.Attack(
                eb.LpBall(1.0, 1.0),
                eb.Margin(),
                schedule=eb.Schedule(update="project", step_ball=(1.3, 0.5), bent_step_ball=(1.5, 0.3)),
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
