"""The shards of a run that is not finished: on disk, each whole or not at all, and known by what decides them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from epsball.errors import InputError

__all__ = ["Unfinished", "sync"]

_RUN, _FACTS = "run.json", "shard.json"
_TEMPORARY = "tmp-"


class Unfinished:
    """A folder of finished shards, each a folder of files with a list of their lengths and digests.

    A shard appears in one step, when all its files are on disk. run.json says what decides the numbers, and how many
    shards there will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """Return the folder of a shard."""
        return self.folder / f"{number:06d}"

    @property
    def count(self) -> int:
        """How many shards there are, sound or not."""
        return sum(1 for _ in self.folder.glob("[0-9]*")) if (self.folder / _RUN).is_file() else 0

    @property
    def state(self) -> str:
        """What has been done, in words."""
        return f"finished so far: {self.count:,} of {self._read_run().get('shards', '?')} shards"

    @property
    def command(self) -> str | None:
        """The command of the run, None where no shard of one is finished."""
        return str(self._read_run().get("command")) if self.count else None

    def planned(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the run was cut into shards; InputError, with what differs, if it is another run."""
        run = self._read_run()
        if not run:
            raise InputError(f"expected unfinished work in {self.folder}, got a damaged {_RUN}; give --overwrite.")
        there, here = run.get("identity", {}), json.loads(json.dumps(identity))
        differ = [
            f"{name} was {_short(there.get(name))} and is {_short(here.get(name))}"
            for name in dict.fromkeys((*there, *here))
            if there.get(name) != here.get(name)
        ]
        if differ:
            raise InputError(
                f"expected the run whose unfinished work is in {self.folder}, got another: "
                f"{'; '.join(differ)}. Give what it was begun with, or --overwrite instead of --resume to begin anew."
            )
        return dict(run)

    def begin(self, identity: Mapping[str, Any], command: str, size: int, shards: int) -> None:
        """Remove what is left of another run, and begin this one."""
        self.remove()
        self.folder.mkdir(parents=True)
        content = {"command": command, "size": size, "shards": shards, "identity": dict(identity)}
        temporary = self.folder / f"{_TEMPORARY}{_RUN}"
        temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
        sync(temporary)
        os.replace(temporary, self.folder / _RUN)
        sync(self.folder)

    def remove(self) -> None:
        """Remove all shards."""
        # Without run.json they are nobody's: a kill in between leaves nothing that could be taken for finished.
        (self.folder / _RUN).unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def add(self, number: int, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Let `make` write the files of a shard into a folder and return what is to be known of it, then keep them."""
        temporary = self.folder / f"{_TEMPORARY}{number:06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            facts = dict(make(temporary))
            facts["files"] = {path.name: _stamp(path) for path in sorted(temporary.iterdir())}
            (temporary / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
            for path in temporary.iterdir():
                sync(path)
            sync(temporary)
            os.replace(temporary, self.path(number))
            sync(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return facts

    def finished(self) -> tuple[dict[int, dict[str, Any]], int]:
        """Return what is known of each sound shard by its number, and how many damaged ones had to be removed."""
        found, damaged = {}, 0
        for path in sorted(self.folder.glob("[0-9]*")):
            facts = _sound(path)
            if facts is None:
                damaged += 1
                shutil.rmtree(path)
            else:
                found[int(path.name)] = facts
        return found, damaged

    def _read_run(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / _RUN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if os.name != "posix":  # folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sound(path: Path) -> dict[str, Any] | None:
    """Return what is known of a shard if all its files are as they were written."""
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        files = facts["files"]
        same = bool(files) and all(_stamp(path / name) == stamp for name, stamp in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return dict(facts) if same else None


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
