"""The regression recipes and the group recipes of both tasks: what they never leave, what does not matter to them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.errors import Status
from helpers import CLASSES, SHAPE, affine, generator, images, labels, network, np_norm, scores

REGRESSION = [row for row in eb.recipes() if row.task != "classification"]
BALLS = [row for row in REGRESSION if row.family == "ball"]


def in_orders(rows, *orders):
    """Each row in each order, once where the recipe fixes it."""
    return [(row, p) for row in rows for p in orders if p == (math.inf if row.family == "groups" else row.order or p)]


def name_of(row):
    return row.name.replace("-T", "-3") if isinstance(row, eb.Recipe) else None


def autoencoder(seed=0, dtype=torch.float64):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )
    draw = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("row", "p"), in_orders(BALLS, 1.0, 1.5, 2.0, math.inf), ids=name_of)
def test_balls_are_never_left_and_the_error_is_that_of_the_returned_tensor(row, p, known, dtype):
    model, x = autoencoder(dtype=dtype), images(4, seed=1, dtype=dtype)[:, :, :4, :4]
    target = x if known else None
    for bounds in (None, (0.0, 1.0)):
        result = eb.recipe(name_of(row), p=p, eps=0.4, bounds=bounds)(model, x, target)
        eta = result.perturbed.double().numpy() - x.double().numpy()
        rounding = 1e-9 if dtype == torch.float64 else 2e-5
        assert max(np_norm(e, p) for e in eta) <= 0.4 * (1.0 + rounding) + rounding
        if bounds:
            assert result.perturbed.min() >= 0.0
            assert result.perturbed.max() <= 1.0
        error = (model(result.perturbed) - (x if known else model(x))).flatten(1).square().sum(1)
        torch.testing.assert_close(result.gain, error.detach(), rtol=1e-4, atol=1e-7)
        assert (result.gain > 0).all()
        assert all(status is Status.SUCCESS for status in result.status)


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_every_attack_is_above_its_random_baseline(p):
    model, x = autoencoder(), images(6, seed=2)
    eps = 2.0 if p == 2.0 else 0.1
    baseline = eb.recipe("random-l2" if p == 2.0 else "random-linf", eps=eps)(model, x).gain
    for name in ("linear-lp-5", "quadratic-lp", "quadratic-lp-5"):
        assert (eb.recipe(name, p=p, eps=eps)(model, x).gain > 1.5 * baseline).all(), name
    pixel = eb.recipe("random-pixel-1", eps=0.5)(model, x).gain
    for name in ("linear-pixel-1", "quadratic-pixel"):
        assert (eb.recipe(name, eps=0.5)(model, x).gain > pixel).all(), name
    assert eb.recipe("random-l2", eps=eps)(model, x).status[0] is Status.SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("row", "p"), in_orders(REGRESSION, 1.0, 2.0, math.inf), ids=name_of)
def test_a_sample_is_the_same_alone_in_any_batch_and_again(row, p, known):
    model, x, ids = autoencoder(), images(5, seed=3)[:, :, :4, :4], torch.tensor([7, 3, 900, 0, 41])
    target = torch.rand(x.shape, generator=generator(4), dtype=x.dtype) if known else None
    attack = eb.recipe(name_of(row), eps=0.3, bounds=(0.0, 1.0), **({} if row.family == "groups" else {"p": p}))
    whole = attack(model, x, target, seed=5, sample_id=ids)
    for rows in ([0], [1], [4, 2], [3, 0, 1, 2, 4]):
        part = attack(model, x[rows], None if target is None else target[rows], seed=5, sample_id=ids[rows])
        torch.testing.assert_close(part.perturbed, whole.perturbed[rows], rtol=0, atol=1e-7)
        for field in ("exact", "success", "forwards"):
            assert torch.equal(getattr(part, field), getattr(whole, field)[rows]), field
    again = attack(model, x, target, seed=5, sample_id=ids)
    torch.testing.assert_close(again.perturbed, whole.perturbed, rtol=0, atol=0)
    together = attack.over(model, x, target, eps=[0.1, 0.3], seed=5, sample_id=ids)[1]
    torch.testing.assert_close(together.perturbed, whole.perturbed, rtol=0, atol=1e-9)
    for field in ("forwards", "backwards", "jvps"):
        assert torch.equal(getattr(together, field), getattr(whole, field)), field


# --------------------------------------------------------------------------------------------------------------- groups


def pixels_changed(eta):
    return (eta != 0).any(1).flatten(1)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("task", ["classifier", "regressor"])
def test_a_new_pixel_each_step(task, k):
    model, x = (network("tanh") if task == "classifier" else autoencoder()), images(6, seed=5)
    target = labels(model, x) if task == "classifier" else None
    for steps in (1, 2, 4):
        attack = eb.recipe(f"linear-pixel-{steps}", eps=0.4, k=k, bounds=(0.0, 1.0), stop="never")
        eta = attack(model, x, target).perturbation
        assert (pixels_changed(eta).sum(1) == k * steps).all()
        assert eta.abs().max() <= 0.4 + 1e-12
    # A step more keeps the pixels of the steps before, where nothing is random: a classifier's are not dithered.
    if task == "classifier":
        seen = torch.zeros(6, 64, dtype=torch.bool)
        for steps in (1, 2, 3):
            now = pixels_changed(
                eb.recipe(f"linear-pixel-{steps}", eps=0.4, k=k, stop="never")(model, x, target).perturbation
            )
            assert (now | ~seen).all()
            seen = now


def test_one_pixel_is_exact_on_an_affine_classifier():
    problem = affine(4, batch=6, entries=6, classes=4)
    groups = [[0, 3], [1, 4], [2, 5]]
    result = eb.recipe("linear-pixel-1", eps=0.3, groups=groups)(problem.model, problem.x, problem.target)
    for i in range(6):
        gaps, slopes = problem.margins(i)
        best = max(
            0.3 * np.abs(slope[group]).sum() - gap for gap, slope in zip(gaps, slopes, strict=True) for group in groups
        )
        assert result.gain[i] == pytest.approx(best, rel=1e-9)


def test_pixels_of_a_linear_regressor_one_by_one():
    """linear-pixel on an affine map with a given target: the step is the group with the largest |Jᵀr| sum."""
    draw = generator(0)
    layer = nn.Linear(6, 4).double()
    layer.weight.data = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    x = torch.rand(5, 6, generator=draw, dtype=torch.float64)
    target = layer(x).detach() + torch.randn(5, 4, generator=draw, dtype=torch.float64)
    groups = [[0, 3], [1, 4], [2, 5]]
    result = eb.recipe("linear-pixel-1", eps=0.3, groups=groups, dither=0.0)(layer, x, target)
    weight = layer.weight.detach().numpy()
    for i in range(5):
        slope = 2.0 * weight.T @ (layer(x[i]) - target[i]).detach().numpy()
        best = max(groups, key=lambda group: np.abs(slope[group]).sum())
        expected = np.zeros(6)
        expected[best] = 0.3 * np.sign(slope[best])
        np.testing.assert_allclose(result.perturbation[i].numpy(), expected, atol=1e-12)


# ------------------------------------------------------------------------------------- the objective by the target


def test_the_targets_kind_chooses_the_objective():
    model, x = network("tanh"), images(5)
    chosen = labels(model, x, wrong=0)
    for name in ("linear-pixel-2", "random-l2", "random-pixel-2"):
        attack = eb.recipe(name, eps=0.3)
        found = attack(model, x, chosen)
        raw = scores(model, found.perturbed)
        margin = raw.clone()
        margin[torch.arange(5), chosen] = -math.inf
        torch.testing.assert_close(found.gain, margin.amax(1) - raw[torch.arange(5), chosen])
        assert torch.equal(found.success, raw.argmax(1) != chosen)
        reference = torch.rand(5, CLASSES, generator=generator(1), dtype=x.dtype)
        for target, known in ((None, scores(model, x)), (reference, reference)):
            found = attack(model, x, target)
            torch.testing.assert_close(found.gain, (scores(model, found.perturbed) - known).square().sum(1))
        assert attack(model, x[:, :], chosen.int()).gain.shape == (5,)


def test_by_target_says_what_it_needs():
    assert not eb.ByTarget().needs_clean
    targeted = eb.ByTarget(classification=eb.TargetedMargin("runner-up"))
    assert targeted.needs_clean
    model, x = network("tanh"), images(4)
    chosen = labels(model, x)
    ball = eb.LpBall(p=2, eps=0.5)
    found = eb.Attack(ball, objective=targeted)(model, x, chosen)
    plain = eb.Attack(ball, objective=eb.TargetedMargin("runner-up"))(model, x, chosen)
    torch.testing.assert_close(found.perturbed, plain.perturbed, rtol=0, atol=0)


def test_dither_is_for_objectives_whose_gradient_may_vanish():
    schedule = eb.Schedule(steps=4, dither=None)
    assert schedule.dithers() == schedule.dithers(False) == (0.25,) * 4
    assert schedule.dithers(classifies=True) == (0.0,) * 4
    model, x = autoencoder(), images(3)
    stuck = eb.recipe("linear-lp-2", eps=0.1, p=2, dither=0.0)(model, x)
    assert stuck.status == (Status.ZERO_GRADIENT,) * 3
    assert (stuck.gain == 0).all()
    moved = eb.recipe("linear-lp-2", eps=0.1, p=2)(model, x)
    assert (moved.gain > 0).all()
    # The quadratic model needs none: its gradient may be zero, its curvature is not.
    assert (eb.recipe("quadratic-lp", eps=0.1, p=2)(model, x).gain >= moved.gain * (1.0 - 1e-3)).all()
    assert (eb.recipe("quadratic-lp-2", eps=0.1, p=2, dither=0.5)(model, x).gain > 0).all()


def test_options_of_the_quadratic_recipes():
    attack = eb.recipe("quadratic-lp", eps=0.1, memory=0.0, products="double-backward")
    assert attack.local_model == eb.Quadratic("double-backward", 0.0)
    assert eb.recipe("quadratic-lp", eps=0.1).local_model == eb.Quadratic()
    with pytest.raises(eb.InputError, match="unexpected option 'memory' for 'linear-lp-2'"):
        eb.recipe("linear-lp-2", eps=0.1, memory=1.0)
    with pytest.raises(eb.InputError, match=r"at most eps in each entry \(p = inf\), got p=2"):
        eb.recipe("quadratic-pixel", eps=0.1, p=2)
    model, x = autoencoder(), images(2)
    for options in ({"memory": 0.0}, {"products": "double-backward"}, {"products": "forward-mode"}):
        for name in ("quadratic-lp", "quadratic-pixel"):
            free = eb.recipe(name, eps=0.1, **options)(model, x)
            usual = eb.recipe(name, eps=0.1)(model, x)
            assert (free.gain >= 0.9 * usual.gain).all(), (name, options)
            assert math.prod(SHAPE) == free.perturbation[0].numel()


@pytest.mark.parametrize("name", ["linear-lp-3", "quadratic-lp", "quadratic-lp-2", "random-l2"])
@pytest.mark.parametrize("known", [False, True])
def test_a_model_that_returns_one_number_a_sample(name, known):
    """Outputs (B,) are as good as (B, 1), with the same answer."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = body(x).detach() + 0.3
    attack = eb.recipe(name, eps=0.2, **({} if name == "random-l2" else {"p": 2.0}))
    column = attack(body, x, y if known else None)
    flat = attack(lambda x: body(x).squeeze(-1), x, y.squeeze(-1) if known else None)
    assert flat.outputs.shape == (5,)
    torch.testing.assert_close(flat.perturbation, column.perturbation)
    torch.testing.assert_close(flat.gain, column.gain)
    bound = eb.upper_bound(lambda x: body(x).squeeze(-1), x, 0.2, y.squeeze(-1) if known else None)
    torch.testing.assert_close(bound.value, eb.upper_bound(body, x, 0.2, y if known else None).value)
