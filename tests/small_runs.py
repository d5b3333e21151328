"""Runs on ten samples in three shards, of every kind, and what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from epsball.experiments.config import RunConfig

COUNT, SHARD = 10, 4  # three shards, the last one smaller
SHARDS = 3
EPS = (0.05, 0.1, 0.2)
KINDS: dict[str, dict[str, Any]] = {
    "attack": {"attacks": ("fgsm", "random-linf"), "eps": EPS},
    "evaluate": {"attacks": ("deepfool",), "eps": ()},
    "robustness": {"attacks": ("deepfool",), "eps": ()},
    "regression": {
        "command": "attack",
        "model": "digits-autoencoder",
        "attacks": ("linear-lp-2", "random-l2"),
        "eps": (0.5, 1.0),
        "p": 2.0,
    },
    "transfer": {"command": "evaluate", "attacks": ("fgsm",), "surrogates": ("digits-cnn",), "transfer": True},
}


def config(kind: str = "attack", **changes: Any) -> RunConfig:
    base = {"command": kind, "model": "digits-fcnn", "eps": EPS, "limit": COUNT, "dtype": "float64", "seed": 3}
    base |= {"batch_size": SHARD, "shard_size": SHARD}
    return RunConfig(**(base | KINDS[kind] | changes))


def contents(directory: Path) -> dict[str, Any]:
    """Everything that a run measured, but for the time it took."""
    found: dict[str, Any] = {}
    for name in ("results.parquet", "distances.parquet"):
        if (directory / name).is_file():
            with pq.ParquetFile(directory / name) as file:
                table = file.read()
            found |= {(name, key): table[key].to_numpy() for key in table.column_names if key != "seconds"}
    for name in ("examples.npz", "perturbed.npz"):
        if (directory / name).is_file():
            with np.load(directory / name, allow_pickle=False) as arrays:
                found |= {(name, key): arrays[key] for key in arrays.files}
    found |= {
        ("png", str(p.relative_to(directory))): np.array(p.read_bytes()) for p in (directory / "png").rglob("*.png")
    }
    manifest = json.loads((directory / "manifest.json").read_text())
    for key in ("created", "seconds", "shards", "configuration", "command", "batch_size"):
        manifest.pop(key)
    return found | {("manifest.json", ""): np.array(json.dumps(manifest))}


def assert_same(directory: Path, expected: dict[str, Any]) -> None:
    assert not (directory / ".unfinished").exists()
    found = contents(directory)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=str(name))
