"""A pool of Ray actors that hold the models: the shards of a run on one machine's processes, or on a cluster."""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

import epsball
from epsball.data.optional import require
from epsball.engines.memory import Batches
from epsball.errors import EpsballWarning, InputError
from epsball.experiments.engine import Make, Models, unperturbed
from epsball.experiments.plan import Plan
from epsball.experiments.shard import Shared, Tick, do_shard
from epsball.models.exported import ExportedModel, load_again
from epsball.target_model import TargetModel

__all__ = ["RayEngine"]

_RETRIES = 5  # of a shard whose worker dies: more often, and it is the shard that kills it
_AHEAD = 2  # shards that each actor is given: one at work, one waiting


class RayEngine:
    """Ray actors, each with the models, on `config.cpus` threads or a GPU of its own.

    A shard travels to an actor with its samples, its files come back, and this process writes them: workers need no
    file system in common. The actor that dies is started again by Ray, and what it had in hand is done again. Samples
    are cut into the batches of the local engine, so that the rows are the same.
    """

    def __init__(self, plan: Plan, models: Models) -> None:
        self.plan, self.models = plan, models
        self._reduced: dict[str, int] = {}
        self._heard: set[str] = set()

    def __enter__(self) -> Self:
        config = self.plan.config
        self._ray = ray = require("ray", "ray", "the engine ray", extra="ray")
        self._own = not ray.is_initialized()
        if self._own:
            _connect(ray, config.address)
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        ray, config = self._ray, self.plan.config
        gpus = 1 if self.plan.device.type == "cuda" else 0
        there = ray.cluster_resources()
        room = int(there.get("GPU", 0)) if gpus else int(there.get("CPU", 0) // config.cpus)
        count = config.workers or room
        if not 1 <= count <= room:
            kind = "GPU" if gpus else f"{config.cpus} CPU" + ("s" if config.cpus > 1 else "")
            raise InputError(
                f"expected at most {room} workers of one {kind} each, which is what this Ray has, got "
                f"{config.workers or 'none'}; give fewer --workers or --cpus, or connect to a larger cluster with "
                "--address."
            )
        actor = ray.remote(_Actor).options(
            num_cpus=config.cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
        )
        self._actors = [actor.remote(self.plan.device, config.cpus, config.batch_size) for _ in range(count)]
        self._models = ray.put(_dumps(dict(self.models), self.plan.device))
        here = _versions()
        for versions in self._all([actor.versions.remote() for actor in self._actors]):
            if versions != here:
                raise InputError(
                    f"expected workers with {_words(here)}, as here, got {_words(versions)}; install the same "
                    "versions on all nodes."
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own:
            self._ray.shutdown()
        else:
            for actor in getattr(self, "_actors", []):
                self._ray.kill(actor)

    def unperturbed(self, name: str, function: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """Return function(the model of this name, x) of all samples, on the CPU."""
        x, batch = self.plan.x, self.plan.config.batch_size
        size = max(batch, -(-1000 // batch) * batch)  # whole batches, as in the local engine
        tasks = {
            start: partial(_unperturbed, self._models, name, function, x[start : start + size])
            for start in range(0, len(x), size)
        }
        found = dict(self._done(tasks))
        return torch.cat([found[start] for start in sorted(found)])

    def shards(self, shared: Shared, numbers: Sequence[int], tick: Tick) -> Iterator[tuple[int, Make]]:
        """Yield the numbers of these shards as they are finished, each with what writes its files into a folder."""
        jobs = self._ray.put(_dumps(shared.jobs, self.plan.device))
        tasks = {number: partial(_shard, self._models, jobs, shared, number) for number in numbers}
        for number, (facts, files) in self._done(tasks):
            yield number, partial(_write, facts, files)
            rows = shared.rows(number)
            for name, cost in shared.costs():
                tick(name, rows, cost)
            for job, size in facts["reduced"].items():
                self._reduced[job] = min(size, self._reduced.get(job, size))

    def said(self) -> dict[str, Any]:
        """Return how many workers there were, on what."""
        config = self.plan.config
        return {
            "reduced": self._reduced,
            "engine": {"name": "ray", "version": self._ray.__version__, "workers": len(self._actors)}
            | ({"gpus": 1} if self.plan.device.type == "cuda" else {"threads": config.cpus}),
        }

    def _done(self, tasks: Mapping[int, Callable[[Any], Any]]) -> Iterator[tuple[int, Any]]:
        """Yield what comes of tasks, each a function of the actor that is to do it, a few at a time."""
        waiting = deque(tasks.items())
        running: dict[Any, tuple[int, Any]] = {}
        for actor in self._actors * _AHEAD:
            if waiting:
                number, submit = waiting.popleft()
                running[submit(actor)] = number, actor
        while running:
            ready, _ = self._ray.wait(list(running), num_returns=1, timeout=1.0)  # signals are heard in between
            for reference in ready:
                number, actor = running.pop(reference)
                if waiting:
                    following, submit = waiting.popleft()
                    running[submit(actor)] = following, actor
                result, heard = self._get(reference)
                self._warn(heard)
                yield number, result

    def _all(self, references: list[Any]) -> list[Any]:
        return [self._get(reference) for reference in references]

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, (InputError, MemoryError)):
                raise cause from None
            raise
        except errors.RayActorError as error:
            raise InputError(
                f"expected workers that stay alive, got one that died {_RETRIES + 1} times over the same samples "
                f"({str(error).strip().splitlines()[0]}); give each more memory (fewer --workers), or a smaller "
                "--batch-size or --shard-size."
            ) from error

    def _warn(self, heard: list[str]) -> None:
        for text in heard:
            if text not in self._heard:
                self._heard.add(text)
                warnings.warn(text, EpsballWarning, stacklevel=2)


class _Actor:
    """One worker. Models and jobs come with every call, and are unpacked at the first: one started again has none."""

    def __init__(self, device: torch.device, threads: int, batch_size: int) -> None:
        torch.set_num_threads(threads)
        self.device, self.batches = device, Batches(batch_size)
        self._models: Any = None
        self._jobs: Any = None

    def versions(self) -> dict[str, str]:
        """Return what the results depend on."""
        return _versions()

    def unperturbed(
        self, models: bytes, name: str, function: Callable[[Any, Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, list[str]]:
        """Return function(model, x) and the warnings."""
        with _listening() as heard:
            found = unperturbed(self._unpacked(models)[name], function, x, self.device, self.batches)
        return found, heard

    def shard(
        self, models: bytes, jobs: bytes, part: Shared
    ) -> tuple[tuple[dict[str, Any], dict[str, bytes]], list[str]]:
        """Do the jobs on the samples of one shard; return what is to be known of it, its files, and the warnings."""
        if self._jobs is None:
            self._jobs = _loads(jobs)
            for job in self._jobs:
                for surrogate in getattr(job.attack.objective, "surrogates", ()):
                    _moved(surrogate, self.device)
        shared = part.completed(self._unpacked(models), self._jobs)
        with tempfile.TemporaryDirectory(prefix="epsball-") as folder, _listening() as heard:
            facts = do_shard(shared, 0, Path(folder), self.batches)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        return (facts, files), heard

    def _unpacked(self, models: bytes) -> dict[str, Any]:
        if self._models is None:
            self._models = {name: _moved(model, self.device) for name, model in _loads(models).items()}
        return dict(self._models)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect epsball's warnings in the list, for the process that the user sees."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", EpsballWarning)
        yield texts
    texts.extend(dict.fromkeys(str(warning.message) for warning in found if warning.category is EpsballWarning))


def _unperturbed(models: Any, name: str, function: Callable[[Any, Tensor], Tensor], x: Tensor, actor: Any) -> Any:
    return actor.unperturbed.remote(models, name, function, x)


def _shard(models: Any, jobs: Any, shared: Shared, number: int, actor: Any) -> Any:
    return actor.shard.remote(models, jobs, shared.part(number))


def _write(facts: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> Mapping[str, Any]:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return facts


def _connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine; signals are left as they were."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    there = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if there is None:
        options["include_dashboard"] = False
    elif there.startswith("ray://"):  # Ray's client knows no options of a process on the cluster
        options = {}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"expected a Ray that can be reached, got {address or 'none'} ({reason}); start one with `ray start "
            "--head` and give its --address, or leave --address out to run on this machine."
        ) from error
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _dumps(value: Any, device: torch.device) -> bytes:
    """Pickle for a worker of our own; Python files of the user travel with what they define."""
    pickle = require("ray.cloudpickle", "ray", "the engine ray", extra="ray")

    class Pickler(pickle.CloudPickler):  # type: ignore[misc,name-defined]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, ExportedModel):  # its graph is too deep to be pickled
                return load_again, obj.parts(device)
            return super().reducer_override(obj)

    modules = [module for name, module in sys.modules.items() if name.startswith("epsball_user_")]
    buffer = io.BytesIO()
    try:
        for module in modules:
            pickle.register_pickle_by_value(module)
        Pickler(buffer).dump(value)
    except Exception as error:  # a model may hold anything: locks, files, generators
        raise InputError(
            f"expected a model that can be sent to workers, got one that cannot be pickled ({type(error).__name__}: "
            f"{error}); use the local engine."
        ) from error
    finally:
        for module in modules:
            pickle.unregister_pickle_by_value(module)
    return buffer.getvalue()


def _loads(content: bytes) -> Any:
    return require("ray.cloudpickle", "ray", "the engine ray", extra="ray").loads(content)


def _moved(model: Any, device: torch.device) -> Any:
    """Move a model's parameters to the device, in place."""
    inner = model.model if isinstance(model, TargetModel) else model
    if isinstance(inner, nn.Module):
        inner.to(device)
    return model


def _versions() -> dict[str, str]:
    return {"epsball": epsball.__version__, "torch": torch.__version__, "Python": platform.python_version()[:4]}


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
