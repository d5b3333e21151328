"""The paper's tables and figures: the arithmetic on hand-made curves, and real runs on a few MNIST images."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import epsball as eb
from epsball import data, networks
from epsball.experiments import paper
from epsball.experiments.claims import Claim, judge
from epsball.experiments.paper.classifiers import PAPER
from epsball.experiments.paper.regressors import PANELS
from epsball.experiments.regression_claims import judge_panel, paired_mean
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
    assert paper.PAPER["cifar10-nin"].grid == pytest.approx(np.linspace(0.003, 0.03, 10))
    assert paper.PAPER["cifar10-densenet40"].grid == pytest.approx(np.linspace(0.002, 0.01, 9))


@pytest.fixture
def mnist_alone():
    """The networks for MNIST alone; the catalogue afterwards as it was, in its order too."""
    everything = dict(PAPER)
    for name in everything:
        if not name.startswith("mnist"):
            del PAPER[name]
    yield
    PAPER.clear()
    PAPER.update(everything)


@needs_mnist
@pytest.mark.usefixtures("mnist_alone")
def test_table3_reports_what_the_distances_say(tmp_path):
    text = paper.table3(paper.Setting(tmp_path, limit=60, batch_size=25))
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
@pytest.mark.usefixtures("mnist_alone")
def test_figure3_writes_rows_curves_and_verdicts(tmp_path):
    calls = []
    text = paper.figure3(paper.Setting(tmp_path, limit=24, batch_size=24, progress=lambda *call: calls.append(call)))
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
def test_a_classifier_that_gets_nothing_right_has_no_fooling_ratio(tmp_path, monkeypatch):
    from importlib import import_module

    from epsball.networks.storage import save

    figure3, sample = import_module("epsball.experiments.paper.figure3"), data.load("mnist", limit=2)
    monkeypatch.setattr(figure3, "METHODS", {"fgsm": {}})
    monkeypatch.setattr(figure3, "CLAIMS", ())
    fresh = (networks.build("mnist-fcnn", seed).eval() for seed in range(100))
    wrong = next(model for model in fresh if not (model(sample.x).argmax(1) == sample.target).any())
    save(wrong, {"summary": "untrained"}, tmp_path / "wrong.safetensors")
    weights = {"mnist-fcnn": str(tmp_path / "wrong.safetensors")}
    text = paper.figure3(paper.Setting(tmp_path / "out", limit=2, panels="a", weights=weights))
    record = json.loads((tmp_path / "out" / "figure3.json").read_text())
    assert (record["panels"], record["none_correct"], record["left_out"]) == ([], ["mnist-fcnn"], [])
    assert "none of the images is classified correctly: mnist-fcnn" in text
    assert not columns(tmp_path / "out" / "results.parquet")["correct"].any()


@needs_mnist
def test_figure1_examples_are_fooled(tmp_path):
    paper.figure1(paper.Setting(tmp_path, limit=300, panels="a"))
    (panel,) = json.loads((tmp_path / "figure1.json").read_text())["panels"]
    model, sample = networks.load("mnist-lenet5"), data.load("mnist", limit=300)
    assert len(panel["examples"]) >= 8
    for example in panel["examples"]:
        x, perturbed = torch.tensor(example["x"]), torch.tensor(example["perturbed"])
        assert torch.equal(x, sample.x[example["sample_id"]])
        assert int(model(x[None]).argmax()) == example["label"]
        assert int(model(perturbed[None]).argmax()) == example["prediction"] != example["label"]
        assert float((perturbed - x).abs().max()) <= 0.1 + 1e-6
    assert (tmp_path / "figures" / "figure1a.png").stat().st_size > 10_000


def test_regression_claims_are_judged_by_paired_differences():
    generator = torch.Generator().manual_seed(0)
    base = 20.0 + 3.0 * torch.randn(200, generator=generator)
    noise = 0.05 * torch.randn(2, 200, generator=generator)
    outs = {
        "random-l2": base.expand(2, -1),
        "linear-l2-1": base - 1.0 + noise,
        "linear-l2-10": torch.stack([base - 2.0, base]),
        "linear-l2-20": base.expand(2, -1) - 2.0,
        "quadratic-l2": base.expand(2, -1) - 1.8 + noise,
        "quadratic-l2-10": base.expand(2, -1) - 1.8 + noise,
    }
    rows = {row["text"]: row for row in judge_panel("a", [40.0, 10.0], outs, {"linear-l2-1": "random-l2"})}
    iterating = rows["iterating lowers the output PSNR (10 steps)"]
    # The images differ by far more than the methods: only differences on the same image can tell.
    assert "holds at 1 of 2 points, reversed at 1, undecided at 0" in iterating["sentence"]
    assert iterating["difference"] == pytest.approx([-1.0, 1.0], abs=0.02)
    close = rows["one quadratic step is competitive with 20 linear ones (at most 0.5 dB above)"]
    assert "holds at 2 of 2" in close["sentence"]
    assert "undecided at 2" in rows["10 quadratic steps are below one"]["sentence"]
    assert "holds at 2 of 2" in rows["linear-l2-1 is at or below random-l2"]["sentence"]


def test_paired_mean_against_scipy():
    from scipy import stats

    first, second = np.random.default_rng(0).normal(size=(2, 30))
    mean, low, high = paired_mean(torch.from_numpy(first), torch.from_numpy(second))
    assert mean == pytest.approx((first - second).mean())
    spread = stats.norm.ppf(0.975) * stats.sem(first - second)
    assert (mean - low, high - mean) == pytest.approx((spread, spread), rel=1e-6)


def pixel_rows(loss: list[float], beyond: float = 2.0) -> dict[str, dict]:
    """What is said of panel (c) where one pixel costs so many dB at each ε, and 100 cost `beyond` more than noise."""
    generator = torch.Generator().manual_seed(0)
    clean = 29.0 + 3.0 * torch.randn(400, generator=generator)
    spread = 0.1 * torch.randn(len(loss), 400, generator=generator)
    attacked = clean - torch.tensor(loss)[:, None] + spread
    outs = {"random-pixel-1": attacked + 0.05, "linear-pixel-1": attacked}
    outs |= {"random-pixel-100": attacked - 4.0, "linear-pixel-100": attacked - 4.0 - beyond}
    at = [0.1 * (i + 1) for i in range(len(loss))]
    return {"one" if "single" in row["text"] else "many": row for row in judge_panel("c", at, outs, {}, clean=clean)}


def test_a_single_pixel_is_stood_only_where_it_is_at_every_eps():
    row = pixel_rows([0.2, 0.5, 0.8, 1.0, 1.5])["one"]
    assert (row["holds"], row["reversed"], row["extent"]) == (3, 1, "all")
    assert row["sentence"].startswith("at most 1 dB lost for ε up to 0.3; holds at 3 of 5 points, reversed at 1")
    assert "at ε = 0.5 -1.5" in row["sentence"]
    assert "lost on 100 % of the images" in row["sentence"]
    assert pixel_rows([0.2, 0.4])["one"]["holds"] == 2
    assert "at most 1 dB lost at no ε" in pixel_rows([1.2, 1.4])["one"]["sentence"]


def test_many_pixels_are_judged_beyond_random_ones():
    # 4 dB are lost to random pixels too, which says nothing of the attack.
    assert pixel_rows([0.2, 0.5], beyond=1.5)["many"]["holds"] == 2
    assert pixel_rows([0.2, 0.5], beyond=0.5)["many"]["reversed"] == 2


def colorization_rows(drop: list[float]) -> dict[str, dict]:
    """What is said of panel (d) where 20 steps take off so many dB against one at each point, random 2 dB less."""
    generator = torch.Generator().manual_seed(0)
    once = 30.0 + torch.randn(len(drop), 60, generator=generator)
    twenty = once - torch.tensor(drop)[:, None] + 0.2 * torch.randn(len(drop), 60, generator=generator)
    outs = {"random-linf": once + 2.0, "linear-linf-1": once, "linear-linf-10": twenty + 0.5, "linear-linf-20": twenty}
    ins = {"linear-linf-20": torch.full_like(once, 26.0)}
    at = [40.0 - 10.0 * i for i in range(len(drop))]
    rows = judge_panel("d", at, outs, {"linear-linf-20": "random-linf"}, ins=ins)
    return {row["text"]: row for row in rows}


def test_the_colorization_loses_ten_decibels_where_one_point_says_so():
    rows = colorization_rows([3.0, 11.0, 8.5])
    off = rows["iterating takes more than 10 dB off at some input PSNR (linear-linf-20 against linear-linf-1)"]
    assert (off["holds"], off["reversed"], off["extent"], off["source"]) == (1, 2, "some", "section 6.2")
    assert off["sentence"].startswith("most at an input PSNR of 30 dB, -11.0")
    beyond = rows["iterating takes more than 10 dB off at some input PSNR (linear-linf-20 against random-linf)"]
    assert (beyond["holds"], beyond["reversed"]) == (2, 1)
    # 30 - 3 is above the input's 26 dB, 30 - 11 and 30 - 8.5 are below.
    (unstable,) = [row for text, row in rows.items() if "unstable" in text]
    assert (unstable["holds"], unstable["reversed"]) == (2, 1)
    assert rows["iterating lowers it further (20 steps)"]["holds"] == 3


def test_a_point_picked_after_a_look_at_all_has_a_wider_interval():
    from scipy import stats

    first, second = (torch.from_numpy(v) for v in np.random.default_rng(1).normal(size=(2, 30)))
    mean, low, high = paired_mean(first, second, choices=7)
    spread = stats.norm.ppf(1.0 - 0.05 / 2 / 7) * stats.sem(first - second)
    assert (mean - low, high - mean) == pytest.approx((spread, spread), rel=1e-6)


def test_one_image_has_no_interval_and_the_record_is_still_json():
    outs = {name: torch.full((2, 1), 20.0) for name in PANELS[3].methods}
    rows = judge_panel("d", [40.0, 10.0], outs, PANELS[3].baselines, ins=outs)
    assert all(row["low"] == [None, None] and row["holds"] == row["reversed"] == 0 for row in rows)
    json.dumps(rows, allow_nan=False)


def test_panels_budgets_leave_the_input_psnr_of_the_axis():
    for panel in (panel for panel in PANELS if panel.axis == "psnr"):
        eps = panel.eps(784)
        assert eps == sorted(eps)
        for budget, decibel in zip(eps, panel.at(), strict=True):
            step = torch.full((1, 784), budget / (784**0.5 if panel.p == 2.0 else 1.0), dtype=torch.float64)
            assert float(eb.psnr(torch.zeros_like(step), step)) == pytest.approx(decibel)
    assert PANELS[2].eps(3072) == list(PANELS[2].grid)


def test_the_colorization_panel_is_the_papers():
    panel = PANELS[3]
    assert (panel.network, panel.data, panel.p) == ("stl10-colorization", "stl10", math.inf)
    assert list(panel.methods) == ["random-linf", "linear-linf-1", "linear-linf-10", "linear-linf-20"]
    assert panel.grid == (10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0)
    assert [panel.images(limit) for limit in (None, 4, 256)] == [40, 4, 40]
    assert [PANELS[0].images(limit) for limit in (None, 4)] == [1000, 4]


# ------------------------------------------------------------------------------------------------------- colorization


@pytest.fixture(scope="module")
def colorization(tmp_path_factory) -> str:
    """Untrained weights, the last convolution scaled so that colours are seen, and move."""
    from epsball.networks.storage import save

    model = networks.build("stl10-colorization")
    with torch.no_grad():
        [module for module in model.chroma.decoder if isinstance(module, torch.nn.Conv2d)][-1].weight *= 30.0
    path = tmp_path_factory.mktemp("colorization") / "untrained.safetensors"
    save(model, {"summary": "untrained"}, path)
    return str(path)


def images_of_stl10(ids) -> torch.Tensor:
    """The grey images, by scikit-image: those whose L* is that of the colours."""
    color = pytest.importorskip("skimage.color")
    pixels = data.load("stl10").x[torch.as_tensor(ids)].permute(0, 2, 3, 1).double().numpy()
    lab = color.rgb2lab(pixels)
    lab[..., 1:] = 0.0
    return torch.from_numpy(color.lab2rgb(lab)[..., :1]).permute(0, 3, 1, 2)


def decibels(reference: torch.Tensor, changed: torch.Tensor) -> np.ndarray:
    error = (changed - reference).detach().double().numpy().reshape(len(reference), -1)
    return -10.0 * np.log10((error**2).mean(1))


@needs_mnist
@pytest.mark.slow
def test_figure4d_measures_how_far_the_colours_move(tmp_path, monkeypatch, colorization):
    from importlib import import_module

    figure4 = import_module("epsball.experiments.paper.figure4")
    few = {name: PANELS[3].methods[name] for name in ("random-linf", "linear-linf-1")}
    short = replace(PANELS[3], grid=(20.0,), methods=few, baselines={"linear-linf-1": "random-linf"})
    monkeypatch.setattr(figure4, "PANELS", (short,))
    monkeypatch.setattr(figure4, "judge_panel", lambda *_, **__: [])
    setting = paper.Setting(tmp_path, limit=2, panels="d", weights={"stl10-colorization": colorization})
    paper.figure4(setting)
    (panel,) = json.loads((tmp_path / "figure4.json").read_text())["panels"]
    assert (panel["reference"], panel["clean"], panel["count"]) == ("output", None, 2)
    model = networks.load("stl10-colorization", colorization)
    for method in few:
        part = columns(tmp_path / "results.parquet", attack=method)
        ids = torch.from_numpy(part["sample_id"])
        x, _ = networks.spec("stl10-colorization").pairs(data.load("stl10").x[ids])
        torch.testing.assert_close(x.double(), images_of_stl10(ids), atol=2e-4, rtol=0)
        # Without a target the attack itself takes y := f(x).
        attack = eb.recipe(method.replace("linear-linf", "linear-lp"), p=math.inf, eps=0.1)
        result = attack(model, x, None, seed=0, sample_id=ids)
        assert part["psnr_in"] == pytest.approx(decibels(x, result.perturbed), abs=0.01)
        assert part["psnr_out"] == pytest.approx(decibels(model(x), model(result.perturbed)), abs=0.05)
    assert part["psnr_out"].mean() < columns(tmp_path / "results.parquet", attack="random-linf")["psnr_out"].mean()
    assert (tmp_path / "figures" / "figure4.png").stat().st_size > 10_000


@needs_mnist
@pytest.mark.slow
def test_figure2c_shows_grey_images_and_colours(tmp_path, colorization):
    paper.figure2(paper.Setting(tmp_path, limit=1, panels="c", weights={"stl10-colorization": colorization}))
    (panel,) = json.loads((tmp_path / "figure2.json").read_text())["panels"]
    shown = {name: {k: torch.tensor(v) for k, v in pictures.items()} for name, pictures in panel["shown"].items()}
    original = shown["original"]
    assert original["input"].shape == (1, 1, 96, 96)
    torch.testing.assert_close(original["input"].double(), images_of_stl10(panel["sample_id"]), atol=2e-4, rtol=0)
    model = networks.load("stl10-colorization", colorization)
    assert original["psnr_out"].numel() == original["psnr_in"].numel() == 0
    for name in ("adversarial", "noisy"):
        torch.testing.assert_close(model(shown[name]["input"]).detach(), shown[name]["output"], rtol=1e-4, atol=1e-4)
        assert float((shown[name]["input"] - original["input"]).abs().max()) <= 0.01 + 1e-6
        expected = decibels(original["output"], shown[name]["output"])
        assert shown[name]["psnr_out"].numpy() == pytest.approx(expected, abs=0.01)
    assert float(shown["adversarial"]["psnr_out"]) < float(shown["noisy"]["psnr_out"]) - 3.0
    assert (tmp_path / "figures" / "figure2c.png").stat().st_size > 10_000


def test_a_colorization_without_weights_is_left_out_not_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "shipped", lambda name: tmp_path / f"{name}.safetensors")
    assert not PANELS[3].can_be_made(paper.Setting(tmp_path))
    assert PANELS[2].can_be_made(paper.Setting(tmp_path))
    assert PANELS[3].can_be_made(paper.Setting(tmp_path, weights={"stl10-colorization": "given"}))


@needs_mnist
@pytest.mark.slow
def test_figure4_reports_what_its_rows_say(tmp_path):
    text = paper.figure4(paper.Setting(tmp_path, limit=6, panels="a"))
    (panel,) = json.loads((tmp_path / "figure4.json").read_text())["panels"]
    for method, values in panel["curves"].items():
        part = columns(tmp_path / "results.parquet", attack=method)
        assert len(part["psnr_out"]) == 7 * 6
        assert values["mean"] == pytest.approx(part["psnr_out"].reshape(7, 6).mean(1))
        # Unbounded, one Euclidean step spends the budget: the input PSNR is the axis. Several may spend less.
        assert (part["psnr_in"] >= part["axis"] - 0.01).all()
        if not method.endswith(("-10", "-20")):
            assert part["psnr_in"] == pytest.approx(part["axis"], abs=0.01)
    model, sample = networks.load("mnist-autoencoder"), data.load("mnist")
    chosen = sample.x[np.unique(part["sample_id"])]
    assert panel["clean"]["mean"] == pytest.approx(float(eb.psnr(chosen, model(chosen).detach()).mean()), rel=1e-5)
    assert max(panel["curves"]["quadratic-l2"]["mean"]) < panel["clean"]["mean"]
    assert "iterating lowers the output PSNR" in text
    assert (tmp_path / "figures" / "figure4.png").stat().st_size > 10_000


@needs_mnist
@pytest.mark.slow
def test_figure2_shows_what_the_network_makes_of_its_images(tmp_path):
    paper.figure2(paper.Setting(tmp_path, limit=2, panels="a"))
    (panel,) = json.loads((tmp_path / "figure2.json").read_text())["panels"]
    model = networks.load("mnist-autoencoder")
    for pictures in panel["shown"].values():
        x, y = torch.tensor(pictures["input"]), torch.tensor(pictures["output"])
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    original = torch.tensor(panel["shown"]["original"]["input"])
    for name in ("adversarial", "noisy"):
        moved = (torch.tensor(panel["shown"][name]["input"]) - original).abs()
        assert float(moved.max()) <= 0.2 + 1e-6
    shown = {name: np.mean(pictures["psnr_out"]) for name, pictures in panel["shown"].items()}
    assert shown["adversarial"] < shown["noisy"] < shown["original"]


def test_weights_and_panels_of_the_command_line_are_checked(tmp_path):
    from typer.testing import CliRunner

    from epsball.cli.app import app

    for arguments, message in (
        (["--weights", "cifar10-autoencoder"], "expected --weights NETWORK=FILE"),
        (["--panels", "ax"], "expected --panels as letters of 'abcd'"),
    ):
        found = CliRunner().invoke(app, ["paper", "figure4", "--out", str(tmp_path / "out"), *arguments])
        assert found.exit_code == 2
        assert message in found.output
        assert not (tmp_path / "out").exists()
