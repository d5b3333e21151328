"""The engine ray: the rows of the local engine, bit for bit, whoever dies in between."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from epsball.errors import EpsballWarning, InputError
from epsball.experiments.runner import run
from small_runs import COUNT, KINDS, SHARD, assert_same, config, contents

ray = pytest.importorskip("ray", reason="Ray is an optional extra")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Start Ray once for the tests of this file; runs use what is there and leave it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def workers() -> list[int]:
    """The processes of this Ray's actors."""
    found = subprocess.run(["pgrep", "-f", "ray::_Actor"], capture_output=True, text=True, check=False).stdout.split()
    mine = []
    for number in map(int, found):
        with contextlib.suppress(OSError):
            if str(ray._private.worker._global_node.session_name) in Path(f"/proc/{number}/environ").read_text():
                mine.append(number)
    return mine or [int(number) for number in found]


def same(directory: Path, expected: dict[Any, Any]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest.pop("engine")["name"] == "ray"
    assert "--engine ray" in manifest["command"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert_same(directory, expected)


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_local_engine(kind: str, tmp_path: Path) -> None:
    run(config(kind), tmp_path / "local")
    result = run(config(kind, engine="ray"), tmp_path / "ray")
    assert result.manifest["engine"] == {"name": "ray", "version": ray.__version__, "workers": 2, "threads": 1}
    assert result.manifest["shards"]["count"] == 3
    same(tmp_path / "ray", contents(tmp_path / "local"))
    assert ray.is_initialized()


MINE = """
import torch
from neighbour import Layer

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()
    def forward(self, x):
        return {"scores": self.layer(x.flatten(1)) * 2}

def make():
    return Mine()
"""
NEIGHBOUR = """
import torch

class Layer(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
"""


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("kind", ["file.py", "file.pt2"])
def test_models_of_ones_own_travel(kind: str, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "mine.py").write_text(MINE)
    if kind == "file.py":
        own: dict[str, Any] = {"model": f"{tmp_path / 'mine.py'}:make", "output": "scores"}
    else:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double().eval()
        free = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module, (torch.zeros(2, 1, 8, 8, dtype=torch.float64),), dynamic_shapes=free)
        torch.export.save(program, tmp_path / "m.pt2")
        own = {"model": str(tmp_path / "m.pt2")}
    own |= {"data": "digits", "mean": (0.5,), "std": (0.25,)}
    run(config(**own), tmp_path / "local")
    run(config(**own, engine="ray", workers=1), tmp_path / "ray")
    same(tmp_path / "ray", contents(tmp_path / "local"))


@pytest.mark.usefixtures("two_workers")
def test_what_workers_warn_of_is_heard_here_once(tmp_path: Path) -> None:
    with pytest.warns(EpsballWarning, match="prepare='fold' is not used") as heard:
        run(config(engine="ray", prepare="fold"), tmp_path / "r")
    assert sum("prepare" in str(warning.message) for warning in heard) == 1


@pytest.mark.usefixtures("two_workers")
def test_killed_workers_cost_no_row(tmp_path: Path) -> None:
    slow = {"attacks": ("alg1-10",), "limit": 40, "shard_size": 2, "batch_size": 2}
    run(config(**slow), tmp_path / "local")
    expected = contents(tmp_path / "local")
    kills, draw, over = 0, random.Random(1), threading.Event()

    def killer() -> None:
        nonlocal kills
        while not over.wait(draw.uniform(0.1, 1.0)):
            for number in draw.sample(found := workers(), min(1, len(found))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
                    kills += 1

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for attempt in range(20):
            run(config(**slow, engine="ray"), tmp_path / f"r{attempt}")
            same(tmp_path / f"r{attempt}", expected)
            if kills >= 20:
                break
    finally:
        over.set()
        thread.join()
    assert kills >= 5  # a run has to be long enough to be hit


DEADLY = """
import os, torch

class Deadly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.home = torch.nn.Linear(64, 10), os.getpid()
    def forward(self, x):
        if os.getpid() != self.home and bool((x.flatten(1).sum(1) > 1e3).any()):
            os._exit(9)
        return self.inner(x.flatten(1))
"""


@pytest.mark.usefixtures("two_workers")
def test_samples_that_kill_every_worker_are_an_error_and_the_rest_is_kept(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "deadly.py").write_text(DEADLY)
    x = np.random.default_rng(0).random((12, 1, 8, 8))
    x[9] = 1e4
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(12) % 10)
    deadly = config(
        model=f"{tmp_path / 'deadly.py'}:Deadly", data=str(tmp_path / "d.npz"), engine="ray", bounds=None, workers=1
    )
    with pytest.raises(InputError, match=r"died 6 times over the same samples.*--batch-size"):
        run(deadly, tmp_path / "r")


def command(out: Path, *more: str) -> list[str]:
    words = ["attack", "--model", "digits-fcnn", "--attacks", "fgsm,random-linf", "--eps", "0.05,0.1,0.2"]
    words += ["--limit", str(COUNT), "--dtype", "float64", "--seed", "3", "--batch-size", str(SHARD)]
    words += ["--shard-size", str(SHARD), "--out", str(out), "--engine", "ray", "--workers", "2", *more]
    return [sys.executable, "-m", "epsball", *words]


def test_a_killed_driver_takes_its_ray_along_and_the_run_goes_on(tmp_path: Path) -> None:
    """The command line starts a Ray of its own, which may not outlive it."""
    run(config(), tmp_path / "local")
    expected, out, draw = contents(tmp_path / "local"), tmp_path / "r", random.Random(0)
    started = time.monotonic()
    subprocess.run(command(tmp_path / "first"), check=True, capture_output=True)
    lasts = time.monotonic() - started
    same(tmp_path / "first", expected)
    for _ in range(4):
        child = subprocess.Popen(
            command(out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(draw.uniform(0.5, 1.0) * lasts)
        child.kill()
        child.wait()
        if (out / "manifest.json").exists():
            break
    subprocess.run(command(out, "--resume"), check=not (out / "manifest.json").exists(), capture_output=True)
    same(out, expected)
    until = time.monotonic() + 60
    while subprocess.run(["pgrep", "-f", str(out)], capture_output=True, check=False).stdout:
        assert time.monotonic() < until, "something of the killed runs is left"
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_cluster_that_runs_already_is_used_and_left_running(tmp_path: Path) -> None:
    run(config(), tmp_path / "local")
    address = f"127.0.0.1:{free_port()}"
    words = ["start", "--head", "--port", address.partition(":")[2], "--num-cpus", "2", "--block"]
    words += ["--include-dashboard", "false", "--disable-usage-stats"]
    with (tmp_path / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words], stdout=log, stderr=log, start_new_session=True
        )
    try:
        until = time.monotonic() + 120
        for out in ("first", "second"):  # the second finds it as the first did
            while True:
                done = subprocess.run(
                    command(tmp_path / out, "--address", address), capture_output=True, text=True, check=False
                )
                if done.returncode == 0:
                    break
                assert time.monotonic() < until, done.stderr  # it takes a while to start
                time.sleep(1.0)
            same(tmp_path / out, contents(tmp_path / "local"))
        assert head.poll() is None
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "spark"}, "expected engine as 'local' or 'ray'"),
        ({"workers": 2}, "expected --engine ray for"),
        ({"cpus": 2}, "expected --engine ray for"),
        ({"engine": "ray", "workers": 0}, "workers"),
        ({"engine": "ray", "cpus": 0}, "cpus"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(**changes)


@pytest.mark.usefixtures("two_workers")
def test_more_workers_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected at most 2 workers of one 1 CPU each.*got 3"):
        run(config(engine="ray", workers=3), tmp_path / "r")
    with pytest.raises(InputError, match=r"expected at most 0 workers of one GPU each"):
        run(config(engine="ray", device="cuda"), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("two_workers")
def test_a_model_that_cannot_be_sent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from epsball.experiments import plan as planning

    real = planning.networks.load

    def load(name: str, weights: str | None = None) -> nn.Module:
        module = real(name, weights)
        module.lock = threading.Lock()
        return module

    monkeypatch.setattr(planning.networks, "load", load)
    with pytest.raises(InputError, match=r"cannot be pickled.*use the local engine"):
        run(config(engine="ray"), tmp_path / "r")


def test_a_cluster_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "r", "--address", "127.0.0.1:1"), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "expected a Ray that can be reached, got 127.0.0.1:1" in done.stderr.replace("\n", " ")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'epsball\[ray\]'"):
        run(config(engine="ray"), tmp_path / "r")
