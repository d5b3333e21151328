"""Figure 3: fooling ratio over ε of every method on the MNIST networks."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epsball.experiments.claims import CLAIMS, Verdict, judge
from epsball.experiments.paper.classifiers import METHODS, PAPER
from epsball.experiments.paper.common import RANGES, Progress, check_writable, concat, load, samples, versions, write
from epsball.metrics import FoolingCurve, fooling_curve
from epsball.recipes import recipe

__all__ = ["figure3"]


@dataclass(frozen=True, eq=False)
class Panel:
    """One panel of Figure 3: the curves of all methods on one network in one range, and what they say of the claims."""

    network: str
    range: str
    count: int
    total: int
    curves: dict[str, FoolingCurve]
    seconds: dict[str, float]
    verdicts: tuple[Verdict, ...]


def figure3(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> str:
    """Measure the fooling curves of all methods on the MNIST networks, unbounded as in the paper and inside [0, 1].

    Writes results.parquet (one row a sample, method, ε, network and range), figure3.json, figure3.md with the passes
    and the verdict on each of the paper's claims, and the figures. Returns the Markdown.
    """
    from epsball.report.paper import figure3_markdown, save_figure3

    check_writable(out)
    panels: list[Panel] = []
    tables: list[Any] = []
    for label, bounds in RANGES.items():
        for name, paper in PAPER.items():
            model, x, target, ids = load(name, data_root, limit)
            curves: dict[str, FoolingCurve] = {}
            seconds: dict[str, float] = {}
            for method, options in METHODS.items():
                attack = recipe(method, p=math.inf, eps=1.0, bounds=bounds, **options)
                started = time.perf_counter()
                curves[method] = fooling_curve(
                    attack,
                    model,
                    x,
                    target,
                    paper.grid,
                    seed=seed,
                    sample_id=ids,
                    batch_size=batch_size,
                    progress=samples(progress, f"{method} on {name}, {label}", len(x)),
                )
                seconds[method] = time.perf_counter() - started
                tables.append(_curve_table(name, label, method, curves[method], ids))
            verdicts = tuple(judge(claim, curves) for claim in CLAIMS)
            count = next(iter(curves.values())).count
            panels.append(Panel(name, label, count, len(x), curves, seconds, verdicts))
    record = {"made_by": "epsball paper figure3", "seed": seed, "limit": limit, **versions()}
    record["panels"] = [_panel_record(panel) for panel in panels]
    text = figure3_markdown(record)
    write(out, "results.parquet", concat(tables))
    write(out, "figure3.json", record)
    write(out, "figure3.md", text)
    save_figure3(record, out / "figures")
    return text


def _panel_record(panel: Panel) -> dict[str, Any]:
    curves = {}
    for name, curve in panel.curves.items():
        low, high = curve.interval
        curves[name] = {
            "percent": (100.0 * curve.ratio).tolist(),
            "low": (100.0 * low).tolist(),
            "high": (100.0 * high).tolist(),
            "forwards": curve.forwards.double().mean(1).tolist(),
            "backwards": curve.backwards.double().mean(1).tolist(),
            "seconds": panel.seconds[name],
        }
    return {
        "network": panel.network,
        "title": PAPER[panel.network].title,
        "range": panel.range,
        "count": panel.count,
        "total": panel.total,
        "eps": list(PAPER[panel.network].grid),
        "curves": curves,
        "claims": [asdict(verdict) | {"sentence": verdict.sentence()} for verdict in panel.verdicts],
    }


def _curve_table(network: str, label: str, method: str, curve: FoolingCurve, ids: Tensor) -> Any:
    import pyarrow as pa

    count = len(ids)
    rows = count * len(curve.eps)
    eps = torch.tensor(curve.eps, dtype=torch.float64)[:, None].expand(-1, count).reshape(-1)
    return pa.table(
        {
            "network": pa.array([network] * rows).dictionary_encode(),
            "range": pa.array([label] * rows).dictionary_encode(),
            "attack": pa.array([method] * rows).dictionary_encode(),
            "eps": eps.numpy(),
            "sample_id": ids.repeat(len(curve.eps)).numpy(),
            "correct": curve.correct.repeat(len(curve.eps)).numpy(),
            "fooled": curve.fooled.reshape(-1).numpy(),
            "norm_linf": curve.norm.reshape(-1).numpy(),
            "forwards": curve.forwards.reshape(-1).numpy(),
            "backwards": curve.backwards.reshape(-1).numpy(),
        }
    )
