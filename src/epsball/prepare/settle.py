"""What a copy may not decide: where its rounding could turn a success, or make something of nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from epsball.local_models import Expansion, GaussNewton
from epsball.objectives import Objective, SquaredError
from epsball.tensors import expand, flat

__all__ = ["settled"]

_EDGE, _NOTHING = 16.0, 4.0  # times how far the outputs of copy and model were apart


def settled(
    expansion: Expansion | GaussNewton,
    model: Callable[[Tensor], Tensor],
    objective: Objective,
    point: Tensor,
    target: Tensor,
    gap: float,
) -> Expansion | GaussNewton:
    """Return a linearisation of a copy on which no rounding decides; gap: as in `Prepared`.

    Where the two best scores are nearly equal, the outputs are those of the model itself, one more forward pass of
    these samples. Where the copy's output is the target but for rounding, as at x with y = f(x), the squared error and
    its gradient are zero, as they are of the model itself.
    """
    outputs = expansion.outputs.detach()
    gap = max(gap, torch.finfo(outputs.dtype).eps)
    scale = flat(outputs).abs().amax(1)
    if objective.classifies and isinstance(expansion, Expansion):
        best = outputs.topk(2, 1).values
        near = best[:, 0] - best[:, 1] <= _EDGE * gap * scale
        rows = near.nonzero()[:, 0]
        if len(rows):
            own = outputs.index_copy(0, rows, model(point[rows]))
            return replace(expansion, outputs=own, forwards=expansion.forwards + near)
    elif isinstance(objective, SquaredError):
        nothing = flat((outputs - target).abs()).amax(1) <= _NOTHING * gap * scale
        if isinstance(expansion, GaussNewton):
            expansion.residual = expansion.residual.masked_fill(nothing[:, None], 0.0)
        else:
            value = expansion.value.masked_fill(nothing[:, None], 0.0)
            return replace(
                expansion,
                value=value,
                gradient=expansion.gradient.masked_fill(expand(nothing, expansion.gradient), 0.0),
            )
    return expansion
