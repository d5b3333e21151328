"""The training loop: schedules, augmentation, half precision, and runs that are killed and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from epsball import data, networks, training
from epsball.errors import InputError
from epsball.networks import TrainingRecipe
from epsball.networks.spec import crop_and_flip
from epsball.training import checkpoint as checkpoints
from epsball.training.fit import _rate

SMALL = {"epochs": 2, "limit": 200}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def convolutional() -> nn.Module:
    """Take everything that a step draws or remembers: batch statistics, dropout, augmentation, momentum."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


RECIPE = TrainingRecipe(
    2, 32, 0.05, 1e-4, optimiser="sgd", warm_up=0.3, augment=crop_and_flip, sizes=((0.5, 4),), half=True
)
SPEC = replace(networks.spec("digits-cnn"), name="everything", build=convolutional, recipe=RECIPE)


def test_crop_and_flip_moves_whole_images_by_at_most_four_pixels():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 32, 32)
    moved = crop_and_flip(x)
    assert moved.shape == x.shape
    padded = nn.functional.pad(x, (4, 4, 4, 4))
    seen = []
    for image, source in zip(moved, padded, strict=True):
        found = [
            (down, across, flipped)
            for down in range(9)
            for across in range(9)
            for flipped in (False, True)
            if torch.equal(image.flip(2) if flipped else image, source[:, down : down + 32, across : across + 32])
        ]
        assert len(found) == 1  # random images: one way only
        seen.append(found[0])
    assert {down for down, _, _ in seen} == {across for _, across, _ in seen} == set(range(9))
    assert 70 < sum(flipped for _, _, flipped in seen) < 130


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine():
    recipe = replace(RECIPE, warm_up=0.2, learning_rate=0.4)
    rates = [_rate(recipe, step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (step + 1) / 21 for step in range(20)])
    assert rates[20] == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.2)
    assert 0.0 < rates[99] < 1e-3
    flat = replace(recipe, warm_up=0.0)
    module = nn.Linear(1, 1)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100)
    for step in range(100):
        assert _rate(flat, step, 100) == pytest.approx(cosine.get_last_lr()[0])
        optimiser.step()
        cosine.step()


def test_images_are_scaled_down_for_their_share_of_the_steps():
    sides = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                sides.append(x.shape[-1])
            return self.inner(x)

    training.train(replace(SPEC, build=Watching), limit=320)
    assert sides == [4] * 10 + [8] * 10


def test_short_and_full_schedules(tmp_path):
    spec = replace(networks.spec("digits-fcnn"), short=replace(networks.spec("digits-fcnn").recipe, epochs=1))
    by_device = training.train(spec, limit=100)
    assert (by_device.card["schedule"], by_device.card["epochs"]) == ("short", 1)
    full = training.train(spec, limit=100, schedule="full", epochs=2, out=tmp_path / "w.safetensors")
    assert (full.card["schedule"], full.card["epochs"]) == ("full", 2)
    assert "--schedule full --epochs 2" in full.card["command"]
    with pytest.raises(InputError, match=r"'full' or 'short'.*'long'"):
        training.train(spec, limit=100, schedule="long")
    # A network with one recipe has no short one to take.
    assert training.train("digits-fcnn", **SMALL, schedule="short").card["schedule"] == "full"


def test_half_precision_is_what_the_error_was_measured_on(tmp_path):
    out = tmp_path / "half.safetensors"
    result = training.train(SPEC, out=out)
    assert all(torch.equal(p, p.half().float()) for p in result.model.parameters())
    assert result.card["precision"] == "float16"
    from safetensors.torch import load_file

    stored = load_file(out)
    assert {key: value.dtype for key, value in stored.items() if "running" in key} == {
        "1.running_mean": torch.float32,
        "1.running_var": torch.float32,
    }
    assert {value.dtype for key, value in stored.items() if "running" not in key and "tracked" not in key} == {
        torch.float16
    }
    again = convolutional()
    again.load_state_dict({key: value.float() for key, value in stored.items()})
    test = data.load("digits")
    assert float((again.eval()(test.x).argmax(1) != test.target).double().mean()) == result.error


def test_dropout_of_the_recipe_holds_while_training_alone():
    seen = []

    class Watching(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, self.p))
            return super().forward(x)

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), Watching(0.5), nn.Linear(64, 10))

    spec = replace(networks.spec("digits-fcnn"), build=build)
    spec = replace(spec, recipe=replace(spec.recipe, dropout=0.25))
    result = training.train(spec, **SMALL)
    assert {p for mode, p in seen if mode} == {0.25}
    assert next(m for m in result.model.modules() if isinstance(m, nn.Dropout)).p == 0.5


@pytest.mark.parametrize("moment", [1, 7, 20, 41])
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    undisturbed = training.train(SPEC)
    out = tmp_path / "w.safetensors"

    def kill(done: int, total: int, loss: float) -> None:
        if done == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SPEC, out=out, progress=kill)
    assert os.listdir(tmp_path) == ["w.checkpoint.pt"]
    steps = []
    resumed = training.train(SPEC, out=out, resume=True, progress=lambda done, *_: steps.append(done))
    assert steps[0] == moment + 1
    for key, value in undisturbed.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert sorted(os.listdir(tmp_path)) == ["w.json", "w.safetensors"]


def test_without_resume_a_run_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    out = tmp_path / "w.safetensors"

    def kill(done: int, total: int, loss: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SPEC, out=out, progress=kill)
    steps = []
    training.train(SPEC, out=out, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 1


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "INTERVAL", 0.0)
    out = tmp_path / "w.safetensors"

    def kill(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(SPEC, out=out, progress=kill)
    faster = replace(SPEC, recipe=replace(RECIPE, learning_rate=0.5))
    with pytest.raises(InputError, match=r"its recipe is .*'learning_rate': 0\.05.*'learning_rate': 0\.5"):
        training.train(faster, out=out, resume=True)
    with pytest.raises(InputError, match=r"w\.checkpoint\.pt is the checkpoint of another run: its seed is 0.*1"):
        training.train(SPEC, out=out, resume=True, seed=1)
    path = tmp_path / "w.checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"w\.checkpoint\.pt: not a sound checkpoint.*remove it"):
        training.train(SPEC, out=out, resume=True)
    with pytest.raises(InputError, match="resume needs out"):
        training.train(SPEC, resume=True)


@pytest.mark.slow
def test_a_process_killed_while_training_goes_on(tmp_path):
    out = tmp_path / "w.safetensors"
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from epsball import training\n"
        "from epsball.training import checkpoint\n"
        "checkpoint.INTERVAL = 0.0\n"
        f"training.train('digits-cnn', epochs=6, out={str(out)!r}, resume=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    checkpoint = out.with_suffix(".checkpoint.pt")
    while not checkpoint.is_file():
        time.sleep(0.01)
        assert process.poll() is None
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.is_file()
    assert not out.exists()
    resumed = training.train("digits-cnn", epochs=6, out=out, resume=True)
    whole = training.train("digits-cnn", epochs=6)
    assert resumed.card["weights_sha256"] == networks.card("digits-cnn", out)["weights_sha256"]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert Path(os.fspath(checkpoint)).exists() is False
