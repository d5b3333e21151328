"""Fooling ratios over a grid of ε: of the correctly classified inputs, the share misclassified within ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from epsball.attack import Attack
from epsball.errors import InputError
from epsball.metrics.intervals import wilson_interval
from epsball.objectives import as_objective, two_class
from epsball.result import AttackResult
from epsball.target_model import TargetModel
from epsball.validation import check_batch, check_count, check_labels, check_model, check_sample_id, check_scores

__all__ = ["FoolingCurve", "fooling_curve", "predict", "sweep"]


@dataclass(frozen=True, eq=False)
class FoolingCurve:
    """The fooling ratio of one attack at each ε.

    eps: (E,). fooled: (E, N) bool. correct: (N,) bool, classified correctly without a perturbation. norm: (E, N), of
    the returned perturbation. forwards, backwards: passes a sample, (E, N); a minimal-norm attack's single run is
    counted at every ε. ratio: (E,) in [0, 1]; low, high: its 95 % Wilson interval.
    """

    eps: tuple[float, ...]
    fooled: Tensor
    correct: Tensor
    norm: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def count(self) -> int:
        """How many samples are classified correctly without a perturbation."""
        return int(self.correct.sum())

    @property
    def ratio(self) -> Tensor:
        """The fooling ratio at each ε, (E,); NaN where no sample is classified correctly."""
        return (self.fooled & self.correct).sum(1).double() / self.count

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """The 95 % Wilson interval of the ratio at each ε, two (E,) tensors."""
        hits = (self.fooled & self.correct).sum(1).tolist()
        low, high = zip(*(wilson_interval(h, self.count) for h in hits), strict=True)
        return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def sweep(
    attack: Attack,
    model: Callable[[Tensor], Any],
    x: Tensor,
    target: Tensor | None,
    eps: Sequence[float],
    *,
    seed: int = 0,
    sample_id: Tensor | None = None,
    nested: bool = False,
) -> list[tuple[float, AttackResult, Tensor]]:
    """Run an attack on a batch at every ε, sharing what does not depend on it; (ε, result, success within ε) for each.

    A norm-constrained attack runs at each ε, the first linearisation at x made only once. A minimal-norm attack runs
    once, without a limit; at each ε its successes of norm at most ε count. nested: as in `Attack.over`.
    """
    check_grid(eps)
    if attack.formulation.budgeted:
        results = attack.over(model, x, target, eps=list(eps), seed=seed, sample_id=sample_id, nested=nested)
        return [(e, result, _fooled(result, target)) for e, result in zip(eps, results, strict=True)]
    free = attack.with_eps(math.inf)
    result = free(model, x, target, seed=seed, sample_id=sample_id)
    within = [attack.with_eps(e).constraint.contains(result.perturbation, x) for e in eps]
    return [(e, result, _fooled(result, target) & ok) for e, ok in zip(eps, within, strict=True)]


def _fooled(result: AttackResult, target: Tensor | None) -> Tensor:
    """Tell where the attack succeeded and the class is wrong: a targeted attack on its own label fools nobody."""
    if target is None or target.is_floating_point() or result.outputs.dim() != 2:
        return result.success
    return result.success & (result.outputs.argmax(1) != target.to(result.outputs.device))


def fooling_curve(
    attack: Attack,
    model: Callable[[Tensor], Any],
    x: Tensor,
    target: Tensor,
    eps: Sequence[float],
    *,
    seed: int = 0,
    sample_id: Tensor | None = None,
    batch_size: int = 500,
    nested: bool = False,
    progress: Callable[[int], None] | None = None,
) -> FoolingCurve:
    """Measure the fooling ratio of one attack over a grid of ε, batch by batch.

    x: (N, *S), target: (N,) class indices, eps: increasing budgets in units of x. progress is called with the number of
    samples finished. Of the samples classified correctly, those misclassified within ε count. nested: a sample fooled
    within a smaller ε of the grid counts within the larger ones too, and is not attacked again: the curve cannot fall,
    and takes several times fewer passes.
    """
    x, target = check_batch(x), check_labels(target, len(x))
    check_grid(eps)
    check_count("batch_size", batch_size)
    ids = check_sample_id(sample_id, x)
    correct, parts = [], []
    for rows in batches(len(x), batch_size):
        correct.append(predict(model, x[rows]) == target[rows])
        part = replace(attack, objective=as_objective(attack.objective).take(torch.arange(len(x))[rows]))
        parts.append(sweep(part, model, x[rows], target[rows], eps, seed=seed, sample_id=ids[rows], nested=nested))
        if progress is not None:
            progress(rows.stop - rows.start)

    def table(pick: Callable[[tuple[float, AttackResult, Tensor]], Tensor]) -> Tensor:
        return torch.stack([torch.cat([pick(part[i]) for part in parts]) for i in range(len(eps))])

    if not parts:
        raise InputError("expected at least one sample for a fooling ratio, got none.")
    return FoolingCurve(
        tuple(float(e) for e in eps),
        fooled=table(lambda entry: entry[2]),
        correct=torch.cat(correct),
        norm=table(lambda entry: entry[1].norm),
        forwards=table(lambda entry: entry[1].forwards),
        backwards=table(lambda entry: entry[1].backwards),
    )


def predict(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Compute the model's class for each sample, (B,), in eval mode and without leaving a trace."""
    check_model(model.model if isinstance(model, TargetModel) else model, x)
    with TargetModel(model) as judge, torch.no_grad():
        return check_scores(two_class(judge(x)), len(x)).argmax(1)


def batches(count: int, size: int) -> Iterator[slice]:
    """Cut count samples into slices of at most size."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def check_grid(eps: Sequence[float]) -> None:
    """Refuse a grid of budgets that is empty, not increasing or negative."""
    if isinstance(eps, (str, bytes)) or not isinstance(eps, Sequence):
        raise InputError(f"expected eps as a list of budgets, got {eps!r}; for one, give [{eps!r}].")
    values = [float(e) for e in eps]
    if not values or any(not math.isfinite(v) or v < 0 for v in values) or sorted(set(values)) != values:
        raise InputError(f"expected eps as increasing finite budgets >= 0, got {list(eps)!r}.")
