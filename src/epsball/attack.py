"""An attack is a composition: objective, set, local model, formulation, schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from epsball.certification import certify, empty
from epsball.errors import InputError
from epsball.iteration import State, attempt, place
from epsball.local_models import Linear, LocalModel, Quadratic
from epsball.objectives import Margin, Objective, as_objective
from epsball.problem import Problem
from epsball.randomness import Generators
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

    Source: Algorithm 1 of Balda, Behboodi, Mathar (2018).
    """

    constraint: ConstraintSet
    objective: Objective | Callable[[Tensor, Tensor], Tensor] = field(default_factory=Margin)
    local_model: LocalModel = field(default_factory=Linear)
    formulation: Formulation = field(default_factory=NormConstrained)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Refuse parts that are not what they should be."""
        object.__setattr__(self, "objective", as_objective(self.objective))
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
        self.local_model.check(as_objective(self.objective))
        if not self.formulation.budgeted and (self.schedule.update == "project" or self.schedule.random_start):
            raise InputError("a minimal-norm attack has no budget to project onto or start in; accumulate its steps.")

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
        attacks = [self.with_eps(e) if e is not self.constraint.eps else self for e in eps]
        for attack in attacks:
            attack.constraint.check(x)
            if self.formulation.budgeted and attack.constraint.bounds is None:
                _check_limited(attack.constraint, x)
        with ExitStack() as stack:
            objective = as_objective(self.objective)
            judge = stack.enter_context(TargetModel(model))
            surrogates = [stack.enter_context(TargetModel(m)) for m in objective.surrogates]
            if len(x) == 0:
                return [empty(x) for _ in attacks]
            problem = Problem(judge, surrogates, objective, x, target, Generators.of(seed, ids))
            results: list[AttackResult] = []
            for attack in attacks:
                if nested and results and bool(results[-1].success.any()):
                    results.append(_go_on(attack, problem, results[-1], started))
                else:
                    results.append(_run(attack, problem, started, shared=len(attacks) > 1))
                started = time.perf_counter()
            return results


def _go_on(attack: Attack, problem: Problem, before: AttackResult, started: float) -> AttackResult:
    """Attack the samples that withstood the smaller budget, and keep the results of the others."""
    left = (~before.success).nonzero()[:, 0]
    if len(left) == 0:
        return before.merge(None, left, time.perf_counter() - started)
    part = replace(attack, constraint=attack.constraint.take(left))
    return before.merge(_run(part, problem.take(left), started, shared=True), left, time.perf_counter() - started)


def _check_nested(formulation: Formulation, eps: Sequence[float | Tensor]) -> None:
    values = [float(e) for e in eps if not isinstance(e, Tensor) or e.numel() == 1]
    if not formulation.budgeted or len(values) < len(eps) or sorted(values) != values:
        raise InputError("expected increasing numbers as eps of a norm-constrained attack with nested=True.")


def _check_limited(constraint: ConstraintSet, x: Tensor) -> None:
    if not constraint.eps_of(x).isfinite().all():
        raise InputError("expected a finite eps for a norm-constrained problem without bounds, got eps=inf; give eps.")


def _run(attack: Attack, problem: Problem, started: float, *, shared: bool) -> AttackResult:
    """Make the attempts, keep the best of each sample, and certify it."""
    schedule = attack.schedule
    stops = not problem.transfers and (schedule.stop or ("success" if problem.classifies else "never")) == "success"
    constraint = attack.constraint.prepare(problem.x)
    state = State.new(problem.x, problem.clean_forwards)
    everyone = torch.arange(len(problem.x), device=problem.x.device)
    # Dither may be automatic, and none for this objective: then a restart would repeat the first attempt.
    random = schedule.random_start or any(schedule.dithers(problem.classifies)) or not attack.formulation.uses_model
    if schedule.restarts == 1 or not random:
        attempt(attack, problem, constraint, state, everyone, 0, stops=stops, shared=shared)
        return certify(problem, constraint, state, started, budgeted=attack.formulation.budgeted)
    best_eta = torch.zeros_like(state.eta)
    best_score = problem.x.new_full((len(problem.x),), -torch.inf)
    best_success = torch.zeros_like(state.flat)
    best_flags, best_kkt = _flags(state), state.kkt.clone()
    budgeted = attack.formulation.budgeted
    active = everyone
    for restart in range(schedule.restarts):
        state.eta[active] = 0.0
        attempt(attack, problem, constraint, state, active, restart, stops=stops, shared=shared and restart == 0)
        placed = place(problem.x[active], state.eta[active], constraint)
        outputs, objective = problem.outputs(placed), problem.objective.take(active)
        state.forwards[active] += 1
        success = objective.success(outputs, problem.target[active])
        # The larger gain is better within a budget; without one, of the successes the smaller perturbation.
        score = objective.gain(outputs, problem.target[active]).to(best_score.dtype)
        if not budgeted:
            score = torch.where(success, -constraint.take(active).size(state.eta[active]), score)
        better = (success & ~best_success[active]) | ((success == best_success[active]) & (score > best_score[active]))
        chosen = active[better]
        best_eta[chosen], best_score[chosen] = state.eta[chosen], score[better]
        best_success[chosen] = success[better]
        best_flags[:, chosen], best_kkt[chosen] = _flags(state)[:, chosen], state.kkt[chosen]
        state.exact[active], state.kkt[active] = True, torch.nan
        active = active[~success] if stops and budgeted else active
        if len(active) == 0:
            break
    tried = best_score > -torch.inf
    state.flat, state.broken, state.feasible, state.exact = torch.where(tried, best_flags, _flags(state)).unbind(0)
    state.eta, state.kkt = best_eta, torch.where(tried, best_kkt, state.kkt)
    return certify(problem, constraint, state, started, budgeted=attack.formulation.budgeted)


def _flags(state: State) -> Tensor:
    return torch.stack([state.flat, state.broken, state.feasible, state.exact])
