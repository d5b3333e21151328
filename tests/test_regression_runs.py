"""Whole regression runs: rows against the saved inputs, references, refusals, the page and the printed table."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import epsball as eb
from epsball import data, networks
from epsball.cli.app import app
from epsball.experiments import demo
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import run
from epsball.experiments.tasks import default_attacks, partition
from epsball.networks import catalogue
from epsball.networks.spec import NetworkSpec, TrainingRecipe
from epsball.networks.storage import save
from epsball.report import page, psnr_table, write_page

SHAPE, OUTPUTS, COUNT = (1, 4, 4), 3, 14
ATTACKS = ("quadratic-lp", "linear-lp-3", "random-linf", "linear-pixel-2", "random-pixel-2")
EPS = (0.05, 0.1, 0.2)


def add_network(patch, folder, name, outputs, **recipe):
    """Put a small regression network into the catalogue, with weights of its own."""
    width = math.prod(outputs)

    def build():
        layers = [torch.nn.Flatten(), torch.nn.Linear(16, 9), torch.nn.Tanh(), torch.nn.Linear(9, width)]
        return torch.nn.Sequential(*layers, torch.nn.Unflatten(1, outputs))

    spec = NetworkSpec(
        *(name, "a small regressor", "digits", SHAPE, width, "regression", "these tests", build),
        recipe=TrainingRecipe(1, 8, 1e-3, 0.0, torch.nn.functional.mse_loss, **recipe),
    )
    patch.setitem(catalogue.CATALOGUE, name, spec)
    weights = folder / f"{name}.safetensors"
    card = {"network": name, "test_error": 0.1}
    save(networks.build(spec, seed=3), card, weights)
    return weights


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 0.9, size=(COUNT, *SHAPE)).astype(np.float32)
    y = (5.0 * rng.normal(size=(COUNT, OUTPUTS))).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "xy.npz", x=x, y=y)
    np.savez(folder / "labels.npz", x=x, y=np.arange(COUNT))
    np.savez(folder / "other.npz", x=x, y=y[:, :2])
    with pytest.MonkeyPatch.context() as patch:
        weights = {
            "small-autoencoder": add_network(patch, folder, "small-autoencoder", SHAPE, target_is_input=True),
            "small-regressor": add_network(patch, folder, "small-regressor", (OUTPUTS,)),
        }
        yield folder, weights


def config(setting, model="small-autoencoder", source="x.npz", **changes):
    folder, weights = setting
    base = {"command": "attack", "model": model, "weights": str(weights.get(model)), "data": str(folder / source)}
    base |= {"attacks": ATTACKS, "eps": EPS, "dtype": "float64", "batch_size": 5, "seed": 3}
    return RunConfig(**(base | changes))


def bare_run(*args, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_page", lambda directory: (directory / "report.html").write_text("not drawn"))
        return run(*args, **options)


def columns(directory):
    table = pq.ParquetFile(directory / "results.parquet").read()
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def select(rows, **wanted):
    keep = np.all([rows[key] == value for key, value in wanted.items()], axis=0)
    return {key: values[keep] for key, values in rows.items()}


def outputs(setting, model, x):
    with torch.no_grad():
        return networks.load(model, setting[1][model]).double()(torch.from_numpy(x).double()).numpy()


def decibels(reference, changed, peak):
    mse = ((changed - reference).reshape(len(reference), -1) ** 2).mean(1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / mse)


@pytest.fixture(scope="module")
def attacked(setting, tmp_path_factory):
    return run(config(setting), tmp_path_factory.mktemp("runs") / "attacked")


# The rows


@pytest.mark.parametrize(
    ("model", "source", "target", "reference"),
    [
        ("small-autoencoder", "x.npz", None, "input"),
        ("small-autoencoder", "labels.npz", None, "input"),  # labels are no reference outputs
        ("small-autoencoder", "x.npz", "output", "output"),
        ("small-regressor", "xy.npz", None, "data"),
        ("small-regressor", "x.npz", None, "output"),
        ("small-regressor", "xy.npz", "output", "output"),
    ],
)
def test_rows_agree_with_the_perturbed_inputs_whatever_the_reference(
    setting, tmp_path, model, source, target, reference
):
    result = bare_run(config(setting, model, source, target=target), tmp_path / "r")
    assert result.manifest["reference"] == reference
    assert result.manifest["task"] == "regression"
    rows = columns(result.directory)
    with np.load(setting[0] / source) as given, np.load(tmp_path / "r" / "perturbed.npz") as saved:
        x = given["x"].astype(np.float64)
        clean = outputs(setting, model, given["x"])
        y = {"input": x, "output": clean, "data": given.get("y")}[reference].astype(np.float64)
        np.testing.assert_allclose(saved["target"], y, rtol=1e-12)
        np.testing.assert_allclose(saved["clean_output"], clean, rtol=1e-12)
        before = ((clean - y).reshape(COUNT, -1) ** 2).sum(1)
        # Images lie in [0, 1]; outputs in other units have the range of the references.
        peak = 1.0 if y.shape == x.shape else y.max() - y.min()
        assert result.manifest["psnr_peak_out"] == pytest.approx(peak)
        np.testing.assert_allclose(saved["clean_psnr"], decibels(y, clean, peak), rtol=1e-9)
        for name in ATTACKS:
            mine, perturbed = select(rows, attack=name, eps=EPS[-1]), saved[f"perturbed/{name}"]
            after = outputs(setting, model, perturbed)
            gain = ((after - y).reshape(COUNT, -1) ** 2).sum(1)
            np.testing.assert_allclose(mine["gain"], gain, rtol=1e-9)
            np.testing.assert_allclose(mine["error_increase"], gain - before, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(mine["psnr_out"], decibels(y, after, peak), rtol=1e-9)
            np.testing.assert_allclose(mine["psnr_in"], decibels(x, perturbed, 1.0), rtol=1e-9)
            np.testing.assert_allclose(saved[f"psnr_out/{name}"], mine["psnr_out"], rtol=1e-12)
            changed = np.abs(perturbed - x).reshape(COUNT, -1)
            assert changed.max() <= EPS[-1] * (1 + 1e-9)
            if "pixel" in name:
                assert ((changed > 0).sum(1) == 2).all()
    for name in ("target", "prediction", "clean_prediction"):
        assert (rows[name] == None).all()  # noqa: E711
    error = result.manifest["clean"]["squared_error"]
    assert error["value"] == pytest.approx(before.mean())


def test_a_row_is_what_the_attack_gives_for_its_sample_alone(setting, attacked):
    rows = columns(attacked.directory)
    whole = data.load(str(setting[0] / "x.npz"))
    model = networks.load("small-autoencoder", setting[1]["small-autoencoder"]).double()
    for name in ATTACKS:
        options = {} if "pixel" in name else {"p": math.inf}
        attack = eb.recipe(name, eps=0.1, bounds=(0.0, 1.0), **options)
        x = whole.x[6:7].double()
        alone = attack(model, x, x, seed=3, sample_id=whole.ids[6:7])
        row = select(rows, attack=name, eps=0.1, sample_id=6)
        np.testing.assert_allclose(row["gain"], alone.gain, rtol=1e-7)
        assert (row["forwards"], row["backwards"], row["jvps"]) == (alone.forwards, alone.backwards, alone.jvps)
        assert row["exact"][0] == bool(alone.exact[0])


def test_jvps_and_exactness_are_those_of_the_attack(tmp_path):
    digits = data.load("digits", limit=6)
    model, x = networks.load("digits-autoencoder").double(), digits.x.double()
    base = {"command": "evaluate", "model": "digits-autoencoder", "attacks": ("quadratic-lp", "linear-lp-3")}
    found = set()
    for bounds in (None, (0.0, 1.0)):
        made = RunConfig(**base, eps=(0.5,), p=2.0, bounds=bounds, limit=6, dtype="float64")
        rows = columns(bare_run(made, tmp_path / str(bounds)).directory)
        for name in made.attacks:
            result = eb.recipe(name, p=2.0, eps=0.5, bounds=bounds)(model, x, x, sample_id=digits.ids)
            mine = select(rows, attack=name)
            np.testing.assert_array_equal(mine["jvps"], result.jvps)
            np.testing.assert_array_equal(mine["exact"], result.exact)
            found |= {(name, bool(n), e) for n, e in zip(result.jvps, result.exact.tolist(), strict=True)}
    # Without bounds p = 2 is solved exactly, inside them it is not: the columns tell them apart.
    assert {("quadratic-lp", True, True), ("quadratic-lp", True, False), ("linear-lp-3", False, True)} <= found


def test_an_unknown_target_costs_the_pass_that_finds_it(setting, tmp_path):
    same = {"attacks": ("linear-lp-3",), "eps": (0.1,), "command": "evaluate"}
    given, own = (
        select(columns(bare_run(config(setting, target=t, **same), tmp_path / t).directory), eps=0.1)["forwards"]
        for t in ("input", "output")
    )
    np.testing.assert_array_equal(own, given + 1)


def test_rows_do_not_depend_on_the_batches(setting, attacked, tmp_path):
    rows, other = (
        columns(attacked.directory),
        columns(bare_run(config(setting, batch_size=9), tmp_path / "r").directory),
    )
    for name in ("sample_id", "attack", "eps", "status", "success"):
        np.testing.assert_array_equal(other[name], rows[name])
    for name in ("gain", "psnr_in", "psnr_out", "error_increase"):
        np.testing.assert_allclose(other[name], rows[name], rtol=1e-7, atol=1e-10)


def test_groups_and_k_are_those_asked_for(setting, tmp_path):
    made = config(setting, attacks=("linear-pixel-1", "quadratic-pixel"), eps=(0.1,), groups="patches:2", k=2)
    result = bare_run(made, tmp_path / "r")
    assert result.manifest["groups"] == {"of": "patches:2", "k": 2}
    with np.load(tmp_path / "r" / "perturbed.npz") as saved:
        for name in made.attacks:
            changed = np.abs(saved[f"perturbed/{name}"] - saved["x"]) > 0
            blocks = changed.reshape(COUNT, 2, 2, 2, 2).any(axis=(2, 4)).reshape(COUNT, -1)
            assert (blocks.sum(1) == 2).all(), name


@pytest.mark.parametrize(
    ("text", "shape", "groups"),
    [("pixels", (3, 4, 4), 16), ("patches:2", (3, 4, 4), 4), ("channels", (3, 4, 4), 3), ("pixels", (7,), 7)],
)
def test_groups_by_name(text, shape, groups):
    assert int(partition(text, shape).index(shape).max()) + 1 == groups


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "classification"}, "'regression', that of the network"),
        ({"task": "clustering"}, "'classification' or 'regression'"),
        ({"command": "robustness"}, "epsball evaluate"),
        ({"attacks": ("pgd",)}, "'quadratic-lp'"),
        ({"model": "digits-fcnn", "weights": None}, "'alg1-10'"),
        ({"model": "digits-fcnn", "weights": None, "attacks": ("pgd",), "target": "input"}, "no target"),
        ({"target": "truth"}, "'data', 'input', 'output'"),
        ({"transfer": True, "surrogates": ("digits-autoencoder",)}, "leave them out"),
        ({"eps": ()}, "expected eps"),
        ({"attacks": ("quadratic-lp",), "k": 2}, "group attack"),
        ({"attacks": ("quadratic-lp",), "groups": "channels"}, "group attack"),
        ({"groups": "patches:0"}, "patches:SIZE"),
        ({"groups": "hexagons"}, "patches:SIZE"),
        ({"k": 0}, "k as an integer"),
        ({"p": 2.0}, "random-linf"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_when_it_is_made(setting, changes, message):
    with pytest.raises(eb.InputError, match=message):
        config(setting, **changes)


@pytest.mark.parametrize(
    ("model", "source", "target", "message"),
    [
        ("small-autoencoder", "x.npz", "data", "--target input or --target output"),
        ("small-autoencoder", "labels.npz", "data", "class labels"),
        ("small-regressor", "x.npz", "input", r"shape \(3,\) that small-regressor returns, got \(1, 4, 4\)"),
        ("small-regressor", "other.npz", None, r"shape \(3,\) that small-regressor returns, got \(2,\)"),
    ],
)
def test_references_that_do_not_fit_are_refused_before_any_work(setting, tmp_path, model, source, target, message):
    with pytest.raises(eb.InputError, match=message):
        bare_run(config(setting, model, source, target=target), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.fixture
def colorizer(setting, monkeypatch):
    """A convolutional network from grey images to colours, and colour images of another size than its own."""
    folder, weights = setting
    spec = NetworkSpec(
        *("small-colorizer", "a small colorizer", "digits", (1, 4, 4), 48, "regression", "these tests"),
        build=lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Sigmoid()),
        recipe=TrainingRecipe(1, 8, 1e-3, 0.0, torch.nn.functional.mse_loss),
        pairs=lambda images: (images.mean(1, keepdim=True), images),
        multiple=2,
        maps=3,
    )
    monkeypatch.setitem(catalogue.CATALOGUE, spec.name, spec)
    path = folder / "colorizer.safetensors"
    save(networks.build(spec, seed=3), {"network": spec.name}, path)
    monkeypatch.setitem(weights, spec.name, path)
    rng = np.random.default_rng(1)
    for name, shape in (("colours", (3, 6, 8)), ("grey", (1, 6, 8)), ("odd", (3, 6, 7)), ("flat", (36,))):
        np.savez(folder / f"{name}.npz", x=rng.uniform(0.1, 0.9, size=(4, *shape)).astype(np.float32))
    return config(setting, spec.name, "colours.npz", attacks=("linear-lp-2",), eps=(0.1,), dtype="float32")


@pytest.mark.parametrize(("target", "reference"), [(None, "output"), ("output", "output"), ("data", "data")])
def test_grey_inputs_are_made_of_colour_images(setting, colorizer, tmp_path, target, reference):
    found = bare_run(dataclasses.replace(colorizer, target=target), tmp_path)
    colours = np.load(setting[0] / "colours.npz")["x"]
    grey = colours.mean(1, keepdims=True)
    with torch.no_grad():
        model = networks.load(colorizer.model, setting[1][colorizer.model])
        own = model(torch.from_numpy(grey)).numpy()
        saved = np.load(tmp_path / "perturbed.npz")
        after = model(torch.from_numpy(saved["perturbed/linear-lp-2"])).numpy()
    assert saved["x"] == pytest.approx(grey, abs=1e-6)
    y = colours if reference == "data" else own
    assert found.manifest["reference"] == reference
    # Colours have the range of the grey images, not that of the values which happen to occur.
    assert found.manifest["psnr_peak_out"] == found.manifest["psnr_peak"]
    expected = decibels(y, after, found.manifest["psnr_peak"])
    assert columns(tmp_path)["psnr_out"] == pytest.approx(expected, abs=1e-3)
    assert "nan" not in json.dumps(found.manifest).lower()


def test_shapes_are_judged_by_what_the_network_takes(setting, colorizer, tmp_path):
    grey = bare_run(dataclasses.replace(colorizer, data=str(setting[0] / "grey.npz")), tmp_path / "grey")
    assert (grey.manifest["reference"], grey.manifest["data"]["shape"]) == ("output", [1, 6, 8])
    for name, target, message in (
        ("odd", None, "any height and width that are multiples of 2, got \\(3, 6, 7\\)"),
        ("flat", None, "got \\(36,\\)"),
        ("grey", "data", "--target input or --target output"),
        ("colours", "input", "that small-colorizer returns, got \\(1, 6, 8\\)"),
    ):
        with pytest.raises(eb.InputError, match=message):
            bare_run(
                dataclasses.replace(colorizer, data=str(setting[0] / f"{name}.npz"), target=target), tmp_path / "no"
            )
    assert not (tmp_path / "no").exists()


def test_the_configuration_survives_json_and_its_command_runs_it_again(setting, attacked, tmp_path):
    content = json.loads((attacked.directory / "manifest.json").read_text())
    assert RunConfig.from_dict(content["configuration"]) == config(setting)
    assert "--task" not in content["command"]
    words = content["command"].split()[1:-1]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "again")])
    assert done.exit_code == 0, done.stderr
    first, again = columns(attacked.directory), columns(tmp_path / "again")
    for name in ("gain", "psnr_out", "jvps"):
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_default_attacks_can_be_run_in_every_norm(setting, task, p):
    model = {"classification": "digits-fcnn", "regression": "small-autoencoder"}[task]
    RunConfig(command="evaluate", model=model, attacks=default_attacks(task, p), eps=(0.1,), p=p)


# The page and the terminal


def test_the_page_answers_from_the_rows(attacked):
    text = " ".join((attacked.directory / "report.html").read_text(encoding="utf-8").split())
    rows = {(row["attack"], row["eps"]): row for row in psnr_table(attacked.table)}
    best = min(
        (row for row in rows.values() if row["eps"] == 0.1 and row["attack"][:6] != "random"),
        key=lambda r: r["psnr_out"],
    )
    clean = attacked.manifest["clean"]["psnr_out"]["value"]
    assert f"the strongest attack run, {best['attack']}, brings the output PSNR from {clean:.1f} dB" in text
    assert f"to {best['psnr_out']:.1f} dB ({best['psnr_out_low']:.1f} to {best['psnr_out_high']:.1f})" in text
    assert "away from the input itself" in text
    assert "Fooling ratio" not in text
    assert "classified" not in text
    for row in rows.values():
        assert f"{row['psnr_out']:.2f}<small>" in text
    names = {path.name for path in (attacked.directory / "figures").iterdir()}
    assert names == {f"{n}.{e}" for n in ("output-psnr", "output-psnr-eps", "examples") for e in ("svg", "png")}
    assert text.count("<script") == 2


def test_other_outputs_than_images_are_drawn_as_lines(setting, tmp_path):
    result = run(config(setting, "small-regressor", "xy.npz", eps=(0.1,)), tmp_path / "r")
    text = (result.directory / "report.html").read_text(encoding="utf-8")
    assert 'data-kind="output" data-line="0"><img src="data:image/svg+xml' in text
    assert 'data-kind="original" data-line="0"><img src="data:image/png' in text  # the inputs are images
    assert "Each line runs over the entries of an output" in text
    assert "away from the true output" in text


def test_examples_are_the_models_outputs(setting, attacked):
    with np.load(attacked.directory / "examples.npz") as found:
        assert len(found["sample_id"]) == 8
        for name in ATTACKS:
            after = outputs(setting, "small-autoencoder", found[f"perturbed/{name}"])
            np.testing.assert_allclose(found[f"output/{name}"], after, rtol=1e-9)


@pytest.mark.parametrize("damage", ["clean_output", "output/quadratic-lp", "psnr_out/linear-lp-3", "target"])
def test_examples_that_do_not_fit_are_refused(attacked, tmp_path, damage):
    shutil.copytree(attacked.directory, tmp_path / "r")
    with np.load(tmp_path / "r" / "examples.npz") as found:
        arrays = {name: found[name] for name in found.files}
    arrays[damage] = arrays[damage][:3]
    np.savez(tmp_path / "r" / "examples.npz", **arrays)
    before = (tmp_path / "r" / "report.html").read_bytes()
    with pytest.raises(eb.InputError, match=damage):
        write_page(tmp_path / "r")
    assert (tmp_path / "r" / "report.html").read_bytes() == before


def test_evaluate_prints_the_mean_output_psnr_of_each_attack(setting, tmp_path):
    folder, weights = setting
    words = ("--model", "small-autoencoder", "--weights", weights["small-autoencoder"], "--data", folder / "x.npz")
    result = CliRunner().invoke(app, ["evaluate", *map(str, words), "--eps", "0.1,0.2", "--out", str(tmp_path / "r")])
    assert result.exit_code == 0, result.stderr
    rows = columns(tmp_path / "r")
    for name in default_attacks("regression", math.inf):
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(name))
        for eps, word in zip((0.1, 0.2), line.split()[1:3], strict=True):
            assert float(word) == pytest.approx(select(rows, attack=name, eps=eps)["psnr_out"].mean(), abs=0.051)


def test_the_demo_shows_a_classifier_and_a_regressor(tmp_path):
    runs = list(demo.demo_runs(tmp_path / "demo"))
    assert [made.task for made, _ in runs] == ["classification", "regression"]
    assert [folder for _, folder in runs] == [tmp_path / "demo", tmp_path / "demo" / "regressor"]
    (tmp_path / "demo" / "regressor").mkdir(parents=True)
    (tmp_path / "demo" / "regressor" / "results.parquet").write_text("mine")
    with pytest.raises(eb.InputError, match="without results"):
        list(demo.demo_runs(tmp_path / "demo"))
