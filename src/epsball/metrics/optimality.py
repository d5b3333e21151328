"""How near attacks come to the best of them all: local optimality of minimal-norm attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from epsball.errors import InputError

__all__ = ["optimality"]


def optimality(distance: Tensor, envelope: Tensor | None = None) -> Tensor:
    """Return 1 - (A - A*) / (ρ* ε₀ - A*) of each attack: the share it keeps of what the best attacks take, (..., K).

    A = ∫ ρ(ε) dε over [0, ε₀] is the area under an attack's robustness curve, ρ(ε) the share of samples that it leaves
    classified correctly within ε; A* is the area under the lower envelope of all attacks, which takes the smallest
    distance that any of them found for each sample; ρ* = ρ(0) is the accuracy without a perturbation, and ε₀ the
    largest finite distance of the envelope, where its curve ends. 1 is an attack that is best on every sample, 0 one
    that changes no sample within ε₀.

    distance: (..., K, N), the norm of attack k's perturbation of sample n in the units of x; 0 where the sample is
    misclassified already, inf where the attack failed. envelope: (..., N), distances already known, such as those of
    other attacks or of larger budgets; the smaller of them and of those given counts. The areas are exact, for
    ∫ ρ dε = mean_n min(d_n, ε₀): a sample that no attack moves counts ε₀ in each of them. float64; NaN where the
    envelope leaves nothing to lose: all its distances are 0, or none of the others is below ε₀. Raises InputError for
    negative or NaN distances, integers, and shapes that do not fit.

    Source: Cinà et al. 2024 (AttackBench), who sum the same curves by the trapezoidal rule.
    """
    _check("distance", distance, 2)
    found = distance.double()
    best = found.amin(-2)
    if envelope is not None:
        _check("envelope", envelope, 1)
        if envelope.shape != best.shape:
            raise InputError(
                f"expected envelope of shape {tuple(best.shape)}, one distance a sample, got {tuple(envelope.shape)}."
            )
        best = torch.minimum(best, envelope.to(best))
    limit = torch.where(best.isfinite(), best, 0.0).amax(-1, keepdim=True)
    ceiling = (best > 0).double().mean(-1, keepdim=True) * limit
    least = best.clamp_max(limit).mean(-1, keepdim=True)
    area = found.clamp_max(limit.unsqueeze(-1)).mean(-1)
    room = ceiling - least
    # Rounding of equal means must not pass for room.
    room = torch.where(room > 1e-12 * ceiling, room, torch.nan)
    return 1.0 - (area - least) / room


def _check(name: str, value: object, least: int) -> None:
    shape = "(..., K, N), attacks by samples" if least == 2 else "(..., N), one distance a sample"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"expected {name} as a floating-point tensor {shape}, got {got}.")
    if value.dim() < least or 0 in value.shape[-least:]:
        raise InputError(f"expected {name} of shape {shape}, none empty, got {tuple(value.shape)}.")
    if bool((value < 0).any() | value.isnan().any()):
        raise InputError(f"expected distances >= 0 in {name}, inf where an attack failed, got negative or NaN ones.")
