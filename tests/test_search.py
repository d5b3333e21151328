"""The recipes best and nearest: exact on affine models, in the order of the linear model, within their passes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball import networks
from epsball.data import load
from epsball.radius import Radius

ORDERS = [1.0, 1.5, 2.0, 3.0, math.inf]
SAMPLES, ENTRIES, CLASSES = 10, 24, 5


def affine(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return an affine classifier, and inputs of which three in five entries lie on a face of the box [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(ENTRIES, CLASSES).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(CLASSES, ENTRIES, generator=generator, dtype=torch.float64))
        model.bias.copy_(0.3 * torch.randn(CLASSES, generator=generator, dtype=torch.float64))
    x = torch.rand(SAMPLES, ENTRIES, generator=generator, dtype=torch.float64)
    face = torch.rand(SAMPLES, ENTRIES, generator=generator) < 0.6
    x = torch.where(face, (x < 0.5).double(), x)
    return model, x, model(x).argmax(1)


def optima(model: nn.Linear, x: Tensor, y: Tensor, p: float, eps: float | None) -> Tensor:
    """Solve, with CVXPY and class by class, for the least norm (eps None) or for the largest gain within eps."""
    cvxpy = pytest.importorskip("cvxpy", reason="the oracle needs the extra cvxpy")
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    found = []
    for i in range(len(x)):
        values = []
        for label in set(range(CLASSES)) - {int(y[i])}:
            eta = cvxpy.Variable(ENTRIES)
            gain = bias[label] - bias[y[i]] + (weight[label] - weight[y[i]]) @ (x[i].numpy() + eta)
            size, box = (
                cvxpy.norm(eta, "inf" if p == math.inf else p),
                [x[i].numpy() + eta >= 0, x[i].numpy() + eta <= 1],
            )
            goal, limit = (cvxpy.Minimize(size), gain >= 0) if eps is None else (cvxpy.Maximize(gain), size <= eps)
            problem = cvxpy.Problem(goal, [limit, *box])
            problem.solve(solver=cvxpy.CLARABEL)
            values.append(problem.value)
        found.append(min(values) if eps is None else max(values))
    return torch.tensor(found)


@pytest.mark.parametrize("p", ORDERS)
def test_nearest_is_exact_on_affine_models_inside_the_box(p):
    model, x, y = affine()
    result = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))(model, x, y)
    assert bool(result.success.all())
    torch.testing.assert_close(result.norm, optima(model, x, y, p, None), rtol=1e-6, atol=0)


@pytest.mark.parametrize("p", ORDERS)
def test_best_is_exact_on_affine_models_inside_the_box(p):
    eps = {1.0: 0.9, 1.5: 0.7, 2.0: 0.4, 3.0: 0.25, math.inf: 0.1}[p]
    model, x, y = affine()
    result = eb.recipe("best", p=p, eps=eps, bounds=(0.0, 1.0))(model, x, y)
    optimum = optima(model, x, y, p, eps)
    assert torch.equal(result.success, optimum > 0)
    assert 0 < int(result.success.sum()) < SAMPLES
    stands = ~result.success
    torch.testing.assert_close(result.gain[stands], optimum[stands], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("eps", [0.2, 0.4, 0.8])
def test_the_last_step_weighs_all_classes_from_x_itself(eps):
    model, x, y = affine(5)
    schedule = eb.Schedule(steps=2, step_size=(0.01, 0.0), update="project", stop="never", keep="best")
    ball = eb.LpBall(p=2.0, eps=eps, bounds=(0.0, 1.0))
    result = eb.Attack(ball, eb.Margin(), schedule=schedule)(model, x, y)
    torch.testing.assert_close(result.gain, optima(model, x, y, 2.0, eps), rtol=1e-6, atol=1e-9)


def test_a_step_over_another_ball_is_projected_onto_the_set():
    model, x, y = affine(2)
    ball = eb.LpBall(p=1.0, eps=0.5, bounds=(0.0, 1.0))
    schedule = eb.Schedule(steps=1, step_size=4.0, step_ball=(4 / 3, 0.4), update="project", stop="never")
    result = eb.Attack(ball, eb.TrueScore(), schedule=schedule)(model, x, y)
    step = eb.LpBall(p=4 / 3, eps=0.5 * 4.0 * 0.4, bounds=(0.0, 1.0)).lmo(-model.weight.detach()[y], x)
    assert bool((ball.size(step) > 0.5).all())
    torch.testing.assert_close(result.perturbed, x + ball.project(step, x))


@pytest.mark.parametrize(("leap", "expected"), [(1.0, 0.9), (2.0, 0.8), (4.0, 0.7), (9.0, 0.7)])
def test_after_a_success_that_is_too_large_the_radius_falls_as_far_as_the_linear_model_says(leap, expected):
    ball, rate = eb.LpBall(p=2.0, bounds=(0.0, 1.0)), 0.1
    x = torch.full((2, 4), 0.1, dtype=torch.float64)
    eta, gradient = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    eta[:, 0], gradient[:, 0] = 0.5, 2.0
    success, value = torch.tensor([True, False]), torch.tensor([0.3, 0.3], dtype=torch.float64)  # 0.15 too far
    radius = Radius.of(eta, torch.tensor([0.6, 0.6], dtype=torch.float64), rate, torch.zeros(2, dtype=torch.bool))
    radius.follow(ball, x, eta, success, value, gradient, 1.0, leap)
    assert float(radius.value[0]) == pytest.approx(0.5 * expected, rel=0.01)
    assert float(radius.value[1]) == pytest.approx(0.6 * (1.0 - 0.5 * rate), rel=0.01)  # no success, no leap


class Bent(nn.Module):
    """Two scores, one of them of a hinge: its slope at x promises a boundary far beyond the one there is."""

    def forward(self, x: Tensor) -> Tensor:
        """Rise slowly up to a sum of 1 over all entries, and steeply from there."""
        total = x.flatten(1).sum(1)
        return 3.0 + torch.stack([torch.ones_like(total), 0.05 * total + 10.0 * (total - 1.0).clamp_min(0.0)], 1)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_short_search_gets_away_from_a_first_success_that_is_too_large(p):
    x, y = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    nearest = eb.recipe("nearest", p=p, bounds=(0.0, 4.0), passes=8)
    slow, fast = (replace(nearest, formulation=eb.ShrinkingBall(haste=haste, polish=0)) for haste in (0, 15))
    faster = replace(nearest, formulation=eb.ShrinkingBall(haste=1000, polish=0))(Bent(), x, y)
    least = (1.0 + 0.95 / 10.05) * 9.0 ** (1.0 / p - 1.0)  # the sum at which the scores meet, in equal parts
    sizes = [attack(Bent(), x, y) for attack in (slow, fast)]
    assert all(bool(result.success.all()) for result in sizes)
    assert float(sizes[1].norm.max()) < 0.6 * float(sizes[0].norm.min())
    assert float(sizes[1].norm.min()) >= (1.0 - 1e-9) * least
    assert torch.equal(faster.norm, sizes[1].norm)  # never more than twice as fast


class Concave(nn.Module):
    """A constant score, and one that rises with the logarithm of every entry: the nearest point spreads its change."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores 8 and sum_i a_i log(1 + 20 x_i)."""
        rising = (self.weight * torch.log1p(20.0 * x.flatten(1))).sum(1)
        return torch.stack([torch.full_like(rising, 8.0), rising], 1)

    def least(self) -> float:
        """Find the least l1 norm from zero to where the scores meet: x_i = max(0, m a_i - 1/20), m by bisection."""
        low, high = 0.0, 10.0
        for _ in range(100):
            middle = (low + high) / 2.0
            x = (middle * self.weight - 0.05).clamp(0.0, 1.0)
            low, high = (middle, high) if self(x[None])[0].diff() < 0 else (low, middle)
        return float((high * self.weight - 0.05).clamp(0.0, 1.0).sum())


def test_rounder_steps_at_p_1_spread_over_entries_that_saturate():
    model = Concave(1.0 + torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x, y, least = torch.zeros(2, 30, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), model.least()
    nearest = eb.recipe("nearest", p=1.0, passes=15, bounds=(0.0, 1.0))
    best = eb.recipe("best", p=1.0, eps=1.02 * least, passes=15, bounds=(0.0, 1.0))
    own = [
        replace(attack, schedule=replace(attack.schedule, step_ball=None, bent_step_ball=None))
        for attack in (nearest, best)
    ]
    assert least <= float(nearest(model, x, y).norm.max()) < 1.001 * least
    assert bool(best(model, x, y).success.all())
    assert float(own[0](model, x, y).norm.min()) > 1.2 * least
    assert not bool(own[1](model, x, y).success.any())


@pytest.mark.parametrize("stop", ["success", "never"])
def test_a_single_attempt_also_judges_the_usual_last_step(stop):
    # From x the whole problem at p = 1 puts all of eps into few entries, where each of them soon gains little more.
    model = Concave(1.0 + torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x, y = torch.zeros(2, 30, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    plan = eb.Schedule(step_size=1.0, step_ball=(1.5, 0.5), update="project", keep="best", stop=stop)
    ranked = eb.Ranked(eb.Margin("runner-up"))
    one = eb.Attack(eb.LpBall(1.0, 2.0 * model.least(), (0.0, 1.0)), ranked, schedule=plan)
    several = replace(one, schedule=replace(plan, restarts=2))
    assert bool(one(model, x, y).success.all())
    assert one(model, x, y).forwards.tolist() == [4, 4]
    assert not bool(several(model, x, y).success.any())


def test_a_success_over_the_whole_set_ends_a_single_attempt():
    model, x, y = affine()
    attack = eb.recipe("best", p=1.0, eps=30.0, bounds=(0.0, 1.0), passes=1)
    result = attack(model, x, y)
    assert bool(result.success.all())
    assert result.forwards.tolist() == [3] * len(x)


class Recorded(nn.Module):
    """Count forward and backward passes of every sample, told apart by the first entry, which nothing changes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """Count the samples of this pass, and those whose gradients come back."""
        self.forwards += len(x)
        if x.requires_grad:
            x = x * 1.0
            x.register_hook(self._back)
        outputs: Tensor = self.model(x)
        return outputs

    def _back(self, gradient: Tensor) -> None:
        self.backwards += int((gradient != 0).flatten(1).any(1).sum())


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("passes", [1, 5, 12, 30, 40, 100, 420, 1000])
@pytest.mark.parametrize("name", ["best", "nearest"])
def test_the_budget_of_passes_is_kept(name, passes, p):
    data = load("digits", split="test").head(12)
    model = Recorded(networks.load("digits-fcnn"))
    eps = {"eps": 1e-3} if name == "best" else {}  # so small that every sample stands and spends everything
    result = eb.recipe(name, p=p, bounds=data.bounds, passes=passes, **eps)(model, data.x, data.target)
    # One attempt takes every pass for its steps, so that judging what it found takes forward passes on top; `best` has
    # two points to judge.
    plan = eb.recipe(name, p=p, passes=passes, **eps).schedule
    attempts = 1 if plan.turn_after is not None else plan.restarts
    spent = result.forwards + result.backwards
    on_top = 0 if attempts > 1 else 3 if name == "best" else 2
    assert int(spent.max()) <= 2 * passes + on_top
    assert model.forwards <= int(result.forwards.sum()) + 4
    assert model.backwards <= int(result.backwards.sum())
    assert passes < 10 or float(spent.double().mean()) >= 1.6 * passes


def test_a_single_pass_goes_to_the_nearest_class_and_not_between_two():
    # Two classes equally near on opposite sides: the cross-entropy leads between them, 5 times as far from both.
    model = torch.nn.Linear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [0.2, 1.0], [0.2, -1.0]]))
        model.bias.copy_(torch.tensor([0.0, -1.0, -1.01]))
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    attack = eb.recipe("best", p=2.0, eps=1.0, passes=1)
    assert bool(attack(model, x, y).success)
    several = eb.recipe("best", p=2.0, eps=1.0, passes=2)
    assert several.objective.first == eb.CrossEntropy()
    assert not bool(replace(attack, objective=several.objective)(model, x, y).success)


def test_classes_are_attempted_in_the_order_of_what_the_linear_model_promises():
    model, x, y = affine(3)
    weight = model.weight.detach()
    ball = eb.LpBall(p=2.0, eps=0.3)
    margins = model(x).detach() - model(x).detach().gather(1, y[:, None])
    length = (weight[None] - weight[y][:, None]).norm(dim=2)
    by_distance = torch.where(length > 0, -margins / length.clamp_min(1e-9), math.inf).argsort(1)[:, :-1]
    by_gain = torch.where(length > 0, margins + 0.3 * length, -math.inf).argsort(1, descending=True)[:, :-1]
    turns: list[Tensor] = []

    class Spy(eb.Ranked):
        def ranked(self, labels: Tensor, index: Tensor, batch: int) -> eb.Ranked:
            turns.append(labels)
            return super().ranked(labels, index, batch)

    schedule = eb.Schedule(steps=40, step_size="falling", update="project", restarts=2)
    eb.Attack(ball, Spy(eb.Margin("runner-up")), formulation=eb.ShrinkingBall(), schedule=schedule)(model, x, y)
    torch.testing.assert_close(turns.pop(), by_distance)
    result = eb.Attack(ball, Spy(), schedule=schedule)(model, x, y)
    stands = ~result.success
    assert bool(stands.any())
    torch.testing.assert_close(turns.pop(), by_gain[stands])


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_nearest_is_nearer_than_deepfool_and_never_farther_by_much(p):
    data = load("digits", split="test").head(100)
    model = networks.load("digits-cnn")
    nearest = eb.recipe("nearest", p=p, bounds=data.bounds)(model, data.x, data.target)
    deepfool = eb.recipe("deepfool", p=p, bounds=data.bounds)(model, data.x, data.target)
    assert bool((nearest.success >= deepfool.success).all())
    assert float(nearest.norm.mean()) < 0.97 * float(deepfool.norm.mean())
    assert bool((nearest.norm <= 1.001 * deepfool.norm).all())


def test_more_passes_fool_no_fewer_and_best_fools_more_than_pgd():
    data = load("digits", split="test").head(200)
    model = networks.load("digits-cnn")
    pgd = eb.recipe("pgd", eps=0.12, steps=40, bounds=data.bounds)(model, data.x, data.target)
    few, many = (
        eb.recipe("best", eps=0.12, passes=passes, bounds=data.bounds)(model, data.x, data.target)
        for passes in (10, 100)
    )
    assert int(many.success.sum()) >= int(few.success.sum())
    assert int(many.success.sum()) > int(pgd.success.sum())
    assert bool((many.success >= pgd.success).float().mean() > 0.98)


def test_a_search_begins_at_random_points_where_attempts_would_repeat():
    ranked = eb.Ranked(classes=2, labels=torch.tensor([[3, 1]]))
    assert [ranked.attempt(n)[0].turn for n in range(5)] == [0, 1, 2, 0, 1]
    assert [ranked.attempt(n)[1] for n in range(5)] == [False, False, False, True, True]
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return super().forward(x)

    affine_model, x, y = affine()
    model = Spy(ENTRIES, CLASSES).double()
    model.load_state_dict(affine_model.state_dict())
    schedule = eb.Schedule(steps=1, step_size="falling", update="project", restarts=4, stop="never")
    eb.Attack(eb.LpBall(eps=1e-4, bounds=(0.0, 1.0)), eb.Ranked(classes=2), schedule=schedule)(model, x, y)
    starts = [points for points in seen if len(points) == len(x)]
    inside = [float((points - x).abs().max()) for points in starts]
    # Attempts 0 to 2 begin at x, and the fourth inside the ball, neither at x nor at one of its corners.
    partly = [points for points in starts if not bool(((points - x).abs() > 0.99e-4).any(1).all())]
    assert sum(size == 0.0 for size in inside) == 3
    assert len(partly) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.recipe("best", eps=0.1, steps=3), "expected passes for 'best'.*got steps=3"),
        (lambda: eb.recipe("nearest", restarts=2), "expected passes for 'nearest'.*got restarts=2"),
        (lambda: eb.recipe("best", eps=0.1, passes=0), "expected passes as an integer >= 1"),
        (lambda: eb.Ranked(classes=0), "expected classes as an integer >= 1"),
        (lambda: eb.Ranked(eb.TargetedMargin()), "expected first as eb.CrossEntropy"),
        (lambda: eb.Ranked(eb.SquaredError()), "expected first as eb.CrossEntropy.*got SquaredError"),
        (
            lambda: eb.Attack(eb.LpBall(), formulation=eb.ShrinkingBall()),
            'expected update="project" without random_start and dither',
        ),
        (
            lambda: eb.Attack(
                eb.Groups(eb.pixels(1), k=1, eps=0.1),
                formulation=eb.ShrinkingBall(),
                schedule=eb.Schedule(update="project"),
            ),
            "expected a convex set",
        ),
        (lambda: eb.Schedule(keep="best"), 'expected keep="best" with update="project"'),
        (lambda: eb.Schedule(step_ball=(1.5, 0.5)), 'expected update="project" without average=True for step_ball'),
        (lambda: eb.Schedule(update="project", step_ball=(0.5, 0.5)), "expected a norm order p"),
        (lambda: eb.Schedule(update="project", step_ball=(1.5, 0.0)), "expected the share of step_ball > 0"),
        (lambda: eb.Schedule(update="project", step_ball=1.5), r"expected step_ball as \(p, share\)"),
        (
            lambda: eb.Attack(
                eb.Groups(eb.pixels(1), k=1, eps=0.1), schedule=eb.Schedule(update="project", step_ball=(1.5, 0.5))
            ),
            "expected an eb.LpBall with step_ball",
        ),
        (lambda: eb.Schedule(keep="first"), 'expected keep as "last" or "best"'),
    ],
)
def test_what_cannot_be_searched_is_refused(make, message):
    with pytest.raises(eb.InputError, match=message):
        make()


def test_an_objective_of_several_pieces_is_refused_by_a_search():
    model, x, y = affine()
    attack = eb.Attack(
        eb.LpBall(p=2.0),
        eb.Margin(),
        formulation=eb.ShrinkingBall(),
        schedule=eb.Schedule(steps=3, update="project", step_size=0.5),
    )
    with pytest.raises(eb.InputError, match="expected an objective of one piece"):
        attack(model, x, y)


def test_misclassified_inputs_are_left_alone():
    model, x, y = affine()
    result = eb.recipe("nearest", p=2.0, bounds=(0.0, 1.0))(model, x, (y + 1) % CLASSES)
    assert set(result.status) == {eb.Status.ALREADY}
    assert float(result.norm.max()) == 0.0


class Valley(nn.Module):
    """Scores (0, gain) where the gain is positive from ‖x‖₁ = 1.5 on; remembers which ‖x‖₁ it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().abs().flatten(1).sum(1))
        gain = x.sum(1) - 1.5
        return torch.stack([torch.zeros_like(gain), gain], 1)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_widened_search_leaves_the_ball_on_its_way_and_counts_only_what_is_inside(p):
    x, y = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    eps = {1.0: 1.0, 2.0: 0.5, math.inf: 0.25}[p]  # the largest ‖η‖₁ inside is 1 for each
    plan = eb.Schedule(steps=10, step_size=1.0, update="project", keep="best", widening=(3.0, 0.8))
    for bounds in (None, (-5.0, 5.0)):
        ball = eb.LpBall(p=p, eps=eps, bounds=bounds)
        model = Valley()
        result = eb.Attack(ball, schedule=plan)(model, x, y)
        reached = torch.stack([seen for seen in model.seen if len(seen) == 2])
        assert float(reached.max()) == pytest.approx(3.0)
        assert bool((reached[-1] <= 1.0 + 1e-9).all())
        assert not bool(result.success.any())
        assert result.gain.tolist() == pytest.approx([-0.5, -0.5])  # the best inside, though 1.5 was seen outside
        # A success inside is one, and ends the search.
        easy = eb.Attack(ball.with_eps(2.0 * eps), schedule=plan)(Valley(), x, y)
        assert bool(easy.success.all())
        assert bool((easy.norm <= 2.0 * eps * (1.0 + 1e-9)).all())
    # On a lattice the judged point would be another one, so nothing is widened there.
    model = Valley()
    eb.Attack(eb.LpBall(p=p, eps=eps, bounds=(-5.0, 5.0), lattice=40), schedule=plan)(model, x, y)
    assert max(float(seen.max()) for seen in model.seen) <= 1.0 + 1e-9


def test_best_begins_with_a_search_where_it_makes_several_attempts():
    found = {(p, n): eb.recipe("best", p=p, eps=1.0, passes=n) for p in (1.0, 2.0, math.inf) for n in (5, 20, 35, 100)}
    widening = {key: attack.schedule.widening for key, attack in found.items()}
    assert [widening[1.0, n] for n in (5, 20, 35, 100)] == [None, (3.0, 0.5), (6.0, 0.8), "found"]
    assert [widening[2.0, n] for n in (5, 20, 35, 100)] == [None, None, None, "found"]
    assert all(widening[math.inf, n] is None for n in (5, 20, 35, 100))
    # A search follows where the scores meet, which the cross-entropy does not show.
    for key, attack in found.items():
        assert isinstance(attack.objective.first, eb.Margin) == (widening[key] == "found")
    assert eb.recipe("nearest", p=1.0).schedule.widening is None


@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 3.0])
def test_whatever_the_search_finds_first_best_stays_in_the_set(p):
    data, model = load("digits", split="test").head(40), networks.load("digits-fcnn")
    eps = torch.linspace(0.05, 1.5, 40) * {1.0: 1.0, 1.3: 0.7, 2.0: 0.4, 3.0: 0.3}[p]
    attack = eb.recipe("best", p=p, eps=eps, bounds=data.bounds, passes=60)
    assert attack.schedule.widening == "found"
    result = attack(model, data.x, data.target)
    assert bool(attack.constraint.contains(result.perturbation, data.x).all())
    assert 5 < int(result.success.sum()) < 40
    one = attack.with_eps(eps[7:8])(model, data.x[7:8], data.target[7:8], sample_id=torch.tensor([7]))
    torch.testing.assert_close(one.perturbation[0], result.perturbation[7], rtol=1e-4, atol=1e-5)


class Walled(nn.Module):
    """Finite and sloping within 0.2 of zero, and beyond it NaN or flat."""

    def __init__(self, beyond: float) -> None:
        super().__init__()
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 2)."""
        far = x.norm(dim=1) > 0.2
        margin = torch.where(far, self.beyond + 0.0 * x.detach().sum(1), x.sum(1) - 1.0)
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("beyond", [math.nan, -0.5])
def test_what_a_search_meets_beyond_the_set_is_no_status(p, beyond):
    result = eb.recipe("best", p=p, eps=0.1)(Walled(beyond), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    assert result.status == (eb.Status.STANDS,)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["best", "nearest"])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_outputs_may_have_another_type_than_inputs(kind, name, p):
    data, model = load("digits", split="test").head(12), networks.load("digits-fcnn")
    eps = {"eps": 0.5} if name == "best" else {}
    attack = eb.recipe(name, p=p, bounds=data.bounds, passes=40, **eps)
    result = attack(lambda x: model(x).to(kind), data.x, data.target)
    assert result.perturbed.dtype == data.x.dtype
    assert int(result.success.sum()) >= 0.8 * int(attack(model, data.x, data.target).success.sum())


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_search_leaves_at_its_first_success_within_the_set(p):
    model, x, y = affine()
    attack = eb.recipe("best", p=p, eps=3.0, bounds=(0.0, 1.0), passes=60)
    least = eb.recipe("nearest", p=p, bounds=(0.0, 1.0))(model, x, y).norm
    result = attack(model, x, y)
    near = least < 1.0
    assert int(near.sum()) >= 5
    assert bool(result.success[near].all())
    assert int(result.forwards[near].max()) <= 8 < attack.schedule.steps


def test_the_radius_of_a_search_does_not_fall_below_its_floor():
    ball, x = eb.LpBall(2.0), torch.zeros(2, 3, dtype=torch.float64)
    floor = torch.tensor([0.7, 0.0], dtype=torch.float64)
    gradient, value = torch.ones_like(x), torch.full((2,), 2.0, dtype=torch.float64)
    nobody = torch.zeros(2, dtype=torch.bool)
    radius = Radius.of(x, torch.full((2,), math.inf, dtype=torch.float64), 0.3, nobody, floor)
    for size in (1.0, 0.8, 0.72):
        radius.follow(ball, x, size * gradient / 3**0.5, torch.ones(2, dtype=torch.bool), value, gradient, 1.0)
    assert float(radius.value[0]) == 0.7
    assert float(radius.value[1]) < 0.6
    assert float(radius.take(torch.tensor([1])).floor) == 0.0


def test_the_first_attempt_of_best_never_searches_below_eps(monkeypatch):
    data, model = load("digits", split="test").head(12), networks.load("digits-fcnn")
    seen, follow = [], Radius.follow

    def spy(radius, *given, **named):
        follow(radius, *given, **named)
        seen.append(float(radius.value.min()))

    monkeypatch.setattr(Radius, "follow", spy)
    eb.recipe("best", p=2.0, eps=0.5, bounds=data.bounds, passes=60)(model, data.x, data.target)
    assert len(seen) > 3
    assert min(seen) == 0.5
    assert max(seen) > 0.5


@pytest.mark.parametrize(("p", "passes", "first"), [(2.0, 5, 3.0), (1.5, 35, 3.0), (2.0, 4, 2.0), (3.0, 5, 2.0)])
def test_a_single_attempt_of_best_begins_with_longer_steps_up_to_order_2(p, passes, first):
    shares = eb.recipe("best", p=p, eps=0.1, passes=passes).schedule.shares()
    expected = [first * (1 - step / passes) ** 2 for step in range(passes)]
    assert shares == pytest.approx(expected)
    several = eb.recipe("best", p=p, eps=0.1, passes=100).schedule
    assert several.falls_from == 2.0


def test_attempts_after_the_first_have_a_ball_of_their_own():
    model = Concave(1.0 + torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x, y = torch.zeros(1, 30, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    rounder = eb.Schedule(steps=8, step_size="falling", step_ball=(1.5, 0.5), update="project", keep="best")
    sharp = replace(rounder, step_ball=(1.0, 1.0), restarts=2)
    ball, objective = eb.LpBall(1.0, 1.02 * model.least(), (0.0, 1.0)), eb.Ranked(eb.Margin("runner-up"))
    own, other = (
        eb.Attack(ball, objective, schedule=replace(sharp, restart_step_ball=given))(model, x, y)
        for given in (None, (1.5, 0.5))
    )
    assert not bool(own.success.any())
    assert bool(other.success.all())
    assert bool((other.forwards > 9).all())  # by the second attempt


def test_a_grid_of_budgets_shares_the_first_linearisation():
    data, model = load("digits", split="test").head(6), Recorded(networks.load("digits-fcnn"))
    attack = eb.recipe("best", p=2.0, eps=1e-4, bounds=data.bounds, passes=40)
    calls = []
    for number in (1, 2, 3):
        model.backwards = 0
        attack.over(model, data.x, data.target, eps=[1e-4] * number)
        calls.append(model.backwards)
    assert calls[2] - calls[1] == calls[1] - calls[0] == calls[0] - len(data.x)


def test_all_steps_are_taken_where_nothing_stops_them():
    data, model = load("digits", split="test").head(6), networks.load("digits-fcnn")
    attack = eb.recipe("best", p=2.0, eps=1.0, bounds=data.bounds, passes=40)
    result = replace(attack, schedule=replace(attack.schedule, stop="never"))(model, data.x, data.target)
    assert bool(result.success.any())
    assert len(set(result.forwards.tolist())) == 1


def test_best_takes_what_only_the_bounds_limit():
    model, x, y = affine()
    result = eb.recipe("best", p=2.0, eps=math.inf, bounds=(0.0, 1.0))(model, x, y)
    assert bool(result.success.all())


def widened(**changes: object) -> eb.Schedule:
    return eb.Schedule(**{"steps": 7, "update": "project", "keep": "best", "widening": (6.0, 0.8), **changes})


def test_a_widening_is_refused_where_it_would_leave_the_set():
    with pytest.raises(eb.InputError, match="with widening, got a Groups"):
        eb.Attack(eb.Groups("pixels", k=2, eps=0.1), schedule=widened())
    with pytest.raises(eb.InputError, match="leave widening out"):
        eb.Attack(eb.LpBall(2.0), eb.Margin("runner-up"), formulation=eb.ShrinkingBall(), schedule=widened())
    with pytest.raises(eb.InputError, match='restarts and no average with widening="found"'):
        widened(widening="found")
    found = widened(widening="found", restarts=2)
    for objective in (eb.Margin(), eb.Ranked(), eb.Ranked(eb.Margin())):
        with pytest.raises(eb.InputError, match='or block_moves with widening="found"'):
            eb.Attack(eb.LpBall(2.0), objective, schedule=found)
    with pytest.raises(eb.InputError, match='or block_moves with widening="found"'):
        eb.Attack(eb.LpBall(2.0), eb.Ranked(eb.Margin("runner-up")), schedule=replace(found, random_start=True))
    with pytest.raises(eb.InputError, match="of the attempts after the first, got restarts=1"):
        eb.Schedule(update="project", restart_step_ball=(1.5, 0.7))
    plan = eb.Schedule(update="project", restarts=2, restart_step_ball=(1.5, 0.7))
    with pytest.raises(eb.InputError, match="with restart_step_ball, got a Groups"):
        eb.Attack(eb.Groups("pixels", k=2, eps=0.1), eb.Ranked(), schedule=plan)
    with pytest.raises(eb.InputError, match="expected widening as"):
        widened(widening="lost")
    with pytest.raises(eb.InputError, match="expected restart_step_ball as"):
        widened(restarts=2, restart_step_ball=1.5)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_widened_search_from_random_points_stays_inside_also_where_the_gradient_is_zero(p):
    flat = nn.Linear(6, 3).double()
    nn.init.zeros_(flat.weight)
    x = torch.rand(5, 6, dtype=torch.float64)
    attack = eb.Attack(eb.LpBall(p, 0.1, (0.0, 1.0)), eb.CrossEntropy(), schedule=widened(random_start=True))
    result = attack(flat, x, flat(x).argmax(1))
    assert set(result.status) == {eb.Status.ZERO_GRADIENT}
    assert bool((result.norm <= 0.1 * (1 + 1e-9)).all())


@pytest.mark.parametrize("widening", [None, (6.0, 0.8)])
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_affine_models_are_solved_exactly_with_fewer_classes_and_a_larger_ball(p, widening):
    gains = []
    for growth in (2.0, math.inf):
        found = []
        for seed in range(12):
            model, x, y = affine(seed)
            plan = widened(steps=3, step_size=1.0, stop="never", widening=widening)
            ball = eb.LpBall(p, 0.3 if p == 2.0 else 0.05, (0.0, 1.0))
            found.append(eb.Attack(ball, eb.Margin(), eb.Linear(growth=growth), schedule=plan)(model, x, y).gain)
        gains.append(torch.cat(found))
    assert torch.allclose(*gains, atol=1e-12)


class Failing(nn.Linear):
    """Scores that are no numbers where the first entry is above 5."""

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 3)."""
        return super().forward(x) * torch.where(x[:, :1] > 5.0, math.nan, 1.0)


@pytest.mark.parametrize("passes", [20, 100])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_sample_without_finite_scores_fails_alone(p, passes):
    generator = torch.Generator().manual_seed(2)
    model = Failing(6, 3)
    model.weight.data = torch.randn(3, 6, generator=generator)
    x = torch.rand(5, 6, generator=generator)
    y = model(x).argmax(1)
    x[2, 0] = 6.0
    result = eb.recipe("nearest", p=p, passes=passes)(model, x, y)
    assert [status == eb.Status.NON_FINITE for status in result.status] == [False, False, True, False, False]
    assert result.success.tolist() == [True, True, False, True, True]
