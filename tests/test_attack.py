"""The one loop: exact answers on affine classifiers, what each status means, and input that is refused."""

import dataclasses
import math
from types import SimpleNamespace

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

import epsball as eb
from epsball.errors import Status
from helpers import (
    CLASSES,
    ORDERS,
    SHAPE,
    Counting,
    affine,
    dual,
    images,
    labels,
    network,
    np_lmo,
    np_norm,
    np_softmax,
    scores,
)

# CLARABEL says so at 1e-11 where a cone is flat; what is compared is compared to 1e-6.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
WEIGHTS = np.array([1.0, 0.3, 2.0, 0.7, 5.0, 1.5, 0.1])
WEIGHTED = [pytest.param(None, id="plain"), pytest.param(WEIGHTS, id="weighted")]
BOX = (0.0, 1.0)


def as_tensor(weights):
    return None if weights is None else torch.from_numpy(weights)


def ball_size(eta, p, weights):
    return np_norm(eta if weights is None else eta / weights, p)


# ------------------------------------------------------------------------------- DeepFool on an affine model: exact


@pytest.mark.parametrize("weights", WEIGHTED)
@pytest.mark.parametrize("p", ORDERS)
def test_deepfool_is_the_exact_distance_times_its_overshoot(p, weights):
    problem = affine(1)
    result = eb.recipe("deepfool", p=p, weights=as_tensor(weights))(problem.model, problem.x, problem.target)
    exact = problem.distance(p, weights)
    np.testing.assert_allclose(result.norm.numpy(), 1.02 * exact, rtol=1e-9)
    assert result.status == (Status.SUCCESS,) * 4
    # One linearisation of the three pieces is enough on an affine model; the second only sees that it is over.
    assert result.forwards.tolist() == [3] * 4
    assert ((result.backwards > 3) & (result.backwards <= 6)).all()
    for overshoot in (0.0, 0.5):
        attack = eb.Attack(
            eb.LpBall(p=p, weights=as_tensor(weights)),
            formulation=eb.MinNorm(overshoot=overshoot),
            schedule=eb.Schedule(steps=5, step_size=0.0),
        )
        found = attack(problem.model, problem.x, problem.target)
        np.testing.assert_allclose(found.norm.numpy(), (1.0 + overshoot) * exact, rtol=1e-9)
        assert found.success.all()


def nearest_in_box(gradient, gap, x, p, weights):
    """Min ‖η / w‖_p with ⟨g, η⟩ ≥ gap inside the box, by CVXPY, or by one root where its cones get ill-conditioned."""
    w = np.ones_like(x) if weights is None else weights
    room = np.where(gradient > 0, 1.0 - x, x)
    if (np.abs(gradient) * room).sum() < gap:
        return math.inf
    if p in (1.0, 1.5, 2.0, 3.0, math.inf):
        eta = cp.Variable(len(x))
        size = cp.norm(cp.multiply(eta, 1.0 / w), "inf" if p == math.inf else p)
        program = cp.Problem(cp.Minimize(size), [gradient @ eta >= gap, x + eta >= 0.0, x + eta <= 1.0])
        program.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        assert program.status in ("optimal", "optimal_inaccurate")
        return float(program.value)
    # KKT in u = η / w: u_i = min(λ a_i^(q-1), c_i) with a = w |g|; the gap that it closes grows with λ.
    a, cap, power = w * np.abs(gradient), room / w, 1.0 / (p - 1.0)
    u = lambda log: np.minimum(np.exp(log + power * np.log(a)), cap)  # noqa: E731
    end = (np.log(cap[cap > 0]) - power * np.log(a[cap > 0])).max()
    return np_norm(u(brentq(lambda log: a @ u(log) - gap, end - 400.0, end, xtol=1e-13)), p)


@pytest.mark.parametrize("weights", WEIGHTED)
@pytest.mark.parametrize("p", ORDERS)
def test_deepfool_inside_bounds_is_the_exact_distance_of_the_overshot_gap(p, weights):
    problem = affine(12, batch=3, faces=True)
    result = eb.recipe("deepfool", p=p, bounds=BOX, weights=as_tensor(weights))(
        problem.model, problem.x, problem.target
    )
    tighter, free = 0, 1.02 * problem.distance(p, weights)
    for sample in range(3):
        gaps, gradients = problem.margins(sample)
        x = problem.x[sample].numpy()
        exact = min(nearest_in_box(g, 1.02 * gap, x, p, weights) for gap, g in zip(gaps, gradients, strict=True))
        assert float(result.norm[sample]) == pytest.approx(exact, rel=2e-6)
        tighter += exact > 1.001 * free[sample]
    assert result.success.all()
    assert tighter >= 2  # the box matters, or this would repeat the test above


def test_deepfool_gives_up_at_the_best_corner_where_the_box_is_too_small():
    problem = affine(3, batch=3)
    with torch.no_grad():
        model = problem.model
        for sample in range(1, 3):
            model.bias[problem.target[sample]] += 1000.0
        target = torch.stack([scores(model, problem.x).argmax(1)]).squeeze(0)
    result = eb.recipe("deepfool", p=2.0, bounds=BOX)(model, problem.x, target)
    for sample in range(3):
        assert result.status[sample] is Status.INFEASIBLE
        k = int(target[sample])
        W, b, x = model.weight.detach().numpy(), model.bias.detach().numpy(), problem.x[sample].numpy()
        corners = [
            (W[c] - W[k]) @ np.where(W[c] > W[k], 1.0, 0.0) + b[c] - b[k] for c in range(len(b)) if c != k
        ]  # the largest margin of each class over the whole box
        assert float(result.gain[sample]) == pytest.approx(max(corners), rel=1e-12)
        assert set(result.perturbed[sample].tolist()) <= {0.0, 1.0} | set(x.tolist())
    assert not result.success.any()
    # It stops where it no longer moves, and does not spend the 50 steps.
    assert (result.forwards <= 4).all()


def test_a_min_norm_attack_with_a_limit_says_what_lies_beyond():
    problem = affine(4, batch=6)
    exact = torch.from_numpy(problem.distance(2.0))
    limit = float(1.02 * exact.median())
    free = eb.recipe("deepfool", p=2.0)(problem.model, problem.x, problem.target)
    result = eb.recipe("deepfool", p=2.0, eps=limit)(problem.model, problem.x, problem.target)
    beyond = 1.02 * exact > limit * (1 + 1e-6)
    assert 0 < beyond.sum() < 6
    assert torch.equal(result.having(Status.BEYOND), beyond)
    assert torch.equal(result.success, ~beyond)
    torch.testing.assert_close(result.perturbed, free.perturbed, rtol=0, atol=0)


# ---------------------------------------------------------------------- single steps on an affine model: closed forms


def box_lmo(gradient, eps, p, x):
    """Max ⟨g, η⟩ over ball and box, the value, by CVXPY."""
    eta = cp.Variable(len(x))
    size = cp.norm(eta, "inf" if p == math.inf else p)
    program = cp.Problem(cp.Maximize(gradient @ eta), [size <= eps, x + eta >= 0.0, x + eta <= 1.0])
    program.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return float(program.value)


def gradients_of(problem, name, sample, eps, p, weights=None):
    """The gradient that a single step follows, for each of the three single-step recipes."""
    x, k = problem.x[sample].numpy(), int(problem.target[sample])
    if name == "alg2":
        return -problem.W[k]
    if name == "fgsm":
        return np_softmax(problem.W @ x + problem.b) @ problem.W - problem.W[k]
    gaps, rows = problem.margins(sample)
    w = 1.0 if weights is None else weights
    return rows[np.argmax([eps * np_norm(w * g, dual(p)) - gap for gap, g in zip(gaps, rows, strict=True)])]


@pytest.mark.parametrize("weights", WEIGHTED)
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("name", ["fgsm", "alg1", "alg2"])
def test_a_single_step_is_the_closed_form(name, p, weights):
    problem = affine(5, batch=6)
    eps = 0.8 * float(np.median(problem.distance(p, weights)))
    attack = eb.recipe(name, p=p, eps=eps, weights=as_tensor(weights))
    result = attack(problem.model, problem.x, problem.target)
    pieces = set()
    for sample in range(6):
        gradient = gradients_of(problem, name, sample, eps, p, weights)
        np.testing.assert_allclose(
            result.perturbation[sample].numpy(), np_lmo(gradient, eps, p, weights), rtol=1e-7, atol=1e-12 * eps
        )
        pieces.add(tuple(gradient))
    assert len(pieces) > 1
    np.testing.assert_allclose(result.norm.numpy(), eps, rtol=1e-9)
    assert result.forwards.tolist() == [2] * 6
    assert result.backwards.tolist() == [3 if name == "alg1" else 1] * 6


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", ["fgsm", "alg1", "alg2"])
def test_a_single_step_inside_bounds_is_the_best_point_of_ball_and_box(name, p):
    problem = affine(6, batch=3, faces=True)
    eps = 0.5 * 7.0 ** (0.0 if p == math.inf else 1.0 / p)
    result = eb.recipe(name, p=p, eps=eps, bounds=BOX)(problem.model, problem.x, problem.target)
    for sample in range(3):
        x, eta = problem.x[sample].numpy(), result.perturbation[sample].numpy()
        if name == "alg1":
            gaps, rows = problem.margins(sample)
            best = max(box_lmo(g, eps, p, x) - gap for gap, g in zip(gaps, rows, strict=True))
            assert float(result.gain[sample]) == pytest.approx(best, rel=1e-6)
        else:
            gradient = gradients_of(problem, name, sample, eps, p)
            assert gradient @ eta == pytest.approx(box_lmo(gradient, eps, p, x), rel=1e-6)
    assert ((result.perturbed == 0) | (result.perturbed == 1)).any()


@pytest.mark.parametrize(("steps", "classes"), [(1, 5), (4, 2)])
@pytest.mark.parametrize("weights", WEIGHTED)
@pytest.mark.parametrize("p", ORDERS)
def test_algorithm_1_succeeds_exactly_where_eps_exceeds_the_distance(p, weights, steps, classes):
    """One step over all classes; several steps of eps/T choose their class by the next step alone, so two classes."""
    problem = affine(7, batch=12, classes=classes)
    exact = torch.from_numpy(problem.distance(p, weights))
    sign = torch.tensor([1.0, -1.0]).repeat(6)
    name = "alg1" if steps == 1 else f"alg1-{steps}"
    attack = eb.recipe(name, p=p, eps=exact * (1.0 + 1e-6 * sign), weights=as_tensor(weights))
    result = attack(problem.model, problem.x, problem.target)
    assert torch.equal(result.success, sign > 0)
    assert torch.equal(result.gain > 0, sign > 0)
    assert all(s is (Status.SUCCESS if up > 0 else Status.STANDS) for s, up in zip(result.status, sign, strict=True))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_accumulated_and_projected_steps_reach_the_optimum_of_an_affine_model(p):
    """Whatever the steps, on an affine true score the only maximiser is the single step over the whole budget."""
    problem = affine(8)
    exact = np.stack([np_lmo(-problem.W[k], 0.3, p) for k in problem.target.tolist()])
    schedules = [
        eb.Schedule(steps=1, stop="never"),
        eb.Schedule(steps=5, stop="never"),
        eb.Schedule(steps=3, step_size=(0.5, 0.25, 0.25), stop="never"),
        eb.Schedule(steps=5, stop="never", dither=0.5),
    ]
    if p != 1.0:  # a vertex step followed by a projection ends there as well, but only in the limit
        schedules.append(
            eb.Schedule(steps=60, step_size=2.5, update="project", random_start=True, stop="never", restarts=2)
        )
    for schedule in schedules:
        attack = eb.Attack(eb.LpBall(p=p, eps=0.3), objective=eb.TrueScore(), schedule=schedule)
        result = attack(problem.model, problem.x, problem.target)
        tight = 1e-9 if schedule.update == "accumulate" else 1e-6
        np.testing.assert_allclose(result.perturbation.numpy(), exact, rtol=0, atol=tight, err_msg=repr(schedule))
    half = eb.Attack(eb.LpBall(p=p, eps=0.3), objective=eb.TrueScore(), schedule=eb.Schedule(step_size=0.5))
    np.testing.assert_allclose(
        half(problem.model, problem.x, problem.target).norm.numpy(), 0.15, rtol=1e-9
    )  # a share of eps


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_dither_linearises_elsewhere_but_steps_from_here(p):
    """The draw lies within its radius, and the step is taken from the point that was not dithered."""
    model, x = network("tanh"), images(4)
    target = labels(model, x)
    seen = []

    def watched(points):
        seen.append(points.detach())
        return model(points)

    attack = eb.Attack(
        eb.LpBall(p=p, eps=0.2), objective=eb.CrossEntropy(), schedule=eb.Schedule(steps=2, dither=(0.5, 0.0))
    )
    result = attack(watched, x, target)
    crafted = [points for points in seen if len(points) == len(x)]
    offset = crafted[0] - x
    sizes = np.array([np_norm(o, p) for o in offset.numpy()])
    assert (sizes > 0).all()
    assert (sizes <= 0.1 * (1 + 1e-9)).all()
    # The second point is one step of eps / 2 from x itself, along the gradient taken at the dithered point.
    point = crafted[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model.eval()(point), target, reduction="sum"), point)
    step = np.stack([np_lmo(g.ravel(), 0.1, p).reshape(SHAPE) for g in gradient.numpy()])
    np.testing.assert_allclose((crafted[1] - x).numpy(), step, rtol=0, atol=1e-10)
    assert (result.norm <= 0.2 * (1 + 1e-9)).all()


def test_the_margin_at_a_dithered_point_is_brought_back_to_the_point():
    """Values count from x + η, not from where the gradient was taken: on an affine model dither changes nothing."""
    problem = affine(9, batch=8, classes=6)
    for formulation in (eb.NormConstrained(), eb.MinNorm()):
        plain, dithered = (
            eb.Attack(
                eb.LpBall(p=2.0, eps=0.5),
                formulation=formulation,
                schedule=eb.Schedule(dither=dither, stop="never"),
            )(problem.model, problem.x, problem.target)
            for dither in (0.0, 5.0)
        )
        torch.testing.assert_close(plain.perturbed, dithered.perturbed, rtol=0, atol=1e-10)


# ----------------------------------------------------------------------------------------------- stopping, restarting


def test_stop_at_success_keeps_the_first_and_never_takes_all_steps():
    model, x = network("tanh"), images(8, seed=2)
    target = labels(model, x, wrong=0)
    options = {"eps": 0.1, "bounds": BOX, "classes": "runner-up"}
    stopped = eb.recipe("alg1-6", stop="success", **options)(model, x, target)
    spent = eb.recipe("alg1-6", stop="never", **options)(model, x, target)
    torch.testing.assert_close(eb.recipe("alg1-6", **options)(model, x, target).perturbed, stopped.perturbed)
    assert spent.forwards.tolist() == [7] * 8
    early = stopped.forwards < 7
    assert stopped.success[early].all()
    assert early.any()
    assert (stopped.norm[early] < spent.norm[early]).all()
    assert stopped.status[0] is Status.ALREADY
    assert stopped.perturbation[0].count_nonzero() == 0
    assert stopped.forwards[0] == 2
    assert spent.status[0] is Status.SUCCESS
    torch.testing.assert_close(stopped.perturbed[~early], spent.perturbed[~early], rtol=0, atol=1e-12)
    # The first success: k steps of eps / 6 succeed, k - 1 do not.
    for i in early.nonzero()[:, 0].tolist():
        taken = int(stopped.forwards[i]) - 2
        for count, wins in ((taken, True), (taken - 1, False)):
            if count >= 0:
                schedule = eb.Schedule(steps=max(1, count), step_size=1.0 / 6 if count else 0.0, stop="never")
                part = eb.Attack(eb.LpBall(eps=0.1, bounds=BOX), objective=eb.Margin("runner-up"), schedule=schedule)
                assert bool(part(model, x[i : i + 1], target[i : i + 1]).success) is wins


@pytest.mark.parametrize("stop", ["success", "never"])
@pytest.mark.parametrize("name", ["pgd", "pgd-paper", "alg1-3"])
def test_restarts_are_never_worse_than_the_first_attempt(name, stop):
    model, x = network("lenet"), images(10, seed=2)
    target = labels(model, x, wrong=3)
    options = {"eps": 0.015, "bounds": BOX, "stop": stop}
    if name == "alg1-3":
        options |= {"dither": 1.0, "classes": "runner-up"}
    else:
        options["steps"] = 4
    first = eb.recipe(name, **options)(model, x, target, seed=1)
    many = eb.recipe(name, restarts=4, **options)(model, x, target, seed=1)
    assert (many.success | ~first.success).all()
    same = many.success == first.success
    assert (many.gain[same] >= first.gain[same] - 1e-12).all()
    if stop == "never":
        assert (many.gain > first.gain + 1e-9).any()  # and it is worth it somewhere
        assert torch.equal(many.backwards, 4 * first.backwards)
        assert torch.equal(many.forwards, 4 * first.forwards + 1)
    else:
        assert torch.equal(many.forwards[first.success], first.forwards[first.success] + 1)
        torch.testing.assert_close(many.perturbed[first.success], first.perturbed[first.success], rtol=0, atol=1e-12)
    assert (many.norm <= 0.015 * (1 + 1e-9)).all()


def test_restarts_return_the_best_of_all_attempts():
    """Attempt by attempt: the draws of a restart are those that the forked streams give, and the best is kept."""
    model, x = network("tanh"), images(6, seed=2)
    target = labels(model, x)
    seen = []

    def watched(points):
        outputs = model(points)
        if len(points) == 6:
            seen.append((points.detach(), outputs.detach()))
        return outputs

    schedule = eb.Schedule(steps=1, step_size=1.0, update="project", random_start=True, stop="never", restarts=5)
    result = eb.Attack(eb.LpBall(eps=0.02), objective=eb.CrossEntropy(), schedule=schedule)(watched, x, target)
    judged = seen[1::2]  # linearise, judge, linearise, judge, ... and the verification
    losses = torch.stack([nn.functional.cross_entropy(o, target, reduction="none") for _, o in judged[:5]])
    wins = torch.stack([o.argmax(1) != target for _, o in judged[:5]])
    best = (losses + 1e3 * wins).argmax(0)
    expected = torch.stack([judged[int(b)][0][i] for i, b in enumerate(best)])
    torch.testing.assert_close(result.perturbed, expected, rtol=0, atol=1e-12)
    assert len(set(best.tolist())) > 1


# ------------------------------------------------------------------------------------------------- one status for each


class Patchy(nn.Module):
    """Affine, but flat where x_0 > 10, NaN where x_0 < -10 and infinite where x_1 < -10."""

    def __init__(self, problem):
        super().__init__()
        self.layer = problem.model

    def forward(self, x):
        outputs = self.layer(x)
        outputs = torch.where(x[:, :1] > 10, outputs.detach(), outputs)
        scale = torch.where(x[:, :1] < -10, torch.nan, 1.0) * torch.where(x[:, 1:2] < -10, torch.inf, 1.0)
        return outputs * scale.detach()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "pgd-paper", "alg1-3", "alg2", "deepfool", "random-linf"])
def test_a_flat_or_broken_sample_has_its_status_and_the_others_go_on(name):
    problem = affine(10, batch=6)
    x = problem.x.clone()
    x[1, 0], x[3, 0], x[5, 1] = 20.0, -20.0, -20.0
    model = Patchy(problem)
    target = problem.target.clone()
    target[1] = scores(model, x)[1].argmax()
    eps = 1.7 * float(problem.distance(2.0)[0])  # 1.5 would end the second of three steps on the boundary
    attack = eb.recipe(name, p=2.0 if name != "random-linf" else None, eps=eps)
    result = attack(model, x, target)
    assert result.status[3] is Status.NON_FINITE
    assert result.status[5] is Status.NON_FINITE
    assert not result.success[[3, 5]].any()
    if name != "random-linf":
        assert result.status[1] is Status.ZERO_GRADIENT
        if name != "pgd":
            assert (result.perturbation[[1, 3, 5]] == 0).all()
    assert result.perturbed.isfinite().all()
    rest = [0, 2, 4]
    alone = attack(model, x[rest], target[rest], sample_id=torch.tensor(rest))
    torch.testing.assert_close(result.perturbed[rest], alone.perturbed, rtol=0, atol=1e-12)
    assert tuple(result.status[i] for i in rest) == alone.status
    if name not in ("random-linf", "alg2"):
        assert result.success[rest].any()


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bounds", [None, (-50.0, 50.0)])
def test_a_gradient_that_is_not_finite_leaves_the_others_alone(p, bounds):
    """Sqrt at 0: the output is finite, its slope is not."""
    problem = affine(11, batch=3)

    def model(x):
        outputs = problem.model(x)
        return outputs + 1e-3 * torch.sqrt((x[:, :1] - 5.0).clamp_min(0.0)) * torch.tensor([1.0, 0.0, 0.0, 0.0])

    x = problem.x.clone()
    x[1, 0] = 5.0
    target = scores(model, x).argmax(1)
    for name in ("alg1-3", "bim", "deepfool"):
        attack = eb.recipe(name, p=p, eps=1.5, bounds=bounds)
        result = attack(model, x, target)
        assert result.status[1] is Status.NON_FINITE, name
        assert result.perturbed.isfinite().all()
        alone = attack(model, x[[0, 2]], target[[0, 2]])
        torch.testing.assert_close(result.perturbed[[0, 2]], alone.perturbed, rtol=0, atol=1e-12)


def test_dither_gets_off_a_plateau_and_the_status_is_that_of_the_end():
    class Plateau(nn.Module):
        def forward(self, x):
            slope = (x[:, 0] - 0.5).sub(0.01).clamp_min(0.0)  # flat up to 0.51
            return torch.stack([torch.full_like(slope, 0.02), slope], 1)

    x, target = torch.full((4, 3), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    stuck = eb.recipe("alg1-6", eps=0.2)(Plateau(), x, target)
    assert stuck.status == (Status.ZERO_GRADIENT,) * 4
    assert stuck.forwards.tolist() == [2] * 4
    free = eb.recipe("alg1-20", eps=0.2, dither=1.0)(Plateau(), x, target)
    assert free.success.all()


def test_misclassified_inputs_are_already_there():
    model, x = network("tanh"), images(3)
    target = (labels(model, x) + 1) % CLASSES
    for name in ("bim", "alg1-3", "deepfool"):
        result = eb.recipe(name, eps=0.1)(model, x, target)
        assert result.status == (Status.ALREADY,) * 3
        assert (result.norm == 0).all()
        torch.testing.assert_close(result.perturbed, x, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:label is the own class")
def test_targeted_is_already_there_only_at_its_label():
    problem = affine(12, batch=4)
    label = problem.target.clone()
    label[2:] = (label[2:] + 1) % 4
    result = eb.recipe("targeted", eps=50.0, p=2.0, label=label)(problem.model, problem.x, problem.target)
    assert [s.name for s in result.status] == ["ALREADY", "ALREADY", "SUCCESS", "SUCCESS"]
    assert torch.equal(scores(problem.model, result.perturbed).argmax(1), label)


def test_squared_error_needs_dither_where_the_target_is_the_models_own_output():
    model, x = network("tanh"), images(4)
    ball = eb.LpBall(p=2.0, eps=0.5, bounds=BOX)
    plain = eb.Attack(ball, objective=eb.SquaredError(), schedule=eb.Schedule(steps=5))(model, x)
    assert plain.status == (Status.ZERO_GRADIENT,) * 4
    assert (plain.gain == 0).all()
    assert (plain.perturbation == 0).all()
    result = eb.Attack(ball, objective=eb.SquaredError(), schedule=eb.Schedule(steps=5, dither=0.5))(model, x)
    clean, outputs = scores(model, x), scores(model, result.perturbed)
    error = (outputs - clean).square().sum(1)
    torch.testing.assert_close(result.gain, error)
    random = eb.Attack(ball, objective=eb.SquaredError(), formulation=eb.RandomPoint())(model, x)
    assert (error > 5.0 * random.gain).all()
    assert result.status == (Status.SUCCESS,) * 4
    assert result.forwards.tolist() == [7] * 4  # the clean outputs, five steps, the verification
    # With a target of its own, no dither is needed: the first step climbs ‖f - y‖².
    y = clean + 1.0
    given = eb.Attack(ball, objective=eb.SquaredError(threshold=1e6), schedule=eb.Schedule(steps=5))(model, x, y)
    torch.testing.assert_close(given.gain, (scores(model, given.perturbed) - y).square().sum(1))
    assert (given.gain > (clean - y).square().sum(1) + 1.0).all()
    assert given.status == (Status.STANDS,) * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inputs_on_the_bounds_and_no_budget(dtype):
    model, x = network("tanh", 0, dtype), images(5, dtype=dtype)
    target = labels(model, x, wrong=4)
    for name in ("fgsm", "pgd", "alg1-3", "random-linf", "random-l2", "random-pixel-3"):
        result = eb.recipe(name, eps=0.0, bounds=BOX)(model, x, target)
        torch.testing.assert_close(result.perturbed, x, rtol=0, atol=0)
        assert result.status == (Status.STANDS,) * 4 + (Status.ALREADY,), name
    # Everything on a face: steps may only lead inwards, and the returned tensor never leaves the range.
    face = (x > 0.5).to(dtype)
    result = eb.recipe("fgsm", eps=0.25, bounds=BOX)(model, face, labels(model, face))
    assert result.perturbed.min() >= 0
    assert result.perturbed.max() <= 1
    inward = result.perturbation * (1 - 2 * face)
    assert ((inward == 0) | (inward == 0.25)).all()


@pytest.mark.parametrize("lo_hi", [(-1.0, 1.0), (0.1, 0.7), "tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds_hold_exactly_in_the_inputs_type(dtype, lo_hi):
    model = network("tanh", 0, dtype)
    if lo_hi == "tensors":
        lo = torch.linspace(-0.3, 0.2, 8, dtype=dtype)
        lo_hi = (lo, lo + torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype) + 0.01)
    low, high = (torch.as_tensor(b, dtype=dtype) for b in lo_hi)
    x = low + images(5, dtype=dtype) * (high - low)
    x = x.clamp(low, high)
    for p in (1.0, 1.5, 2.0, math.inf):
        for name in ("bim", "pgd", "deepfool", "alg1-3"):
            result = eb.recipe(name, p=p, eps=0.5, bounds=lo_hi)(model, x, labels(model, x))
            assert (result.perturbed >= low).all(), (name, p)
            assert (result.perturbed <= high).all(), (name, p)


# ----------------------------------------------------------------------------------------------- models of every kind


def test_one_logit_is_two_classes():
    draw = torch.Generator().manual_seed(3)
    model = nn.Linear(5, 1).double()
    model.weight.data = torch.randn(1, 5, generator=draw, dtype=torch.float64)
    x = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    logit = model(x).detach()[:, 0]
    target = (logit > 0).long()
    for p in ORDERS:
        exact = logit.abs() / np_norm(model.weight.detach().numpy(), dual(p))
        result = eb.recipe("deepfool", p=p)(model, x, target)
        torch.testing.assert_close(result.norm, 1.02 * exact, rtol=1e-9, atol=0)
        assert result.success.all()
        edge = torch.tensor([1.0 + 1e-6, 1.0 - 1e-6] * 3)
        for name in ("fgsm", "alg1", "alg2"):
            assert torch.equal(eb.recipe(name, p=p, eps=exact * edge)(model, x, target).success, edge > 1), name
    raised = eb.recipe("alg1", p=2.0, eps=0.1)(model, x, target)
    after = model(raised.perturbed).detach()[:, 0]
    torch.testing.assert_close(raised.gain, torch.where(target == 1, -after, after))  # the margin is the logit


def test_outputs_in_dicts_tuples_and_objects_through_a_selector():
    problem = affine(13)
    plain = eb.recipe("alg1-3", p=2.0, eps=0.3)(problem.model, problem.x, problem.target)
    model = problem.model
    wraps = {
        "key": (lambda x: {"loss": x.sum(), "logits": model(x)}, "logits"),
        "index": (lambda x: (x, model(x)), 1),
        "last": (lambda x: [x, model(x)], -1),
        "attribute": (lambda x: SimpleNamespace(logits=model(x)), "logits"),
        "function": (lambda x: {"deep": [model(x)]}, lambda out: out["deep"][0]),
    }
    for kind, (wrapped, selector) in wraps.items():
        result = eb.recipe("alg1-3", p=2.0, eps=0.3)(
            eb.TargetModel(wrapped, selector=selector), problem.x, problem.target
        )
        torch.testing.assert_close(result.perturbed, plain.perturbed, rtol=0, atol=1e-12, msg=kind)


def test_callables_and_bound_methods():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.dropout = network("tanh"), nn.Dropout(0.8)

        def forward(self, x):
            raise NotImplementedError

        def classify(self, x):
            return self.body(self.dropout(x))

    model, x = Model().train(), images(3)
    target = labels(model.body, x)
    plain = eb.recipe("alg1-3", eps=0.1)(model.body, x, target)
    for call in (lambda x: model.body(x), model.classify):
        result = eb.recipe("alg1-3", eps=0.1)(call, x, target)
        torch.testing.assert_close(result.perturbed, plain.perturbed, rtol=0, atol=1e-12)
    assert model.training
    assert model.dropout.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_outputs_of_another_type_than_the_inputs():
    """A float32 network behind a cast: every recipe runs, restarts included."""
    inner, x = network("tanh", 0, torch.float32), images(4)
    target = labels(inner, x.float())

    def model(points):
        return inner(points.float())

    for name, options in (("fgsm", {}), ("alg1-3", {}), ("deepfool", {}), ("pgd", {"steps": 3, "restarts": 3})):
        result = eb.recipe(name, eps=0.1, **options)(model, x, target)
        assert result.perturbed.dtype == torch.float64
        assert torch.equal(result.success, model(result.perturbed).argmax(1) != target), name


class Watched(torch.autograd.Function):
    """The identity, with a backward that looks at its gradient, as gradient clipping and logging hooks do."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.0 if float(gradient.abs().sum()) > 1e9 else gradient


def test_backwards_that_cannot_be_vectorised_are_looped():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network("tanh")

        def forward(self, x):
            return Watched.apply(self.inner(x))

    model, x = Model(), images(3)
    for name in ("alg1", "alg1-3", "deepfool"):
        plain = eb.recipe(name, eps=0.05)(model.inner, x)
        torch.testing.assert_close(eb.recipe(name, eps=0.05)(model, x).perturbed, plain.perturbed, rtol=0, atol=1e-10)


def test_any_callable_is_an_objective():
    model, x = network("tanh"), images(4)
    target = labels(model, x)

    def margin(outputs, target):
        rows = torch.arange(len(outputs))
        return outputs[rows, (target + 1) % CLASSES] - outputs[rows, target]

    custom = eb.Attack(eb.LpBall(eps=0.05), objective=margin, schedule=eb.Schedule(steps=3, stop="never"))
    named = eb.Attack(
        eb.LpBall(eps=0.05),
        objective=eb.TargetedMargin((target + 1) % CLASSES),
        schedule=eb.Schedule(steps=3, stop="never"),
    )
    torch.testing.assert_close(custom(model, x, target).perturbed, named(model, x, target).perturbed, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------- bad input

X = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def with_value(value):
    x = X.clone()
    x[1, 0, 0, 0] = value
    return x


BAD_INPUTS = {
    "nan": (with_value(math.nan), r"expected finite inputs, got NaN or infinity in 1 of 3 samples"),
    "inf": (with_value(math.inf), r"expected finite inputs"),
    "outside": (with_value(1.5), r"expected inputs inside bounds \[0, 1\], got values from .* to 1.5; rescale"),
    "in 0..255": (X * 255, r"expected inputs inside bounds \[0, 1\]"),
    "int64": ((X * 255).long(), r"expected x in float32 or float64, got torch.int64; convert"),
    "uint8": ((X * 255).byte(), r"got torch.uint8; .*x.float\(\) / 255"),
    "half": (X.half(), r"expected x in float32 or float64, got torch.float16"),
    "bfloat16": (X.bfloat16(), r"got torch.bfloat16"),
    "complex": (X.to(torch.complex64), r"got torch.complex64"),
    "numpy": (X.numpy(), r"expected x as a torch tensor .* got ndarray; use torch.as_tensor"),
    "no batch": (X[0, 0, 0], r"add the batch dimension"),
    "no entries": (torch.zeros(3, 0), r"at least one entry a sample, got shape \(3, 0\)"),
    "other type": (X.double(), r"expected x in the model's type torch.float32 .*got torch.float64; convert"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
@pytest.mark.parametrize("name", ["fgsm", "deepfool", "random-linf"])
def test_bad_inputs_are_refused_before_any_forward_pass(kind, name):
    x, message = BAD_INPUTS[kind]
    model = network("tanh", 0, torch.float32)
    calls = []
    model.register_forward_hook(lambda module, ins, outs: calls.append(len(outs)))
    with pytest.raises(eb.InputError, match=message):
        eb.recipe(name, eps=0.1, bounds=BOX)(model, x, torch.tensor([0, 1, 2]))
    assert calls == []
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


BAD_SETS = {
    "eps of another length": ({"eps": torch.ones(2)}, r"one for each of the 3 samples, got 2"),
    "eps of a wrong shape": ({"eps": torch.ones(3, 1)}, r"expected eps as a number or a floating tensor \(B,\)"),
    "eps in integers": ({"eps": torch.ones(3, dtype=torch.int64)}, r"expected eps as a number or a floating tensor"),
    "one negative eps": ({"eps": torch.tensor([0.1, -0.1, 0.1])}, r"expected eps >= 0"),
    "negative eps": ({"eps": -1e-9}, r"expected eps >= 0 in the units of x, got -1e-09"),
    "nan eps": ({"eps": math.nan}, r"expected eps >= 0"),
    "p below 1": ({"p": 0.99}, r"expected a norm order p in \[1, inf\], got 0.99"),
    "p nan": ({"p": math.nan}, r"norm order p"),
    "p as text": ({"p": "inf"}, r"norm order p in \[1, inf\], got 'inf'"),
    "bounds reversed": ({"bounds": (1.0, 0.0)}, r"lo < hi, got \(1.0, 0.0\); swap them"),
    "bounds equal": ({"bounds": (0.5, 0.5)}, r"lo < hi"),
    "bounds nan": ({"bounds": (math.nan, 1.0)}, r"lo < hi"),
    "bounds of another shape": ({"bounds": (torch.zeros(7), torch.ones(7))}, r"broadcast to one sample"),
    "weights of another shape": ({"weights": torch.ones(4)}, r"weights of the shape of one sample.* got \(4,\)"),
    "negative weights": ({"weights": -torch.ones(SHAPE)}, r"finite weights >= 0"),
}


@pytest.mark.parametrize("kind", BAD_SETS)
def test_bad_sets_are_refused_before_any_forward_pass(kind):
    options, message = BAD_SETS[kind]
    model = Counting(network("tanh", 0, torch.float32))
    with pytest.raises(eb.InputError, match=message):
        eb.recipe("alg1-3", **{"eps": 0.1, **options})(model, X, torch.tensor([0, 1, 2]))
    assert model.calls == []


BAD_LABELS = {
    "too few": (torch.tensor([0, 1]), r"expected target of shape \(3,\), one class a sample, got \(2,\)"),
    "one hot": (torch.zeros(3, CLASSES, dtype=torch.int64), r"expected target of shape \(3,\)"),
    "float": (
        torch.zeros(3),
        r"expected target as class indices in int64, got torch.float32 of shape \(3,\); .*target.long",
    ),
    "bool": (torch.zeros(3, dtype=torch.bool), r"got torch.bool"),
    "uint8": (torch.zeros(3, dtype=torch.uint8), r"got torch.uint8"),
    "a list": ([0, 1, 2], r"expected target as a tensor of class indices \(B,\), got list"),
    "too large": (torch.tensor([0, 1, CLASSES]), r"expected class indices from 0 to 4, got 0 to 5"),
    "negative": (torch.tensor([0, -1, 2]), r"expected class indices from 0 to 4, got -1 to 2"),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("name", ["fgsm", "targeted", "deepfool"])
def test_bad_labels_are_refused_before_the_batch_goes_through(kind, name):
    target, message = BAD_LABELS[kind]
    model = Counting(network("tanh", 0, torch.float32))
    attack = eb.recipe(name, eps=0.1, **({"label": 1} if name == "targeted" else {}))
    with pytest.raises(eb.InputError, match=message):
        attack(model, X, target)
    assert sum(model.calls) <= 3  # what the classes are takes one sample, alone and beside another


def test_labels_of_any_signed_integer_type_will_do():
    model, x = network("tanh"), images(3)
    target = labels(model, x)
    expected = eb.recipe("fgsm", eps=0.1)(model, x, target).perturbed
    for dtype in (torch.int8, torch.int16, torch.int32):
        torch.testing.assert_close(eb.recipe("fgsm", eps=0.1)(model, x, target.to(dtype)).perturbed, expected)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (7, "expected class indices from 0 to 4, got 7 to 7"),
        (torch.tensor([0, 1]), r"expected target of shape \(3,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "class indices in int64"),
        (torch.tensor([0, 1, 9]), "expected class indices from 0 to 4"),
    ],
    ids=["range", "length", "type", "range of one"],
)
def test_bad_target_labels(label, message):
    model = Counting(network("tanh", 0, torch.float32))
    with pytest.raises(eb.InputError, match=message):
        eb.recipe("targeted", eps=0.1, label=label)(model, X, torch.tensor([0, 1, 2]))
    assert sum(model.calls) <= 3


def flat(x):
    return network("tanh", 0, torch.float32)(x)


BAD_MODELS = {
    "one number a sample": (lambda x: flat(x)[:, 0], r"class scores \(B, K\).* got \(3,\)"),
    "a map of scores": (lambda x: flat(x)[:, :, None], r"class scores \(B, K\).* got \(3, 5, 1\)"),
    "no classes": (lambda x: flat(x)[:, :0], r"K >= 2"),
    "a mean over the batch": (lambda x: flat(x).mean(0), r"one output for each of the 1 samples, got shape \(5,\)"),
    "a scalar": (lambda x: flat(x).sum(), r"one output for each of the 1 samples, got shape \(\)"),
    "a dict": (
        lambda x: {"logits": flat(x)},
        r"got a dict with keys 'logits'; pick one with eb.TargetModel\(.*selector",
    ),
    "a tuple": (lambda x: (flat(x), 1), r"got a tuple of 2; pick one with"),
    "nothing": (lambda x: None, r"got NoneType; pick one with"),
    "classes": (lambda x: torch.stack([flat(x).argmax(1)] * 2, 1), r"floating scores, got torch.int64"),
    "detached": (lambda x: flat(x).detach(), r"differentiable in its input.*remove detach"),
    "numpy inside": (lambda x: torch.from_numpy(flat(x).detach().numpy()), r"differentiable in its input"),
    "no model": (3, r"expected model as a torch.nn.Module or a callable .* got int"),
}


@pytest.mark.parametrize("kind", BAD_MODELS)
@pytest.mark.parametrize("name", ["fgsm", "alg1-3"])
def test_models_that_are_no_differentiable_classifiers_are_refused(kind, name):
    model, message = BAD_MODELS[kind]
    with pytest.raises(eb.InputError, match=message):
        eb.recipe(name, eps=0.1)(model, X, torch.tensor([0, 1, 2]))


def linear(classes, dtype=torch.float32):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), classes, dtype=dtype))


BAD_SURROGATES = {
    "one of them has other classes": [linear(CLASSES), linear(CLASSES - 1)],
    "all have fewer classes": [linear(CLASSES - 2)],
    "of another type": [linear(CLASSES, torch.float64)],
    "the second returns a dict": [linear(CLASSES), lambda x: {"logits": flat(x)}],
    "no scores": [lambda x: flat(x)[:, 0]],
}


@pytest.mark.parametrize("kind", BAD_SURROGATES)
def test_surrogates_that_do_not_fit_are_refused(kind):
    with pytest.raises(eb.InputError):
        eb.recipe("ensemble", eps=0.1, surrogates=BAD_SURROGATES[kind])(flat, X, torch.tensor([0, 1, CLASSES - 1]))


def test_a_random_baseline_needs_no_gradient():
    model = BAD_MODELS["detached"][0]
    assert len(eb.recipe("random-linf", eps=0.1)(model, X, torch.tensor([0, 1, 2]))) == 3


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("scores", r"selector 'scores' does not fit the model's output, a dict with keys 'logits'"),
        (3, r"selector 3 does not fit"),
        (lambda out: out, r"got a dict with keys 'logits'; pick one"),
    ],
    ids=["key", "index", "function"],
)
def test_selectors_that_do_not_fit(selector, message):
    with pytest.raises(eb.InputError, match=message):
        eb.recipe("fgsm", eps=0.1)(eb.TargetModel(lambda x: {"logits": flat(x)}, selector), X)


@pytest.mark.parametrize("arguments", [{"seed": 1.5}, {"seed": None}, {"seed": True}], ids=str)
def test_bad_seeds(arguments):
    with pytest.raises(eb.InputError, match="expected seed as an integer"):
        eb.recipe("fgsm", eps=0.1)(flat, X, torch.tensor([0, 1, 2]), **arguments)


@pytest.mark.parametrize("ids", [torch.arange(2), torch.rand(3), [0, 1, 2]], ids=["length", "float", "list"])
def test_bad_sample_ids(ids):
    with pytest.raises(eb.InputError, match="expected sample_id as an integer tensor"):
        eb.recipe("fgsm", eps=0.1)(flat, X, torch.tensor([0, 1, 2]), sample_id=ids)


def test_regression_targets_of_another_shape_are_refused():
    attack = eb.Attack(eb.LpBall(eps=0.1), objective=eb.SquaredError())
    with pytest.raises(eb.InputError, match=r"expected a target of the output's shape \(3, 5\), got \(3, 4\)"):
        attack(flat, X, torch.zeros(3, 4))
    with pytest.raises(eb.InputError, match=r"expected a target for each of the 3 samples"):
        attack(flat, X, torch.zeros(2, 5))


def test_parts_that_do_not_go_together():
    with pytest.raises(eb.InputError, match="expected constraint as a ConstraintSet, got float"):
        eb.Attack(0.1)
    with pytest.raises(eb.InputError, match="expected formulation as a Formulation"):
        eb.Attack(eb.LpBall(eps=0.1), formulation="min-norm")
    with pytest.raises(eb.InputError, match="expected schedule as a Schedule"):
        eb.Attack(eb.LpBall(eps=0.1), schedule=10)
    with pytest.raises(eb.InputError, match="expected an objective or a callable"):
        eb.Attack(eb.LpBall(eps=0.1), objective="margin")
    with pytest.raises(eb.InputError, match="no budget to project onto"):
        eb.Attack(
            eb.LpBall(),
            formulation=eb.MinNorm(),
            schedule=eb.Schedule(steps=3, update="project", step_size=1.0),
        )
    with pytest.raises(eb.InputError, match="finite eps"):
        eb.Attack(eb.LpBall(p=2.0))(flat, X, torch.tensor([0, 1, 2]))


def regressor(outputs=1, shift=0.0):
    """A network that returns numbers and no scores, (B, 1) by default."""
    layer = nn.Linear(math.prod(SHAPE), outputs)
    nn.init.constant_(layer.bias, shift)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (regressor(), torch.rand(3), r"class indices in int64, got torch.float32 of shape \(3,\)"),
        (regressor(), torch.rand(3, 1), r"class indices in int64, got torch.float32 of shape \(3, 1\)"),
        (regressor(4), torch.rand(3, 4), r"class indices in int64, got torch.float32 of shape \(3, 4\)"),
        (regressor(), torch.tensor([7, 1, 3]), "class 0 or 1 for a model that returns one number .* from 1 to 7"),
        (regressor(), torch.tensor([0, -1, 1]), "class 0 or 1 for a model that returns one number .* from -1 to 1"),
        (nn.Identity(), None, r"class scores \(B, K\), or one logit .* got \(3, 3, 8, 8\)"),
    ],
)
@pytest.mark.parametrize("name", ["pgd", "deepfool", "alg1", "targeted"])
def test_a_regression_model_under_an_attack_on_classes_is_refused_with_what_to_use(name, model, target, message):
    counted = Counting(model)
    with pytest.raises(eb.InputError, match=message) as caught:
        eb.recipe(name, eps=0.1)(counted, X, target)
    assert "'quadratic-lp'" in str(caught.value)
    assert "objective=eb.SquaredError()" in str(caught.value)
    assert sum(counted.calls) <= 6  # the probe alone, of the batch where its outputs had to be seen


def test_what_the_refusal_names_works():
    model = regressor()
    y = torch.rand(3, 1)
    eb.recipe("quadratic-lp", eps=0.1)(model, X, y)
    eb.recipe("linear-lp-10", eps=0.1)(model, X, y)
    eb.Attack(constraint=eb.LpBall(eps=0.1), objective=eb.SquaredError())(model, X, y)


def test_one_number_a_sample_of_one_sign_is_probably_no_logit():
    x = torch.cat([X] * 4)
    with pytest.warns(eb.EpsballWarning, match="one number a sample.*all 12 are above 0, one class.*'quadratic-lp'"):
        eb.recipe("fgsm", eps=0.1)(regressor(shift=50.0), x)
    with pytest.warns(eb.EpsballWarning, match="all 12 are below 0"):
        eb.recipe("fgsm", eps=0.1)(regressor(shift=-50.0), x)


@pytest.mark.filterwarnings("error")
def test_a_logit_gives_no_warning():
    x = torch.cat([X, X + 0.1, X, X])
    centred = regressor(shift=50.0)
    middle = float(scores(centred, x).median()) + 1e-6
    nn.init.constant_(centred[1].bias, 50.0 - middle)
    eb.recipe("fgsm", eps=0.1)(centred, x)  # both classes
    eb.recipe("fgsm", eps=0.1)(regressor(shift=50.0), x[:7])  # too few to tell
    eb.recipe("fgsm", eps=0.1)(regressor(shift=50.0), x, torch.ones(12, dtype=torch.int64))  # labels say what it is
    eb.recipe("quadratic-lp", eps=0.1)(regressor(shift=50.0), x)


@pytest.mark.parametrize("name", ["fgsm", "alg1-3"])
def test_probabilities_where_logits_are_meant_give_a_warning(name):
    model = nn.Sequential(network("tanh"), nn.Softmax(1))
    x = images(3)
    with pytest.warns(eb.EpsballWarning, match=r"(?i)softmax|probabilit"):
        result = eb.recipe(name, eps=0.1)(model, x, labels(model, x))
    assert len(result) == 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["fgsm", "alg1-3"])
def test_logits_give_no_warning(name):
    x = images(3)
    for model in (
        network("tanh"),
        nn.Sequential(network("tanh"), nn.LogSoftmax(1)),  # a shift of the logits: fine
        nn.Sequential(network("tanh"), nn.ReLU()),  # non-negative, but does not sum to 1
    ):
        eb.recipe(name, eps=0.1)(model, x, labels(model, x))
    # A regressor whose outputs are shares is no classifier.
    shares = nn.Sequential(network("tanh"), nn.Softmax(1))
    eb.Attack(eb.LpBall(eps=0.1), objective=eb.SquaredError(), schedule=eb.Schedule(dither=0.5))(shares, x)


def test_the_result_tells_what_happened():
    model, x = network("tanh"), images(4)
    result = eb.recipe("alg1-3", eps=0.02)(model, x, labels(model, x, wrong=0))
    text = repr(result)
    assert text.startswith("AttackResult(4 samples: ")
    assert "1 ALREADY" in text
    assert result.having(Status.ALREADY).tolist() == [True, False, False, False]
    assert "gain" not in text
    for status in Status:
        assert int(result.having(status).sum()) == sum(s is status for s in result.status)


def test_the_result_of_a_regression_says_how_far_the_outputs_moved():
    """With y := f(x) the mean gain is the mean increase of the squared error, from outputs past the library."""
    model, x = network("tanh"), images(4)
    result = eb.recipe("quadratic-lp", p=2.0, eps=0.5)(model, x)
    moved = (scores(model, result.perturbed) - scores(model, x)).square().sum(1)
    assert repr(result).startswith(
        f"AttackResult(4 samples: mean gain {float(moved.mean()):.4g}; 4 SUCCESS; median norm"
    )
    assert not result.classifies
    broken = dataclasses.replace(result, gain=torch.tensor([1.0, math.nan, 2.0, math.inf]))
    assert "mean gain 1.5 (2 not finite); " in repr(broken)
    assert "mean gain nan (4 not finite); " in repr(dataclasses.replace(result, gain=result.gain * math.nan))
    assert "gain" not in repr(eb.recipe("quadratic-lp", eps=0.5)(model, x[:0]))
