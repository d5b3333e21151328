"""Randomised models: gradients and outputs averaged over draws (expectation over transformation)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import epsball as eb
from epsball.errors import InputError
from epsball.experiments.config import RunConfig
from epsball.experiments.fingerprint import fingerprint
from epsball.experiments.plan import prepare
from epsball.experiments.runner import run


class Noisy(nn.Module):
    """Class scores W (x + σ z) of a noisy input, z standard normal and new in every pass."""

    def __init__(self, sigma: float = 0.3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.linear = nn.Linear(12, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(3, 12, generator=generator, dtype=torch.float64))
        self.sigma = sigma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x + self.sigma * torch.randn_like(x))


class Dropping(Noisy):
    """Class scores of an input of which each pass drops one half."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(functional.dropout(x, 0.5, training=True))


def points(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def labels(model: Noisy, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.linear(x).argmax(1)


def test_outputs_are_the_mean_over_the_draws():
    model, x = Noisy(), points()
    with eb.TargetModel(model, draws=4, seed=5) as averaged, torch.no_grad():
        found = averaged(x)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        by_hand = sum(model(x) for _ in range(4)) / 4
    assert torch.allclose(found, by_hand)


def test_many_draws_come_near_the_expectation():
    model, x = Noisy(), points()
    with eb.TargetModel(model, draws=4000) as averaged, torch.no_grad():
        found = averaged(x)
        expected = model.linear(x)
    spread = 0.3 * model.linear.weight.norm(dim=1) / math.sqrt(4000)
    assert bool(((found - expected).abs() < 5 * spread).all())


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    model, x = Noisy(), points()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    eb.recipe("fgsm", eps=0.1)(eb.TargetModel(model, draws=5), x, labels(model, x))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(11)
    with pytest.raises(InputError, match="class indices"):
        eb.recipe("fgsm", eps=0.1)(eb.TargetModel(model, draws=5), x, torch.full((6,), 3))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["pgd", "alg1-5", "best"])
def test_the_same_seed_gives_the_same_answer(name):
    model, x = Noisy(), points()
    attack = eb.recipe(name, p=2.0, eps=0.3)
    target = labels(model, x)
    first, second = (attack(eb.TargetModel(model, draws=3), x, target, seed=4) for _ in range(2))
    assert torch.equal(first.perturbed, second.perturbed)
    other = attack(eb.TargetModel(model, draws=3), x, target, seed=5)
    assert not torch.equal(first.outputs, other.outputs)


def test_a_random_model_is_refused_unless_it_is_averaged():
    model, x = Dropping(), points()
    with pytest.raises(InputError, match=r"changes from call to call.*draws=20"):
        eb.recipe("fgsm", eps=0.1)(model, x, labels(model, x))
    result = eb.recipe("fgsm", eps=0.1)(eb.TargetModel(model, draws=20), x, labels(model, x))
    assert len(result) == len(x)
    assert not model.training or model.linear.weight.requires_grad


def test_averaged_gradients_use_the_entries_that_one_draw_drops():
    model, x = Dropping(), points(40)
    target = labels(model, x)
    attack = eb.recipe("fgsm", eps=0.1)
    few = attack(eb.TargetModel(model, draws=2), x, target).perturbation
    many = attack(eb.TargetModel(model, draws=64), x, target).perturbation
    # An entry that all draws drop has no gradient and does not move: a quarter of them at two draws, none at 64.
    assert 0.15 < float((few == 0).double().mean()) < 0.35
    assert bool((many != 0).all())

    # Of the worst direction of the expectation, sign(w_l - w_k) for the runner-up by cross-entropy, more is found.
    def gain(perturbation: torch.Tensor) -> float:
        return eb.Margin().gain(model.linear(x + perturbation), target).mean().item()

    assert gain(many) > gain(few) + 0.05


def test_minimal_norms_on_the_expectation_of_an_affine_model():
    model, x = Noisy(0.05), points(20)
    target = labels(model, x)
    found = eb.recipe("deepfool", p=2.0)(eb.TargetModel(model, draws=400), x, target)
    weight, scores = model.linear.weight, model.linear(x)
    gaps = scores.gather(1, target[:, None]) - scores
    lengths = (weight[target][:, None] - weight[None]).norm(dim=2)
    distance = torch.where(lengths > 0, gaps / lengths, torch.inf).amin(1)
    # Behind the boundary by an overshoot of 2 %, so that fresh draws rarely fall on its other side.
    assert int(found.success.sum()) >= 17
    assert torch.allclose(found.norm, distance, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ["quadratic-lp", "quadratic-pixel"])
def test_a_quadratic_model_of_random_draws_is_refused(name):
    model, x = Noisy(), points()
    with pytest.raises(InputError, match="without random draws"):
        eb.recipe(name, eps=0.1)(eb.TargetModel(model, draws=4), x, model.linear(x).detach())
    with pytest.raises(InputError, match="without random draws"):
        eb.upper_bound(eb.TargetModel(model, draws=4), x, 0.1)


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_draws_are_a_count(draws):
    with pytest.raises(InputError, match="draws"):
        eb.TargetModel(Noisy(), draws=draws)


def test_a_wrapped_model_keeps_its_draws():
    model = eb.TargetModel(Noisy(), draws=7, seed=3)
    assert (eb.TargetModel(model).draws, eb.TargetModel(model).seed) == (7, 3)
    assert eb.TargetModel(model, draws=2).draws == 2


FACTORY = """
import torch
from torch import nn
from epsball import networks


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = networks.load("digits-fcnn")

    def forward(self, x):
        return self.net(x + 0.2 * torch.randn_like(x))


def make():
    return Noisy()
"""


def test_a_run_attacks_the_mean_over_the_draws(tmp_path):
    (tmp_path / "noisy.py").write_text(FACTORY)
    settings = {"command": "evaluate", "model": f"{tmp_path / 'noisy.py'}:make", "data": "digits", "limit": 60}
    settings |= {"eps": (0.1,), "attacks": ("fgsm", "pgd")}
    with pytest.raises(InputError, match="--eot 20"):
        run(RunConfig(**settings), tmp_path / "refused")
    results = [run(RunConfig(**settings, eot=8), tmp_path / name) for name in ("first", "second")]
    first, second = (result.table.drop_columns("seconds").to_pydict() for result in results)
    assert first == second
    fooled = {
        name: sum(success for success, attack in zip(first["success"], first["attack"], strict=True) if attack == name)
        for name in ("fgsm", "pgd")
    }
    # An attack that left at its first success, which fresh draws undo, would be the weaker one.
    assert fooled["pgd"] > fooled["fgsm"] > 10


def test_quadratic_attacks_on_random_draws_are_refused_at_the_door():
    with pytest.raises(InputError, match="eot=4"):
        RunConfig("evaluate", "digits-autoencoder", ("quadratic-lp",), eps=(0.1,), eot=4)
    with pytest.raises(InputError, match="eot"):
        RunConfig("evaluate", "digits-fcnn", ("fgsm",), eps=(0.1,), eot=0)


def test_an_attack_within_a_budget_does_not_stop_at_a_first_success():
    model, x = Noisy(), points()
    steps = eb.recipe("pgd", eps=1.0, steps=7)(eb.TargetModel(model, draws=3), x, labels(model, x))
    assert steps.backwards.tolist() == [7] * len(x)
    at_once = eb.recipe("pgd", eps=1.0, steps=7, stop="success")(eb.TargetModel(model, draws=3), x, labels(model, x))
    assert bool((at_once.backwards < 7).all())


def test_only_what_is_brought_back_is_seeded(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with eb.TargetModel(Noisy(), draws=2, seed=7), torch.no_grad():
        first = torch.rand(1)
    assert seeded == ([7] if torch.cuda.is_available() else [])
    assert torch.equal(first, torch.rand(1, generator=torch.Generator().manual_seed(7)))


def test_a_resumed_mean_keeps_its_batches(tmp_path):
    plans = [
        fingerprint(
            prepare(RunConfig("evaluate", "digits-fcnn", ("fgsm",), eps=(0.1,), batch_size=size, eot=eot)), "cpu"
        )
        for size, eot in ((50, 1), (60, 1), (50, 3), (60, 3))
    ]
    assert plans[0] == plans[1]
    assert plans[2] != plans[3]
