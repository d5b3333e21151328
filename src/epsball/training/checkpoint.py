"""Checkpoints of a training run: how far it is, its weights, and the optimiser's state; read with weights_only."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.errors import InputError
from epsball.networks.storage import replace_file

__all__ = ["Checkpoint", "checkpoint_path"]

INTERVAL = 300.0  # seconds between checkpoints: at most that much work is lost


def checkpoint_path(out: Path) -> Path:
    """Return where the checkpoint of a run that writes `out` lies until it ends: beside it."""
    return out.with_suffix(".checkpoint.pt")


@dataclass
class Checkpoint:
    """Where a run stands on disk.

    path      file; None: nothing is kept
    identity  what the run is: network, data, recipe, seed. A checkpoint of another run is refused
    seconds   time spent by the earlier parts of the run
    """

    path: Path | None
    identity: Mapping[str, Any]
    seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic, init=False)

    def restore(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
        """Fill model and optimiser from the file and return the steps done; 0 if there is no file."""
        if self.path is None or not self.path.is_file():
            return 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            identity, done, seconds = content["identity"], int(content["done"]), float(content["seconds"])
            if identity != self._identity():
                raise InputError(
                    f"{self.path} is the checkpoint of another run: {_difference(identity, self._identity())}; give "
                    "the options of that run, or remove the file to train from the start."
                )
            model.load_state_dict(content["model"])
            optimiser.load_state_dict(content["optimiser"])
        except InputError:
            raise
        except Exception as error:  # a damaged file may raise nearly any type
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{self.path}: not a sound checkpoint ({reason}); remove it to start again.") from error
        self.seconds = seconds
        return done

    def offer(self, model: nn.Module, optimiser: torch.optim.Optimizer, done: int, seconds: float) -> None:
        """Write the state in one step if the last one is old enough."""
        if self.path is None or time.monotonic() - self._last < INTERVAL:
            return
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self._identity(),
                "done": done,
                "seconds": self.seconds + seconds,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
            },
            buffer,
        )
        replace_file(self.path, buffer.getvalue())
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file once the weights are written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _identity(self) -> str:
        return json.dumps(dict(self.identity), default=str)


def _difference(theirs: str, ours: str) -> str:
    found, wanted = json.loads(theirs), json.loads(ours)
    key = next(key for key in (*wanted, *found) if found.get(key) != wanted.get(key))
    return f"its {key} is {found.get(key)!r}, this run's {wanted.get(key)!r}"
