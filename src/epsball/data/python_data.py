"""Data from Python code of the user's own: (x, y), a dict of them, or a Dataset of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from epsball.data.dataset import Dataset
from epsball.data.skipping import Skipper
from epsball.data.tensors import from_tensors
from epsball.data.user_code import call, load_object
from epsball.errors import InputError

__all__ = ["from_python", "load"]


def load(text: str, limit: int | None = None, *, skip_bad: bool = False) -> Dataset:
    """Import `file.py:name` or `package.module:name`, call it if it can be called, and return its samples.

    The code is run. What it gives: a `Dataset` of epsball; (x, y) or x alone as tensors or arrays; a dict with x and
    perhaps y; or a Dataset of PyTorch, of samples (x, y) or x, which are stacked. limit: no more of those are read.
    """
    found = load_object(text, "data")
    if isinstance(found, type) or (callable(found) and not hasattr(found, "__getitem__")):
        found = call(found, text, "data")
    return from_python(text, found, limit, skip_bad=skip_bad)


def from_python(name: str, found: Any, limit: int | None = None, *, skip_bad: bool = False) -> Dataset:
    """Return the samples of a Python object, as `load` says."""
    skipper = Skipper(skip_bad)
    if isinstance(found, Dataset):
        return _checked(name, found, skipper)
    if isinstance(found, Mapping) and "x" in found:
        return from_tensors(name, *_pair(found["x"], found.get("y"), name), skipper)
    if isinstance(found, (torch.Tensor, np.ndarray)):
        return from_tensors(name, *_pair(found, None, name), skipper)
    if isinstance(found, (tuple, list)) and len(found) == 2:
        x, y = found
        if all(isinstance(part, (torch.Tensor, np.ndarray)) or part is None for part in (x, y)):
            return from_tensors(name, *_pair(x, y, name), skipper)
    if not hasattr(found, "__getitem__") and not hasattr(found, "__iter__"):
        raise InputError(
            f"data: expected {name} to give (x, y), a dict with x and y, or a torch Dataset, got "
            f"{type(found).__name__}."
        )
    return _stacked(name, found, limit, skipper)


def _checked(name: str, found: Dataset, skipper: Skipper) -> Dataset:
    """Return a set of the user's own making after the checks that all samples meet."""
    x, y = _pair(found.x, found.target, name)
    ids = torch.as_tensor(found.ids)
    if ids.dtype != torch.int64 or ids.shape != x.shape[:1]:
        raise InputError(f"{name}: expected ids (N,) of int64, one a sample, got {ids.dtype} of {tuple(ids.shape)}.")
    part = from_tensors(name, x, y, skipper, ids)
    return replace(
        found,
        x=part.x,
        target=part.target,
        digest=part.digest,
        ids=part.ids,
        source=found.source + skipper.said,
        skipped=(*found.skipped, *part.skipped),
    )


def _stacked(name: str, found: Any, limit: int | None, skipper: Skipper) -> Dataset:
    rows: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    ids: list[int] = []
    for place, sample in _samples(name, found, limit, skipper):
        where = f"{name}, sample {place}"
        x, y = sample if isinstance(sample, (tuple, list)) and len(sample) == 2 else (sample, None)
        try:
            row = _pair(x, y, where)
        except InputError as error:
            skipper.refuse(where, str(error).removeprefix(f"{where}: ").rstrip("."))
            continue
        if rows and row[0].shape != rows[0][0].shape:
            skipper.refuse(where, f"has shape {tuple(row[0].shape)}, the first {tuple(rows[0][0].shape)}")
            continue
        rows.append(row)
        ids.append(place)
    skipper.check_some(len(rows), name)
    labels = [y for _, y in rows]
    known = [y for y in labels if y is not None]
    if known and (len(known) != len(rows) or len({y.shape for y in known}) != 1):
        raise InputError(f"{name}: expected a y of one shape with every sample; some have none or another.")
    y = torch.stack(known) if known else None
    part = from_tensors(name, torch.stack([x for x, _ in rows]), y, skipper, torch.tensor(ids))
    total = len(found) if hasattr(found, "__len__") else None
    many = f"{total:,}" if total is not None else "perhaps more"
    return replace(part, total=total, source=f"{name}: {len(part):,} of {many} samples{skipper.said}")


def _samples(name: str, found: Any, limit: int | None, skipper: Skipper) -> Iterator[tuple[int, Any]]:
    """Yield the samples with their positions; one that cannot be read is refused."""
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        try:
            yield from enumerate(islice(found, limit))
        except Exception as error:
            raise InputError(f"data: {name} failed with {type(error).__name__}: {error}.") from error
        return
    for place in range(len(found) if limit is None else min(limit, len(found))):
        try:
            sample = found[place]
        except Exception as error:  # the user's code may raise anything
            skipper.refuse(f"{name}, sample {place}", f"failed with {type(error).__name__}: {error}")
            continue
        yield place, sample


def _pair(x: Any, y: Any, where: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = []
    for key, value in (("x", x), ("y", y)):
        try:
            found.append(None if value is None else torch.as_tensor(value).detach().cpu())
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{where}: {key} must be a tensor, an array or a number, got {type(value).__name__}; convert it, an "
                "image for example with torch.from_numpy(np.asarray(image)).permute(2, 0, 1) / 255."
            ) from error
    if found[0] is None:
        raise InputError(f"{where}: expected x, got None.")
    return found[0], found[1]
