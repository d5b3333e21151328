"""The idx format of MNIST: a magic number, big-endian sizes, then unsigned bytes; usually gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epsball.errors import InputError

__all__ = ["encode", "parse", "read"]

_UINT8 = 0x08


def parse(raw: bytes, name: str, ndim: int) -> npt.NDArray[np.uint8]:
    """Return the array of unsigned bytes with `ndim` dimensions that an unpacked idx file holds.

    InputError, naming the file, for a wrong magic number, type or number of dimensions, and for fewer or more bytes
    than the sizes in the header ask for.
    """
    start = 4 + 4 * ndim
    if len(raw) < start:
        raise InputError(f"{name}: an idx header takes {start} bytes, the file holds {len(raw)}; it is truncated.")
    magic = struct.unpack(">I", raw[:4])[0]
    expected = _UINT8 << 8 | ndim
    if magic != expected:
        raise InputError(
            f"{name}: expected the idx magic number {expected} (unsigned bytes, {ndim} dimensions), "
            f"found {magic}; this is another kind of file, or it is damaged."
        )
    shape = struct.unpack(f">{ndim}I", raw[4:start])
    need, have = math.prod(shape), len(raw) - start
    if have != need:
        what = "it is truncated" if have < need else "it has bytes after its end"
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{name}: the header says {sizes} = {need} bytes of data, the file holds {have}; {what}.")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def encode(array: npt.NDArray[np.uint8]) -> bytes:
    """Return the idx file, not packed, that holds this array of unsigned bytes."""
    return struct.pack(f">I{array.ndim}I", _UINT8 << 8 | array.ndim, *array.shape) + array.tobytes()


def read(path: Path, ndim: int) -> npt.NDArray[np.uint8]:
    """Return the array that a gzipped idx file holds; InputError, naming the file, if it is damaged."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except EOFError as error:
        raise InputError(f"{path}: the gzip data end too early; it is truncated: fetch it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: not a sound gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return parse(raw, str(path), ndim)
