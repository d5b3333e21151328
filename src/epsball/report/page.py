"""One self-contained page for a run folder: nothing to load, nothing to run, everything from the data escaped."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from epsball.data.optional import require
from epsball.errors import InputError
from epsball.report import style, text
from epsball.report.answer import Answer, answer, distance_answer, explain_eps
from epsball.report.examples import ExampleGrid, png
from epsball.report.figures import DistanceHistogram, FoolingCurves
from epsball.report.manifest import Manifest
from epsball.report.rows import NORMS, read_manifest, read_results
from epsball.report.tables import Row, cost_table, fooling_table, format_cell
from epsball.report.views import numbers_view, status_view, transfer_view

__all__ = ["write_page"]

SHOWN_SAMPLES = 8


def write_page(directory: str | os.PathLike[str]) -> Path:
    """Write DIR/report.html, and its figures as SVG and PNG under DIR/figures, from the rows and manifest in DIR.

    Reads results.parquet, manifest.json and, if it is there, examples.npz. The page is one file that works offline and
    without scripts; it is replaced whole or not at all. The same input gives the same bytes. Raises InputError for a
    folder without a run, with a damaged file, or that cannot be written; the first two before anything is written.
    """
    folder = Path(directory)
    table, manifest = read_results(folder), Manifest(read_manifest(folder))
    every = fooling_table(table)
    judge = manifest.judge({row["judged_on"] for row in every})
    rows = [row for row in every if row["judged_on"] == judge]
    grid = _read_examples(folder, manifest, None)
    image = manifest.is_image or (grid is not None and grid.is_image)
    unit = "images" if image else "samples"
    found = answer(rows, unit)
    if grid is not None:
        grid = _read_examples(folder, manifest, _shown(list(grid.attacks), found, 3 if image else 2))
    figures = _Figures()
    distances = figures.distances(table, manifest, rows)
    lead = distance_answer(distances[0]["display"], unit) if distances and manifest.measures else ""
    context = {
        "manifest": manifest,
        "answer": found,
        "unit": unit,
        "judge": judge,
        "explained": explain_eps(found.strongest["p"], found.eps, manifest.data_bounds, image)
        if found.strongest is not None and found.eps is not None
        else "",
        "orders": sorted({row["p"] for row in rows}),
        "clean": _clean(rows),
        "rows": rows,
        "numbers": numbers_view(rows),
        "transfer": transfer_view([row for row in every if row["eps"] == found.eps], judge),
        "cost": cost_table(table),
        "statuses": status_view(table, judge, found.eps, manifest.statuses),
        "curves": figures.curves(rows, manifest),
        "distances": distances,
        "lead": lead,
        "examples": figures.examples(grid),
        "palette": style.PALETTE,
        "noise": style.BASELINE,
        "configuration": json.dumps(manifest.configuration, indent=2, ensure_ascii=False, default=str),
    }
    page = _render(context).encode("utf-8")
    try:
        for drawing in figures.kept:
            drawing.save(folder / "figures")
        return style.write_atomic(folder / "report.html", page)
    except OSError as error:
        raise InputError(f"expected a run folder that can be written, {folder} cannot ({error}).") from error


def _read_examples(folder: Path, manifest: Manifest, attacks: Sequence[str] | None) -> ExampleGrid | None:
    path = folder / "examples.npz"
    if not path.is_file():
        return None
    return ExampleGrid.from_npz(
        path,
        attacks=attacks,
        classes=manifest.classes,
        bounds=manifest.data_bounds,
        p=manifest.p,
        limit=SHOWN_SAMPLES,
    )


def _shown(names: Sequence[str], found: Answer, shown: int) -> list[str]:
    """Choose a few attacks for the examples: the strongest first, random noise for comparison last."""
    first = [found.strongest["attack"]] if found.strongest is not None else []
    noise = [found.noise["attack"]] if found.noise is not None else []
    others = [name for name in names if name not in first + noise and not name.startswith("random")]
    chosen = [name for name in (first + others)[: shown - len(noise)] + noise if name in names]
    return list(dict.fromkeys(chosen)) or list(names[:shown])


def _clean(rows: Sequence[Row]) -> int | None:
    counts = {row["n"] for row in rows}
    return max(counts) if counts else None


class _Figures:
    """The figures of one page: inline pictures for the page, and those to be saved beside it once all is drawn."""

    def __init__(self) -> None:
        self.kept: list[style.Drawing] = []

    def curves(self, rows: Sequence[Row], manifest: Manifest) -> dict[str, Any] | None:
        display = FoolingCurves.from_rows(
            rows, data=f"{manifest.model_name} on {manifest.data_name}".removesuffix(" on ")
        )
        if not display.curves:
            return None
        narrow = style.Drawing(display.plot(legend="below").figure, "fooling-narrow")
        return {
            "wide": self._keep(display.plot().figure, "fooling"),
            "narrow": narrow.inline(),
            "one_eps": display.one_eps,
        }

    def distances(self, table: Any, manifest: Manifest, rows: Sequence[Row]) -> list[dict[str, Any]]:
        shown = []
        ran = {row["attack"]: row["p"] for row in rows if row["crafted_on"] == row["judged_on"]}
        for index, name in enumerate(name for name in manifest.minimal if ran.get(name) in NORMS):
            display = DistanceHistogram.from_table(table, name)
            key = f"distances-{index}"
            narrow = style.Drawing(display.plot(style.new_figure(4.6, 3.2).add_subplot()).figure, f"{key}-narrow")
            wide = self._keep(display.plot().figure, key)
            shown.append({"name": name, "display": display, "wide": wide, "narrow": narrow.inline()})
        return shown

    def examples(self, grid: ExampleGrid | None) -> dict[str, Any] | None:
        if grid is None or not len(grid) or not grid.attacks:
            return None
        svg = self._keep(grid.plot()[0, 0].figure, "examples")
        lines = [_example_line(grid, index) for index in range(len(grid))] if grid.is_image else []
        return {"grid": grid, "svg": svg, "lines": lines}

    def _keep(self, figure: Any, name: str) -> str:
        self.kept.append(style.Drawing(figure, name))
        return self.kept[-1].inline()


def _example_line(grid: ExampleGrid, index: int) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for name in grid.attacks:
        cells.append({"name": name, "kind": "perturbation", "src": _uri(grid.amplified(name, index)), "text": ""})
        picture = _uri(grid.picture(grid.attacks[name].perturbed[index]))
        text = grid.perturbed_text(name, index)
        fooled = bool(grid.attacks[name].success[index])
        cells.append({"name": name, "kind": "perturbed", "src": picture, "text": text, "fooled": fooled})
    original = {"src": _uri(grid.picture(grid.x[index])), "text": grid.original_text(index)}
    return {"id": int(grid.sample_id[index]), "original": original, "cells": cells}


def _uri(picture: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def _render(context: dict[str, Any]) -> str:
    jinja2 = require("jinja2", "jinja2", "writing the report")
    markup = require("markupsafe", "markupsafe", "writing the report").Markup

    def shown(value: Any) -> Any:
        # Every value passes here on its way out; only what this package drew itself is markup and stays as it is.
        return value if isinstance(value, markup) or not isinstance(value, str) else text.printable(value)

    environment = jinja2.Environment(
        autoescape=True, finalize=shown, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"count": text.count, "number": text.number}
    environment.globals |= {
        "drawn": markup,
        "norm_name": text.norm_name,
        "share": text.share,
        "cell": format_cell,
        "inf": float("inf"),
    }
    source = resources.files("epsball.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return str(environment.from_string(source).render(context))
