"""What the page shows of a regression run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epsball.report.answer import explain_eps
from epsball.report.chart import quality_chart
from epsball.report.gallery import budgets, regressed_gallery
from epsball.report.latex import to_latex
from epsball.report.manifest import Fact, Manifest
from epsball.report.output_examples import OutputGrid
from epsball.report.quality import QualityAnswer, is_noise, psnr_table, psnr_view, quality_answer
from epsball.report.quality_figures import PsnrCurves
from epsball.report.render import SHOWN_SAMPLES, Drawings, View, common
from epsball.report.samples import attempts, output_rows
from epsball.report.tables import Row
from epsball.report.text import decibels, number
from epsball.report.views import status_view

__all__ = ["regression_view"]

REFERENCES = {
    "input": ("the input itself", "since the model was made to give back what goes in"),
    "output": ("the model's own output without a perturbation", "since the true one is not known"),
    "data": ("the true output", "which comes with the data"),
}
MEANINGS = {
    "SUCCESS": "the output differs from its reference",
    "ALREADY": "nothing was changed; the output differs from its reference by itself",
    "STANDS": "the output is its reference, to the last digit",
}


COLUMNS = ("attack", "p", "eps", "n", *(f"psnr_{side}{end}" for side in ("out", "in") for end in ("", "_low", "_high")))


def regression_view(folder: Path, table: Any, manifest: Manifest) -> View:
    """Return what the template shows, and the figures and tables to be saved beside the page."""
    rows = psnr_table(table)
    judge = manifest.judge({str(name) for name in table["judged_on"].to_pylist() if name})
    grid = _read_examples(folder, manifest, None)
    image = manifest.is_image or (grid is not None and grid.inputs.is_image)
    unit = "images" if image else "samples"
    clean = _clean(manifest)
    found = quality_answer(rows, clean, unit)
    attacks = [] if grid is None else _shown(list(grid.pushed), found, 3 if grid.shows_pictures else 2)
    p = found.strongest["p"] if found.strongest is not None else manifest.p
    groups = manifest.groups(found.strongest["attack"]) if found.strongest is not None else ""
    figures = Drawings()
    context = common(manifest, table) | {
        "regression": True,
        "transfer": None,
        "answer": found,
        "unit": unit,
        "explained": "" if found.eps is None else explain_eps(p, found.eps, manifest.data_bounds, image, groups),
        "clean": clean,
        "reference": REFERENCES.get(manifest.text("reference"), ("the reference output", "")),
        "peaks": _peaks(manifest),
        "rows": rows,
        "numbers": psnr_view(rows),
        "orders": sorted({row["p"] for row in rows}),
        "unmeasured": max((row["unmeasured"] for row in rows), default=0),
        "statuses": status_view(table, judge, found.eps, manifest.statuses, MEANINGS),
        "curves": _curves(figures, rows, clean, manifest, unit),
        "noise_run": any(is_noise(row) for row in rows),
        "samples": output_rows(table, judge, found.eps) if found.eps is not None else ([], 0),
        "gallery": _examples(figures, folder, table, manifest, judge, attacks),
        "db": decibels,
    }
    tables = {"psnr": to_latex(rows, COLUMNS), "cost": to_latex(context["cost"])} if rows else {}
    return View(context, figures.kept, tables)


def _clean(manifest: Manifest) -> float | None:
    """Return the mean output PSNR without a perturbation, as the run wrote it down."""
    entry = manifest.part("clean").get("psnr_out")
    value = entry.get("value") if isinstance(entry, Mapping) else None
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _peaks(manifest: Manifest) -> list[Fact]:
    """Name the ranges that the two PSNRs refer to."""
    facts = (("the input", "psnr_peak"), ("the output", "psnr_peak_out"))
    values = ((what, manifest.content.get(key)) for what, key in facts)
    return [(what, number(value)) for what, value in values if isinstance(value, int | float)]


def _read_examples(
    folder: Path, manifest: Manifest, attacks: Sequence[str] | None, place: int | None = None
) -> OutputGrid | None:
    path = folder / "examples.npz"
    if not path.is_file():
        return None
    return OutputGrid.from_npz(path, attacks=attacks, bounds=manifest.data_bounds, limit=SHOWN_SAMPLES, place=place)


def _shown(names: Sequence[str], found: QualityAnswer, shown: int) -> list[str]:
    """Choose a few attacks for the examples: the strongest first, random noise for comparison last."""
    first = [found.strongest["attack"]] if found.strongest is not None else []
    noise = [found.noise["attack"]] if found.noise is not None else []
    others = [name for name in names if name not in first + noise and not name.startswith("random")]
    chosen = [name for name in (first + others)[: max(1, shown - len(noise) - 1)] + noise if name in names]
    return list(dict.fromkeys(chosen)) or list(names[:shown])


def _curves(
    figures: Drawings, rows: Sequence[Row], clean: float | None, manifest: Manifest, unit: str
) -> list[dict[str, Any]] | None:
    title = f"{manifest.model_name} on {manifest.data_name} {unit}" if manifest.data_name else manifest.model_name
    display = PsnrCurves.from_rows(rows, clean=clean, data=title)
    if not display.curves:
        return None
    shown = []
    for over, name in (("psnr_in", "output-psnr"), ("eps", "output-psnr-eps")):
        figures.save(display.plot(over=over).figure, name)
        shown.append({"over": over, "chart": quality_chart(display, over)})
    return shown


def _examples(
    figures: Drawings, folder: Path, table: Any, manifest: Manifest, judge: str, attacks: Sequence[str]
) -> dict[str, Any] | None:
    if not attacks:
        return None
    places, start = budgets(folder / "examples.npz")
    grids = [grid for place in places if (grid := _read_examples(folder, manifest, attacks, place)) is not None]
    if not len(grids[start]):
        return None
    figures.save(grids[start].plot()[0, 0].figure, "examples")
    shown = regressed_gallery(grids, start)
    found = attempts(table, judge, [line.id for line in shown.lines], shown.attacks)
    return {"shown": shown, "data": shown.data(found), "grid": grids[start]}
