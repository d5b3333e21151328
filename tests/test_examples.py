"""The scripts in examples/: each runs with small settings, and what it reports is measured again past the library."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


def load(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    module, out = load("diabetes"), tmp_path_factory.mktemp("diabetes")
    arguments = ["--out", str(out), "--steps", "60", "--patients", "12", "--eps", "0.1", "0.5", "--seed", "3"]
    return module, module.main(arguments)


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    pytest.importorskip("matplotlib")
    module, out = load("forecaster"), tmp_path_factory.mktemp("forecaster")
    arguments = ["--out", str(out), "--steps", "60", "--weeks", "5", "--eps", "1", "3", "--seed", "3"]
    return module, module.main(arguments)


# ------------------------------------------------------------------------------------------------------- diabetes


@pytest.mark.slow
def test_diabetes_readings_are_the_data_in_their_own_units(diabetes):
    module, _ = diabetes
    from sklearn.datasets import load_diabetes

    x, y = module.load()
    data = load_diabetes(scaled=False)
    full = module.Progression.complete(x)
    ldl = torch.from_numpy(data.data[:, 5])  # the column that the script leaves out and computes again
    assert x.shape == (442, 8)
    assert y[:, 0].tolist() == data.target.tolist()
    assert (full[:, 8] - ldl).abs().median() < 0.01
    assert (full[:, 9] - torch.from_numpy(data.data[:, 7])).abs().max() < 1.0  # recorded rounded
    torch.testing.assert_close(full[:, 6], torch.from_numpy(data.data[:, 8]))


@pytest.mark.slow
def test_diabetes_stays_within_the_budget_the_bounds_and_the_free_features(diabetes):
    module, found = diabetes
    frozen = torch.tensor([not free for *_, free in module.FEATURES])
    assert frozen.tolist() == [True, True] + [False] * 6
    low, high = found.bounds
    for (eps, p, name), result in found.results.items():
        eta = result.perturbed - found.x
        assert (eta[:, frozen] == 0).all()
        assert (result.perturbed[:, frozen] == result.perturbed[:, frozen].round()).all()
        assert (result.perturbed >= low).all()
        assert (result.perturbed <= high).all()
        size = torch.linalg.vector_norm(eta[:, ~frozen] / found.weights[~frozen], p, dim=1)
        assert (size <= eps * (1 + 1e-9)).all(), (p, name)
        assert (size > 0.3 * eps).all(), (p, name)


@pytest.mark.slow
def test_diabetes_worst_case_is_above_chance_and_above_any_single_feature(diabetes):
    module, found = diabetes
    for p, noise in module.RANDOM.items():
        for eps in (0.1, 0.5):
            for name in module.ATTACKS:
                assert found.change[eps, p, name] > found.change[eps, p, noise] > 0
        for name in (noise, *module.ATTACKS):
            assert found.change[0.5, p, name] > found.change[0.1, p, name]
    together = found.change[found.shown, math.inf, "quadratic-lp"]
    assert set(found.alone) == {name for name, _, free in module.FEATURES if free}
    assert max(found.alone.values()) < together < 1.2 * sum(found.alone.values())


# ----------------------------------------------------------------------------------------------------- forecaster


@pytest.mark.slow
def test_forecaster_demand_follows_its_documented_process(forecaster):
    module, _ = forecaster
    series = module.demand(7 * 400, torch.Generator().manual_seed(0)).view(-1, 7, 24)
    hour = torch.arange(24, dtype=torch.float64)
    shape = 9 * torch.sin(2 * math.pi * (hour - 9) / 24) + 6 * torch.sin(4 * math.pi * (hour - 4) / 24)
    assert (series[:, :5].mean((0, 1)) - (55 + shape)).abs().max() < 1.5
    assert (series[:, 5:].mean((0, 1)) - (49 + 0.6 * shape)).abs().max() < 1.5
    residual = series[:, :5] - (55 + shape)
    assert 0.85 * 4.6 < residual.std() < 1.15 * 4.6  # √(0.9² / (1 - 0.98²) + 0.8²)


@pytest.mark.slow
def test_forecaster_changes_only_what_the_limit_allows(forecaster):
    module, found = forecaster
    length = math.sqrt(module.PAST)
    limits = {limit for _, limit, _ in found.results}
    assert len(found.results) == 2 * 3 * len(limits)
    for (eps, limit, kind), result in found.results.items():
        eta = result.perturbed - found.x
        assert result.perturbed.min() >= module.METER[0]
        assert result.perturbed.max() <= module.METER[1]
        changed = eta != 0
        blocks = changed.view(len(eta), -1, module.BLOCK).any(2).sum(1)
        case = (limit, kind)
        if limit == "every hour, p = 2":
            assert (eta.norm(dim=1) <= eps * length * (1 + 1e-9)).all(), case
        elif limit == "one hour, p = 1":
            assert (eta.abs().sum(1) <= eps * length * (1 + 1e-9)).all(), case
        else:
            assert (eta.abs() <= eps * (1 + 1e-9)).all(), case
        most = {"one hour": (1, 1), "one 6-hour block": (6, 1), "four such blocks": (24, 4)}.get(limit, (168, 28))
        assert (changed.sum(1) <= most[0]).all(), case
        assert (blocks <= most[1]).all(), case
        assert changed.any(1).all(), case


@pytest.mark.slow
def test_forecaster_worst_case_is_above_chance(forecaster):
    _, found = forecaster
    for eps, limit in {key[:2] for key in found.results}:
        noise = found.change[eps, limit, "random"]
        assert found.change[eps, limit, "linear"] > noise > 0
        assert found.change[eps, limit, "quadratic"] > noise
        # The gain is measured by the attack, the change by the script.
        result = found.results[eps, limit, "quadratic"]
        rms = (result.gain / 24).sqrt().mean()
        assert found.change[eps, limit, "quadratic"] == pytest.approx(float(rms), rel=1e-6)


@pytest.mark.slow
def test_forecaster_reports_the_hours_of_the_perturbation(forecaster):
    module, found = forecaster
    for eps, (first, hour) in found.chosen.items():
        for start, size, limit in ((first, module.BLOCK, "one 6-hour block"), (hour, 1, "one hour")):
            changed = found.results[eps, limit, "quadratic"].perturbation != 0
            for row, begin in zip(changed, start.tolist(), strict=True):
                assert row.nonzero()[:, 0].tolist() == list(range(begin, begin + size))
                assert begin % size == 0
    # Of all blocks the one that is free to be chosen in each week moves the forecast at least as far as a fixed one.
    assert float(found.blocks.max()) <= found.change[found.shown, "one 6-hour block", "quadratic"] * (1 + 0.05)
    assert found.blocks.shape == (28,)
    assert (found.blocks > 0).all()
    assert module.ago(162, 6) == "the last 6 hours"
    assert module.ago(0, 6) == "168 to 162 hours ago"
    assert module.ago(167, 1) == "the last hour"


@pytest.mark.slow
def test_each_script_writes_its_plot(diabetes, forecaster):
    for _, found in (diabetes, forecaster):
        assert found.figure.read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["diabetes", "forecaster"])
def test_committed_plot_is_small(name):
    figure = EXAMPLES / "figures" / f"{name}.png"
    assert figure.read_bytes().startswith(PNG)
    assert figure.stat().st_size < 100_000
