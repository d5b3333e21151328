"""The one loop (Algorithm 1 of the paper and its options), then certification of the tensor that is returned."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from epsball.errors import EpsballWarning, InputError, Status
from epsball.local_models import Expansion, Linear
from epsball.objectives import Margin, Objective, as_objective, two_class
from epsball.randomness import Generators
from epsball.result import AttackResult
from epsball.schedule import Schedule
from epsball.sets.base import ConstraintSet
from epsball.solvers import Formulation, NormConstrained
from epsball.target_model import TargetModel, stacked
from epsball.tensors import expand
from epsball.validation import (
    check_batch,
    check_bounds_contain,
    check_model,
    check_sample_id,
    check_scores,
    check_seed,
)

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
    local_model: Linear = field(default_factory=Linear)
    formulation: Formulation = field(default_factory=NormConstrained)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        """Refuse parts that are not what they should be."""
        object.__setattr__(self, "objective", as_objective(self.objective))
        for name, kind in (("constraint", ConstraintSet), ("formulation", Formulation), ("schedule", Schedule)):
            if not isinstance(getattr(self, name), kind):
                raise InputError(f"expected {name} as a {kind.__name__}, got {type(getattr(self, name)).__name__}.")
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
        eps: list[float | Tensor],
        seed: int = 0,
        sample_id: Tensor | None = None,
    ) -> list[AttackResult]:
        """Attack a batch at each budget, as separate calls would, with the first linearisation at x made only once.

        Every result counts the passes that its attack makes alone.
        """
        x = check_batch(x)
        check_model(model.model if isinstance(model, TargetModel) else model, x)
        check_seed(seed)
        ids = check_sample_id(sample_id, x)
        check_bounds_contain(x, self.constraint.bounds)
        attacks = [self.with_eps(e) if e is not self.constraint.eps else self for e in eps]
        for attack in attacks:
            attack.constraint.check(x)
        with ExitStack() as stack:
            objective = as_objective(self.objective)
            judge = stack.enter_context(TargetModel(model))
            surrogates = [stack.enter_context(TargetModel(m)) for m in objective.surrogates]
            if len(x) == 0:
                return [_empty(x) for _ in attacks]
            problem = _Problem(judge, surrogates, objective, x, target, Generators.of(seed, ids))
            return [_run(attack, problem, shared=len(attacks) > 1) for attack in attacks]


class _Problem:
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


@dataclass
class _State:
    """What is known of each sample while the loop runs; every field is (B, ...) and updated by index."""

    eta: Tensor
    forwards: Tensor
    backwards: Tensor
    flat: Tensor
    broken: Tensor
    feasible: Tensor

    @classmethod
    def new(cls, x: Tensor, forwards: int) -> _State:
        flag = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(torch.zeros_like(x), count + forwards, count.clone(), flag, flag.clone(), ~flag)


def _run(attack: Attack, problem: _Problem, *, shared: bool) -> AttackResult:
    started = time.perf_counter()
    schedule = attack.schedule
    stops = not problem.transfers and (schedule.stop or ("success" if problem.classifies else "never")) == "success"
    constraint = attack.constraint.prepare(problem.x)
    state = _State.new(problem.x, problem.clean_forwards)
    everyone = torch.arange(len(problem.x), device=problem.x.device)
    if schedule.restarts == 1:
        _attempt(attack, problem, constraint, state, everyone, 0, stops=stops, shared=shared)
        return _certify(attack, problem, constraint, state, started)
    best_eta = torch.zeros_like(state.eta)
    best_gain = torch.full_like(
        problem.x[:, 0].flatten(1)[:, 0] if problem.x.dim() > 2 else problem.x[:, 0], -torch.inf
    )
    best_success = torch.zeros_like(state.flat)
    active = everyone
    for restart in range(schedule.restarts):
        state.eta[active] = 0.0
        _attempt(attack, problem, constraint, state, active, restart, stops=stops, shared=shared and restart == 0)
        placed = _place(problem.x[active], state.eta[active], constraint)
        outputs, objective = problem.outputs(placed), problem.objective.take(active)
        state.forwards[active] += 1
        gain = objective.gain(outputs, problem.target[active])
        success = objective.success(outputs, problem.target[active])
        better = (success & ~best_success[active]) | ((success == best_success[active]) & (gain > best_gain[active]))
        chosen = active[better]
        best_eta[chosen], best_gain[chosen] = state.eta[chosen], gain[better]
        best_success[chosen] = success[better]
        active = active[~success] if stops else active
        if len(active) == 0:
            break
    state.eta = best_eta
    return _certify(attack, problem, constraint, state, started)


def _attempt(
    attack: Attack,
    problem: _Problem,
    constraint: ConstraintSet,
    state: _State,
    everyone: Tensor,
    restart: int,
    *,
    stops: bool,
    shared: bool,
) -> None:
    """Run the T steps of Algorithm 1 on the samples `everyone`, dropping those that are finished."""
    schedule, formulation = attack.schedule, attack.formulation
    dithers, shares = schedule.dithers(), schedule.shares()
    streams = problem.streams.fork(restart)
    batch = _Batch.of(problem, constraint, state, streams, everyone)
    if not formulation.uses_model or schedule.random_start:
        batch.eta = batch.constraint.sample(batch.x, batch.streams.fork(0), boundary=not formulation.uses_model)
    for step in range(schedule.steps if formulation.uses_model else 0):
        point = offset = _place(batch.x, batch.eta, batch.constraint)
        dithered = dithers[step] > 0
        if dithered:
            radius = batch.constraint.scaled(dithers[step])
            point = _place(point, radius.sample(point, batch.streams.fork(step + 1)), batch.constraint)
        if step == 0 and not dithered and not schedule.random_start and len(batch.index) == len(problem.x):
            expansion = problem.first(attack.local_model, shared)
        else:
            known = batch.candidates(attack, shares[step])
            expansion = problem.expand(attack.local_model, batch.objective, point, batch.target, known)
        state.forwards[batch.index] += expansion.forwards
        state.backwards[batch.index] += expansion.backwards

        done = torch.zeros(len(batch.index), dtype=torch.bool, device=point.device)
        if stops and not dithered:
            done = batch.objective.success(expansion.outputs, batch.target)
        finite, flat = expansion.finite_and_flat()
        broken = ~finite
        state.broken[batch.index] = broken & ~done
        state.flat[batch.index] = flat & ~done
        # Without dither to come, a zero gradient stays where it is.
        done = done | broken | (flat if not any(dithers[step + 1 :]) else torch.zeros_like(flat))

        if dithered:
            expansion = expansion.around(point - offset)
        updated, feasible = _step(attack, batch, expansion, offset, shares[step])
        state.feasible[batch.index] = feasible | done
        still = expand(~done, batch.eta)
        # A minimal-norm step that no longer moves has reached its best corner.
        stuck = ~feasible & (updated == batch.eta).flatten(1).all(1)
        batch.eta = torch.where(still, updated, batch.eta)
        done = done | stuck
        if bool(done.any()):
            state.eta[batch.index[done]] = batch.eta[done]
            batch = batch.keep(~done)
            if len(batch.index) == 0:
                return
    state.eta[batch.index] = batch.eta


def _step(attack: Attack, batch: _Batch, expansion: Expansion, point: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Solve one linearised problem around x + η and return the new η (B, *S), and whether there was a solution."""
    local = batch.constraint.at(batch.x, batch.eta)
    limited = batch.limited(attack, local, share)
    solution = attack.formulation.solve(expansion, limited, point)
    updated = batch.eta + solution.delta
    if attack.formulation.budgeted and attack.schedule.update == "project":
        updated = local.total(batch.eta).project(updated, batch.x)
    if solution.slope is not None and batch.objective.fixed_pieces:
        batch.learn(expansion.piece, solution.slope)
    return batch.constraint.repair(batch.x, batch.eta, updated), solution.feasible


@dataclass
class _Batch:
    """The samples still under attack, without those that are finished."""

    index: Tensor
    x: Tensor
    eta: Tensor
    target: Tensor
    constraint: ConstraintSet
    objective: Objective
    streams: Generators
    slope: Tensor | None = None  # what a unit of budget gained on each of the objective's pieces when last computed

    @classmethod
    def of(
        cls, problem: _Problem, constraint: ConstraintSet, state: _State, streams: Generators, index: Tensor
    ) -> _Batch:
        whole = len(index) == len(problem.x)
        if whole:
            return cls(index, problem.x, state.eta, problem.target, constraint, problem.objective, streams)
        return cls(
            index,
            problem.x[index],
            state.eta[index],
            problem.target[index],
            constraint.take(index),
            problem.objective.take(index),
            streams.take(index),
        )

    def keep(self, mask: Tensor) -> _Batch:
        """Drop the finished samples."""
        index = mask.nonzero()[:, 0]
        return _Batch(
            self.index[index],
            self.x[index],
            self.eta[index],
            self.target[index],
            self.constraint.take(index),
            self.objective.take(index),
            self.streams.take(index),
            None if self.slope is None else self.slope[index],
        )

    def limited(self, attack: Attack, local: ConstraintSet, share: float) -> ConstraintSet:
        """Return the set over which one step is solved."""
        if not attack.formulation.budgeted:
            return local
        return local.step(share, self.eta) if attack.schedule.update == "accumulate" else local.scaled(share)

    def learn(self, piece: Tensor, slope: Tensor) -> None:
        """Remember the slopes of the pieces that were differentiated."""
        self.slope = slope if self.slope is None else self.slope.scatter(1, piece, slope)

    def candidates(self, attack: Attack, share: float) -> Callable[[Tensor], Tensor] | None:
        """Return the rule for the pieces worth differentiating, None while nothing is known of them."""
        slope, growth = self.slope, attack.local_model.growth
        if slope is None or growth == math.inf:
            return None
        # The rule compares sizes; where in the set the sample stands does not matter to it.
        limited = self.limited(attack, self.constraint, share)
        return lambda value: attack.formulation.candidates(value, slope, growth, limited, self.x)


def _place(x: Tensor, eta: Tensor, constraint: ConstraintSet) -> Tensor:
    """Return x + η, brought back by the rounding error of the addition where it left the bounds."""
    moved = x + eta
    if constraint.bounds is None:
        return moved
    lo, hi = constraint.bounds
    if not isinstance(lo, Tensor) and not isinstance(hi, Tensor):
        return torch.clamp(moved, lo, hi)
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (lo, hi))
    return torch.clamp(moved, low, high)


def _certify(
    attack: Attack, problem: _Problem, constraint: ConstraintSet, state: _State, started: float
) -> AttackResult:
    """Recompute success, norm and range from the tensor that is returned."""
    x = problem.x
    perturbed = _place(x, state.eta, constraint)
    outputs = problem.outputs(perturbed)
    state.forwards += 1
    perturbation = perturbed - x
    gain = problem.objective.gain(outputs, problem.target)
    inside = constraint.verify(x, perturbation)
    succeeds = problem.objective.success(outputs, problem.target)
    success = succeeds & inside
    broken = state.broken | ~outputs.flatten(1).isfinite().all(1)
    untouched = (perturbation == 0).flatten(1).all(1)
    outside = Status.CONSTRAINT_VIOLATED if attack.formulation.budgeted else Status.BEYOND

    # The first rule that holds names the status.
    rules = [
        (success & untouched, Status.ALREADY),
        (success, Status.SUCCESS),
        (broken, Status.NON_FINITE),
        (~inside, outside),
        (state.flat, Status.ZERO_GRADIENT),
        (~state.feasible, Status.INFEASIBLE),
    ]
    code = torch.full((len(x),), len(rules), dtype=torch.int64, device=x.device)
    for number, (holds, _) in reversed(list(enumerate(rules))):
        code = torch.where(holds, number, code)
    names = [status for _, status in rules] + [Status.STANDS]
    return AttackResult(
        perturbed=perturbed,
        perturbation=perturbation,
        success=success,
        status=tuple(names[c] for c in code.tolist()),
        gain=gain,
        norm=constraint.size(perturbation),
        outputs=outputs,
        forwards=state.forwards,
        backwards=state.backwards,
        jvps=torch.zeros_like(state.backwards),
        seconds=time.perf_counter() - started,
    )


def _empty(x: Tensor) -> AttackResult:
    """Return the result for no samples."""
    none, count = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
    return AttackResult(
        x, x, torch.zeros(0, dtype=torch.bool, device=x.device), (), none, none, none, count, count, count, 0.0
    )
