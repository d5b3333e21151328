"""Samples before and after: original, perturbation (amplified) and perturbed input, for people to look at."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError, unknown_name
from epsball.report.example_files import at_place, limits_of, load_arrays, samples_of
from epsball.report.style import INK, MUTED, PALETTE, new_figure, tidy
from epsball.report.text import lines, number, printable

__all__ = ["Attacked", "ExampleGrid"]


@dataclass(frozen=True, eq=False)
class Attacked:
    """What one attack made of the samples: perturbed (N, *S), prediction (N,) or None, success (N,)."""

    perturbed: NDArray[np.float64]
    prediction: NDArray[np.int64] | None
    success: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ExampleGrid:
    """Some samples (N, *S) and what each attack made of them; images are (C, H, W) with 1 or 3 channels.

    limits: the range that black and white stand for. factor: how much perturbations are amplified where they are
    shown, one for all, so that attacks compare; mid-grey is zero.
    """

    sample_id: NDArray[np.int64]
    x: NDArray[np.float64]
    attacks: Mapping[str, Attacked]
    target: NDArray[np.int64] | None = None
    clean_prediction: NDArray[np.int64] | None = None
    eps: float = math.nan
    classes: tuple[str, ...] = ()
    limits: tuple[float, float] = (0.0, 1.0)
    p: float = math.inf

    @classmethod
    def from_npz(
        cls,
        path: str | os.PathLike[str],
        *,
        attacks: Sequence[str] | None = None,
        classes: Sequence[Any] = (),
        bounds: Sequence[float] | None = None,
        p: float = math.inf,
        limit: int = 8,
        place: int | None = None,
    ) -> ExampleGrid:
        """Read the examples.npz of a run; never unpickles.

        attacks: which ones and in which order, all by default. bounds: the range to show, that of x by default.
        p: the norm in which eps is meant. limit: at most so many samples. place: which of the budgets of
        `kept_budgets`; None for the one that every file has. Raises InputError for a file that is absent or damaged,
        for arrays that do not fit together, and for an attack that the file does not hold.
        """
        arrays = at_place(load_arrays(Path(path)), place)
        stored = [name.removeprefix("perturbed/") for name in arrays if name.startswith("perturbed/")]
        for name in attacks or ():
            if name not in stored:
                raise unknown_name("attack", name, stored)
        x = np.asarray(samples_of(arrays, path)[:limit], dtype=np.float64)

        def rows(key: str, dtype: type) -> NDArray[Any] | None:
            values = arrays.get(key)
            if values is None or values.ndim != 1 or len(values[:limit]) != len(x) or values.dtype.kind not in "biuf":
                return None
            return np.asarray(np.nan_to_num(values[:limit], nan=-1), dtype=dtype)

        made = {}
        for name in stored if attacks is None else attacks:
            perturbed = np.asarray(arrays[f"perturbed/{name}"][:limit], dtype=np.float64)
            if perturbed.shape != x.shape:
                raise InputError(
                    f"{path}: perturbed/{name} has shape {perturbed.shape}, expected that of x, {x.shape}."
                )
            success = rows(f"success/{name}", bool)
            none = np.zeros(len(x), dtype=bool)
            made[name] = Attacked(perturbed, rows(f"prediction/{name}", np.int64), none if success is None else success)
        ids = rows("sample_id", np.int64)
        return cls(
            sample_id=np.arange(len(x)) if ids is None else ids,
            x=x,
            attacks=made,
            target=rows("target", np.int64),
            clean_prediction=rows("clean_prediction", np.int64),
            eps=float(np.ravel(arrays["example_eps"])[0]) if arrays.get("example_eps", x[:0]).size else math.nan,
            classes=tuple(printable(name) for name in classes),
            limits=limits_of(x, bounds),
            p=p,
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_image(self) -> bool:
        """Whether samples are shown as images, and not as lines over their entries."""
        return self.x.ndim == 4 and self.x.shape[1] in (1, 3) and min(self.x.shape[2:]) > 1

    @property
    def factor(self) -> float:
        """What perturbations are multiplied by in pictures, so that the largest entry fills the range; 1 for lines."""
        if not self.is_image:
            return 1.0
        largest = max((float(np.abs(self.perturbation(name)).max(initial=0.0)) for name in self.attacks), default=0.0)
        exact = (self.limits[1] - self.limits[0]) / 2 / largest if largest > 0 else 1.0
        if not math.isfinite(exact) or exact <= 0:
            return 1.0
        # One digit, rounded down, so that nothing is cut off; the hair is for 0.5 / 0.1 in floating point.
        unit = 10.0 ** math.floor(math.log10(exact))
        return math.floor(exact / unit * (1 + 1e-6)) * unit

    def perturbation(self, attack: str) -> NDArray[np.float64]:
        """Return perturbed - x, (N, *S)."""
        return self.attacks[attack].perturbed - self.x

    def picture(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return one sample (C, H, W) as an RGB picture (H, W, 3); what lies outside `limits` is cut off."""
        low, high = self.limits
        unit = np.clip((np.nan_to_num(values) - low) / (high - low), 0.0, 1.0)
        colour = np.broadcast_to(np.moveaxis(unit, 0, -1), (*values.shape[1:], 3))
        return np.round(colour * 255).astype(np.uint8)

    def amplified(self, attack: str, index: int) -> NDArray[np.uint8]:
        """Return one perturbation, times `factor`, as an RGB picture around mid-grey."""
        centre = sum(self.limits) / 2
        return self.picture(centre + self.factor * self.perturbation(attack)[index])

    def class_name(self, index: int) -> str:
        """Name a class: its name where it is known, else its number."""
        return self.classes[index] if 0 <= index < len(self.classes) else str(index) if index >= 0 else "–"

    def original_text(self, index: int) -> str:
        """Say what the model sees in the original, and what it is where that differs."""
        if self.clean_prediction is None:
            return ""
        seen = self.class_name(int(self.clean_prediction[index]))
        wrong = self.target is not None and self.target[index] != self.clean_prediction[index]
        return f"{seen} (is {self.class_name(int(self.target[index]))})" if wrong and self.target is not None else seen

    def perturbed_text(self, attack: str, index: int) -> str:
        """Say what the model sees in the perturbed input, and whether it was fooled."""
        made = self.attacks[attack]
        seen = "" if made.prediction is None else self.class_name(int(made.prediction[index]))
        end = "fooled" if made.success[index] else "beyond eps" if self._beyond(attack, index) else "stands"
        return f"{seen}, {end}".removeprefix(", ")

    def _beyond(self, attack: str, index: int) -> bool:
        # A minimal-norm attack has no budget: it changes the class with a perturbation that may be larger than eps.
        size = np.linalg.norm(self.perturbation(attack)[index].reshape(-1), ord=self.p)
        return bool(size > self.eps * (1 + 1e-6))

    def plot(self, axes: Any = None) -> Any:
        """Draw on a (N, 1 + 2 x attacks) array of Axes, or on a new figure, and return that array.

        Columns: the original, then for each attack its perturbation (amplified) and the perturbed input.
        """
        columns = 1 + 2 * len(self.attacks)
        if axes is None:
            wide, high = (1.45, 1.75) if self.is_image else (2.2, 1.35)
            figure = new_figure(wide * columns, high * max(len(self), 1) + 0.7)
            axes = figure.subplots(max(len(self), 1), columns, squeeze=False)
        axes = np.asarray(axes, dtype=object).reshape(-1, columns)
        if len(axes) < len(self):
            raise InputError(f"expected {len(self)} x {columns} Axes for this grid, got {len(axes)} rows.")
        amplified = "" if self.factor == 1.0 else f" ×{number(self.factor)}"
        heads = ["original"]
        for name in self.attacks:
            heads += [f"{lines(name, 16, 1)}:\nperturbation{amplified}", f"{lines(name, 16, 1)}:\nperturbed"]
        for ax, head in zip(axes[0], heads, strict=True):
            ax.set_title(head, fontsize=9.5, color=INK)
        for index in range(len(self)):
            self._row(axes[index], index)
        for ax in axes[len(self) :].ravel():
            ax.set_axis_off()
        return axes

    def _row(self, row: Any, index: int) -> None:
        self._cell(row[0], index, "original", "", self.original_text(index))
        for place, name in enumerate(self.attacks):
            self._cell(row[1 + 2 * place], index, "perturbation", name, "")
            self._cell(row[2 + 2 * place], index, "perturbed", name, self.perturbed_text(name, index))

    def _cell(self, ax: Any, index: int, kind: str, attack: str, text: str) -> None:
        added = kind == "perturbation"
        values = (
            self.x if kind == "original" else self.attacks[attack].perturbed if not added else self.perturbation(attack)
        )
        if self.is_image:
            ax.imshow(self.amplified(attack, index) if added else self.picture(values[index]), interpolation="nearest")
            ax.set_axis_off()  # which leaves out the axis label too, and saves most of the time of drawing
            ax.text(0.5, -0.05, lines(text, 16), transform=ax.transAxes, ha="center", va="top", fontsize=9.5, color=INK)
            return
        tidy(ax)
        ax.set_xlabel(lines(text, 16), fontsize=9.5, color=INK)
        ax.tick_params(labelsize=8, labelbottom=False, length=0)
        ax.set_ylim(*self.span(added))
        if added:
            ax.axhline(0.0, color=MUTED, linewidth=0.8)
        elif kind == "perturbed":
            ax.plot(self.x[index].reshape(-1), color=MUTED, linewidth=1.2, linestyle=":")
        ax.plot(values[index].reshape(-1), color=PALETTE[1 if added else 0][0], linewidth=1.4)

    def span(self, perturbations: bool) -> tuple[float, float]:
        """Return the range of lines: of all perturbations, around zero, or of all samples before and after."""
        # One scale for all samples and attacks, so that sizes compare.
        parts = [self.perturbation(n) if perturbations else self.attacks[n].perturbed for n in self.attacks]
        values = np.concatenate(
            [part.reshape(-1) for part in parts + ([] if perturbations else [self.x])] or [np.zeros(1)]
        )
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if perturbations:
            high = max(abs(low), abs(high))
            low = -high
        room = 0.06 * (high - low) or 1.0
        return low - room, high + room
