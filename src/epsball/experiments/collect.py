"""What becomes of the perturbed inputs, which are too many to keep: a few examples, or a file on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from epsball.engines.local import Array, Outcome, Work
from epsball.experiments.archive import Archive
from epsball.experiments.grid import within
from epsball.experiments.pictures import PictureFolder

__all__ = ["Examples", "PerturbedFile", "examples_arrays", "spread_budgets", "write_perturbed"]

COUNT = 8
MOST = 9  # budgets at which examples are kept
_ROOM = 32e6  # bytes of all their perturbed inputs
_SLIDING = ("perturbed", "success", "prediction", "output", "psnr_in", "psnr_out")


def spread_budgets(eps: tuple[float, ...], attacks: int, entries: int) -> tuple[float, ...]:
    """Choose the budgets at which examples are kept: both ends, the middle, and others evenly between them.

    Fewer where samples of so many entries would fill the report; none where one alone is left.
    """
    count = min(MOST, len(eps), int(_ROOM // (COUNT * max(1, attacks) * 4 * max(1, entries))))
    if count < 2:
        return ()
    places = {round(i * (len(eps) - 1) / (count - 1)) for i in range(count)} | {len(eps) // 2}
    return tuple(eps[place] for place in sorted(places))


@dataclass(frozen=True)
class Examples:
    """A few samples to show: correctly classified ones, as different as labels can tell.

    positions: increasing, within the run's samples. eps: at which they are shown, inf for attacks without a limit.
    kept: the budgets, increasing and eps among them, at which the report can show them too; empty where there is one.
    """

    positions: Array
    eps: float
    kept: tuple[float, ...] = ()

    @classmethod
    def choose(cls, labels: Array, wanted: Array, eps: float, kept: tuple[float, ...] = ()) -> Examples:
        """Choose the first wanted sample of each label, then further ones up to the count; both (N,), wanted bool."""
        fit = np.flatnonzero(wanted)
        firsts = fit[np.unique(labels[fit], return_index=True)[1]]
        order = np.concatenate([np.sort(firsts), np.setdiff1d(fit, firsts)])
        return cls(np.sort(order[:COUNT]), eps, kept)

    def part(self, rows: slice) -> Examples:
        """Return those among some samples, at their positions there."""
        inside = (self.positions >= rows.start) & (self.positions < rows.stop)
        return replace(self, positions=self.positions[inside] - rows.start)

    def of(self, outcome: Outcome) -> dict[str, Array]:
        """Return what an attack made of the examples in one batch, by name and attack."""
        rows = outcome.rows
        index = self.positions[(self.positions >= rows.start) & (self.positions < rows.stop)] - rows.start
        arrays = outcome.kept[self.eps].arrays
        found = {f"{name}/{outcome.job.name}": array[index] for name, array in arrays.items()}
        for k, eps in enumerate(self.kept):
            arrays = outcome.kept[eps].arrays
            found |= {f"{name}/{outcome.job.name}/{k}": arrays[name][index] for name in _SLIDING if name in arrays}
        return found


class PerturbedFile:
    """The perturbed inputs of one shard at one eps, written batch by batch; whole when the context is left."""

    def __init__(self, path: Path, eps: float, count: int) -> None:
        self._archive, self._eps, self._count = Archive(path), eps, count
        self._small: dict[str, list[Array]] = {}

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


def write_perturbed(path: Path, work: Work, eps: float, files: Sequence[Path], pictures: PictureFolder | None) -> None:
    """Write perturbed.npz, every perturbed input at one eps, from the files of the shards, and the pictures of it."""
    with Archive(path) as archive:
        archive.write((_given(work) | {"eps": np.asarray(eps, np.float64)}).items())
        for name in Archive.names(files[0]):
            start = 0
            for file in files:
                part = Archive.read(file, name)
                archive.append(name, part, len(work.x))
                if pictures is not None and name.startswith("perturbed/"):
                    ids = work.sample_id[start : start + len(part)].numpy()
                    pictures.write(name.removeprefix("perturbed/"), ids, part)
                start += len(part)


def examples_arrays(examples: Examples, work: Work, eps: float, files: Sequence[Path]) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of examples.npz; eps: the budget within which a perturbation without a limit counts."""
    for name, values in _given(work).items():
        yield name, values[examples.positions]
    yield "example_eps", np.asarray(eps, dtype=np.float64)
    if examples.kept:
        yield "eps", np.asarray(examples.kept, dtype=np.float64)
    whole = {
        name: np.concatenate([Archive.read(file, name) for file in files])
        for name in Archive.names(files[0])
        if "/" in name
    }
    for name, values in whole.items():
        kind, _, attack = name.partition("/")
        if kind == "success" and not work.eps and f"norm/{attack}" in whole:
            yield name, values & within(whole[f"norm/{attack}"], eps, work.x.dtype)
        elif kind != "norm":
            yield name, values


def _given(work: Work) -> dict[str, Array]:
    """Return what is known of every sample without an attack."""
    given = {"sample_id": work.sample_id.numpy(), "x": work.x.numpy(), "target": work.target.numpy()}
    if work.regression is None:
        (own, *_) = work.clean.values()
        return given | {"clean_prediction": own.numpy()}
    found = work.regression
    return given | {"clean_output": found.output.numpy(), "clean_psnr": found.quality.numpy()}
