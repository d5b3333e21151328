"""Table 3: test error and the three measures of robustness, the paper's values beside ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from epsball.experiments.paper.classifiers import PAPER, PaperRow
from epsball.experiments.paper.common import (
    RANGES,
    Progress,
    arrow,
    check_writable,
    finite,
    load,
    normal,
    samples,
    versions,
    write,
)
from epsball.metrics import Robustness, robustness
from epsball.metrics.intervals import wilson_interval

__all__ = ["table3"]


def table3(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> str:
    """Measure test error, ρ̂₁, ρ̂₂ and ε₉₉ (p = ∞) of the MNIST networks; writes table3.json, .md and distances.parquet.

    Returns the table as Markdown. DeepFool is deterministic, so the seed changes nothing; it is kept in the record.
    """
    from epsball.report.paper import table3_markdown

    check_writable(out)
    rows: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {
        key: [] for key in ("network", "range", "sample_id", "correct", "distance", "relative", "r2", "passes")
    }
    for name, paper in PAPER.items():
        model, x, target, ids = load(name, data_root, limit)
        for label, bounds in RANGES.items():
            result = robustness(
                model,
                x,
                target,
                math.inf,
                bounds=bounds,
                batch_size=batch_size,
                progress=samples(progress, f"{name}, {label}", len(x)),
            )
            rows.append(_table3_row(name, paper, label, result))
            columns["network"] += [name] * len(x)
            columns["range"] += [label] * len(x)
            columns["sample_id"] += ids.tolist()
            columns["passes"] += (result.forwards + result.backwards).tolist()
            for key in ("correct", "distance", "relative", "r2"):
                columns[key] += getattr(result, key).tolist()
    record = {"made_by": "epsball paper table3", "seed": seed, "limit": limit, "p": "inf", "rows": rows, **versions()}
    text = table3_markdown(record)
    write(out, "distances.parquet", arrow(columns))
    write(out, "table3.json", record)
    write(out, "table3.md", text)
    return text


def _table3_row(name: str, paper: PaperRow, label: str, result: Robustness) -> dict[str, Any]:
    total, wrong = len(result.correct), int((~result.correct).sum())
    rho1, rho1_error = result.mean(result.relative)
    rho2, rho2_error = result.mean(result.r2)
    low, high = (100.0 * bound for bound in wilson_interval(wrong, total))
    return {
        "network": name,
        "title": paper.title,
        "range": label,
        "count": total,
        "error": {"paper": paper.error, "ours": 100.0 * wrong / total, "low": low, "high": high},
        "rho1": {"paper": paper.rho1, "ours": finite(rho1), **normal(rho1, rho1_error)},
        "rho2": {"paper": paper.rho2, "ours": finite(rho2), **normal(rho2, rho2_error)},
        "eps99": {
            "paper": paper.eps99,
            **{
                key: finite(value)
                for key, value in zip(("ours", "low", "high"), (result.eps99, *result.eps99_interval), strict=True)
            },
        },
        "deepfool_fails": int((result.correct & result.distance.isinf()).sum()),
        "passes": float((result.forwards + result.backwards).double().mean()),
    }
