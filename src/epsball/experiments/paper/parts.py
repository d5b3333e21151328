"""Measured parts on disk: a run that was killed goes on after the last part that it finished."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsball.errors import InputError
from epsball.experiments.storage import write_table

__all__ = ["Part", "Parts"]

_KEY = b"epsball"


@dataclass(frozen=True, eq=False)
class Part:
    """One measurement: its rows as a pyarrow table, and what else is to be known of it as a JSON object."""

    rows: Any
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """A folder of parts, each a Parquet file that says what it was measured on.

    A part is read again only if `measured_on` (seed, network and its weights, data, method...) is what it was.
    """

    folder: Path

    @classmethod
    def at(cls, out: Path, *, resume: bool) -> Parts:
        """Use out/parts: as it is to resume, emptied otherwise."""
        folder = out / "parts"
        if not resume and folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def get(self, measured_on: Mapping[str, Any], measure: Callable[[], Part]) -> Part:
        """Return the part of this identity: from its file, or measured now and written in one step."""
        from epsball.report.style import write_atomic

        identity = json.dumps(dict(measured_on), sort_keys=True)
        path = self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
        if path.is_file():
            return _read(path, identity)
        part = measure()
        facts = json.dumps({"measured_on": json.loads(identity), "facts": dict(part.facts)})
        buffer = io.BytesIO()
        write_table(buffer, part.rows.replace_schema_metadata({_KEY: facts.encode()}))
        write_atomic(path, buffer.getvalue())
        # What comes back is what a resumed run reads.
        return _read(path, identity)


def _read(path: Path, identity: str) -> Part:
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path)
        content = json.loads(rows.schema.metadata[_KEY])
        if json.dumps(content["measured_on"], sort_keys=True) != identity:
            raise ValueError("it was measured on something else")
    except Exception as error:  # a damaged file may raise nearly any type
        raise InputError(f"{path}: not a sound part ({error}); remove it to measure it again.") from error
    return Part(rows.replace_schema_metadata(None), content["facts"])
