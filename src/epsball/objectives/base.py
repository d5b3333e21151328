"""What every objective answers: `gain`, what the attacker raises, and when a sample counts as a `success`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.tensors import finite
from epsball.validation import check_class_range, check_labels, check_scores

__all__ = ["Objective", "two_class"]


class Objective(ABC):
    """A function of the model's outputs (B, *O) and the target that the attacker raises.

    `pieces` (B, C) are smooth functions whose maximum is the gain; the linear model expands each of them.
    """

    #: Models on which the attack is crafted instead of the one it is judged on.
    surrogates: tuple[Callable[[Tensor], Tensor], ...] = ()
    #: Whether outputs are class scores (B, K), K ≥ 2, with class indices (B,) as targets.
    classifies: bool = True
    #: Whether piece c is the same function at every point (then what was learnt of it at one point helps at the next).
    fixed_pieces: bool = False

    @abstractmethod
    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the smooth pieces (B, C) whose maximum over C is the gain."""

    def gain(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute what the attacker raises, (B,)."""
        return self.pieces(outputs, target).amax(1)

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether a sample with these outputs is a success, (B,) bool; never where outputs are not finite."""
        wrong = outputs.argmax(1) != target if self.classifies else self.gain(outputs, target) > 0
        return wrong & finite(outputs)

    def prepare(self, outputs: Tensor, target: Tensor) -> Self:
        """Complete the objective from the outputs (B, *O) at the unperturbed input; called where `needs_clean`."""
        return self

    @property
    def needs_clean(self) -> bool:
        """Whether `prepare` needs the outputs at the unperturbed input (one more forward pass)."""
        return False

    def resolve(self, outputs: Tensor, target: Tensor | None) -> Objective:
        """Return the objective to use for these outputs and this target: itself, unless it stands for several."""
        return self

    def attempt(self, number: int) -> tuple[Objective, bool | Tensor]:
        """Return the objective of attempt `number`, and whether, or whose, (B,), begins at a random point to be new."""
        return self, False

    def take(self, index: Tensor) -> Self:
        """Keep what belongs to some samples of the batch."""
        return self

    def check(self, outputs: Tensor, target: Tensor | None, batch: int) -> Tensor:
        """Return the target to use, from the model's outputs where None came; refuse what does not fit.

        outputs may be those of the first sample alone where a target came.
        """
        if self.classifies:
            scores = check_scores(outputs, len(outputs))
            labels = scores.argmax(1) if target is None else check_labels(target, batch).to(scores.device)
            check_class_range(labels, scores.shape[1])
            return labels
        if target is None:
            return outputs.detach()
        if not isinstance(target, Tensor):
            raise InputError(f"expected target as a tensor (B, *O) or None, got {type(target).__name__}.")
        if target.shape[:1] != (batch,):
            raise InputError(f"expected a target for each of the {batch} samples, got shape {tuple(target.shape)}.")
        return target.detach().to(outputs.device)


def two_class(outputs: Tensor) -> Tensor:
    """Turn one logit z (B, 1) into the scores (-z/2, z/2) of two classes, whose margin is z; others pass unchanged."""
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] == 1:
        return torch.cat([-0.5 * outputs, 0.5 * outputs], 1)
    return outputs
