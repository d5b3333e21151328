"""Every refused input is one InputError that says what was expected and what came; every good one passes."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from epsball import validation as v
from epsball.errors import InputError, Status, unknown_name

NAN, INF = math.nan, math.inf


def refuses(function, *arguments, **keywords):
    """Call and return the message, which must say what was expected, or fail."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "got" in message
    return message


@pytest.mark.parametrize("p", [0, 0.999, -1, -INF, NAN, "2", None, True, 2j, torch.tensor(2.0)])
def test_bad_p(p):
    assert "[1, inf]" in refuses(v.check_p, p)


@pytest.mark.parametrize("p", [1, 1.0, 1.0001, 2, INF, np.float64(3.0), Fraction(3, 2)])
def test_good_p(p):
    v.check_p(p)


@pytest.mark.parametrize("eps", [-1e-9, NAN, -INF, torch.tensor([0.1, -0.1]), torch.tensor([NAN])])
def test_eps_of_no_meaning(eps):
    assert "eps >= 0" in refuses(v.check_eps, eps)


@pytest.mark.parametrize("eps", [None, "0.1", True, [0.1], 1j, np.ones(3), torch.ones(2, 2), torch.tensor([1, 2])])
def test_eps_of_the_wrong_type(eps):
    assert "a number or a floating tensor (B,)" in refuses(v.check_eps, eps)


@pytest.mark.parametrize(
    "eps", [0, 0.1, INF, np.float32(0.1), torch.tensor(0.1), torch.tensor([0.0, INF]), torch.ones(0)]
)
def test_good_eps(eps):
    v.check_eps(eps)


@pytest.mark.parametrize(
    "bounds",
    [
        (1.0, 0.0),
        (0.0, 0.0),
        (NAN, 1.0),
        (0.0, NAN),
        (INF, INF),
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])),
        (torch.zeros(3), torch.ones(4)),
        (0.0, 1.0, 2.0),
        (0.0,),
        0.5,
        "01",
        ("a", "b"),
        (None, 1.0),
        torch.tensor([0.0, 1.0]),
    ],
)
def test_bad_bounds(bounds):
    assert "bounds" in refuses(v.check_bounds, bounds)


@pytest.mark.parametrize("bounds", [None, (0, 1), [0.0, 1.0], (-INF, INF), (0.0, INF), (torch.zeros(3), 1.0)])
def test_good_bounds(bounds):
    v.check_bounds(bounds)


@pytest.mark.parametrize(
    "weights",
    [[1.0], 1.0, np.ones(2), torch.tensor([1.0, -1e-9]), torch.tensor([NAN]), torch.tensor([INF]), torch.tensor([1j])],
)
def test_bad_weights(weights):
    assert "weights" in refuses(v.check_weights, weights)


@pytest.mark.parametrize("weights", [None, torch.zeros(3), torch.ones(2, 2), torch.tensor([0, 1])])
def test_good_weights(weights):
    v.check_weights(weights)


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", None, True, NAN])
def test_bad_counts_and_seeds(value):
    assert "steps as an integer >= 1" in refuses(v.check_count, "steps", value)
    if not isinstance(value, int) or isinstance(value, bool):
        assert "seed as an integer" in refuses(v.check_seed, value)


def test_good_counts_and_seeds():
    v.check_count("steps", 1)
    v.check_count("restarts", 0, least=0)
    v.check_seed(-3)
    v.check_seed(2**80)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3)), "torch tensor"),
        ([[0.0]], "torch tensor"),
        (torch.zeros(3), r"x\[None\]"),
        (torch.tensor(1.0), r"x\[None\]"),
        (torch.zeros(3, 0), "at least one entry"),
        (torch.zeros(2, 3, dtype=torch.float16), "float32 or float64"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "float32 or float64"),
        (torch.zeros(2, 3, dtype=torch.uint8), "float32 or float64"),
        (torch.zeros(2, 3, dtype=torch.int64), "float32 or float64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "float32 or float64"),
        (torch.tensor([[0.0, NAN], [0.0, 0.0]]), "in 1 of 2 samples"),
        (torch.tensor([[0.0, INF], [-INF, NAN]]), "in 2 of 2 samples"),
    ],
)
def test_bad_batches(x, words):
    assert re.search(words, refuses(v.check_batch, x))


def test_good_batches_come_back_detached():
    x = torch.ones(2, 3, requires_grad=True)
    assert not v.check_batch(x).requires_grad
    assert v.check_batch(torch.zeros(0, 3)).shape == (0, 3)
    assert v.check_batch(torch.zeros(1, 1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [
        (0.0, 255.0, (0.0, 1.0)),
        (-1.0, 1.0, (0.0, 1.0)),
        (0.0, 1.0 + 1e-4, (0.0, 1.0)),
        (-0.1, 5.0, (0.0, INF)),
        (-5.0, 1.1, (-INF, 1.0)),
        (0.0, 1.0, (torch.tensor([0.0, 0.5]), 1.0)),
    ],
)
def test_inputs_outside_their_bounds(low, high, bounds):
    x = torch.tensor([[0.7, 0.7], [high, low]])
    assert "inside bounds" in refuses(v.check_bounds_contain, x, bounds)


def test_inputs_inside_their_bounds():
    x = torch.tensor([[0.0, 1.0], [1.0 + 1e-7, -1e-8]])
    for bounds in (None, (0.0, 1.0), (0.0, INF), (-INF, INF), (torch.tensor([0.0, -0.1]), 2.0)):
        v.check_bounds_contain(x, bounds)
    v.check_bounds_contain(torch.zeros(0, 2), (5.0, 6.0))
    assert "broadcast to one sample" in refuses(v.check_bounds_contain, x, (torch.zeros(3), 1.0))
    assert "broadcast to one sample" in refuses(v.check_bounds_contain, x, (torch.zeros(2, 2), 1.0))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([0, 1, 2], "tensor of class indices"),
        (np.array([0, 1, 2]), "tensor of class indices"),
        (torch.tensor([0.0, 1.0, 2.0]), "int64"),
        (torch.tensor([True, False, True]), "int64"),
        (torch.tensor([0, 1, 2], dtype=torch.uint8), "int64"),
        (torch.tensor([0, 1]), "(3,)"),
        (torch.tensor([[0], [1], [2]]), "(3,)"),
        (torch.tensor(1), "(3,)"),
    ],
)
def test_bad_labels(target, words):
    assert words in refuses(v.check_labels, target, 3)


def test_labels_and_their_range():
    labels = v.check_labels(torch.tensor([0, 2, 1], dtype=torch.int32), 3)
    assert labels.dtype == torch.int64
    v.check_class_range(labels, 3)
    v.check_class_range(torch.zeros(0, dtype=torch.int64), 3)
    assert "from 0 to 1" in refuses(v.check_class_range, labels, 2)
    assert "-1" in refuses(v.check_class_range, torch.tensor([-1, 0]), 2)


@pytest.mark.parametrize(
    "outputs",
    [
        {"logits": torch.zeros(3, 2)},
        (torch.zeros(3, 2),),
        torch.zeros(3),
        torch.zeros(3, 1),
        torch.zeros(3, 2, 2),
        torch.zeros(2, 2),
        torch.zeros(3, 2, dtype=torch.int64),
        None,
    ],
)
def test_bad_scores(outputs):
    assert "the surrogate" in refuses(v.check_scores, outputs, 3, what="the surrogate")


def test_good_scores():
    assert v.check_scores(torch.zeros(3, 2), 3).shape == (3, 2)


@pytest.mark.parametrize(
    "sample_id", [[0, 1, 2], torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 1]), torch.zeros(3, 1, dtype=torch.int64)]
)
def test_bad_sample_ids(sample_id):
    assert "sample_id" in refuses(v.check_sample_id, sample_id, torch.zeros(3, 2))


def test_bool_sample_ids_are_refused_and_good_ones_kept():
    x = torch.zeros(3, 2)
    refuses(v.check_sample_id, torch.tensor([True, False, True]), x)
    assert torch.equal(v.check_sample_id(None, x), torch.tensor([0, 1, 2]))
    kept = v.check_sample_id(torch.tensor([7, 7, -1], dtype=torch.int32), x)
    assert kept.tolist() == [7, 7, -1]
    assert kept.dtype == torch.int64


def test_models_and_callables():
    x = torch.zeros(1, 2)
    v.check_model(torch.nn.Linear(2, 2), x)
    v.check_model(lambda t: t, x)
    assert "callable" in refuses(v.check_model, "resnet", x)
    assert "float64" in refuses(v.check_model, torch.nn.Linear(2, 2).double(), x)
    assert "meta" in refuses(v.check_model, torch.nn.Linear(2, 2, device="meta"), x)
    assert v.check_callable("objective", max) is max
    assert "objective to be callable" in refuses(v.check_callable, "objective", 3)


def test_input_error_is_a_value_error_and_names_have_neighbours():
    assert issubclass(InputError, ValueError)
    assert "'fgsm'" in str(unknown_name("recipe", "fgms", ["pgd", "fgsm", "bim"]))
    assert "bim, fgsm, pgd" in str(unknown_name("recipe", "zzzzz", ["pgd", "fgsm", "bim"]))
    assert [s for s in Status if s.ok] == [Status.SUCCESS, Status.ALREADY]
