"""What becomes of the perturbed inputs, which are too many to keep: a few examples, or a file on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from epsball.engines.local import Array, Kept, Outcome, Work
from epsball.experiments.grid import within
from epsball.experiments.storage import Archive

__all__ = ["Examples", "PerturbedFile"]

COUNT = 8


@dataclass
class Examples:
    """A few correctly classified samples, of different classes as far as there are, and what each attack made of them.

    positions: increasing, within the run's samples. eps: at which they are shown, inf for attacks without a limit.
    """

    positions: Array
    eps: float
    kept: dict[str, list[Kept]] = field(default_factory=dict)

    @classmethod
    def choose(cls, target: Array, clean: Array, eps: float) -> Examples:
        """Choose the first correctly classified sample of each class, then further ones up to the count."""
        correct = np.flatnonzero(clean == target)
        firsts = correct[np.unique(target[correct], return_index=True)[1]]
        order = np.concatenate([np.sort(firsts), np.setdiff1d(correct, firsts)])
        return cls(np.sort(order[:COUNT]), eps)

    def take(self, outcome: Outcome) -> None:
        """Keep the examples of one batch; batches of an attack come in order."""
        kept, rows = outcome.kept[self.eps], outcome.job.rows
        index = self.positions[(self.positions >= rows.start) & (self.positions < rows.stop)] - rows.start
        part = Kept(kept.perturbed[index], kept.prediction[index], kept.success[index], kept.norm[index])
        self.kept.setdefault(outcome.job.name, []).append(part)

    def arrays(self, work: Work, clean: Array, eps: float) -> Iterator[tuple[str, Array]]:
        """Yield the arrays of examples.npz; eps: the budget within which a perturbation without a limit counts."""
        for name, values in (("sample_id", work.sample_id), ("x", work.x), ("target", work.target)):
            yield name, values.numpy()[self.positions]
        yield "clean_prediction", clean[self.positions]
        yield "example_eps", np.asarray(eps, dtype=np.float64)
        for name, parts in self.kept.items():
            success = np.concatenate([part.success for part in parts])
            if not work.eps:
                success = success & within(np.concatenate([part.norm for part in parts]), eps, work.x.dtype)
            yield f"perturbed/{name}", np.concatenate([part.perturbed for part in parts])
            yield f"prediction/{name}", np.concatenate([part.prediction for part in parts])
            yield f"success/{name}", success


class PerturbedFile:
    """perturbed.npz: every perturbed input at one eps, written batch by batch; whole when the context is left."""

    def __init__(self, path: Path, work: Work, clean: Array, eps: float) -> None:
        self._archive, self._eps, self._count = Archive(path), eps, len(work.x)
        self._small: dict[str, list[Array]] = {}
        shared = {"sample_id": work.sample_id.numpy(), "x": work.x.numpy(), "target": work.target.numpy()}
        self._archive.write((shared | {"clean_prediction": clean, "eps": np.asarray(eps, np.float64)}).items())

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
        kept, name = outcome.kept[self._eps], outcome.job.name
        self._archive.append(f"perturbed/{name}", kept.perturbed, self._count)
        self._small.setdefault(f"prediction/{name}", []).append(kept.prediction)
        self._small.setdefault(f"success/{name}", []).append(kept.success)
