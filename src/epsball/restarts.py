"""The attempts of an attack, and the best of them for each sample."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from epsball.batch import Batch, Parts, State, place
from epsball.block_moves import Ends, move_blocks
from epsball.boundary import border_of, follow_boundary
from epsball.certification import certify
from epsball.iteration import Start, attempt
from epsball.local_models import Expansion, Linear
from epsball.objectives import Objective, Ranked
from epsball.problem import Problem
from epsball.result import AttackResult
from epsball.sets.base import ConstraintSet
from epsball.solvers.shrinking import ShrinkingBall, ShrinkingToSet, rounding_of
from epsball.tensors import expand

__all__ = ["run"]

_JUDGED = 2  # attempts of a search after which samples go on where the linear model at x has misled
_TRUSTED = (0.4, 1.5)  # it has not where what was found is so many times as large as it had promised


def run(attack: Parts, problem: Problem, started: float, *, shared: bool) -> AttackResult:
    """Make the attempts, keep the best of each sample, and certify it."""
    schedule, formulation = attack.schedule, attack.formulation
    # Of a mean over random draws the first success is near the border, and fresh draws may undo it.
    early = problem.classifies and not (problem.judge.randomised and formulation.budgeted)
    stops = not problem.transfers and (schedule.stop or ("success" if early else "never")) == "success"
    constraint = attack.constraint.prepare(problem.x)
    # A minimal-norm attack's ε only limits what counts as a success: it must not pull points of a lattice back.
    pulls = formulation.budgeted or constraint.lattice is None
    free = constraint if pulls else constraint.with_eps(math.inf)
    state = State.new(problem.x, problem.clean_forwards)
    everyone = torch.arange(len(problem.x), device=problem.x.device)
    # Dither may be automatic, and none for this objective: then a restart would repeat the first attempt.
    dithered = any(schedule.dithers(problem.classifies))
    random = schedule.random_start or schedule.restart_corners or dithered or not formulation.uses_model
    if formulation.follows:
        _search(attack, problem, formulation.searched(free), state, everyone, shared=shared)
    elif schedule.turn_after is not None:
        _turn(attack, problem, free, state, everyone, stops=stops, shared=shared)
    elif not schedule.block_moves and (schedule.restarts == 1 or not (random or isinstance(problem.objective, Ranked))):
        _one(attack, problem, free, state, everyone, 0, stops=stops, shared=shared)
    else:
        _best(attack, problem, free, state, everyone, stops=stops, shared=shared)
    return certify(
        problem, constraint, state, started, placed=place(problem.x, state.eta, free), formulation=formulation
    )


def _one(
    attack: Parts,
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    active: Tensor,
    number: int,
    *,
    stops: bool,
    shared: bool,
) -> None:
    """Make attempt `number` on some samples, with the objective whose turn it is."""
    objective, fresh = problem.objective.attempt(number)
    turned = problem if objective is problem.objective else problem.turned(objective)
    drawn = fresh if isinstance(fresh, Tensor) else None
    start: Start = "random" if attack.schedule.random_start or fresh is True else "x"
    if attack.schedule.restart_corners and number > 0:
        start = "corners"
    shared = shared and number == 0
    attempt(attack, turned, constraint, state, active, number, stops=stops, shared=shared, start=start, drawn=drawn)


def _search(
    attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, everyone: Tensor, *, shared: bool
) -> None:
    """Make the attempts of a minimal-norm search, each with the sizes of those before it to beat, and polish."""
    formulation, objective = attack.formulation, problem.objective
    promised, sizes, direct = torch.zeros_like(state.size), state.size[:, None], problem.x
    if isinstance(objective, Ranked) and objective.early and isinstance(formulation, ShrinkingBall):
        batch = Batch.of(problem, constraint, state, problem.streams, everyone)
        expansion = _linearised(problem, objective.ranking, batch, state)
        order, sizes, state.eta = formulation.smallest(expansion, batch.constraint, batch.x)
        promised = constraint.size(state.eta)
        if attack.schedule.restart_near is not None:
            gap = rounding_of(expansion) - expansion.value.gather(1, order[:, :1])[:, 0]
            direct = batch.constraint.smallest(expansion.gradient[everyone, order[:, 0]], gap, batch.x)
        state.eta = torch.where(expand(objective.success(expansion.outputs, problem.target), state.eta), 0.0, state.eta)
        labels = objective.ranking.chosen(expansion.outputs, problem.target).gather(1, order)
        problem = problem.turned(objective.ranked(labels, everyone, len(everyone)))
    others, stuck = everyone, everyone[:0]
    for number in range(attack.schedule.restarts):
        if number == 1 and attack.schedule.restart_near is not None and len(others):
            # On an affine model this is the solution, which steps may miss where two classes are as near.
            _offer(problem, constraint, state, others, direct[others])
            others, direct = others[state.size[others] > constraint.unit], problem.x
            state.trusted = _kept(state.size, promised)
            problem = _narrowed(problem, constraint, state, others, sizes, attack.schedule.restart_near)
        elif number == _JUDGED and attack.schedule.continue_step_ball is not None:
            bent = state.size[others].isfinite() & ~_kept(state.size[others], promised[others])
            stuck = _go_on(attack, problem, constraint, state, others[bent])
            others = others[~bent]
        elif number == _JUDGED + 1 and len(stuck):
            # In place of the steps that they could not take.
            others = torch.cat([others, stuck]).sort()[0]
        if len(others) == 0:
            continue
        _one(attack, problem, constraint, state, others, number, stops=False, shared=shared)
        others = others[state.size[others] > constraint.unit]
    left = active = everyone[state.size > constraint.unit]
    for _ in range(formulation.polish):
        left = _polish(attack, problem, constraint, state, left)
        if len(left) == 0:
            break
    if attack.schedule.boundary_steps:
        follow_boundary(problem, constraint, state, active, attack.schedule.boundary_steps)


def _kept(size: Tensor, promised: Tensor) -> Tensor:
    """Tell where what has been found is about as large as the linear model at x had promised, (B,) bool."""
    share = size / promised
    return (share > _TRUSTED[0]) & (share < _TRUSTED[1])


def _narrowed(
    problem: Problem, constraint: ConstraintSet, state: State, others: Tensor, sizes: Tensor, near: float
) -> Problem:
    """Leave the classes out of the attempts to come that are far by the linear model, where that can be trusted."""
    if len(others) == 0:
        return problem
    objective = cast(Ranked, problem.objective)
    # By more than rounding, which differs from batch to batch.
    within = (sizes <= near * (1.0 + 64.0 * torch.finfo(sizes.dtype).eps) * sizes[:, :1]).sum(1)
    found, known = torch.full_like(within, -1), others[state.size[others].isfinite()]
    if len(known):
        point = place(problem.x[known], state.eta[known], constraint.take(known))
        found[known] = problem.craft_outputs(point).argmax(1)
        state.forwards[known] += 1
    return problem.turned(objective.narrowed(torch.where(state.trusted, within, sizes.shape[1]), found))


def _go_on(attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, bent: Tensor) -> Tensor:
    """Let samples go on from their smallest success, with the steps of the attempts that are left.

    Return who could not take a step, since the gradient there is zero or not finite.
    """
    if len(bent) == 0:
        return bent
    plan = attack.schedule
    steps = (plan.restarts - _JUDGED) * plan.length(_JUDGED)
    longer = replace(
        cast(Any, attack), schedule=replace(plan, restart_steps=steps, restart_step_ball=plan.continue_step_ball)
    )
    before = state.backwards[bent]
    attempt(longer, problem, constraint, state, bent, _JUDGED, stops=False, shared=False, start="found")
    return bent[(state.flat[bent] | state.broken[bent]) & (state.backwards[bent] <= before + 1)]


def _turn(
    attack: Parts,
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    everyone: Tensor,
    *,
    stops: bool,
    shared: bool,
) -> None:
    """Make one attempt, and those to other classes with the samples that it leads nowhere; keep the best of each."""
    _one(attack, problem, constraint, state, everyone, 0, stops=stops, shared=shared)
    stalled = everyone[state.stalled]
    if len(stalled) == 0:
        return
    objective, target = cast(Ranked, problem.objective), problem.target[stalled]
    scores = problem.craft_outputs(problem.x[stalled])
    state.forwards[stalled] += 1
    order = objective.ranking.pieces(scores, target).argsort(dim=1, descending=True, stable=True)
    # The first attempt was that to the best of them.
    labels = objective.ranking.chosen(scores, target).gather(1, order)[:, 1:]
    turned = problem.turned(objective.ranked(labels, stalled, len(everyone)))
    _best(attack, turned, constraint, state, stalled, stops=stops, shared=False, begun=True)


def _best(
    attack: Parts,
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    everyone: Tensor,
    *,
    stops: bool,
    shared: bool,
    begun: bool = False,
) -> None:
    """Make the attempts of the others, and leave the best perturbation of each sample in the state.

    begun: the first attempt has been made.
    """
    best_eta = state.eta.clone()
    best_score = problem.x.new_full((len(problem.x),), -torch.inf)
    best_success = torch.zeros_like(state.flat)
    best_flags, best_kkt = _flags(state), state.kkt.clone()
    budgeted = attack.formulation.budgeted
    best_attempt = torch.zeros(len(problem.x), dtype=torch.int64, device=problem.x.device)
    ends = Ends()
    active = everyone
    for restart in range(attack.schedule.restarts):
        if restart > 0 or not begun:
            state.eta[active] = 0.0
            finds = restart == 0 and stops and attack.schedule.widening == "found"
            made = _finding(attack) if finds else attack
            _one(made, problem, constraint, state, active, restart, stops=stops and not finds, shared=shared)
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
        best_attempt[chosen] = restart
        if attack.schedule.block_moves and attack.schedule.restarts > 1:
            ends.add(restart, active, state.eta[active])
        active = active[~success] if stops and budgeted else active
        if len(active) == 0:
            break
        if restart == 0 and attack.schedule.restarts > 1 and not begun:
            problem = _ranked(attack, problem, constraint, state, active)
    tried = best_score > -torch.inf
    state.flat, state.broken, state.feasible, state.exact = torch.where(tried, best_flags, _flags(state)).unbind(0)
    state.eta, state.kkt = best_eta, torch.where(tried, best_kkt, state.kkt)
    if attack.schedule.block_moves and len(active):
        others = ends.of(active, best_attempt)
        move_blocks(problem, constraint, state, active, attack.schedule.block_moves, others, stops=stops)


def _finding(attack: Parts) -> Parts:
    """Return the first attempt as a search with a shrinking ball that ends at a success within the set."""
    plan = replace(attack.schedule, keep="last", widening=None, restarts=1, restart_step_ball=None)
    return cast(Parts, replace(cast(Any, attack), formulation=ShrinkingToSet(), schedule=plan))


def _flags(state: State) -> Tensor:
    return torch.stack([state.flat, state.broken, state.feasible, state.exact])


def _ranked(attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, active: Tensor) -> Problem:
    """Order the classes of these samples by the linear model where the first attempt ended."""
    objective = problem.objective
    if not isinstance(objective, Ranked):
        return problem
    batch = Batch.of(problem, constraint, state, problem.streams, active)
    expansion = _linearised(problem, objective.ranking, batch, state)
    order = attack.formulation.rank(expansion.around(batch.eta), batch.constraint, batch.x)
    labels = objective.ranking.chosen(expansion.outputs, batch.target).gather(1, order)
    return problem.turned(objective.ranked(labels, active, len(problem.x)))


def _polish(attack: Parts, problem: Problem, constraint: ConstraintSet, state: State, active: Tensor) -> Tensor:
    """Try what the formulation proposes in place of the smallest successes; return who became smaller."""
    if not isinstance(attack.formulation, ShrinkingBall):
        return active[:0]
    active = active[state.size[active].isfinite()]
    if len(active) == 0:
        return active
    batch = Batch.of(problem, constraint, state, problem.streams, active)
    expansion = _linearised(problem, border_of(batch.objective), batch, state)
    value, gradient = expansion.around(batch.eta).value[:, 0], expansion.gradient[:, 0]
    gap, smaller = rounding_of(expansion) - value, torch.zeros_like(state.flat[active])
    for eta in attack.formulation.polished(gradient, gap, batch.eta.clone(), batch.constraint, batch.x):
        smaller |= _offer(problem, constraint, state, active, eta)
    return active[smaller]


def _offer(problem: Problem, constraint: ConstraintSet, state: State, index: Tensor, eta: Tensor) -> Tensor:
    """Keep η (b, *S) of the samples `index` where it succeeds and is smaller than what is known; return where, (b,)."""
    x, own = problem.x[index], constraint.take(index)
    placed = place(x, eta, own)
    if constraint.lattice is not None:
        eta = placed - x
    size = own.size(eta).to(state.size.dtype)
    state.forwards[index] += 1
    success = problem.objective.take(index).success(problem.outputs(placed), problem.target[index])
    # By more than rounding, which differs from batch to batch.
    smaller = success & (size < state.size[index] * (1.0 - 64.0 * torch.finfo(size.dtype).eps))
    state.eta[index[smaller]], state.size[index[smaller]] = eta[smaller], size[smaller]
    return smaller


def _linearised(problem: Problem, objective: Objective, batch: Batch, state: State) -> Expansion:
    """Linearise an objective where the samples stand."""
    point = place(batch.x, batch.eta, batch.constraint)
    expansion = Linear().expand(problem.craft, objective, point, batch.target, convolutional=problem.convolutional)
    state.count(batch.index, expansion.spent())
    return expansion
