"""A pool of Ray actors that hold the models: the shards of a run on one machine's processes, or on a cluster."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from epsball.data.optional import require
from epsball.errors import EpsballWarning, InputError
from epsball.experiments.engine import Make, Models
from epsball.experiments.plan import Plan
from epsball.experiments.ray_cluster import connect, last_line, room_of
from epsball.experiments.ray_worker import Worker, dumps, switches, versions
from epsball.experiments.shard import Shared, Tick

__all__ = ["RayEngine"]

_RETRIES = 5  # of a shard whose worker dies: more often, and it is the shard that kills it
_AHEAD = 2  # shards that each actor is given: one at work, one waiting
_PATIENCE = 120.0  # seconds for workers to start
_SLOW = 60.0  # seconds after which a shard is given to an idle worker too, if it takes five times as long as others


@dataclass
class _Running:
    """A task on its way: which one, where, and since when."""

    number: int
    actor: int
    since: float


class RayEngine:
    """Ray actors, each with the models, on `config.cpus` threads, or with a GPU of its own.

    A shard travels to an actor with its samples, its files come back, and this process writes them: workers need no
    file system in common. The actor that dies is started again by Ray, and what it had in hand is done again; what an
    actor does not finish, since its machine is gone, another one does. Samples are cut into the batches of the local
    engine, so that the rows are the same.
    """

    def __init__(self, plan: Plan, models: Models) -> None:
        self.plan, self.models = plan, models
        self.device = plan.device.type
        self._reduced: dict[str, int] = {}
        self._heard: set[str] = set()
        self._actors: list[Any] = []

    def __enter__(self) -> Self:
        self._ray = ray = require("ray", "ray", "the engine ray", extra="ray")
        self._own = not ray.is_initialized()
        if not self._own and self.plan.config.address is not None:
            raise InputError("expected no address where Ray is connected already, got one; leave it out.")
        try:
            if self._own:
                connect(ray, self.plan.config.address)
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own:
            self._ray.shutdown()
            return
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self) -> None:
        ray, config = self._ray, self.plan.config
        gpus = 1 if self.plan.device.type == "cuda" else 0
        room = room_of(ray, config.cpus, gpus)
        shards = -(-len(self.plan.x) // config.samples_a_shard)
        count = config.workers or min(room, shards)
        if not 1 <= count <= room:
            kind = f"{config.cpus} CPU{'s' * (config.cpus > 1)}{' and a GPU' * gpus}"
            raise InputError(
                f"expected at most {room} workers of {kind} each, which is what this Ray has room for, got "
                f"{config.workers or 'none'}; give fewer --workers or --cpus, or connect to a larger cluster with "
                "--address."
            )
        actor = ray.remote(Worker).options(
            num_cpus=config.cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
        )
        arguments = (self.plan.device, config.cpus, config.batch_size, switches())
        started = [actor.remote(*arguments) for _ in range(count)]
        self._actors = self._first(started)
        # In a list: a worker fetches it when it needs it, not with every call.
        self._models = [ray.put(dumps(dict(self.models), self.plan.device))]

    def _first(self, started: list[Any]) -> list[Any]:
        """Return the actors that start in time, all with the versions of this process and one kind of device."""
        asked = {actor.versions.remote(): actor for actor in started}
        ready, late = self._ray.wait(list(asked), num_returns=len(asked), timeout=_PATIENCE)
        for reference in late:
            self._ray.kill(asked[reference])
        if not ready or (late and self.plan.config.workers):
            raise InputError(
                f"expected {len(started)} workers to start within {_PATIENCE:g} s, got {len(ready)}: the cluster is "
                "busy, or its machines are slow; give fewer --workers, or try again."
            )
        here = versions()
        kinds = set()
        for reference in ready:
            try:
                there, kind = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                raise InputError(
                    f"expected workers that can start, got: {last_line(error)}; install epsball and what the model "
                    "needs, in the same versions, on all machines."
                ) from error
            kinds.add(kind)
            if there != here:
                raise InputError(
                    f"expected workers with {_words(here)}, as here, got {_words(there)}; install the same versions on "
                    "all machines."
                )
        if len(kinds) > 1:
            raise InputError(
                f"expected workers of one kind, got {', '.join(sorted(kinds))}, whose results differ in their last "
                "digits; take machines of one kind."
            )
        (self.device,) = kinds
        return [asked[reference] for reference in ready]

    def unperturbed(self, name: str, function: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return function(the model of this name, x) of all samples, on the CPU."""
        x, batch = self.plan.x, self.plan.config.batch_size
        size = -(-self.plan.config.samples_a_shard // batch) * batch  # whole batches, as in the local engine
        tasks = {
            start: partial(_unperturbed, self._models, name, function, x, slice(start, start + size))
            for start in range(0, len(x), size)
        }
        found = dict(self._done(tasks))
        return torch.cat([found[start] for start in sorted(found)])

    def shards(self, shared: Shared, numbers: Sequence[int], tick: Tick) -> Iterator[tuple[int, Make]]:
        """Yield the numbers of these shards as they are finished, each with what writes its files into a folder."""
        jobs = [self._ray.put(dumps(shared.jobs, self.plan.device))]
        tasks = {number: partial(_shard, self._models, jobs, shared, number) for number in numbers}
        last = time.perf_counter()
        for number, (facts, files) in self._done(tasks):
            # Those of this process: workers' seconds do not add up to the time that a run takes.
            now = time.perf_counter()
            facts["seconds"], last = now - last, now
            yield number, partial(_write, facts, files)
            rows = shared.rows(number)
            for name, cost in shared.costs():
                tick(name, rows, cost)
            for job, size in facts["reduced"].items():
                self._reduced[job] = min(size, self._reduced.get(job, size))

    def said(self) -> dict[str, Any]:
        """Return how many workers there were, on what."""
        found: dict[str, Any] = {"name": "ray", "version": self._ray.__version__, "workers": len(self._actors)}
        found |= {"device": self.device, "threads": self.plan.config.cpus}
        return {"reduced": self._reduced, "engine": found}

    def _done(self, tasks: Mapping[int, Callable[[Any], Any]]) -> Iterator[tuple[int, Any]]:
        """Yield what comes of tasks, each a function of the actor that is to do it, a few at a time."""
        waiting, done, longest = deque(tasks), set[int](), 0.0
        running: dict[Any, _Running] = {}

        def give(number: int, actor: int) -> None:
            running[tasks[number](self._actors[actor])] = _Running(number, actor, time.monotonic())

        for actor in list(range(len(self._actors))) * _AHEAD:
            if waiting:
                give(waiting.popleft(), actor)
        while len(done) < len(tasks):
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=1.0)  # signals are heard in between
            for reference in ready:
                task = running.pop(reference)
                if waiting:
                    give(waiting.popleft(), task.actor)
                if task.number in done:
                    continue  # another worker was faster
                result, heard = self._get(reference)
                self._warn(heard)
                done.add(task.number)
                longest = max(longest, time.monotonic() - task.since)
                yield task.number, result
            if not waiting:
                self._help(running, done, max(_SLOW, 5.0 * longest), give)

    def _help(
        self, running: Mapping[Any, _Running], done: set[int], patience: float, give: Callable[[int, int], None]
    ) -> None:
        """Give idle workers what has taken long elsewhere: its worker may wait for a machine that is gone."""
        idle = set(range(len(self._actors))) - {task.actor for task in running.values()}
        since: dict[int, float] = {}
        for task in running.values():  # of a task that two have already, the later one counts
            since[task.number] = max(task.since, since.get(task.number, 0.0))
        now = time.monotonic()
        late = sorted(n for n, begun in since.items() if n not in done and now - begun > patience)
        for number, actor in zip(late, sorted(idle), strict=False):
            give(number, actor)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ImportError):
                raise InputError(
                    f"expected on all machines what the model needs, got: {cause}; install it there."
                ) from error
            if isinstance(cause, (InputError, MemoryError)):
                raise cause from None
            raise
        except (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            raise InputError(
                f"expected workers that stay alive, got one that died {_RETRIES + 1} times over the same samples "
                f"({last_line(error)}); give each more memory (fewer --workers), or a smaller --batch-size or "
                "--shard-size."
            ) from error

    def _warn(self, heard: list[str]) -> None:
        for text in heard:
            if text not in self._heard:
                self._heard.add(text)
                warnings.warn(text, EpsballWarning, stacklevel=2)


def _unperturbed(
    models: Any, name: str, function: Callable[[Any, Tensor], Tensor], x: Tensor, rows: slice, actor: Any
) -> Any:
    # Of a view the whole tensor would be sent.
    return actor.unperturbed.remote(models, name, function, x[rows].clone())


def _shard(models: Any, jobs: Any, shared: Shared, number: int, actor: Any) -> Any:
    return actor.shard.remote(models, jobs, shared.part(number))


def _write(facts: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> Mapping[str, Any]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return facts


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
