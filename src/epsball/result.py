"""What an attack returns: every number measured on the returned tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from epsball.errors import Status

__all__ = ["AttackResult"]

_PASSES = ("forwards", "backwards", "jvps")


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """The perturbed inputs and what was measured on them.

    perturbed: x + η (B, *S). perturbation: perturbed - x, as the floating-point numbers are. success: (B,) bool, judged
    on `perturbed` by the model under attack. status: one `Status` a sample. gain: the objective there, (B,). norm: the
    set's own norm of the perturbation, (B,). outputs: the model's outputs there, (B, *O); for one logit the scores of
    its two classes. forwards, backwards, jvps: passes through the crafting model that the sample takes by itself, the
    verification included, (B,) int64. exact: whether every local problem on the way was solved globally, (B,) bool;
    the iteration itself is a local search. kkt: the largest relative residual of the optimality conditions of the
    quadratic problems at p = 2, (B,) float64, NaN where there were none. seconds: of the whole call. classifies:
    whether a success is a wrong class; else the gain says how far the outputs moved. prepared: how the copy of the
    model that the passes were made on was prepared, such as "fold+channels_last"; None where it was the model itself.
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
    classifies: bool = True
    prepared: str | None = None

    def __len__(self) -> int:
        return len(self.perturbed)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status.name}" for status, n in Counter(self.status).most_common())
        median = float(self.norm.median()) if len(self) else float("nan")
        passes = float((self.forwards + self.backwards + self.jvps).double().mean()) if len(self) else 0.0
        # Nearly every change moves an output: of a regression model the statuses alone would say nothing.
        gain = "" if self.classifies or not len(self) else f"mean gain {_mean(self.gain)}; "
        return (
            f"AttackResult({len(self)} samples: {gain}{counts or 'none'}; median norm {median:.4g}, "
            f"{passes:.1f} passes a sample, {self.seconds:.2f} s)"
        )

    def merge(self, fresh: AttackResult | None, index: Tensor, seconds: float) -> AttackResult:
        """Return this result with the samples `index` replaced by those of `fresh`, the others without passes."""
        values: dict[str, Any] = {name: torch.zeros_like(getattr(self, name)) for name in _PASSES}
        status = list(self.status)
        if fresh is not None:
            for name in (field.name for field in fields(self)):
                if isinstance(new := getattr(fresh, name), Tensor):
                    values[name] = values.get(name, getattr(self, name)).index_copy(0, index, new)
            for place, ended in zip(index.tolist(), fresh.status, strict=True):
                status[place] = ended
        return replace(self, status=tuple(status), seconds=seconds, **values)

    @classmethod
    def joined(cls, parts: Sequence[AttackResult]) -> AttackResult:
        """Return the result of all samples of the parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        values: dict[str, Any] = {
            field.name: torch.cat([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if isinstance(getattr(parts[0], field.name), Tensor)
        }
        status = tuple(ended for part in parts for ended in part.status)
        return replace(parts[0], status=status, seconds=sum(part.seconds for part in parts), **values)

    def having(self, status: Status) -> Tensor:
        """Tell which samples ended with this status, (B,) bool."""
        return torch.tensor([s is status for s in self.status], dtype=torch.bool, device=self.success.device)


def _mean(gain: Tensor) -> str:
    """Write the mean of the finite values, and how many others there are."""
    finite = gain[gain.isfinite()].double()
    others = len(gain) - len(finite)
    text = f"{float(finite.mean()):.4g}" if len(finite) else "nan"
    return text if not others else f"{text} ({others} not finite)"
