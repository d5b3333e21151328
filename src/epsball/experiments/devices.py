"""The device that a run asks for, and the one that this process loads its models to."""

from __future__ import annotations

import torch

from epsball.errors import InputError
from epsball.experiments.config import RunConfig

__all__ = ["device_of", "here_of"]


def device_of(config: RunConfig) -> torch.device:
    """Return the device that batches run on; InputError where it cannot be used."""
    name = config.device
    try:
        device = torch.device(name)
        if config.engine == "ray" and (device.type not in ("cpu", "cuda") or device.index is not None):
            raise InputError(f"expected device 'cpu' or 'cuda' for workers of Ray, which get one each, got {name!r}.")
        if config.engine == "local":  # workers may have GPUs where there is none
            torch.empty(0, device=device).cpu()  # refuses "meta", which holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: built without CUDA
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"expected a device that can be used here, got {name!r} ({reason}); use 'cpu'.") from error
    return device


def here_of(config: RunConfig, device: torch.device) -> torch.device:
    """Return where this process has its models: workers of Ray move theirs to the device themselves."""
    return device if config.engine == "local" else torch.device("cpu")
