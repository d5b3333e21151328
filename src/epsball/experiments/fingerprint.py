"""What decides the numbers of a run: what is measured under the same is the same, and may be put together."""

from __future__ import annotations

from typing import Any

import torch

import epsball
from epsball.experiments.plan import LoadedModel, Plan

__all__ = ["fingerprint"]

# How the samples are cut and where they and the weights come from decide nothing: their content does.
_NOT = frozenset(
    {"batch_size", "shard_size", "save", "device", "data", "data_root", "weights", "limit", "skip_bad", "bounds"}
    | {"x_columns", "y_columns", "target", "engine", "address", "workers", "cpus"}
)


def fingerprint(plan: Plan, device: str) -> dict[str, Any]:
    """Return the configuration, the content of data and weights, and the versions, in names that people know.

    device: the kind of device that the engine works on.
    """
    configuration = {name: value for name, value in plan.config.to_dict().items() if name not in _NOT}
    if plan.config.eot > 1:  # a batch shares its random draws
        configuration["batch_size"] = plan.config.batch_size
    return configuration | {
        "bounds": plan.bounds,
        "target": plan.reference,
        "samples": len(plan.dataset),
        "data (sha256)": plan.dataset.digest,
        "sample numbers": [int(plan.dataset.ids[0]), int(plan.dataset.ids[-1]), int(plan.dataset.ids.sum())],
        "weights (sha256)": _weights(plan.model),
        "weights of surrogates (sha256)": [_weights(surrogate) for surrogate in plan.surrogates],
        "device": device,
        "version of epsball": epsball.__version__,
        "version of torch": torch.__version__,
    }


def _weights(model: LoadedModel) -> str:
    """Return the digest of the weights and of the Python code around them, where there is some."""
    return "+".join(filter(None, (model.digest, str(model.details.get("code_digest") or ""))))
