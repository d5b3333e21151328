"""What the page shows of a classification run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epsball.report.answer import Answer, answer, distance_answer, explain_eps
from epsball.report.examples import ExampleGrid
from epsball.report.figures import DistanceHistogram, FoolingCurves
from epsball.report.manifest import Manifest
from epsball.report.render import SHOWN_SAMPLES, Drawings, common, picture_uri
from epsball.report.rows import NORMS
from epsball.report.style import Drawing, new_figure
from epsball.report.tables import Row, fooling_table
from epsball.report.views import numbers_view, status_view, transfer_view

__all__ = ["classification_view"]

MEANINGS = {"ALREADY": "classified wrongly from the start, whatever the attack did to it"}


def classification_view(folder: Path, table: Any, manifest: Manifest) -> tuple[dict[str, Any], list[Drawing]]:
    """Return what the template shows, and the figures to be saved beside the page."""
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
    context = common(manifest, table) | {
        "regression": False,
        "answer": found,
        "unit": unit,
        "judge": judge,
        "explained": explain_eps(
            *(found.strongest["p"], found.eps, manifest.data_bounds, image),
            manifest.groups(found.strongest["attack"]),
        )
        if found.strongest is not None and found.eps is not None
        else "",
        "orders": sorted({row["p"] for row in rows}),
        "clean": _clean(rows),
        "rows": rows,
        "numbers": numbers_view(rows),
        "transfer": transfer_view([row for row in every if row["eps"] == found.eps], judge),
        "statuses": status_view(table, judge, found.eps, manifest.statuses, MEANINGS),
        "curves": figures.curves(rows, manifest),
        "distances": distances,
        "lead": lead,
        "examples": figures.examples(grid),
    }
    return context, figures.kept


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


class _Figures(Drawings):
    """The figures of a classification page."""

    def curves(self, rows: Sequence[Row], manifest: Manifest) -> dict[str, Any] | None:
        display = FoolingCurves.from_rows(
            rows, data=f"{manifest.model_name} on {manifest.data_name}".removesuffix(" on ")
        )
        if not display.curves:
            return None
        narrow = Drawing(display.plot(legend="below").figure, "fooling-narrow")
        return {
            "wide": self.keep(display.plot().figure, "fooling"),
            "narrow": narrow.inline(),
            "one_eps": display.one_eps,
        }

    def distances(self, table: Any, manifest: Manifest, rows: Sequence[Row]) -> list[dict[str, Any]]:
        shown = []
        ran = {row["attack"]: row["p"] for row in rows if row["crafted_on"] == row["judged_on"]}
        for index, name in enumerate(name for name in manifest.minimal if ran.get(name) in NORMS):
            display = DistanceHistogram.from_table(table, name)
            key = f"distances-{index}"
            narrow = Drawing(display.plot(new_figure(4.6, 3.2).add_subplot()).figure, f"{key}-narrow")
            wide = self.keep(display.plot().figure, key)
            shown.append({"name": name, "display": display, "wide": wide, "narrow": narrow.inline()})
        return shown

    def examples(self, grid: ExampleGrid | None) -> dict[str, Any] | None:
        if grid is None or not len(grid) or not grid.attacks:
            return None
        svg = self.keep(grid.plot()[0, 0].figure, "examples")
        lines = [_example_line(grid, index) for index in range(len(grid))] if grid.is_image else []
        return {"grid": grid, "svg": svg, "lines": lines}


def _example_line(grid: ExampleGrid, index: int) -> dict[str, Any]:
    cells: list[dict[str, Any]] = []
    for name in grid.attacks:
        cells.append(
            {"name": name, "kind": "perturbation", "src": picture_uri(grid.amplified(name, index)), "text": ""}
        )
        picture = picture_uri(grid.picture(grid.attacks[name].perturbed[index]))
        text = grid.perturbed_text(name, index)
        fooled = bool(grid.attacks[name].success[index])
        cells.append({"name": name, "kind": "perturbed", "src": picture, "text": text, "fooled": fooled})
    original = {"src": picture_uri(grid.picture(grid.x[index])), "text": grid.original_text(index)}
    return {"id": int(grid.sample_id[index]), "original": original, "cells": cells}
