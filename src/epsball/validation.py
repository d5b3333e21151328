"""Every input check, one door: what was expected, what came, what to do, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from epsball.errors import InputError

__all__ = [
    "check_batch",
    "check_bounds",
    "check_bounds_contain",
    "check_count",
    "check_eps",
    "check_labels",
    "check_p",
    "check_sample_id",
    "check_scores",
    "check_seed",
    "check_weights",
]


def check_p(p: object) -> None:
    """Refuse a norm order outside [1, inf]."""
    if not isinstance(p, Real) or isinstance(p, bool) or math.isnan(float(p)) or float(p) < 1.0:
        raise InputError(f"expected a norm order p in [1, inf], got {p!r}; use 1, 2, math.inf or any real between.")


def check_eps(eps: object) -> None:
    """Refuse a budget that is negative, NaN or not a number."""
    if isinstance(eps, Tensor):
        if eps.dim() > 1 or not eps.is_floating_point():
            raise InputError(
                f"expected eps as a number or a floating tensor (B,), got shape {tuple(eps.shape)}, {eps.dtype}."
            )
        bad = bool((eps.isnan() | (eps < 0)).any())
    elif isinstance(eps, Real) and not isinstance(eps, bool):
        bad = math.isnan(float(eps)) or float(eps) < 0
    else:
        raise InputError(f"expected eps as a number or a floating tensor (B,), got {type(eps).__name__}.")
    if bad:
        raise InputError(f"expected eps >= 0 in the units of x, got {eps!r}; 0.1 means 0.1 of [0, 1].")


def check_bounds(bounds: object) -> None:
    """Refuse bounds that are not a pair lo < hi."""
    if bounds is None:
        return
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise InputError(f"expected bounds as a pair (lo, hi) or None, got {bounds!r}.")
    try:
        lo, hi = (torch.as_tensor(b, dtype=torch.float64) for b in bounds)
        gap = hi - lo
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"expected bounds as two numbers or tensors (lo, hi), got {bounds!r}.") from error
    if bool(lo.isnan().any() | hi.isnan().any()) or not bool((gap > 0).all()):
        raise InputError(f"expected bounds (lo, hi) with lo < hi, got {bounds!r}; swap them or widen the range.")


def check_weights(weights: object) -> None:
    """Refuse weights that are not a finite non-negative tensor."""
    if weights is None:
        return
    if not isinstance(weights, Tensor):
        raise InputError(f"expected weights as a tensor of the shape of one sample, got {type(weights).__name__}.")
    if weights.is_complex():
        raise InputError(f"expected real weights, got {weights.dtype}.")
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise InputError("expected finite weights >= 0 (0 freezes an entry), got a negative or non-finite one.")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse a count that is not an integer of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"expected {name} as an integer >= {least}, got {value!r}.")


def check_seed(seed: object) -> int:
    """Return the seed as an integer, or refuse it."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise InputError(f"expected seed as an integer, got {seed!r}.")
    return int(seed)


def check_batch(x: object) -> Tensor:
    """Refuse inputs that are not a finite float32 or float64 batch."""
    if not isinstance(x, Tensor):
        raise InputError(f"expected x as a torch tensor (B, *S), got {type(x).__name__}; use torch.as_tensor.")
    if x.dim() < 2 or math.prod(x.shape[1:]) == 0:
        raise InputError(
            f"expected x as a batch (B, *S) with at least one entry a sample, got shape {tuple(x.shape)}; "
            "add the batch dimension with x[None]."
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"expected x in float32 or float64, got {x.dtype}; convert it, and scale integer images to the model's "
            "range first, e.g. x.float() / 255."
        )
    if not bool(x.isfinite().all()):
        count = int((~x.isfinite()).flatten(1).any(1).sum())
        raise InputError(f"expected finite inputs, got NaN or infinity in {count} of {len(x)} samples; remove them.")
    # An inference tensor cannot take part in a graph; its copy can.
    return x.clone() if x.is_inference() else x.detach()


def check_bounds_contain(x: Tensor, bounds: tuple[float | Tensor, float | Tensor] | None) -> None:
    """Refuse inputs outside the bounds by more than rounding."""
    if bounds is None or x.numel() == 0:
        return
    lo, hi = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in bounds)
    try:
        lo.expand(x.shape[1:])
        hi.expand(x.shape[1:])
    except RuntimeError as error:
        raise InputError(
            f"expected bounds that broadcast to one sample {tuple(x.shape[1:])}, got {tuple(lo.shape)} and "
            f"{tuple(hi.shape)}."
        ) from error
    rounding = 8.0 * torch.finfo(x.dtype).eps  # of each bound by itself: the other one may be infinite
    below, above = x < lo - rounding * lo.abs().clamp_min(1.0), x > hi + rounding * hi.abs().clamp_min(1.0)
    if bool((below | above).any()):
        raise InputError(
            f"expected inputs inside bounds [{float(lo.amin()):g}, {float(hi.amax()):g}], got values from "
            f"{float(x.amin()):g} to {float(x.amax()):g}; rescale x or give the bounds of your data."
        )


def check_model(model: object, x: Tensor) -> None:
    """Refuse a model that cannot be called, or whose parameters are of another type or device than x."""
    if not callable(model):
        raise InputError(f"expected model as a torch.nn.Module or a callable x -> outputs, got {type(model).__name__}.")
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.dtype != x.dtype:
                raise InputError(
                    f"expected x in the model's type {parameter.dtype} ({name}), got {x.dtype}; convert one of them."
                )
            if parameter.device != x.device:
                raise InputError(
                    f"expected x on the model's device {parameter.device} ({name}), got {x.device}; move one of them."
                )


def check_labels(target: object, batch: int) -> Tensor:
    """Refuse class labels of the wrong type or length."""
    if not isinstance(target, Tensor):
        raise InputError(f"expected target as a tensor of class indices (B,), got {type(target).__name__}.")
    if target.dtype in (torch.bool, torch.uint8) or target.is_floating_point() or target.is_complex():
        raise InputError(
            f"expected target as class indices in int64, got {target.dtype}; use target.long(), or for a regression "
            "model a recipe such as 'quadratic-lp' or 'linear-lp-10'."
        )
    if target.shape != (batch,):
        raise InputError(f"expected target of shape ({batch},), one class a sample, got {tuple(target.shape)}.")
    return target.detach().to(torch.int64)


def check_scores(outputs: object, batch: int, *, what: str = "the model") -> Tensor:
    """Refuse outputs of a classifier that are not scores (B, K) with K ≥ 2."""
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"expected {what} to return a tensor (B, K) of class scores, got {type(outputs).__name__}; "
            "pick the scores with eb.TargetModel(model, selector=key, index or function)."
        )
    if outputs.dim() != 2 or outputs.shape[0] != batch or outputs.shape[1] < 2:
        raise InputError(
            f"expected {what} to return class scores (B, K) with B={batch} and K >= 2 (or one logit (B, 1) for two "
            f"classes), got {tuple(outputs.shape)}."
        )
    if not outputs.is_floating_point():
        raise InputError(f"expected {what} to return floating scores, got {outputs.dtype}.")
    return outputs


def check_class_range(target: Tensor, classes: int) -> None:
    """Refuse labels that are not a class of the model."""
    if target.numel() and (int(target.min()) < 0 or int(target.max()) >= classes):
        raise InputError(
            f"expected class indices from 0 to {classes - 1}, got {int(target.min())} to {int(target.max())}."
        )


def check_sample_id(sample_id: Tensor | None, x: Tensor) -> Tensor:
    """Return the sample numbers as (B,) int64, 0 .. B-1 by default."""
    if sample_id is None:
        return torch.arange(len(x), device=x.device)
    if not isinstance(sample_id, Tensor):
        raise InputError(f"expected sample_id as an integer tensor ({len(x)},), got {type(sample_id).__name__}.")
    whole = not (sample_id.is_floating_point() or sample_id.is_complex() or sample_id.dtype == torch.bool)
    if not whole or sample_id.shape != (len(x),):
        raise InputError(
            f"expected sample_id as an integer tensor of shape ({len(x)},), one number a sample, got shape "
            f"{tuple(sample_id.shape)}, {sample_id.dtype}."
        )
    return sample_id.to(device=x.device, dtype=torch.int64)


def check_callable(name: str, value: object) -> Callable[..., Any]:
    """Refuse something that cannot be called."""
    if not callable(value):
        raise InputError(f"expected {name} to be callable, got {type(value).__name__}.")
    return value
