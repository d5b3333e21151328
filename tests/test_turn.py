"""A single attempt of `best` leaves samples that it leads nowhere, which then try the other classes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from benchmarks.peers import networks as compared
from torch import Tensor, nn

import epsball as eb
from epsball import networks
from epsball.data import load
from epsball.errors import InputError
from epsball.pace import Pace

EPS = 1.6


class Pit(nn.Module):
    """Three classes along the first entry: the second is near and never reached, the third lies the other way.

    f_1 = depth tanh(-5 z) - 0.05 z - 1 < 0 for z >= -2, where depth <= 0.9, and f_2 = 2 z - 3 is above 0 from z = 1.5.
    """

    def __init__(self, depth: float = 0.8) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 3)."""
        z = x[:, 0]
        return torch.stack([0.0 * z, self.depth * torch.tanh(-5.0 * z) - 0.05 * z - 1.0, 2.0 * z - 3.0], 1)


def pits(samples: int = 7) -> tuple[Tensor, Tensor]:
    x = torch.zeros(samples, 3, dtype=torch.float64)
    x[:, 1] = torch.arange(samples)
    return x, torch.zeros(samples, dtype=torch.int64)


def best(p: float, passes: int, **options: object) -> eb.Attack:
    return eb.recipe("best", p=p, eps=EPS, passes=passes, **options)


def straight(attack: eb.Attack) -> eb.Attack:
    return replace(attack, schedule=replace(attack.schedule, turn_after=None, restarts=1, restart_steps=None))


@pytest.mark.parametrize("passes", [10, 17, 18, 25, 34, 35])
def test_a_sample_that_is_led_into_a_pit_turns_to_another_class(passes):
    x, y = pits()
    attack = best(2.0, passes)
    assert not straight(attack)(Pit(), x, y).success.any()
    result = attack(Pit(), x, y)
    assert bool(result.success.all())
    assert bool((result.outputs.argmax(1) == 2).all())
    assert bool((result.norm <= EPS * (1 + 1e-9)).all())


@pytest.mark.parametrize("passes", [10, 20, 34])
def test_where_no_class_succeeds_the_point_that_gained_most_is_kept(passes):
    x, y = pits()
    attack = replace(best(2.0, passes), constraint=eb.LpBall(2.0, 1.2))  # class 2 is out of reach
    result, before = attack(Pit(), x, y), straight(attack)(Pit(), x, y)
    assert not result.success.any()
    assert bool((result.gain >= before.gain).all())
    assert bool((result.backwards > passes // 2 + 1).all())


@pytest.mark.parametrize("passes", [10, 20])
def test_the_others_do_as_before_and_nobody_depends_on_the_batch(passes):
    data = load("digits", split="test").head(200)
    model = networks.load("digits-fcnn")
    attack = eb.recipe("best", p=2.0, eps=1.1, passes=passes, bounds=data.bounds)
    result, before = (a(model, data.x, data.target) for a in (attack, straight(attack)))
    same = (result.perturbation == before.perturbation).flatten(1).all(1)
    assert int(same.sum()) > 100
    assert int((~same).sum()) > 0
    assert int(result.success.sum()) >= int(before.success.sum())
    # Whoever does as before spends what it did.
    assert torch.equal(result.forwards[same], before.forwards[same])
    assert torch.equal(result.backwards[same], before.backwards[same])
    some = torch.cat([(~same).nonzero()[:3, 0], same.nonzero()[:3, 0]])
    for i in some.tolist():
        alone = attack(model, data.x[i : i + 1], data.target[i : i + 1], sample_id=torch.tensor([i]))
        assert torch.allclose(alone.perturbation, result.perturbation[i : i + 1], atol=1e-5)
        assert int(alone.backwards) == int(result.backwards[i])


@pytest.mark.parametrize("passes", [10, 17, 18, 30, 34, 35])
def test_turning_takes_what_one_attempt_does(passes):
    x, y = pits()
    attack = replace(best(2.0, passes), constraint=eb.LpBall(2.0, 1.2))
    result = attack(Pit(), x, y)
    # One attempt is judged at two points, and what it found once more.
    spent = result.forwards + result.backwards
    assert bool((spent <= 2 * passes + 3).all())
    assert bool((spent >= 2 * passes + 1).all())
    assert bool((result.backwards <= passes).all())


def test_which_recipes_turn():
    plans = {(p, n): eb.recipe("best", p=p, eps=1.0, passes=n).schedule for p in (1.0, 1.5, 2.0, 3.0) for n in (9, 10)}
    assert [key for key, plan in plans.items() if plan.turn_after is not None] == [(2.0, 10)]
    others = {n: best(2.0, n).schedule.restarts - 1 for n in (10, 17, 18, 35)}
    assert others == {10: 1, 17: 1, 18: 2, 35: 2}
    assert best(2.0, 36).schedule.turn_after is None
    assert eb.recipe("nearest", p=2.0, passes=20).schedule.turn_after is None


def test_a_sample_whose_gain_still_rises_goes_on():
    # A bent model on which every step gains a good share of what there was before.
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    short = eb.Schedule(
        steps=10, step_size=(0.1,) * 10, update="project", keep="best", restarts=2, restart_steps=None, turn_after=0.5
    )
    attack = eb.Attack(eb.LpBall(2.0, 0.2), eb.Ranked(), schedule=short)
    result, before = attack(model, x, y), straight(attack)(model, x, y)
    assert torch.equal(result.perturbation, before.perturbation)
    assert torch.equal(result.backwards, before.backwards)
    assert torch.equal(result.forwards, before.forwards)  # both last steps are judged


@pytest.mark.parametrize(
    ("gains", "stalls"),
    [
        ((-1.0, -0.50, -0.48), True),  # 4 % of what was gained in the last two steps, 0.05 more in those left
        ((-1.0, -0.50, -0.45), False),  # 9 %
        ((-1.0, -0.05, -0.02), False),  # 3 %, but 0.075 more would do
        ((-1.0, -0.15, -0.10), False),  # 5.6 %, but 0.125 more would do
        ((-1.0, -0.20, -0.16), True),  # 4.8 %, and 0.1 more would not
        ((-1.0, -1.0, -1.0), True),
        ((-1.0, 0.1, 0.2), False),
        ((-1.0, float("nan"), -0.4), False),
    ],
)
def test_who_stalls_at_the_fifth_of_ten_steps(gains, stalls):
    pace, told = Pace.of(5, 10, torch.zeros(1, dtype=torch.float64)), []
    for step, gain in enumerate((gains[0], -0.99, -0.98, gains[1], gains[1], gains[2])):
        told.append(pace.stalls(step, torch.tensor([gain], dtype=torch.float64)).tolist())
    assert told == [[False]] * 5 + [[stalls]]


class Flat(nn.Module):
    """The way to the second class ends in a plane without any gradient, the third lies the other way."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 3)."""
        z = x[:, 0]
        return 300.0 * torch.stack([0.0 * z, (-5.0 * z).clamp(max=0.8) - 1.0, 2.0 * z - 3.0], 1)


@pytest.mark.parametrize("passes", [10, 20, 34])
def test_a_sample_without_a_gradient_turns_with_the_steps_it_has_left(passes):
    x, y = pits()
    assert bool(best(2.0, passes)(Flat(), x, y).success.all())
    assert not straight(best(2.0, passes))(Flat(), x, y).success.any()


class Order(nn.Module):
    """Five classes: one leads into a pit; of the others that with the third score is the only one within reach."""

    def __init__(self, reachable: int) -> None:
        super().__init__()
        self.reachable = reachable

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 5)."""
        pit, z = Pit()(x), x[:, 0]
        others = [-0.1 * z - 3.0, -0.1 * z - 3.2, -0.1 * z - 3.4]
        others[self.reachable] = 3.0 * z - 3.0 - 0.2 * self.reachable
        return torch.stack([pit[:, 0], pit[:, 1], *others], 1)


@pytest.mark.parametrize(
    ("passes", "reachable", "found"), [(12, 0, True), (12, 1, False), (30, 1, True), (30, 2, False)]
)
def test_classes_take_their_turns_by_the_scores_at_x(passes, reachable, found):
    x, y = pits()
    assert bool(best(2.0, passes)(Order(reachable), x, y).success.all()) == found
    # classes=2: the one that the first attempt took is the first of them.
    assert bool(best(2.0, passes, classes=2)(Order(reachable), x, y).success.all()) == (reachable == 0)


def test_a_usual_last_step_is_tried_by_the_attempt_that_all_make():
    # The last step over the whole set, from x, goes by a gradient that no longer leads there.
    class Turning(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            radius, angle = x[:, 0].hypot(x[:, 1]), torch.atan2(x[:, 1], x[:, 0] + 0.1)
            raised = 2.0 * angle - 2.2 + 0.3 * radius
            return torch.stack([0.0 * raised, raised], 1)

    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    attack = replace(best(2.0, 12), constraint=eb.LpBall(2.0, 0.5))
    result, before = attack(Turning(), x, y), straight(attack)(Turning(), x, y)
    assert torch.equal(result.perturbation, before.perturbation)
    assert int(result.forwards) == int(before.forwards)


@pytest.mark.parametrize("stop", ["never", None])
def test_two_classes_begin_at_random_points_and_without_stopping_nobody_turns(stop):
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Pit()(x)[:, :2]

    x, y = pits()
    attack = best(2.0, 10, stop=stop)
    result, before = attack(Two(), x, y), straight(attack)(Two(), x, y)
    assert not result.success.any()
    turned = (result.forwards != before.forwards).all()
    assert bool(turned) == (stop is None)
    if stop == "never":
        assert torch.equal(result.perturbation, before.perturbation)


def test_one_class_alone_leaves_no_other():
    x, y = pits()
    result = best(2.0, 10, classes=1)(Pit(), x, y)
    assert bool((result.forwards + result.backwards <= 23).all())


def test_outputs_that_are_not_finite_are_told():
    class Broken(Pit):
        def forward(self, x: Tensor) -> Tensor:
            scores = super().forward(x)
            return torch.where((x[:, 1:2] == 2.0) & (x[:, :1] != 0.0), torch.nan, scores)

    x, y = pits()
    result = best(2.0, 10)(Broken(), x, y)
    assert result.status[2] == eb.Status.NON_FINITE
    assert bool(result.success[torch.arange(len(x)) != 2].all())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: eb.Schedule(steps=9, update="project", keep="best", restarts=2, turn_after=1.0), "0 < turn_after < 1"),
        (
            lambda: eb.Schedule(steps=9, update="project", keep="best", restarts=2, turn_after=0.2),
            "three steps or more",
        ),
        (lambda: eb.Schedule(steps=9, update="project", keep="best", restarts=2, turn_after=0.95), "one after it"),
        (lambda: eb.Schedule(steps=9, update="project", keep="best", turn_after=0.5), "restarts"),
        (
            lambda: eb.Schedule(steps=9, update="project", keep="best", restarts=2, turn_after=0.5, block_moves=4),
            "block_moves",
        ),
        (
            lambda: eb.Schedule(steps=9, step_size="falling", update="project", average=True, falls_from=3.0),
            "without average",
        ),
        (lambda: eb.Schedule(steps=9, update="project", restarts=2, turn_after=0.5), 'keep="best"'),
        (
            lambda: eb.Schedule(
                steps=9, update="project", keep="best", restarts=2, turn_after=0.5, widening=(2.0, 0.5)
            ),
            "without widening",
        ),
        (lambda: eb.Schedule(steps=9, falls_from=3.0), "falls_from"),
        (lambda: eb.Schedule(steps=9, step_size="falling", update="project", falls_from=0.0), "falls_from > 0"),
        (
            lambda: eb.Attack(
                eb.LpBall(2.0, 1.0),
                eb.Margin("runner-up"),
                schedule=eb.Schedule(steps=9, update="project", keep="best", restarts=2, turn_after=0.5),
            ),
            "eb.Ranked",
        ),
        (
            lambda: eb.Attack(
                eb.LpBall(2.0, 1.0),
                eb.Ranked(),
                schedule=eb.Schedule(
                    steps=9, update="project", keep="best", restarts=2, turn_after=0.5, random_start=True
                ),
            ),
            "no random starts",
        ),
    ],
)
def test_what_cannot_turn_is_refused(made, message):
    with pytest.raises(InputError, match=message):
        made()


@pytest.mark.slow
@pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST in EPSBALL_DATA")
@pytest.mark.parametrize(("network", "eps", "more"), [("mnist-fcnn", 1.0, 3), ("mnist-lenet5", 2.0, 2)])
def test_on_mnist_it_fools_more(network, eps, more):
    model = compared.load(network)
    x, y, _ = compared.samples(network, model, 256)
    attack = eb.recipe("best", p=2.0, eps=eps, passes=10, bounds=(0.0, 1.0))
    gained = attack(model, x, y).success.sum() - straight(attack)(model, x, y).success.sum()
    assert int(gained) >= more
