"""What an attack returns: every number measured on the returned tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.errors import Status

__all__ = ["AttackResult"]


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """The perturbed inputs and what was measured on them.

    perturbed: x + η (B, *S). perturbation: perturbed - x, as the floating-point numbers are. success: (B,) bool, judged
    on `perturbed` by the model under attack. status: one `Status` a sample. gain: the objective there, (B,). norm: the
    set's own norm of the perturbation, (B,). outputs: the model's outputs there, (B, *O); for one logit the scores of
    its two classes. forwards, backwards, jvps: passes through the crafting model that the sample takes by itself, the
    verification included, (B,) int64. exact: whether every local problem on the way was solved globally, (B,) bool;
    the iteration itself is a local search. kkt: the largest relative residual of the optimality conditions of the
    quadratic problems at p = 2, (B,) float64, NaN where there were none. seconds: of the whole call.
    """

    perturbed: Tensor
    perturbation: Tensor
    success: Tensor
    status: tuple[Status, ...]
    gain: Tensor
    norm: Tensor
    outputs: Tensor
    forwards: Tensor
    backwards: Tensor
    jvps: Tensor
    exact: Tensor
    kkt: Tensor
    seconds: float

    def __len__(self) -> int:
        return len(self.perturbed)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status.name}" for status, n in Counter(self.status).most_common())
        median = float(self.norm.median()) if len(self) else float("nan")
        passes = float((self.forwards + self.backwards + self.jvps).double().mean()) if len(self) else 0.0
        return (
            f"AttackResult({len(self)} samples: {counts or 'none'}; median norm {median:.4g}, "
            f"{passes:.1f} passes a sample, {self.seconds:.2f} s)"
        )

    def having(self, status: Status) -> Tensor:
        """Tell which samples ended with this status, (B,) bool."""
        return torch.tensor([s is status for s in self.status], dtype=torch.bool, device=self.success.device)
