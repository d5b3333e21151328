"""The one loop: Algorithm 1 of the paper and its options, on the samples that are not finished yet."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from epsball.batch import Batch, Parts, place
from epsball.blocks import block_signs
from epsball.local_models import Expansion, GaussNewton, Linear
from epsball.objectives import Objective
from epsball.pace import Pace
from epsball.problem import Problem
from epsball.sets.base import ConstraintSet
from epsball.state import State
from epsball.tensors import dot, expand

__all__ = ["Start", "attempt", "attempt_in_turn", "linearised"]

Start = Literal["x", "random", "corners", "found"]  # where an attempt begins; "found": where the one before ended

_SOLVER = 9  # the tag of the solvers' own random draws


def attempt(
    attack: Parts,
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    everyone: Tensor,
    restart: int,
    *,
    stops: bool,
    shared: bool,
    start: Start = "x",
    drawn: Tensor | None = None,
) -> None:
    """Run the T steps of Algorithm 1 on the samples `everyone`, dropping those that are finished.

    drawn: of the whole batch, (B,) bool, who begins at a random point all the same.
    """
    schedule, formulation = attack.schedule, attack.formulation
    steps = schedule.length(restart)
    dithers, shares = schedule.dithers(problem.classifies, steps), schedule.shares(steps)
    # On a lattice a point of the larger ball would not be the one that is judged at last.
    factors = (1.0,) * steps if constraint.lattice is not None else schedule.factors(steps, restart)
    streams = problem.streams.fork(restart)
    batch = Batch.of(problem, constraint, state, streams, everyone)
    batch.momentum = schedule.restart_momentum if restart else 0.0
    batch.step_ball = schedule.ball(restart)
    batch.bent_ball = schedule.bent_step_ball if batch.step_ball == schedule.step_ball else None
    if formulation.follows:
        batch.search(state, formulation, steps, continues=start == "found")
    state.broken[everyone], state.flat[everyone] = False, False  # of an earlier attempt
    if start == "corners":
        batch.eta = batch.constraint.lmo(block_signs(batch.x, batch.streams.fork(0)), batch.x)
    elif start == "random" or not formulation.uses_model:
        batch.eta = batch.start(boundary=not formulation.uses_model)
    elif drawn is not None and bool(drawn[everyone].any()):
        random = batch.start(boundary=False)
        batch.eta = torch.where(expand(drawn[everyone], random), random, batch.eta)
    usual: Tensor | None = None
    turns = schedule.turn_after is not None and restart == 0
    if turns and stops:
        batch.pace = Pace.of(schedule.turn(steps), steps, batch.x.flatten(1)[:, 0])
    alone = schedule.restarts == 1 or turns  # whoever does not turn makes no other attempt
    at_x = start == "x" and (batch.radius is None or batch.goal is not None)
    for step in range(steps if formulation.uses_model else 0):
        batch.widen(factors[step])
        point = offset = place(batch.x, batch.eta, batch.constraint)
        dithered = dithers[step] > 0
        if dithered:
            offset_by = batch.constraint.dither(point, dithers[step], batch.streams.fork(step + 1))
            point = place(point, offset_by, batch.constraint)
        if step == 0 and at_x and not dithered and len(batch.index) == len(problem.x):
            expansion = problem.first(attack.local_model, shared)
        else:
            # At a dithered point the values are not those around which the problem is solved, and the last step of
            # keep="best" solves it over the whole set.
            whole = step == steps - 1 and schedule.keep == "best"
            known = None if dithered or whole else batch.candidates(attack, shares[step])
            expansion = problem.expand(attack.local_model, batch.objective, point, batch.target, known)
        done = torch.zeros(len(batch.index), dtype=torch.bool, device=point.device)
        if stops and not dithered:
            done = batch.objective.success(expansion.outputs, batch.target)
            outside = batch.outside()
            done = done if outside is None else done & ~outside
        if isinstance(expansion, Expansion) and batch.radius is not None:
            if step == 1:
                batch.compare(state, expansion)
            done = batch.follow(batch.radius, expansion, point, shares[step] / shares[0])
        if schedule.keep == "best" and not dithered:
            batch.keep(expansion.outputs)
        finite, flat = expansion.finite_and_flat()
        if batch.pace is not None and batch.best is not None and step <= batch.pace.turn:
            # Where there is no gradient the attempt ends too, with steps to spare.
            stalled = (flat | batch.pace.stalls(step, batch.best[1])) & ~done
            state.stalled[batch.index] = stalled
            done = done | stalled
        state.count(batch.index, expansion.spent())
        broken = ~finite
        if bool((done | broken | flat).any()) or any(dithers):
            outside = batch.outside()
            counts = ~done if outside is None else ~(done | outside)  # what is beyond the set says nothing of it
            state.broken[batch.index] = broken & counts
            state.flat[batch.index] = flat & counts
            # Without dither to come, a zero gradient stays where it is.
            done = done | broken | (flat if not any(dithers[step + 1 :]) else torch.zeros_like(flat))
        if bool(done.any()):
            # Finished samples leave before the problem is solved.
            left = (~done).nonzero()[:, 0]
            batch.leave(state, done)
            state.feasible[batch.index[done]] = True
            if len(left) == 0:
                return
            batch, expansion = batch.take(left), expansion.take(left)
            point, offset = point[left], offset[left]
        if dithered:
            expansion = expansion.around(point - offset)
        solve = partial(_step, attack, problem, batch, state, expansion, offset, step, shares[step])
        if step == steps - 1 and schedule.keep == "best" and alone and batch.radius is None:
            usual = solve(last=False)[0] if isinstance(expansion, Expansion) else None
        updated, feasible = solve(last=step == steps - 1)
        del solve
        if isinstance(expansion, GaussNewton):
            state.count(batch.index, expansion.spent())
        before, batch.eta = batch.eta, updated
        if step == 0 and restart == 0 and schedule.bent_step_ball is not None and isinstance(expansion, Expansion):
            # On a lattice the next point is another one.
            moved = updated if batch.constraint.lattice is None else place(batch.x, updated, batch.constraint) - batch.x
            batch.promise = expansion.value[:, 0], dot(expansion.gradient[:, 0], moved - before)
        del expansion, updated  # not to be held while the next graph is
        if feasible is not None:
            state.feasible[batch.index] = feasible
            # A minimal-norm step that no longer moves has reached its best corner.
            stuck = ~feasible & (batch.eta == before).flatten(1).all(1)
            if bool(stuck.any()):
                batch.leave(state, stuck)
                batch = batch.take((~stuck).nonzero()[:, 0])
                if len(batch.index) == 0:
                    return
        del before
    if schedule.keep == "best":
        outputs = _judge(problem, batch, state)
        if usual is not None:
            # Where the model is bent, the usual last step leads further than that over the whole set, from x.
            more = (batch.eta != usual).flatten(1).any(1)
            more &= ~batch.objective.success(outputs, batch.target) if stops else True
            batch.leave(state, ~more)
            left = more.nonzero()[:, 0]
            if len(left) == 0:
                return
            batch = batch.take(left)
            batch.eta = usual[left]
            _judge(problem, batch, state)
    batch.leave(state, torch.ones(len(batch.index), dtype=torch.bool, device=batch.eta.device))


def attempt_in_turn(
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


def linearised(problem: Problem, objective: Objective, batch: Batch, state: State) -> Expansion:
    """Linearise an objective where the samples stand."""
    point = place(batch.x, batch.eta, batch.constraint)
    expansion = Linear().expand(problem.craft, objective, point, batch.target, convolutional=problem.convolutional)
    state.count(batch.index, expansion.spent())
    return expansion


def _judge(problem: Problem, batch: Batch, state: State) -> Tensor:
    """Compute the outputs where the samples stand, and remember the point if no gain was larger so far."""
    outputs = problem.craft_outputs(place(batch.x, batch.eta, batch.constraint))
    batch.keep(outputs)
    state.forwards[batch.index] += 1
    return outputs


def _step(
    attack: Parts,
    problem: Problem,
    batch: Batch,
    state: State,
    expansion: Expansion | GaussNewton,
    point: Tensor,
    step: int,
    share: float,
    *,
    last: bool,
) -> tuple[Tensor, Tensor | None]:
    """Solve one local problem around x + η; return the new η (B, *S), and who had a solution, None: everyone."""
    local = batch.constraint.at(batch.x, batch.eta)
    average = attack.schedule.average
    whole = isinstance(expansion, Expansion) and (average or (last and attack.schedule.keep == "best"))
    if isinstance(expansion, Expansion) and not whole and batch.ascends(attack, expansion, local):
        updated = local.ascend(expansion.gradient[:, 0], share, batch.x, batch.eta)
        return local.repair(batch.x, batch.eta, updated), None
    limited = batch.limited(attack, local, share, batch.step_ball)
    if whole and isinstance(expansion, Expansion):
        # The problem over the whole set, from x: exact on affine models.
        expansion, limited, point = expansion.around(batch.eta), local.total(batch.eta), batch.x
    if average and isinstance(expansion, Expansion):
        expansion = batch.averaged(expansion, share)
    streams = batch.streams.fork(step + 1, _SOLVER) if isinstance(expansion, GaussNewton) else None
    solution = attack.formulation.solve(expansion, limited, point, streams)
    if batch.bent_ball is not None and isinstance(expansion, Expansion) and not whole:
        bent = state.bent[batch.index].nonzero()[:, 0]
        if len(bent):
            other = batch.limited(attack, local, share, batch.bent_ball).take(bent)
            shorter = attack.formulation.solve(expansion.take(bent), other, point[bent]).delta
            solution = replace(solution, delta=solution.delta.index_copy(0, bent, shorter))
    delta = solution.delta - batch.eta if whole else solution.delta
    if solution.mirror is not None:
        delta = _better(problem, batch, state, delta, solution.mirror)
    updated = batch.eta + delta
    if average:
        updated = solution.delta  # a point of the set already
    elif attack.schedule.update == "project":
        total = local.total(batch.eta)
        updated = total.project(updated, batch.x)
        if batch.momentum and not whole:
            updated = total.project(batch.carried(updated), batch.x)
    if solution.slope is not None and batch.objective.fixed_pieces and isinstance(expansion, Expansion):
        batch.learn(expansion.piece, solution.slope)
    if solution.exact is not None:
        state.exact[batch.index] &= solution.exact
    if solution.kkt is not None:
        state.kkt[batch.index] = torch.fmax(state.kkt[batch.index], solution.kkt.to(state.kkt.dtype))
    feasible = None if attack.formulation.ascends else solution.feasible
    return batch.constraint.repair(batch.x, batch.eta, updated), feasible


def _better(problem: Problem, batch: Batch, state: State, delta: Tensor, mirror: Tensor) -> Tensor:
    """Choose between two steps that the local model holds for equal, on the model itself."""
    gains = []
    for step in (delta, mirror):
        outputs = problem.craft_outputs(place(batch.x, batch.eta + step, batch.constraint))
        gains.append(batch.objective.gain(outputs, batch.target))
        state.forwards[batch.index] += 1
    return torch.where(expand(gains[1] > gains[0], delta), mirror, delta)
