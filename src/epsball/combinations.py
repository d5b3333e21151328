"""Which schedules go with which sets, objectives and formulations: refused at the door where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epsball.block_moves import takes_moves
from epsball.errors import InputError
from epsball.local_models import Linear, Quadratic
from epsball.objectives import Margin, Ranked, as_objective
from epsball.sets import LpBall
from epsball.solvers import NormConstrained, ShrinkingBall

if TYPE_CHECKING:
    from epsball.attack import Attack

__all__ = ["check_schedule"]


def check_schedule(attack: Attack) -> None:
    """Refuse options of the schedule that the other parts of the attack cannot use."""
    if attack.formulation.follows:
        _search(attack)
    elif not attack.formulation.budgeted and (attack.schedule.update == "project" or attack.schedule.random_start):
        raise InputError("a minimal-norm attack has no budget to project onto or start in; accumulate its steps.")
    if attack.schedule.block_moves or attack.schedule.restart_corners:
        _faces(attack)
    if attack.schedule.boundary_steps:
        _boundary(attack)
    for option in ("continue_step_ball", "restart_near"):
        if getattr(attack.schedule, option) is not None:
            _promised(attack, option)
    if attack.schedule.turn_after is not None:
        _turn(attack)
    if attack.schedule.widening == "found":
        _found(attack)
    if attack.schedule.bent_step_ball is not None and not (
        attack.formulation.follows or attack.schedule.widening == "found"
    ):
        raise InputError(
            "expected eb.ShrinkingBall() or a schedule with widening='found' with bent_step_ball, got "
            f"{type(attack.formulation).__name__}; leave bent_step_ball out."
        )
    for option in ("step_ball", "restart_step_ball", "widening", "continue_step_ball"):
        if getattr(attack.schedule, option) is not None and not isinstance(attack.constraint, LpBall):
            raise InputError(
                f"expected an eb.LpBall with {option}, got a {type(attack.constraint).__name__}; leave {option} out."
            )
    if attack.schedule.average and isinstance(attack.local_model, Quadratic):
        raise InputError("expected a linear local model with average=True, got a Quadratic; use eb.Linear().")
    ranked = isinstance(attack.objective, Ranked)
    fresh = attack.schedule.random_start or attack.schedule.restart_corners or any(attack.schedule.dithers())
    if attack.schedule.restarts > 1 and not (ranked or fresh):
        raise InputError(
            "restarts without random_start, restart_corners or dither would repeat the same attempt; set one."
        )


def _search(attack: Attack) -> None:
    """Refuse what a minimal-norm search cannot use."""
    schedule, single = attack.schedule, isinstance(attack.local_model, Linear)
    if schedule.update != "project" or schedule.random_start or any(schedule.dithers(True)) or not single:
        raise InputError(
            'expected update="project" without random_start and dither, and a linear local model, for a search '
            "with a shrinking ball; it begins at random points by itself where attempts would repeat."
        )
    if schedule.widening is not None:
        raise InputError("a search with a shrinking ball chooses its radius itself; leave widening out.")
    if isinstance(attack.formulation, ShrinkingBall):
        attack.formulation.check(attack.constraint, average=schedule.average)


def _found(attack: Attack) -> None:
    """Refuse a first attempt as a search where it could not follow what it finds."""
    schedule, first = attack.schedule, getattr(attack.objective, "first", None)
    plain = not (schedule.random_start or schedule.restart_corners or any(schedule.dithers(True)))
    follows = isinstance(first, Margin) and first.classes == "runner-up"
    if type(attack.formulation) is not NormConstrained or not plain or not follows or schedule.block_moves:
        raise InputError(
            'expected eb.NormConstrained(), eb.Ranked(first=eb.Margin("runner-up")) and no random starts, dither '
            f'or block_moves with widening="found", got {type(attack.formulation).__name__} and {attack.objective!r}.'
        )


def _boundary(attack: Attack) -> None:
    """Refuse steps along the boundary where there is no search in the ℓ1 norm."""
    ball, formulation = attack.constraint, attack.formulation
    if type(formulation) is not ShrinkingBall or not isinstance(ball, LpBall) or ball.p != 1.0:
        raise InputError(
            "expected eb.ShrinkingBall() over an eb.LpBall with p=1 for boundary_steps, got "
            f"{type(formulation).__name__} over {ball!r}; leave boundary_steps out."
        )


def _promised(attack: Attack, option: str) -> None:
    """Refuse an option for which a search has no promise of the linear model to judge by."""
    objective, formulation = attack.objective, attack.formulation
    if type(formulation) is not ShrinkingBall or not isinstance(objective, Ranked) or not objective.early:
        raise InputError(
            f"expected eb.ShrinkingBall() and eb.Ranked(early=True) for {option}, which judges by the linear model "
            f"at x, got {type(formulation).__name__} and {objective!r}; leave {option} out."
        )


def _turn(attack: Attack) -> None:
    """Refuse to turn to other classes where there are none, or other attempts begin elsewhere."""
    schedule = attack.schedule
    plain = not (schedule.random_start or schedule.restart_corners or any(schedule.dithers(True)))
    if type(attack.formulation) is not NormConstrained or not isinstance(attack.objective, Ranked) or not plain:
        raise InputError(
            "expected eb.NormConstrained(), eb.Ranked() and no random starts or dither with turn_after, got "
            f"{type(attack.formulation).__name__} and {attack.objective!r}; leave turn_after out."
        )


def _faces(attack: Attack) -> None:
    """Refuse random moves of blocks, or starts at corners, where there are no faces, or nobody to ask."""
    named = "block_moves" if attack.schedule.block_moves else "restart_corners"
    if type(attack.formulation) is not NormConstrained or not takes_moves(attack.constraint):
        raise InputError(
            f"expected eb.NormConstrained() over an eb.LpBall with p=inf for {named}, on whose faces the points "
            f"lie, got {type(attack.formulation).__name__} over {attack.constraint!r}; leave {named} out."
        )
    if attack.schedule.block_moves and as_objective(attack.objective).surrogates:
        raise InputError("expected no surrogates with block_moves, which ask the model under attack at each move.")
