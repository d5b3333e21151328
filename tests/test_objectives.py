"""Objectives against their formulas written out in NumPy, their slopes against finite differences."""

import math
import warnings

import numpy as np
import pytest
import torch

import epsball as eb
from epsball.objectives import as_objective, two_class
from helpers import CLASSES, generator, images, labels, network, np_gain, np_label, np_success, scores, surrogates

OUTPUTS = torch.randn(7, CLASSES, generator=generator(1), dtype=torch.float64) * 2.0
TARGET = torch.where(torch.arange(7) % 2 == 0, OUTPUTS.argmax(1), OUTPUTS.argmin(1))  # right and wrong in turn
LABELS = torch.where(torch.arange(7) < 3, OUTPUTS.argmax(1), (OUTPUTS.argmax(1) + 1) % CLASSES)

CLASSIFYING = {
    "all": eb.Margin(),
    "runner-up": eb.Margin("runner-up"),
    "two best": eb.Margin(2),
    "more than there are": eb.Margin(9),
    "targeted at one": eb.TargetedMargin(3),
    "targeted each": eb.TargetedMargin(LABELS),
    "targeted runner-up": eb.TargetedMargin("runner-up"),
    "targeted least-likely": eb.TargetedMargin("least-likely"),
    "true score": eb.TrueScore(),
    "cross-entropy": eb.CrossEntropy(),
    "ensemble": eb.Ensemble([lambda x: x]),
    "ensemble of margins": eb.Ensemble([lambda x: x], eb.Margin()),
}


def prepared(objective, outputs=OUTPUTS, target=TARGET):
    return objective.prepare(outputs, target)


@pytest.mark.parametrize("name", CLASSIFYING)
def test_gain_and_success_are_the_formulas(name):
    objective = CLASSIFYING[name]
    clean = torch.where(torch.arange(7)[:, None] < 3, -OUTPUTS, OUTPUTS)
    ready = prepared(objective, clean)
    gain = np_gain(objective, OUTPUTS.numpy(), TARGET.numpy(), clean.numpy())
    np.testing.assert_allclose(ready.gain(OUTPUTS, TARGET).numpy(), gain, rtol=1e-12)
    success = np_success(objective, OUTPUTS.numpy(), TARGET.numpy(), clean.numpy())
    np.testing.assert_array_equal(ready.success(OUTPUTS, TARGET).numpy(), success)
    assert 0 < success.sum() < 7
    # The gain is the largest piece, and where the objective is a margin its sign is the success.
    np.testing.assert_allclose(ready.pieces(OUTPUTS, TARGET).amax(1).numpy(), gain, rtol=1e-12)
    if isinstance(objective, eb.Margin):
        np.testing.assert_array_equal(gain > 0, success)


@pytest.mark.parametrize("name", CLASSIFYING)
def test_slopes_of_the_pieces_against_finite_differences(name):
    ready = prepared(CLASSIFYING[name])
    outputs = OUTPUTS.clone().requires_grad_()
    pieces = ready.pieces(outputs, TARGET)
    h = 1e-6
    for c in range(pieces.shape[1]):
        (slope,) = torch.autograd.grad(pieces[:, c].sum(), outputs, retain_graph=True)
        for k in range(CLASSES):
            shift = torch.zeros_like(OUTPUTS)
            shift[:, k] = h
            plus, minus = ready.pieces(OUTPUTS + shift, TARGET), ready.pieces(OUTPUTS - shift, TARGET)
            np.testing.assert_allclose(slope[:, k].numpy(), ((plus - minus) / (2 * h))[:, c].numpy(), atol=1e-8)


def test_margins_choose_their_classes():
    margins = OUTPUTS - OUTPUTS.gather(1, TARGET[:, None])
    for row in range(7):
        others = [float(margins[row, c]) for c in range(CLASSES) if c != TARGET[row]]
        ranked = sorted(others, reverse=True)
        for classes, expected in (
            ("all", others),
            (9, others),
            (4, others),
            ("runner-up", ranked[:1]),
            (1, ranked[:1]),
            (2, ranked[:2]),
            (3, ranked[:3]),
        ):
            np.testing.assert_allclose(eb.Margin(classes).pieces(OUTPUTS, TARGET)[row].numpy(), expected)


def test_take_keeps_the_labels_of_the_samples():
    index = torch.tensor([5, 0, 3])
    for name, objective in CLASSIFYING.items():
        ready = prepared(objective)
        part = ready.take(index)
        torch.testing.assert_close(
            part.gain(OUTPUTS[index], TARGET[index]), ready.gain(OUTPUTS, TARGET)[index], msg=name
        )
        assert torch.equal(part.success(OUTPUTS[index], TARGET[index]), ready.success(OUTPUTS, TARGET)[index]), name


@pytest.mark.parametrize("label", ["runner-up", "least-likely"])
def test_a_chosen_label_is_that_of_the_unperturbed_input(label):
    objective = eb.TargetedMargin(label)
    assert objective.needs_clean
    assert not eb.TargetedMargin(2).needs_clean
    with pytest.raises(eb.InputError, match="call prepare first"):
        objective.gain(OUTPUTS, TARGET)
    target = OUTPUTS.argmax(1)
    found = np_label(objective, target.numpy(), OUTPUTS.numpy())
    assert (found != target.numpy()).all()
    np.testing.assert_array_equal(objective.prepare(OUTPUTS, target).label.numpy(), found)
    model, x = network("tanh"), images(5)
    target = labels(model, x)
    wanted = np_label(objective, target.numpy(), scores(model, x).numpy())
    result = eb.recipe("targeted", eps=5.0, p=2.0, label=label, steps=20)(model, x, target)
    np.testing.assert_array_equal(scores(model, result.perturbed).argmax(1).numpy() == wanted, result.success.numpy())
    assert result.success.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_not_finite_are_never_a_success(value):
    """Peers count a NaN as fooled; here a sample whose outputs are not finite never was, whatever is asked."""
    outputs = OUTPUTS.clone()
    outputs[2, 4] = value
    outputs[4] = value
    reference = torch.zeros_like(outputs)
    everything = {name: (prepared(o), TARGET) for name, o in CLASSIFYING.items()} | {
        "squared error": (eb.SquaredError(), reference),
        "custom": (eb.Custom(lambda o, t: o.abs().sum(1)), reference),
        "custom success": (eb.Custom(lambda o, t: o.sum(1), lambda o, t: torch.ones(len(o)).bool()), reference),
    }
    for name, (objective, target) in everything.items():
        success = objective.success(outputs, target)
        assert not success[[2, 4]].any(), name
        rest = [0, 1, 3, 5, 6]
        assert torch.equal(success[rest], objective.success(OUTPUTS, target)[rest]), name


@pytest.mark.parametrize("label", [3, LABELS[:5]], ids=["one", "each"])
@pytest.mark.filterwarnings("ignore:label is the own class")
def test_a_given_label_is_not_chosen_again_where_the_models_own_classes_are_the_target(label):
    model, x = network("tanh"), images(5)
    attack = eb.recipe("targeted", eps=0.2, p=2.0, label=label, stop="never")
    torch.testing.assert_close(attack(model, x).perturbed, attack(model, x, labels(model, x)).perturbed)


def test_squared_error_is_summed_over_every_output():
    outputs = torch.randn(3, 2, 4, 5, generator=generator(3), dtype=torch.float64)
    target = torch.randn(3, 2, 4, 5, generator=generator(4), dtype=torch.float64)
    error = ((outputs.numpy() - target.numpy()) ** 2).sum((1, 2, 3))
    objective = eb.SquaredError(threshold=float(np.median(error)))
    np.testing.assert_allclose(objective.gain(outputs, target).numpy(), error)
    np.testing.assert_array_equal(objective.success(outputs, target).numpy(), error > np.median(error))
    assert not objective.classifies
    # Without a target it is the model's own output, copied out of any graph.
    own = objective.check(outputs.requires_grad_(), None, 3)
    assert not own.requires_grad
    assert torch.equal(own, outputs.detach())


def test_custom_objectives():
    def function(outputs, target):
        return outputs[:, 0] * target

    objective = as_objective(function)
    assert isinstance(objective, eb.Custom)
    target = torch.linspace(-1, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(objective.gain(OUTPUTS, target), OUTPUTS[:, 0] * target)
    assert torch.equal(objective.success(OUTPUTS, target), OUTPUTS[:, 0] * target > 0)
    judged = eb.Custom(function, succeeds=lambda outputs, target: outputs[:, 1] > 0)
    assert torch.equal(judged.success(OUTPUTS, target), OUTPUTS[:, 1] > 0)
    for wrong in (lambda o, t: o, lambda o, t: o.sum(), lambda o, t: 3.0):
        with pytest.raises(eb.InputError, match=r"expected the objective to return one number a sample, \(7,\)"):
            eb.Custom(wrong).gain(OUTPUTS, target)
    for wrong in (lambda o, t: o[:, 0], lambda o, t: True, lambda o, t: o > 0):
        with pytest.raises(eb.InputError, match=r"expected succeeds to return one bool a sample, \(7,\)"):
            eb.Custom(function, succeeds=wrong).success(OUTPUTS, target)
    assert as_objective(judged) is judged
    with pytest.raises(eb.InputError, match="expected an objective or a callable"):
        as_objective(3)


def test_an_ensemble_is_the_mean_over_its_models_and_is_judged_by_its_objective():
    stacked = torch.randn(7, 3, CLASSES, generator=generator(5), dtype=torch.float64)
    for inner in (eb.CrossEntropy(), eb.TrueScore(), eb.Margin(), eb.TargetedMargin(3), eb.TargetedMargin(LABELS)):
        objective = eb.Ensemble([lambda x: x] * 3, inner)
        each = [np_gain(inner, stacked[:, m].numpy(), TARGET.numpy(), None) for m in range(3)]
        np.testing.assert_allclose(objective.gain(stacked, TARGET).numpy(), np.mean(each, 0), rtol=1e-12)
        np.testing.assert_array_equal(
            objective.success(OUTPUTS, TARGET).numpy(), np_success(inner, OUTPUTS.numpy(), TARGET.numpy(), None)
        )
    # One logit a model is two classes with that margin.
    logits = torch.randn(4, 2, 1, generator=generator(6), dtype=torch.float64)
    binary = torch.tensor([0, 1, 1, 0])
    expected = torch.where(binary == 0, logits[:, :, 0].T, -logits[:, :, 0].T).mean(0)
    torch.testing.assert_close(eb.Ensemble([lambda x: x] * 2, eb.Margin()).gain(logits, binary), expected)


def test_a_targeted_ensemble_end_to_end():
    model, x = network("tanh"), images(5)
    target = labels(model, x)
    label = (target + 2) % CLASSES
    objective = eb.Ensemble([model, *surrogates("tanh", x.dtype)], eb.TargetedMargin(label))
    attack = eb.Attack(eb.LpBall(p=2.0, eps=3.0), objective=objective, schedule=eb.Schedule(steps=10))
    result = attack(model, x, target)
    predicted = scores(model, result.perturbed).argmax(1)
    assert torch.equal(result.success, predicted == label)
    assert result.success.any()
    assert (predicted != target)[~result.success].any() or result.success.all()


def test_two_classes_from_one_logit():
    logit = torch.tensor([[3.0], [-1.0], [0.0]])
    both = two_class(logit)
    torch.testing.assert_close(both[:, 1] - both[:, 0], logit[:, 0])
    torch.testing.assert_close(both.softmax(1)[:, 1], logit[:, 0].sigmoid())
    for other in (torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 1, 1)):
        assert two_class(other) is other


def test_a_label_that_is_the_samples_own_class_is_warned_of():
    model = torch.nn.Linear(4, 3)
    x, target = torch.rand(5, 4), torch.tensor([0, 1, 2, 1, 1])
    with pytest.warns(eb.EpsballWarning, match="label is the own class of some of the samples"):
        result = eb.recipe("targeted", eps=0.1, label=1)(model, x, target)
    assert bool((result.perturbation[target == 1] == 0).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eb.recipe("targeted", eps=0.1, label=(target + 1) % 3)(model, x, target)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: eb.Margin("best"), 'expected classes as "all", "runner-up" or an integer >= 1'),
        (lambda: eb.Margin(0), "expected classes"),
        (lambda: eb.Margin(True), "expected classes"),
        (lambda: eb.Margin(1.5), "expected classes"),
        (lambda: eb.TargetedMargin("worst"), "expected label as a class"),
        (lambda: eb.TargetedMargin(True), "expected label as an integer"),
        (lambda: eb.TargetedMargin([1, 2]), "expected label as an integer or a tensor"),
        (lambda: eb.Ensemble([]), "at least one surrogate"),
        (lambda: eb.Ensemble([3]), "at least one surrogate"),
        (lambda: eb.Ensemble([abs], eb.TargetedMargin("runner-up")), "expected a plain objective for the surrogates"),
        (lambda: eb.Ensemble([abs], eb.Ensemble([abs])), "expected a plain objective for the surrogates"),
        (lambda: eb.Ensemble([abs], eb.SquaredError()), "expected a plain objective for the surrogates"),
    ],
)
def test_objectives_without_meaning_are_refused(build, message):
    with pytest.raises(eb.InputError, match=message):
        build()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_outputs_count_as_finite_up_to_the_largest_number_and_no_further(kind):
    largest = torch.finfo(kind).max
    fine = torch.tensor([[0.0, largest, -largest], [-largest, -largest, 1.0]], dtype=kind)
    broken = torch.tensor([[math.nan, 2.0, 0.0], [0.0, 1.0, -math.inf], [0.0, math.inf, math.nan]], dtype=kind)
    outputs, target = torch.cat([fine, broken]), torch.zeros(5, dtype=torch.int64)
    assert eb.Margin().success(outputs, target).tolist() == [True, True, False, False, False]
