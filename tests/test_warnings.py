"""What a run warns of: counted again from its rows, and the same words in manifest, terminal and page."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from epsball import networks
from epsball.cli.app import app
from epsball.experiments.config import RunConfig
from epsball.experiments.plan import prepare
from epsball.experiments.warnings import warnings_of
from epsball.networks.storage import save

CARD = {"network": "digits-fcnn", "test_error": 0.1}


def weights(folder, name, change):
    """Weights of a network of the catalogue, changed."""
    model = networks.load(name)
    with torch.no_grad():
        change([module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1])
    path = folder / f"{name}.safetensors"
    save(model, CARD | {"network": name}, path)
    return path


def saturate(layer):
    """Scores a million times as far apart: the same classes, and a cross-entropy of exactly zero in float32."""
    layer.weight.mul_(1e6)
    layer.bias.mul_(1e6)


def silence(layer):
    layer.weight.zero_()


def evaluate(out, *words):
    result = CliRunner().invoke(app, ["evaluate", *map(str, words), "--out", str(out)])
    assert result.exit_code == 0, result.output
    content = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    text = (out / "report.html").read_text(encoding="utf-8")
    return content["warnings"], " ".join(result.stdout.split()), " ".join(text.split())


def test_saturated_scores_are_warned_of_in_the_same_words_everywhere(tmp_path):
    path = weights(tmp_path, "digits-fcnn", saturate)
    words = ("--model", "digits-fcnn", "--weights", path, "--limit", 60, "--attacks", "fgsm,alg1", "--eps", "0.05,0.1")
    found, terminal, page = evaluate(tmp_path / "run", *words)
    (warning,) = found
    table = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    right = [row for row in table if row["target"] == row["clean_prediction"] and row["attack"] == "fgsm"]
    stuck = [sum(row["eps"] == eps and row["status"] == "ZERO_GRADIENT" for row in right) for eps in (0.05, 0.1)]
    counted = len(right) // 2
    assert max(stuck) > 0.5 * counted
    eps = (0.05, 0.1)[int(np.argmax(stuck))]
    assert warning["kind"] == "zero-gradient"
    assert f"ZERO_GRADIENT under fgsm ({max(stuck)} of {counted} at eps = {eps:g})." in warning["seen"]
    assert "alg1" not in warning["seen"]  # the margin of the same scores has a gradient
    for part in ("seen", "means", "next"):
        assert warning[part] in terminal
        assert warning[part] in page
    assert "logits" in warning["next"]
    assert "alg1-10" in warning["next"]
    assert "--dtype float64" in warning["next"]


def test_a_flat_regression_model_is_warned_of(tmp_path):
    path = weights(tmp_path, "digits-autoencoder", silence)
    words = ("--model", "digits-autoencoder", "--weights", path, "--limit", 9, "--attacks", "linear-lp-2")
    for target, hint in (("output", "--target input"), ("input", "quadratic-lp")):
        found, terminal, _ = evaluate(tmp_path / target, *words, "--p", 2, "--eps", "0,0.5", "--target", target)
        (warning,) = found
        start = "Most samples were left as they are (ZERO_GRADIENT or ALREADY) under "
        assert warning["seen"] == f"{start}linear-lp-2 (9 of 9 at eps = 0.5)."
        assert hint in warning["next"]
        assert warning["seen"] in terminal


def test_half_of_the_samples_are_not_most(tmp_path):
    """Chunks with counted statuses: 3 of 6 give no warning, 4 of 6 do, and samples wrong from the start count not."""
    from epsball.engines.local import STATUSES, Chunk

    plan = prepare(plain())

    def chunk(stuck, wrong=0):
        status = np.full(6 + wrong, STATUSES.index("STANDS"))
        status[:stuck] = STATUSES.index("ZERO_GRADIENT")
        target = np.zeros(6 + wrong, dtype=np.int64)
        clean = (np.arange(6 + wrong) >= 6).astype(np.int64)
        columns = {"status": status, "target": target, "clean_prediction": clean, "success": clean > 0}
        return Chunk("fgsm", "digits-fcnn", "digits-fcnn", math.inf, 1, 0.1, True, columns)

    assert warnings_of(plan, [chunk(3)]) == []
    assert warnings_of(plan, [chunk(3, wrong=1)]) == []
    (warning,) = warnings_of(plan, [chunk(4, wrong=5)])
    assert "fgsm (4 of 6 at eps = 0.1)" in warning["seen"]
    (warning,) = warnings_of(plan, [chunk(2), chunk(6)])  # two batches of one attack
    assert "fgsm (8 of 12 at eps = 0.1)" in warning["seen"]


def plain(**changes):
    base = {"command": "evaluate", "model": "digits-fcnn", "attacks": ("fgsm",), "eps": (0.1,), "limit": 5}
    return RunConfig(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"eps": (0.5, 0.999)}, None),
        ({"eps": (0.5, 1.0)}, "eps = 1 reaches or exceeds the valid range, 0 to 1, whose length is 1."),
        ({"eps": (0.5, 1.0, 8.0)}, "eps = 1, 8 reaches or exceeds the valid range, 0 to 1"),
        ({"eps": (1.0,), "bounds": (-1.0, 1.0)}, None),
        ({"eps": (2.0,), "bounds": (-1.0, 1.0)}, "the valid range, -1 to 1, whose length is 2."),
        ({"eps": (2.0,), "bounds": None}, "reaches or exceeds the range of the data, 0 to 1"),
        # 64 entries: the diagonal of the box is 8 in the l2 norm, 64 in the l1 norm.
        ({"eps": (1.0, 7.99), "p": 2.0}, None),
        (
            {"eps": (1.0, 8.0), "p": 2.0},
            "eps = 8 reaches or exceeds the valid range, 0 to 1, whose length is 8 in the l2",
        ),
        ({"eps": (63.0,), "p": 1.0}, None),
        ({"eps": (64.0,), "p": 1.0}, "64 in the l1 norm over all entries."),
        # A pixel that may take any value is a usual question.
        ({"eps": (1.0,), "attacks": ("linear-pixel-3",)}, None),
        ({"eps": (1.0,), "attacks": ("linear-pixel-3", "pgd")}, "the valid range"),
        ({"eps": (), "attacks": ("deepfool",)}, None),
    ],
    ids=str,
)
def test_budgets_as_large_as_the_range(changes, seen):
    found = warnings_of(prepare(plain(**changes)), [])
    assert [warning["kind"] for warning in found] == ["eps-range"] * (seen is not None)
    if seen is not None:
        assert seen in found[0]["seen"]
        assert "units of x" in found[0]["next"]


class Reversed(torch.nn.Module):
    """The scores of a network, with the gradient of another function: it leads the wrong way."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(2 * x.detach() - x)


def reversed_network():
    """A network whose gradient misleads, for `--model FILE.py:reversed_network`."""
    return Reversed(networks.load("digits-cnn"))


def test_masked_gradients_are_warned_of(tmp_path):
    model = f"{__file__}:reversed_network"
    words = ("--model", model, "--data", "digits", "--limit", 300, "--seed", 3)
    found, terminal, page = evaluate(
        tmp_path / "run", *words, "--attacks", "pgd,random-linf", "--steps", 5, "--eps", "0.3,0.5"
    )
    by_kind = {warning["kind"]: warning for warning in found}
    assert "noise-beats-gradient" in by_kind
    table = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    right = [row for row in table if row["target"] == row["clean_prediction"]]
    seen = by_kind["noise-beats-gradient"]["seen"]
    eps = float(seen.split("eps = ")[1].split(",")[0])
    fooled = {
        name: sum(row["success"] for row in right if row["attack"] == name and row["eps"] == eps)
        for name in ("pgd", "random-linf")
    }
    assert fooled["random-linf"] > fooled["pgd"]
    assert f"random-linf fools {fooled['random-linf']} of" in seen
    assert f"pgd only {fooled['pgd']}." in seen
    for warning in by_kind.values():
        for part in ("seen", "means", "next"):
            assert warning[part] in terminal
            assert warning[part] in page


def test_inputs_that_withstand_any_change_are_warned_of(tmp_path):
    path = weights(tmp_path, "digits-fcnn", saturate)  # the cross-entropy is exactly zero: fgsm goes nowhere
    words = ("--model", "digits-fcnn", "--weights", path, "--limit", 200, "--attacks", "fgsm", "--eps", "0.1,0.6")
    found, _, _ = evaluate(tmp_path / "run", *words)
    (warning,) = [warning for warning in found if warning["kind"] == "above-chance"]
    table = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    right = [row for row in table if row["target"] == row["clean_prediction"] and row["eps"] == 0.6]
    standing = 1 - sum(row["success"] for row in right) / len(right)
    assert f"{standing:.1%} of {len(right)} samples withstand fgsm" in warning["seen"]


def test_sound_gradients_are_not_warned_of(tmp_path):
    words = ("--model", "digits-cnn", "--limit", 200, "--attacks", "fgsm,pgd,alg1-10,random-linf", "--steps", 10)
    found, _, _ = evaluate(tmp_path / "run", *words, "--eps", "0.05,0.1,0.5")
    assert not [warning for warning in found if warning["kind"] != "eps-range"]


SOFTMAX = """
import torch

class Sure(torch.nn.Module):
    def __init__(self, last):
        super().__init__()
        self.layer, self.last = torch.nn.Linear(64, {outputs}), last
    def forward(self, x):
        return self.last(3 * self.layer(x.flatten(1)))

def softmax():
    return Sure(torch.nn.Softmax(1))

def sigmoid():
    return Sure(torch.nn.Sigmoid())

def logits():
    return Sure(torch.nn.Identity())

def positive():
    return Sure(torch.nn.Softplus())
"""


@pytest.mark.filterwarnings("ignore:the model's outputs look like probabilities")
@pytest.mark.parametrize(
    ("last", "outputs", "warned"), [("softmax", 10, 1), ("sigmoid", 1, 1), ("logits", 10, 0), ("positive", 10, 0)]
)
def test_outputs_that_are_probabilities_are_warned_of_everywhere(tmp_path, last, outputs, warned):
    (tmp_path / "m.py").write_text(SOFTMAX.format(outputs=outputs))
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % (2 if outputs == 1 else 10))
    words = ("--model", f"{tmp_path / 'm.py'}:{last}", "--data", tmp_path / "d.npz", "--attacks", "alg1", "--eps", 0.02)
    found, terminal, page = evaluate(tmp_path / "run", *words)
    found = [warning for warning in found if warning["kind"] == "probabilities"]
    assert len(found) == warned
    for warning in found:
        assert warning["seen"][:30] in terminal
        assert ("they add up to 1" if outputs == 10 else "all lie between 0 and 1") in warning["seen"]
        assert warning["next"] in page


KNOWS = """
import torch

class Knows(torch.nn.Module):
    def forward(self, x):
        return 9.0 * x.flatten(1)

def make():
    return Knows()
"""


@pytest.mark.parametrize(
    ("right", "count", "classes", "of", "warned"),
    [
        # A guess among 4 classes gets 10 of 40 right, and one standard deviation more is 12.7.
        (0, 40, 4, 4, "no more than the 10 of a guess among 4 classes"),
        (12, 40, 4, 4, "classifies 12 of 40 samples correctly, hardly more than the 10"),
        (13, 40, 4, 4, ""),
        (40, 40, 4, 4, ""),
        (0, 16, 4, 4, ""),  # too few to tell
        (0, 40, 1, 4, ""),  # one class is no task
        (12, 40, 4, 20, ""),  # a guess among the 20 that it answers with would get 2
    ],
)
def test_a_model_that_only_guesses_is_warned_of(tmp_path, right, count, classes, of, warned):
    y, place = np.arange(count) % classes, np.arange(count)
    x = np.full((count, of), 0.2, dtype=np.float32)
    x[place, np.where(place < right, y, (y + 1 + place % (of - 1)) % of if of > 4 else (y + 1) % 4)] = 0.8
    assert _chance_of(tmp_path, x, y) == bool(warned)
    if warned:
        assert warned in _seen(tmp_path)


def test_one_answer_for_all_samples_is_warned_of_however_often_it_is_right(tmp_path):
    x = np.full((40, 4), 0.2, dtype=np.float32)
    x[:, 1] = 0.8
    y = np.where(np.arange(40) < 38, 1, 2)
    assert _chance_of(tmp_path, x, y)
    assert "gives all 40 samples class 1, of which 38 are" in _seen(tmp_path)


def _chance_of(folder, x, y):
    (folder / "m.py").write_text(KNOWS)
    np.savez(folder / "d.npz", x=x, y=y)
    words = ("--model", f"{folder / 'm.py'}:make", "--data", folder / "d.npz", "--attacks", "fgsm,alg1")
    found, terminal, page = evaluate(folder / "run", *words, "--eps", "0.02,0.05", "--batch-size", 7)
    found = [warning for warning in found if warning["kind"] == "chance"]
    for warning in found:
        assert warning["seen"][:30] in terminal
        assert warning["next"][:40] in page
    assert len(found) <= 1
    return bool(found)


def _seen(folder):
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    return next(warning["seen"] for warning in manifest["warnings"] if warning["kind"] == "chance")
