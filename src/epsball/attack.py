"""An attack is a composition: objective, set, local model, formulation, schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from epsball.certification import empty
from epsball.combinations import check_schedule
from epsball.errors import InputError
from epsball.local_models import Linear, LocalModel, Quadratic
from epsball.objectives import Margin, Objective, as_objective
from epsball.prepare import check_prepare, parts, several_backwards
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.restarts import run
from epsball.result import AttackResult
from epsball.schedule import Schedule
from epsball.sets import ConstraintSet
from epsball.solvers import Formulation, NormConstrained
from epsball.target_model import TargetModel
from epsball.validation import check_batch, check_bounds_contain, check_model, check_sample_id, check_seed

__all__ = ["Attack"]


@dataclass(frozen=True)
class Attack:
    """Maximise gain(f(x + η), target) over η in C(x), or find the smallest η with gain ≥ 0, by linearise-solve-step.

    objective: what is raised, or a callable (outputs, target) -> (B,). constraint: C, the allowed perturbations.
    local_model: how the gain is modelled around a point. formulation: the problem solved on the model. schedule: the
    iteration. The subproblems are solved exactly; the iteration is a local search, so a sample that stands is no proof.

    prepare: None, or how to make a frozen copy of the model that computes the same faster, for the passes of the
    attack; success and outputs are always the model's own. "fold" merges batch norm into the convolution or linear
    layer before it, "channels_last" lays images out that way, "fold+channels_last" does both; "auto" times the three on
    the first batch and keeps the fastest, if it is faster than the model. On request alone: "compile" (`torch.compile`;
    "auto+compile" times it too) and "bfloat16", which is less exact. A copy serves where its outputs and gradients
    agree with the model's to 1e-5, and is made again when the weights change.

    Source: Algorithm 1 of Balda, Behboodi, Mathar (2018).
    """

    constraint: ConstraintSet
    objective: Objective | Callable[[Tensor, Tensor], Tensor] = field(default_factory=Margin)
    local_model: LocalModel = field(default_factory=Linear)
    formulation: Formulation = field(default_factory=NormConstrained)
    schedule: Schedule = field(default_factory=Schedule)
    prepare: str | None = None

    def __post_init__(self) -> None:
        """Refuse parts that are not what they should be."""
        object.__setattr__(self, "objective", as_objective(self.objective))
        object.__setattr__(self, "prepare", check_prepare(self.prepare))
        for name, kind in (
            ("constraint", ConstraintSet),
            ("formulation", Formulation),
            ("schedule", Schedule),
        ):
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"expected {name} as a {kind.__name__}, got {type(getattr(self, name)).__name__}.")
        if not isinstance(self.local_model, (Linear, Quadratic)):
            raise InputError(f"expected local_model as a Linear or Quadratic, got {type(self.local_model).__name__}.")
        if isinstance(self.local_model, Quadratic) and not isinstance(self.formulation, NormConstrained):
            raise InputError(
                "expected eb.NormConstrained() as the formulation of a quadratic local model, got "
                f"{type(self.formulation).__name__}."
            )
        if isinstance(self.local_model, Quadratic) and "compile" in parts(self.prepare):
            raise InputError(
                "expected prepare without compile for a quadratic local model, which differentiates twice, got "
                f"{self.prepare!r}."
            )
        self.local_model.check(as_objective(self.objective))
        check_schedule(self)

    def with_eps(self, eps: float | Tensor) -> Attack:
        """Return the same attack with another budget."""
        return replace(self, constraint=self.constraint.with_eps(eps))

    def __call__(
        self,
        model: Callable[[Tensor], Any],
        x: Tensor,
        target: Tensor | None = None,
        *,
        seed: int = 0,
        sample_id: Tensor | None = None,
    ) -> AttackResult:
        """Attack each sample of a batch.

        model: a module or callable x -> outputs, or a `TargetModel` with a selector; it is evaluated in eval mode with
        frozen parameters and left as it was. x: (B, *S), float32 or float64. target: class indices (B,), a reference
        output (B, *O), or None for the model's own output at x. seed, sample_id: all randomness is a function of
        (seed, sample_id, step), so a sample's result does not depend on the batch around it; sample_id is 0 .. B-1 by
        default. Raises InputError for input that cannot be attacked; a sample that fails has a status.
        """
        (result,) = self.over(model, x, target, eps=[self.constraint.eps], seed=seed, sample_id=sample_id)
        return result

    def over(
        self,
        model: Callable[[Tensor], Any],
        x: Tensor,
        target: Tensor | None = None,
        *,
        eps: Sequence[float | Tensor],
        seed: int = 0,
        sample_id: Tensor | None = None,
        nested: bool = False,
    ) -> list[AttackResult]:
        """Attack a batch at each budget, as separate calls would, with the first linearisation at x made only once.

        Every result counts the passes that its attack makes alone. nested: the budgets increase, and a sample that
        succeeded within one is not attacked within larger ones, where its perturbation is allowed too: it is returned
        there again, with no passes.
        """
        started = time.perf_counter()
        if nested:
            _check_nested(self.formulation, eps)
        with torch.inference_mode(False):
            return self._over(model, check_batch(x), target, eps, seed, sample_id, started, nested)

    def _over(
        self,
        model: Callable[[Tensor], Any],
        x: Tensor,
        target: Tensor | None,
        eps: Sequence[float | Tensor],
        seed: int,
        sample_id: Tensor | None,
        started: float,
        nested: bool,
    ) -> list[AttackResult]:
        check_model(model.model if isinstance(model, TargetModel) else model, x)
        seed = check_seed(seed)
        ids = check_sample_id(sample_id, x)
        check_bounds_contain(x, self.constraint.bounds)
        x = self.constraint.aligned(x)
        attacks = [self.with_eps(e) if e is not self.constraint.eps else self for e in eps]
        for attack in attacks:
            attack.constraint.check(x)
            if self.formulation.budgeted and attack.constraint.bounds is None:
                _check_limited(attack.constraint, x)
        with ExitStack() as stack:
            objective = as_objective(self.objective)
            judge = stack.enter_context(TargetModel(model, seed=seed))
            if judge.randomised and isinstance(self.local_model, Quadratic):
                raise InputError(
                    "expected a model without random draws for a quadratic local model, whose Jacobian is that of one "
                    f"function, got draws={judge.draws}; use a recipe with a linear one, such as 'linear-lp-10'."
                )
            surrogates = [stack.enter_context(TargetModel(m, seed=seed)) for m in objective.surrogates]
            if len(x) == 0:
                return [empty(x) for _ in attacks]
            problem = Problem(judge, surrogates, objective, x, target, Generators.of(seed, ids))
            if "compile" in parts(self.prepare):
                stack.enter_context(several_backwards())
            if self.prepare is not None and self.formulation.uses_model:
                problem.prepare(self.prepare, self.constraint.bounds)
            found: list[list[AttackResult]] = []
            for index, part in problem.parts():
                found.append(_grid([attack._take(index) for attack in attacks], part, nested, started))
                started = time.perf_counter()
            return [
                replace(AttackResult.joined(results), prepared=problem.prepared) for results in zip(*found, strict=True)
            ]

    def _take(self, index: Tensor) -> Attack:
        return replace(self, constraint=self.constraint.take(index))


def _grid(attacks: list[Attack], problem: Problem, nested: bool, started: float) -> list[AttackResult]:
    """Attack the same samples at each budget."""
    results: list[AttackResult] = []
    for attack in attacks:
        if nested and results and bool(results[-1].success.any()):
            results.append(_go_on(attack, problem, results[-1], started))
        else:
            results.append(run(attack, problem, started, shared=len(attacks) > 1))
        started = time.perf_counter()
    return results


def _go_on(attack: Attack, problem: Problem, before: AttackResult, started: float) -> AttackResult:
    """Attack the samples that withstood the smaller budget, and keep the results of the others."""
    left = (~before.success).nonzero()[:, 0]
    if len(left) == 0:
        return before.merge(None, left, time.perf_counter() - started)
    fresh = run(attack._take(left), problem.take(left), started, shared=True)
    return before.merge(fresh, left, time.perf_counter() - started)


def _check_nested(formulation: Formulation, eps: Sequence[float | Tensor]) -> None:
    values = [float(e) for e in eps if not isinstance(e, Tensor) or e.numel() == 1]
    if not formulation.budgeted or len(values) < len(eps) or sorted(values) != values:
        raise InputError("expected increasing numbers as eps of a norm-constrained attack with nested=True.")


def _check_limited(constraint: ConstraintSet, x: Tensor) -> None:
    if not constraint.eps_of(x).isfinite().all():
        raise InputError("expected a finite eps for a norm-constrained problem without bounds, got eps=inf; give eps.")
