"""What every set read from a user's path must meet."""

from __future__ import annotations

import os

import torch

from epsball.errors import InputError

__all__ = ["check_memory", "class_indices", "image_bounds", "reference_output", "samples"]


def check_memory(size: int, what: str) -> None:
    """Refuse data that cannot fit in this machine's memory before they are read."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return
    if size > memory:
        raise InputError(
            f"{what} would take {size / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f} GiB; "
            "use fewer or smaller samples (limit=, --limit)."
        )


def samples(x: torch.Tensor, path: str) -> torch.Tensor:
    """Return x (N, *S) as float32, or refuse it: integers, complex, empty, without a sample dimension, not finite."""
    if x.dtype == torch.uint8:
        raise InputError(f"{path}: x must be floating, got uint8; if these are images, divide by 255 and save again.")
    if not x.is_floating_point():
        raise InputError(f"{path}: x must be floating, got {x.dtype}; convert it to float32 in the model's units.")
    if x.ndim < 2 or x.numel() == 0:
        raise InputError(f"{path}: x must be (samples, *shape) and not empty, got shape {tuple(x.shape)}.")
    check_memory(x.numel() * 4, f"{path}: x of shape {tuple(x.shape)}")
    return _finite(x, path, "x")


def reference_output(y: torch.Tensor, count: int, path: str) -> torch.Tensor:
    """Return y as class indices (N,) int64 if it holds integers, else as reference outputs (N, *O) float32."""
    if y.ndim == 0 or len(y) != count:
        raise InputError(f"{path}: y must hold one entry for each of the {count} samples, got shape {tuple(y.shape)}.")
    if y.is_floating_point():
        return _finite(y, path, "y")
    return class_indices(y, path)


def class_indices(y: torch.Tensor, path: str) -> torch.Tensor:
    """Return y as (N,) int64, or refuse what cannot be class indices."""
    if y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        raise InputError(
            f"{path}: y must be class indices (N,) of an integer type, or reference outputs of a floating type; "
            f"got {y.dtype} of shape {tuple(y.shape)}."
        )
    y = y.to(torch.int64)
    if int(y.min()) < 0:
        raise InputError(f"{path}: class indices in y must be at least 0, found {int(y.min())}.")
    return y


def image_bounds(x: torch.Tensor) -> tuple[float, float] | None:
    """Return (0, 1) for what looks like images: (N, C, H, W), one or three channels, all values in [0, 1]."""
    looks = x.ndim == 4 and x.shape[1] in (1, 3) and float(x.min()) >= 0.0 and float(x.max()) <= 1.0
    return (0.0, 1.0) if looks else None


def _finite(values: torch.Tensor, path: str, name: str) -> torch.Tensor:
    values = values.to(torch.float32).contiguous()
    bad = ~torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else ~torch.isfinite(values)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InputError(
            f"{path}: {name} must be finite in float32; {int(bad.sum())} of {len(values)} samples hold NaN or infinite "
            f"values, the first is sample {first}; remove or repair them."
        )
    return values
