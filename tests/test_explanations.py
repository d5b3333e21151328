"""Deviations of Table 3 above 30 %: what was tested to explain them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from epsball.experiments.paper.explanations import centred_norm, explanations, mean_centred
from epsball.metrics import Robustness
from epsball.report.paper import table3_markdown


def row(rho1: float, range_: str = "unbounded") -> dict[str, Any]:
    def value(paper: float, ours: float) -> dict[str, float]:
        return {"paper": paper, "ours": ours, "low": 0.99 * ours, "high": 1.01 * ours}

    return {
        "network": "cifar10-nin",
        "title": "NIN",
        "range": range_,
        "count": 100,
        "error": value(13.8, 14.0),
        "rho1": value(0.012, rho1),
        "rho2": value(0.004, 0.0044),
        "eps99": value(0.018, 0.017),
        "deepfool_fails": 0,
        "passes": 10.0,
    }


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_centred_norm_is_that_of_the_image_less_its_channels_means(p):
    x = torch.rand(7, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    array = x.numpy()
    by_hand = [np.linalg.norm((image - array.mean((0, 2, 3))[:, None, None]).ravel(), p) for image in array]
    assert centred_norm(x, p).tolist() == pytest.approx(by_hand)


def test_the_mean_is_over_the_correctly_classified_images_that_deepfool_fooled():
    ones = torch.ones(4, dtype=torch.int64)
    result = Robustness(
        p=math.inf,
        level=0.99,
        distance=torch.tensor([0.1, 0.2, 0.0, math.inf]),
        relative=torch.zeros(4),
        r2=torch.zeros(4),
        correct=torch.tensor([True, True, False, True]),
        forwards=ones,
        backwards=ones,
    )
    assert mean_centred(result, torch.tensor([0.5, 0.8, 0.5, 0.5])) == pytest.approx((0.2 + 0.25) / 2)


@pytest.mark.parametrize(
    ("centred", "verdict"),
    [(0.0110, "that would explain it"), (0.0080, "that would explain a part"), (0.0050, "that would not explain it")],
)
def test_an_explanation_says_what_the_test_found(centred, verdict):
    (told,) = explanations([row(0.0055), row(0.0055, "inside [0, 1]")], {"cifar10-nin": centred})
    assert (told["network"], told["measure"]) == ("cifar10-nin", "rho1")
    assert verdict in told["text"]
    assert f"{centred:.4f} ({100 * (centred / 0.012 - 1):+.0f} %)" in told["text"]
    assert "ρ̂₂ (+10 %) and ε₉₉ (-6 %)" in told["text"]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (0.0032, "of 0.0025, the nearest value that is rounded to 0.002, ours is +28 %, that would explain it"),
        (0.0052, "of 0.0025, the nearest value that is rounded to 0.002, ours is +108 %, that does not explain it"),
        (0.0010, "of 0.0015, the nearest value that is rounded to 0.002, ours is -33 %, that does not explain it"),
    ],
)
def test_rounding_in_the_paper_is_tested(ours, said):
    dense = row(0.0120)
    dense["rho2"] |= {"paper": 0.002, "ours": ours}
    (told,) = explanations([dense], {"cifar10-nin": 0.012})
    assert (told["network"], told["measure"]) == ("cifar10-nin", "rho2")
    assert said in told["text"]


def test_a_small_deviation_needs_no_explanation():
    assert explanations([row(0.0125)], {"cifar10-nin": 0.02}) == []


def test_an_interval_of_one_image_is_not_written():
    alone = row(0.0055)
    alone["rho1"] |= {"low": None, "high": None}
    alone["eps99"] |= {"high": None}
    record = {
        "rows": [alone],
        "left_out": [],
        "explanations": explanations([alone], {"cifar10-nin": 0.011}),
        "made_by": "epsball paper table3",
        "versions": {"epsball": "1", "torch": "2", "threads": 1},
    }
    text = table3_markdown(record)
    assert "0.012 → 0.0055, -54 %" in text
    assert "0.018 → 0.0170 (from 0.0168), -6 %" in text
    assert "to ∞" not in text
    assert "NIN (-54 %): tested whether" not in text  # without an interval nothing can be said to deviate
    record["rows"] = [row(0.0055)]
    assert "- ρ̂₁ of NIN (-54 %): tested whether" in table3_markdown(record)
