"""A lock on a folder that the operating system releases when its process dies, however it dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["Lock"]


class Lock:
    """A lock file that one process at a time can hold; what it holds is the process number, for messages alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock, or return False where another process has it; the folder must be there."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(handle):
                os.close(handle)
                return False
            if _is_at(handle, self.path):
                break
            os.close(handle)  # its holder removed the file while this process waited for it
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        self._handle = handle
        return True

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._handle is not None:
            if sys.platform != "win32":
                self.path.unlink(missing_ok=True)  # while it is held, so that nobody holds a file that is gone
            os.close(self._handle)
            self._handle = None

    def holder(self) -> str | None:
        """Return what is known of the process that holds the lock, None where nobody does."""
        try:
            handle = os.open(self.path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if _lock(handle):
                return None
            return f"process {os.read(handle, 20).decode(errors='replace').strip() or 'unknown'}"
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> bool:
        try:
            os.lseek(handle, 1000, os.SEEK_SET)  # past the number, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True

else:
    import errno
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network file systems have no locks: better to run without one than not at all.
            return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
        return True
