"""Training: the same seed gives the same weights, and what is refused is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from epsball import data, networks, training
from epsball.errors import InputError
from epsball.networks import NetworkSpec, TrainingRecipe

SMALL = {"epochs": 2, "limit": 200}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small spend their time waiting for one another on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(model: nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize("name", ["digits-fcnn", "digits-cnn", "digits-autoencoder"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = training.train(name, **SMALL)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    again = training.train(name, **SMALL)
    assert weights(first.model) == weights(again.model)
    assert first.error == again.error
    assert weights(first.model) != weights(training.train(name, **SMALL, seed=1).model)


def test_dropout_is_seeded_too() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    spec = replace(networks.spec("digits-fcnn"), name="dropout", build=build)
    before = torch.get_rng_state()
    first = training.train(spec, **SMALL)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert weights(first.model) == weights(training.train(spec, **SMALL).model)
    assert not first.model.training


def test_training_learns_and_counts_its_errors() -> None:
    result = training.train("digits-fcnn", epochs=15)
    test = data.load("digits")
    predicted = result.model(test.x).detach().numpy().argmax(1)
    assert result.error == pytest.approx(np.mean(predicted != test.target.numpy()))
    assert result.error < 0.06  # chance is 0.9
    assert result.card["test_error"] == result.error


def test_weights_and_card_are_written(tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.safetensors"
    result = training.train("digits-fcnn", epochs=2, batch_size=50, limit=120, seed=3, out=out)
    assert sorted(os.listdir(out.parent)) == ["mine.json", "mine.safetensors"]
    assert weights(networks.load("digits-fcnn", out)) == weights(result.model)
    card = networks.card("digits-fcnn", out)
    assert card == result.card
    assert (card["network"], card["data"], card["test_count"]) == ("digits-fcnn", "digits", 500)
    assert (card["seed"], card["epochs"], card["batch_size"], card["limit"]) == (3, 2, 50, 120)
    assert card["training"]["digest"] == data.load("digits", split="train", limit=120).digest
    assert card["training"]["count"] == 120
    assert card["torch"] == torch.__version__
    assert card["command"] == (
        "epsball train digits-fcnn --data digits --epochs 2 --batch-size 50 --seed 3 --limit 120 --out mine.safetensors"
    )


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "w.safetensors"
    training.train("digits-fcnn", **SMALL, out=out)
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        training.train("digits-fcnn", **SMALL, seed=1, out=out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_progress_is_told_every_step() -> None:
    calls: list[tuple[int, int, float]] = []
    training.train("digits-fcnn", epochs=3, batch_size=64, limit=100, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step, 6) for step in range(1, 7)]
    assert all(np.isfinite(loss) and loss > 0 for _, _, loss in calls)


def test_a_regression_network_is_one_more_row(tmp_path: Path) -> None:
    def autoencoder() -> nn.Module:
        hidden = [nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 64), nn.Unflatten(1, (1, 8, 8))]
        return nn.Sequential(*hidden)

    recipe = TrainingRecipe(20, 32, 3e-3, 0.0, loss=nn.functional.mse_loss, target_is_input=True)
    spec = NetworkSpec("tiny-ae", "64-24-64", "digits", (1, 8, 8), 64, "regression", "a test", autoencoder, recipe)
    result = training.train(spec, out=tmp_path / "ae.safetensors")
    test = data.load("digits").x
    expected = ((result.model(test) - test) ** 2).detach().numpy().mean()
    assert result.error == pytest.approx(expected, rel=1e-5)
    spread = ((test - data.load("digits", split="train").x.mean(0)) ** 2).numpy().mean()
    assert result.error < 0.5 * spread  # predicting the mean image gives `spread`
    assert result.card["loss"] == "mse_loss"
    error = ((result.model(test) - test) ** 2).detach().numpy().reshape(len(test), -1).mean(1)
    assert result.psnr == pytest.approx(np.mean(10.0 * np.log10(1.0 / error)), abs=1e-3)
    assert (result.card["task"], result.card["test_psnr"]) == ("regression", result.psnr)


class Identity(nn.Module):
    """Gives back its input exactly: the PSNR is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


def test_only_a_reconstruction_in_a_known_range_has_a_psnr(tmp_path: Path) -> None:
    classifier = training.train("digits-fcnn", **SMALL)
    assert classifier.psnr is None
    assert classifier.card["task"] == "classification"
    assert "test_psnr" not in classifier.card
    part = data.load("digits", split="train", limit=50)
    np.savez(tmp_path / "signed.npz", x=part.x.numpy() - 0.5)  # not images in [0, 1]: no range, no peak
    signed = training.train("digits-autoencoder", data=tmp_path / "signed.npz", epochs=1)
    assert signed.psnr is None
    assert "test_psnr" not in signed.card
    assert signed.error > 0.0
    identity = replace(networks.spec("digits-autoencoder"), build=Identity)
    assert (training.train(identity, **SMALL).error, training.train(identity, **SMALL).psnr) == (0.0, None)


def test_a_path_without_splits_keeps_a_fifth_for_the_test(tmp_path: Path) -> None:
    part = data.load("digits", split="train", limit=100)
    np.savez(tmp_path / "mine.npz", x=part.x.numpy(), y=part.target.numpy())
    first = training.train("digits-fcnn", data=tmp_path / "mine.npz", epochs=1)
    assert (first.card["training"]["count"], first.card["test"]["count"]) == (80, 20)
    assert first.card["training"]["digest"] != first.card["test"]["digest"]
    again = training.train("digits-fcnn", data=str(tmp_path / "mine.npz"), epochs=1)
    assert weights(first.model) == weights(again.model)


def test_nan_outputs_count_as_errors_and_the_mode_is_restored() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 3), torch.nan)

    model = Broken().train()
    assert training.test_error(model, torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)) == 1.0
    assert model.training


def test_diverging_training_stops_and_writes_nothing(tmp_path: Path) -> None:
    spec = networks.spec("digits-fcnn")
    wild = replace(spec, recipe=replace(spec.recipe, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match="diverged"):
        training.train(wild, epochs=5, out=tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1"),
        ({"limit": 0}, "limit must be|number of samples must be"),
        ({"seed": -1}, "seed must be"),
        ({"data": "digit"}, "unknown data set"),
        ({"data": "no/such.npz"}, "does not exist"),
        ({"device": "warp"}, "device 'warp' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, object], message: str, tmp_path: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError("training has begun")

    with pytest.raises(InputError, match=message):
        training.train("digits-fcnn", **options, out=tmp_path / "w.safetensors", progress=never)
    assert list(tmp_path.iterdir()) == []


def test_unknown_network() -> None:
    with pytest.raises(InputError, match=r"unknown network 'digits-fcn'; did you mean 'digits-fcnn'"):
        training.train("digits-fcn")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("w.pt", r"out must end in \.safetensors"),
        ("file/w.safetensors", "out: cannot write in"),
        ("folder.safetensors", "is a folder"),
    ],
)
def test_an_output_that_cannot_be_written(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match=message):
        training.train("digits-fcnn", out=tmp_path / out)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((10, 1, 9, 9), np.zeros(10, np.int64), r"takes samples of shape \(1, 8, 8\), those of .* are \(1, 9, 9\)"),
        ((10, 1, 8, 8), np.full(10, 10), "class indices from 0 to 9, .* class 10"),
        ((10, 1, 8, 8), np.zeros(10, np.float32), "has torch.float32 targets"),
        ((10, 1, 8, 8), None, "has no targets"),
        ((1, 1, 8, 8), np.zeros(1, np.int64), "holds one sample"),
    ],
)
def test_data_that_do_not_fit_the_network(
    tmp_path: Path, x: tuple[int, ...], y: np.ndarray | None, message: str
) -> None:
    content = {"x": np.zeros(x, np.float32)} | ({} if y is None else {"y": y})
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(InputError, match=message):
        training.train("digits-fcnn", data=tmp_path / "mine.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-fcnn", "digits-cnn", "digits-autoencoder"])
def test_the_command_on_the_card_makes_the_shipped_weights_again(name: str) -> None:
    card = networks.card(name)
    result = training.train(name)
    for part in ("training", "test", "optimiser", "loss", "epochs", "batch_size", "command"):
        assert result.card[part] == card[part]
    # Sums may be ordered otherwise on another processor, so only the error is compared.
    if networks.spec(name).task == "regression":
        assert result.error == pytest.approx(card["test_error"], rel=0.1)
    else:
        assert result.error == pytest.approx(card["test_error"], abs=0.012)
