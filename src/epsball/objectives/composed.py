"""Objectives made of others or of a user's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.objectives.base import Objective, two_class
from epsball.objectives.classification import CrossEntropy, Margin
from epsball.objectives.regression import SquaredError
from epsball.tensors import flat

__all__ = ["ByTarget", "Custom", "Ensemble", "as_objective"]


@dataclass(frozen=True)
class ByTarget(Objective):
    """Raise the margin where class indices (B,) come with scores (B, K), and the squared error for any other target.

    For attacks that serve both tasks: groups, and the random baselines. No target means the squared error to f(x).
    """

    classification: Objective = field(default_factory=lambda: Margin("runner-up"))
    regression: Objective = field(default_factory=SquaredError)

    @property
    def needs_clean(self) -> bool:
        """Whether one of the two needs the outputs at the unperturbed input."""
        return self.classification.needs_clean or self.regression.needs_clean

    def resolve(self, outputs: Tensor, target: Tensor | None) -> Objective:
        """Choose by the target's type and shape."""
        labels = isinstance(target, Tensor) and target.dim() == 1 and not target.is_floating_point()
        return self.classification if labels and outputs.dim() == 2 else self.regression

    def pieces(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the pieces of the chosen objective, (B, C)."""
        return self.resolve(outputs, target).pieces(outputs, target)


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
        return said & flat(outputs).isfinite().all(1)


@dataclass(frozen=True)
class Ensemble(Objective):
    """Raise the mean objective of other models: crafted on the surrogates, judged on the model under attack.

    models: the surrogates, each x -> (B, K). objective: what is raised on each of them.
    """

    models: Sequence[Callable[[Tensor], Tensor]]
    objective: Objective = field(default_factory=CrossEntropy)

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


def as_objective(objective: Objective | Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Accept an objective or any callable (outputs, target) -> (B,)."""
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        return Custom(objective)
    raise InputError(f"expected an objective or a callable (outputs, target) -> (B,), got {type(objective).__name__}.")
