"""Run a configuration: check everything, do the shards that are missing, then write the whole folder or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from epsball.data.optional import require
from epsball.experiments.config import RunConfig
from epsball.experiments.engine import engine_of
from epsball.experiments.fingerprint import fingerprint
from epsball.experiments.finish import finish
from epsball.experiments.plan import prepare
from epsball.experiments.shard import Shared
from epsball.experiments.storage import RunFolder
from epsball.experiments.work import models_of, share
from epsball.metrics import Robustness

__all__ = ["Progress", "RunResult", "run"]


class Progress(Protocol):
    """Called as work is done."""

    def __call__(self, label: str, done: int, total: int, share: float | None = None) -> None:
        """Tell what is being done, the samples done of those in all, and the share of the whole work, if it differs."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the manifest, and what `robustness` measured."""

    directory: Path
    manifest: dict[str, Any]
    robustness: Robustness | None

    @property
    def table(self) -> Any:
        """The rows as a pyarrow table, read from results.parquet."""
        parquet = require("pyarrow.parquet", "pyarrow", "reading results")
        with parquet.ParquetFile(self.directory / "results.parquet") as file:
            return file.read()


def run(
    config: RunConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Run the configuration and write results.parquet, manifest.json, examples.npz, figures and report.html to `out`.

    "attack" also writes perturbed.npz, and PNG files where asked for, "robustness" distances.parquet. The folder is
    filled when all is there, or stays as it was, but for the finished shards of a run that was stopped, in .unfinished;
    `resume` goes on with them, and gives the rows of an undisturbed run. Raises InputError for whatever does not fit,
    before any attack: a folder with other results or with unfinished work unless `overwrite`, one that another run is
    using, unfinished work of another configuration, data, weights or version. A demo replaces an earlier one.
    """
    for module, package in (("pyarrow.parquet", "pyarrow"), ("matplotlib", "matplotlib"), ("jinja2", "jinja2")):
        require(module, package, "a run with its report")
    replaces = "demo" if config.command == "demo" else None
    with RunFolder(out, overwrite=overwrite, resume=resume, replaces=replaces) as folder:
        plan = prepare(config)
        started = time.perf_counter()
        models = models_of(plan)
        if progress is not None and config.engine != "local":
            progress("starting workers", 0, len(plan.x))
        with engine_of(plan, models) as engine:
            size = folder.begin(fingerprint(plan, engine.device), config.command, config.samples_a_shard, len(plan.x))
            shared = share(plan, models, size, engine)
            done, damaged = folder.shards.finished()
            resumed, earlier = len(done), sum(facts["seconds"] for facts in done.values())
            tally = _Tally(shared, progress, [shared.rows(number) for number in done])
            missing = [number for number in range(shared.count) if number not in done]
            for number, make in engine.shards(shared, missing, tally):
                done[number] = folder.shards.add(number, make)
            said = engine.said()

        if reduced := _smallest([{"reduced": said.pop("reduced")}, *done.values()]):
            said["batch_size_reduced"] = reduced
        said["shards"] = {"count": shared.count, "size": size, "resumed": resumed, "damaged": damaged}
        paths = [folder.shards.path(number) for number in range(shared.count)]
        seconds = earlier + time.perf_counter() - started
        content, measured = finish(plan, shared, paths, folder.path, said, seconds)
        folder.commit()
    return RunResult(folder.out, content, measured)


def _smallest(facts: list[Mapping[str, Any]]) -> dict[str, int]:
    """Return the batch size of each kind of work that ran out of memory."""
    found: dict[str, int] = {}
    for fact in facts:
        for name, size in fact["reduced"].items():
            found[name] = min(size, found.get(name, size))
    return found


class _Tally:
    """Tells the progress, with the share of all work that is done, from what is known of the cost of each job."""

    def __init__(self, shared: Shared, progress: Progress | None, done: list[slice]) -> None:
        self._progress, self._count = progress, len(shared.work.x)
        self._total = shared.cost() * self._count
        samples = sum(rows.stop - rows.start for rows in done)
        self._spent = shared.cost() * samples
        self._done = dict.fromkeys((name for name, _ in shared.costs()), samples)
        if progress is not None and samples:
            progress("finished before", samples, self._count, self._spent / self._total)

    def __call__(self, name: str, rows: slice, cost: float) -> None:
        self._spent += (rows.stop - rows.start) * cost
        self._done[name] += rows.stop - rows.start
        if self._progress is not None:
            self._progress(name, min(self._done[name], self._count), self._count, self._spent / self._total)
