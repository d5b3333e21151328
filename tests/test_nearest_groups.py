"""The fewest groups: exact on affine models against every subset, and certified from the returned tensor."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball import networks
from epsball.data import load
from epsball.randomness import Generators
from epsball.sets import GroupCount

CLASSES, SAMPLES, SHAPE = 4, 8, (3, 2, 4)
IDS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 0, 0, 7, 7, 7, 8, 2, 4]).view(SHAPE)
W = torch.linspace(0.2, 2.0, 24, dtype=torch.float64).view(SHAPE).masked_fill(IDS == 3, 0.0)
# Every kind of partition, with each entry's group written out again where the library makes it itself.
KINDS = {
    "pixels": ("pixels", torch.arange(8).view(1, 2, 4).expand(SHAPE)),
    "channels": (eb.channels(), torch.arange(3).view(3, 1, 1).expand(SHAPE)),
    "patches": ("patches:2", torch.tensor([[0, 0, 1, 1]] * 2).expand(SHAPE)),
    "numbers": (IDS, IDS),
    "lists": ([np.flatnonzero(IDS.flatten() == s).tolist() for s in range(9)], IDS),
}


def affine(seed: int, shift: float = 2.5) -> tuple[nn.Module, Tensor, Tensor]:
    """Return an affine classifier, and inputs of which three in five entries lie on a face of the box [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(SHAPE), CLASSES).double()
    x = torch.rand(SAMPLES, *SHAPE, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.6, (x < 0.5).double(), x)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
        layer.bias.copy_(0.3 * torch.randn(CLASSES, generator=generator, dtype=torch.float64))
        # One class is ahead of the others, so that a boundary takes several groups.
        layer.bias[0] += shift * layer(x.flatten(1)).abs().mean()
    model = nn.Sequential(nn.Flatten(), layer)
    return model, x, model(x).argmax(1)


def fewest(model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, limit: Tensor, classes: int = CLASSES) -> Tensor:
    """Try every subset of groups, each entry at the better end of its range, for every class; (B,), inf if none."""
    weight, bias = (parameter.detach().numpy() for parameter in model[1].parameters())
    flat, number, reach = ids.flatten().numpy(), int(ids.max()) + 1, limit.flatten().numpy()
    subsets = np.array(list(itertools.product((0.0, 1.0), repeat=number)))
    found = np.full(len(x), np.inf)
    for i, sample in enumerate(x.flatten(1).numpy()):
        for label in set(range(classes)) - {int(y[i])}:
            g = weight[label] - weight[int(y[i])]
            end = np.clip(sample + np.sign(g) * reach, 0.0, 1.0) - sample
            each = np.array([(g * end)[flat == s].sum() for s in range(number)])
            enough = g @ sample + bias[label] - bias[int(y[i])] + subsets @ each > 0
            found[i] = min(found[i], subsets.sum(1)[enough].min(initial=np.inf))
    return torch.from_numpy(found)


@pytest.mark.parametrize("limited", ["free", "eps", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exact_on_affine_models_inside_the_box(kind, limited):
    groups, ids = KINDS[kind]
    options = {"free": {}, "eps": {"eps": 0.6}, "weights": {"eps": 0.6, "weights": W}}[limited]
    limit = {"free": torch.full(SHAPE, math.inf), "eps": torch.full(SHAPE, 0.6), "weights": 0.6 * W}[limited]
    numbers = set()
    for seed in range(2):
        model, x, y = affine(seed)
        result = eb.recipe("nearest", groups=groups, bounds=(0.0, 1.0), passes=40, **options)(model, x, y)
        optimum = fewest(model, x, y, ids, limit.double())
        assert torch.equal(result.success, optimum.isfinite())
        assert torch.equal(result.norm[result.success], optimum[result.success])
        assert float((result.perturbation.abs() - limit).amax()) <= 1e-12
        numbers |= set(optimum.tolist())
    if limited != "free":
        assert len(numbers - {math.inf}) >= {"pixels": 3, "patches": 1}.get(kind, 2)  # the task is not trivial


def test_the_fewest_groups_of_a_linear_gain_are_those_of_every_subset():
    model, x, _ = affine(3)
    g = model[1].weight.detach()[torch.arange(SAMPLES) % CLASSES].view(-1, *SHAPE)
    for weights, used in ((None, None), (W, None), (W, torch.arange(9).expand(SAMPLES, 9) % 4 == 1)):
        within = eb.Groups(IDS, k=None, eps=0.7, bounds=(0.0, 1.0), weights=weights, used=used)
        full = within.support(g, x)
        free = list(range(9)) if used is None else [s for s in range(9) if s % 4 != 1]
        for share in (-0.1, 0.0, 0.2, 0.5, 0.9, 1.0 - 1e-9, 1.2):
            eta = within.fewest(g, share * full, x)
            assert bool(within.contains(eta, x).all())
            reach = 0.7 * (torch.ones(SHAPE, dtype=x.dtype) if weights is None else weights)
            for i in range(SAMPLES):
                end = (x[i] + g[i].sign() * reach).clamp(0.0, 1.0) - x[i]
                each = np.array([float((g[i] * end)[s == IDS].sum()) for s in free])
                reached = [
                    k
                    for k in range(len(free) + 1)
                    if any(
                        each[list(c)].sum() >= share * float(full[i])
                        for c in itertools.combinations(range(len(free)), k)
                    )
                ]
                gained = float((g[i] * eta[i]).sum())
                if reached:
                    assert int(within.count(eta)[i]) == reached[0]
                    assert gained >= share * float(full[i]) - 1e-12
                else:
                    assert gained == pytest.approx(each.sum(), rel=1e-12)


def test_the_set_of_a_count_is_that_of_so_many_groups():
    _, x, _ = affine(1)
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    count = GroupCount(eb.Groups(IDS, k=None, eps=0.4, bounds=(0.0, 1.0)), eps=torch.arange(1.0, 9.0, dtype=x.dtype))
    for i in range(SAMPLES):
        one, row = eb.Groups(IDS, k=i + 1, eps=0.4, bounds=(0.0, 1.0)), slice(i, i + 1)
        part = count.take(torch.tensor([i]))
        torch.testing.assert_close(part.lmo(g[row], x[row]), one.lmo(g[row], x[row]), rtol=0, atol=0)
        torch.testing.assert_close(part.project(g[row], x[row]), one.project(g[row], x[row]), rtol=0, atol=0)
        torch.testing.assert_close(count.lmo(g, x)[row], one.lmo(g[row], x[row]), rtol=0, atol=0)
    eta = count.lmo(g, x)
    assert bool(count.contains(eta, x).all())
    assert not bool(count.scaled(0.5).contains(eta, x)[1:].any())
    assert not bool(count.contains(1.01 * eta, x).all())
    sizes = count.size(eta)
    for number in (1, 2):
        less = count.without(eta, g, number)
        assert torch.equal(count.size(less), (sizes - number).clamp_min(0))
        kept = (less != 0).flatten(1)
        assert torch.equal(less.flatten(1)[kept], eta.flatten(1)[kept])
        for i in range(SAMPLES):
            each = np.array([float((g[i] * eta[i])[s == IDS].sum()) for s in range(9)])
            changed = np.array([bool((eta[i][s == IDS] != 0).any()) for s in range(9)])
            lost = float((g[i] * (eta[i] - less[i])).sum())
            assert lost == pytest.approx(np.sort(each[changed])[:number].sum(), rel=1e-12)


def digits(count: int, name: str = "digits-cnn") -> tuple[nn.Module, Tensor, Tensor]:
    data = load("digits", split="test").head(count)
    assert data.target is not None
    return networks.load(name), data.x, data.target


def touched(x: Tensor, perturbed: Tensor) -> Tensor:
    """Count the pixels (any channel) that differ, (B,)."""
    return (perturbed != x).any(1).flatten(1).sum(1)


@pytest.mark.parametrize("eps", [None, 0.5])
def test_success_and_number_are_those_of_the_returned_tensor(eps):
    model, x, y = digits(24)
    y[3] = (y[3] + 1) % 10
    result = eb.recipe("nearest", groups="pixels", eps=eps, bounds=(0.0, 1.0), passes=60)(model, x, y)
    with torch.no_grad():
        wrong = model(result.perturbed).argmax(1) != y
    assert torch.equal(result.success, wrong)
    assert torch.equal(result.norm.long(), touched(x, result.perturbed))
    assert result.perturbed.min() >= 0.0
    assert result.perturbed.max() <= 1.0
    assert eps is None or (result.perturbed - x).abs().max() <= eps + 1e-6
    assert result.status[3] is eb.Status.ALREADY
    assert float(result.norm[3]) == 0.0
    assert bool(result.success.all()) or eps is not None
    assert result.success.float().mean() > 0.9


def test_no_more_groups_than_the_group_recipe_at_growing_k_needs():
    model, x, y = digits(40)
    ours = eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0), passes=100)(model, x, y)
    first = torch.full((len(x),), math.inf)
    for k in range(1, 13):
        result = eb.recipe(f"linear-pixel-{k}", eps=1.0, bounds=(0.0, 1.0))(model, x, y)
        first = torch.where(result.success & first.isinf(), float(k), first)
    assert bool(ours.success.all())
    assert bool((ours.norm <= first).all())
    assert float(ours.norm.mean()) < 0.95 * float(first[first.isfinite()].mean())


def test_more_passes_and_coarser_groups_change_no_more_groups():
    model, x, y = digits(40)
    numbers = {
        passes: eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0), passes=passes)(model, x, y).norm
        for passes in (5, 20, 100)
    }
    assert numbers[100].mean() <= numbers[20].mean() <= numbers[5].mean()
    patches = eb.recipe("nearest", groups="patches:2", bounds=(0.0, 1.0), passes=60)(model, x, y)
    assert bool(patches.success.all())
    assert patches.norm.mean() < numbers[100].mean()


@pytest.mark.parametrize("passes", [1, 5, 20, 37, 40, 100])
def test_the_budget_of_passes_is_kept(passes):
    model, x, y = digits(12)
    result = eb.recipe("nearest", groups="pixels", eps=0.05, bounds=(0.0, 1.0), passes=passes)(model, x, y)
    attack = eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0), passes=passes)
    # The fewest passes are one step, the polish of what it found, and the verdict.
    most = max(2 * passes + (2 if attack.schedule.restarts == 1 else 0), 9)
    assert int((result.forwards + result.backwards).max()) <= most
    stands = ~result.success  # so small an eps that most samples stand and spend everything
    assert int(stands.sum()) > 6
    assert passes < 10 or float(result.backwards[stands].double().mean()) >= 0.85 * passes


def test_a_result_does_not_depend_on_the_batch_around_it():
    model, x, y = digits(9)
    model, x = model.double(), x.double()
    attack = eb.recipe("nearest", groups="pixels", bounds=(0.0, 1.0), passes=60)
    whole = attack(model, x, y, sample_id=torch.arange(9))
    for rows in ([4], [8, 0, 3], [1, 2, 5, 6, 7]):
        part = attack(model, x[rows], y[rows], sample_id=torch.tensor(rows))
        torch.testing.assert_close(part.perturbed, whole.perturbed[rows], rtol=0, atol=1e-12)
        assert torch.equal(part.norm, whole.norm[rows])
        assert torch.equal(part.forwards, whole.forwards[rows])
        assert torch.equal(part.backwards, whole.backwards[rows])


@pytest.mark.parametrize("limit", [{}, {"eps": 0.9}, {"eps": 0.9, "weights": W}])
def test_attempts_beyond_the_classes_begin_at_random_points_and_stay_exact(limit):
    """Of two classes one is left to rank, and the attempts after it must differ in where they begin."""
    model, x, _ = affine(1)
    layer = nn.Linear(math.prod(SHAPE), 2).double()
    with torch.no_grad():
        layer.weight.copy_(model[1].weight[:2])
        layer.bias.copy_(model[1].bias[:2])
    model = nn.Sequential(nn.Flatten(), layer)
    y = model(x).argmax(1)
    attack = eb.recipe("nearest", groups=IDS, bounds=(0.0, 1.0), passes=100, **limit)
    assert attack.schedule.restarts > 2
    result = attack(model, x, y)
    eps, weights = limit.get("eps", math.inf), limit.get("weights", torch.ones(SHAPE).double())
    optimum = fewest(model, x, y, IDS, eps * weights, classes=2)
    assert torch.equal(result.success, optimum.isfinite())
    assert torch.equal(result.norm[result.success], optimum[result.success])
    for i, row in enumerate(
        GroupCount(eb.Groups(IDS, k=None, bounds=(0.0, 1.0)), eps=3.0).sample(
            x, Generators.of(0, torch.arange(SAMPLES))
        )
    ):
        assert 1 <= len(IDS[row != 0].unique()) <= 3
        assert 0.0 <= float((x[i] + row).amin()) <= float((x[i] + row).amax()) <= 1.0


def test_a_sample_that_one_group_fools_is_left_at_once():
    model, x, y = affine(0, shift=0.1)
    result = eb.recipe("nearest", groups=eb.channels(), bounds=(0.0, 1.0), passes=200)(model, x, y)
    one = result.norm == 1
    assert int(one.sum()) >= 4
    assert int((result.forwards + result.backwards)[one].max()) <= 20


@pytest.mark.parametrize("eps", [0.2, 0.6])
def test_a_lattice_is_kept(eps):
    model, x, y = digits(20)
    x = (x * 16).round() / 16
    attack = eb.recipe("nearest", groups="pixels", eps=eps, bounds=(0.0, 1.0), lattice=16, passes=40)
    result = attack(model, x, y)
    torch.testing.assert_close(result.perturbed * 16, (result.perturbed * 16).round(), rtol=0, atol=1e-5)
    assert (result.perturbed - x).abs().max() <= eps + 1e-6
    assert torch.equal(result.norm.long(), touched(x, result.perturbed))
    with torch.no_grad():
        assert torch.equal(result.success, model(result.perturbed).argmax(1) != y)


def test_an_average_is_that_of_the_linearisations():
    """Two steps by hand: the second is the best corner of the weighted sum of both gradients."""
    model, x, y = digits(6)
    model, x = model.double(), x.double()
    ball = eb.LpBall(eps=0.05, bounds=(0.0, 1.0))
    schedule = eb.Schedule(steps=2, step_size=(1.0, 0.3), update="project", average=True, stop="never")
    result = eb.Attack(ball, eb.TrueScore(), schedule=schedule)(model, x, y)

    def gradient(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_()
        (found,) = torch.autograd.grad(-model(point).gather(1, y[:, None]).sum(), point)
        return found

    first = gradient(x)
    corner = (x + 0.05 * first.sign()).clamp(0.0, 1.0)
    mean = 0.7 * first + 0.3 * gradient(corner)
    torch.testing.assert_close(result.perturbed, (x + 0.05 * mean.sign()).clamp(0.0, 1.0), rtol=0, atol=1e-12)


SEARCH = {"update": "project", "step_size": "falling", "average": True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.recipe("nearest", groups="pixels", p=2.0), "changes groups by at most eps in each entry"),
        (lambda: eb.recipe("nearest", groups="pixels", k=3), "'nearest' finds the fewest groups, got k=3"),
        (lambda: eb.recipe("nearest", groups="pixel"), "expected groups as 'pixels', 'channels' or 'patches:SIZE'"),
        (lambda: eb.recipe("nearest", groups="patches:"), "expected groups as 'pixels', 'channels' or 'patches:SIZE'"),
        (lambda: eb.recipe("nearest", groups="patches:0"), "expected size as an integer >= 1"),
        (lambda: eb.recipe("nearest", groups=[[0], [2]]), "entry 1 is missing or in two groups"),
        (lambda: eb.recipe("nearest", groups="pixels", steps=9), "expected passes for 'nearest'.*got steps=9"),
        (lambda: eb.recipe("best", groups="pixels", eps=0.1), "'best' is no group recipe.*use 'nearest'"),
        (
            lambda: eb.Attack(eb.Groups("pixels", k=2), formulation=eb.FewestGroups(), schedule=eb.Schedule(**SEARCH)),
            r"expected eb.Groups\(groups, k=None\).*got k=2",
        ),
        (
            lambda: eb.Attack(eb.LpBall(), formulation=eb.FewestGroups(), schedule=eb.Schedule(**SEARCH)),
            r"expected eb.Groups\(groups, k=None\).*got an LpBall",
        ),
        (
            lambda: eb.Attack(
                eb.Groups("pixels", k=None),
                formulation=eb.FewestGroups(),
                schedule=eb.Schedule(update="project", step_size=0.5),
            ),
            "expected average=True",
        ),
        (lambda: eb.Schedule(average=True), 'expected update="project" without dither'),
        (lambda: eb.Schedule(average=True, update="project", step_size=1.5), "expected step_size <= 1"),
        (
            lambda: eb.Attack(
                eb.LpBall(eps=0.1),
                eb.SquaredError(),
                eb.Quadratic(),
                schedule=eb.Schedule(update="project", average=True),
            ),
            "expected a linear local model with average=True",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(make, message):
    with pytest.raises(eb.InputError, match=message):
        make()


def test_groups_without_a_range_need_a_limit():
    model, x, y = digits(2)
    with pytest.raises(eb.InputError, match="finite eps"):
        eb.recipe("nearest", groups="pixels")(model, x, y)
    result = eb.recipe("nearest", groups="pixels", eps=2.0, passes=20)(model, x, y)
    assert torch.equal(result.norm.long(), touched(x, result.perturbed))
