"""Attacks at the edges of what they compose: group quotas, restarts, wrapped modules, odd outputs and seeds."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb


def small(entries: int = 12, classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def images(count: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("k", "steps"), [(1, 5), (3, 2), (4, 3), (4, 4), (2, 1)])
def test_accumulated_groups_use_exactly_k_in_all(k, steps):
    model, x = small(), images()
    groups = eb.Groups(eb.pixels(1), k=k, eps=0.01, bounds=(0.0, 1.0))
    attack = eb.Attack(groups, eb.Margin(), schedule=eb.Schedule(steps=steps, stop="never"))
    result = attack(model, x, model(x).argmax(1))
    assert (groups.count(result.perturbation) == k).all()
    assert not result.having(eb.Status.CONSTRAINT_VIOLATED).any()


def test_minimal_norm_attacks_keep_to_k_groups():
    model, x = small(), images()
    groups = eb.Groups(eb.pixels(1), k=1, bounds=(0.0, 1.0))
    attack = eb.Attack(
        groups, eb.Margin(), formulation=eb.MinNorm(), schedule=eb.Schedule(steps=30, step_size=0.0, stop="success")
    )
    result = attack(model, x, model(x).argmax(1))
    assert (groups.count(result.perturbation) <= 1).all()
    assert not result.having(eb.Status.BEYOND).any()
    assert result.success.any()


def test_restarts_of_a_minimal_norm_attack_keep_the_smallest():
    model, x = small(), images(100)
    target = model(x).argmax(1)

    def attack(restarts: int) -> eb.AttackResult:
        schedule = eb.Schedule(steps=30, step_size=0.0, dither=(0.3, *[0.0] * 29), restarts=restarts, stop="success")
        return eb.Attack(eb.LpBall(2.0, eps=1.0), eb.Margin(), formulation=eb.MinNorm(), schedule=schedule)(
            model, x, target
        )

    once, often = attack(1), attack(5)
    both = once.success & often.success
    assert both.sum() > 30
    assert (often.norm[both] <= once.norm[both] + 1e-12).all()
    assert (often.norm[both] < once.norm[both] - 1e-6).any()


def test_numpy_seeds_are_seeds():
    model, x = small(), images(5)
    pgd = eb.recipe("pgd", eps=0.1, steps=3)
    assert torch.equal(pgd(model, x, seed=np.int64(3)).perturbed, pgd(model, x, seed=3).perturbed)


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_are_warned_of(layer):
    model, x = small(classes=1 if isinstance(layer, nn.Sigmoid) else 4), images()
    target = torch.zeros(len(x), dtype=torch.int64)
    with pytest.warns(eb.EpsballWarning, match="probabilities"):
        eb.recipe("fgsm", eps=0.1)(nn.Sequential(model, layer), x, target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eb.recipe("fgsm", eps=0.1)(model, x, target)


@pytest.mark.filterwarnings("ignore:label is the own class")
def test_a_targeted_attack_on_its_own_label_fools_nobody():
    model, x = small(), images()
    target = model(x).argmax(1)
    label = int(target[0])
    curve = eb.fooling_curve(eb.recipe("targeted", eps=1.0, label=label), model, x, target, [0.0, 0.2], batch_size=7)
    assert float(curve.ratio[0]) == 0.0
    assert not curve.fooled[:, target == label].any()


def test_labels_for_each_sample_are_cut_with_the_batches():
    model, x = small(), images()
    target = model(x).argmax(1)
    attack = eb.recipe("targeted", eps=1.0, label=(target + 1) % 4)
    curves = [eb.fooling_curve(attack, model, x, target, [0.1, 0.3], batch_size=size) for size in (7, 40)]
    assert torch.equal(curves[0].fooled, curves[1].fooled)


class Holder:
    def __init__(self, *nets: nn.Module) -> None:
        self.nets = {"all": list(nets)}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return sum(net(x) for net in self.nets["all"])


def through(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x)


@pytest.mark.parametrize("wrap", [Holder, lambda net: functools.partial(through, net), lambda net: lambda x: net(x)])
def test_modules_inside_callables_are_evaluated_in_eval_mode(wrap):
    net = nn.Sequential(small(), nn.Dropout(0.5)).double()
    x = images(200)
    net.eval()
    target = net(x).argmax(1)
    net.train()
    result = eb.recipe("random-linf", eps=0.0)(wrap(net), x, target)
    assert not result.success.any()
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_module_with_effects_in_train_comes_back_as_it_was():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True):
            if not mode and not self.merged:
                self.merged = True
                self.weight.data += 1.0
            return super().train(mode)

    torch.manual_seed(0)
    model = Merging(12, 4).double()
    before = model.weight.detach().clone()
    eb.recipe("fgsm", eps=0.1)(nn.Sequential(nn.Flatten(), model), images(5))
    assert torch.equal(model.weight, before)
    assert model.training
    assert not model.merged


def test_a_model_that_changes_its_input_in_place_leaves_the_users_input_alone():
    net = small()
    x = images(6)
    kept = x.clone()
    result = eb.recipe("bim", eps=0.1, steps=3)(lambda z: net(z.mul_(0.5)), x)
    assert torch.equal(x, kept)
    assert result.perturbed.shape == x.shape


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attacks_work_where_gradients_are_off(context):
    model, x = small(), images(6)
    expected = eb.recipe("alg1-3", eps=0.1)(model, x)
    with context():
        found = eb.recipe("alg1-3", eps=0.1)(model, x.clone())
    assert torch.allclose(found.perturbed, expected.perturbed)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, x: eb.Attack(eb.LpBall(2.0, 0.1), eb.SquaredError())(model, x, [1.0] * len(x)),
        lambda model, x: eb.Attack(eb.LpBall(2.0, 0.1), local_model="linear"),
        lambda model, x: eb.Attack(eb.Oracle(small().float(), eb.LpBall(2.0, 0.1)))(model, x),
        lambda model, x: eb.recipe("ensemble", eps=0.1, surrogates=model),
        lambda model, x: eb.recipe("ensemble", eps=0.1, surrogates=[small(classes=3)])(model, x),
        lambda model, x: eb.fooling_curve(eb.recipe("fgsm", eps=0.1), model, x, model(x).argmax(1), 0.1),
        lambda model, x: eb.MinNorm("a"),
        lambda model, x: eb.MinNorm(float("inf")),
        lambda model, x: eb.SquaredError(threshold="a"),
        lambda model, x: eb.robustness(model, x, model(x).argmax(1), level="a"),
        lambda model, x: eb.psnr(x.byte(), x.byte()),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(make):
    with pytest.raises(eb.InputError, match="expected"):
        make(small(), images(6))


def test_minimal_norm_attack_that_finds_nothing_is_not_called_beyond():
    model, x = small(), images()
    result = eb.recipe("deepfool", steps=1, eps=1e-4)(model, x, model(x).argmax(1))
    free = eb.recipe("deepfool", steps=1)(model, x, model(x).argmax(1))
    assert torch.equal(result.having(eb.Status.BEYOND), free.success)


def test_a_model_that_changes_some_inputs_in_place_is_attacked_and_leaves_the_users_input_alone():
    torch.manual_seed(0)
    network, x = torch.nn.Linear(4, 3), torch.rand(6, 4) * 0.5
    kept = x.clone()

    def sometimes(given):
        if bool((given > 0.52).any()):  # not at x, where the model is looked at first
            given.clamp_(0.0, 0.52)
        return network(given)

    def behind_the_counter(given):
        given.data.mul_(0.5)
        return network(given)

    for model in (sometimes, behind_the_counter):
        y = network(x).argmax(1)
        for name in ("fgsm", "pgd", "alg1-10"):
            eb.recipe(name, p=math.inf, eps=0.2)(model, x, y)
            assert torch.equal(x, kept)


def test_a_model_can_be_wrapped_in_inference_mode():
    model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    with torch.inference_mode():
        assert torch.equal(eb.TargetModel(model)(torch.rand(6, 4) * 0 + x), model(x))


def test_a_formulation_that_solves_its_own_problem_is_asked():
    @dataclasses.dataclass(frozen=True)
    class Half(eb.NormConstrained):
        def solve(self, expansion, constraint, point, streams=None):
            step = super().solve(expansion, constraint, point, streams)
            return dataclasses.replace(step, delta=0.5 * step.delta)

    model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    plan = eb.Schedule(steps=1, update="project", stop="never")
    for formulation, norm in ((eb.NormConstrained(), 0.1), (Half(), 0.05)):
        attack = eb.Attack(eb.LpBall(eps=0.1), eb.CrossEntropy(), formulation=formulation, schedule=plan)
        assert torch.allclose(attack(model, x, torch.zeros(6, dtype=torch.int64)).norm, torch.tensor(norm), atol=1e-6)
