"""Files and folders behind URLs such as s3://bucket/folder, through fsspec; file:// is an ordinary path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

from epsball.errors import InputError

__all__ = ["Location", "RemotePath", "is_url", "locate"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(?:::[^/]*)*://.*", re.DOTALL)
_USER = re.compile(r"://(?:[^/]*|[^/:@]*:(?!\d+/)[^@]*)@")
_CONTAINER = re.compile(r"(?<![\w+.\-])(?:abfss?|az|adl|wasbs?)://[^/@:?#]*@", re.IGNORECASE)  # of Azure: no user
_KEYS = re.compile(
    r"[?&;#][^=&;#]*(?:\bsig\b|signature|token|key|passw|pwd|credential|secret|auth)[^=&;#]*=", re.IGNORECASE
)


class RemotePath:
    """A file or folder on a file system of fsspec, with the part of pathlib.Path that readers use."""

    def __init__(self, system: Any, path: str, url: str) -> None:
        self._system, self._path, self._url = system, path, url

    def __str__(self) -> str:
        return self._url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self._system, f"{self._path.rstrip('/')}/{name}", f"{self._url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path).name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self._path).suffix

    def exists(self) -> bool:
        """Whether there is something here; InputError where the store cannot be asked."""
        return bool(self._ask(self._system.exists))

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return bool(self._ask(self._system.isdir))

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is directly inside the folder."""
        for entry in self._ask(self._system.ls, detail=False):
            name = str(entry).rstrip("/").rpartition("/")[2]
            # A store may list the folder itself, as an object of no bytes.
            if name and str(entry).strip("/") != self._path.strip("/"):
                yield self / name

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file for reading."""
        found: BinaryIO = self._ask(self._system.open, mode=mode)
        return found

    def _ask(self, function: Any, **options: Any) -> Any:
        try:
            return function(self._path, **options)
        except Exception as error:  # each store has errors of its own
            said = " ".join(str(error).split()) or "no reason given"
            raise OSError(f"{self._url}: {type(error).__name__}: {said[:300]}") from error


Location = Path | RemotePath


def is_url(text: str) -> bool:
    """Return whether the text is a URL, such as s3://..., memory://... or file://..."""
    return bool(_URL.fullmatch(text))


def locate(url: str) -> Location:
    """Return the file or folder behind a URL; InputError where its kind is unknown or its package absent.

    Credentials belong in the store's own configuration: a URL with a user, a password or a signed query is refused,
    since it would be written into the manifest.
    """
    kind = url.partition("://")[0].lower()
    if kind in ("file", "local"):
        return _local(url)
    if _USER.search(_CONTAINER.sub("", url)) or _KEYS.search(unquote(url)):
        raise InputError(
            f"data: {kind}://… holds a password, user name, token or signature, which would be written into the "
            "manifest; give credentials through the store's environment variables or configuration."
        )
    try:
        import fsspec
    except ImportError as error:
        raise InputError(
            f"data: {url} needs the package fsspec ({error}); install it with: pip install 'epsball[fsspec]'."
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # says itself which package: "Install s3fs to access S3"
        raise InputError(f"data: {url} needs another package: {error}; install it with pip.") from error
    except Exception as error:  # an unknown protocol, or whatever a store asks for
        raise InputError(f"data: {url} cannot be opened ({type(error).__name__}: {error}); check the URL.") from error
    return RemotePath(system, path, url)


def _local(url: str) -> Path:
    host, slash, path = url.partition("://")[2].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise InputError(f"data: expected file:///path on this machine, got {url}; give the path itself.")
    return Path(unquote(slash + path))  # ? and # are part of a file's name
