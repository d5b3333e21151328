"""What a run leaves in its folder: complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from epsball.data.optional import require
from epsball.errors import InputError
from epsball.experiments.lock import Lock
from epsball.experiments.unfinished import Unfinished, sync

__all__ = ["RunFolder", "write_json", "write_table"]

UNFINISHED = ".unfinished"
NAMES = (
    *("results.parquet", "distances.parquet", "examples.npz", "perturbed.npz", "png", "figures", "tables"),
    "report.html",
    "manifest.json",  # the last: it says that the rest is complete
)


class RunFolder:
    """A folder that receives the files of one run when all of them are written, or stays as it was.

    As a context manager, for one process at a time: files are written under `path`, in a hidden folder inside, and the
    shards of the run under `shards`; `commit` moves the files to their place. Without it the finished shards remain,
    and nothing else. An earlier run in the folder is refused unless `overwrite`, or if it came from the command
    `replaces`, and so is unfinished work, unless `resume` goes on with it.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        resume: bool = False,
        replaces: str | None = None,
    ) -> None:
        if overwrite and resume:
            raise InputError("expected --resume, to go on, or --overwrite, to begin anew, got both; leave one out.")
        self.out = Path(out).expanduser()
        self._hidden = self.out / UNFINISHED
        self.path, self.shards = self._hidden / "files", Unfinished(self._hidden / "shards")
        self._overwrite, self._resume, self._replaces = overwrite, resume, replaces
        self._lock = Lock(self._hidden / "lock")
        self._created: list[Path] = []
        self._begun = self._committed = False
        try:
            if holder := self._lock.holder():
                raise self._taken(holder)
            self._refuse()
        except OSError as error:
            raise self._unusable(error) from error

    def __enter__(self) -> Self:
        try:
            self._created = [folder for folder in (self.out, *self.out.parents) if not folder.exists()]
            self._hidden.mkdir(parents=True, exist_ok=True)
            free = self._lock.acquire()
        except OSError as error:
            self._remove_created()
            raise self._unusable(error) from error
        if not free:
            raise self._taken(self._lock.holder() or "a process that has ended since")
        try:
            self._refuse()  # again: another run may have ended in between
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        replaced = self._replaces is not None and self._begun
        kept = self.shards.count > 0 and not replaced and not self._committed
        if not kept:
            if self._begun and isinstance(error, BaseException) and not isinstance(error, Exception):
                error.add_note("no shard was finished (--shard-size makes them smaller), and nothing was left behind.")
            with suppress(OSError):  # what remains is nobody's
                self.shards.remove()
        elif self._begun and error is not None:
            error.add_note(f"{self.shards.state}, which are kept; the same command with --resume goes on from there.")
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        self._remove_created()

    def begin(self, identity: Mapping[str, Any], command: str, size: int, count: int) -> int:
        """Begin the run of this identity, `count` samples in shards of `size`, or go on; return the size of shards."""
        if self._resume and self.shards.count:
            size = int(self.shards.planned(identity)["size"])
        else:
            self.shards.begin(identity, command, size, -(-count // size))
        self._begun = True
        return size

    def commit(self) -> None:
        """Move the files to their place; if one cannot be moved, all that was there returns."""
        new = sorted((entry.name for entry in self.path.iterdir()), key=lambda name: (name == NAMES[-1], name))
        for name in new:
            sync(self.path / name)
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
        sync(self.out)
        self._committed = True

    def _refuse(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"expected an output folder, got the file {self.out}; choose another name.")
        link = next((path for path in (self._hidden, self.path, self.shards.folder) if path.is_symlink()), None)
        if link is not None:  # what it points to would be emptied
            raise InputError(f"expected a folder of unfinished work, got the symbolic link {link}; remove it.")
        unfinished = self.shards.command
        if unfinished is not None and self._resume:
            return  # results beside unfinished work are those that it may replace, or its own, half moved
        if unfinished is not None and not self._overwrite and unfinished != self._replaces:
            raise InputError(
                f"expected an output folder without unfinished work, got {self.out} ({self.shards.state}); give "
                "--resume to go on from there, or --overwrite to begin anew."
            )
        there = [name for name in NAMES if (self.out / name).exists()]
        if there and not self._overwrite and (self._replaces is None or _command(self.out) != self._replaces):
            raise InputError(
                f"expected an output folder without results, got {self.out} with {there[0]}; choose another folder, or "
                "give --overwrite to replace them."
            )

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"expected an output folder that can be written, got {self.out} ({error.strerror}); choose another."
        )

    def _taken(self, holder: str) -> InputError:
        return InputError(
            f"expected an output folder that no other run is using, got {self.out}, into which {holder} writes; wait "
            "for it, or choose another folder."
        )

    def _remove_created(self) -> None:
        for folder in (self._hidden, *self._created):
            with suppress(OSError):  # it holds something, or was never made
                folder.rmdir()


def _command(folder: Path) -> str | None:
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(content["configuration"]["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON for people to read."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(path: Path | IO[bytes], table: Any) -> None:
    """Write a pyarrow table as Parquet, to a path or an open file."""
    require("pyarrow.parquet", "pyarrow", "writing results").write_table(table, path, compression="zstd")
