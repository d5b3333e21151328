"""How far a regression model's output is pushed: output PSNR, input PSNR and error increase over a grid of ε."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epsball.attack import Attack
from epsball.errors import InputError
from epsball.metrics.fooling import batches, check_grid, sweep
from epsball.metrics.intervals_student import student_interval
from epsball.metrics.psnr import psnr
from epsball.result import AttackResult
from epsball.target_model import TargetModel
from epsball.tensors import flat
from epsball.validation import check_batch, check_count, check_model, check_sample_id

__all__ = ["PsnrCurve", "model_outputs", "psnr_curve", "squared_error"]


@dataclass(frozen=True, eq=False)
class PsnrCurve:
    """What one attack does to a regression model's output at each ε.

    eps: (E,). psnr_in: of (x, x + η) in dB, psnr_out: of (y, f(x + η)) in dB, gain: ‖f(x + η) - y‖², exact: whether
    every local problem was solved globally, forwards, backwards, jvps: passes a sample; all (E, N). clean_error:
    ‖f(x) - y‖², clean_psnr: of (y, f(x)), both (N,).
    """

    eps: tuple[float, ...]
    psnr_in: Tensor
    psnr_out: Tensor
    gain: Tensor
    exact: Tensor
    forwards: Tensor
    backwards: Tensor
    jvps: Tensor
    clean_error: Tensor
    clean_psnr: Tensor

    @property
    def error_increase(self) -> Tensor:
        """What the attack adds to the squared error, ‖f(x + η) - y‖² - ‖f(x) - y‖², (E, N)."""
        return self.gain - self.clean_error

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the samples at each ε and the ends of its 95 % interval, (E, 3) float64.

        Samples that are not finite are left out: a PSNR is infinite where nothing changed. Where all of them are
        infinite so is the mean, and there is no interval (NaN).
        """
        return torch.tensor([student_interval(row.tolist()) for row in values.double()], dtype=torch.float64)


def psnr_curve(
    attack: Attack,
    model: Callable[[Tensor], Any],
    x: Tensor,
    target: Tensor | None,
    eps: Sequence[float],
    *,
    peak: float = 1.0,
    output_peak: float | None = None,
    seed: int = 0,
    sample_id: Tensor | None = None,
    batch_size: int = 500,
    progress: Callable[[int], None] | None = None,
) -> PsnrCurve:
    """Measure output PSNR, input PSNR and squared error of one attack over a grid of ε, batch by batch.

    x: (N, *S). target: the reference outputs y (N, *O), or None for y := f(x), the model's own outputs. eps: increasing
    budgets in units of x. peak: the range of x that PSNR refers to; output_peak: that of y, by default the same.
    progress is called with the number of samples finished. Source: section 6.2 of Balda, Behboodi, Mathar (2018).
    """
    x = check_batch(x)
    check_grid(eps)
    check_count("batch_size", batch_size)
    if target is not None and (not isinstance(target, Tensor) or not target.is_floating_point()):
        raise InputError("expected target as reference outputs (N, *O), floating, or None for the model's own outputs.")
    if len(x) == 0 or (target is not None and len(target) != len(x)):
        raise InputError(f"expected samples with a target each, got {len(x)} samples and target {_shape(target)}.")
    ids = check_sample_id(sample_id, x)
    parts: list[list[dict[str, Tensor]]] = []
    clean = []
    for rows in batches(len(x), batch_size):
        given = None if target is None else target[rows]
        own = model_outputs(model, x[rows])
        # The reference in the outputs' own type and place, as `SquaredError` compares them.
        y = own if given is None else given.to(own)
        found = sweep(attack, model, x[rows], given, eps, seed=seed, sample_id=ids[rows])
        parts.append([_columns(x[rows], y, result, peak, output_peak or peak) for _, result, _ in found])
        clean.append((squared_error(own, y), psnr(y, own, output_peak or peak)))
        if progress is not None:
            progress(rows.stop - rows.start)
    names = list(parts[0][0])
    columns: dict[str, Any] = {
        name: torch.stack([torch.cat([part[i][name] for part in parts]) for i in range(len(eps))]) for name in names
    }
    error, quality = (torch.cat(list(values)) for values in zip(*clean, strict=True))
    return PsnrCurve(eps=tuple(float(e) for e in eps), clean_error=error, clean_psnr=quality, **columns)


def model_outputs(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Compute f(x), (B, *O), in eval mode and without leaving a trace; InputError unless O is the same and floating."""
    check_model(model.model if isinstance(model, TargetModel) else model, x)
    with TargetModel(model) as judge, torch.no_grad():
        outputs = judge(x)
    if not outputs.is_floating_point():
        raise InputError(f"expected a regression model to return a floating tensor (B, *O), got {outputs.dtype}.")
    return outputs


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Compute ‖f - y‖² of each sample, (B, *O) x (B, *O) -> (B,), in the outputs' type."""
    return flat(outputs - y).square().sum(1)


def _columns(x: Tensor, y: Tensor, result: AttackResult, peak: float, output_peak: float) -> dict[str, Tensor]:
    return {
        "psnr_in": psnr(x, result.perturbed, peak),
        "psnr_out": psnr(y, result.outputs, output_peak),
        "gain": result.gain,
        "exact": result.exact,
        "forwards": result.forwards,
        "backwards": result.backwards,
        "jvps": result.jvps,
    }


def _shape(target: Tensor | None) -> str:
    return "none" if target is None else str(tuple(target.shape))
