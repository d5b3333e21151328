"""Figure 3: fooling ratio over ε of every method on the MNIST networks."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from epsball.experiments.claims import CLAIMS, Verdict, judge
from epsball.experiments.paper.classifiers import METHODS, PAPER
from epsball.experiments.paper.common import RANGES, Bounds, concat, write
from epsball.experiments.paper.parts import Part
from epsball.experiments.paper.setting import Loaded, Setting
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
    source: str
    curves: dict[str, FoolingCurve]
    seconds: dict[str, float]
    verdicts: tuple[Verdict, ...]


def figure3(setting: Setting) -> str:
    """Measure the fooling curves of all methods on the classifiers, unbounded as in the paper and inside [0, 1].

    Writes results.parquet (one row a sample, method, ε, network and range), figure3.json, figure3.md with the passes
    and the verdict on each of the paper's claims, and the figures. Returns the Markdown. A network without weights is
    left out and named in the record, and so is one that classifies none of the images correctly.
    """
    from epsball.report.paper import figure3_markdown, save_figure3

    parts = setting.prepare("".join(row.key for row in PAPER.values()))
    chosen = [name for name, row in PAPER.items() if setting.has(row.key) and setting.has_weights(name)]
    panels: list[Panel] = []
    hopeless: list[str] = []
    tables: list[Any] = []
    for label, bounds in RANGES.items():
        for name in chosen:
            loaded = setting.classifier(name)
            curves: dict[str, FoolingCurve] = {}
            seconds: dict[str, float] = {}
            for method in filter(PAPER[name].shows, METHODS):
                identity = {
                    **loaded.identity,
                    "what": "fooling curve",
                    "range": label,
                    "method": method,
                    "options": METHODS[method],
                    "eps": list(PAPER[name].grid),
                    "nested": PAPER[name].nested,
                }
                part = parts.get(identity, partial(_measure, setting, loaded, method, label, bounds))
                curves[method] = _curve(part, len(PAPER[name].grid))
                seconds[method] = part.facts["seconds"]
                tables.append(part.rows)
            count = next(iter(curves.values())).count
            if not count:  # no ratio without a denominator
                hopeless.append(name)
                continue
            verdicts = tuple(judge(claim, curves) for claim in CLAIMS)
            images = loaded.images
            panels.append(Panel(name, label, count, len(images), images.source, curves, seconds, verdicts))
    record = setting.record("figure3") | {"panels": [_panel_record(panel) for panel in panels]}
    record["left_out"] = [name for name, row in PAPER.items() if setting.has(row.key) and name not in chosen]
    record["none_correct"] = sorted(set(hopeless))
    text = figure3_markdown(record)
    write(setting.out, "results.parquet", concat(tables))
    write(setting.out, "figure3.json", record)
    write(setting.out, "figure3.md", text)
    save_figure3(record, setting.out / "figures")
    return text


def _measure(setting: Setting, loaded: Loaded, method: str, label: str, bounds: Bounds) -> Part:
    images, name = loaded.images, str(loaded.identity["network"])
    started = time.perf_counter()
    curve = fooling_curve(
        recipe(method, p=math.inf, eps=1.0, bounds=bounds, **METHODS[method]),
        loaded.model,
        images.x,
        images.labels,
        PAPER[name].grid,
        seed=setting.seed,
        sample_id=images.ids,
        batch_size=loaded.batch_size,
        nested=PAPER[name].nested,
        progress=setting.counter(f"{method} on {name}, {label}", len(images)),
    )
    seconds = time.perf_counter() - started
    return Part(_curve_table(name, label, method, curve, images.ids), {"seconds": seconds})


def _curve(part: Part, points: int) -> FoolingCurve:
    """Read a measured curve again."""
    columns = {
        key: torch.from_numpy(part.rows[key].to_numpy(zero_copy_only=False).copy()).reshape(points, -1)
        for key in ("eps", "fooled", "correct", "norm_linf", "forwards", "backwards")
    }
    return FoolingCurve(
        tuple(columns["eps"][:, 0].tolist()),
        fooled=columns["fooled"],
        correct=columns["correct"][0],
        norm=columns["norm_linf"],
        forwards=columns["forwards"],
        backwards=columns["backwards"],
    )


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
        "key": PAPER[panel.network].key,
        "network": panel.network,
        "title": PAPER[panel.network].title,
        "range": panel.range,
        "count": panel.count,
        "total": panel.total,
        "source": panel.source,
        "nested": PAPER[panel.network].nested,
        "eps": list(PAPER[panel.network].grid),
        "curves": curves,
        "claims": [
            asdict(verdict) | {"sentence": verdict.sentence(), "holds": verdict.holds, "reversed": verdict.reversed}
            for verdict in panel.verdicts
        ],
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
