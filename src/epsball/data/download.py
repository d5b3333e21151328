"""Fetching the files of a public data set once, checked by hash, from the first mirror that serves them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from epsball.data.optional import require
from epsball.errors import InputError

__all__ = ["Origin", "data_root", "ensure", "is_official"]

TIMEOUT = 30.0  # seconds without an answer before the next mirror is tried


@dataclass(frozen=True)
class Origin:
    """Where the files of a set come from: base URLs (ending in /), tried in order, and the md5 of each file."""

    base_urls: Sequence[str]
    md5: Mapping[str, str]


def data_root(given: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the data sets: the one given, else that of EPSBALL_DATA, else the user's cache."""
    chosen = given if given is not None else os.environ.get("EPSBALL_DATA") or None
    if chosen is not None:
        return Path(chosen).expanduser()
    return Path(require("pooch", "pooch", "finding the download cache").os_cache("epsball"))


def is_official(path: Path, origin: Origin) -> bool:
    """Return whether the file is byte for byte the official one."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == origin.md5[path.name]


def ensure(name: str, names: Sequence[str], folder: Path, origin: Origin, *, download: bool = True) -> list[Path]:
    """Return the paths of these files in `folder`, downloading those that are absent.

    A file that is already there is never replaced. A download lands in a temporary file in the same folder, is
    checked against its md5, and only then takes its name: no half or wrong file is ever left. InputError, which says
    where to put the files by hand, if `download` is off or no mirror serves a file that passes its check.
    """
    paths = [folder / file for file in names]
    if not download:
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{_absent(name, missing, folder)} or allow the download.")
    for path in paths:
        if not path.is_file():
            _fetch(name, path, origin)
    return paths


def _absent(name: str, missing: Sequence[str], folder: Path) -> str:
    return (
        f"{name}: {', '.join(missing)} not found in {folder}; put the official files there, or point data_root "
        f"(--data-root, EPSBALL_DATA) to the folder that holds {folder.name}/,"
    )


def _fetch(name: str, path: Path, origin: Origin) -> None:
    pooch = require("pooch", "pooch", f"downloading {name}")
    requests = require("requests", "requests", f"downloading {name}")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name}: cannot create the folder {path.parent} to download to ({error}).") from error
    refusals: list[str] = []
    for base in origin.base_urls:
        try:
            pooch.retrieve(
                f"{base}{path.name}",
                known_hash=f"md5:{origin.md5[path.name]}",
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
            )
            return
        except requests.exceptions.RequestException as error:
            refusals.append(f"{base}: {type(error).__name__}")
        except ValueError:  # pooch's word for a wrong hash; a RequestException may be one too, so it is second
            refusals.append(f"{base}: the file fails its md5 check")
        except OSError as error:
            raise InputError(f"{name}: cannot write to {path.parent} ({error}).") from error
    for folder in made:  # the innermost first
        with suppress(OSError):
            folder.rmdir()
    tried = "; ".join(refusals)
    raise InputError(f"{_absent(name, [path.name], path.parent)} and it could not be downloaded ({tried}).")
