"""Random moves of blocks: inside the set, never worse, alone as in a batch, and further than gradients lead."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import epsball as eb
from epsball.block_moves import Ends
from epsball.blocks import block_signs
from epsball.errors import Status
from epsball.objectives import Ranked
from epsball.randomness import Generators
from helpers import Counting, images, network

BOX = (0.0, 1.0)


def attack(moves, eps=0.1, **changes):
    schedule = eb.Schedule(steps=2, update="project", step_size=0.5, block_moves=moves, **changes)
    return eb.Attack(eb.LpBall(eps=eps, bounds=BOX), schedule=schedule)


class Rounds(nn.Module):
    """Class 1 from four entries beyond the middle on, above or below it: no gradient tells."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        beyond = (self.sign * (x.flatten(1) - 0.5) > 0).to(x.dtype).sum(1)
        return torch.stack([torch.full_like(beyond, 3.5), beyond], 1) + 0.0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_they_go_on_where_every_gradient_is_zero(sign):
    x, target = torch.full((6, 1, 8, 8), 0.5 - 0.05 * sign), torch.zeros(6, dtype=torch.int64)
    assert set(attack(0)(Rounds(sign), x, target).status) == {Status.ZERO_GRADIENT}
    found = attack(60)(Rounds(sign), x, target)
    assert found.success.all()
    assert ((sign * (found.perturbed - 0.5) > 0).flatten(1).sum(1) >= 4).all()
    assert (found.perturbation.abs() <= 0.1 + 1e-6).all()
    # A sample leaves at its success.
    assert (found.forwards < 60).all()


@pytest.mark.parametrize("stop", ["success", "never"])
@pytest.mark.parametrize("lattice", [None, 255])
def test_the_gain_is_never_lower_and_the_set_is_kept(stop, lattice):
    model, x = network("lenet").eval(), images(7, seed=2)
    if lattice:
        x = (x * lattice).round() / lattice
    target = model(x).argmax(1)
    weights = torch.ones(3, 8, 8, dtype=x.dtype)
    weights[:, 0] = 0.0
    results = []
    for moves in (0, 80):
        schedule = dataclasses.replace(attack(moves, stop=stop).schedule, restarts=2, random_start=True)
        ball = eb.LpBall(eps=0.02, bounds=BOX, weights=weights, lattice=lattice)
        results.append(eb.Attack(ball, schedule=schedule)(model, x, target))
    before, after = results
    assert (after.gain >= before.gain).all()
    assert (after.success >= before.success).all()
    higher = after.gain > before.gain
    assert higher.any()
    assert bool((higher | before.success).all()) or stop == "success"
    assert (after.perturbation.abs() <= 0.02 * weights + 1e-12).all()
    assert (after.perturbed >= 0).all()
    assert (after.perturbed <= 1).all()
    if lattice:
        torch.testing.assert_close((after.perturbed * lattice).round() / lattice, after.perturbed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lattice", [None, 255])
def test_what_is_kept_is_the_best_point_that_was_tried(lattice):
    """From a wrapper's record of every forward pass: the attempt's end, the moves, and last the verification."""
    model, x = network("tanh").eval(), images(1, seed=2)
    x = (x * lattice).round() / lattice if lattice else x
    target, gains = model(x).argmax(1), []

    def recorded(points):
        outputs = model(points)
        if not points.requires_grad and len(points) == 1:
            gains.append(float(eb.Margin().gain(outputs.detach(), target)))
        return outputs

    ball = eb.LpBall(eps=0.02, bounds=BOX, lattice=lattice)
    result = eb.Attack(ball, schedule=attack(60, stop="never").schedule)(recorded, x, target)
    tried = gains[-62:-1]
    assert len(tried) == 61
    assert tried[-1] < max(tried)  # or keeping the last would do as well
    assert float(result.gain) == gains[-1] == pytest.approx(max(tried), abs=1e-12)


def test_a_sample_is_moved_the_same_alone_and_in_any_batch():
    model, x = network("tanh").eval(), images(6, seed=4)
    target, ids = model(x).argmax(1), torch.tensor([7, 3, 900, 0, 41, 5])
    schedule = attack(50, stop="never", restarts=3, restart_corners=True, restart_momentum=0.5).schedule
    own = eb.Attack(eb.LpBall(eps=0.4), schedule=dataclasses.replace(schedule, step_size=0.05))
    whole = own(model, x, target, seed=3, sample_id=ids)
    for rows in ([0], [4, 1], [5, 0, 3, 2]):
        part = own(model, x[rows], target[rows], seed=3, sample_id=ids[rows])
        torch.testing.assert_close(part.perturbed, whole.perturbed[rows], rtol=0, atol=1e-12)
        assert torch.equal(part.forwards, whole.forwards[rows])
    other = own(model, x, target, seed=4, sample_id=ids)
    assert (other.perturbed != whole.perturbed).any()


def test_every_forward_pass_is_counted():
    counting, x = Counting(network("tanh").eval()), images(5, seed=4)
    # Of all classes a batch may linearise some samples again.
    own = dataclasses.replace(attack(30, eps=0.02), objective=eb.Margin("runner-up"))
    result = own(counting, x, counting.model(x).argmax(1))
    assert counting.forwards == int(result.forwards.sum()) + 3  # the probes
    assert counting.backwards == int(result.backwards.sum())
    # Who is fooled by the attempt is judged after it and not moved.
    before = dataclasses.replace(attack(0, eps=0.02), objective=own.objective)(
        counting.model, x, counting.model(x).argmax(1)
    )
    assert before.success.any()
    assert torch.equal(result.forwards[before.success], before.forwards[before.success] + 1)
    stands = ~result.success
    assert stands.any()
    # Two steps, the judging of the attempt and of where the moves begin, the moves, and the verification.
    assert (result.forwards[stands] == 2 + 1 + 1 + 30 + 1).all()


def test_every_other_move_takes_a_block_of_another_end():
    """From a record of every point: attempts that end inside the ball, so that faces and ends can be told apart."""
    model, x = network("tanh").eval(), images(1, seed=2)
    target, points = model(x).argmax(1), []

    def recorded(at):
        if not at.requires_grad and len(at) == 1:
            points.append(at.detach().clone())
        return model(at)

    eps, moves, restarts = 0.02, 300, 3
    schedule = eb.Schedule(
        steps=2,
        update="project",
        step_size=0.01,
        stop="never",
        random_start=True,
        restarts=restarts,
        block_moves=moves,
    )
    eb.Attack(eb.LpBall(eps=eps), schedule=schedule)(recorded, x, target)
    tried, judged = points[-1 - moves : -1], points[-2 - moves - restarts : -2 - moves]
    gain = [float(eb.Margin().gain(model(point).detach(), target)) for point in (*judged, *tried)]
    best = max(range(restarts), key=gain.__getitem__)
    current, highest, exchanged = judged[best], gain[best], 0
    for point, now in zip(tried, gain[restarts:], strict=True):
        moved = (point != current).any(1, keepdim=True).expand_as(point)
        entries = moved[0, 0].nonzero()
        if len(entries):  # a block: all channels, side by side, or what of it is not there already
            low, high = entries.amin(0), entries.amax(0)
            box = (slice(None), slice(None), *(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)))
            on_faces = ((point - x)[box].abs() - eps).abs().amax() < 1e-12
            others = [end for place, end in enumerate(judged) if place != best]
            at_an_end = any(torch.equal(point[box], end[box]) for end in others)
            assert on_faces or at_an_end
            exchanged += int(at_an_end)
        if now > highest:
            current, highest = point, now
    assert 0.4 < exchanged / moves < 0.6


class Bent(nn.Module):
    """Two layers with tanh, on any shape."""

    def __init__(self, entries):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(entries, 24, generator=generator, dtype=torch.float64)
        self.last = torch.randn(24, 5, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return torch.tanh(1.5 * (x.flatten(1) - 0.5) @ self.first) @ self.last


@pytest.mark.parametrize("step", [0.0, 0.02, 0.15])
@pytest.mark.parametrize("objective", [eb.CrossEntropy(), Ranked(eb.CrossEntropy(), 3)], ids=["plain", "ranked"])
@pytest.mark.parametrize("shape", [(1, 6, 7), (2, 20), (40,)])
def test_samples_that_leave_at_any_time_take_nothing_of_others_along(shape, objective, step):
    """Each sample alone as in the batch, though they leave in attempts, between them and among the moves."""
    count = 24
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model, ids = Bent(math.prod(shape)), torch.arange(count) * 7 % 31
    target, eps = model(x).argmax(1), torch.linspace(0.005, 0.15, count, dtype=torch.float64)
    schedule = eb.Schedule(
        steps=2,
        step_size=step,
        update="project",
        restarts=5,
        restart_corners=True,
        restart_momentum=0.5,
        restart_steps=8,
        block_moves=40,
    )
    own = eb.Attack(eb.LpBall(eps=eps, bounds=BOX), objective=objective, schedule=schedule)
    whole = own(model, x, target, sample_id=ids)
    assert len(whole.forwards.unique()) > 4
    assert not whole.success.all()
    for row in range(count):
        alone = own.with_eps(eps[row : row + 1])(
            model, x[row : row + 1], target[row : row + 1], sample_id=ids[row : row + 1]
        )
        torch.testing.assert_close(alone.perturbed[0], whole.perturbed[row], rtol=0, atol=1e-12)
        assert int(alone.forwards) == int(whole.forwards[row])


def test_ends_are_those_of_the_samples_that_are_left():
    ends = Ends()
    ends.add(0, torch.arange(6), torch.arange(6.0)[:, None])
    assert ends.of(torch.arange(6), torch.zeros(6, dtype=torch.int64)) is None  # there is no other
    ends.add(1, torch.tensor([1, 2, 4, 5]), 10 + torch.tensor([1.0, 2.0, 4.0, 5.0])[:, None])
    ends.add(2, torch.tensor([1, 4, 5]), 20 + torch.tensor([1.0, 4.0, 5.0])[:, None])
    found = ends.of(torch.tensor([5, 1]), torch.tensor([9, 1, 9, 9, 9, 0]))
    assert found is not None
    assert found[0][..., 0].tolist() == [[5.0, 1.0], [15.0, 11.0], [25.0, 21.0]]
    assert found[1].tolist() == [0, 1]


def test_only_so_many_ends_are_kept():
    ends, everyone = Ends(), torch.arange(2)
    for attempt in range(30):
        ends.add(attempt, everyone, torch.full((2, 1), float(attempt)))
    found = ends.of(everyone, torch.tensor([3, 29]))
    assert found is not None
    assert found[0][:, 0, 0].tolist() == list(range(10, 30))
    assert found[1].tolist() == [20, 19]  # the end of the fourth attempt is no longer there


def test_attempts_from_corners_take_momentum_along():
    """Against the loop written out: sign steps, mixed with the movement before them, from corners of blocks."""
    model, x = network("tanh").eval(), images(4, seed=4)
    target, ids, eps, share, steps = model(x).argmax(1), torch.tensor([3, 9, 1, 7]), 0.2, 0.03, 5
    schedule = eb.Schedule(
        steps=steps,
        step_size=share,
        update="project",
        stop="never",
        restarts=9,
        restart_corners=True,
        restart_momentum=0.25,
    )
    result = eb.Attack(eb.LpBall(eps=eps, bounds=BOX), schedule=schedule)(model, x, target, sample_id=ids)
    low, high = (x - eps).clamp(*BOX), (x + eps).clamp(*BOX)
    gains, ends = [], []
    for attempt in range(9):
        point = x
        if attempt:
            signs = block_signs(x, Generators.of(0, ids).fork(attempt, 0))
            point = torch.where(signs > 0, high, low)
        before = point
        for step in range(steps):
            at = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(eb.Margin().gain(model(at), target).sum(), at)
            stepped = torch.clamp(torch.clamp(point + share * eps * gradient.sign(), *BOX), low, high)
            momentum = 0.25 if attempt and step else 0.0  # the first step has nothing before it
            moved = point + (1 - momentum) * (stepped - point) + momentum * (point - before)
            before, point = point, torch.clamp(moved, low, high)
        gains.append(eb.Margin().gain(model(point), target))
        ends.append(point)
    # The first attempt has none.
    first = dataclasses.replace(schedule, restarts=1)
    alone = eb.Attack(eb.LpBall(eps=eps, bounds=BOX), schedule=first)(model, x, target, sample_id=ids)
    torch.testing.assert_close(alone.perturbed, ends[0], rtol=0, atol=1e-10)
    best = torch.stack(gains).argmax(0)
    assert len(best.unique()) > 1
    torch.testing.assert_close(result.perturbed, torch.stack(ends)[best, torch.arange(4)], rtol=0, atol=1e-10)


def test_best_takes_them_from_many_passes_on_and_keeps_its_budget():
    model, x = network("tanh").eval(), images(5, seed=4)
    few, many = (eb.recipe("best", eps=0.01, bounds=BOX, passes=passes) for passes in (399, 400))
    assert few.schedule.block_moves == 0
    assert many.schedule.block_moves == 400
    assert eb.recipe("best", p=2.0, eps=0.1, passes=400).schedule.block_moves == 0
    assert eb.recipe("best", p=1.0, eps=0.1, passes=400).schedule.block_moves == 0
    assert (few.schedule.restart_corners, many.schedule.restart_corners) == (False, True)
    assert (few.objective.classes, many.objective.classes) == (9, 4)
    assert eb.recipe("best", eps=0.1, passes=400, classes=7).objective.classes == 7
    assert eb.recipe("best", p=2.0, eps=0.1, passes=400).objective.classes == 9
    result = many(model, x, model(x).argmax(1))
    spent = (result.forwards + result.backwards)[~result.success].double()
    assert len(spent)
    assert float(spent.mean()) >= 700


@pytest.mark.parametrize("passes", [400, 517, 950, 2000])
def test_best_keeps_its_budget(passes):
    """In the worst case: ten classes, and nobody is fooled."""
    x = torch.rand(2, 1, 6, 7, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(42, 10)).double().requires_grad_(False)
    result = eb.recipe("best", eps=1e-9, bounds=BOX, passes=passes)(model, x, model(x).argmax(1))
    assert not result.success.any()
    spent = result.forwards + result.backwards
    assert (spent <= 2 * passes).all()
    assert (
        spent >= 2 * passes - 2 * 21 - 15
    ).all()  # an attempt that does not fit, and rankings of the classes at once


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda s: eb.Attack(eb.LpBall(p=2.0, eps=1.0), schedule=s), "LpBall with p=inf for block_moves"),
        (lambda s: eb.Attack(eb.Groups(eb.pixels(), k=1, eps=1.0), schedule=s), "LpBall with p=inf"),
        (lambda s: eb.Attack(eb.LpBall(eps=1.0), formulation=eb.MinNorm(), schedule=s), "NormConstrained"),
        (
            lambda s: eb.Attack(eb.LpBall(eps=1.0), objective=eb.Ensemble([network("tanh")]), schedule=s),
            "no surrogates with block_moves",
        ),
    ],
)
def test_what_has_no_faces_to_move_to_is_refused(make, said):
    with pytest.raises(eb.InputError, match=said):
        make(eb.Schedule(block_moves=5))


def test_starts_at_corners_need_corners():
    with pytest.raises(eb.InputError, match="p=inf for restart_corners"):
        eb.Attack(eb.LpBall(p=2.0, eps=1.0), schedule=eb.Schedule(update="project", restarts=2, restart_corners=True))


@pytest.mark.parametrize("changes", [{}, {"update": "project", "step_size": 0.5, "average": True}])
def test_a_corner_leaves_no_budget_to_accumulate(changes):
    with pytest.raises(eb.InputError, match='update="project" without average=True for restart_corners'):
        eb.Schedule(steps=2, restarts=4, restart_corners=True, **changes)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan, "0.5"])
def test_momentum_is_a_share(momentum):
    with pytest.raises(eb.InputError, match="0 <= restart_momentum < 1"):
        eb.Schedule(update="project", restart_momentum=momentum)


@pytest.mark.parametrize("changes", [{}, {"update": "project", "step_size": 0.5, "average": True}])
def test_momentum_needs_projected_steps(changes):
    with pytest.raises(eb.InputError, match='update="project" without average=True for restart_momentum'):
        eb.Schedule(restart_momentum=0.5, **changes)


@pytest.mark.parametrize("moves", [-1, 2.5, True])
def test_a_number_of_moves_is_a_count(moves):
    with pytest.raises(eb.InputError, match="block_moves"):
        eb.Schedule(block_moves=moves)
