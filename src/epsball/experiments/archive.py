"""Arrays on disk: .npz files that are written and read part by part."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from epsball.engines.local import Array

__all__ = ["Archive"]


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
        try:
            self._end()
            self._zip.close()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                self._zip.close()  # or it would try again, and complain, when it is collected
            if kind is None:
                raise

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
        handle, self._open, self._name = self._open, None, None
        if handle is not None:
            handle.close()

    @staticmethod
    def names(path: Path) -> list[str]:
        """Return the names of the arrays in a file, in their order."""
        with np.load(path, allow_pickle=False) as found:
            return list(found.files)

    @staticmethod
    def read(path: Path, name: str) -> Array:
        """Read one array."""
        with np.load(path, allow_pickle=False) as found:
            array: Array = found[name]
            return array
