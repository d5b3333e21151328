"""One objective an attempt: first an untargeted one, then the margin of one class after another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self, cast

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.objectives.base import Objective
from epsball.objectives.classification import CrossEntropy, Margin, TrueScore
from epsball.validation import check_count

__all__ = ["Ranked"]


@dataclass(frozen=True, eq=False)
class Ranked(Objective):
    """Raise `first` in the first attempt, then f_l - f_k of one class l an attempt, as the linear model ranks them.

    After the first attempt the margins of the best classes are linearised where it ended, and ordered by what the
    formulation promises: the largest linearised gain inside the set, or the smallest perturbation to the boundary (r₂
    of the paper, inside the bounds); with turn_after, by their scores at x. classes: how many take part, at most K - 1.
    Attempts beyond them begin again with `first`, from random points, or from where the schedule says. A success is any
    wrong prediction, and the gain is that of `Margin`.

    early: a search with a shrinking ball ranks them at x, before the first attempt, which then starts at the smallest
    perturbation that the linear model gives; False: it does not rank, which pays where there are few passes.
    labels: the classes of each sample in their order, (B, C), once known. again: where a class has had an attempt
    before, (B, C), and the next one begins at a random point. turn: which objective is raised now.
    """

    first: Objective = field(default_factory=CrossEntropy)
    classes: int = 9
    early: bool = True
    labels: Tensor | None = None
    again: Tensor | None = field(default=None, repr=False)
    turn: int = 0

    def __post_init__(self) -> None:
        """Refuse a count that is none."""
        check_count("classes", self.classes)
        if not isinstance(self.first, (CrossEntropy, Margin, TrueScore)):
            raise InputError(
                "expected first as eb.CrossEntropy(), eb.Margin(...) or eb.TrueScore(), which need nothing but the "
                f"outputs and the class, got {type(self.first).__name__}."
            )

    @property
    def ranking(self) -> Margin:
        """The objective whose pieces are ranked."""
        return Margin(self.classes)

    def attempt(self, number: int) -> tuple[Ranked, bool | Tensor]:
        """Return the objective of attempt `number`, and whether, or whose, (B,), begins at a random point."""
        width = 0 if self.labels is None else self.labels.shape[1]
        turn = number % (width + 1)
        fresh: bool | Tensor = number > width
        if not fresh and turn > 0 and self.again is not None:
            fresh = self.again[:, turn - 1]
        return (self if turn == self.turn else replace(self, turn=turn)), fresh

    def ranked(self, labels: Tensor, index: Tensor, batch: int) -> Ranked:
        """Return the objective with the classes (b, C) of the samples `index` of a batch in their order."""
        every = labels.new_zeros(batch, labels.shape[1])
        every[index] = labels
        return replace(self, labels=every)

    def narrowed(self, near: Tensor, found: Tensor) -> Ranked:
        """Give all attempts of a sample to the first `near` (B,) of its classes, in rounds.

        found (B,): the class that the attempt with `first` has been to. It comes last of the first round, as again.
        """
        labels, near = cast(Tensor, self.labels), near[:, None]
        place = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        been = (labels == found[:, None]) & (place < near)
        order = torch.where(been, near - 1, place - (been.cumsum(1) > 0).long()).argsort(dim=1, stable=True)
        turns = labels.gather(1, order).gather(1, place % near)
        return replace(self, labels=turns, again=place >= near - been.any(1, keepdim=True).long())

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute `first`'s pieces, or the margin of the class whose turn it is; (B, C)."""
        if self.turn == 0 or self.labels is None:
            return self.first.pieces(outputs, target)
        label = self.labels[:, self.turn - 1 : self.turn]
        return outputs.gather(1, label) - outputs.gather(1, target[:, None])

    def gain(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute max_{l≠k} f_l - f_k, (B,), whoever's turn it is."""
        return Margin().gain(outputs, target)

    def take(self, index: Tensor) -> Self:
        """Keep the classes of some samples."""
        if self.labels is None:
            return self
        return replace(self, labels=self.labels[index], again=None if self.again is None else self.again[index])
