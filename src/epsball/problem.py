"""One batch under attack: the models, the completed objective and target, and the linearisation at x."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from epsball.errors import EpsballWarning
from epsball.local_models import Expansion, Linear
from epsball.objectives import Objective, two_class
from epsball.randomness import Generators
from epsball.target_model import TargetModel, stacked
from epsball.validation import check_scores

__all__ = ["Problem"]


class Problem:
    """One batch under attack: the models, the completed objective and target, and the linearisation at x."""

    def __init__(
        self,
        judge: TargetModel,
        surrogates: list[TargetModel],
        objective: Objective,
        x: Tensor,
        target: Tensor | None,
        streams: Generators,
    ) -> None:
        self.judge, self.x, self.streams = judge, x, streams
        self.transfers = bool(surrogates)
        self.crafter = stacked(surrogates) if surrogates else judge
        self.convolutional = any(m.convolutional for m in surrogates or [judge])
        self.classifies = objective.classifies
        # One sample is enough to know the outputs' shape; the whole batch only where its outputs are needed.
        whole = target is None or objective.needs_clean
        outputs = self.outputs(x if whole else x[:1])
        self.clean_forwards = int(whole)
        self.target = objective.check(outputs, target, len(x))
        if self.classifies and bool(((outputs >= 0).all(1) & ((outputs.sum(1) - 1.0).abs() < 1e-4)).all()):
            warnings.warn(
                "the model's outputs look like probabilities (non-negative, summing to 1): attacks want logits, since "
                "the gradients of a saturated softmax vanish; leave the softmax out of the model.",
                EpsballWarning,
                stacklevel=4,
            )
        self.objective = objective.prepare(outputs, self.target) if whole else objective
        if surrogates:
            with torch.no_grad():
                check_scores(two_class(surrogates[0](x[:1])), 1, what="each surrogate")
        self._first: Expansion | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """Compute the judged model's outputs without a graph."""
        with torch.no_grad():
            outputs = self.judge(x)
        return two_class(outputs) if self.classifies else outputs

    def craft(self, x: Tensor) -> Tensor:
        """Compute the outputs that are linearised."""
        outputs = self.crafter(x)
        return two_class(outputs) if self.classifies else outputs

    def expand(
        self,
        model: Linear,
        objective: Objective,
        point: Tensor,
        target: Tensor,
        candidates: Callable[[Tensor], Tensor] | None = None,
    ) -> Expansion:
        """Linearise at a point."""
        return model.expand(
            self.craft, objective, point, target, convolutional=self.convolutional, candidates=candidates
        )

    def first(self, model: Linear, keep: bool) -> Expansion:
        """Linearise the whole batch at x itself: the same for every budget, so made once if it is kept."""
        if self._first is not None:
            return self._first
        expansion = self.expand(model, self.objective, self.x, self.target)
        if keep:
            self._first = expansion
        return expansion
