"""The wrapper around the user's model: what it selects, and that it gives everything back."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from helpers import images, lenet, mlp, network


class Pair(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Record:
    features: Tensor
    logits: Tensor


def mixed():
    """Sub-modules in both modes, parameters with and without gradients."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))
    model.train()
    model[1].eval()
    model[2][0].eval()
    model[0].weight.requires_grad_(False)
    return model


def modes(model):
    return [m.training for m in model.modules()]


def flags(model):
    return [p.requires_grad for p in model.parameters()]


def test_everything_evaluates_inside_and_returns_outside():
    model = mixed()
    before = modes(model), flags(model)
    assert len(set(before[0])) == len(set(before[1])) == 2
    with eb.TargetModel(model) as target:
        assert target.model is model
        assert not any(modes(model))
        assert not any(flags(model))
    assert (modes(model), flags(model)) == before

    def fails_inside():
        with eb.TargetModel(model):
            assert not any(modes(model))
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert (modes(model), flags(model)) == before


def test_nested_and_repeated_use():
    model = mixed()
    before = modes(model), flags(model)
    outer = eb.TargetModel(model)
    for _ in range(2):
        with outer:
            with eb.TargetModel(model):
                assert not any(flags(model))
            assert not any(flags(model))  # still the outer one's
            assert not any(modes(model))
        assert (modes(model), flags(model)) == before


def test_a_wrapper_that_overrides_train_is_restored_module_by_module():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.free = nn.Dropout(0.5), nn.Dropout(0.5)
            self.train()

        def train(self, mode=True):
            super().train(mode)
            self.frozen.training = False  # never trains, whatever is asked
            return self

    model = Stubborn()
    with eb.TargetModel(model):
        assert not any(modes(model))
    assert modes(model) == [True, False, True]


@pytest.mark.parametrize(
    ("wrap", "selector"),
    [
        (lambda f, y: {"features": f, "logits": y}, "logits"),
        (lambda f, y: OrderedDict(features=f, logits=y), "logits"),
        (lambda f, y: (f, y), 1),
        (lambda f, y: [f, y], -1),
        (lambda f, y: {7: y}, 7),
        (lambda f, y: Pair(f, y), "logits"),
        (lambda f, y: Pair(f, y), 1),
        (lambda f, y: Record(f, y), "logits"),
        (lambda f, y: {"all": [(f, y)]}, lambda out: out["all"][0][1]),
        (lambda f, y: y, None),
    ],
)
def test_selectors(wrap, selector):
    x = torch.rand(3, 4)
    layer = nn.Linear(4, 2)

    def model(points):
        return wrap(points, layer(points))

    torch.testing.assert_close(eb.TargetModel(model, selector=selector)(x), layer(x))
    # A wrapper of a wrapper keeps the selector unless it is given another.
    again = eb.TargetModel(eb.TargetModel(model, selector=selector))
    assert again.model is model
    assert again.selector is selector
    torch.testing.assert_close(again(x), layer(x))


@pytest.mark.parametrize(
    ("outputs", "selector", "message"),
    [
        (lambda x: {"a": x, "b": x}, None, r"got a dict with keys 'a', 'b'; pick one with eb.TargetModel"),
        (lambda x: (x, x, x), None, r"got a tuple of 3; pick one"),
        (lambda x: [x], None, r"got a list of 1"),
        (lambda x: Record(x, x), None, r"got Record"),
        (lambda x: None, None, r"got NoneType"),
        (lambda x: 3.0, None, r"got float"),
        (lambda x: {"a": x}, "logits", r"selector 'logits' does not fit the model's output, a dict with keys 'a'"),
        (lambda x: (x, x), 2, r"selector 2 does not fit the model's output, a tuple of 2"),
        (lambda x: x, "logits", r"selector 'logits' does not fit the model's output, a tensor of shape \(3, 4\)"),
        (lambda x: None, 0, r"selector 0 does not fit the model's output, NoneType"),
        (lambda x: {"a": {"b": x}}, "a", r"expected the model to return a tensor"),
        (lambda x: x.sum(0), None, r"expected one output for each of the 3 samples, got shape \(4,\)"),
        (lambda x: x.sum(), None, r"expected one output for each of the 3 samples, got shape \(\)"),
        (lambda x: x[:2], None, r"expected one output for each of the 3 samples, got shape \(2, 4\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_with_a_remedy(outputs, selector, message):
    with pytest.raises(eb.InputError, match=message):
        eb.TargetModel(outputs, selector=selector)(torch.rand(3, 4))


def test_what_is_no_model_is_refused():
    for value in (3, None, "resnet"):
        with pytest.raises(eb.InputError, match="expected model to be callable"):
            eb.TargetModel(value)


def test_a_bound_method_belongs_to_its_module_and_a_function_to_none():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout = nn.Linear(4, 2), nn.Dropout(0.9)

        def score(self, x):
            return self.layer(self.dropout(x))

    model, x = Model().train(), torch.rand(5, 4)
    with eb.TargetModel(model.score) as target:
        assert not model.dropout.training
        torch.testing.assert_close(target(x), model.layer(x))
        assert not target(x).requires_grad  # the module's parameters are frozen inside
    assert model.dropout.training
    assert {id(p) for p in eb.TargetModel(model.score).parameters()} == {id(p) for p in model.parameters()}

    def function(points):
        return points * 2.0

    with eb.TargetModel(function) as target:
        torch.testing.assert_close(target(x), x * 2.0)
    assert eb.TargetModel(function).parameters() == []


def test_convolutions_are_recognised():
    for build, expected in ((lenet, True), (lambda seed: mlp(nn.Tanh, seed), False)):
        assert eb.TargetModel(build(0)).convolutional is expected
    assert eb.TargetModel(nn.Sequential(nn.ModuleList([nn.Conv1d(2, 2, 1)])[0])).convolutional
    assert eb.TargetModel(lambda x: x).convolutional  # unknown: the loop that works for every network


def test_a_wrapped_model_is_attacked_like_the_model():
    model, x = network("lenet"), images(3)
    for name in ("alg1-3", "deepfool"):
        plain = eb.recipe(name, eps=0.05, p=math.inf)(model, x)
        wrapped = eb.recipe(name, eps=0.05, p=math.inf)(eb.TargetModel(model), x)
        torch.testing.assert_close(plain.perturbed, wrapped.perturbed, rtol=0, atol=0)
        twice = eb.robustness(eb.TargetModel(lambda x: {"y": model(x)}, "y"), x, torch.tensor([0, 1, 2]))
        once = eb.robustness(model, x, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(twice.distance, once.distance)
