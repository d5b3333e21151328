"""What one Ray worker does, and how models and jobs get there."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import epsball
from epsball.data.optional import require
from epsball.engines.memory import Batches
from epsball.errors import EpsballWarning, InputError
from epsball.experiments.engine import kind_of, unperturbed
from epsball.experiments.shard import Shared, do_shard
from epsball.models.exported import ExportedModel, load_again
from epsball.target_model import TargetModel

__all__ = ["Worker", "dumps", "switches", "versions"]

_FOLDER = "epsball-worker-"


class Worker:
    """One worker. Models and jobs are fetched at the first call that needs them: one started again has none."""

    def __init__(self, device: torch.device, threads: int, batch_size: int, switched: Mapping[str, Any]) -> None:
        torch.set_num_threads(threads)
        _switch(switched)
        self.device, self.batches = device, Batches(batch_size)
        self._models: Any = None
        self._jobs: Any = None
        _sweep()

    def versions(self) -> tuple[dict[str, str], str]:
        """Return what the results depend on: versions, and the kind of device."""
        return versions(), kind_of(self.device)

    def unperturbed(
        self, models: list[Any], name: str, function: Callable[[Any, Tensor], Tensor], x: Tensor
    ) -> tuple[Tensor, list[str]]:
        """Return function(model, x) and the warnings."""
        with _listening() as heard:
            found = unperturbed(self._unpacked(models)[name], function, x, self.device, self.batches)
        return found, heard

    def shard(
        self, models: list[Any], jobs: list[Any], part: Shared
    ) -> tuple[tuple[dict[str, Any], dict[str, bytes]], list[str]]:
        """Do the jobs on the samples of one shard; return what is to be known of it, its files, and the warnings."""
        if self._jobs is None:
            self._jobs = _fetched(jobs)
            for job in self._jobs:
                for surrogate in getattr(job.attack.objective, "surrogates", ()):
                    _moved(surrogate, self.device)
        shared = part.completed(self._unpacked(models), self._jobs)
        prefix = f"{_FOLDER}{os.getpid()}-"
        with tempfile.TemporaryDirectory(prefix=prefix) as folder, _listening() as heard:
            facts = do_shard(shared, 0, Path(folder), self.batches)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        return (facts, files), heard

    def _unpacked(self, models: list[Any]) -> dict[str, Any]:
        if self._models is None:
            self._models = {name: _moved(model, self.device) for name, model in _fetched(models).items()}
        return dict(self._models)


def versions() -> dict[str, str]:
    """Return the versions that have to be the same everywhere."""
    return {
        "epsball": epsball.__version__,
        "torch": torch.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def switches() -> dict[str, Any]:
    """Return PyTorch's switches that decide the last digits."""
    return {
        "default_dtype": torch.get_default_dtype(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
        ),
    }


def dumps(value: Any, device: torch.device) -> bytes:
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
    except InputError:
        raise
    except Exception as error:  # a model may hold anything: locks, files, generators
        raise InputError(
            f"expected a model that can be sent to workers, got one that cannot be pickled ({type(error).__name__}: "
            f"{error}); use the local engine."
        ) from error
    finally:
        for module in modules:
            pickle.unregister_pickle_by_value(module)
    return buffer.getvalue()


def _fetched(reference: list[Any]) -> Any:
    import ray

    (only,) = reference
    return require("ray.cloudpickle", "ray", "the engine ray", extra="ray").loads(ray.get(only))


def _moved(model: Any, device: torch.device) -> Any:
    """Move a model's parameters to the device, in place."""
    inner = model.model if isinstance(model, TargetModel) else model
    if isinstance(inner, nn.Module):
        inner.to(device)
    return model


def _switch(switched: Mapping[str, Any]) -> None:
    torch.set_default_dtype(switched["default_dtype"])
    torch.set_float32_matmul_precision(switched["float32_matmul_precision"])
    torch.use_deterministic_algorithms(switched["deterministic"])
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = switched["cudnn"]


def _sweep() -> None:
    """Remove what workers left here that were killed."""
    if os.name != "posix":  # elsewhere signal 0 is no question
        return
    for path in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        number = path.name.removeprefix(_FOLDER).partition("-")[0]
        with contextlib.suppress(PermissionError, ValueError):
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect epsball's warnings in the list, for the process that the user sees."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", EpsballWarning)
        yield texts
    texts.extend(dict.fromkeys(str(warning.message) for warning in found if warning.category is EpsballWarning))
