"""Runs that are stopped, killed, starved of memory or disk, or started twice: no row lost, none twice, none changed."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from epsball import data, networks
from epsball.cli import display
from epsball.cli.app import app
from epsball.engines.memory import out_of_memory
from epsball.errors import EpsballWarning, InputError
from epsball.experiments import plan as planning
from epsball.experiments import shard as sharding
from epsball.experiments.config import RunConfig
from epsball.experiments.engine import Local
from epsball.experiments.lock import Lock
from epsball.experiments.plan import prepare
from epsball.experiments.runner import run
from epsball.experiments.shard import do_shard
from epsball.experiments.storage import NAMES
from epsball.experiments.work import models_of, share
from epsball.report import page
from small_runs import COUNT, KINDS, SHARD, SHARDS, assert_same, config, contents

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, signals and limits of POSIX")


def plain_page(directory: Path) -> Path:
    (directory / "report.html").write_text("not drawn")
    return directory / "report.html"


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out, which takes longer than such small attacks."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(page, "write_page", plain_page)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a run in one piece gives, for each kind; its batches are those of the shards."""
    kept: dict[str, dict[str, Any]] = {}

    def get(kind: str = "attack") -> dict[str, Any]:
        if kind not in kept:
            out = tmp_path_factory.mktemp("whole") / "r"
            result = run(config(kind, shard_size=None), out)
            assert result.manifest["shards"] == {"count": 1, "size": 1000, "resumed": 0, "damaged": 0}
            kept[kind] = contents(out)
        return kept[kind]

    return get


def fork(action: Callable[[], Any]) -> int:
    """Start a child process that acts and leaves; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(shards: int, out: Path, kind: str = "attack", **changes: Any) -> None:
    """Leave what a run leaves that is killed when so many shards are finished."""

    def act() -> None:
        real = sharding.do

        def do(job: Any, rows: slice, work: Any) -> Any:
            if rows.start >= shards * SHARD:
                os._exit(9)
            return real(job, rows, work)

        sharding.do = do
        run(config(kind, **changes), out)

    assert ended(fork(act)) == 9
    assert len(list((out / ".unfinished" / "shards").glob("[0-9]*"))) == shards


# Shards


@pytest.mark.parametrize("kind", KINDS)
def test_shards_change_nothing_and_a_killed_run_goes_on_to_the_same_results(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(2, tmp_path / "r", kind)
    assert os.listdir(tmp_path / "r") == [".unfinished"]
    done = []
    real = sharding.do
    monkeypatch.setattr(sharding, "do", lambda job, rows, work: done.append(rows.start) or real(job, rows, work))
    result = run(config(kind), tmp_path / "r", resume=True)
    assert set(done) == {2 * SHARD}
    assert result.manifest["shards"] == {"count": SHARDS, "size": SHARD, "resumed": 2, "damaged": 0}
    assert_same(tmp_path / "r", undisturbed(kind))


def test_pictures_survive_too(tmp_path: Path) -> None:
    digits = data.load("digits", limit=COUNT)
    np.savez(tmp_path / "d.npz", x=((digits.x * 255).round() / 255).numpy(), y=digits.target.numpy())
    asked = {"data": str(tmp_path / "d.npz"), "lattice": 255, "save": "png", "bounds": (0.0, 1.0)}
    run(config(shard_size=None, **asked), tmp_path / "whole")
    killed_after(1, tmp_path / "r", **asked)
    run(config(**asked), tmp_path / "r", resume=True)
    expected = contents(tmp_path / "whole")
    assert sum(key[0] == "png" for key in expected) == 2 * COUNT
    assert_same(tmp_path / "r", expected)


def test_a_worker_elsewhere_could_do_a_shard(tmp_path: Path) -> None:
    plan = prepare(config())
    shared = share(plan, models_of(plan), SHARD, Local(plan, models_of(plan)))
    sent = pickle.loads(pickle.dumps(shared))
    for name, each in (("here", shared), ("there", sent)):
        (tmp_path / name).mkdir()
        do_shard(each, 2, tmp_path / name)
    for file in ("arrays.npz", "perturbed.npz"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()
    here, there = (pq.read_table(tmp_path / name / "rows.parquet").drop(["seconds"]) for name in ("here", "there"))
    assert here.equals(there)
    assert set(here["sample_id"].to_pylist()) == set(shared.work.sample_id[8:].tolist())


@pytest.mark.parametrize("damage", ["cut", "arrays cut", "empty", "byte", "missing", "facts", "facts empty"])
def test_a_damaged_shard_is_done_again(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], damage: str
) -> None:
    killed_after(2, tmp_path / "r")
    shard = tmp_path / "r" / ".unfinished" / "shards" / "000001"
    rows = shard / "rows.parquet"
    if damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-40])
    elif damage == "arrays cut":
        os.truncate(shard / "perturbed.npz", 100)
    elif damage == "empty":
        rows.write_bytes(b"")
    elif damage == "byte":  # one that Parquet itself would not find
        raw = bytearray(rows.read_bytes())
        raw[len(raw) // 3] ^= 1
        rows.write_bytes(bytes(raw))
    elif damage == "missing":
        (shard / "arrays.npz").unlink()
    else:
        (shard / "shard.json").write_text("{}" if damage == "facts" else "")
    result = run(config(), tmp_path / "r", resume=True)
    assert result.manifest["shards"] == {"count": SHARDS, "size": SHARD, "resumed": 1, "damaged": 1}
    assert_same(tmp_path / "r", undisturbed("attack"))


OPERATIONS = ("replace", "mkdir", "fsync", "unlink", "rmdir", "ftruncate")


def dying_at(step: int, out: Path, **options: Any) -> bool:
    """Run in a process that dies at the `step`-th change on disk; whether it got there."""

    def act() -> None:
        made = 0

        def counted(real: Callable[..., Any], *args: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            if made == step:
                os._exit(9)
            return real(*args, **named)

        for name in OPERATIONS:
            setattr(os, name, partial(counted, getattr(os, name)))
        run(config(), out, **options)

    code = ended(fork(act))
    assert code in (0, 9)
    return code == 9


def check_every_death(tmp_path: Path, whole: dict[str, Any], steps: range, old: Path | None) -> int:
    """Let a run die at each step and go on; the number of steps that there were."""
    before = None if old is None else contents(old)
    for step in steps:
        out = tmp_path / str(step)
        if old is not None:
            shutil.copytree(old, out)
        if not dying_at(step, out, overwrite=old is not None):
            assert_same(out, whole)
            return step
        if not (out / ".unfinished" / "shards" / "run.json").is_file() and (out / "manifest.json").is_file():
            # Nothing was begun, or all was moved to its place: one run or the other, complete.
            shutil.rmtree(out / ".unfinished", ignore_errors=True)
            same = before is not None and list(contents(out)) == list(before)
            assert_same(out, before if same and before is not None else whole)
            continue
        if before is not None and not list(out.glob(".unfinished/shards/[0-9]*")):
            # No shard was finished: what was there before is there, and a new run is needed.
            with pytest.raises(InputError, match="without results"):
                run(config(), out, resume=True)
            shutil.rmtree(out / ".unfinished", ignore_errors=True)
            assert_same(out, before)
            continue
        run(config(), out, resume=True)
        assert_same(out, whole)
        assert sorted(os.listdir(out)) == sorted({key[0] for key in whole} | {"report.html"})
    raise AssertionError("the run never ended")


def test_a_run_may_die_at_any_change_on_disk(tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]) -> None:
    assert check_every_death(tmp_path, undisturbed("attack"), range(1, 500, 7), None) > 40


@pytest.mark.slow
def test_a_run_that_replaces_another_may_die_at_any_change_on_disk(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    run(config("robustness", seed=4), tmp_path / "old")
    assert check_every_death(tmp_path, undisturbed("attack"), range(1, 500), tmp_path / "old") > 40


@pytest.fixture
def drawn() -> None:
    """Let the report be drawn all the same."""


def complete(out: Path) -> bool:
    return (out / "manifest.json").exists() and not (out / ".unfinished" / "shards" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_sigkill_at_random_moments(tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]) -> None:
    expected = undisturbed("attack")
    out, draw, kills, lasted = tmp_path / "r", random.Random(0), 0, 2.0
    while kills < 20:
        child = fork(lambda: run(config(), out, resume=True))
        time.sleep(draw.uniform(0.02, 1.0) * lasted)  # now and then one ends before, and another begins
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = ended(child)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if out.exists():
            assert set(os.listdir(out)) <= {".unfinished", *NAMES}
        if code == 0:
            lasted = max(0.3, 0.8 * lasted)
            assert complete(out)
        if complete(out):  # a run can be killed when all is done, too
            assert_same(out, expected)
            if kills < 20:
                shutil.rmtree(out)
    if not complete(out):
        run(config(), out, resume=True)
    assert_same(out, expected)
    assert "<html" in (out / "report.html").read_text()


# At the door


def test_unfinished_work_is_neither_taken_nor_lost_unasked(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    out = tmp_path / "r"
    killed_after(1, out)
    with pytest.raises(InputError, match=r"1 of 3 shards.*--resume.*--overwrite"):
        run(config(), out)
    with pytest.raises(InputError, match="leave one out"):
        run(config(), out, resume=True, overwrite=True)
    with pytest.raises(InputError, match=r"nowhere"):
        run(config(weights=str(tmp_path / "nowhere.safetensors")), out, overwrite=True)
    assert len(list((out / ".unfinished" / "shards").glob("[0-9]*"))) == 1
    result = run(config(), out, overwrite=True)
    assert result.manifest["shards"]["resumed"] == 0
    assert_same(out, undisturbed("attack"))
    with pytest.raises(InputError, match="without results"):
        run(config(), out, resume=True)


def test_resume_begins_where_there_is_nothing(tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]) -> None:
    assert run(config(), tmp_path / "r", resume=True).manifest["shards"]["resumed"] == 0
    assert_same(tmp_path / "r", undisturbed("attack"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"eps": (0.05, 0.1)}, "eps was [0.05, 0.1, 0.2] and is [0.05, 0.1]"),
        ({"attacks": ("fgsm",)}, "attacks was"),
        ({"dtype": "float32"}, "dtype was float64 and is float32"),
        ({"bounds": None}, "bounds was [0.0, 1.0] and is null"),
        ({"limit": 9}, "samples was 10 and is 9; data (sha256) was"),
        ({"model": "digits-cnn"}, "model was digits-fcnn and is digits-cnn"),
    ],
)
def test_another_run_is_not_put_together_with_this_one(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    killed_after(1, tmp_path / "r")
    with pytest.raises(InputError) as caught:
        run(config(**changes), tmp_path / "r", resume=True)
    assert said in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert not hasattr(caught.value, "__notes__")
    assert len(list((tmp_path / "r" / ".unfinished" / "shards").glob("[0-9]*"))) == 1


def test_content_and_versions_count_not_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    out, weights = tmp_path / "r", tmp_path / "w.safetensors"
    shutil.copy(networks.shipped("digits-fcnn"), weights)
    killed_after(1, out)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(InputError, match=r"version of torch was .* and is 1\.0"):
        run(config(), out, resume=True)
    monkeypatch.undo()
    monkeypatch.setattr(page, "write_page", plain_page)
    other = networks.load("digits-fcnn")
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    from safetensors.torch import save_file

    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"weights \(sha256\) was"):
        run(config(weights=str(tmp_path / "other.safetensors")), out, resume=True)
    # The same weights from another file, and cut otherwise.
    result = run(config(weights=str(weights), batch_size=2, shard_size=7), out, resume=True)
    assert result.manifest["shards"] == {"count": SHARDS, "size": SHARD, "resumed": 1, "damaged": 0}
    found, expected = contents(out), undisturbed("attack")
    for name in ("success", "status", "sample_id", "norm_linf"):
        np.testing.assert_array_equal(found["results.parquet", name], expected["results.parquet", name])


def test_a_second_run_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r"

    def act() -> None:
        page.write_page = lambda directory: time.sleep(60)
        run(config(), out)

    child = fork(act)
    try:
        wait_for(lambda: (out / ".unfinished" / "files" / "manifest.json").exists())
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match=rf"no other run is using.*process {child}"):
                run(config(), out, **options)
        assert (out / ".unfinished" / "files" / "manifest.json").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    assert run(config(), out, resume=True).manifest["shards"]["resumed"] == SHARDS


def test_a_lock_is_held_once_and_goes_with_its_process(tmp_path: Path) -> None:
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert other.holder() is None
    assert lock.acquire()
    assert not other.acquire()
    assert other.holder() == f"process {os.getpid()}"
    lock.release()
    assert not (tmp_path / "lock").exists()
    child = fork(lambda: (Lock(tmp_path / "lock").acquire(), time.sleep(60)))
    wait_for(lambda: other.holder() is not None)
    assert not lock.acquire()
    os.kill(child, signal.SIGKILL)
    ended(child)
    assert lock.acquire()
    lock.release()


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


# Signals and disks


def command(out: Path, *more: str) -> list[str]:
    words = ["attack", "--model", "digits-fcnn", "--attacks", "fgsm,random-linf", "--eps", "0.05,0.1,0.2"]
    words += ["--limit", str(COUNT), "--dtype", "float64", "--seed", "3", "--batch-size", str(SHARD)]
    return [*words, "--shard-size", str(SHARD), "--out", str(out), *more]


def in_terminal(log: Path, words: list[str], before: Callable[[], Any] = lambda: None) -> int:
    """Start the command in a child, with what it prints in a file."""

    def act() -> None:
        sys.stdout = sys.stderr = log.open("w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        try:
            app(words)
        finally:
            sys.stderr.flush()

    return fork(act)


@pytest.mark.parametrize(
    ("name", "code", "how"),
    [
        ("SIGTERM", 143, "stopped by SIGTERM"),
        ("SIGINT", 130, "interrupted"),
        ("SIGHUP", 129, "stopped by SIGHUP"),
    ],
)
def test_a_signal_leaves_the_finished_shards_and_says_how_to_go_on(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], name: str, code: int, how: str
) -> None:
    out, log = tmp_path / "r", tmp_path / "log"

    def slow_after_two_shards() -> None:
        if name == "SIGHUP":
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and would stay so
        real = sharding.do

        def do(job: Any, rows: slice, work: Any) -> Any:
            if rows.start >= 2 * SHARD:
                time.sleep(60)
            return real(job, rows, work)

        sharding.do = do

    child = in_terminal(log, command(out), slow_after_two_shards)
    wait_for(lambda: (out / ".unfinished" / "shards" / "000001").is_dir())
    time.sleep(0.05)
    os.kill(child, getattr(signal, name))
    os.kill(child, getattr(signal, name))  # as wrappers do
    assert ended(child) == code
    assert log.read_text() == (
        f"epsball: {how}; finished so far: 2 of 3 shards, which are kept; the same command with --resume goes on from "
        "there.\n"
    )
    assert sorted(os.listdir(out / ".unfinished")) == ["shards"]
    assert sorted(os.listdir(out / ".unfinished" / "shards")) == ["000000", "000001", "run.json"]
    assert ended(in_terminal(log, command(out, "--resume"))) == 0
    assert_same(out, undisturbed("attack"))


def test_a_signal_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    def slow() -> None:
        sharding.do = lambda *_, **__: time.sleep(60)

    child = in_terminal(tmp_path / "log", command(tmp_path / "a" / "r"), slow)
    wait_for(lambda: bool(list(tmp_path.glob("a/r/.unfinished/shards/tmp-*/perturbed.npz"))))
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 143
    said = "no shard was finished (--shard-size makes them smaller), and nothing was left behind."
    assert (tmp_path / "log").read_text() == f"epsball: stopped by SIGTERM; {said}\n"
    assert os.listdir(tmp_path) == ["log"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a file system here: {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, undisturbed: Callable[[str], dict[str, Any]]
) -> None:
    log, stages = tmp_path / "log", set()
    for size in (*range(64, 256, 16), 2048):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        code = ended(in_terminal(log, command(small_disk / "r", "--resume")))
        if code == 0:
            break
        text = log.read_text()
        assert code == 1, text
        assert text.count("\n") == 1
        assert "No space left on device" in text
        stages.add(text[text.find("finished so far") :])
    assert_same(small_disk / "r", undisturbed("attack"))
    assert any("--resume goes on" in text for text in stages)
    assert len(stages) > 1, "it never failed at another place"


def test_a_file_that_may_not_grow_is_one_error(tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]]) -> None:
    log = tmp_path / "log"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # noqa: E731
    assert ended(in_terminal(log, command(tmp_path / "r"), limit)) == 1
    assert log.read_text().count("\n") == 1
    assert "File too large" in log.read_text()
    assert ended(in_terminal(log, command(tmp_path / "r", "--resume"))) == 0
    assert_same(tmp_path / "r", undisturbed("attack"))


# Memory


class Hungry(nn.Module):
    """A network that has no memory for more than `most` samples; of what it took before it failed it keeps track."""

    def __init__(self, inner: nn.Module, most: int, error: str) -> None:
        super().__init__()
        self.inner, self.most, self.error = inner, most, error
        self.sizes: list[int] = []
        self.taken: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not any(taken() is not None for taken in self.taken), "what a failed attempt took is still there"
        self.sizes.append(len(x))
        if len(x) > self.most:
            middle = x * 2.0
            self.taken.append(weakref.ref(middle))
            if self.error == "device":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.error == "CPU":
                torch.empty(1 << 46, dtype=torch.uint8)
            raise MemoryError if self.error == "NumPy" else RuntimeError("a bug in the model")
        return self.inner(x)


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hungry]:
    def make(most: int, error: str) -> Hungry:
        model = Hungry(networks.load("digits-fcnn").double(), most, error)
        real = planning._load_model
        monkeypatch.setattr(planning, "_load_model", lambda *args: planning.replace(real(*args), module=model))
        return model

    return make


@pytest.mark.parametrize("error", ["device", "CPU", "NumPy"])
def test_out_of_memory_halves_the_batch_and_says_so_once(
    tmp_path: Path, undisturbed: Callable[[str], dict[str, Any]], hungry: Callable[..., Hungry], error: str
) -> None:
    model = hungry(3, error)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = run(config(batch_size=8, shard_size=None), tmp_path / "r")
    assert [w.category for w in said if "out of memory" in str(w.message)] == [EpsballWarning]
    assert result.manifest["batch_size"] == 8
    assert result.manifest["batch_size_reduced"] == {"the model itself": 2, "fgsm": 2, "random-linf": 2}
    assert max(model.sizes) == 8
    assert model.sizes.count(8) == 3, "of each kind of work one attempt"
    found, expected = contents(tmp_path / "r"), undisturbed("attack")
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-12, err_msg=str(name))
        elif name[0] != "manifest.json":
            np.testing.assert_array_equal(found[name], values, err_msg=str(name))


def test_a_batch_of_one_that_does_not_fit_is_an_error_that_says_what_to_do(
    tmp_path: Path, hungry: Callable[..., Hungry]
) -> None:
    hungry(0, "device")
    with pytest.warns(EpsballWarning), pytest.raises(MemoryError, match=r"even one sample.*use a device"):
        run(config(), tmp_path / "r")
    child = in_terminal(tmp_path / "log", command(tmp_path / "r"))
    assert ended(child) == 1
    warning, failure = (tmp_path / "log").read_text().splitlines()
    assert warning.startswith("epsball: warning: out of memory")
    assert failure.startswith("epsball: failed: the memory does not hold even one sample")
    assert not (tmp_path / "r").exists()


def test_another_error_of_the_model_is_no_lack_of_memory(tmp_path: Path, hungry: Callable[..., Hungry]) -> None:
    model = hungry(3, "a bug")
    with pytest.raises(RuntimeError, match="a bug in the model"):
        run(config(), tmp_path / "r")
    assert len(model.sizes) == 1
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Progress


def test_progress_begins_with_what_is_finished(tmp_path: Path) -> None:
    killed_after(2, tmp_path / "r")
    seen: list[tuple[Any, ...]] = []
    run(config(), tmp_path / "r", resume=True, progress=lambda *entry: seen.append(entry))
    assert seen[0] == ("finished before", 8, 10, pytest.approx(0.8))
    assert [entry[:3] for entry in seen[1:]] == [("fgsm", 10, 10), ("random-linf", 10, 10)]
    shares = [entry[3] for entry in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_the_time_left_is_that_of_what_this_run_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=150, color_system=None, get_time=lambda: clock[0])
    with display.ProgressBar(console=console, patience=0.0) as bar:
        bar("finished before", 800, 1000, 0.8)
        for step in range(1, 6):  # a hundredth of the work every 10 s: 15 hundredths are left
            clock[0] += 10.0
            bar("pgd", 800 + 10 * step, 1000, 0.8 + 0.01 * step)
        bar._bar.refresh()
    assert "0:02:30" in stream.getvalue().split("\r")[-2]
    assert math.isclose(bar._bar.tasks[0].completed, 0.85)


@pytest.mark.parametrize("name", [".unfinished", ".unfinished/files", ".unfinished/shards"])
def test_a_link_in_place_of_unfinished_work_is_refused_and_nothing_behind_it_is_touched(
    tmp_path: Path, name: str
) -> None:
    precious = tmp_path / "victim" / "files" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("here")
    link = tmp_path / "r" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "victim", target_is_directory=True)
    with pytest.raises(InputError, match="symbolic link"):
        run(RunConfig("evaluate", "digits-fcnn", ("fgsm",), eps=(0.1,), limit=10), tmp_path / "r", overwrite=True)
    assert precious.read_text() == "here"
