"""Distances to the decision boundary: Theorem 1's estimate, DeepFool's, and the paper's measures ρ̂₁, ρ̂₂, ε₉₉."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import Linear
from epsball.metrics.fooling import batches, predict
from epsball.objectives import Margin, two_class
from epsball.recipes import recipe
from epsball.sets import LpBall
from epsball.target_model import TargetModel
from epsball.tensors import norm
from epsball.validation import check_batch, check_count, check_labels, check_model, check_p
from epsball.working_set import Largest, cut

__all__ = ["Robustness", "first_order_distance", "robustness"]


@dataclass(frozen=True, eq=False, repr=False)
class Robustness:
    """The paper's three measures and the per-sample distances behind them, all in the ℓp norm and units of x.

    distance: the norm of DeepFool's perturbation, inf where it found none, 0 where the input is misclassified already.
    relative: distance / ‖x‖_p. r2: min_l L_l / ‖∇L_l‖_q, the first-order estimate (Theorem 1), 0 where misclassified.
    correct: classified correctly without a perturbation. All (N,). rho1, rho2: the means of relative and r2 over the
    correctly classified samples with a finite value. eps99: the least ε at which DeepFool fools more than `level` of
    the correctly classified samples, inf where it never does. forwards, backwards: DeepFool's passes, (N,).
    """

    p: float
    level: float
    distance: Tensor
    relative: Tensor
    r2: Tensor
    correct: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def rho1(self) -> float:
        """ρ̂₁, the mean relative size of DeepFool's perturbations."""
        return self.mean(self.relative)[0]

    @property
    def rho2(self) -> float:
        """ρ̂₂, the mean first-order distance to the decision boundary."""
        return self.mean(self.r2)[0]

    @property
    def eps99(self) -> float:
        """ε₉₉, the least ε at which DeepFool fools more than 99 % (or `level`) of the correctly classified samples."""
        distance = self.distance[self.correct].sort().values
        share = torch.arange(1, len(distance) + 1, dtype=torch.float64, device=distance.device) / max(1, len(distance))
        enough = distance[share > self.level]  # strictly more, with no product of level and count to round
        return float(enough[0]) if len(enough) else math.inf

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Return the mean over the correctly classified samples with a finite value, and its standard error."""
        chosen = values[self.correct & values.isfinite()].double()
        if len(chosen) == 0:
            return math.nan, math.nan
        error = float(chosen.std()) / math.sqrt(len(chosen)) if len(chosen) > 1 else math.nan
        return float(chosen.mean()), error

    @property
    def eps99_interval(self) -> tuple[float, float]:
        """A 95 % interval of ε₉₉ from the order statistics of the distances (binomial, normal approximation)."""
        distance = self.distance[self.correct].sort().values
        n = len(distance)
        if n == 0:
            return math.nan, math.nan
        spread = 1.959963984540054 * math.sqrt(n * self.level * (1.0 - self.level))
        low = max(0, math.floor(self.level * n - spread))
        high = math.ceil(self.level * n + spread)
        return float(distance[low]), float(distance[high]) if high < n else math.inf

    def __repr__(self) -> str:
        return (
            f"Robustness(p={self.p:g}, {int(self.correct.sum())} of {len(self.correct)} classified correctly, "
            f"rho1={self.rho1:.4g}, rho2={self.rho2:.4g}, eps{100 * self.level:g}={self.eps99:.4g})"
        )


def first_order_distance(
    model: Callable[[Tensor], Any], x: Tensor, target: Tensor, *, p: float = math.inf, weights: Tensor | None = None
) -> Tensor:
    """Compute min_{l≠k} L_l / ‖w ∇L_l‖_q at x, (B,): for a smaller ε the linearised problem has no solution.

    Theorem 1 of the paper, with L_l = f_k - f_l. One forward pass and K - 1 backward passes. 0 where the sample is
    misclassified, inf where no gradient leads anywhere.
    """
    x, target = check_batch(x), check_labels(target, len(x))
    check_model(model.model if isinstance(model, TargetModel) else model, x)
    ball = LpBall(p=p, eps=1.0, weights=weights)
    if len(x) == 0:
        return x.new_zeros(0)
    largest = Largest()
    with TargetModel(model) as judge:
        with torch.no_grad(), largest.watch(judge, x[:1]):
            Margin("all").check(two_class(judge(x[:1])), target, len(x))
        parts = cut(len(x), 0 if judge.randomised else largest.bytes)
        found = [_first_order(judge, x[rows], target[rows], ball) for rows in parts]
    return torch.cat(found)


def _first_order(judge: TargetModel, x: Tensor, target: Tensor, ball: LpBall) -> Tensor:
    expansion = Linear().expand(
        lambda points: two_class(judge(points)), Margin("all"), x, target, convolutional=judge.convolutional
    )
    reach = torch.stack([ball.support(gradient, x) for gradient in expansion.gradient.unbind(1)], 1)
    margin = -expansion.value
    return torch.where(margin <= 0, 0.0, margin / reach).amin(1)


def robustness(
    model: Callable[[Tensor], Any],
    x: Tensor,
    target: Tensor,
    p: float = math.inf,
    *,
    bounds: tuple[float | Tensor, float | Tensor] | None = None,
    steps: int = 50,
    level: float = 0.99,
    batch_size: int = 500,
    progress: Callable[[int], None] | None = None,
) -> Robustness:
    """Measure ρ̂₁, ρ̂₂ and ε₉₉ of a classifier in the ℓp norm, and the distances of each sample behind them.

    x: (N, *S), target: (N,) class indices. bounds: the valid input range DeepFool has to stay in, None as in the paper
    (r₂ knows no bounds). steps: DeepFool's limit, with overshoot 0.02. progress is called with the samples finished.
    Source: Theorem 1, section 2.2 and Table 3 of Balda, Behboodi, Mathar (2018).
    """
    x, target = check_batch(x), check_labels(target, len(x))
    check_p(p)
    check_count("batch_size", batch_size)
    if not isinstance(level, Real) or not 0.0 < level < 1.0:
        raise InputError(f"expected level between 0 and 1, got {level!r}.")
    deepfool = recipe("deepfool", p=p, bounds=bounds, steps=steps)
    distance, r2, correct, forwards, backwards = [], [], [], [], []
    for rows in batches(len(x), batch_size):
        result = deepfool(model, x[rows], target[rows])
        right = predict(model, x[rows]) == target[rows]
        distance.append(torch.where(right, torch.where(result.success, result.norm, math.inf), 0.0))
        r2.append(first_order_distance(model, x[rows], target[rows], p=p))
        correct.append(right)
        forwards.append(result.forwards)
        backwards.append(result.backwards)
        if progress is not None:
            progress(rows.stop - rows.start)
    if not distance:
        raise InputError("expected at least one sample to measure robustness on, got none.")
    found = torch.cat(distance)
    return Robustness(
        p=float(p),
        level=level,
        distance=found,
        relative=found / norm(x, p),
        r2=torch.cat(r2),
        correct=torch.cat(correct),
        forwards=torch.cat(forwards),
        backwards=torch.cat(backwards),
    )
