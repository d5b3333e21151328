"""Samples of a regression run before and after: input, perturbation, perturbed input, and the model's outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError
from epsball.report.example_files import at_place, limits_of, load_arrays
from epsball.report.examples import ExampleGrid
from epsball.report.style import INK, MUTED, PALETTE, new_figure, tidy
from epsball.report.text import decibels, lines, number

__all__ = ["Cell", "OutputGrid", "Pushed"]


@dataclass(frozen=True, eq=False)
class Pushed:
    """What one attack did: output (N, *O) at the perturbed input; psnr_in, psnr_out (N,) in dB, NaN where unknown."""

    output: NDArray[np.float64]
    psnr_in: NDArray[np.float64]
    psnr_out: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a line: what it shows, of which attack ("" for the original), its values, and the text below."""

    kind: str
    attack: str
    values: NDArray[np.float64]
    text: str
    behind: NDArray[np.float64] | None = None  # what a line is drawn in front of


@dataclass(frozen=True, eq=False)
class OutputGrid:
    """Some samples with the model's outputs (N, *O); inputs: the samples and what each attack made of them."""

    inputs: ExampleGrid
    output: NDArray[np.float64]
    reference: NDArray[np.float64]
    clean_psnr: NDArray[np.float64]
    pushed: Mapping[str, Pushed]
    limits: tuple[float, float]

    @classmethod
    def from_npz(
        cls,
        path: str | os.PathLike[str],
        *,
        attacks: Sequence[str] | None = None,
        bounds: Sequence[float] | None = None,
        limit: int = 8,
        place: int | None = None,
    ) -> OutputGrid:
        """Read the examples.npz of a regression run; as `ExampleGrid.from_npz`, InputError for what does not fit."""
        inputs = ExampleGrid.from_npz(path, attacks=attacks, bounds=bounds, limit=limit, place=place)
        arrays = at_place(load_arrays(Path(path)), place)
        n = len(inputs)

        def rows(key: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
            values = arrays.get(key)
            if values is None or values.ndim < 1 or len(values[:limit]) != n or values.dtype.kind not in "fiu":
                raise InputError(f"{path}: expected an array {key!r} with one entry for each of {n} samples.")
            if shape is not None and values.shape[1:] != shape:
                raise InputError(f"{path}: {key} has samples of shape {values.shape[1:]}, expected {shape}.")
            return np.asarray(values[:limit], dtype=np.float64)

        output = rows("clean_output")
        shape = output.shape[1:]
        pushed = {
            name: Pushed(rows(f"output/{name}", shape), rows(f"psnr_in/{name}", ()), rows(f"psnr_out/{name}", ()))
            for name in inputs.attacks
        }
        reference = rows("target", shape)
        same = shape == inputs.x.shape[1:]  # outputs in the space of the input are shown on its scale
        limits = inputs.limits if same else limits_of(reference, None)
        return cls(inputs, output, reference, rows("clean_psnr", ()), pushed, limits)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def shows_pictures(self) -> bool:
        """Whether inputs and outputs are both images."""
        return self.inputs.is_image and self.outputs.is_image

    @property
    def outputs(self) -> ExampleGrid:
        """The outputs without a perturbation, as samples to be drawn."""
        return replace(self.inputs, x=self.output, attacks={}, limits=self.limits)

    def cells(self, index: int) -> Iterator[Cell]:
        """Yield the cells of one sample's line, in the order of `heads`."""
        behind = self.reference[index]
        x = self.inputs.x[index]
        yield Cell("original", "", x, "")
        yield Cell("output", "", self.output[index], decibels(self.clean_psnr[index]), behind)
        for name, made in self.pushed.items():
            yield Cell("perturbation", name, self.inputs.perturbation(name)[index], "")
            perturbed = self.inputs.attacks[name].perturbed[index]
            yield Cell("perturbed", name, perturbed, decibels(made.psnr_in[index]), x)
            yield Cell("output", name, made.output[index], decibels(made.psnr_out[index]), behind)

    @property
    def heads(self) -> list[str]:
        """What stands over each column."""
        amplified = "" if self.inputs.factor == 1.0 else f" ×{number(self.inputs.factor)}"
        found = ["original", "its output"]
        for name in self.pushed:
            found += [f"{lines(name, 16, 1)}:\n{part}" for part in (f"perturbation{amplified}", "perturbed", "output")]
        return found

    def picture(self, cell: Cell) -> NDArray[np.uint8]:
        """Return a cell of an image as an RGB picture (H, W, 3)."""
        if cell.kind == "output":
            return self.outputs.picture(cell.values)
        if cell.kind == "perturbation":
            return self.inputs.picture(sum(self.inputs.limits) / 2 + self.inputs.factor * cell.values)
        return self.inputs.picture(cell.values)

    def is_picture(self, cell: Cell) -> bool:
        """Whether a cell is drawn as an image, and not as a line over its entries."""
        return self.outputs.is_image if cell.kind == "output" else self.inputs.is_image

    def plot(self, axes: Any = None) -> Any:
        """Draw on a (N, 2 + 3 x attacks) array of Axes, or on a new figure, and return that array."""
        columns, count = 2 + 3 * len(self.pushed), max(len(self), 1)
        if axes is None:
            wide, high = (1.3, 1.6) if self.shows_pictures else (1.9, 1.35)
            axes = new_figure(wide * columns, high * count + 0.7).subplots(count, columns, squeeze=False)
        axes = np.asarray(axes, dtype=object).reshape(-1, columns)
        if len(axes) < len(self):
            raise InputError(f"expected {len(self)} x {columns} Axes for this grid, got {len(axes)} rows.")
        for ax, head in zip(axes[0], self.heads, strict=True):
            ax.set_title(head, fontsize=9, color=INK)
        spans = [self.span(column) for column in range(columns)]
        for index in range(len(self)):
            for ax, cell, span in zip(axes[index], self.cells(index), spans, strict=True):
                self._draw(ax, cell, span)
        for ax in axes[len(self) :].ravel():
            ax.set_axis_off()
        return axes

    def _draw(self, ax: Any, cell: Cell, span: tuple[float, float]) -> None:
        if self.is_picture(cell):
            ax.imshow(self.picture(cell), interpolation="nearest")
            ax.set_axis_off()
            ax.text(0.5, -0.05, cell.text, transform=ax.transAxes, ha="center", va="top", fontsize=9, color=INK)
            return
        tidy(ax)
        ax.set_xlabel(cell.text, fontsize=9, color=INK)
        ax.tick_params(labelsize=8, labelbottom=False, length=0)
        ax.set_ylim(*span)
        flat = cell.values.reshape(-1)
        marker = "o" if flat.size <= 20 else None  # of a few entries a line alone shows little, of one nothing
        if cell.kind == "perturbation":
            ax.axhline(0.0, color=MUTED, linewidth=0.8)
        if cell.behind is not None:
            ax.plot(cell.behind.reshape(-1), color=MUTED, linewidth=1.2, linestyle=":", marker=marker, markersize=3)
        colour = PALETTE[{"perturbation": 1, "output": 2}.get(cell.kind, 0)][0]
        ax.plot(flat, color=colour, linewidth=1.4, marker=marker, markersize=3)

    def span(self, column: int) -> tuple[float, float]:
        """Return the range of the lines in a column: one for all columns of a kind, so that sizes compare."""
        lines_ = [list(self.cells(index)) for index in range(len(self))]
        kind = lines_[0][column].kind if lines_ else ""
        alike = ("original", "perturbed") if kind in ("original", "perturbed") else (kind,)
        cells = [cell for line in lines_ for cell in line if cell.kind in alike]
        parts = [part.reshape(-1) for cell in cells for part in (cell.values, cell.behind) if part is not None]
        values = np.concatenate(parts or [np.zeros(1)])
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if kind == "perturbation":
            high = max(abs(low), abs(high))
            low = -high
        room = 0.06 * (high - low)
        room = room if room > 0 and math.isfinite(room) else 1.0
        return low - room, high + room
