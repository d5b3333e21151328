"""What becomes of the perturbed inputs, which are too many to keep: a few examples, or a file on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from epsball.engines.local import Array, Outcome, Work
from epsball.experiments.grid import within
from epsball.experiments.storage import Archive

__all__ = ["Examples", "PerturbedFile"]

COUNT = 8


@dataclass
class Examples:
    """A few samples and what each attack made of them: correctly classified ones, as different as labels can tell.

    positions: increasing, within the run's samples. eps: at which they are shown, inf for attacks without a limit.
    """

    positions: Array
    eps: float
    kept: dict[str, list[dict[str, Array]]] = field(default_factory=dict)

    @classmethod
    def choose(cls, labels: Array, wanted: Array, eps: float) -> Examples:
        """Choose the first wanted sample of each label, then further ones up to the count; both (N,), wanted bool."""
        fit = np.flatnonzero(wanted)
        firsts = fit[np.unique(labels[fit], return_index=True)[1]]
        order = np.concatenate([np.sort(firsts), np.setdiff1d(fit, firsts)])
        return cls(np.sort(order[:COUNT]), eps)

    def take(self, outcome: Outcome) -> None:
        """Keep the examples of one batch; batches of an attack come in order."""
        arrays, rows = outcome.kept[self.eps].arrays, outcome.job.rows
        index = self.positions[(self.positions >= rows.start) & (self.positions < rows.stop)] - rows.start
        self.kept.setdefault(outcome.job.name, []).append({name: array[index] for name, array in arrays.items()})

    def arrays(self, work: Work, eps: float) -> Iterator[tuple[str, Array]]:
        """Yield the arrays of examples.npz; eps: the budget within which a perturbation without a limit counts."""
        for name, values in _given(work).items():
            yield name, values[self.positions]
        yield "example_eps", np.asarray(eps, dtype=np.float64)
        for attack, parts in self.kept.items():
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            norm = whole.pop("norm", None)
            if norm is not None and not work.eps:
                whole["success"] = whole["success"] & within(norm, eps, work.x.dtype)
            for name, values in whole.items():
                yield f"{name}/{attack}", values


class PerturbedFile:
    """perturbed.npz: every perturbed input at one eps, written batch by batch; whole when the context is left."""

    def __init__(self, path: Path, work: Work, eps: float) -> None:
        self._archive, self._eps, self._count = Archive(path), eps, len(work.x)
        self._small: dict[str, list[Array]] = {}
        self._archive.write((_given(work) | {"eps": np.asarray(eps, np.float64)}).items())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._archive.write((name, np.concatenate(parts)) for name, parts in self._small.items())
        self._archive.__exit__(kind, error, trace)

    def take(self, outcome: Outcome) -> None:
        """Write one batch; batches of an attack come in order, one attack after another."""
        arrays, attack = outcome.kept[self._eps].arrays, outcome.job.name
        self._archive.append(f"perturbed/{attack}", arrays["perturbed"], self._count)
        for name in ("prediction", "success", "gain", "psnr_in", "psnr_out"):
            if name in arrays:
                self._small.setdefault(f"{name}/{attack}", []).append(arrays[name])


def _given(work: Work) -> dict[str, Array]:
    """Return what is known of every sample without an attack."""
    given = {"sample_id": work.sample_id.numpy(), "x": work.x.numpy(), "target": work.target.numpy()}
    if work.regression is None:
        (own, *_) = work.clean.values()
        return given | {"clean_prediction": own.numpy()}
    found = work.regression
    return given | {"clean_output": found.output.numpy(), "clean_psnr": found.quality.numpy()}
