"""The paper's tables and figures: the arithmetic on hand-made curves, and real runs on a few MNIST images."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from epsball import data, networks
from epsball.experiments import paper
from epsball.experiments.claims import Claim, judge
from epsball.metrics import FoolingCurve
from epsball.metrics.intervals import paired_difference

needs_mnist = pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST in EPSBALL_DATA")


def columns(path, **where) -> dict[str, np.ndarray]:
    """Read a Parquet file as arrays, of the rows that have the given values."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    arrays = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    keep = np.logical_and.reduce([np.ones(len(table), bool), *(arrays[key] == value for key, value in where.items())])
    return {name: values[keep] for name, values in arrays.items()}


def curve(fooled: list[list[bool]], correct: list[bool]) -> FoolingCurve:
    table = torch.tensor(fooled)
    zeros = torch.zeros(table.shape, dtype=torch.int64)
    return FoolingCurve(
        tuple(0.1 * (i + 1) for i in range(len(fooled))), table, torch.tensor(correct), zeros.double(), zeros, zeros
    )


def test_paired_difference_against_direct_computation():
    generator = np.random.default_rng(0)
    first, second = generator.random(400) < 0.7, generator.random(400) < 0.6
    difference, low, high = paired_difference(first.tolist(), second.tolist())
    each = first.astype(float) - second.astype(float)
    assert difference == pytest.approx(each.mean())
    assert high - difference == pytest.approx(1.959964 * each.std() / math.sqrt(400), rel=1e-6)
    assert difference - low == pytest.approx(high - difference)


def test_paired_difference_of_equal_measurements_is_not_certain():
    difference, low, high = paired_difference([True] * 50, [True] * 50)
    assert difference == 0.0
    assert low < 0.0 < high


def test_claims_are_judged_on_the_correctly_classified_samples_alone():
    correct = [True] * 100 + [False] * 100
    # On the misclassified half the second method is ahead, which must not count.
    first = curve([[True] * 60 + [False] * 140, [True] * 50 + [False] * 150], correct)
    second = curve([[True] * 10 + [False] * 90 + [True] * 100, [True] * 50 + [False] * 50 + [True] * 100], correct)
    verdict = judge(Claim("a above b", "test", "a", "b"), {"a": first, "b": second})
    assert verdict.difference == pytest.approx((50.0, 0.0))
    assert (verdict.holds, verdict.reversed) == (1, 0)
    back = judge(Claim("b above a", "test", "b", "a"), {"a": first, "b": second})
    assert (back.holds, back.reversed) == (0, 1)
    near = judge(Claim("b competitive with a", "test", "b", "a", tolerance=60.0), {"a": first, "b": second})
    assert (near.holds, near.reversed) == (2, 0)
    assert "holds at 1 of 2 eps" in verdict.sentence()


def test_grids_are_those_of_the_issue():
    assert paper.PAPER["mnist-fcnn"].grid == pytest.approx(np.linspace(0.01, 0.10, 10))
    assert paper.PAPER["mnist-lenet5"].grid == pytest.approx(np.linspace(0.02, 0.20, 10))


@needs_mnist
def test_table3_reports_what_the_distances_say(tmp_path):
    text = paper.table3(tmp_path, limit=60, batch_size=25)
    record = json.loads((tmp_path / "table3.json").read_text())
    assert len(columns(tmp_path / "distances.parquet")["network"]) == 60 * 2 * 2
    for row in record["rows"]:
        part = columns(tmp_path / "distances.parquet", network=row["network"], range=row["range"])
        right = part["correct"]
        assert row["error"]["ours"] == pytest.approx(100.0 * (1.0 - right.mean()))
        assert row["rho1"]["ours"] == pytest.approx(part["relative"][right].mean(), rel=1e-6)
        assert row["rho2"]["ours"] == pytest.approx(part["r2"][right].mean(), rel=1e-6)
        assert (part["distance"][right] <= row["eps99"]["ours"]).mean() > 0.99
        assert (part["distance"][right] < row["eps99"]["ours"]).mean() <= 0.99
        assert row["title"] in text
        assert row["rho1"]["low"] < row["rho1"]["ours"] < row["rho1"]["high"]
    model, sample = networks.load("mnist-fcnn"), data.load("mnist", limit=60)
    wrong = (model(sample.x).argmax(1) != sample.target).double().mean()
    assert record["rows"][0]["error"]["ours"] == pytest.approx(100.0 * float(wrong))


@needs_mnist
@pytest.mark.slow
def test_figure3_writes_rows_curves_and_verdicts(tmp_path):
    calls = []
    text = paper.figure3(tmp_path, limit=24, batch_size=24, progress=lambda *call: calls.append(call))
    record = json.loads((tmp_path / "figure3.json").read_text())
    assert len(record["panels"]) == 4
    assert len(columns(tmp_path / "results.parquet")["eps"]) == 4 * len(paper.METHODS) * 10 * 24
    for panel in record["panels"]:
        for method, values in panel["curves"].items():
            part = columns(tmp_path / "results.parquet", network=panel["network"], range=panel["range"], attack=method)
            fooled = part["fooled"].reshape(10, 24)[:, part["correct"][:24]]
            assert values["percent"] == pytest.approx(100.0 * fooled.mean(1))
            hit = part["fooled"]
            assert (part["norm_linf"][hit] <= part["eps"][hit] * (1 + 1e-5) + 1e-6).all()
    assert len(calls) == 4 * len(paper.METHODS)
    assert "Algorithm 1 fools more than FGSM" in text
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "figure3-bounded.png",
        "figure3-bounded.svg",
        "figure3-unbounded.png",
        "figure3-unbounded.svg",
    ]


@needs_mnist
def test_figure1_examples_are_fooled(tmp_path):
    paper.figure1(tmp_path, limit=300)
    record = json.loads((tmp_path / "figure1.json").read_text())
    model, sample = networks.load("mnist-lenet5"), data.load("mnist", limit=300)
    assert len(record["examples"]) >= 8
    for label, example in record["examples"].items():
        x, perturbed = torch.tensor(example["x"]), torch.tensor(example["perturbed"])
        assert torch.equal(x, sample.x[example["sample_id"]])
        assert int(model(x[None]).argmax()) == int(label)
        assert int(model(perturbed[None]).argmax()) == example["prediction"] != int(label)
        assert float((perturbed - x).abs().max()) <= 0.1 + 1e-6
    assert (tmp_path / "figures" / "figure1a.png").stat().st_size > 10_000
