"""The command line: every command on real digits, exit codes, and one line for whatever cannot be run."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from epsball import networks
from epsball.cli import display
from epsball.cli.app import app
from epsball.recipes import recipes

DATA = os.environ.get("EPSBALL_DATA", "")


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def epsball(*words, code=0, **extra):
    """Run the command as a user does, in a process of its own."""
    command = [sys.executable, "-m", "epsball", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **extra)
    assert done.returncode == code, done.stderr
    return done


def refused(result, *words):
    """Check for one line on stderr, nothing on stdout, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("epsball: ")
    for word in words:
        assert word in result.stderr


# Each command


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "deep" / "run"
    result = call(
        *("attack", "--model", "digits-fcnn", "--attacks", "deepfool,pgd", "--eps", "0.05,0.15", "--steps", 5),
        *("--limit", 40, "--seed", 7, "--dtype", "float64", "--batch-size", 16, "--out", out),
    )
    assert result.exit_code == 0, result.stderr
    return out, result


def test_attack_writes_the_folder_and_prints_the_table(attacked):
    out, result = attacked
    assert result.stderr == "", "no progress bar without a terminal"
    table = pq.ParquetFile(out / "results.parquet").read().to_pydict()
    assert set(table["steps"]) == {5}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["seed"], manifest["batch_size"], manifest["dtype"]) == (7, 16, "float64")
    correct = manifest["clean"]["correct"]
    for name in ("deepfool", "pgd"):
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(name))
        shares = [float(word) for word in line.split()[1:3]]
        for eps, share in zip((0.05, 0.15), shares, strict=True):
            hits = sum(
                success and clean == target
                for success, clean, target, attack, budget in zip(
                    *(table[key] for key in ("success", "clean_prediction", "target", "attack", "eps")), strict=True
                )
                if (attack, budget) == (name, eps)
            )
            assert share == pytest.approx(100 * hits / correct, abs=0.051)
    assert str(out / "report.html") in result.stdout
    with np.load(out / "perturbed.npz") as saved:
        assert saved["perturbed/pgd"].shape == (40, 1, 8, 8)


def test_the_command_in_the_manifest_runs_it_again(attacked, tmp_path):
    out, _ = attacked
    words = json.loads((out / "manifest.json").read_text())["command"].split()
    assert words[0] == "epsball"
    assert words[-1] == "DIR"
    assert call(*words[1:-1], tmp_path / "again").exit_code == 0
    first, again = (pq.ParquetFile(folder / "results.parquet").read() for folder in (out, tmp_path / "again"))
    assert first.drop_columns("seconds").equals(again.drop_columns("seconds"))


def test_report_is_written_again_from_the_files(attacked):
    out, _ = attacked
    page = out / "report.html"
    before = page.read_bytes()
    page.unlink()
    result = call("report", out)
    assert result.exit_code == 0
    assert page.read_bytes() == before
    assert b"digits-fcnn" in before


def test_evaluate_takes_data_from_a_file_and_prints_the_transfer(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.uniform(size=(12, 1, 8, 8)).astype(np.float32), y=np.arange(12) % 10)
    result = call(
        *("evaluate", "--model", "digits-fcnn", "--data", tmp_path / "mine.npz", "--attacks", "bim,ensemble"),
        *("--eps", "0.1", "--surrogates", "digits-cnn", "--transfer", "--out", tmp_path / "r"),
    )
    assert result.exit_code == 0, result.stderr
    assert "transfer of bim at eps = 0.1" in result.stdout
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["data"]["count"] == manifest["data"]["of"] == 12
    assert [s["name"] for s in manifest["surrogates"]] == ["digits-cnn"]


def test_robustness_prints_the_measures(tmp_path):
    result = call("robustness", "--model", "digits-cnn", "--limit", 30, "--p", 2, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "r" / "manifest.json").read_text())["robustness"]
    for name in ("rho1", "rho2", "eps99"):
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(name))
        assert float(line.split()[1]) == pytest.approx(found[name]["value"], rel=1e-3)
    assert (tmp_path / "r" / "distances.parquet").is_file()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("attacks", [row.name for row in recipes()]),
        ("networks", networks.names()),
        ("datasets", ["digits", "mnist"]),
    ],
)
def test_list_names_everything_in_the_catalogue(kind, names):
    result = call("list", kind)
    assert result.exit_code == 0
    firsts = {line.split()[0] for line in result.stdout.splitlines() if line.split()}
    assert set(names) <= firsts


def test_train_writes_weights_that_evaluate_takes(tmp_path):
    weights = tmp_path / "mine.safetensors"
    result = call("train", "digits-fcnn", "--epochs", 2, "--seed", 4, "--limit", 300, "--out", weights)
    assert result.exit_code == 0, result.stderr
    card = json.loads(weights.with_suffix(".json").read_text())
    assert (card["seed"], card["epochs"]) == (4, 2)
    assert f"{100 * card['test_error']:.2f} %" in result.stdout
    words = ("--model", "digits-fcnn", "--weights", weights, "--attacks", "fgsm", "--eps", "0.1", "--limit", 20)
    assert call("evaluate", *words, "--out", tmp_path / "r").exit_code == 0
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["model"]["card"]["seed"] == 4


@pytest.mark.slow
def test_the_demo_attacks_a_classifier_and_a_regressor_and_says_what_to_try_next(tmp_path):
    done = epsball("demo", "--out", tmp_path / "demo")
    for name in ("deepfool", "alg1-10", "alg1", "fgsm", "pgd", "random-linf"):
        assert f" {name} " in done.stdout
    assert str(tmp_path / "demo" / "report.html") in done.stdout
    assert "Next: " in done.stdout
    assert done.stderr == ""
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert manifest["command"] == "epsball demo --out DIR"
    assert manifest["clean"]["error"] < 0.05
    assert len(manifest["attacks"]) == 6
    assert (tmp_path / "demo" / "report.html").stat().st_size > 20_000
    second = tmp_path / "demo" / "regressor"
    assert str(second / "report.html") in done.stdout
    assert json.loads((second / "manifest.json").read_text())["task"] == "regression"
    for name in ("quadratic-lp", "linear-lp-10", "random-l2"):
        assert f" {name} " in done.stdout


@pytest.mark.slow
def test_the_demo_trains_its_network_where_no_weights_come_with_epsball(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "shipped", lambda name: tmp_path / "absent.safetensors")
    result = call("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert manifest["configuration"]["weights"] == str(tmp_path / "demo" / "digits-fcnn.safetensors")
    assert (tmp_path / "demo" / "regressor" / "digits-autoencoder.safetensors").is_file()
    assert manifest["clean"]["error"] < 0.05


@pytest.mark.skipif(not os.path.isdir(os.path.join(DATA, "mnist")), reason="EPSBALL_DATA does not hold MNIST")
def test_mnist_comes_from_the_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("EPSBALL_DATA")
    words = ("--model", "mnist-fcnn", "--data-root", DATA, "--attacks", "fgsm,alg2", "--eps", "0.05", "--limit", 100)
    result = call("evaluate", *words, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    assert "mnist test, 100 of 10,000 samples" in result.stdout


@pytest.mark.parametrize("name", ["all", "table3", "figure1", "figure2", "figure3", "figure4"])
def test_paper_commands_hand_their_options_over(name, tmp_path, monkeypatch):
    paper = pytest.importorskip("epsball.experiments.paper")
    given = []
    monkeypatch.setattr(paper, "everything" if name == "all" else name, lambda setting: given.append(setting) or "done")
    options = ("--data-root", "d", "--seed", 3, "--batch-size", 7, "--weights", "mnist-fcnn=w.pt", "--panels", "a")
    result = call("paper", name, "--out", tmp_path, "--samples", 5, *options, "--resume")
    assert result.exit_code == 0, result.stderr
    (setting,) = given
    assert (setting.out, setting.data_root, setting.limit, setting.seed) == (tmp_path, "d", 5, 3)
    assert (setting.batch_size, setting.weights, setting.panels, setting.resume) == (
        7,
        {"mnist-fcnn": "w.pt"},
        "a",
        True,
    )
    assert "done" in result.stdout


@pytest.mark.parametrize(
    ("parts", "told"), [(0, "nothing incomplete"), (2, "parts are kept: 2; the same command with --r")]
)
def test_an_interrupted_paper_says_what_is_kept(parts, told, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    paper = pytest.importorskip("epsball.experiments.paper")
    from epsball.cli.stopping import Stopped
    from epsball.experiments.paper.parts import Part

    def until_interrupted(setting):
        store = setting.prepare()
        for number in range(parts):
            store.get({"number": number}, lambda: Part(pyarrow.table({"a": [1]}), {}))
        raise Stopped(signal.SIGINT)  # as the command line turns the signal

    monkeypatch.setattr(paper, "table3", until_interrupted)
    result = call("paper", "table3", "--out", tmp_path / "r")
    assert result.exit_code == 130
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_paper_weights_are_pairs(tmp_path):
    result = call("paper", "figure4", "--out", tmp_path / "r", "--weights", "w.safetensors")
    assert result.exit_code == 2
    assert "--weights NETWORK=FILE" in result.stderr
    assert not (tmp_path / "r").exists()


# Bad input: exit code 2, one line, nothing written


RUN = ("evaluate", "--model", "digits-fcnn", "--limit", 20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--attacks", "fgms", "--eps", "0.1"), "did you mean 'fgsm'"),
        (("--attacks", "fgsm"), "expected eps"),
        (("--attacks", "fgsm", "--eps", "0.1,x"), "expected --eps as numbers"),
        (("--attacks", "fgsm", "--eps", "nan"), "expected --eps as numbers"),
        (("--attacks", "fgsm", "--eps", "0.1,0.05"), "increasing"),
        (("--attacks", "fgsm", "--eps", "-0.1"), ">= 0"),
        (("--attacks", "fgsm", "--eps", "0.1", "--p", "0.5"), "norm order"),
        (("--attacks", "fgsm", "--eps", "0.1", "--p", "two"), "expected --p as a number"),
        (("--attacks", "bim", "--eps", "0.1", "--steps", "0"), "steps"),
        (("--attacks", "bim", "--eps", "0.1", "--steps", "many"), "--steps"),
        (("--attacks", "fgsm", "--eps", "0.1", "--bounds", "1,0"), "lo < hi"),
        (("--attacks", "fgsm", "--eps", "0.1", "--bounds", "0"), "expected --bounds"),
        (("--attacks", "fgsm", "--eps", "0.1", "--bounds", "0,0.5"), "inside bounds"),
        (("--attacks", "fgsm", "--eps", "0.1", "--batch-size", "0"), "batch_size"),
        (("--attacks", "fgsm", "--eps", "0.1", "--limit", "0"), "limit"),
        (("--attacks", "fgsm", "--eps", "0.1", "--dtype", "float16"), "dtype"),
        (("--attacks", "fgsm", "--eps", "0.1", "--device", "warp"), "device"),
        (("--attacks", "fgsm", "--eps", "0.1", "--device", "meta"), "device"),
        (("--attacks", "fgsm", "--eps", "0.1", "--task", "regression"), "classification"),
        (("--attacks", "fgsm", "--eps", "0.1", "--data", "mnits"), "did you mean 'mnist'"),
        (("--attacks", "fgsm", "--eps", "0.1", "--data", "./none.npz"), "does not exist"),
        (("--attacks", "fgsm", "--eps", "0.1", "--weights", "none.pt"), "does not exist"),
        (("--attacks", "ensemble", "--eps", "0.1"), "surrogates"),
        (("--attacks", "ensemble", "--eps", "0.1", "--surrogates", "digits-cn"), "did you mean 'digits-cnn'"),
        (("--attacks", "ensemble", "--eps", "0.1", "--surrogates", "mnist-fcnn"), "expected surrogates that take"),
        (("--attacks", "fgsm", "--eps", "0.1", "--nonsense"), "--nonsense"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(tmp_path, words, message):
    result = call(*RUN, *words, "--out", tmp_path / "a" / "b")
    refused(result, message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "--model", "digits-fcn", "--eps", "0.1", "--out", "r"), "did you mean 'digits-fcnn'"),
        (("evaluate", "--eps", "0.1", "--out", "r"), "--model"),
        (("evaluate", "--model", "digits-fcnn", "--eps", "0.1"), "--out"),
        (("list", "network"), "did you mean 'networks'"),
        (("explode",), "explode"),
        (("report", "nowhere"), "nowhere"),
        (("train", "digits-fcn", "--out", "w.safetensors"), "did you mean 'digits-fcnn'"),
        (("train", "digits-fcnn", "--out", "w.pt"), ".safetensors"),
        (("train", "digits-fcnn", "--epochs", "0", "--out", "w.safetensors"), "epochs"),
        (("paper", "table9", "--out", "r"), "table9"),
    ],
)
def test_commands_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    refused(call(*words), message)
    assert os.listdir(tmp_path) == []


def samples(**changes):
    rng = np.random.default_rng(1)
    return {"x": rng.uniform(size=(6, 1, 8, 8)).astype(np.float32), "y": np.arange(6)} | changes


X = samples()["x"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (samples(y=np.arange(6) + 5), "class indices from 0 to 9"),
        (samples(y=np.arange(5)), "each of the 6 samples"),
        (samples(y=np.arange(6) - 1), "at least 0"),
        (samples(y=np.zeros((6, 10), dtype=np.float32)), "class indices (N,)"),
        ({"x": X}, "expected class labels"),
        (samples(x=np.where(X > 0.9, np.nan, X)), "NaN"),
        (samples(x=np.where(X > 0.9, np.inf, X)), "infinite"),
        (samples(x=(255 * X).astype(np.uint8)), "255"),
        (samples(x=X.astype(np.int64)), "floating"),
        (samples(x=X[:, :, :4]), "samples of shape (1, 8, 8)"),
        (samples(x=X[:0], y=np.arange(0)), "not empty"),
    ],
)
def test_data_that_do_not_fit_the_network_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    words = ("--model", "digits-fcnn", "--data", tmp_path / "d.npz", "--attacks", "fgsm", "--eps", "0.1")
    refused(call("evaluate", *words, "--out", tmp_path / "r"), message)
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize("kind", ["damaged", "truncated", "weights of another network"])
def test_weights_that_are_not_sound_are_refused(tmp_path, kind):
    raw = bytearray(networks.shipped("digits-fcnn").read_bytes())
    if kind == "damaged":
        raw[5] ^= 0xFF
    elif kind == "truncated":
        raw = raw[: len(raw) // 2]
    else:
        raw = networks.shipped("digits-cnn").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(raw)
    words = ("--weights", tmp_path / "w.safetensors", "--attacks", "fgsm", "--eps", "0.1")
    refused(call(*RUN, *words, "--out", tmp_path / "r"), "w.safetensors")
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_damaged_data_file_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", **samples())
    raw = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(raw[: len(raw) // 2])
    words = ("--data", tmp_path / "d.npz", "--attacks", "fgsm", "--eps", "0.1")
    refused(call(*RUN, *words, "--out", tmp_path / "r"), "d.npz")


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "opened"),)

    torch.save({"x": Trap()}, tmp_path / "d.pt")
    np.savez(tmp_path / "d.npz", x=np.array([Trap()], dtype=object))
    for name in ("d.pt", "d.npz"):
        refused(
            call(*RUN, "--data", tmp_path / name, "--attacks", "fgsm", "--eps", "0.1", "--out", tmp_path / "r"), name
        )
    assert sorted(os.listdir(tmp_path)) == ["d.npz", "d.pt"]


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        refused(call(*RUN, "--attacks", "fgsm", "--eps", "0.1", "--out", out), "output folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_results_of_another_run_are_kept(attacked):
    out, _ = attacked
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    refused(call(*RUN, "--attacks", "fgsm", "--eps", "0.1", "--out", out), "--overwrite")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


# The process


def test_the_installed_command_says_its_version_and_helps():
    assert epsball("--version").stdout.startswith("epsball 0.")
    for words in ((), ("--help",)):
        assert "robustness" in epsball(*words).stdout


def test_a_refusal_is_one_line_in_a_real_process_too(tmp_path):
    done = epsball("evaluate", "--model", "digits-fcnn", "--eps", "x", "--out", tmp_path / "r", code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_training_that_diverges_is_a_failure_and_not_bad_input(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.uniform(high=3e38, size=(40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 10)
    words = ("--data", tmp_path / "d.npz", "--epochs", 2, "--out", tmp_path / "w.safetensors")
    result = call("train", "digits-fcnn", *words)
    assert result.exit_code == 1
    assert "diverged" in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["d.npz"]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from epsball.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f'epsball: the command line needs {missing}; pip install "epsball[cli]"\n'


def test_importing_the_library_imports_no_optional_package():
    heavy = (
        "typer",
        "rich",
        "pyarrow",
        "matplotlib",
        "sklearn",
        "scipy",
        "PIL",
        "cvxpy",
        "jinja2",
        "pooch",
        "safetensors",
    )
    # torch itself imports some packages where they are installed: what it brings does not count.
    code = (
        "import sys, torch; before = set(sys.modules); import epsball; "
        f"print([name for name in {heavy!r} if name in sys.modules and name not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
def test_an_interrupted_run_leaves_nothing(tmp_path):
    out = tmp_path / "a" / "r"
    words = ("attack", "--model", "digits-fcnn", "--attacks", "fgsm,pgd", "--steps", 100_000, "--eps", "0.01")
    command = [sys.executable, "-m", "epsball", *map(str, words), "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs inherit it ignored
    )
    try:
        started = time.monotonic()
        while not list(tmp_path.glob("a/r/.unfinished/shards/*/perturbed.npz")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() - started < 100, "the run never started"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


# The progress bar


def shown(patience, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=150, color_system=None)
    with display.ProgressBar(console=console, patience=patience) as bar:
        bar("alg1-10", 500, 10_000, 0.01)
        time.sleep(0.25)
        bar("alg1-10", 5_000, 10_000, 0.25)
        time.sleep(0.25)
        bar("alg1-10", 9_500, 10_000, 0.475)
    return stream.getvalue()


def test_without_a_terminal_a_line_now_and_then_shows_that_the_work_goes_on(monkeypatch):
    monkeypatch.setattr(display, "EVERY", 0.4)
    assert shown(0.0, False) == "alg1-10 9,500 of 10,000 samples, 48% of the work\n"
    monkeypatch.setattr(display, "EVERY", 30.0)
    assert shown(0.0, False) == ""


def test_the_progress_bar_shows_samples_rate_and_time_left():
    text = shown(0.0, True)
    assert "alg1-10 9,500 of 10,000 samples" in text
    assert "samples/s" in text
    assert "48%" in text or "47%" in text
    assert "0:00:0" in text


@pytest.mark.parametrize(("patience", "terminal"), [(math.inf, True), (0.0, False)])
def test_there_is_no_bar_for_short_work_or_without_a_terminal(patience, terminal):
    assert shown(patience, terminal) == ""
