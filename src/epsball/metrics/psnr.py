"""Peak signal-to-noise ratio, the paper's measure of input and output perturbations."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.tensors import flat

__all__ = ["psnr"]


def psnr(reference: Tensor, changed: Tensor, peak: float = 1.0) -> Tensor:
    """Compute 10 log₁₀(peak² / MSE) in dB for each sample; (B, *S) x (B, *S) -> (B,), inf where nothing changed.

    peak: the largest possible value, in the units of the data. Source: section 6.2 of the paper.
    """
    if reference.shape != changed.shape:
        raise InputError(f"expected two batches of one shape, got {tuple(reference.shape)} and {tuple(changed.shape)}.")
    if not reference.is_floating_point() or not changed.is_floating_point():
        raise InputError(f"expected floating batches, got {reference.dtype} and {changed.dtype}; convert them first.")
    if not peak > 0:
        raise InputError(f"expected peak > 0, got {peak!r}.")
    error = flat(changed - reference).square().mean(1)
    return 10.0 * (peak * peak / error).log10() if error.numel() else torch.zeros_like(error)
