"""Fooling ratios, distances and signal-to-noise ratios against direct computation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import epsball as eb
from epsball import data, networks
from epsball.errors import Status
from epsball.metrics import FoolingCurve, first_order_distance, fooling_curve, psnr, robustness, sweep
from epsball.metrics.distance import Robustness
from helpers import ORDERS, Counting, affine, dual, generator, images, labels, network, np_norm, scores

GRID = [0.0, 0.01, 0.03, 0.1, 0.3]


def subject(count=12, wrong=(2, 7)):
    model, x = network("tanh"), images(count, seed=5)
    target = labels(model, x)
    for i in (i for i in wrong if i < count):
        target[i] = (target[i] + 1) % 5
    return model, x, target


# --------------------------------------------------------------------------------------------------- fooling ratios


@pytest.mark.parametrize("name", ["fgsm", "alg1-3", "pgd", "random-linf"])
@pytest.mark.parametrize("batch_size", [5, 100])
def test_fooling_curve_is_the_share_of_the_correct_ones(name, batch_size):
    model, x, target = subject()
    attack = eb.recipe(name, eps=1.0, bounds=(0.0, 1.0), **({"steps": 4} if name == "pgd" else {}))
    finished = []
    curve = fooling_curve(attack, model, x, target, GRID, seed=3, batch_size=batch_size, progress=finished.append)
    assert curve.eps == tuple(GRID)
    assert sum(finished) == 12
    correct = scores(model, x).argmax(1) == target
    assert torch.equal(curve.correct, correct)
    assert curve.count == int(correct.sum()) == 10
    for row, eps in enumerate(GRID):
        result = attack.with_eps(eps)(model, x, target, seed=3)
        fooled = scores(model, result.perturbed).argmax(1) != target
        assert torch.equal(curve.fooled[row], fooled)
        assert float(curve.ratio[row]) == int((fooled & correct).sum()) / 10
        torch.testing.assert_close(curve.norm[row], result.norm, rtol=1e-9, atol=1e-12)
        if attack.objective != eb.Margin("all"):
            assert torch.equal(curve.forwards[row], result.forwards)
            assert torch.equal(curve.backwards[row], result.backwards)
        interval = binomtest(int((fooled & correct).sum()), 10).proportion_ci(0.95, "wilson")
        assert float(curve.interval[0][row]) == pytest.approx(interval.low, abs=1e-12)
        assert float(curve.interval[1][row]) == pytest.approx(interval.high, abs=1e-12)
    assert curve.ratio[0] == 0.0  # nothing is fooled without a budget, the misclassified do not count
    if name != "random-linf":
        assert curve.ratio[-1] > 0.5


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_minimal_norm_curve_counts_norms_up_to_eps(p):
    model, x, target = subject()
    attack = eb.recipe("deepfool", p=p)
    counting = Counting(model.eval())
    free = attack(model, x, target)
    norms = np.array([np_norm(eta, p) for eta in free.perturbation.numpy()])
    grid = [0.0, *np.quantile(norms[norms > 0], [0.2, 0.5, 0.8]).tolist(), 10.0 * norms.max()]
    curve = fooling_curve(attack, counting, x, target, grid)
    correct = (scores(model, x).argmax(1) == target).numpy()
    wins = (scores(model, free.perturbed).argmax(1) != target).numpy()
    for row, eps in enumerate(grid):
        fooled = wins & (norms <= eps * (1 + 1e-9))
        np.testing.assert_array_equal(curve.fooled[row].numpy(), fooled)
        assert float(curve.ratio[row]) == (fooled & correct).sum() / correct.sum()
    assert len(set(curve.ratio.tolist())) == len(grid)
    assert curve.ratio[-1] == 1.0
    # One run serves the whole grid: the predictions and the passes of a single attack.
    single = Counting(model)
    attack(single, x, target)
    assert counting.forwards == 12 + single.forwards
    assert counting.backwards == single.backwards
    assert all(torch.equal(row, free.forwards) for row in curve.forwards)
    # A limit the attack was given does not matter to the grid.
    limited = fooling_curve(attack.with_eps(1e-6), model, x, target, grid)
    assert torch.equal(limited.fooled, curve.fooled)


@pytest.mark.parametrize("name", ["alg1-5", "fgsm", "pgd", "random-linf"])
def test_nested_curves_keep_what_a_smaller_eps_fooled(name):
    sample = data.load("digits", limit=60)
    model = networks.load("digits-cnn")
    attack = eb.recipe(name, p=math.inf, eps=1.0, bounds=(0, 1))
    grid = [0.02, 0.05, 0.1, 0.2, 0.3]
    plain = fooling_curve(attack, model, sample.x, sample.target, grid, seed=3)
    nested = fooling_curve(attack, model, sample.x, sample.target, grid, seed=3, nested=True, batch_size=17)
    assert torch.equal(nested.fooled, plain.fooled.cummax(0).values)
    first = plain.fooled.double().argmax(0)
    for sample_index in plain.fooled.any(0).nonzero()[:, 0].tolist():
        at = int(first[sample_index])
        # The perturbation stays that of the least ε, to the last digit, and costs nothing again.
        assert (nested.norm[at:, sample_index] == plain.norm[at, sample_index]).all()
        assert (nested.forwards[at + 1 :, sample_index] == 0).all()
        assert (nested.backwards[at + 1 :, sample_index] == 0).all()
        assert torch.equal(nested.forwards[: at + 1, sample_index], plain.forwards[: at + 1, sample_index])
    left = ~plain.fooled.any(0)
    assert torch.equal(nested.norm[:, left], plain.norm[:, left])
    assert torch.equal(nested.backwards[:, left], plain.backwards[:, left])


def test_nested_budgets_must_increase():
    sample = data.load("digits", limit=4)
    model = networks.load("digits-cnn")
    attack = eb.recipe("alg1", p=math.inf, eps=1.0)
    with pytest.raises(eb.InputError, match="increasing numbers as eps"):
        attack.over(model, sample.x, sample.target, eps=[0.2, 0.1], nested=True)
    with pytest.raises(eb.InputError, match="norm-constrained attack"):
        eb.recipe("deepfool").over(model, sample.x, sample.target, eps=[0.1, 0.2], nested=True)


@pytest.mark.parametrize("name", ["alg1-3", "deepfool"])
def test_sweep_gives_each_eps_with_its_result(name):
    model, x, target = subject(6)
    attack = eb.recipe(name, eps=0.5, p=2.0)
    entries = sweep(attack, model, x, target, GRID, seed=1)
    assert [e for e, _, _ in entries] == GRID
    for eps, result, success in entries:
        sizes = np.array([np_norm(eta, 2.0) for eta in result.perturbation.numpy()])
        fooled = (scores(model, result.perturbed).argmax(1) != target).numpy()
        np.testing.assert_array_equal(success.numpy(), fooled & (sizes <= eps * (1 + 1e-9)))
    assert (entries[0][1] is entries[-1][1]) == (name == "deepfool")


def test_samples_are_numbered_over_all_batches():
    model, x, target = subject()
    attack = eb.recipe("random-l2", eps=0.5)
    small, large = (fooling_curve(attack, model, x, target, [0.5, 8.0], seed=2, batch_size=size) for size in (1, 100))
    torch.testing.assert_close(small.norm, large.norm)
    assert torch.equal(small.fooled, large.fooled)
    same = x[:1].repeat(30, 1, 1, 1)
    curve = fooling_curve(attack, model, same, target[:1].repeat(30), [4.0], batch_size=1)
    assert 0 < float(curve.ratio[0]) < 1  # different draws, though every batch is one sample
    ids = torch.zeros(30, dtype=torch.int64)
    fixed = fooling_curve(attack, model, same, target[:1].repeat(30), [4.0], batch_size=7, sample_id=ids)
    assert float(fixed.ratio[0]) in (0.0, 1.0)


def test_a_curve_without_a_correct_sample_knows_nothing():
    flags = torch.ones(1, 3, dtype=torch.bool)
    curve = FoolingCurve((0.1,), flags, ~flags[0], flags.double(), flags.long(), flags.long())
    assert math.isnan(float(curve.ratio[0]))
    assert [float(end[0]) for end in curve.interval] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": []}, "expected eps as increasing finite budgets"),
        ({"eps": [0.2, 0.1]}, "increasing"),
        ({"eps": [0.1, 0.1]}, "increasing"),
        ({"eps": [-0.1, 0.1]}, ">= 0"),
        ({"eps": [0.1, math.inf]}, "finite"),
        ({"eps": [math.nan]}, "finite"),
        ({"batch_size": 0}, "expected batch_size as an integer >= 1"),
        ({"target": torch.zeros(5, dtype=torch.int64)}, r"expected target of shape \(12,\)"),
        ({"x": images(12) * math.nan}, "expected finite inputs"),
        ({"x": images(0), "target": torch.zeros(0, dtype=torch.int64)}, "at least one sample"),
    ],
    ids=str,
)
def test_what_has_no_fooling_ratio_is_refused(change, message):
    model, x, target = subject()
    arguments = {"x": x, "target": target, "eps": GRID, **change}
    with pytest.raises(eb.InputError, match=message):
        fooling_curve(eb.recipe("fgsm", eps=0.1), model, **arguments)


# --------------------------------------------------------------------------------------------------------- distances


@pytest.mark.parametrize("weights", [None, np.array([1.0, 0.3, 2.0, 0.7, 5.0, 1.5, 0.1])], ids=["plain", "weighted"])
@pytest.mark.parametrize("p", ORDERS)
def test_first_order_distance_is_exact_on_affine_models(p, weights):
    problem = affine(40, batch=6, classes=5)
    given = None if weights is None else torch.from_numpy(weights)
    found = first_order_distance(problem.model, problem.x, problem.target, p=p, weights=given)
    np.testing.assert_allclose(found.numpy(), problem.distance(p, weights), rtol=1e-10)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("net", ["tanh", "lenet"])
def test_first_order_distance_is_theorem_1_on_networks(net, p):
    model, x = network(net).eval(), images(4)
    target = labels(model, x, wrong=2)
    found = first_order_distance(model, x, target, p=p)
    for i in range(4):
        point = x[i : i + 1].clone().requires_grad_()
        outputs = model(point)[0]
        k = int(target[i])
        ratios = []
        for c in range(len(outputs)):
            if c != k:
                margin = outputs[k] - outputs[c]
                (slope,) = torch.autograd.grad(margin, point, retain_graph=True)
                ratios.append(max(0.0, margin.item()) / np_norm(slope.numpy(), dual(p)))
        assert float(found[i]) == pytest.approx(min(ratios), rel=1e-9, abs=1e-15)
    assert found[2] == 0.0


def test_first_order_distance_at_its_ends():
    flat = nn.Linear(3, 2).double()
    flat.weight.data.zero_()
    flat.bias.data = torch.tensor([1.0, 0.0], dtype=torch.float64)
    x = torch.rand(2, 3, dtype=torch.float64)
    found = first_order_distance(flat, x, torch.tensor([0, 1]))
    assert found.tolist() == [math.inf, 0.0]
    assert first_order_distance(flat, x[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)
    with pytest.raises(eb.InputError, match="class indices from 0 to 1"):
        first_order_distance(flat, x, torch.tensor([0, 2]))
    with pytest.raises(eb.InputError, match="norm order"):
        first_order_distance(flat, x, torch.tensor([0, 1]), p=0.5)


@pytest.mark.parametrize("p", ORDERS)
def test_robustness_of_an_affine_model_in_closed_form(p):
    """ρ̂₂ is the mean distance, ρ̂₁ 1.02 of it over the norm, ε₉₉ the largest; misclassified inputs do not count."""
    problem = affine(41, batch=10)
    target = problem.target.clone()
    target[[1, 4]] = (target[[1, 4]] + 1) % 4
    right = np.array([i not in (1, 4) for i in range(10)])
    exact = problem.distance(p)
    lengths = np.array([np_norm(x, p) for x in problem.x.numpy()])
    report = robustness(problem.model, problem.x, target, p=p, batch_size=3)
    np.testing.assert_array_equal(report.correct.numpy(), right)
    np.testing.assert_allclose(report.distance.numpy(), np.where(right, 1.02 * exact, 0.0), rtol=1e-9)
    np.testing.assert_allclose(report.r2.numpy(), np.where(right, exact, 0.0), rtol=1e-9)
    np.testing.assert_allclose(report.relative.numpy(), np.where(right, 1.02 * exact / lengths, 0.0), rtol=1e-9)
    assert report.rho2 == pytest.approx(exact[right].mean(), rel=1e-9)
    assert report.rho1 == pytest.approx((1.02 * exact / lengths)[right].mean(), rel=1e-9)
    assert report.eps99 == pytest.approx(1.02 * exact[right].max(), rel=1e-9)
    value, error = report.mean(report.r2)
    assert value == report.rho2
    assert error == pytest.approx(exact[right].std(ddof=1) / math.sqrt(8), rel=1e-9)
    assert "8 of 10 classified correctly" in repr(report)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_robustness_is_deepfools_and_theorem_1s(bounds):
    model, x, target = subject()
    finished = []
    report = robustness(model, x, target, p=2.0, bounds=bounds, batch_size=5, progress=finished.append)
    assert sum(finished) == 12
    result = eb.recipe("deepfool", p=2.0, bounds=bounds)(model, x, target)
    right = scores(model, x).argmax(1) == target
    expected = torch.where(right, torch.where(result.success, result.norm, math.inf), 0.0)
    torch.testing.assert_close(report.distance, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(report.r2, first_order_distance(model, x, target, p=2.0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(report.relative, expected / x.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-12)
    assert (report.distance[right] >= report.r2[right] * 0.2).all()
    assert (report.distance[~right] == 0).all()


def made(distance, correct, level=0.99):
    distance = torch.as_tensor(distance, dtype=torch.float64)
    nothing = torch.zeros(len(distance), dtype=torch.int64)
    return Robustness(2.0, level, distance, distance, distance, torch.as_tensor(correct), nothing, nothing)


@pytest.mark.parametrize("level", [0.29, 0.5, 0.57, 0.9, 0.99])
@pytest.mark.parametrize("count", [1, 2, 10, 50, 99, 100, 101, 200, 400])
def test_eps99_is_the_least_distance_at_which_more_than_the_level_is_fooled(count, level):
    draw = generator(count)
    distance = torch.rand(count + 7, generator=draw, dtype=torch.float64).round(decimals=2)  # ties included
    correct = torch.ones(count + 7, dtype=torch.bool)
    correct[torch.randperm(count + 7, generator=draw)[:7]] = False
    counted = sorted(distance[correct].tolist())
    # Brute force over the only places where the ratio changes, with the level as the fraction that is meant.
    percent = round(100 * level)
    expected = next(e for e in counted if 100 * sum(d <= e for d in counted) > percent * len(counted))
    assert made(distance, correct, level).eps99 == expected


def test_eps99_and_means_where_deepfool_found_nothing():
    distance, correct = [1.0, 2.0, math.inf, 3.0, 0.0], [True, True, True, True, False]
    report = made(distance, correct)
    assert report.eps99 == math.inf
    assert report.rho1 == pytest.approx(2.0)  # over those found: the misclassified zero and the infinity are left out
    assert made(distance, correct, level=0.7).eps99 == 3.0
    empty = made([0.0], [False])
    assert empty.eps99 == math.inf
    assert math.isnan(empty.rho1)
    assert all(math.isnan(end) for end in empty.eps99_interval)
    low, high = made(torch.arange(1000.0), torch.ones(1000, dtype=torch.bool)).eps99_interval
    assert low < made(torch.arange(1000.0), torch.ones(1000, dtype=torch.bool)).eps99 < high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": 0.5}, "norm order"),
        ({"level": 1.0}, "expected level between 0 and 1"),
        ({"level": 0.0}, "expected level between 0 and 1"),
        ({"steps": 0}, "expected steps"),
        ({"batch_size": 0}, "expected batch_size"),
        ({"bounds": (1.0, 0.0)}, "lo < hi"),
        ({"target": torch.zeros(12)}, "class indices in int64"),
        ({"target": torch.full((12,), 5)}, "class indices from 0 to 4"),
        ({"x": images(0), "target": torch.zeros(0, dtype=torch.int64)}, "at least one sample"),
    ],
    ids=str,
)
def test_what_has_no_robustness_is_refused(change, message):
    model, x, target = subject()
    with pytest.raises(eb.InputError, match=message):
        robustness(model, **{"x": x, "target": target, **change})


def test_measuring_leaves_the_model_as_it_was():
    model, x, target = subject(4, wrong=())
    model[1].eval()
    model[1].weight.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    robustness(model, x, target)
    fooling_curve(eb.recipe("fgsm", eps=0.1), model, x, target, [0.1])
    first_order_distance(model, x, target)
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    assert all(p.grad is None for p in model.parameters())


# --------------------------------------------------------------------------------------------------------------- PSNR


@pytest.mark.parametrize("peak", [1.0, 255.0, 2.0])
def test_psnr_is_its_definition_for_each_sample(peak):
    reference = torch.rand(5, 3, 4, 4, generator=generator(1), dtype=torch.float64) * peak
    changed = reference + torch.randn(reference.shape, generator=generator(2), dtype=torch.float64) * 0.1 * peak
    changed[3] = reference[3]
    found = psnr(reference, changed, peak=peak)
    for i in range(5):
        error = ((reference[i].numpy() - changed[i].numpy()) ** 2).mean()
        assert float(found[i]) == (math.inf if i == 3 else pytest.approx(10 * math.log10(peak**2 / error), rel=1e-12))
    # One entry of a hundred changed by a tenth of the peak: an error of 1e-4 peak², 40 dB.
    one = torch.zeros(1, 100)
    other = one.clone()
    other[0, 3] = 0.1 * peak
    assert float(psnr(one, other, peak=peak)) == pytest.approx(40.0, abs=1e-4)
    assert psnr(one[:0], other[:0]).shape == (0,)


def test_psnr_refuses_what_cannot_be_compared():
    with pytest.raises(eb.InputError, match=r"two batches of one shape, got \(2, 3\) and \(2, 4\)"):
        psnr(torch.zeros(2, 3), torch.zeros(2, 4))
    for peak in (0.0, -1.0, math.nan):
        with pytest.raises(eb.InputError, match="expected peak > 0"):
            psnr(torch.zeros(2, 3), torch.ones(2, 3), peak=peak)


def test_statuses_are_messages():
    assert all(isinstance(status.value, str) and len(status.value) > 20 for status in Status)
    assert {status for status in Status if status.ok} == {Status.SUCCESS, Status.ALREADY}
