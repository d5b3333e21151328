"""The examples.npz of a run: its arrays, the budgets at which examples are kept, and the range to show them in."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.errors import InputError

__all__ = ["at_place", "kept_budgets", "limits_of", "load_arrays", "png", "samples_of"]


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode an RGB picture (H, W, 3)."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    nothing: dict[str, Any] = {"Software": None}  # the version of matplotlib stays out of the bytes
    imsave(buffer, picture, format="png", metadata=nothing)
    return buffer.getvalue()


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an .npz file of plain arrays; InputError if it is absent or damaged."""
    import zipfile
    import zlib

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"expected the examples of a run at {path}, found none.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not a readable .npz of plain arrays ({error}); run the evaluation again.") from error


def kept_budgets(arrays: Mapping[str, NDArray[Any]]) -> list[float]:
    """Return the budgets at which examples are kept, increasing; where there is but one, the file may not say so."""
    eps = arrays.get("eps")
    if eps is None or eps.ndim != 1 or not eps.size or eps.dtype.kind not in "fiu":
        return []
    return [float(value) for value in eps]


def at_place(arrays: dict[str, NDArray[Any]], place: int | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of one budget under the names of the one that every file has.

    A file with several budgets holds, beside perturbed/ATTACK and the like, perturbed/ATTACK/0, .../1 and on.
    """
    several = kept_budgets(arrays)
    ends = tuple(f"/{k}" for k in range(len(several)))
    plain = {
        name: values for name, values in arrays.items() if not (ends and name.count("/") > 1 and name.endswith(ends))
    }
    if place is None:
        return plain
    suffix = f"/{place}"
    found = {name: values for name, values in plain.items() if "/" not in name}
    found |= {name.removesuffix(suffix): values for name, values in arrays.items() if name.endswith(suffix)}
    return found | {"example_eps": np.asarray(several[place])}


def samples_of(arrays: Mapping[str, NDArray[Any]], path: Any) -> NDArray[Any]:
    """Return x, (N, *S); InputError where there is none."""
    if "x" not in arrays or arrays["x"].ndim < 2:
        raise InputError(f"{path}: expected an array 'x' of shape (N, *S), found none.")
    return arrays["x"]


def limits_of(x: NDArray[np.float64], bounds: Sequence[float] | None) -> tuple[float, float]:
    """Return the range to show: the bounds where they are sound, [0, 1] where that holds x, else that of x."""
    if bounds is not None:
        try:
            low, high = (float(end) for end in bounds)
        except (TypeError, ValueError):
            low = high = math.nan
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    finite = x[np.isfinite(x)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, low + 0.5)
