"""What the attacker raises: `gain`, and when a sample counts as a `success`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from epsball.errors import InputError
from epsball.validation import check_class_range, check_labels, check_scores

__all__ = [
    "CrossEntropy",
    "Custom",
    "Ensemble",
    "Margin",
    "Objective",
    "SquaredError",
    "TargetedMargin",
    "TrueScore",
    "as_objective",
    "two_class",
]


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
        return wrong & outputs.flatten(1).isfinite().all(1)

    def prepare(self, outputs: Tensor, target: Tensor) -> Self:
        """Complete the objective from the outputs (B, *O) at the unperturbed input; called where `needs_clean`."""
        return self

    @property
    def needs_clean(self) -> bool:
        """Whether `prepare` needs the outputs at the unperturbed input (one more forward pass)."""
        return False

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
        margins = outputs - outputs.gather(1, target[:, None])
        count = outputs.shape[1] - 1
        wanted = {"all": count, "runner-up": 1}.get(str(self.classes), self.classes)
        if not isinstance(wanted, int) or wanted >= count:
            # Every class but k, in order: the k-th column is skipped.
            column = torch.arange(count, device=outputs.device)[None]
            return margins.gather(1, column + (column >= target[:, None]).long())
        own = functional.one_hot(target, outputs.shape[1]).bool()
        chosen = margins.detach().masked_fill(own, -torch.inf).topk(wanted, dim=1).indices
        return margins.gather(1, chosen)

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


@dataclass(frozen=True)
class SquaredError(Objective):
    """Raise ‖f(x + η) - y‖², y the target, or f(x) where no target is given.

    A success is an error above `threshold`. With y = f(x) the gradient at η = 0 is exactly zero: dither.
    """

    threshold: float = 0.0
    classifies = False

    def __post_init__(self) -> None:
        """Refuse a threshold that is no number."""
        if not isinstance(self.threshold, Real) or isinstance(self.threshold, bool):
            raise InputError(f"expected threshold as a number, got {self.threshold!r}.")

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the squared error of each sample, (B, 1)."""
        return (outputs - target).flatten(1).square().sum(1, keepdim=True)

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether the error exceeds the threshold, (B,); never where outputs are not finite."""
        return (self.gain(outputs, target) > self.threshold) & outputs.flatten(1).isfinite().all(1)

    def check(self, outputs: Tensor, target: Tensor | None, batch: int) -> Tensor:
        """Refuse a target of another shape than the output."""
        target = super().check(outputs, target, batch)
        if target.shape[1:] != outputs.shape[1:]:
            raise InputError(
                f"expected a target of the output's shape {(batch, *outputs.shape[1:])}, got {tuple(target.shape)}."
            )
        return target.to(outputs.dtype)


@dataclass(frozen=True)
class Custom(Objective):
    """Raise function(outputs, target) -> (B,); a success is a gain above 0, or what `succeeds` says."""

    function: Callable[[Tensor, Tensor], Tensor]
    succeeds: Callable[[Tensor, Tensor], Tensor] | None = None
    classifies = False

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the function, (B, 1)."""
        value = self.function(outputs, target)
        if not isinstance(value, Tensor) or value.shape != outputs.shape[:1]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"expected the objective to return one number a sample, ({len(outputs)},), got {shape}.")
        return value[:, None]

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether the gain exceeds 0, or what `succeeds` says; (B,), never where outputs are not finite."""
        if self.succeeds is None:
            return super().success(outputs, target)
        said = self.succeeds(outputs, target)
        if not isinstance(said, Tensor) or said.shape != outputs.shape[:1] or said.dtype != torch.bool:
            what = f"{tuple(said.shape)}, {said.dtype}" if isinstance(said, Tensor) else type(said).__name__
            raise InputError(f"expected succeeds to return one bool a sample, ({len(outputs)},), got {what}.")
        return said & outputs.flatten(1).isfinite().all(1)


@dataclass(frozen=True)
class Ensemble(Objective):
    """Raise the mean objective of other models: crafted on the surrogates, judged on the model under attack.

    models: the surrogates, each x -> (B, K). objective: what is raised on each of them.
    """

    models: Sequence[Callable[[Tensor], Tensor]]
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        """Refuse an empty ensemble and objectives that need the outputs at the unperturbed input."""
        if (
            not isinstance(self.models, (Sequence, nn.ModuleList))
            or len(self.models) == 0
            or not all(callable(model) for model in self.models)
        ):
            raise InputError("expected a list of at least one surrogate model, each a callable x -> scores (B, K).")
        object.__setattr__(self, "objective", as_objective(self.objective))
        if self.objective.needs_clean or self.objective.surrogates or isinstance(self.objective, SquaredError):
            raise InputError(f"expected a plain objective for the surrogates, got {self.objective!r}.")
        object.__setattr__(self, "surrogates", tuple(self.models))

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the mean gain over the surrogates' outputs (B, models, K), (B, 1)."""
        if outputs.dim() == 2:  # the judged model's own outputs
            return self.objective.gain(outputs, target)[:, None]
        each = [self.objective.gain(two_class(o), target) for o in outputs.unbind(1)]
        return torch.stack(each, 1).mean(1, keepdim=True)

    def success(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Tell whether the judged model's outputs are a success of the objective, (B,)."""
        return self.objective.success(outputs, target)

    def take(self, index: Tensor) -> Ensemble:
        """Keep what the objective knows of some samples."""
        return replace(self, objective=self.objective.take(index))

    def check(self, outputs: Tensor, target: Tensor | None, batch: int) -> Tensor:
        """Refuse labels that are not classes of the judged model, the objective's own included."""
        if self.objective.classifies:
            return self.objective.check(outputs, target, batch)
        return super().check(outputs, target, batch)


def two_class(outputs: Tensor) -> Tensor:
    """Turn one logit z (B, 1) into the scores (-z/2, z/2) of two classes, whose margin is z; others pass unchanged."""
    if isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] == 1:
        return torch.cat([-0.5 * outputs, 0.5 * outputs], 1)
    return outputs


def as_objective(objective: Objective | Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Accept an objective or any callable (outputs, target) -> (B,)."""
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        return Custom(objective)
    raise InputError(f"expected an objective or a callable (outputs, target) -> (B,), got {type(objective).__name__}.")
