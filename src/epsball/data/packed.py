"""Official binary files, plain or packed: as `.bin`, as `.bin.xz`, or as members of a `.tar.gz`."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from epsball.errors import InputError

__all__ = ["read_file", "read_members"]


def read_file(path: Path) -> bytes:
    """Return the content of a file, unpacked if it ends in .xz; InputError, naming it, if it is not sound."""
    try:
        raw = path.read_bytes()
        return lzma.decompress(raw) if path.suffix == ".xz" else raw
    except lzma.LZMAError as error:
        raise InputError(
            f"{path}: not a sound xz file ({error}); it is truncated or damaged: fetch it again."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


def read_members(path: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of these files of `folder` in a .tar.gz; InputError if one is absent or the archive damaged.

    Read straight from the archive: nothing is unpacked, so nothing can be left half unpacked.
    """
    wanted = {f"{folder}/{name}": name for name in names}
    raw: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and member.isfile():
                    file = archive.extractfile(member)
                    raw[wanted[member.name]] = file.read() if file is not None else b""
                    if len(raw) == len(wanted):
                        break
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a sound .tar.gz archive ({error}); remove it and fetch it again.") from error
    except OSError as error:  # gzip.BadGzipFile is one too
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); remove it and fetch it again."
        ) from error
    missing = [name for name in names if name not in raw]
    if missing:
        raise InputError(f"{path}: {folder}/{missing[0]} is not in it; remove the archive and fetch it again.")
    return {name: raw[name] for name in names}
