"""What the page shows of a classification run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epsball.report.answer import Answer, answer, distance_answer, explain_eps, fewest_answer
from epsball.report.chart import fooling_chart
from epsball.report.examples import ExampleGrid
from epsball.report.figures import DistanceHistogram, FoolingCurves
from epsball.report.gallery import budgets, classified_gallery
from epsball.report.group_curves import FewestGroupsCurves
from epsball.report.latex import to_latex
from epsball.report.manifest import Manifest
from epsball.report.render import SHOWN_SAMPLES, Drawings, View, common
from epsball.report.rows import NORMS
from epsball.report.samples import attempts, distance_rows
from epsball.report.style import Drawing, new_figure
from epsball.report.tables import Row, fooling_table
from epsball.report.views import numbers_view, status_view, transfer_view

__all__ = ["classification_view"]

MEANINGS = {"ALREADY": "classified wrongly from the start, whatever the attack did to it"}


SHARES = (5, 10, 25, 50, 75, 90, 95)
COLUMNS = ("attack", "p", "eps", "n", "fooled", "percent", "low", "high", "median_norm")


def classification_view(folder: Path, table: Any, manifest: Manifest) -> View:
    """Return what the template shows, and the figures and tables to be saved beside the page."""
    every = fooling_table(table)
    judge = manifest.judge({row["judged_on"] for row in every})
    rows = [row for row in every if row["judged_on"] == judge]
    grid = _read_examples(folder, manifest, None)
    image = manifest.is_image or (grid is not None and grid.is_image)
    unit = "images" if image else "samples"
    found = answer(rows, unit)
    attacks = [] if grid is None else _shown(list(grid.attacks), found, 3 if image else 2)
    figures = _Figures()
    distances = figures.distances(table, manifest, rows)
    lead = distance_answer(distances[0]["display"], unit) if distances and manifest.measures else ""
    fewest = figures.fewest(table, manifest, rows, judge)
    lead = fewest_answer(fewest[0]["display"], unit) if fewest else lead
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
        "over_groups": any(row["median_groups"] is not None for row in rows),
        "numbers": numbers_view(rows),
        "transfer": transfer_view([row for row in every if row["eps"] == found.eps], judge),
        "samples": distance_rows(table, judge, _norm(found, manifest), manifest.classes),
        "norm": _norm(found, manifest),
        "statuses": status_view(table, judge, found.eps, manifest.statuses, MEANINGS),
        "curves": figures.curves(rows, manifest),
        "distances": distances,
        "fewest": fewest,
        "lead": lead,
        "gallery": figures.examples(folder, table, manifest, judge, attacks),
    }
    return View(context, figures.kept, _tables(context, manifest))


def _tables(context: Mapping[str, Any], manifest: Manifest) -> dict[str, str]:
    transfer = context["transfer"] and [row for _, cells in context["transfer"].lines for row in cells if row]
    measures = [{"measure": key, "value": value, "low": low, "high": high} for key, value, low, high in manifest.ends]
    columns = ("attack", "crafted_on", "judged_on", "eps", "n", "percent", "low", "high")
    found = {
        "fooling": to_latex(context["rows"], COLUMNS) if context["rows"] else "",
        "cost": to_latex(context["cost"]),
        "transfer": to_latex(transfer, columns) if transfer else "",
        "measures": to_latex(measures),
    }
    return {name: source for name, source in found.items() if source}


def _norm(found: Answer, manifest: Manifest) -> float:
    """Return the norm that distances are in: that of the strongest attack."""
    return manifest.p if found.strongest is None else float(found.strongest["p"])


def _read_examples(
    folder: Path, manifest: Manifest, attacks: Sequence[str] | None, place: int | None = None
) -> ExampleGrid | None:
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
        place=place,
    )


def _shown(names: Sequence[str], found: Answer, shown: int) -> list[str]:
    """Choose a few attacks for the examples: the strongest first, random noise for comparison last."""
    first = [found.strongest["attack"]] if found.strongest is not None else []
    noise = [found.noise["attack"]] if found.noise is not None else []
    others = [name for name in names if name not in first + noise and not name.startswith("random")]
    chosen = [name for name in (first + others)[: shown - len(noise)] + noise if name in names]
    return list(dict.fromkeys(chosen)) or list(names[:shown])


def _shares(display: DistanceHistogram) -> list[tuple[int, float]]:
    """Return the distances within which these shares, in percent, of all samples are fooled; inf where fewer are."""
    if not display.count:
        return []
    ordered = [*sorted(display.distances.tolist()), *([math.inf] * display.missing)]
    return [(share, ordered[max(math.ceil(share * len(ordered) / 100) - 1, 0)]) for share in SHARES]


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
        if display.one_eps:
            narrow = Drawing(display.plot(legend="below").figure, "fooling-narrow")
            wide = self.keep(display.plot().figure, "fooling")
            return {"wide": wide, "narrow": narrow.inline(), "one_eps": True}
        self.save(display.plot().figure, "fooling")
        return {"chart": fooling_chart(display), "one_eps": False}

    def distances(self, table: Any, manifest: Manifest, rows: Sequence[Row]) -> list[dict[str, Any]]:
        shown = []
        ran = {row["attack"]: row["p"] for row in rows if row["crafted_on"] == row["judged_on"]}
        for index, name in enumerate(name for name in manifest.minimal if ran.get(name) in NORMS):
            display = DistanceHistogram.from_table(table, name)
            key = f"distances-{index}"
            narrow = Drawing(display.plot(new_figure(4.6, 3.2).add_subplot()).figure, f"{key}-narrow")
            wide = self.keep(display.plot().figure, key)
            shown.append(
                {"name": name, "display": display, "wide": wide, "narrow": narrow.inline()}
                | {"shares": _shares(display)}
            )
        return shown

    def fewest(self, table: Any, manifest: Manifest, rows: Sequence[Row], judge: str) -> list[dict[str, Any]]:
        searched, shown = manifest.fewest, []
        ran = dict.fromkeys(row["attack"] for row in rows if row["crafted_on"] == judge and row["attack"] in searched)
        for index, name in enumerate(ran):
            display = FewestGroupsCurves.from_table(table, name, manifest.groups(name), judge)
            if display.n == 0:
                continue
            narrow = Drawing(
                display.plot(new_figure(4.6, 3.6).add_subplot(), legend="below").figure, f"groups-{index}-narrow"
            )
            wide = self.keep(display.plot().figure, f"groups-{index}")
            shown.append({"name": name, "display": display, "wide": wide, "narrow": narrow.inline()})
        return shown

    def examples(
        self, folder: Path, table: Any, manifest: Manifest, judge: str, attacks: Sequence[str]
    ) -> dict[str, Any] | None:
        path = folder / "examples.npz"
        if not attacks:
            return None
        places, start = budgets(path)
        grids = [grid for place in places if (grid := _read_examples(folder, manifest, attacks, place)) is not None]
        if not len(grids[start]):
            return None
        self.save(grids[start].plot()[0, 0].figure, "examples")
        shown = classified_gallery(path, grids, places, start)
        found = attempts(table, judge, [line.id for line in shown.lines], shown.attacks, manifest.classes)
        return {"shown": shown, "data": shown.data(found)}
