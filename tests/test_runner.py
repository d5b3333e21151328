"""Whole runs on real digits: rows against the library's own answers, files against each other, nothing half written."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import epsball as eb
from epsball import data, networks
from epsball.experiments import storage
from epsball.experiments.archive import Archive
from epsball.experiments.collect import spread_budgets
from epsball.experiments.config import RunConfig
from epsball.experiments.manifest import FORMULATIONS
from epsball.experiments.runner import run
from epsball.experiments.shard import _cost
from epsball.report import page

SCHEMA = {
    "sample_id": "int64",
    "attack": "string",
    "p": "double",
    "eps": "double",
    "steps": "int64",
    "target": "int64",
    "prediction": "int64",
    "clean_prediction": "int64",
    "success": "bool",
    "status": "string",
    "exact": "bool",
    "gain": "double",
    "error_increase": "double",
    "norm_l1": "double",
    "norm_l2": "double",
    "norm_linf": "double",
    "psnr_in": "double",
    "psnr_out": "double",
    "groups": "int64",
    "forwards": "int64",
    "backwards": "int64",
    "jvps": "int64",
    "seconds": "double",
    "crafted_on": "string",
    "judged_on": "string",
}
ATTACKS = ("deepfool", "alg1-10", "pgd", "fgsm", "random-linf")
EPS = (0.05, 0.1, 0.2)
# Which classes are differentiated together depends on the batch: what margin attacks cost does too, not what they find.
COSTS = ("forwards", "backwards")
ONE_PIECE = ("pgd", "fgsm", "random-linf")
COUNT = 60


def config(**changes):
    base = {
        "command": "attack",
        "model": "digits-fcnn",
        "attacks": ATTACKS,
        "eps": EPS,
        "limit": COUNT,
        "dtype": "float64",
        "batch_size": 25,
        "seed": 3,
    }
    return RunConfig(**(base | changes))


def bare_run(*args, **options):
    """Run without drawing the report, which takes longer than such small attacks; `attacked` has the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_page", lambda directory: (directory / "report.html").write_text("not drawn"))
        return run(*args, **options)


def columns(directory, name="results.parquet"):
    table = pq.ParquetFile(directory / name).read()
    return {key: table[key].to_numpy() for key in table.column_names}


def select(rows, **wanted):
    keep = np.ones(len(rows["sample_id"]), dtype=bool)
    for key, value in wanted.items():
        keep &= rows[key] == value
    return {key: values[keep] for key, values in rows.items()}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=COUNT)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "attacked"
    return run(config(), out)


@pytest.fixture(scope="module")
def rows(attacked):
    return columns(attacked.directory)


# The rows


def test_the_schema_is_the_documented_one(attacked):
    schema = pq.ParquetFile(attacked.directory / "results.parquet").schema_arrow
    assert {field.name: str(field.type) for field in schema} == SCHEMA


def test_there_is_one_row_for_each_sample_attack_and_eps_in_order(rows, digits):
    keys = list(zip(rows["attack"], rows["eps"], rows["sample_id"], strict=True))
    assert keys == [(a, e, i) for a in ATTACKS for e in EPS for i in digits.ids.tolist()]


def test_rows_do_not_depend_on_the_batches(rows, tmp_path):
    other = columns(bare_run(config(batch_size=7), tmp_path / "r").directory)
    for name in SCHEMA:
        if name in (*COSTS, "seconds"):
            continue
        if rows[name].dtype == np.float64:
            np.testing.assert_allclose(other[name], rows[name], rtol=1e-9, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], rows[name], err_msg=name)
    for attack in ONE_PIECE:
        for name in COSTS:
            np.testing.assert_array_equal(select(other, attack=attack)[name], select(rows, attack=attack)[name])


def test_rows_agree_with_the_perturbed_inputs_that_were_saved(attacked, rows, digits):
    model = networks.load("digits-fcnn").double()
    with np.load(attacked.directory / "perturbed.npz", allow_pickle=False) as saved:
        x, target = saved["x"], saved["target"]
        np.testing.assert_array_equal(x, digits.x.double().numpy())
        np.testing.assert_array_equal(target, digits.target.numpy())
        np.testing.assert_array_equal(saved["sample_id"], digits.ids.numpy())
        assert saved["eps"] == EPS[-1]
        for name in ATTACKS:
            mine, perturbed = select(rows, attack=name, eps=EPS[-1]), saved[f"perturbed/{name}"]
            flat = (perturbed - x).reshape(COUNT, -1)
            with torch.no_grad():
                scores = model(torch.from_numpy(perturbed)).numpy()
            prediction = scores.argmax(1)
            sizes = np.abs(flat).max(1)
            np.testing.assert_allclose(mine["norm_l1"], np.abs(flat).sum(1), rtol=1e-12)
            np.testing.assert_allclose(mine["norm_l2"], np.sqrt((flat**2).sum(1)), rtol=1e-12)
            np.testing.assert_allclose(mine["norm_linf"], sizes, rtol=1e-12)
            with np.errstate(divide="ignore"):
                psnr = -10 * np.log10((flat**2).mean(1))
            np.testing.assert_allclose(mine["psnr_in"], psnr, rtol=1e-9)
            np.testing.assert_array_equal(mine["prediction"], prediction)
            np.testing.assert_array_equal(saved[f"prediction/{name}"], prediction)
            fooled = (prediction != target) & (sizes <= EPS[-1] * (1 + 1e-9))
            np.testing.assert_array_equal(mine["success"], fooled)
            np.testing.assert_array_equal(saved[f"success/{name}"], fooled)
            assert perturbed.min() >= 0.0
            assert perturbed.max() <= 1.0
    assert fooled.any()
    assert not fooled.all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_row_is_what_the_attack_gives_for_its_sample_alone(rows, digits, name):
    model = networks.load("digits-fcnn").double()
    for position in (1, 30, 59):
        x, target = digits.x[position : position + 1].double(), digits.target[position : position + 1]
        attack = eb.recipe(name, p=math.inf, eps=0.1, bounds=(0.0, 1.0))
        alone = attack(model, x, target, seed=3, sample_id=digits.ids[position : position + 1])
        row = select(rows, attack=name, eps=0.1, sample_id=int(digits.ids[position]))
        np.testing.assert_allclose(row["gain"], alone.gain, rtol=1e-7, atol=1e-12)
        if name in ONE_PIECE:
            assert (row["forwards"], row["backwards"]) == (alone.forwards, alone.backwards)
        assert row["success"][0] == bool(alone.success[0])
        assert row["status"][0] == alone.status[0].name
        np.testing.assert_allclose(row["norm_linf"], alone.norm, rtol=1e-9)


def test_clean_predictions_are_the_models(rows, digits):
    with torch.no_grad():
        expected = networks.load("digits-fcnn").double()(digits.x.double()).argmax(1).numpy()
    for name in ATTACKS:
        np.testing.assert_array_equal(select(rows, attack=name, eps=0.1)["clean_prediction"], expected)


# The other files


def test_the_manifest_says_what_was_run(attacked, rows):
    content = json.loads((attacked.directory / "manifest.json").read_text())
    weights = networks.shipped("digits-fcnn").read_bytes()
    assert content["model"]["digest"] == hashlib.sha256(weights).hexdigest()
    whole = data.load("digits")
    samples = whole.x[:COUNT].numpy().tobytes() + whole.target[:COUNT].numpy().tobytes()
    assert content["data"]["digest"] == hashlib.sha256(samples).hexdigest()
    assert (content["data"]["count"], content["data"]["of"]) == (COUNT, len(whole))
    assert [attack["name"] for attack in content["attacks"]] == list(ATTACKS)
    assert content["attacks"][0]["formulation"] == "minimal-norm"
    assert (content["p"], content["eps"], content["bounds"]) == ("inf", list(EPS), [0.0, 1.0])
    assert content["clean"]["correct"] == int((rows["clean_prediction"] == rows["target"]).sum()) // (5 * 3)
    for name in ATTACKS:
        chosen = select(rows, attack=name)
        wrong = chosen["clean_prediction"] != chosen["target"]
        assert wrong.any()
        # Wrong from the start is ALREADY, also under attacks that perturb such a sample all the same.
        names, counts = np.unique(np.where(wrong, "ALREADY", chosen["status"]), return_counts=True)
        assert content["statuses"][name] == dict(zip(names, counts.tolist(), strict=True))
    assert len({counts["ALREADY"] for counts in content["statuses"].values()}) == 1
    assert content["warnings"] == []
    assert RunConfig.from_dict(content["configuration"]) == config()
    assert "--batch-size 25" in content["command"]


def test_the_examples_are_correct_samples_of_different_classes_and_agree_with_the_rows(attacked, rows):
    with np.load(attacked.directory / "examples.npz", allow_pickle=False) as found:
        ids, eps = found["sample_id"], float(found["example_eps"])
        assert eps == EPS[1]
        assert len(set(found["target"].tolist())) == len(ids) == 8
        np.testing.assert_array_equal(found["clean_prediction"], found["target"])
        for name in ATTACKS:
            mine = select(rows, attack=name, eps=eps)
            at = np.searchsorted(mine["sample_id"], ids)
            np.testing.assert_array_equal(mine["sample_id"][at], ids)
            np.testing.assert_array_equal(found[f"prediction/{name}"], mine["prediction"][at])
            np.testing.assert_array_equal(found[f"success/{name}"], mine["success"][at])
            sizes = np.abs(found[f"perturbed/{name}"] - found["x"]).reshape(8, -1).max(1)
            np.testing.assert_allclose(sizes, mine["norm_linf"][at], rtol=1e-12)


def test_examples_are_kept_at_every_budget_and_agree_with_the_rows(attacked, rows):
    with np.load(attacked.directory / "examples.npz", allow_pickle=False) as found:
        assert found["eps"].tolist() == list(EPS)
        for name in ATTACKS:
            for k, eps in enumerate(EPS):
                mine = select(rows, attack=name, eps=eps)
                at = np.searchsorted(mine["sample_id"], found["sample_id"])
                np.testing.assert_array_equal(found[f"prediction/{name}/{k}"], mine["prediction"][at])
                np.testing.assert_array_equal(found[f"success/{name}/{k}"], mine["success"][at])
                sizes = np.abs(found[f"perturbed/{name}/{k}"] - found["x"]).reshape(8, -1).max(1)
                np.testing.assert_allclose(sizes, mine["norm_linf"][at], rtol=1e-12)


@pytest.mark.parametrize(
    ("count", "attacks", "entries", "places"),
    [
        (1, 3, 784, ()),
        (2, 3, 784, (0, 1)),
        (4, 3, 784, (0, 1, 2, 3)),
        (25, 3, 784, (0, 3, 6, 9, 12, 15, 18, 21, 24)),
        (10, 10, 30_000, (0, 4, 5, 9)),  # 32 MB hold 3.3 of them, and the middle one is always among them
        (10, 10, 1_000_000, ()),
    ],
)
def test_budgets_of_examples_are_spread_and_fit_the_report(count, attacks, entries, places):
    eps = tuple(0.1 * (i + 1) for i in range(count))
    assert spread_budgets(eps, attacks, entries) == tuple(eps[place] for place in places)


def test_a_run_leaves_these_files_and_no_others(attacked):
    assert sorted(os.listdir(attacked.directory)) == [
        "examples.npz",
        "figures",
        "manifest.json",
        "perturbed.npz",
        "report.html",
        "results.parquet",
        "tables",
    ]


# Minimal-norm attacks and the measures


def test_without_eps_the_grid_comes_from_the_distances_and_rows_are_those_of_a_run_with_that_grid(tmp_path):
    free = bare_run(config(attacks=("deepfool",), eps=()), tmp_path / "free")
    grid = tuple(free.manifest["eps"])
    assert grid[0] == 0.0
    given = columns(bare_run(config(attacks=("deepfool",), eps=grid), tmp_path / "given").directory)
    own = columns(free.directory)
    for name in ("sample_id", "eps", "success", "status", "prediction", "norm_linf", "gain"):
        np.testing.assert_array_equal(own[name], given[name], err_msg=name)
    correct = own["clean_prediction"] == own["target"]
    last = correct & (own["eps"] == grid[-1])
    assert own["success"][last].mean() >= 0.99
    half = correct & (own["eps"] == grid[10])
    assert 0.1 < own["success"][half].mean() < 0.95
    assert not own["success"][correct & (own["eps"] == 0)].any()


def test_another_split_is_attacked_where_it_is_asked_for(tmp_path):
    result = bare_run(config(attacks=("fgsm",), split="train"), tmp_path / "r")
    train = data.load("digits", split="train", limit=COUNT)
    assert result.manifest["data"]["split"] == "train"
    assert "--split train" in result.manifest["command"]
    assert set(columns(result.directory)["sample_id"].tolist()) == set(train.ids.tolist())
    assert not set(train.ids.tolist()) & set(data.load("digits", limit=COUNT).ids.tolist())
    with pytest.raises(eb.InputError, match="split must be 'train' or 'test', got 'validation'"):
        bare_run(config(attacks=("fgsm",), split="validation"), tmp_path / "other")


@pytest.mark.parametrize(("p", "bounds"), [(2.0, None), (1.5, "data")])
def test_robustness_is_that_of_the_library(tmp_path, p, bounds):
    result = bare_run(config(command="robustness", attacks=("deepfool",), eps=(), p=p, bounds=bounds), tmp_path / "r")
    whole = data.load("digits", limit=COUNT)
    box = (0.0, 1.0) if bounds == "data" else None
    expected = eb.robustness(networks.load("digits-fcnn").double(), whole.x.double(), whole.target, p, bounds=box)
    content = json.loads((result.directory / "manifest.json").read_text())["robustness"]
    assert content["rho1"]["value"] == pytest.approx(expected.rho1, rel=1e-9)
    assert content["rho2"]["value"] == pytest.approx(expected.rho2, rel=1e-9)
    assert content["eps99"]["value"] == pytest.approx(expected.eps99, rel=1e-9)
    assert content["rho1"]["low"] < content["rho1"]["value"] < content["rho1"]["high"]
    found = columns(result.directory, "distances.parquet")
    np.testing.assert_allclose(found["distance"], expected.distance, rtol=1e-9)
    np.testing.assert_allclose(found["r2"], expected.r2, rtol=1e-9)
    assert (found["p"] == p).all()
    own = columns(result.directory)
    for eps in np.unique(own["eps"]):
        within = (found["distance"] <= eps * (1 + 1e-9)) & found["correct"]
        np.testing.assert_array_equal(select(own, eps=eps)["success"] & found["correct"], within)


# Surrogates and transfer


@pytest.fixture(scope="module")
def transferred(tmp_path_factory):
    attacks = ("fgsm", "bim", "ensemble")
    made = config(attacks=attacks, surrogates=("digits-cnn",), transfer=True, steps=5)
    return bare_run(made, tmp_path_factory.mktemp("runs") / "transferred")


@pytest.fixture(scope="module")
def nets():
    return {name: networks.load(name).double() for name in ("digits-fcnn", "digits-cnn")}


def predictions(model, x):
    with torch.no_grad():
        return model(x).argmax(1).numpy()


def test_ensemble_is_crafted_on_the_surrogates_and_judged_on_the_model(transferred, nets):
    mine = select(columns(transferred.directory), attack="ensemble", eps=0.2)
    assert set(mine["crafted_on"]) == {"digits-cnn"}
    assert set(mine["judged_on"]) == {"digits-fcnn"}
    with np.load(transferred.directory / "perturbed.npz") as saved:
        perturbed, target = torch.from_numpy(saved["perturbed/ensemble"]), saved["target"]
    judged = predictions(nets["digits-fcnn"], perturbed)
    np.testing.assert_array_equal(mine["prediction"], judged)
    assert (predictions(nets["digits-cnn"], perturbed) != target).mean() > (judged != target).mean()


def test_transfer_crafts_on_each_network_and_judges_on_all(transferred, nets, digits):
    mine = columns(transferred.directory)
    assert transferred.manifest["transfer"] == {"attack": "bim", "networks": list(nets)}
    assert set(mine["attack"][mine["judged_on"] == "digits-cnn"]) == {"bim"}
    x, target = digits.x.double(), digits.target
    for crafted in nets:
        attack = eb.recipe("bim", p=math.inf, eps=0.2, steps=5, bounds=(0.0, 1.0), stop="never")
        perturbed = attack(nets[crafted], x, target, seed=3, sample_id=digits.ids).perturbed
        for judge in nets:
            part = select(mine, attack="bim", eps=0.2, crafted_on=crafted, judged_on=judge)
            assert part["sample_id"].tolist() == digits.ids.tolist()
            if (crafted, judge) == ("digits-fcnn", "digits-fcnn"):
                continue  # the run's own attack, which stops at success
            expected = predictions(nets[judge], perturbed)
            np.testing.assert_array_equal(part["prediction"], expected)
            np.testing.assert_array_equal(part["clean_prediction"], predictions(nets[judge], x))
            np.testing.assert_array_equal(part["success"], expected != target.numpy())
            with torch.no_grad():
                loss = torch.nn.functional.cross_entropy(nets[judge](perturbed), target, reduction="none")
            np.testing.assert_allclose(part["gain"], loss, rtol=1e-7, atol=1e-12)


# Complete or not at all


def small(**changes):
    return config(command="evaluate", attacks=("fgsm",), limit=10, **changes)


def fail(*_, **__):
    raise RuntimeError("no space")


def test_a_failure_while_the_report_is_written_leaves_the_shards_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "write_page", fail)
    out = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError, match="no space") as caught:
        run(small(), out)
    assert caught.value.__notes__ == [
        "finished so far: 1 of 1 shards, which are kept; the same command with --resume goes on from there."
    ]
    assert os.listdir(out) == [".unfinished"]
    assert os.listdir(out / ".unfinished") == ["shards"]


def test_a_failure_before_the_first_shard_is_finished_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("epsball.experiments.shard.do", fail)
    with pytest.raises(RuntimeError, match="no space"):
        run(small(), tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []


def test_another_runs_results_are_refused_and_kept_unless_overwritten(attacked, tmp_path, monkeypatch):
    out = tmp_path / "r"
    shutil.copytree(attacked.directory, out)
    (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(eb.InputError, match="--overwrite"):
        bare_run(small(), out)
    monkeypatch.setattr(page, "write_page", fail)
    with pytest.raises(RuntimeError, match="no space"):
        run(small(), out, overwrite=True)
    monkeypatch.undo()
    shutil.rmtree(out / ".unfinished")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    bare_run(small(), out, overwrite=True)
    assert not (out / "perturbed.npz").exists(), "a file of the earlier run would be taken for this one's"
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads((out / "manifest.json").read_text())["configuration"]["command"] == "evaluate"


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_move_that_fails_brings_everything_back(tmp_path, monkeypatch, failing):
    out = tmp_path / "r"
    out.mkdir()
    for name in ("manifest.json", "results.parquet", "perturbed.npz"):
        (out / name).write_text(f"old {name}")
    moves = 0
    real = os.replace

    def replace(source, target):
        nonlocal moves
        moves += 1
        if moves == failing:
            raise OSError("device gone")
        real(source, target)

    finished = False
    with storage.RunFolder(out, overwrite=True) as folder:
        for name in ("manifest.json", "results.parquet", "examples.npz", "report.html"):
            (folder.path / name).write_text(f"new {name}")
        monkeypatch.setattr(os, "replace", replace)
        try:
            folder.commit()
            finished = True
        except OSError:
            pass
        monkeypatch.undo()
    there = {path.name: path.read_text() for path in out.iterdir()}
    age, files = ("new", 4) if finished else ("old", 3)
    assert finished == (failing == 8)
    assert len(there) == files
    assert all(text == f"{age} {name}" for name, text in there.items())


def test_a_demo_replaces_a_demo_and_nothing_else(attacked, tmp_path):
    with pytest.raises(eb.InputError, match="without results"):
        storage.RunFolder(attacked.directory, replaces="demo")
    storage.write_json(
        tmp_path / "manifest.json", {"configuration": dataclasses.replace(small(), command="demo").to_dict()}
    )
    with storage.RunFolder(tmp_path, replaces="demo") as folder:
        (folder.path / "report.html").write_text("new")
        folder.commit()
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_archive_reads_as_numpy_wrote_it(tmp_path):
    arrays = {
        "whole": np.arange(6, dtype=np.int64).reshape(3, 2),
        "single": np.asarray(0.5),
        "flags/a": np.array([True, False]),
        "none": np.zeros((0, 1, 2), dtype=np.float32),
    }
    parts = np.random.default_rng(0).normal(size=(7, 2, 3))
    with Archive(tmp_path / "a.npz") as archive:
        archive.write(arrays.items())
        for start in (0, 3, 6):
            archive.append("parts", parts[start : start + 3], 7)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        for name, array in (arrays | {"parts": parts}).items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without bounds in float32, in batches of 4, 4 and 2, with its progress and the draws made after it."""
    seen = []
    torch.manual_seed(5)
    result = bare_run(
        small(bounds=None, dtype="float32", batch_size=4),
        tmp_path_factory.mktemp("runs") / "plain",
        progress=lambda label, done, total, share=None: seen.append((label, done, total, share)),
    )
    return result, seen, torch.rand(3)


def test_the_rows_of_a_last_small_batch_are_there(plain):
    assert isinstance(plain[0].table, pa.Table)
    assert len(plain[0].table) == 10 * len(EPS)


def test_progress_reaches_the_end_and_never_goes_back(plain):
    assert [entry[:3] for entry in plain[1]] == [("fgsm", 4, 10), ("fgsm", 8, 10), ("fgsm", 10, 10)]
    assert [entry[3] for entry in plain[1]] == pytest.approx([0.4, 0.8, 1.0])


def test_the_work_is_done_in_the_type_and_bounds_that_were_asked_for(plain):
    content = plain[0].manifest
    assert content["bounds"] is None
    assert content["data"]["bounds"] == [0.0, 1.0]
    with np.load(plain[0].directory / "examples.npz") as found:
        assert found["x"].dtype == np.float32
        assert found["perturbed/fgsm"].min() < 0.0


def test_the_user_s_random_generator_is_left_alone(plain):
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), plain[2])


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ()}, "at least one attack"),
        ({"attacks": ("fgsm", "fgsm")}, "twice"),
        ({"attacks": ("fgms",)}, "did you mean 'fgsm'"),
        ({"attacks": ("random-l2",)}, "p=2"),
        ({"eps": ()}, "expected eps"),
        ({"eps": (0.1, 0.05)}, "increasing"),
        ({"eps": (-0.1,)}, ">= 0"),
        ({"eps": (math.inf,)}, "finite"),
        ({"p": 0.5}, "norm order"),
        ({"steps": 0}, "steps"),
        ({"steps": 5, "attacks": ("fgsm", "alg1-10")}, "steps are open"),
        ({"limit": 0}, "limit"),
        ({"batch_size": 0}, "batch_size"),
        ({"bounds": (1.0, 0.0)}, "lo < hi"),
        ({"dtype": "float16"}, "float32 or float64"),
        ({"task": "regression"}, "classification"),
        ({"attacks": ("ensemble",)}, "surrogates"),
        ({"surrogates": ("digits-cnn",)}, "ensemble"),
        ({"surrogates": ("digits-fcnn",), "transfer": True}, "differ"),
        ({"transfer": True}, "surrogates"),
        ({"transfer": True, "surrogates": ("digits-cnn",), "attacks": ("deepfool",)}, "norm-constrained"),
        ({"command": "explode"}, "command"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_when_it_is_made(changes, message):
    with pytest.raises(eb.InputError, match=message):
        config(**changes)


@pytest.mark.parametrize("bounds", ["data", None, (0.0, 1.0)])
@pytest.mark.parametrize("p", [1.0, 2.5, math.inf])
def test_the_configuration_survives_strict_json(bounds, p):
    made = config(attacks=("pgd",), p=p, bounds=bounds, steps=7, data_root="/d", transfer=True, surrogates=("a", "b"))
    again = RunConfig.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert again == made
    assert hash(again) == hash(made)


def test_every_recipe_has_a_formulation_that_people_know():
    for row in eb.recipes():
        assert type(row.formulation) in FORMULATIONS, row.name
        if row.over_groups is not None:
            assert type(row.over_groups[1]) in FORMULATIONS, row.name


@pytest.mark.parametrize(
    ("passes", "p"), [(100, math.inf), (399, math.inf), (400, math.inf), (950, math.inf), (30, 2.0)]
)
def test_the_estimate_of_the_time_left_knows_what_a_search_spends(passes, p):
    """Beside what it spends on samples that stand; an attack of one step counts 2."""
    x = torch.rand(2, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(42, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(x):
        return x.flatten(1) @ weight

    attack = eb.recipe("best", p=p, eps=1e-9, bounds=(0.0, 1.0), passes=passes)
    result = attack(model, x, model(x).argmax(1))
    assert not result.success.any()
    spent = float((result.forwards + result.backwards).double().mean())
    estimate = _cost(SimpleNamespace(attack=attack), SimpleNamespace(eps=(1e-9,)))
    assert 0.85 * spent < estimate < 1.15 * spent


def test_the_manifest_says_how_many_passes_were_given(tmp_path):
    for folder, given in ((tmp_path / "own", {}), (tmp_path / "given", {"passes": 12})):
        bare_run(config(attacks=("best", "fgsm"), eps=(0.05,), limit=5, **given), folder)
        attacks = json.loads((folder / "manifest.json").read_text())["attacks"]
        assert [attack["passes"] for attack in attacks] == [given.get("passes", 100), None]
