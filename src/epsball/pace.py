"""How fast the gain of an attempt rises, and who it leads nowhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pace"]

_STEPS = 2  # over which the pace is taken
_STALLED = 0.06  # the share of what was gained in all below which an attempt hardly gains any more


@dataclass
class Pace:
    """The largest gains that an attempt of so many steps had at its first point and `_STEPS` before `turn`, (B,)."""

    turn: int
    steps: int
    first: Tensor
    before: Tensor

    @classmethod
    def of(cls, turn: int, steps: int, like: Tensor) -> Pace:
        """Begin; like: (B,) in the type of the gains."""
        unknown = torch.full_like(like, torch.nan)
        return cls(turn, steps, unknown, unknown)

    def take(self, index: Tensor) -> Pace:
        """Keep some samples."""
        return Pace(self.turn, self.steps, self.first[index], self.before[index])

    def stalls(self, step: int, largest: Tensor) -> Tensor:
        """Tell who hardly gains any more and at this pace would not succeed, (B,) bool; nobody before `turn`.

        largest: the largest gain so far, (B,), which is to be told at every step.
        """
        if step == 0:
            self.first = largest
        if step == self.turn - _STEPS:
            self.before = largest
        if step != self.turn:
            return torch.zeros_like(largest, dtype=torch.bool)
        more = largest - self.before
        return (more <= _STALLED * (largest - self.first)) & (-largest > more * (self.steps - step) / _STEPS)
