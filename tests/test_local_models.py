"""The linear model against finite differences and autograd, and Theorem 1 on it."""

import math

import numpy as np
import pytest
import torch

import epsball as eb
from epsball.target_model import TargetModel, stacked
from helpers import CLASSES, ORDERS, Counting, affine, generator, images, labels, network, surrogates

OBJECTIVES = {
    "all": eb.Margin(),
    "two best": eb.Margin(2),
    "runner-up": eb.Margin("runner-up"),
    "targeted": eb.TargetedMargin(1),
    "true score": eb.TrueScore(),
    "cross-entropy": eb.CrossEntropy(),
    "custom": eb.Custom(lambda outputs, target: outputs.sin().sum(1) + target),
}


@pytest.mark.parametrize("gradients", ["loop", "batched", "auto"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("net", ["tanh", "lenet"])
def test_values_and_gradients_against_finite_differences(net, name, gradients):
    model, x = network(net).eval(), images(3)
    objective, target = OBJECTIVES[name], labels(model, x)
    expansion = eb.Linear(gradients=gradients).expand(model, objective, x, target)

    def pieces(points):
        with torch.no_grad():
            return objective.pieces(model(points), target)

    torch.testing.assert_close(expansion.value, pieces(x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(expansion.outputs, model(x), rtol=1e-12, atol=1e-12)
    count = pieces(x).shape[1]
    assert expansion.gradient.shape == (3, count, *x.shape[1:])
    for field in (expansion.value, expansion.gradient, expansion.outputs):
        assert not field.requires_grad
    draw, h = generator(5), 1e-6
    for _ in range(4):
        direction = torch.randn(x.shape, generator=draw, dtype=x.dtype)
        slope = (pieces(x + h * direction) - pieces(x - h * direction)) / (2 * h)
        predicted = (expansion.gradient * direction[:, None]).flatten(2).sum(2)
        np.testing.assert_allclose(predicted.numpy(), slope.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("net", ["tanh", "relu", "lenet"])
def test_one_class_after_another_or_all_at_once_is_the_same(net, dtype):
    model, x = network(net, 0, dtype).eval(), images(5, dtype=dtype)
    target = labels(model, x)
    loop, batched = (eb.Linear(gradients=kind).expand(model, eb.Margin(), x, target) for kind in ("loop", "batched"))
    tight = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(loop.gradient, batched.gradient, **tight)
    torch.testing.assert_close(loop.value, batched.value, **tight)
    counts = [torch.as_tensor(e.backwards).expand(5).tolist() for e in (loop, batched)]
    assert counts == [[CLASSES - 1] * 5] * 2
    for name in ("alg1-3", "deepfool"):
        plain = eb.recipe(name, p=2.0, eps=0.3)
        results = [
            eb.Attack(plain.constraint, plain.objective, eb.Linear(gradients=g), plain.formulation, plain.schedule)(
                model, x, target
            )
            for g in ("loop", "batched")
        ]
        torch.testing.assert_close(
            results[0].perturbed, results[1].perturbed, rtol=0, atol=1e-4 if tight["rtol"] > 1e-5 else 1e-9
        )


def test_gradients_go_to_the_input_alone():
    model, x = network("tanh"), images(3)
    counting = Counting(model)
    eb.Linear(gradients="loop").expand(counting, eb.Margin(), x, labels(model, x))
    assert counting.backwards == 3 * (CLASSES - 1)
    assert all(p.grad is None for p in model.parameters())
    assert not x.requires_grad


def test_a_gradient_that_does_not_reach_the_input_is_zero():
    """Outputs that ignore x but come from parameters that train: no direction, not an error."""
    weight = torch.ones(1, CLASSES, requires_grad=True)
    expansion = eb.Linear().expand(
        lambda x: weight.expand(len(x), -1) * 2.0, eb.CrossEntropy(), torch.rand(2, 3), torch.tensor([0, 1])
    )
    assert expansion.gradient.shape == (2, 1, 3)
    assert not expansion.gradient.any()


def test_an_ensembles_gradient_is_the_mean_of_its_models():
    x = images(4)
    models = surrogates("tanh", x.dtype)
    target = labels(models[0], x)
    together = eb.Linear().expand(stacked([TargetModel(m) for m in models]), eb.Ensemble(models), x, target)
    each = [eb.Linear().expand(m, eb.CrossEntropy(), x, target) for m in models]
    torch.testing.assert_close(together.gradient, sum(e.gradient for e in each) / len(models), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(together.value, sum(e.value for e in each) / len(models), rtol=1e-12, atol=0)


def test_around_moves_the_origin_of_the_same_affine_functions():
    problem = affine(20)
    offset = torch.randn(problem.x.shape, generator=generator(1), dtype=torch.float64)
    here = eb.Linear().expand(problem.model, eb.Margin(), problem.x, problem.target)
    there = eb.Linear().expand(problem.model, eb.Margin(), problem.x + offset, problem.target).around(offset)
    torch.testing.assert_close(there.value, here.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(there.gradient, here.gradient, rtol=1e-12, atol=1e-12)


def test_affine_pieces_are_the_models_own_rows():
    problem = affine(21)
    expansion = eb.Linear().expand(problem.model, eb.Margin(), problem.x, problem.target)
    for sample in range(len(problem.x)):
        gaps, rows = problem.margins(sample)
        np.testing.assert_allclose(expansion.value[sample].numpy(), -gaps, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(expansion.gradient[sample].numpy(), rows, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("net", ["tanh", "relu", "lenet"])
def test_theorem_1_the_linearised_problem_is_infeasible_iff_eps_is_below_r2(net, p):
    """No η with ‖η‖_p ≤ ε brings a linearised margin to zero for ε < r₂, and one does for ε > r₂."""
    model, x = network(net).eval(), images(5)
    target = labels(model, x)
    r2 = eb.first_order_distance(model, x, target, p=p)
    assert (r2 > 0).all()
    expansion = eb.Linear().expand(model, eb.Margin(), x, target)
    for factor, feasible in ((1 - 1e-6, False), (1 + 1e-6, True), (0.5, False), (2.0, True)):
        ball = eb.LpBall(p=p, eps=r2 * factor)
        delta = eb.NormConstrained().solve(expansion, ball, x).delta
        reached = expansion.value + (expansion.gradient * delta[:, None]).flatten(2).sum(2)
        assert torch.equal(reached.amax(1) >= 0, torch.full((5,), feasible)), (factor, p)
        # Nothing in the ball does better: not its other vertices, not random points of it.
        if not feasible:
            points = torch.stack([ball.sample(x, generator(n)) for n in range(20)])
            tried = expansion.value + (expansion.gradient * points[:, :, None]).flatten(3).sum(3)
            assert (tried.amax((0, 2)) < 0).all()
    smallest = eb.MinNorm(overshoot=0.0).solve(expansion, eb.LpBall(p=p), x)
    torch.testing.assert_close(eb.LpBall(p=p).size(smallest.delta), r2, rtol=1e-9, atol=0)


def test_growth_saves_passes_and_changes_nothing_where_gradients_do_not_grow():
    """On an affine model no gradient changes, so differentiating only the classes that can win is exact."""
    problem = affine(22, batch=6, classes=8)
    for name in ("alg1-6", "deepfool"):
        plain = eb.recipe(name, p=2.0, eps=0.6 * float(problem.distance(2.0).max()), stop="success")
        few, all_classes = (
            eb.Attack(plain.constraint, plain.objective, linear, plain.formulation, plain.schedule)(
                problem.model, problem.x, problem.target
            )
            for linear in (eb.Linear(growth=1.5), eb.Linear(growth=math.inf))
        )
        torch.testing.assert_close(few.perturbed, all_classes.perturbed, rtol=0, atol=1e-10)
        assert few.status == all_classes.status
        assert (few.backwards <= all_classes.backwards).all()
        assert few.backwards.sum() < all_classes.backwards.sum()


@pytest.mark.parametrize("arguments", [{"gradients": "fast"}, {"growth": 0.5}, {"growth": math.nan}], ids=str)
def test_linear_models_without_meaning_are_refused(arguments):
    with pytest.raises(eb.InputError, match=f"expected {next(iter(arguments))}"):
        eb.Linear(**arguments)
