"""Where the linear model at x keeps its promise, `nearest` leaves far classes out, and searches more finely."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from benchmarks.peers import networks
from torch import Tensor, nn

import epsball as eb
from epsball import networks as epsball_networks
from epsball.batch import Batch
from epsball.data import load
from epsball.objectives import Ranked
from epsball.radius import Radius
from epsball.search import _kept
from test_continue import CLASSES, problem, promised

ORDERS = [1.5, 2.0, math.inf]


def affine(samples: int = 30, entries: int = 12, classes: int = 6) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(entries, classes, dtype=torch.float64)
    model.weight.data = torch.randn(classes, entries, generator=generator, dtype=torch.float64)
    model.bias.data = torch.randn(classes, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, entries, generator=generator, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def distances(model: nn.Linear, x: Tensor, y: Tensor, p: float) -> Tensor:
    """Compute how far each wrong class of an affine model is without bounds, (B, K), inf for the right one."""
    scores, weight, dual = model(x).detach(), model.weight.detach(), 1.0 if p == math.inf else p / (p - 1.0)
    far = torch.full_like(scores, math.inf)
    for i, right in enumerate(y.tolist()):
        for wrong in range(scores.shape[1]):
            if wrong != right:
                slope = torch.linalg.vector_norm(weight[wrong] - weight[right], dual)
                far[i, wrong] = (scores[i, right] - scores[i, wrong]) / slope
    return far


def without(attack: eb.Attack) -> eb.Attack:
    return replace(attack, schedule=replace(attack.schedule, restart_near=None))


def test_attempts_go_to_the_near_classes_in_rounds_and_last_to_that_of_the_first():
    labels = torch.tensor([[4, 2, 3, 1]] * 6)
    narrowed = Ranked(labels=labels).narrowed(torch.tensor([1, 2, 3, 4, 2, 3]), torch.tensor([4, 4, 4, 2, 3, 3]))
    turns = [narrowed.attempt(number) for number in range(1, 5)]
    classes = torch.stack([objective.labels[:, objective.turn - 1] for objective, _ in turns], 1)
    fresh = torch.stack([drawn for _, drawn in turns], 1)
    assert classes.tolist() == [
        [4, 4, 4, 4],
        [2, 4, 2, 4],
        [2, 3, 4, 2],
        [4, 3, 1, 2],
        [4, 2, 4, 2],  # it has been to one that is far, and to none of these
        [4, 2, 3, 4],
    ]
    assert fresh.sum(1).tolist() == [4, 3, 2, 1, 2, 2]
    assert bool((fresh == fresh.sort(dim=1)[0]).all())  # once again, always again
    assert narrowed.attempt(0)[1] is False
    assert narrowed.attempt(5)[1] is True  # the untargeted one again, from a random point


def spied(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Record how many classes each sample has left, the class it has found, and the rate of each attempt's radius."""
    near, been, rates, narrowed, of = [], [], [], Ranked.narrowed, Radius.of.__func__

    def narrow(self: Ranked, count: Tensor, found: Tensor) -> Ranked:
        near.append(count)
        been.append(found)
        return narrowed(self, count, found)

    def begin(cls: type[Radius], *what: object, **how: object) -> Radius:
        rates.append(of(cls, *what, **how).rate)
        return of(cls, *what, **how)

    monkeypatch.setattr(Ranked, "narrowed", narrow)
    monkeypatch.setattr(Radius, "of", classmethod(begin))
    return near, been, rates


@pytest.mark.parametrize("p", ORDERS)
def test_far_classes_are_left_out_where_the_model_is_affine(monkeypatch, p):
    near, been, rates = spied(monkeypatch)
    starts, start = [], Batch.start
    monkeypatch.setattr(Batch, "start", lambda self, **how: starts.append(how) or start(self, **how))
    model, x, y = affine()
    attack = eb.recipe("nearest", p=p)
    result = attack(model, x, y)
    far = distances(model, x, y, p)
    torch.testing.assert_close(result.norm, far.amin(1), rtol=1e-6, atol=0.0)
    expected = (far <= attack.schedule.restart_near * far.amin(1, keepdim=True)).sum(1)
    assert len(set(expected.tolist())) > 1
    (found,) = near
    assert torch.equal(found, expected)
    assert torch.equal(been[0], far.argmin(1))
    assert len(starts) > 0  # with random points where a class has its second turn
    assert bool((rates[0] == 0.3).all())
    assert all(torch.allclose(rate, torch.full_like(rate, 0.1)) for rate in rates[1:])


def test_the_linear_model_is_trusted_between_0_4_and_1_5_times_what_it_promised():
    size = torch.tensor([0.39, 0.41, 1.0, 1.49, 1.51, math.inf, 0.0, 1.0])
    promised = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert _kept(size, promised).tolist() == [False, True, True, True, False, False, False, False]


@pytest.mark.parametrize("p", ORDERS)
def test_where_the_linear_model_has_misled_all_classes_keep_their_attempts(monkeypatch, p):
    near, _, rates = spied(monkeypatch)
    model, x, y = problem()
    attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
    plan = replace(attack.schedule, restarts=1, restart_near=None, continue_step_ball=None)
    first = replace(attack, formulation=eb.ShrinkingBall(polish=0), schedule=plan)(model, x, y)
    rates.clear()
    attack(model, x, y)
    share = first.norm / promised(attack, model, x, y)
    kept = first.success & (share > 0.4) & (share < 1.5)
    assert 0 < int(kept.sum()) < len(x)
    (found,) = near
    assert bool((found[~kept] == CLASSES - 1).all())
    assert bool((found[kept] < CLASSES - 1).any())
    assert torch.allclose(rates[1], torch.where(kept, 0.1, 0.3).to(rates[1].dtype))


@pytest.mark.parametrize("p", ORDERS)
def test_a_sample_is_searched_alone_as_it_is_beside_others(p):
    model, x, y = problem()
    attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
    result = attack(model, x, y)
    for i in (0, 7, 23):
        alone = attack(model, x[i : i + 1], y[i : i + 1], sample_id=torch.tensor([i]))
        torch.testing.assert_close(alone.perturbation[0], result.perturbation[i], rtol=1e-7, atol=1e-9)


class Cliff(nn.Module):
    """Two scores whose gap hardly closes up to a sum of 30 and is open beyond: a step may cross it unseen."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        total = x.view(x.shape[0], -1).sum(1)
        gain = torch.where(total > 30.0, 1.0, -torch.exp(-total / 4.0))
        return 3.0 + torch.stack([torch.zeros_like(gain), gain], 1)


def test_a_place_beyond_the_boundary_that_no_step_has_judged_is_not_lost():
    x = torch.linspace(0.0, 20.0, 400, dtype=torch.float64)[:, None]
    y = torch.zeros(len(x), dtype=torch.int64)
    for passes in (38, 40):
        attack = eb.recipe("nearest", p=2.0, passes=passes)
        assert int((~attack(Cliff(), x, y).success).sum()) <= int((~without(attack)(Cliff(), x, y).success).sum())


def test_a_batch_of_which_nothing_is_left_asks_for_no_pass_of_nobody():
    for p in ORDERS:
        result = eb.recipe("nearest", p=p)(Cliff(), torch.full((3, 1), 40.0), torch.zeros(3, dtype=torch.int64))
        assert result.status == (eb.Status.ALREADY,) * 3


def test_classes_exactly_at_the_limit_take_part_whatever_the_rounding(monkeypatch):
    near, _, _ = spied(monkeypatch)
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    x = -torch.rand(60, 1, generator=torch.Generator().manual_seed(5)) * torch.tensor([[1.0, 1.5, 0.0]])
    eb.recipe("nearest", p=2.0)(model, x, torch.zeros(60, dtype=torch.int64))
    assert bool((near[0] == 2).all())


def test_the_same_passes_find_smaller_perturbations():
    data, model = load("digits", split="test").head(200), epsball_networks.load("digits-cnn")
    x, y = data.x, data.target
    for p in ORDERS:
        attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
        result, before = attack(model, x, y), without(attack)(model, x, y)
        assert float(result.norm.mean()) < float(before.norm.mean())
        assert int(result.backwards.max()) <= int(before.backwards.max())


@pytest.mark.slow
@pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST in EPSBALL_DATA")
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_on_networks_of_mnist_the_same_passes_find_smaller_perturbations(p):
    for network in ("mnist-fcnn", "mnist-lenet5"):
        model = networks.load(network)
        x, y, _ = networks.samples(network, model, 128)
        attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
        assert float(attack(model, x, y).norm.mean()) < float(without(attack)(model, x, y).norm.mean())


def test_it_is_for_orders_above_1_and_several_attempts():
    for p in ORDERS:
        assert eb.recipe("nearest", p=p).schedule.restart_near == 1.5
        assert eb.recipe("nearest", p=p, passes=30).schedule.restart_near is None
    assert eb.recipe("nearest", p=1.0).schedule.restart_near is None
    assert eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0)).schedule.restart_near is None
    assert eb.recipe("best", p=2.0, eps=1.0).schedule.restart_near is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.Schedule(restarts=3, restart_near=0.5), "restart_near >= 1"),
        (lambda: eb.Schedule(restarts=3, restart_near=math.nan), "restart_near >= 1"),
        (lambda: eb.Schedule(restarts=3, restart_near="2"), "restart_near >= 1"),
        (lambda: eb.Schedule(restart_near=2.0), "restarts=1"),
        (
            lambda: replace(eb.recipe("nearest", p=3.0), objective=eb.Ranked(eb.Margin("runner-up"), early=False)),
            "expected eb.ShrinkingBall.. and eb.Ranked.early=True. for restart_near",
        ),
        (
            lambda: eb.Attack(
                eb.LpBall(p=2.0, eps=1.0),
                objective=eb.Ranked(),
                schedule=eb.Schedule(restarts=3, restart_near=2.0, update="project"),
            ),
            "for restart_near",
        ),
    ],
)
def test_what_cannot_be_narrowed_is_refused(make, message):
    with pytest.raises(eb.InputError, match=message):
        make()
