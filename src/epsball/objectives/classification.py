"""Objectives of class scores (B, K) with class indices (B,) as targets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from epsball.errors import EpsballWarning, InputError
from epsball.objectives.base import Objective
from epsball.validation import check_class_range, check_labels

__all__ = ["CrossEntropy", "Margin", "TargetedMargin", "TrueScore"]


@dataclass(frozen=True)
class Margin(Objective):
    """Raise max_{l≠k} f_l - f_k, the negated margin -L of the true class k; gain > 0 means fooled.

    classes: "all", every l ≠ k is one affine piece of the linear model; "runner-up", the best l at the current point;
    an integer m, the m best. One backward pass a piece. Source: equation (2) of the paper.
    """

    classes: Literal["all", "runner-up"] | int = "all"

    def __post_init__(self) -> None:
        """Refuse anything but "all", "runner-up" or a count."""
        count = isinstance(self.classes, int) and not isinstance(self.classes, bool) and self.classes >= 1
        if not count and self.classes not in ("all", "runner-up"):
            raise InputError(f'expected classes as "all", "runner-up" or an integer >= 1, got {self.classes!r}.')
        object.__setattr__(self, "fixed_pieces", self.classes == "all")

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute f_l - f_k for the chosen classes l, best first unless all are chosen; (B, C)."""
        return outputs.gather(1, self.chosen(outputs, target)) - outputs.gather(1, target[:, None])

    def chosen(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the class l of each piece, best first unless all are chosen; (B, C)."""
        count = outputs.shape[1] - 1
        wanted = {"all": count, "runner-up": 1}.get(str(self.classes), self.classes)
        if not isinstance(wanted, int) or wanted >= count:
            # Every class but k, in order: the k-th column is skipped.
            column = torch.arange(count, device=outputs.device)[None]
            return column + (column >= target[:, None]).long()
        own = functional.one_hot(target, outputs.shape[1]).bool()
        return outputs.detach().masked_fill(own, -torch.inf).topk(wanted, dim=1).indices

    def gain(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute max_{l≠k} f_l - f_k, (B,)."""
        own = functional.one_hot(target, outputs.shape[1]).bool()
        return outputs.masked_fill(own, -torch.inf).amax(1) - outputs.gather(1, target[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class TargetedMargin(Objective):
    """Raise f_label - f_k; a success is a prediction of `label`.

    label: a class, one for each sample (B,), or chosen at the unperturbed input: "runner-up" (the best wrong class) or
    "least-likely".
    """

    label: int | Tensor | Literal["runner-up", "least-likely"] = "runner-up"

    def __post_init__(self) -> None:
        """Refuse labels that cannot be classes."""
        if isinstance(self.label, str) and self.label not in ("runner-up", "least-likely"):
            raise InputError(f'expected label as a class, "runner-up" or "least-likely", got {self.label!r}.')
        if isinstance(self.label, bool) or not isinstance(self.label, (int, str, Tensor)):
            raise InputError(f"expected label as an integer or a tensor (B,), got {type(self.label).__name__}.")

    @property
    def needs_clean(self) -> bool:
        """Whether the label is chosen from the outputs at the unperturbed input."""
        return isinstance(self.label, str)

    def prepare(self, outputs: Tensor, target: Tensor) -> TargetedMargin:
        """Choose the label of each sample, unless it was given."""
        if not self.needs_clean:
            return self
        own = functional.one_hot(target, outputs.shape[1]).bool()
        if self.label == "runner-up":
            return replace(self, label=outputs.masked_fill(own, -torch.inf).argmax(1))
        return replace(self, label=outputs.masked_fill(own, torch.inf).argmin(1))

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute f_label - f_k, (B, 1)."""
        return outputs.gather(1, self._labels(outputs)[:, None]) - outputs.gather(1, target[:, None])

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether the prediction is the label, (B,)."""
        return (outputs.argmax(1) == self._labels(outputs)) & outputs.isfinite().all(1)

    def take(self, index: Tensor) -> TargetedMargin:
        """Keep the labels of some samples."""
        return replace(self, label=self.label[index]) if isinstance(self.label, Tensor) else self

    def check(self, outputs: Tensor, target: Tensor | None, batch: int) -> Tensor:
        """Refuse labels that are not classes of the model."""
        target = super().check(outputs, target, batch)
        if not isinstance(self.label, str):
            label = torch.tensor([self.label] * batch) if isinstance(self.label, int) else self.label
            check_class_range(check_labels(label, batch), outputs.shape[1])
            if bool((label.to(target.device) == target).any()):
                # Without their number: it would make each batch's warning another one.
                warnings.warn(
                    "label is the own class of some of the samples: its margin over itself is 0 and has no gradient, "
                    "so these stay as they are; leave them out, or give another label for each sample.",
                    EpsballWarning,
                    stacklevel=6,
                )
        return target

    def _labels(self, outputs: Tensor) -> Tensor:
        if isinstance(self.label, str):
            raise InputError(f"label={self.label!r} is chosen at the unperturbed input; call prepare first.")
        label = torch.as_tensor(self.label, dtype=torch.int64, device=outputs.device)
        return label.expand(len(outputs))


@dataclass(frozen=True)
class TrueScore(Objective):
    """Raise -f_k, the negated score of the true class ("Algorithm 2" of the paper); success is judged by the class."""

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute -f_k, (B, 1)."""
        return -outputs.gather(1, target[:, None])


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Raise the training loss log Σ_l exp(f_l) - f_k (FGSM, BIM, PGD); success is judged by the class."""

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the cross-entropy of each sample, (B, 1)."""
        return functional.cross_entropy(outputs, target, reduction="none")[:, None]
