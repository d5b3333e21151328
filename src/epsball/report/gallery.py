"""The gallery of a page: a few samples at every budget whose perturbed inputs were kept, small enough to send on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.report.example_files import at_place, kept_budgets, load_arrays
from epsball.report.examples import ExampleGrid
from epsball.report.output_examples import OutputGrid
from epsball.report.render import picture_uri
from epsball.report.sketch import sketch
from epsball.report.text import data_text, number, printable

__all__ = ["Gallery", "Line", "Shot", "budgets", "classified_gallery", "regressed_gallery"]

BYTES = 2_600_000  # of pictures in one page, which is to stay below 5 MB with all its tables
SIDE = 128  # pixels of a picture; larger ones are thinned
FEW = 4  # samples that are worth more than further budgets
SCORES = 5


@dataclass(frozen=True)
class Shot:
    """What one attack made of one sample at one budget: pictures by kind, texts below them by kind, and whether fooled.

    scores: the classes with the highest outputs, each a name and a number; empty where outputs were not kept.
    """

    pictures: Mapping[str, str]
    texts: Mapping[str, str]
    fooled: bool = False
    scores: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """How many bytes the pictures take in the page."""
        return sum(map(len, self.pictures.values()))


@dataclass(frozen=True)
class Line:
    """One sample: itself, and a shot for each attack (outer) and each budget (inner)."""

    id: int
    original: Shot
    shots: Sequence[Sequence[Shot]]


@dataclass(frozen=True)
class Gallery:
    """Samples by attacks by budgets. start: the budget shown first. factors: by which perturbations are amplified.

    kinds: what is shown of an attack, in order. thinned: every how many-th pixel is shown. grid: that of `start`.
    """

    eps: Sequence[float]
    start: int
    attacks: Sequence[str]
    kinds: Sequence[str]
    factors: Sequence[float]
    lines: Sequence[Line]
    grid: ExampleGrid
    thinned: int = 1

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> list[str]:
        """The budgets as text."""
        return [number(eps) for eps in self.eps]

    @property
    def pixels(self) -> bool:
        """Whether pictures are so small that their pixels are to be seen."""
        return self.grid.is_image and self.grid.x.shape[-1] <= 64

    def data(self, facts: Mapping[str, Any]) -> str:
        """Return what the page's script needs as JSON; pictures that stand in the page already are left out."""
        return data_text(
            {
                "eps": self.names,
                "start": self.start,
                "attacks": list(self.attacks),
                "kinds": list(self.kinds),
                "factors": ["" if f == 1.0 else f" ×{number(f)}" for f in self.factors],
                "lines": [
                    {
                        "id": line.id,
                        "original": {"texts": line.original.texts, "scores": line.original.scores},
                        "shots": [
                            [self._shot(shot, k != self.start) for k, shot in enumerate(shots)] for shots in line.shots
                        ],
                    }
                    for line in self.lines
                ],
                **facts,
            }
        )

    @staticmethod
    def _shot(shot: Shot, pictures: bool) -> dict[str, Any]:
        return {
            "texts": shot.texts,
            "fooled": shot.fooled,
            "scores": shot.scores,
            "pictures": shot.pictures if pictures else {},
        }


def budgets(path: Path) -> tuple[list[int | None], int]:
    """Return the places of the budgets that a file keeps, and which of them the page starts with."""
    arrays = load_arrays(path)
    kept = kept_budgets(arrays)
    if len(kept) < 2:
        return [None], 0
    first = float(np.ravel(arrays["example_eps"])[0]) if arrays.get("example_eps", np.zeros(0)).size else math.nan
    return list(range(len(kept))), kept.index(first) if first in kept else len(kept) // 2


def classified_gallery(path: Path, grids: Sequence[ExampleGrid], places: Sequence[int | None], start: int) -> Gallery:
    """Return the gallery of a classifier: the perturbation, the perturbed input, and what the model sees in it."""
    first = grids[start]
    draw, thinned = _drawing(first, [grid.span(False) for grid in grids])
    stored = [at_place(load_arrays(path), place) for place in places]

    def shot(place: int, name: str, index: int) -> Shot:
        grid = grids[place]
        return Shot(
            {
                "perturbation": draw(grid, grid.perturbation(name)[index], "perturbation", None),
                "perturbed": draw(grid, grid.attacks[name].perturbed[index], "perturbed", grid.x[index]),
            },
            {"perturbed": grid.perturbed_text(name, index)},
            bool(grid.attacks[name].success[index]),
            _scores(first, stored[place].get(f"output/{name}"), index),
        )

    def original(index: int) -> Shot:
        picture = draw(first, first.x[index], "original", None)
        scores = _scores(first, stored[start].get("clean_output"), index)
        return Shot({"original": picture}, {"original": first.original_text(index)}, scores=scores)

    return _fill(first, list(first.attacks), grids, start, ("perturbation", "perturbed"), original, shot, thinned)


def regressed_gallery(grids: Sequence[OutputGrid], start: int) -> Gallery:
    """Return the gallery of a regression model: perturbation, perturbed input and output, each with its PSNR."""
    inputs = [grid.inputs for grid in grids]
    first = grids[start]
    draw, thinned = _drawing(first.inputs, [grid.span(False) for grid in inputs])
    kinds = ("perturbation", "perturbed", "output")
    outputs = _drawing(first.outputs, [grid.span(1) for grid in grids])[0]

    def cells(grid: OutputGrid, index: int, attack: str) -> Shot:
        found = [cell for cell in grid.cells(index) if cell.attack == attack]
        pictures = {
            cell.kind: (outputs(grid.outputs, cell.values, cell.kind, cell.behind))
            if cell.kind == "output"
            else draw(grid.inputs, cell.values, cell.kind, cell.behind)
            for cell in found
        }
        return Shot(pictures, {cell.kind: cell.text for cell in found if cell.text})

    return _fill(
        first.inputs,
        list(first.pushed),
        inputs,
        start,
        kinds,
        lambda index: cells(first, index, ""),
        lambda place, name, index: cells(grids[place], index, name),
        thinned,
    )


def _fill(
    first: ExampleGrid,
    attacks: Sequence[str],
    grids: Sequence[ExampleGrid],
    start: int,
    kinds: Sequence[str],
    original: Callable[[int], Shot],
    shot: Callable[[int, str, int], Shot],
    thinned: int,
) -> Gallery:
    """Take as many budgets and samples as fit: at least one of each, a few samples before further budgets."""
    one = sum(shot(start, name, 0).size for name in attacks) or 1
    room = max(1, BYTES // (one * min(FEW, len(first))))
    chosen = _spread(len(grids), start, room)
    lines: list[Line] = []
    spent = 0
    for index in range(len(first)):
        line = Line(
            int(first.sample_id[index]), original(index), [[shot(k, name, index) for k in chosen] for name in attacks]
        )
        spent += line.original.size + sum(made.size for shots in line.shots for made in shots)
        if lines and spent > BYTES:
            break
        lines.append(line)
    eps, factors = [grids[k].eps for k in chosen], [grids[k].factor for k in chosen]
    return Gallery(eps, chosen.index(start), [printable(a) for a in attacks], kinds, factors, lines, first, thinned)


def _spread(count: int, start: int, room: int) -> list[int]:
    """Choose at most `room` of so many places, evenly, `start` among them."""
    if room >= count:
        return list(range(count))
    chosen = {round(k * (count - 1) / max(room - 1, 1)) for k in range(room)} if room > 1 else {start}
    nearest = min(chosen, key=lambda k: abs(k - start))
    return sorted(chosen - {nearest} | {start})


Draw = Callable[[ExampleGrid, NDArray[np.float64], str, "NDArray[np.float64] | None"], str]


def _drawing(first: ExampleGrid, spans: Sequence[tuple[float, float]]) -> tuple[Draw, int]:
    """Return how samples like these become pictures, and every how many-th pixel these show."""
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    every = math.ceil(max(first.x.shape[2:]) / SIDE) if first.is_image else 1

    def draw(grid: ExampleGrid, values: NDArray[np.float64], kind: str, behind: NDArray[np.float64] | None) -> str:
        if not grid.is_image:
            return sketch(values, grid.span(True) if kind == "perturbation" else (low, high), kind, behind)
        if kind == "perturbation":
            values = sum(grid.limits) / 2 + grid.factor * values
        return picture_uri(grid.picture(values[:, ::every, ::every]))

    return draw, every


def _scores(grid: ExampleGrid, outputs: NDArray[Any] | None, index: int) -> tuple[tuple[str, str], ...]:
    if outputs is None or outputs.ndim != 2 or index >= len(outputs) or outputs.dtype.kind != "f":
        return ()
    order = np.argsort(-np.nan_to_num(outputs[index]), kind="stable")[:SCORES]
    return tuple((grid.class_name(int(k)), number(float(outputs[index, k]))) for k in order)
