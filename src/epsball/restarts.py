"""The attempts of an attack, and the best of them for each sample."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from epsball.batch import Batch, Parts, place
from epsball.block_moves import Ends, move_blocks
from epsball.certification import certify
from epsball.iteration import attempt_in_turn, linearised
from epsball.objectives import Ranked
from epsball.problem import Problem
from epsball.result import AttackResult
from epsball.search import search
from epsball.sets.base import ConstraintSet
from epsball.solvers.shrinking import ShrinkingToSet
from epsball.state import State

__all__ = ["run"]


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
        search(attack, problem, formulation.searched(free), state, everyone, shared=shared)
    elif schedule.turn_after is not None:
        _turn(attack, problem, free, state, everyone, stops=stops, shared=shared)
    elif not schedule.block_moves and (schedule.restarts == 1 or not (random or isinstance(problem.objective, Ranked))):
        attempt_in_turn(attack, problem, free, state, everyone, 0, stops=stops, shared=shared)
    else:
        _best(attack, problem, free, state, everyone, stops=stops, shared=shared)
    return certify(
        problem, constraint, state, started, placed=place(problem.x, state.eta, free), formulation=formulation
    )


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
    attempt_in_turn(attack, problem, constraint, state, everyone, 0, stops=stops, shared=shared)
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
            attempt_in_turn(made, problem, constraint, state, active, restart, stops=stops and not finds, shared=shared)
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
    expansion = linearised(problem, objective.ranking, batch, state)
    order = attack.formulation.rank(expansion.around(batch.eta), batch.constraint, batch.x)
    labels = objective.ranking.chosen(expansion.outputs, batch.target).gather(1, order)
    return problem.turned(objective.ranked(labels, active, len(problem.x)))
