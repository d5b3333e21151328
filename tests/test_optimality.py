"""Local optimality against a brute-force integral of the robustness curves."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import epsball as eb
from epsball.metrics import optimality
from helpers import generator


def robustness(distance, eps):
    """The share of samples still classified correctly within eps."""
    return float(np.mean(np.asarray(distance) > eps))


def area(distance, limit):
    """The integral of a step function, piece by piece between its jumps, each piece by its midpoint."""
    jumps = sorted({0.0, limit, *(float(d) for d in distance if d < limit)})
    return sum((b - a) * robustness(distance, (a + b) / 2) for a, b in itertools.pairwise(jumps))


def brute(distance, envelope=None):
    """Optimality by its definition, with loops and integrals."""
    rows = [list(row) for row in distance] + ([list(envelope)] if envelope is not None else [])
    best = [min(column) for column in zip(*rows, strict=True)]
    limit = max((d for d in best if math.isfinite(d)), default=0.0)
    room = robustness(best, 0.0) * limit - area(best, limit)
    if room <= 1e-12:
        return [math.nan] * len(distance)
    return [1 - (area(row, limit) - area(best, limit)) / room for row in distance]


distances = st.one_of(st.floats(0.0, 10.0, width=32), st.just(0.0), st.just(math.inf), st.sampled_from([1.0, 2.5]))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_it_is_the_integral(data, attacks, count, known):
    rows = [[data.draw(distances) for _ in range(count)] for _ in range(attacks)]
    envelope = [data.draw(distances) for _ in range(count)] if known else None
    given = torch.tensor(rows, dtype=torch.float64)
    got = optimality(given, None if envelope is None else torch.tensor(envelope, dtype=torch.float64))
    np.testing.assert_allclose(got.numpy(), brute(rows, envelope), rtol=1e-7, atol=1e-7)


def test_values_known_by_hand():
    # Curves of two samples: the envelope is [1, 3], so that its area is 2, of 3 without an attack.
    given = torch.tensor([[1.0, 3.0], [1.0, math.inf], [2.0, 3.0], [3.0, 4.0], [math.inf, math.inf]])
    assert optimality(given).tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])


def test_a_misclassified_sample_leaves_no_area():
    given = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]])
    assert optimality(given).tolist() == pytest.approx([1.0, 0.5])


def test_a_sample_that_nobody_moves_costs_all_alike():
    given = torch.tensor([[1.0, 3.0, math.inf], [2.0, 3.0, math.inf]])
    # Envelope [1, 3, never]: areas 7/3 and 8/3, of 3 without an attack.
    assert optimality(given).tolist() == pytest.approx([1.0, 1 - (1 / 3) / (2 / 3)])


def test_better_distances_elsewhere_lower_it():
    given = torch.tensor([[2.0, 3.0]])
    assert optimality(given).item() == pytest.approx(1.0)
    assert optimality(given, torch.tensor([1.0, 3.0])).item() == pytest.approx(0.5)
    assert optimality(given, torch.tensor([5.0, 9.0])).item() == pytest.approx(1.0)  # worse ones change nothing


def test_leading_dimensions_are_batched():
    given = torch.rand(3, 2, 4, 11, generator=generator(0), dtype=torch.float64)
    got = optimality(given)
    assert got.shape == (3, 2, 4)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(got[i, j].numpy(), brute(given[i, j].tolist()), rtol=1e-9)


def test_no_room_is_nan_and_not_a_number_by_accident():
    assert optimality(torch.zeros(2, 3)).isnan().all()
    assert optimality(torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]])).isnan().all()  # one value: nothing below it
    assert optimality(torch.full((2, 3), math.inf)).isnan().all()


def test_it_takes_the_distances_of_an_attack():
    rng = generator(1)
    model = torch.nn.Linear(6, 4)
    x = torch.rand(30, 6, generator=rng)
    target = model(x).argmax(1)
    deepfool = eb.recipe("deepfool", p=2.0, bounds=(0.0, 1.0))(model, x, target)
    found = torch.where(deepfool.success, deepfool.norm, math.inf)
    got = optimality(torch.stack([found, 2 * found]))
    assert got[0] == 1.0
    assert got[1] < 0.8


@pytest.mark.parametrize(
    ("distance", "envelope", "message"),
    [
        (torch.tensor([[1.0, -1.0]]), None, "negative or NaN"),
        (torch.tensor([[1.0, math.nan]]), None, "negative or NaN"),
        (torch.tensor([[1, 2]]), None, "floating-point"),
        ([[1.0]], None, "floating-point"),
        (torch.ones(3), None, "attacks by samples"),
        (torch.ones(2, 0), None, "none empty"),
        (torch.ones(2, 3), torch.ones(2), "one distance a sample"),
        (torch.ones(2, 3), torch.full((3,), math.nan), "in envelope"),
    ],
)
def test_bad_distances_are_refused(distance, envelope, message):
    with pytest.raises(eb.InputError, match=message):
        optimality(distance, envelope)
