"""The power method over every set, which solver is used where, and whole attacks whose answer is known."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import epsball as eb
from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.solvers.power import ascend
from epsball.solvers.quadratic import QuadraticOptions, solve_quadratic
from helpers import ORDERS, generator, np_norm
from test_box import net, np_best_corner


def sets(columns):
    weights = torch.linspace(0.0, 2.0, columns, dtype=torch.float64)
    found = {f"p={p:g}": eb.LpBall(p=p, eps=0.5) for p in ORDERS}
    found |= {f"p={p:g} weighted in a box": eb.LpBall(p=p, eps=0.5, bounds=(0.0, 1.0), weights=weights) for p in ORDERS}
    found["groups"] = eb.Groups([[i, i + 1] for i in range(0, columns, 2)], k=2, eps=0.5, bounds=(0.0, 1.0))
    return found


def drawn(columns=8, rows=5, batch=4, seed=0):
    model, x, jacobians = net(nn.Tanh, columns, rows, seed, batch)
    with torch.no_grad():
        target = model(x) + torch.randn(batch, rows, generator=generator(seed + 9), dtype=x.dtype)
        target[0] = model(x)[0]
    return model, x, target, jacobians


@pytest.mark.parametrize("name", sets(8))
def test_the_power_method_rises_and_ends_where_no_linear_step_gains(name):
    model, x, target, _ = drawn()
    allowed = sets(8)[name]
    local = GaussNewton(model, x, target, eb.Quadratic(), batched=True)
    start = allowed.lmo(torch.randn(x.shape, generator=generator(1), dtype=x.dtype), x)
    before = local.value(start)
    for steps in (0, 1, 2, 4, 200):
        delta, value = ascend(local, allowed, x, start, steps=steps, tolerance=0.0)
        torch.testing.assert_close(value, local.value(delta), rtol=1e-10, atol=1e-12)
        assert (value >= before * (1.0 - 1e-12)).all()
        assert allowed.contains(delta, x).all()
        before = value
    gradient = local.vjp(local.residual + local.jvp(delta))
    reach, own = allowed.support(gradient, x), (gradient * delta).sum(1)
    torch.testing.assert_close(own, reach, rtol=1e-4, atol=1e-9)
    # Only the samples asked for, which alone are counted, move.
    local.spent()
    some = torch.tensor([True, False, True, False])
    moved, _ = ascend(local, allowed, x, start, active=some)
    torch.testing.assert_close(moved[~some], start[~some], rtol=0, atol=0)
    _, backwards, jvps = local.spent()
    assert (backwards[~some] == 0).all()
    assert (jvps[~some] == 0).all()
    assert (jvps[some] == backwards[some] + 1).all()


@pytest.mark.parametrize("name", sets(8))
def test_every_set_has_a_solver_inside_it_and_above_random_points(name):
    model, x, target, _ = drawn()
    allowed = sets(8)[name]

    def step(rows):
        local = GaussNewton(model, x[rows], target[rows], eb.Quadratic(), batched=False)
        return eb.NormConstrained().solve(local, allowed, x[rows], Generators.of(0, torch.tensor(rows))), local

    found, local = step([0, 1, 2, 3])
    assert found.feasible.all()
    for delta in (found.delta, found.mirror):
        assert allowed.contains(delta, x).all()
    value = local.value(found.delta)
    for seed in range(50):
        draw = torch.randn(x.shape, generator=generator(seed), dtype=x.dtype)
        chance = local.value(allowed.lmo(draw, x))
        assert (value >= chance * 0.95).all()
        assert (value >= chance * (1.0 - 1e-6))[found.exact].all()
    for i in range(1, 4):
        torch.testing.assert_close(step([i])[0].delta[0], found.delta[i], rtol=0, atol=1e-9)


class Hull(eb.ConstraintSet):
    """The convex hull of some points, known by its linear maximisation oracle alone."""

    eps, bounds = 1.0, None

    def __init__(self, vertices):
        self.vertices = vertices

    def lmo(self, g, x):
        return self.vertices[(g @ self.vertices.T).argmax(1)]

    def size(self, eta):
        return eta.abs().amax(1)

    project = smallest = sample = step = None


def test_a_set_known_by_its_oracle_alone():
    model, x, target, jacobians = drawn(columns=6)
    vertices = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 6)))
    allowed = Hull(vertices)
    local = GaussNewton(model, x, target, eb.Quadratic(), batched=False)
    found = eb.NormConstrained().solve(local, allowed, x, Generators.of(0, torch.arange(4)))
    assert found.mirror is None
    assert not found.exact.any()
    for i in range(4):
        residual = (model(x[i]) - target[i]).detach().numpy()
        values = ((residual + vertices.numpy() @ jacobians[i].T) ** 2).sum(1)
        value = np.sum((residual + jacobians[i] @ found.delta[i].numpy()) ** 2)
        assert np.abs(values - value).min() < 1e-9  # it is a vertex
        assert value >= 0.9 * values.max()


# ----------------------------------------------------------------------------------------------- answers in closed form


def linear(rows, columns, seed=0):
    layer = nn.Linear(columns, rows).double()
    draw = generator(seed)
    layer.weight.data = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    layer.weight.data *= torch.logspace(-0.5, 0.5, columns, dtype=torch.float64)
    layer.bias.data = torch.randn(rows, generator=draw, dtype=torch.float64)
    return layer, torch.rand(5, columns, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("name", ["quadratic-lp", "quadratic-lp-4"])
def test_the_worst_l2_perturbation_of_a_linear_regressor_is_its_top_singular_vector(name):
    layer, x = linear(6, 9)
    result = eb.recipe(name, p=2, eps=0.7)(layer, x)
    _, singular, right = np.linalg.svd(layer.weight.detach().numpy())
    overlap = np.abs(result.perturbation.numpy() @ right[0])
    np.testing.assert_allclose(overlap, 0.7, rtol=1e-9)
    np.testing.assert_allclose(result.gain.numpy(), (0.7 * singular[0]) ** 2, rtol=1e-9)
    assert result.exact.all()
    assert (result.kkt <= 1e-7).all()
    assert result.kkt.dtype == torch.float64


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("p", ORDERS)
def test_a_scalar_regressor_is_closed_form(p, given):
    """One output: the worst error is |r| + ε‖w‖_q for every p."""
    layer, x = linear(1, 7, seed=3)
    target = layer(x).detach() + torch.tensor([[1.0], [-2.0], [0.1], [0.0], [5.0]]) if given else None
    residual = (layer(x).detach() - target).abs()[:, 0] if given else torch.zeros(5, dtype=x.dtype)
    slope = layer.weight.detach().numpy()[0]
    q = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1.0)
    best = (residual.numpy() + 0.3 * np_norm(slope, q)) ** 2
    for name in ("quadratic-lp", "quadratic-lp-3", "linear-lp-3"):
        result = eb.recipe(name, p=p, eps=0.3)(layer, x, target)
        # A residual smaller than the dither's may show the linear model the wrong way.
        rows = np.array([i for i in range(5) if name[0] == "q" or residual[i] != residual[2] or not given])
        np.testing.assert_allclose(result.gain.numpy()[rows], best[rows], rtol=1e-6, err_msg=name)
        assert (result.norm <= 0.3 * (1.0 + 1e-9)).all()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", sets(6))
def test_one_output_is_solved_exactly_over_every_set(name, given):
    """The worst of both signs of the slope, each by CVXPY: of two groups of all 3 pairs of groups."""
    constraint = sets(6)[name]
    layer, x = linear(1, 6, seed=4)
    target = layer(x).detach() + (torch.tensor([[1.0], [-2.0], [0.1], [0.3], [5.0]]) if given else 0.0)
    residual = (layer(x).detach() - target)[:, 0].numpy()
    attack = eb.Attack(constraint, objective=eb.SquaredError(), local_model=eb.Quadratic())
    result = attack(layer, x, target)
    slope = layer.weight.detach().numpy()[0]
    p = getattr(constraint, "p", math.inf)
    weights = np.ones(6) if getattr(constraint, "weights", None) is None else constraint.weights.numpy()
    for i in range(len(x)):
        best = 0.0
        for frozen in [[]] if isinstance(constraint, eb.LpBall) else [[0, 1], [2, 3], [4, 5]]:
            delta = cp.Variable(6)
            limits = [] if constraint.bounds is None else [x[i].numpy() + delta >= 0, x[i].numpy() + delta <= 1]
            limits += [delta[j] == 0 for j in range(6) if j in frozen or weights[j] == 0]
            scale = np.where(weights > 0, 1 / np.maximum(weights, 1e-9), 0.0)
            limits.append(cp.norm(cp.multiply(scale, delta), math.inf if p == math.inf else p) <= constraint.eps)
            for sign in (1.0, -1.0):
                reach = cp.Problem(cp.Maximize(sign * slope @ delta), limits).solve(solver=cp.CLARABEL)
                best = max(best, (sign * residual[i] + reach) ** 2)
        assert float(result.gain[i]) == pytest.approx(best, rel=1e-5)
    assert result.exact.all()
    assert (result.jvps <= 2).all()


@pytest.mark.parametrize("name", sets(6))
def test_of_the_two_answers_for_one_output_the_solver_gives_the_better_first(name):
    """The attack tries both on the network, which would hide a solver that errs."""
    layer, x = linear(1, 6, seed=4)
    target = layer(x).detach() + torch.tensor([[1.0], [-2.0], [0.1], [-0.3], [5.0]])
    model = eb.Quadratic().expand(layer, eb.SquaredError(), x, target)
    constraint = sets(6)[name].at(x, torch.zeros_like(x))
    step = solve_quadratic(model, constraint, x, Generators.of(0, torch.arange(5)), QuadraticOptions())
    better, other = (model.value(delta) for delta in (step.delta, step.mirror))
    assert (better > other).all()


def test_one_output_over_a_set_that_may_answer_nearly_is_not_called_exact():
    layer, x = linear(1, 6, seed=4)
    oracle = nn.Linear(6, 2).double()
    constraint = eb.Oracle(oracle, base=eb.Groups([[i] for i in range(6)], k=2, eps=0.5))
    result = eb.Attack(constraint, objective=eb.SquaredError(), local_model=eb.Quadratic())(layer, x)
    assert result.success.all()
    assert not result.exact.any()


def test_of_two_steps_that_the_model_holds_for_equal_the_true_model_chooses():
    """f(x) = (x + 1)² at 0, y = f(0): J = 2 both ways, and +ε gains more than -ε."""

    def curved(x):
        return (x + 1.0) ** 2

    for sign in (1.0, -1.0):
        result = eb.recipe("quadratic-lp", p=2, eps=0.5)(lambda x, s=sign: curved(s * x), torch.zeros(3, 1).double())
        assert result.perturbation.flatten().tolist() == [0.5 * sign] * 3
        assert result.gain.tolist() == pytest.approx([1.25**2] * 3)
        assert result.forwards.tolist() == [1 + 1 + 2 + 1] * 3  # clean, linearised, both ways, verified


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_p_inf_attack_on_a_linear_regressor(bounds):
    layer, x = linear(4, 10, seed=5)
    result = eb.recipe("quadratic-lp", p=math.inf, eps=0.2, bounds=bounds)(layer, x)
    weight = layer.weight.detach().numpy()
    for i in range(5):
        low, high = np.full(10, -0.2), np.full(10, 0.2)
        if bounds:
            low, high = np.maximum(low, -x[i].numpy()), np.minimum(high, 1.0 - x[i].numpy())
        best = np_best_corner(weight, np.zeros(4), low, high)
        assert result.gain[i] == pytest.approx(best, rel=1e-9)
    assert result.exact.all()


# ------------------------------------------------------------------------------------------------------------ bad input


class Leaky(nn.Module):
    """A forward that leaves on what eval mode should have turned off."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.first(x)
        if self.how == "dropout":
            x = functional.dropout(x, 0.5, training=True)
        elif self.how == "batch norm":
            x = functional.batch_norm(x, torch.zeros(12), torch.ones(12), training=True)
        elif self.how == "centred":
            x = x - x.mean(0)
        elif self.how == "noise":
            x = x + 0.1 * torch.randn_like(x)
        elif self.how == "alone":
            x = functional.dropout(x, 0.5, training=self.training)
        outputs = self.last(x)
        return outputs @ outputs.T if self.how == "shape" else outputs


LEAKS = {
    "dropout": "changes from call to call.*training=self.training",
    "noise": "changes from call to call.*draw no random numbers",
    "batch norm": "normalises with the statistics of the batch.*training=self.training",
    "centred": "changes with the samples beside it",
    "shape": r"same O for every batch, got \(1, 1\) for one sample and \([24], [24]\)",
}


@pytest.mark.parametrize("recipe", ["quadratic-lp", "linear-lp-2", "fgsm", "random-l2"])
@pytest.mark.parametrize("how", LEAKS)
def test_models_that_do_not_treat_each_sample_alone_are_refused(how, recipe):
    torch.manual_seed(0)
    model, x = Leaky(how).train(), torch.rand(4, 6)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    target = torch.tensor([0, 1, 2, 0]) if recipe == "fgsm" else None
    with pytest.raises(eb.InputError, match=LEAKS[how]):
        eb.recipe(recipe, eps=0.1)(model, x, target)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    if how not in ("batch norm", "shape") or recipe != "fgsm":
        with pytest.raises(eb.InputError):  # one sample is checked beside another one
            eb.recipe(recipe, eps=0.1)(model, x[:1], target[:1] if target is not None else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_that_do_are_not(dtype):
    model = Leaky("alone").train().to(dtype)
    for batch in (1, 2, 5):
        x = torch.rand(batch, 6, generator=generator(batch), dtype=dtype)
        assert len(eb.recipe("quadratic-lp", eps=0.1)(model, x)) == batch
    wide = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 3, 3)).to(dtype)
    assert len(eb.recipe("linear-lp-2", eps=0.1)(wide, torch.rand(3, 3, 16, 16, dtype=dtype))) == 3
    noisy = torch.full((3, 6), 0.5, dtype=dtype)
    assert len(eb.recipe("linear-lp-2", eps=0.1)(lambda x: x - x, noisy)) == 3  # outputs of zero


def test_what_a_quadratic_attack_refuses():
    layer, x = linear(3, 6)
    attack = eb.recipe("quadratic-lp", p=2, eps=0.1)
    for cut in (lambda z: layer(z).detach(), lambda z: layer(z).argmax(1).double()):
        with pytest.raises(eb.InputError, match="differentiable in its input"):
            attack(cut, x)
    for target in (torch.zeros(5, 4), torch.zeros(5), torch.zeros(5, 3, 1)):
        with pytest.raises(eb.InputError, match=r"expected a target of the output's shape \(5, 3\), got"):
            attack(layer, x, target.double())
    with pytest.raises(eb.InputError, match="a target for each of the 5 samples"):
        attack(layer, x, torch.zeros(4, 3, dtype=x.dtype))
    with pytest.raises(eb.InputError, match="expected k <= 3, the number of groups, got k=4"):
        eb.recipe("quadratic-pixel", eps=0.1, k=4, groups=[[0, 1], [2, 3], [4, 5]])(layer, x)
    with pytest.raises(eb.InputError, match=r"exactly once.*entry 1"):
        eb.recipe("quadratic-pixel", eps=0.1, groups=[[0, 1], [1, 2]])
    ball = eb.LpBall(p=2, eps=0.1)
    with pytest.raises(eb.InputError, match=r"expected eb.SquaredError\(\) as the objective of a quadratic"):
        eb.Attack(ball, objective=eb.Margin(), local_model=eb.Quadratic())
    with pytest.raises(eb.InputError, match=r"expected eb.NormConstrained\(\).*got MinNorm"):
        eb.Attack(ball, objective=eb.SquaredError(), local_model=eb.Quadratic(), formulation=eb.MinNorm())
    lo, hi = torch.zeros(6), torch.ones(6)
    hi[2] = math.inf
    for p in (1.0, 2.0, 3.0, math.inf):
        with pytest.raises(eb.InputError, match="expected a finite eps"):
            eb.recipe("quadratic-lp", p=p, eps=math.inf, bounds=(lo, hi))(layer, x)
        done = eb.recipe("quadratic-lp", p=p, eps=math.inf, bounds=(0.0, 1.0))(layer, x)
        assert done.exact.all()  # a box of six entries, whatever p is
        assert done.perturbed.min() >= 0
        assert done.perturbed.max() <= 1


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_a_sample_that_the_bounds_alone_limit_does_not_depend_on_its_neighbours(p):
    """One eps reaches beyond the box, the other does not: each is solved as it is alone."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(14, 10), torch.nn.Tanh(), torch.nn.Linear(10, 6)).double()
    x = 2.0 * torch.rand(4, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1.0
    eps = torch.tensor([100.0, 0.3, 100.0, 0.5], dtype=torch.float64)

    def run(rows):
        attack = eb.recipe("quadratic-lp", p=p, eps=eps[rows], bounds=(-1.0, 1.0))
        return attack(model, x[rows], model(x[rows]).detach() + 0.2, sample_id=torch.tensor(rows))

    whole = run([0, 1, 2, 3])
    for i in range(4):
        alone = run([i])
        torch.testing.assert_close(alone.perturbation[0], whole.perturbation[i], rtol=0, atol=1e-8)
        assert bool(alone.exact[0]) == bool(whole.exact[i])
        assert (int(alone.jvps[0]), int(alone.backwards[0])) == (int(whole.jvps[i]), int(whole.backwards[i]))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_samples_without_a_residual_do_not_depend_on_those_with_one(p):
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    x = torch.rand(4, 60, generator=generator, dtype=torch.float64)

    class Layer(nn.Module):
        """Rounds a sample's output alike in every batch, which a matrix product does not: r = 0 is meant exactly."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x[:, None, :] * matrix).sum(2)

    layer = Layer()
    y = layer(x)
    y[1] += 0.1 * torch.rand(30, generator=generator, dtype=torch.float64)
    y[3] -= 0.2
    attack = eb.recipe("quadratic-lp", p=p, eps=0.5, memory=0.0)
    together = attack(layer, x, y)
    for i in range(4):
        alone = attack(layer, x[i : i + 1], y[i : i + 1], sample_id=torch.tensor([i]))
        torch.testing.assert_close(alone.perturbation[0], together.perturbation[i], rtol=0, atol=1e-12)
        for name in ("forwards", "backwards", "jvps", "exact"):
            assert getattr(alone, name)[0] == getattr(together, name)[i], name


def test_a_nearly_dead_jacobian_is_solved_or_said_not_to_be():
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(40, 50, generator=generator, dtype=torch.float64)
    layer = nn.Linear(50, 40, bias=False)
    with torch.no_grad():
        layer.weight.copy_(1e-11 * matrix)
    x = torch.rand(2, 50, generator=generator)
    result = eb.recipe("quadratic-lp", p=2, eps=1.0, memory=0.0)(layer, x)
    moved = (matrix @ result.perturbation.double().T).norm(dim=0)
    best = torch.linalg.svdvals(matrix)[0] * result.perturbation.double().norm(dim=1)
    assert (result.kkt > 0).all()  # squares of such numbers are zero in float32
    assert ((moved > 0.999 * best) | ~result.exact).all()
    assert (moved > 0.999 * best).all()
