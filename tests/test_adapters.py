"""Recipes called as torchattacks and Foolbox 3 call their attacks; their conventions written out again in NumPy."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from helpers import cases, images, labels, network, np_norm, scores

MODEL = network("tanh")
X = images(5)
TARGET = labels(MODEL, X, wrong=2)
EVERY = pytest.mark.parametrize("case", cases(2.0), ids=str)
SMALLEST = [case for case in cases(math.inf, 2.0, 1.0) if not case.row.needs_eps]


def options(case):
    made = {} if case.row.family == "groups" or case.row.order is not None else {"p": case.p}
    made |= {"passes": 30} if "passes" in case.row.options else {}
    made |= {"steps": 4} if case.name == "pgd" else {}
    return made | ({"surrogates": [network("tanh", 11)]} if "surrogates" in case.row.options else {})


def misread(perturbed):
    return scores(MODEL, perturbed).argmax(1) != TARGET


@EVERY
def test_torchattacks_style_returns_what_the_recipe_returns(case):
    target = case.target(MODEL, X, wrong=2)
    own = {"eps": case.eps} if case.row.needs_eps else {}
    attack = eb.adapters.torchattacks_style(MODEL, case.name, **own, **options(case))
    perturbed = attack(X, target)
    plain = case.attack("tanh", bounds=(0.0, 1.0), **options(case))(MODEL, X, target)
    assert torch.equal(perturbed, plain.perturbed)
    assert perturbed.shape == X.shape
    assert not perturbed.requires_grad
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1


def test_torchattacks_style_draws_by_seed_and_takes_no_labels():
    attack = eb.adapters.torchattacks_style(MODEL, "pgd", eps=0.1, steps=2)
    assert torch.equal(attack(X, TARGET), attack(X, TARGET))
    assert not torch.equal(attack(X, TARGET), attack(X, TARGET, seed=1))
    assert torch.equal(attack(X), attack(X, scores(MODEL, X).argmax(1)))
    assert MODEL.training, "the model is left in the mode it was in"
    part = attack(X[3:], TARGET[3:], sample_id=torch.tensor([3, 4]))
    torch.testing.assert_close(part, attack(X, TARGET)[3:])
    free = eb.adapters.torchattacks_style(MODEL, "fgsm", eps=2.0, bounds=None)
    assert free(X, TARGET).max() > 1
    with pytest.raises(eb.InputError, match="expected inputs inside bounds"):
        attack(255 * X, TARGET)


@pytest.mark.parametrize("case", [case for case in cases(math.inf) if case.row.needs_eps], ids=str)
def test_foolbox_style_with_a_budget(case):
    target = case.target(MODEL, X, wrong=2)
    attack = eb.adapters.foolbox_style(case.name, **options(case))
    epsilons = [0.0, case.eps, 3 * case.eps]
    raw, clipped, success = attack(MODEL, X, target, epsilons=epsilons)
    assert isinstance(raw, list)
    assert isinstance(clipped, list)
    assert success.shape == (3, len(X))
    assert success.dtype == torch.bool
    for eps, first, second, row in zip(epsilons, raw, clipped, success, strict=True):
        assert torch.equal(first, second), "nothing is left to clip"
        size = [np_norm(e, case.p) for e in (second - X).numpy()]
        assert max(size) <= eps * (1 + 1e-9) + 1e-12
        assert second.min() >= 0
        assert second.max() <= 1
        if case.row.task != "regression" and case.row.name != "targeted":
            assert torch.equal(row, misread(second))
        own = {"eps": eps, "bounds": (0.0, 1.0)} | options(case)
        assert torch.equal(second, eb.recipe(case.name, **own)(MODEL, X, target).perturbed)


def test_targeted_success_is_the_label():
    attack = eb.adapters.foolbox_style("targeted", label=1)
    _, clipped, success = attack(MODEL, X, TARGET, epsilons=[0.02, 0.5])
    for perturbed, row in zip(clipped, success, strict=True):
        assert torch.equal(row, scores(MODEL, perturbed).argmax(1) == 1)
    assert success[1].all()
    assert not success[0].all()


def foolbox_clip(x, perturbed, eps, p):
    """`clip_perturbation` of Foolbox 3's LpDistance, written out again."""
    eta = perturbed - x
    if p == math.inf:
        return x + np.clip(eta, -eps, eps)
    size = np.array([max(np_norm(e, p), 1e-12) for e in eta])
    return x + np.minimum(1.0, eps / size).reshape(-1, *[1] * (x.ndim - 1)) * eta


@pytest.mark.parametrize("case", SMALLEST, ids=str)
def test_foolbox_style_of_a_minimal_norm_runs_once_and_clips(case):
    attack = eb.adapters.foolbox_style(case.name, **options(case))
    plain = eb.recipe(case.name, bounds=(0.0, 1.0), **options(case))(MODEL, X, TARGET)
    half, above = float(plain.norm[0]) / 2, 1.01 * float(plain.norm.max())
    epsilons = [half, None, above, 0.0]
    calls = []
    hook = MODEL.register_forward_hook(lambda *_: calls.append(1))
    try:
        raw, clipped, success = attack(MODEL, X, TARGET, epsilons=epsilons)
        counted, _ = len(calls), calls.clear()
        eb.recipe(case.name, bounds=(0.0, 1.0), **options(case))(MODEL, X, TARGET)
        assert counted == len(calls) + len(epsilons), "one run, and one pass to judge each epsilon"
    finally:
        hook.remove()
    assert all(torch.equal(tensor, plain.perturbed) for tensor in raw)
    assert torch.equal(clipped[1], plain.perturbed)
    torch.testing.assert_close(clipped[2], plain.perturbed)
    for eps, perturbed, row in zip(epsilons, clipped, success, strict=True):
        if eps is not None:
            expected = foolbox_clip(X.numpy(), plain.perturbed.numpy(), eps, case.p)
            np.testing.assert_allclose(perturbed.numpy(), expected, atol=1e-12)
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1
        assert torch.equal(row, misread(perturbed))
    assert success[2].all()
    assert success[3].tolist() == [False, False, True, False, False], "without a perturbation only the misread one"
    assert not success[0].all()


def test_one_number_as_epsilons_has_no_leading_dimension():
    for name in ("bim", "deepfool"):
        attack = eb.adapters.foolbox_style(name)
        raw, clipped, success = attack(MODEL, X, TARGET, epsilons=0.1)
        rows, several, each = attack(MODEL, X, TARGET, epsilons=np.array([0.1]))
        assert raw.shape == clipped.shape == X.shape
        assert success.shape == (5,)
        assert torch.equal(raw, rows[0])
        assert torch.equal(clipped, several[0])
        assert torch.equal(success, each[0])
        assert torch.equal(attack(MODEL, X, TARGET, epsilons=torch.tensor([0.1, 0.2]))[2][0], success)


def test_weights_clip_in_the_weighted_norm():
    weights = torch.ones(X.shape[1:], dtype=X.dtype)
    weights[0] = 0.0
    weights[1] = 2.0
    _, (clipped,), _ = eb.adapters.foolbox_style("deepfool", weights=weights)(MODEL, X, TARGET, epsilons=[0.01])
    eta = (clipped - X).abs()
    assert (eta[:, 0] == 0).all()
    assert eta[:, 1].max() <= 0.02 + 1e-12
    assert eta[:, 1].max() > 0.01
    assert eta[:, 2].max() <= 0.01 + 1e-12


def test_foolbox_style_takes_the_bounds_of_a_model():
    """Foolbox's models carry theirs as a named pair; without any the range is [0, 1]."""

    class Bounded(nn.Module):
        bounds = SimpleNamespace(lower=0.2, upper=0.9)

        def __init__(self):
            super().__init__()
            self.inner = MODEL

        def forward(self, x):
            return self.inner(x)

    Bounded.bounds = (0.2, 0.9)
    x = X.clamp(0.2, 0.9)
    attack = eb.adapters.foolbox_style("fgsm")
    _, perturbed, _ = attack(Bounded(), x, TARGET, epsilons=0.5)
    assert (perturbed.min(), perturbed.max()) == (0.2, 0.9)
    wider = eb.adapters.foolbox_style("fgsm", bounds=(-1.0, 2.0))
    assert wider(Bounded(), x, TARGET, epsilons=0.5)[1].min() < 0.2
    with pytest.raises(eb.InputError, match="expected inputs inside bounds"):
        attack(MODEL, 255 * X, TARGET, epsilons=1.0)


def test_robustbench_style_models_work_as_they_are():
    """(B, C, H, W) in [0, 1] -> logits, with the normalisation inside."""

    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("lenet", dtype=torch.float32)
            self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))

        def forward(self, x):
            return self.inner((x - self.mu) / 0.25)

    model, x = Standardised(), images(4, dtype=torch.float32)
    y = scores(model, x).argmax(1)
    perturbed = eb.adapters.torchattacks_style(model, "best", eps=8 / 255, passes=20)(x, y)
    assert (perturbed - x).abs().max() <= 8 / 255 + 1e-6
    result = eb.recipe("best", eps=8 / 255, bounds=(0.0, 1.0), passes=20)(model, x, y)
    assert torch.equal(result.success, scores(model, perturbed).argmax(1) != y)


def test_what_is_refused():
    style = eb.adapters.foolbox_style
    with pytest.raises(eb.InputError, match="expected no eps for a Foolbox-style attack"):
        style("pgd", eps=0.1)
    with pytest.raises(eb.InputError, match="unknown attack"):
        style("no-such-attack")
    with pytest.raises(eb.InputError, match="did you mean steps"):
        style("pgd", iterations=3)
    with pytest.raises(eb.InputError, match="expected eps for 'pgd'"):
        eb.adapters.torchattacks_style(MODEL, "pgd")
    attack = style("bim")
    for epsilons, message in (
        ([None], "needs a budget"),
        ([], "at least one"),
        (["a"], "expected epsilons as numbers"),
    ):
        with pytest.raises(eb.InputError, match=message):
            attack(MODEL, X, TARGET, epsilons=epsilons)
    with pytest.raises(eb.InputError, match="expected labels as a tensor"):
        attack(MODEL, X, SimpleNamespace(labels=TARGET), epsilons=0.1)
    with pytest.raises(eb.InputError, match="eps >= 0"):
        attack(MODEL, X, TARGET, epsilons=[-0.1])
    with pytest.raises(eb.InputError, match="eps >= 0"):
        style("deepfool")(MODEL, X, TARGET, epsilons=[-0.1])
