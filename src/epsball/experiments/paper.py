"""The paper's section 6.1 made again on real data, its values beside ours: Table 3, Figures 1 and 3 (MNIST)."""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball import data, networks
from epsball.errors import InputError
from epsball.experiments.claims import CLAIMS, Verdict, judge
from epsball.experiments.storage import write_table
from epsball.metrics import FoolingCurve, Robustness, fooling_curve, robustness
from epsball.metrics.fooling import batches, predict
from epsball.metrics.intervals import wilson_interval
from epsball.recipes import recipe

__all__ = ["METHODS", "PAPER", "Panel", "figure1", "figure3", "table3"]

Progress = Callable[[str, int, int, float], None]
Bounds = tuple[float, float] | None


@dataclass(frozen=True)
class PaperRow:
    """What the paper reports of one network (Table 3 and Figure 3)."""

    title: str
    error: float
    rho1: float
    rho2: float
    eps99: float
    grid: tuple[float, ...]


def _grid(top: float) -> tuple[float, ...]:
    return tuple(round(top * i / 10, 6) for i in range(1, 11))


PAPER = {
    "mnist-fcnn": PaperRow("FCNN (MNIST)", 1.7, 0.036, 0.034, 0.076, _grid(0.10)),
    "mnist-lenet5": PaperRow("LeNet-5 (MNIST)", 0.9, 0.077, 0.061, 0.164, _grid(0.20)),
}

#: The methods of Figure 3 under their names here, then two that the paper does not show, at the same T.
METHODS: dict[str, dict[str, Any]] = {
    "deepfool": {},
    "alg1-10": {},
    "alg1-5": {},
    "alg1": {},
    "alg2": {},
    "fgsm": {},
    "pgd-paper": {"steps": 10},
    "random-linf": {},
    "bim": {"steps": 10},
    "pgd": {"steps": 10},
}

#: The paper's experiments know no valid range; the second panel stays inside it.
RANGES: dict[str, Bounds] = {"unbounded": None, "inside [0, 1]": (0.0, 1.0)}


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

    _check_writable(out)
    rows: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {
        key: [] for key in ("network", "range", "sample_id", "correct", "distance", "relative", "r2", "passes")
    }
    for name, paper in PAPER.items():
        model, x, target, ids = _load(name, data_root, limit)
        for label, bounds in RANGES.items():
            result = robustness(
                model,
                x,
                target,
                math.inf,
                bounds=bounds,
                batch_size=batch_size,
                progress=_samples(progress, f"{name}, {label}", len(x)),
            )
            rows.append(_table3_row(name, paper, label, result))
            columns["network"] += [name] * len(x)
            columns["range"] += [label] * len(x)
            columns["sample_id"] += ids.tolist()
            columns["passes"] += (result.forwards + result.backwards).tolist()
            for key in ("correct", "distance", "relative", "r2"):
                columns[key] += getattr(result, key).tolist()
    record = {"made_by": "epsball paper table3", "seed": seed, "limit": limit, "p": "inf", "rows": rows, **_versions()}
    text = table3_markdown(record)
    _write(out, "distances.parquet", _arrow(columns))
    _write(out, "table3.json", record)
    _write(out, "table3.md", text)
    return text


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

    _check_writable(out)
    panels: list[Panel] = []
    tables: list[Any] = []
    for label, bounds in RANGES.items():
        for name, paper in PAPER.items():
            model, x, target, ids = _load(name, data_root, limit)
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
                    progress=_samples(progress, f"{method} on {name}, {label}", len(x)),
                )
                seconds[method] = time.perf_counter() - started
                tables.append(_curve_table(name, label, method, curves[method], ids))
            verdicts = tuple(judge(claim, curves) for claim in CLAIMS)
            count = next(iter(curves.values())).count
            panels.append(Panel(name, label, count, len(x), curves, seconds, verdicts))
    record = {"made_by": "epsball paper figure3", "seed": seed, "limit": limit, **_versions()}
    record["panels"] = [_panel_record(panel) for panel in panels]
    text = figure3_markdown(record)
    _write(out, "results.parquet", _concat(tables))
    _write(out, "figure3.json", record)
    _write(out, "figure3.md", text)
    save_figure3(record, out / "figures")
    return text


def figure1(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> str:
    """Show correctly classified MNIST images that Algorithm 1 makes LeNet-5 misclassify, as in Figure 1(a).

    Of each class the first test image that one step at ε = 0.1 (unbounded, as the paper) fools. Writes figure1.json and
    the figure; returns a line that says what was drawn.
    """
    from epsball.report.paper import save_figure1

    _check_writable(out)
    model, x, target, ids = _load("mnist-lenet5", data_root, limit)
    attack = recipe("alg1", p=math.inf, eps=0.1)
    found: dict[int, dict[str, Any]] = {}
    done = 0
    for rows in batches(len(x), batch_size):
        result = attack(model, x[rows], target[rows], seed=seed, sample_id=ids[rows])
        clean = predict(model, x[rows])
        for i in (result.success & (clean == target[rows])).nonzero()[:, 0].tolist():
            label = int(target[rows][i])
            if label not in found:
                found[label] = {
                    "sample_id": int(ids[rows][i]),
                    "prediction": int(result.outputs[i].argmax()),
                    "x": x[rows][i].tolist(),
                    "perturbed": result.perturbed[i].tolist(),
                }
        done += rows.stop - rows.start
        if progress is not None:
            progress("searching images", done, len(x), done / len(x))
        if len(found) == 10:
            break
    record = {"made_by": "epsball paper figure1", "eps": 0.1, "network": "mnist-lenet5", "seed": seed, **_versions()}
    record["examples"] = {str(label): found[label] for label in sorted(found)}
    _write(out, "figure1.json", record)
    save_figure1(record, out / "figures")
    return (
        f"Figure 1(a), {len(found)} images that Algorithm 1 at eps = 0.1 makes LeNet-5 misclassify: {out / 'figures'}"
    )


def _check_writable(out: Path) -> None:
    """Refuse an output folder that cannot be written before any work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"expected an output folder that can be written, got {out} ({error.strerror}).") from error


def _load(name: str, data_root: str | None, limit: int | None) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Load a shipped network and the test set that it belongs to."""
    chosen = data.load(networks.spec(name).data, split="test", data_root=data_root, limit=limit)
    if chosen.target is None:  # the paper's data sets have labels
        raise ValueError(f"{chosen.name} has no labels")
    return networks.load(name), chosen.x, chosen.target, chosen.ids


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
        "rho1": {"paper": paper.rho1, "ours": _finite(rho1), **_normal(rho1, rho1_error)},
        "rho2": {"paper": paper.rho2, "ours": _finite(rho2), **_normal(rho2, rho2_error)},
        "eps99": {
            "paper": paper.eps99,
            **{
                key: _finite(value)
                for key, value in zip(("ours", "low", "high"), (result.eps99, *result.eps99_interval), strict=True)
            },
        },
        "deepfool_fails": int((result.correct & result.distance.isinf()).sum()),
        "passes": float((result.forwards + result.backwards).double().mean()),
    }


def _normal(mean: float, error: float) -> dict[str, float | None]:
    """Return the 95 % interval of a mean."""
    spread = 1.959964 * error
    return {"low": _finite(mean - spread), "high": _finite(mean + spread)}


def _finite(value: float) -> float | None:
    """Return None for what JSON cannot say: infinity, or a value that nothing was measured for."""
    return value if math.isfinite(value) else None


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


def _write(out: Path, name: str, content: Any) -> None:
    """Write one file whole: a table as Parquet, a record as JSON, text as it is."""
    from epsball.report.style import write_atomic

    buffer = io.BytesIO()
    if name.endswith(".parquet"):
        write_table(buffer, content)
    elif name.endswith(".json"):
        buffer.write((json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())
    else:
        buffer.write(f"{content}\n".encode())
    write_atomic(out / name, buffer.getvalue())


def _concat(tables: list[Any]) -> Any:
    import pyarrow as pa

    return pa.concat_tables(tables).unify_dictionaries()


def _arrow(columns: dict[str, list[Any]]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


def _samples(progress: Progress | None, label: str, total: int) -> Callable[[int], None] | None:
    """Turn "n more samples are done" into the caller's progress."""
    if progress is None:
        return None
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(label, done, total, done / total)

    return advance


def _versions() -> dict[str, Any]:
    import epsball

    return {
        "versions": {"epsball": epsball.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    }
