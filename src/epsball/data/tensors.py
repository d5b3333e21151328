"""Samples in a NumPy archive (.npz) or a PyTorch file (.pt): x, and y where there is one."""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import Any

import numpy as np
import torch

from epsball.data.checks import check_memory, image_bounds, reference_output, samples
from epsball.data.dataset import Dataset
from epsball.data.remote import Location
from epsball.data.skipping import Skipper
from epsball.errors import InputError

__all__ = ["from_tensors", "load_npz", "load_pt"]


def load_npz(path: Location, *, skip_bad: bool = False) -> Dataset:
    """Return the samples of an .npz archive: the array `x` (N, *S), floating, and perhaps `y`.

    y of an integer type is a class index (N,), y of a floating type the reference output (N, *O). Nothing is
    unpickled. Values are kept as float32; integer x is refused, since its units cannot be known.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            # A packed archive may unpack to far more than its own size: ask before reading.
            check_memory(sum(member.file_size for member in archive.infolist()), f"{path}, unpacked,")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in ("x", "y") if key in arrays.files}
            names = list(arrays.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not a sound .npz archive of plain arrays ({error}); save it with np.savez."
        ) from error
    if "x" not in found:
        raise InputError(f"{path}: expected an array named x (and perhaps y), found {names or 'nothing'}.")
    x, y = (_from_numpy(found.get(key), path, key) for key in ("x", "y"))
    return _build(path, x, y, skip_bad)


def load_pt(path: Location, *, skip_bad: bool = False) -> Dataset:
    """Return the samples of a .pt file: a dict with the tensors x and perhaps y, or a tuple (x, y).

    Read with weights_only=True: no code in the file is run. The rules for x and y are those of `load_npz`.
    """
    try:
        with path.open("rb") as stream:
            content: Any = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle stream may raise nearly any type
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: not a sound PyTorch file of plain tensors ({reason}); save it with torch.save({{'x': x}})."
        ) from error
    if isinstance(content, dict):
        x, y = content.get("x"), content.get("y")
    elif isinstance(content, (tuple, list)) and len(content) == 2:
        x, y = content
    else:
        x = y = None
    if x is None:
        raise InputError(
            f"{path}: expected a dict with x (and perhaps y) or a tuple (x, y), found {_describe(content)}."
        )
    return _build(path, _plain(x, path, "x"), None if y is None else _plain(y, path, "y"), skip_bad)


def _describe(content: object) -> str:
    return f"a dict with {sorted(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"


def _plain(value: object, path: Location, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise InputError(f"{path}: {name} must be a dense tensor, got {type(value).__name__}.")
    # An expanded tensor takes little in the file and much in memory.
    check_memory(math.prod(value.shape) * 4, f"{path}: {name} of shape {tuple(value.shape)}")
    return value.detach()


def _from_numpy(array: Any, path: Location, name: str) -> torch.Tensor | None:
    if array is None:
        return None
    try:
        # torch reads native byte order only.
        return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(f"{path}: {name} must be an array of numbers, got dtype {array.dtype}.") from error


def _build(path: Location, x: torch.Tensor | None, y: torch.Tensor | None, skip_bad: bool) -> Dataset:
    if x is None:
        raise InputError(f"{path}: no x.")
    return from_tensors(str(path), x, y, Skipper(skip_bad))


def from_tensors(
    name: str, x: torch.Tensor, y: torch.Tensor | None, skipper: Skipper, ids: torch.Tensor | None = None
) -> Dataset:
    """Return samples x (N, *S), floating, with y as class indices (N,) or reference outputs (N, *O).

    Where bad samples are skipped, those with values that are not finite are left out. ids: positions of the samples in
    their source.
    """
    count = len(x) if x.ndim else 0
    if skipper.skip and count and x.is_floating_point():
        good = (
            torch.isfinite(x.to(torch.float32)).flatten(1).all(1) if x.ndim > 1 else torch.ones(count, dtype=torch.bool)
        )
        if y is not None and y.is_floating_point() and len(y) == count:
            good &= torch.isfinite(y.to(torch.float32)).reshape(count, -1).all(1)
        ids = torch.arange(count) if ids is None else ids
        for place in ids[~good].tolist():
            skipper.refuse(f"{name}, sample {place}", "holds NaN or infinite values")
        skipper.check_some(int(good.sum()), name)
        x, y, ids = x[good], None if y is None or len(y) != count else y[good], ids[good]
    x = samples(x, name)
    target = None if y is None else reference_output(y, len(x), name)
    total = len(x) + len(skipper.found)
    return Dataset.of(
        name,
        x,
        target,
        split="all",
        source=f"{name}: {len(x):,} of {total:,} samples{skipper.said}",
        bounds=image_bounds(x),
        ids=ids,
        skipped=tuple(skipper.found),
        total=total,
    )
