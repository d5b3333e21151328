"""Figure 4: output PSNR of autoencoders under attack, over input PSNR or ε."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from epsball.experiments.paper.common import concat, write
from epsball.experiments.paper.parts import Part
from epsball.experiments.paper.regressors import FEW, PANELS, RegressionPanel, chosen, compose, reference
from epsball.experiments.paper.setting import Loaded, Setting
from epsball.experiments.regression_claims import judge_panel
from epsball.metrics import psnr
from epsball.metrics.fooling import batches

__all__ = ["figure4"]

_COLUMNS = ("psnr_in", "psnr_out", "gain", "passes", "jvps")


@dataclass(frozen=True, eq=False)
class _Curve:
    """What one method did: (points of the grid, samples) each, and seconds for the whole grid."""

    seconds: float
    psnr_in: Tensor
    psnr_out: Tensor
    gain: Tensor
    passes: Tensor
    jvps: Tensor


def figure4(setting: Setting) -> str:
    """Measure the output PSNR of the regression networks under attack, unbounded as in the paper.

    y = x for autoencoders, y := f(x) for the colorization. On 1,000 random test images (`limit` of them; at most 40 of
    STL-10), the first 20 of which stand for the paper's 20. Writes results.parquet (one row a sample, method, point and
    panel), figure4.json, figure4.md with the verdict on each of the paper's statements, and the figure. Returns the
    Markdown. A network that has no weights and takes long to train is left out.
    """
    from epsball.report.paper_regression import figure4_markdown, save_figure4

    parts = setting.prepare("".join(panel.key for panel in PANELS))
    records: list[dict[str, Any]] = []
    tables: list[Any] = []
    for panel in chosen(setting, PANELS):
        loaded = setting.regressor(panel.network, panel.data, panel.images(setting.limit))
        curves: dict[str, _Curve] = {}
        for name, method in panel.methods.items():
            identity = {
                **loaded.identity,
                "what": "output PSNR",
                "panel": panel.key,
                "method": repr(method),
                "at": list(panel.grid),
            }
            part = parts.get(identity, partial(_measure, setting, panel, name, loaded))
            curves[name] = _curve(part, len(panel.grid))
            tables.append(part.rows)
        records.append(_record(panel, loaded, curves))
    record = setting.record("figure4") | {"panels": records}
    text = figure4_markdown(record)
    write(setting.out, "results.parquet", concat(tables))
    write(setting.out, "figure4.json", record)
    write(setting.out, "figure4.md", text)
    save_figure4(record, setting.out / "figures")
    return text


def _measure(setting: Setting, panel: RegressionPanel, name: str, loaded: Loaded) -> Part:
    attack, x, ids = compose(panel, panel.methods[name]), loaded.images.x, loaded.images.ids
    eps = panel.eps(x[0].numel())
    advance = setting.counter(f"{name}, panel ({panel.key})", len(x))
    rows: list[list[Tensor]] = []
    started = time.perf_counter()
    for part in batches(len(x), loaded.batch_size):
        y = reference(panel, loaded.model, x[part])
        results = attack.over(loaded.model, x[part], y, eps=eps, seed=setting.seed, sample_id=ids[part])
        columns = [
            torch.stack([psnr(x[part], result.perturbed) for result in results]),
            torch.stack([psnr(y, result.outputs) for result in results]),
            torch.stack([result.gain for result in results]),
            torch.stack([result.forwards + result.backwards for result in results]),
            torch.stack([result.jvps for result in results]),
        ]
        rows.append(columns)
        advance(part.stop - part.start)
    whole = [torch.cat(column, 1) for column in zip(*rows, strict=True)]
    seconds = time.perf_counter() - started
    return Part(_table(panel, name, dict(zip(_COLUMNS, whole, strict=True)), ids), {"seconds": seconds})


def _curve(part: Part, points: int) -> _Curve:
    """Read a measured curve again."""
    columns = {key: torch.from_numpy(part.rows[key].to_numpy().copy()).reshape(points, -1) for key in _COLUMNS}
    return _Curve(part.facts["seconds"], **columns)


def _record(panel: RegressionPanel, loaded: Loaded, curves: dict[str, _Curve]) -> dict[str, Any]:
    x = loaded.images.x
    clean = None
    if panel.reference == "input":
        with torch.no_grad():
            clean = psnr(x, torch.cat([loaded.model(x[part]) for part in batches(len(x), 500)]))
    outs = {name: curve.psnr_out for name, curve in curves.items()}
    ins = {name: curve.psnr_in for name, curve in curves.items()}
    return {
        "key": panel.key,
        "title": panel.title,
        "network": panel.network,
        "weights": loaded.weights,
        "source": loaded.images.source,
        "axis": panel.axis,
        "at": panel.at(),
        "eps": panel.eps(x[0].numel()),
        "count": len(x),
        "few": min(FEW, len(x)),
        "reference": panel.reference,
        # Of y := f(x) the output without an attack is y itself.
        "clean": None if clean is None else {"mean": float(clean.mean()), "few": float(clean[:FEW].mean())},
        "curves": {
            name: _summary(curve) | {"ours": panel.methods[name].ours, "recipe": panel.methods[name].recipe}
            for name, curve in curves.items()
        },
        "claims": judge_panel(panel.key, panel.at(), outs, panel.baselines, clean=clean, ins=ins),
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


def _table(panel: RegressionPanel, name: str, measured: dict[str, Tensor], ids: Tensor) -> Any:
    import pyarrow as pa

    points, count = measured["psnr_out"].shape
    axis = torch.tensor(panel.at(), dtype=torch.float64)
    return pa.table(
        {
            "panel": pa.array([panel.key] * (points * count)).dictionary_encode(),
            "attack": pa.array([name] * (points * count)).dictionary_encode(),
            "axis": axis.repeat_interleave(count).numpy(),
            "sample_id": ids.repeat(points).numpy(),
            **{key: values.reshape(-1).numpy() for key, values in measured.items()},
        }
    )
