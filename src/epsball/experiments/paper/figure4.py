"""Figure 4: output PSNR of autoencoders under attack, over input PSNR or ε."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball.experiments.paper.common import Progress, check_writable, concat, versions, write
from epsball.experiments.paper.regressors import FEW, PANELS, Method, RegressionPanel, compose, load_panel
from epsball.experiments.regression_claims import judge_panel
from epsball.metrics import psnr
from epsball.metrics.fooling import batches

__all__ = ["figure4"]

MANY = 1000


@dataclass(frozen=True, eq=False)
class _Curve:
    """What one method did: (points of the grid, samples) each, and seconds for the whole grid."""

    seconds: float
    psnr_in: Tensor
    psnr_out: Tensor
    gain: Tensor
    passes: Tensor
    jvps: Tensor


def figure4(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    weights: dict[str, str] | None = None,
    panels: str = "abc",
    progress: Progress | None = None,
) -> str:
    """Measure the output PSNR of the autoencoders under attack, unbounded as in the paper, with y = x.

    On 1,000 random test images (`limit` of them), the first 20 of which stand for the paper's 20. Writes
    results.parquet (one row a sample, method, point and panel), figure4.json, figure4.md with the verdict on each of
    the paper's statements, and the figure. weights: files by network, for those that do not come with epsball. Returns
    the Markdown.
    """
    from epsball.report.paper_regression import figure4_markdown, save_figure4

    check_writable(out)
    records: list[dict[str, Any]] = []
    tables: list[Any] = []
    for panel in (panel for panel in PANELS if panel.key in panels):
        model, x, ids, source = load_panel(panel, out, data_root, weights or {}, seed, progress)
        x, ids = x[: limit or MANY], ids[: limit or MANY]
        curves: dict[str, _Curve] = {}
        for name, method in panel.methods.items():
            curves[name] = _measure(panel, name, method, model, x, ids, seed, batch_size, progress)
            tables.append(_table(panel, name, curves[name], ids))
        records.append(_record(panel, model, x, curves, source))
    made_by = "epsball paper figure4" + (f" --panels {panels}" if panels != "abc" else "")
    record = {"made_by": made_by, "seed": seed, "limit": limit, "panels": records, **versions()}
    text = figure4_markdown(record)
    write(out, "results.parquet", concat(tables))
    write(out, "figure4.json", record)
    write(out, "figure4.md", text)
    save_figure4(record, out / "figures")
    return text


def _measure(
    panel: RegressionPanel,
    name: str,
    method: Method,
    model: nn.Module,
    x: Tensor,
    ids: Tensor,
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> _Curve:
    attack, eps = compose(panel, method), panel.eps(x[0].numel())
    rows: list[list[Tensor]] = []
    started, done = time.perf_counter(), 0
    for part in batches(len(x), batch_size):
        results = attack.over(model, x[part], x[part], eps=eps, seed=seed, sample_id=ids[part])
        columns = [
            torch.stack([psnr(x[part], result.perturbed) for result in results]),
            torch.stack([psnr(x[part], result.outputs) for result in results]),
            torch.stack([result.gain for result in results]),
            torch.stack([result.forwards + result.backwards for result in results]),
            torch.stack([result.jvps for result in results]),
        ]
        rows.append(columns)
        done += part.stop - part.start
        if progress is not None:
            progress(f"{name}, panel ({panel.key})", done, len(x), done / len(x))
    whole = [torch.cat(column, 1) for column in zip(*rows, strict=True)]
    return _Curve(time.perf_counter() - started, *whole)


def _record(
    panel: RegressionPanel, model: nn.Module, x: Tensor, curves: dict[str, _Curve], source: str
) -> dict[str, Any]:
    with torch.no_grad():
        clean = psnr(x, torch.cat([model(x[part]) for part in batches(len(x), 500)]))
    outs = {name: curve.psnr_out for name, curve in curves.items()}
    return {
        "key": panel.key,
        "title": panel.title,
        "network": panel.network,
        "weights": source,
        "axis": panel.axis,
        "at": panel.at(),
        "eps": panel.eps(x[0].numel()),
        "count": len(x),
        "few": min(FEW, len(x)),
        "clean": {"mean": float(clean.mean()), "few": float(clean[:FEW].mean())},
        "curves": {
            name: _summary(curve) | {"ours": panel.methods[name].ours, "recipe": panel.methods[name].recipe}
            for name, curve in curves.items()
        },
        "claims": judge_panel(panel.key, outs, panel.baselines, clean),
    }


def _summary(curve: _Curve) -> dict[str, Any]:
    """Return means over the samples at each point, with the 95 % interval of the mean."""
    out = curve.psnr_out.double()
    mean = out.mean(1)
    half = 1.959964 * out.std(1) / math.sqrt(out.shape[1]) if out.shape[1] > 1 else torch.zeros_like(mean)
    return {
        "mean": mean.tolist(),
        "low": (mean - half).tolist(),
        "high": (mean + half).tolist(),
        "few": out[:, :FEW].mean(1).tolist(),
        "psnr_in": curve.psnr_in.double().mean(1).tolist(),
        "passes": float(curve.passes.double().mean()),
        "jvps": float(curve.jvps.double().mean()),
        "seconds": curve.seconds,
    }


def _table(panel: RegressionPanel, name: str, curve: _Curve, ids: Tensor) -> Any:
    import pyarrow as pa

    points, count = curve.psnr_out.shape
    axis = torch.tensor(panel.at(), dtype=torch.float64)
    return pa.table(
        {
            "panel": pa.array([panel.key] * (points * count)).dictionary_encode(),
            "attack": pa.array([name] * (points * count)).dictionary_encode(),
            "axis": axis.repeat_interleave(count).numpy(),
            "sample_id": ids.repeat(points).numpy(),
            "psnr_in": curve.psnr_in.reshape(-1).numpy(),
            "psnr_out": curve.psnr_out.reshape(-1).numpy(),
            "gain": curve.gain.reshape(-1).numpy(),
            "passes": curve.passes.reshape(-1).numpy(),
            "jvps": curve.jvps.reshape(-1).numpy(),
        }
    )
