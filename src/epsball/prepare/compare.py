"""Whether a copy computes what the model does: outputs and gradients, on given samples and on random ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from epsball.prepare.copies import Prepared
from epsball.prepare.forms import NoCopyError
from epsball.randomness import Generators
from epsball.target_model import TargetModel
from epsball.tensors import flat

__all__ = ["compare", "direction", "passes"]

_EQUAL = 1e-5, 1e-5  # of outputs and gradients in the type of x
_ROUGH = 5e-2, 0.3  # in bfloat16
_SAMPLES, _DRAWN = 8, 3
_ROUNDINGS, _MORE, _MOST = 8.0, 4.0, 0.05
_TF32 = 2.0**-11

Bounds = tuple[float | Tensor, float | Tensor] | None


def direction(model: TargetModel, x: Tensor) -> Tensor:
    """Return fixed weights of the outputs of one sample, (*O), none of them zero."""
    with torch.no_grad():
        shape = model(x[:1]).shape[1:]
    return torch.cos(1.0 + torch.arange(shape.numel(), dtype=x.dtype, device=x.device)).reshape(shape)


@torch.enable_grad()
def passes(model: TargetModel, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs (B, *O), and the gradient (B, *S) of their sum weighted by `along` (*O)."""
    point = x.detach().requires_grad_()
    outputs = model(point)
    (gradient,) = torch.autograd.grad((outputs * along).sum(), point)
    return outputs.detach(), gradient


def compare(model: TargetModel, other: Prepared, x: Tensor, bounds: Bounds) -> float:
    """Return how far outputs are apart, over the largest output of the sample; NoCopyError where too far.

    On some of the samples x (B, *S) and on random points of the bounds, fewer of them, so that a model which asks for
    the number of samples is seen to. Outputs agree to 1e-5 of the largest of the batch, gradients to 1e-5 of the norm
    for most samples: at a kink of a ReLU or a tie of a pooling, rounding takes either side, for the model itself too,
    and a few times what it makes of a few roundings of x is allowed.
    """
    limit, steep = _limits(other)
    gap = 0.0
    along = direction(model, x)
    with _exact(x.device):
        for points in (x[:_SAMPLES], _drawn(x, bounds)):
            try:
                outputs, gradient = passes(model, points, along)
                others, slope = passes(other, points, along)
            except Exception as error:  # a copy may fail in any way, a model on random points too
                raise NoCopyError(f"it fails ({type(error).__name__}: {error})".splitlines()[0]) from error
            if others.shape != outputs.shape or not bool(_distance(outputs, others).le(limit).all()):
                raise NoCopyError("the copy's outputs are not the model's")
            apart = _apart(gradient, slope)
            if not apart <= steep:
                allowed = _MORE * _apart(gradient, passes(model, _nudged(points), along)[1])
                if not apart <= max(steep, min(allowed, _MOST)):
                    raise NoCopyError("the copy's gradients are not the model's")
            gap = max(gap, float(_distance(outputs, others, each=True).amax()))
    # Where all outputs of a sample are nearly zero, the share says nothing.
    gap = min(gap, limit)
    rounds = x.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    return max(gap, _TF32) if rounds else gap


def _distance(a: Tensor, b: Tensor, *, each: bool = False) -> Tensor:
    """Return max |a - b| of each sample over the largest |a| of the batch, or of each sample; NaN is as NaN is."""
    a, b = flat(a.detach()), flat(b.detach())
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).amax(1)
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
    return apart / (scale if each else scale.amax()).clamp_min(torch.finfo(a.dtype).tiny)


def _apart(a: Tensor, b: Tensor) -> float:
    """Return the median over samples of the distance of two gradients, over the norm of the first."""
    a, b = flat(a), flat(b)
    scale = torch.linalg.vector_norm(a, dim=1)
    floor = scale.amax().clamp_min(torch.finfo(a.dtype).tiny)
    return float((torch.linalg.vector_norm(a - b, dim=1) / scale.clamp_min(1e-3 * floor)).median())


def _limits(other: Prepared) -> tuple[float, float]:
    return _ROUGH if "bfloat16" in other.form else _EQUAL


def _nudged(points: Tensor) -> Tensor:
    """Move every entry by a few roundings of the largest, up and down in no order."""
    size = _ROUNDINGS * torch.finfo(points.dtype).eps * points.abs().amax()
    signs = torch.cos(torch.arange(points[0].numel(), dtype=points.dtype, device=points.device)).sign()
    return points + size * signs.reshape(points.shape[1:])


def _drawn(x: Tensor, bounds: Bounds) -> Tensor:
    """Draw a few points of the bounds, of the range of x where there are none; (3, *S)."""
    draw = Generators.of(0, torch.arange(_DRAWN, device=x.device)).uniform(x.shape[1:], x.dtype)
    lo, hi = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in bounds or (-torch.inf, torch.inf))
    lo = torch.where(lo.isfinite(), lo, x.amin())
    hi = torch.where(hi.isfinite(), hi, x.amax())
    return lo + (hi - lo) * draw


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Multiply without TF32, whose rounding is above what is compared."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
