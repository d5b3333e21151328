"""Where the linear model at x promised too much or too little, `nearest` goes on from what two attempts found."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from benchmarks.peers import networks
from torch import Tensor, nn

import epsball as eb
from epsball.search import _TRUSTED

ORDERS = [1.0, 1.5, 2.0]
SAMPLES, ENTRIES, CLASSES = 40, 24, 5


class Waves(nn.Module):
    """Scores of a network of waves, steeper the larger they are: a linear model holds near some inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inner = torch.randn(ENTRIES, 8, generator=generator, dtype=torch.float64)
        self.outer = torch.randn(8, CLASSES, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, CLASSES)."""
        return torch.sinh(2.0 * torch.sin(x @ self.inner) @ self.outer)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    model = Waves()
    x = torch.rand(SAMPLES, ENTRIES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x, model(x).argmax(1)


def without(attack: eb.Attack) -> eb.Attack:
    return replace(attack, schedule=replace(attack.schedule, continue_step_ball=None))


def promised(attack: eb.Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Compute the least size that a linear model at x gives, 0 where the box holds none, (B,)."""
    point = x.clone().requires_grad_()
    scores, least = model(point), torch.full_like(x[:, 0], math.inf)
    for label in range(CLASSES):
        margin = scores[:, label] - scores.gather(1, y[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), point, retain_graph=True)
        gap = -1.02 * margin.detach()
        eta = attack.constraint.smallest(gradient, gap, x)
        met = ((gradient * eta).sum(1) >= gap * 0.999) & (label != y)
        least = torch.where(met, least.minimum(attack.constraint.size(eta)), least)
    return torch.where(least.isfinite(), least, 0.0)


def bent(attack: eb.Attack, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Tell from outside who is bent: the size after two attempts over the least one that a linear model at x gives."""
    two = replace(attack.schedule, restarts=2, continue_step_ball=None, boundary_steps=0)
    found = replace(attack, formulation=eb.ShrinkingBall(polish=0), schedule=two)(model, x, y).norm
    share = found / promised(attack, model, x, y)
    return ~((share > _TRUSTED[0]) & (share < _TRUSTED[1]))


@pytest.mark.parametrize("p", ORDERS)
def test_samples_go_on_where_the_linear_model_cannot_be_trusted_and_the_others_do_as_before(p):
    model, x, y = problem()
    attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
    assert attack.schedule.continue_step_ball is not None
    result, before = attack(model, x, y), without(attack)(model, x, y)
    going_on = bent(attack, model, x, y)
    assert 0 < int(going_on.sum()) < SAMPLES
    # To rounding, which the samples beside one may change.
    off = (result.perturbation - before.perturbation).abs().flatten(1).amax(1)
    assert float(off[~going_on].max()) < 1e-9
    changed = off > 1e-9
    assert int((changed & going_on).sum()) > 0
    assert bool(result.success.all())
    assert bool((result.forwards + result.backwards <= 200).all())


@pytest.mark.slow
@pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST in EPSBALL_DATA")
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_on_an_adversarially_trained_network_most_go_on_and_what_they_find_is_nearer(p):
    model = networks.load("mnist-robust")
    x, y, _ = networks.samples("mnist-robust", model, 64)
    attack = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))
    result, before = attack(model, x, y), without(attack)(model, x, y)
    assert float((result.norm != before.norm).float().mean()) > 0.3
    assert float(result.norm.mean()) < 0.98 * float(before.norm.mean())


def test_no_attempt_makes_what_two_have_found_larger():
    model, x, y = problem()
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0))
    plain = replace(attack, formulation=eb.ShrinkingBall(polish=0), schedule=replace(attack.schedule, boundary_steps=0))
    two = replace(plain, schedule=replace(plain.schedule, restarts=2, continue_step_ball=None))
    assert bool((plain(model, x, y).norm <= two(model, x, y).norm).all())


def test_a_sample_goes_on_alone_as_it_does_beside_others():
    model, x, y = problem()
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0))
    result = attack(model, x, y)
    for i in map(int, bent(attack, model, x, y).nonzero()[:3, 0]):
        alone = attack(model, x[i : i + 1], y[i : i + 1], sample_id=torch.tensor([i]))
        torch.testing.assert_close(alone.perturbation[0], result.perturbation[i], rtol=1e-9, atol=1e-12)
        # Where it ends along the boundary is a matter of rounding: a step or two.
        assert abs(int(alone.backwards) - int(result.backwards[i])) <= 2


class Clipped(Waves):
    """The same scores, of which no wrong class leads by more than a little: beyond that there is no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, CLASSES)."""
        scores = super().forward(x)
        return torch.cat([torch.zeros_like(scores[:, :1]), (scores[:, 1:] - scores[:, :1]).clamp(max=0.05)], 1)


def test_where_there_is_no_gradient_to_go_on_with_further_classes_are_tried():
    model, (_, x, _) = Clipped(), problem()
    y = model(x).argmax(1)
    x, y = x[y == 0], y[y == 0]
    attack = eb.recipe("nearest", p=2.0, bounds=(0.0, 1.0), passes=150)
    plan = attack.schedule
    assert plan.continue_step_ball is not None
    assert plan.restart_steps is not None
    two, full = (
        replace(attack, schedule=replace(plan, restarts=n, continue_step_ball=None)) for n in (2, plan.restarts)
    )
    result, first, all_of_them = (a(model, x, y) for a in (attack, two, full))
    stuck = bent(attack, model, x, y) & (first.backwards + 1 < result.backwards)
    stuck &= result.backwards < all_of_them.backwards
    assert int(stuck.sum()) > 0
    assert bool((result.norm <= first.norm * (1 + 1e-9)).all())
    assert bool((result.norm[stuck] < first.norm[stuck] * (1 - 1e-3)).any())
    assert bool((result.forwards + result.backwards <= 300).all())


def test_the_further_steps_have_a_ball_of_their_own():
    model, x, y = problem()
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0))
    other = replace(attack, schedule=replace(attack.schedule, continue_step_ball=(2.0, 0.9)))
    assert not torch.equal(attack(model, x, y).perturbation, other(model, x, y).perturbation)


def test_affine_models_are_never_bent():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ENTRIES, CLASSES, generator=generator, dtype=torch.float64)
    x = torch.rand(SAMPLES, ENTRIES, generator=generator, dtype=torch.float64)
    attack = eb.recipe("nearest", p=1.0, bounds=(0.0, 1.0))
    result, before = (a(lambda x: x @ weight, x, (x @ weight).argmax(1)) for a in (attack, without(attack)))
    assert torch.equal(result.perturbation, before.perturbation)


def test_nobody_goes_on_beyond_order_2_over_groups_or_with_very_few_attempts_or_many():
    for options in (
        {"p": math.inf},
        {"groups": "pixels", "eps": 0.5},
        {"p": 1.0, "passes": 36},
        {"p": 2.0, "passes": 1000},
        {"p": 3.0},
    ):
        assert eb.recipe("nearest", bounds=(0.0, 1.0), **options).schedule.continue_step_ball is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.Schedule(update="project", restarts=2, continue_step_ball=(2.0, 0.2)), "restarts=2; leave it out"),
        (lambda: eb.Schedule(update="project", restarts=3, continue_step_ball=0.2), "expected continue_step_ball as"),
        (lambda: eb.Schedule(restarts=3, continue_step_ball=(2.0, 0.2)), 'update="project"'),
        (
            lambda: eb.Schedule(
                steps=3, step_size=(2.0, 1.0, 0.5), update="project", restarts=4, continue_step_ball=(2.0, 0.2)
            ),
            "one for each of the 6 steps, got 3",
        ),
        (
            lambda: eb.Attack(
                eb.LpBall(2.0, eps=1.0),
                eb.Ranked(),
                schedule=eb.Schedule(update="project", restarts=3, continue_step_ball=(2.0, 0.2)),
            ),
            "for continue_step_ball",
        ),
        (
            lambda: replace(eb.recipe("nearest", p=2.0), objective=eb.Ranked(eb.Margin("runner-up"), early=False)),
            "early=False",
        ),
    ],
)
def test_what_cannot_go_on_is_refused(make, message):
    with pytest.raises(eb.InputError, match=message):
        make()
