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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from epsball.errors import EpsballWarning, InputError
from epsball.experiments import ray_engine
from epsball.experiments import shard as sharding
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import run
from small_runs import COUNT, KINDS, SHARD, assert_same, config, contents

ray = pytest.importorskip("ray", reason="Ray is an optional extra")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """Start Ray once for the tests of this file; runs use what is there and leave it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def descendants(root: int) -> dict[int, str]:
    """The processes below one, with their names."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    found: dict[int, str] = {}
    fresh = {root}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh and child not in found}
        found |= {child: names[child] for child in fresh}
    return found


def workers() -> list[int]:
    """The processes of this Ray's actors."""
    return [number for number, name in descendants(os.getpid()).items() if name.startswith("ray::Worker")]


def same(directory: Path, expected: dict[Any, Any]) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest.pop("engine")["name"] == "ray"
    assert "--engine ray" in manifest["command"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert_same(directory, expected)


MORE: dict[str, dict[str, Any]] = {
    "ensemble": {"command": "evaluate", "attacks": ("ensemble",), "surrogates": ("digits-cnn",)},
    "eot": {"attacks": ("pgd",), "eot": 3},
    "lattice": {"command": "attack", "attacks": ("fgsm",), "lattice": 16},
}


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_rows_are_those_of_the_local_engine(kind: str, tmp_path: Path) -> None:
    def chosen(**more: Any) -> RunConfig:
        return config(kind, **more) if kind in KINDS else config(**MORE[kind], **more)

    run(chosen(), tmp_path / "local")
    result = run(chosen(engine="ray"), tmp_path / "ray")
    said = {"name": "ray", "version": ray.__version__, "workers": 2, "threads": 1, "device": "cpu"}
    assert result.manifest["engine"] == said
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


class OfBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(10, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("kind", ["file.py", "file.pt2"])
def test_models_of_ones_own_travel(kind: str, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "mine.py").write_text(MINE)
    if kind == "file.py":
        own: dict[str, Any] = {"model": f"{tmp_path / 'mine.py'}:make", "output": "scores"}
    else:
        torch.manual_seed(0)
        # In float32, which the run's float64 is not, and with what it knows in buffers.
        module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, affine=False), OfBuffers()).eval()
        free = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(module, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=free)
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


KILLS = int(os.environ.get("EPSBALL_KILLS", "3"))


@pytest.mark.usefixtures("two_workers")
def test_killed_workers_cost_no_row(tmp_path: Path) -> None:
    slow = {"attacks": ("alg1-10",), "limit": 40, "shard_size": 2, "batch_size": 2}
    run(config(**slow), tmp_path / "local")
    expected = contents(tmp_path / "local")
    kills, draw, over = 0, random.Random(1), threading.Event()

    def killer() -> None:
        nonlocal kills
        while not over.wait(draw.uniform(4.0, 8.0)):
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
            if kills >= KILLS:
                break
    finally:
        over.set()
        thread.join()
    assert kills >= KILLS


HANGS = """
import os, time, torch

class Hangs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.home = torch.nn.Linear(64, 10), os.getpid()
    def forward(self, x):
        if torch.is_grad_enabled() and os.getpid() != self.home:
            try:
                os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                time.sleep(300)  # the first worker to come here
                open({marker!r} + "-woke", "w").close()
        return self.inner(x.flatten(1))
"""


@pytest.mark.usefixtures("two_workers")
def test_what_a_worker_does_not_finish_another_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text(HANGS.format(marker=str(tmp_path / "marker")))
    given = {"model": f"{tmp_path / 'm.py'}:Hangs", "data": "digits", "limit": 22}  # six shards
    run(config(**given), tmp_path / "local")
    monkeypatch.setattr(ray_engine, "_SLOW", 2.0)
    run(config(**given, engine="ray"), tmp_path / "ray")
    assert (tmp_path / "marker").exists()
    assert not (tmp_path / "marker-woke").exists(), "the run waited for the worker that slept"
    same(tmp_path / "ray", contents(tmp_path / "local"))


DEADLY = """
import os, torch

class Deadly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.home = torch.nn.Linear(64, 10), os.getpid()
    def forward(self, x):
        if torch.is_grad_enabled() and os.getpid() != self.home and bool((x.flatten(1).sum(1) > 1e3).any()):
            os._exit(9)
        return self.inner(x.flatten(1))
"""


@pytest.mark.usefixtures("two_workers")
def test_samples_that_kill_every_worker_are_an_error_and_the_rest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    x = np.random.default_rng(0).random((12, 1, 8, 8))
    x[9] = 1e4
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(12) % 10)
    deadly = config(
        model=f"{tmp_path / 'deadly.py'}:Deadly", data=str(tmp_path / "d.npz"), engine="ray", bounds=None, workers=1
    )
    with pytest.raises(InputError, match=r"died 6 times over the same samples.*--batch-size"):
        run(deadly, tmp_path / "r")
    kept = sorted(path.name for path in (tmp_path / "r" / ".unfinished" / "shards").glob("[0-9]*"))
    assert kept == ["000000", "000001"]


@pytest.mark.usefixtures("two_workers")
def test_what_one_engine_began_the_other_goes_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(), tmp_path / "local")
    real = sharding.do

    def stopped(job: Any, rows: slice, work: Any) -> Any:
        if rows.start >= 2 * SHARD:
            raise KeyboardInterrupt
        return real(job, rows, work)

    with monkeypatch.context() as patched:
        patched.setattr(sharding, "do", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config(), tmp_path / "r")
    result = run(config(engine="ray"), tmp_path / "r", resume=True)
    assert result.manifest["shards"]["resumed"] == 2
    same(tmp_path / "r", contents(tmp_path / "local"))


REFUSES = """
import torch
from epsball.errors import InputError

class Refuses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(64, 10)
    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > 2 and bool((x.flatten(1).sum(1) > 1e3).any()):
            raise {error}("no sample as bright as this")
        return self.inner(x.flatten(1))
"""


@pytest.mark.usefixtures("two_workers")
@pytest.mark.parametrize("error", ["InputError", "torch.OutOfMemoryError"])
def test_errors_and_a_lack_of_memory_come_back(error: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(REFUSES.format(error=error))
    x = np.random.default_rng(0).random((12, 1, 8, 8))
    x[9] = 1e4
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(12) % 10)
    given = config(
        model=f"{tmp_path / 'm.py'}:Refuses", data=str(tmp_path / "d.npz"), engine="ray", bounds=None, limit=12
    )
    if error == "InputError":
        with pytest.raises(InputError, match="no sample as bright as this"):
            run(given, tmp_path / "r")
        return
    with pytest.warns(EpsballWarning, match="out of memory in fgsm with 4 samples at a time"):
        result = run(given, tmp_path / "r")
    assert result.manifest["batch_size_reduced"]["fgsm"] == 2
    assert result.table.num_rows == 12 * 2 * 3


@pytest.mark.usefixtures("two_workers")
def test_a_task_takes_its_own_samples_along_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Actor:
        """Stands for an actor's handle, and keeps the size of what would be sent."""

        def __init__(self, actor: Any) -> None:
            self.actor = actor

        def __getattr__(self, name: str) -> Any:
            def remote(*given: Any) -> Any:
                sizes.append(len(ray.cloudpickle.dumps([value for value in given if not isinstance(value, list)])))
                return getattr(self.actor, name).remote(*given)

            return SimpleNamespace(remote=remote)

    real = ray_engine.RayEngine._first
    monkeypatch.setattr(ray_engine.RayEngine, "_first", lambda self, started: [Actor(a) for a in real(self, started)])
    monkeypatch.setattr(ray_engine.RayEngine, "__exit__", lambda *given: None)
    run(config(engine="ray", limit=200), tmp_path / "r")
    assert len(sizes) == 100
    assert max(sizes) < 4 * 64 * 8 + 20_000
    assert 200 * 64 * 8 > 50_000


DRIVER_KILLS = int(os.environ.get("EPSBALL_KILLS", "3"))


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
    left: dict[int, str] = {}
    for _ in range(DRIVER_KILLS):
        child = subprocess.Popen(
            command(out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + 120
        while child.poll() is None and not any("raylet" in name for name in descendants(child.pid).values()):
            assert time.monotonic() < until
            time.sleep(0.05)
        left |= descendants(child.pid)
        time.sleep(draw.uniform(0.0, 0.5) * lasts)
        left |= descendants(child.pid)
        child.kill()
        child.wait()
        if (out / "manifest.json").exists():
            break
    if not (out / "manifest.json").exists():
        subprocess.run(command(out, "--resume"), check=True, capture_output=True)
    same(out, expected)
    assert any("raylet" in name for name in left.values())
    until = time.monotonic() + 60
    while still := [number for number in left if Path(f"/proc/{number}/cmdline").exists()]:
        assert time.monotonic() < until, [left[number] for number in still]
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
        ({"engine": "ray", "address": "ray://head:10001"}, "expected address as auto or HOST:PORT"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(**changes)


@pytest.mark.usefixtures("two_workers")
def test_more_workers_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected at most 2 workers of 1 CPU each.*got 3"):
        run(config(engine="ray", workers=3), tmp_path / "r")
    with pytest.raises(InputError, match=r"expected at most 0 workers of 1 CPU and a GPU each"):
        run(config(engine="ray", device="cuda"), tmp_path / "r")
    with pytest.raises(InputError, match=r"'cpu' or 'cuda' for workers of Ray.*'cuda:1'"):
        run(config(engine="ray", device="cuda:1"), tmp_path / "r")
    with pytest.raises(InputError, match="no address where Ray is connected already"):
        run(config(engine="ray", address="auto"), tmp_path / "r")
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
