"""The paper's three measures from the rows of a DeepFool run, and the per-sample distances behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.data.optional import require
from epsball.engines.local import Chunk
from epsball.metrics import Robustness
from epsball.tensors import norm

__all__ = ["describe", "distances_table", "measure"]

NORMAL_95 = 1.959963984540054


def measure(chunks: Iterable[Chunk], x: Tensor, r2: Tensor, p: float) -> Robustness:
    """Put the measures together: chunks of one DeepFool run without a limit, in the order of x; r2 (N,)."""

    def column(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([chunk.columns[name] for chunk in chunks]))

    correct = column("clean_prediction") == column("target")
    distance = torch.where(correct, torch.where(column("success"), column("norm"), math.inf), 0.0)
    return Robustness(
        p=p,
        level=0.99,
        distance=distance,
        relative=distance / norm(x, p),
        r2=r2,
        correct=correct,
        forwards=column("forwards"),
        backwards=column("backwards"),
    )


def describe(found: Robustness) -> dict[str, Any]:
    """Return the measures with their 95 % intervals for the manifest; a number that does not exist is None."""
    low, high = found.eps99_interval
    return {
        "p": "inf" if found.p == math.inf else found.p,
        "count": int(found.correct.sum()),
        "unreached": int((found.correct & ~found.distance.isfinite()).sum()),
        "rho1": _mean(found, found.relative),
        "rho2": _mean(found, found.r2),
        "eps99": {"value": _finite(found.eps99), "low": _finite(low), "high": _finite(high)},
    }


def _mean(found: Robustness, values: Tensor) -> dict[str, float | None]:
    mean, error = found.mean(values)
    return {name: _finite(mean + side * NORMAL_95 * error) for name, side in (("low", -1), ("high", 1))} | {
        "value": _finite(mean)
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def distances_table(found: Robustness, sample_id: Tensor, target: Tensor, clean: Tensor) -> Any:
    """Return the distances of each sample as a pyarrow table, in units of x and the norm of the run.

    distance: of DeepFool's perturbation, inf where it found none, 0 where the sample is misclassified already;
    relative: divided by the norm of x; r2: the first-order distance of Theorem 1.
    """
    pa = require("pyarrow", "pyarrow", "writing results")
    columns = {
        "sample_id": sample_id,
        "target": target,
        "clean_prediction": clean,
        "correct": found.correct,
        "p": torch.full((len(target),), found.p, dtype=torch.float64),
        "distance": found.distance.double(),
        "relative": found.relative.double(),
        "r2": found.r2.double(),
    }
    return pa.table({name: pa.array(values.numpy()) for name, values in columns.items()})
