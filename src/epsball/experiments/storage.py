"""What a run leaves in its folder: complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from epsball.data.optional import require
from epsball.engines.local import STATUSES, Array, Chunk
from epsball.errors import InputError

__all__ = ["Archive", "RunFolder", "results_table", "write_json", "write_table"]

NAMES = (
    *("results.parquet", "distances.parquet", "examples.npz", "perturbed.npz", "png", "figures", "report.html"),
    "manifest.json",  # the last: it says that the rest is complete
)
# These, error_increase and psnr_out belong to one task only: they are null in the other.
_INTEGERS = ("target", "prediction", "clean_prediction")
_NUMBERS = ("gain", "error_increase", "norm_l1", "norm_l2", "norm_linf", "psnr_in", "psnr_out")


class RunFolder:
    """A folder that receives the files of one run when all of them are written, or stays as it was.

    As a context manager: files are written under `path`, a hidden folder inside; `commit` moves them to their place;
    without it, or after an error, nothing remains. An earlier run in the folder is refused unless `overwrite`, or if it
    came from the command `replaces`.
    """

    def __init__(self, out: str | os.PathLike[str], *, overwrite: bool = False, replaces: str | None = None) -> None:
        self.out = Path(out).expanduser()
        self._created: list[Path] = []
        try:
            self._refuse(overwrite, replaces)
        except OSError as error:
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        try:
            self._created = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
            self.out.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=".epsball-", dir=self.out))
        except OSError as error:
            self._remove_created()
            raise self._unusable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._remove_created()

    def commit(self) -> None:
        """Move the files to their place; if one cannot be moved, all that was there returns."""
        new = sorted((entry.name for entry in self.path.iterdir()), key=lambda name: (name == NAMES[-1], name))
        old = [name for name in NAMES if (self.out / name).exists()]
        aside = self.path / ".old"
        aside.mkdir()
        try:
            for name in old:
                os.replace(self.out / name, aside / name)
            for name in new:
                os.replace(self.path / name, self.out / name)
        except BaseException:
            for name in new:
                if not (self.path / name).exists():
                    os.replace(self.out / name, self.path / name)
            for name in old:
                if (aside / name).exists():
                    os.replace(aside / name, self.out / name)
            raise

    def _refuse(self, overwrite: bool, replaces: str | None) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"expected an output folder, got the file {self.out}; choose another name.")
        there = [name for name in NAMES if (self.out / name).exists()]
        if there and not overwrite and (replaces is None or _command(self.out) != replaces):
            raise InputError(
                f"expected an output folder without results, got {self.out} with {there[0]}; choose another folder, or "
                "give --overwrite to replace them."
            )

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"expected an output folder that can be written, got {self.out} ({error.strerror}); choose another."
        )

    def _remove_created(self) -> None:
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:  # it holds the results, or was never made
                return


def _command(folder: Path) -> str | None:
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(content["configuration"]["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON for people to read."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def results_table(chunks: Sequence[Chunk]) -> Any:
    """Return the rows as a pyarrow table: attacks in their order, then eps, then samples, whatever the batches were."""
    pa = require("pyarrow", "pyarrow", "writing results")
    groups: dict[tuple[str, str, str, float], list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault((chunk.attack, chunk.crafted_on, chunk.judged_on, chunk.eps), []).append(chunk)
    whole, integer, number, text = pa.int64(), pa.int64(), pa.float64(), pa.string()
    tables = []
    for (attack, crafted_on, judged_on, eps), group in groups.items():
        columns = {name: np.concatenate([chunk.columns[name] for chunk in group]) for name in group[0].columns}
        count, first = len(columns["sample_id"]), group[0]

        def same(value: Any, kind: Any, count: int = count) -> Any:
            return pa.repeat(pa.scalar(value, kind), count)

        def each(name: str, kind: Any, columns: dict[str, Array] = columns, count: int = count) -> Any:
            if name not in columns:
                return pa.nulls(count, kind)
            return pa.array(columns[name].astype(kind.to_pandas_dtype()), kind)

        entries = {
            "sample_id": each("sample_id", whole),
            "attack": same(attack, text),
            "p": same(first.p, number),
            "eps": same(eps, number),
            "steps": same(first.steps, whole),
            **{name: each(name, integer) for name in _INTEGERS},
            "success": pa.array(columns["success"]),
            "status": pa.array(STATUSES, text).take(pa.array(columns["status"])),
            "exact": pa.array(columns["exact"]),
            **{name: each(name, number) for name in _NUMBERS},
            **{name: each(name, whole) for name in ("forwards", "backwards", "jvps")},
            "seconds": each("seconds", number),
            "crafted_on": same(crafted_on, text),
            "judged_on": same(judged_on, text),
        }
        tables.append(pa.table(entries))
    return pa.concat_tables(tables).combine_chunks()


def write_table(path: Path | IO[bytes], table: Any) -> None:
    """Write a pyarrow table as Parquet, to a path or an open file."""
    require("pyarrow.parquet", "pyarrow", "writing results").write_table(table, path, compression="zstd")


class Archive:
    """An .npz file written as its arrays come, so that none has to fit in memory whole."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._name: str | None = None
        self._open: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._zip.close()

    def write(self, arrays: Iterable[tuple[str, Array]]) -> None:
        """Write whole arrays."""
        for name, array in arrays:
            self.append(name, array, len(array) if array.ndim else None)

    def append(self, name: str, part: Array, count: int | None) -> None:
        """Write the next rows of the array of this name, which has `count` rows in all; None: a single value."""
        if name != self._name:
            self._end()
            self._open = self._zip.open(f"{name}.npy", "w", force_zip64=True)
            shape = () if count is None else (count, *part.shape[1:])
            descr = np.lib.format.dtype_to_descr(part.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._open, header)
            self._name = name
        if self._open is not None:
            self._open.write(np.ascontiguousarray(part).tobytes())

    def _end(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open = self._name = None
