"""Table 3: test error and the three measures of robustness, the paper's values beside ours."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from epsball.experiments.paper.classifiers import PAPER, PaperRow
from epsball.experiments.paper.common import RANGES, Bounds, arrow, concat, finite, normal, write
from epsball.experiments.paper.explanations import centred_norm, explanations, mean_centred
from epsball.experiments.paper.parts import Part
from epsball.experiments.paper.setting import Loaded, Setting
from epsball.metrics import Robustness, robustness
from epsball.metrics.intervals import wilson_interval

__all__ = ["table3"]

_COLUMNS = ("distance", "relative", "r2", "correct", "forwards", "backwards")


def table3(setting: Setting) -> str:
    """Measure test error, ρ̂₁, ρ̂₂ and ε₉₉ (p = ∞) of the classifiers; writes table3.json, .md and distances.parquet.

    Returns the table as Markdown. A network without weights is left out and named in the record.
    """
    from epsball.report.paper import table3_markdown

    parts = setting.prepare()
    rows: list[dict[str, Any]] = []
    tables: list[Any] = []
    centred: dict[str, float] = {}
    for name in filter(setting.has_weights, PAPER):
        loaded = setting.classifier(name)
        for label, bounds in RANGES.items():
            identity = {**loaded.identity, "what": "distances", "range": label}
            part = parts.get(identity, partial(_measure, setting, loaded, label, bounds))
            tables.append(part.rows)
            result = _distances(part)
            rows.append(_table3_row(name, PAPER[name], label, result))
            if bounds is None:
                centred[name] = mean_centred(result, torch.tensor(part.rows["centred_norm"].to_pylist()))
    record = {**setting.record("table3"), "p": "inf", "rows": rows}
    record["left_out"] = [name for name in PAPER if not setting.has_weights(name)]
    record["explanations"] = explanations(rows, centred)
    text = table3_markdown(record)
    write(setting.out, "distances.parquet", concat(tables))
    write(setting.out, "table3.json", record)
    write(setting.out, "table3.md", text)
    return text


def _measure(setting: Setting, loaded: Loaded, label: str, bounds: Bounds) -> Part:
    images, name = loaded.images, str(loaded.identity["network"])
    result = robustness(
        loaded.model,
        images.x,
        images.labels,
        math.inf,
        bounds=bounds,
        batch_size=loaded.batch_size,
        progress=setting.counter(f"{name}, {label}", len(images)),
    )
    count = len(images)
    columns: dict[str, list[Any]] = {"network": [name] * count, "range": [label] * count}
    columns["sample_id"] = images.ids.tolist()
    columns |= {key: getattr(result, key).tolist() for key in _COLUMNS}
    columns["centred_norm"] = centred_norm(images.x, math.inf).tolist()
    return Part(arrow(columns), {"level": result.level})


def _distances(part: Part) -> Robustness:
    """Read the measured distances again."""
    columns = {key: torch.tensor(part.rows[key].to_pylist()) for key in _COLUMNS}
    return Robustness(p=math.inf, level=part.facts["level"], **columns)


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
