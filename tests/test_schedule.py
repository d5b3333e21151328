"""Schedules: shares of eps, one for each step, that cannot leave the ball."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import epsball as eb


@given(st.integers(1, 200))
def test_the_default_steps_share_the_budget_equally(steps):
    shares = eb.Schedule(steps=steps).shares()
    assert len(shares) == steps
    assert len(set(shares)) == 1
    assert math.fsum(shares) == pytest.approx(1.0, abs=1e-12)
    assert eb.Schedule(steps=steps).dithers() == (0.0,) * steps


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=8))
def test_accumulated_steps_never_add_up_to_more_than_the_budget(sizes):
    if math.fsum(sizes) > 1.0 + 1e-9:
        with pytest.raises(eb.InputError, match="add up to at most 1"):
            eb.Schedule(steps=len(sizes), step_size=tuple(sizes))
    else:
        assert eb.Schedule(steps=len(sizes), step_size=tuple(sizes)).shares() == tuple(sizes)
    # Projected steps may have any size.
    assert eb.Schedule(steps=len(sizes), step_size=tuple(sizes), update="project").shares() == tuple(sizes)


def test_one_number_is_for_every_step_and_a_list_is_one_each():
    schedule = eb.Schedule(steps=3, step_size=0.25, dither=[0.5, 0.0, 0.1])
    assert schedule.shares() == (0.25, 0.25, 0.25)
    assert schedule.dithers() == (0.5, 0.0, 0.1)
    assert eb.Schedule(steps=2, dither=0.3).dithers() == (0.3, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "expected steps as an integer >= 1, got 0"),
        ({"steps": -3}, "expected steps"),
        ({"steps": 1.0}, "expected steps"),
        ({"steps": True}, "expected steps"),
        ({"restarts": 0}, "expected restarts as an integer >= 1"),
        ({"steps": 2, "step_size": 0.6}, r"add up to at most 1 \(they are shares of eps\), got 1.2"),
        ({"step_size": -0.1}, "expected step_size >= 0"),
        ({"step_size": math.nan}, "expected step_size >= 0"),
        ({"step_size": math.inf, "update": "project"}, "expected step_size >= 0"),
        ({"step_size": "big"}, "expected step_size >= 0"),
        ({"steps": 3, "step_size": (0.1, 0.1)}, "step_size as a number or one for each of the 3 steps, got 2"),
        ({"dither": -1.0}, "expected dither >= 0"),
        ({"steps": 2, "dither": (0.1,)}, "dither as a number or one for each of the 2 steps, got 1"),
        ({"update": "clip"}, 'expected update as "accumulate" or "project", got \'clip\''),
        ({"stop": "later"}, 'expected stop as "success", "never" or None'),
        ({"random_start": True}, "random start spends the budget"),
        ({"restart_steps": 0}, "expected restart_steps as an integer >= 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_schedules_that_cannot_be_run_are_refused(arguments, message):
    with pytest.raises(eb.InputError, match=message):
        eb.Schedule(**arguments)


def test_restarts_with_something_random_are_fine():
    assert eb.Schedule(restarts=3, dither=0.1).restarts == 3
    assert eb.Schedule(restarts=3, update="project", random_start=True).restarts == 3


def test_a_schedule_is_a_frozen_value():
    schedule = eb.Schedule(steps=2)
    assert schedule == eb.Schedule(steps=2)
    assert hash(schedule) == hash(eb.Schedule(steps=2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.steps = 3


@pytest.mark.parametrize("update", ["accumulate", "project"])
def test_attempts_that_would_repeat_the_first_are_refused(update):
    with pytest.raises(eb.InputError, match="restarts without random_start, restart_corners or dither"):
        eb.Attack(constraint=eb.LpBall(eps=0.1), schedule=eb.Schedule(restarts=2, update=update))
    ranked = eb.Attack(eb.LpBall(eps=0.1), eb.Ranked(), schedule=eb.Schedule(restarts=2, update=update))
    assert ranked.schedule.restarts == 2


def test_falling_steps_go_from_twice_the_ball_to_nothing_in_every_attempt():
    schedule = eb.Schedule(steps=4, step_size="falling", update="project", restart_steps=2)
    assert schedule.shares() == (2.0, 1.125, 0.5, 0.125)
    assert schedule.shares(schedule.length(0)) == schedule.shares()
    assert schedule.shares(schedule.length(1)) == (2.0, 0.5)
    assert schedule.length(7) == 2


def test_a_widened_ball_falls_geometrically_to_the_set_in_the_first_attempt():
    schedule = eb.Schedule(steps=6, update="project", keep="best", widening=(8.0, 0.5))
    assert schedule.factors(6) == pytest.approx((8.0, 4.0, 2.0, 1.0, 1.0, 1.0))
    assert schedule.factors(6, 1) == (1.0,) * 6
    # Whatever the share, the last step ends in the set.
    assert dataclasses.replace(schedule, widening=(8.0, 1.0)).factors(2) == pytest.approx((8.0, 1.0))
    assert eb.Schedule(steps=3).factors(3) == (1.0,) * 3


@pytest.mark.parametrize("widening", [2.0, (2.0,), ("2", 0.5), (0.5, 0.5), (math.inf, 0.5), (2.0, 0.0), (2.0, 1.5)])
def test_a_widening_that_is_none_is_refused(widening):
    with pytest.raises(eb.InputError, match="expected widening"):
        eb.Schedule(steps=4, update="project", keep="best", widening=widening)


@pytest.mark.parametrize("other", [{"keep": "last"}, {"update": "accumulate", "keep": "last"}])
def test_a_widening_needs_a_schedule_that_keeps_the_best_point(other):
    with pytest.raises(eb.InputError, match='keep="best"'):
        eb.Schedule(**{"steps": 4, "update": "project", "widening": (2.0, 0.5), **other})
