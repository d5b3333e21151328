"""Groups against brute force: every subset of at most k groups is tried, each solved entry by entry."""

import itertools
import math

import numpy as np
import pytest
import torch

from epsball.errors import InputError
from epsball.randomness import Generators
from epsball.sets import Groups, channels, patches, pixels

IDS = torch.tensor([[0, 0, 1, 2], [2, 2, 3, 0], [4, 3, 1, 4]])  # five groups of unequal size
BOUNDS = [None, (0.0, 1.0), (0.0, math.inf)]
# Entries that may move further than others, frozen ones, and group 3 frozen whole.
W = torch.tensor([[1.0, 2.0, 0.5, 0.0], [3.0, 1.0, 0.0, 1.0], [1.0, 0.0, 2.0, 0.25]], dtype=torch.float64)
WEIGHTS = [None, W]
weighting = pytest.mark.parametrize("weights", WEIGHTS, ids=["plain", "weighted"])


def batch(seed, shape=(3, 4), size=6):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(size, *shape))
    side = rng.uniform(size=x.shape)
    x = np.where(side < 0.3, 0.0, np.where(side < 0.6, 1.0, x))
    g = rng.normal(size=x.shape) * np.exp(rng.normal(size=x.shape))
    g[1] = 0.0
    g[2] = np.sign(g[2])
    return torch.tensor(x), torch.tensor(g)


def limits(x, bounds):
    lo, hi = bounds if bounds is not None else (-math.inf, math.inf)
    return np.minimum(lo - x, 0.0), np.maximum(hi - x, 0.0)


def reach_of(eps, weights):
    """How far each entry may move: eps w, 0 where it is frozen also for eps = inf."""
    w = np.ones(IDS.shape) if weights is None else weights.numpy()
    return w, np.where(w > 0, eps * np.where(w > 0, w, 1.0), 0.0)


def subsets(number, k, used=()):
    free = [s for s in range(number) if s not in used]
    return [c for r in range(min(k, len(free)) + 1) for c in itertools.combinations(free, r)]


def corner(g, x, eps, bounds, mask):
    down, up = limits(x, bounds)
    reach = np.where(g > 0, np.minimum(up, eps), np.where(g < 0, np.minimum(-down, eps), 0.0))
    return np.where(mask, np.sign(g) * np.where(g == 0, 0.0, reach), 0.0)


def least_radius(g, x, gap, bounds, mask, weights):
    """Return min r with sum |g| min(capacity, r w) >= gap over the mask, inf where even r = inf falls short."""
    down, up = limits(x, bounds)
    use = mask & (g != 0) & (weights > 0)
    w, c = (np.abs(g) * weights)[use], np.where(g > 0, up, -down)[use] / weights[use]
    knots = np.sort(c)
    for low, high in itertools.pairwise([0.0, *knots, math.inf]):
        before = float((w * np.minimum(c, low)).sum())
        slope = float(w[c > low].sum())
        if slope > 0 and before + slope * (high - low) >= gap * (1 - 1e-14):
            return low + max(gap - before, 0.0) / slope
    return math.inf


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@weighting
def test_lmo_and_support_are_the_best_of_all_subsets(bounds, k, weights):
    x, g = batch(k)
    for eps in (0.3, torch.linspace(0.0, 2.0, len(x)).double()):
        grp = Groups(IDS, k, eps, bounds, weights=weights)
        eta, support = grp.lmo(g, x), grp.support(g, x)
        assert bool(grp.contains(eta, x).all())
        assert bool((eta[g == 0] == 0).all())
        each = torch.as_tensor(eps, dtype=torch.float64).expand(len(x)).numpy()
        for i in range(len(x)):
            _, reach = reach_of(each[i], weights)
            args = g[i].numpy(), x[i].numpy(), reach, bounds
            values = [float((args[0] * corner(*args, np.isin(IDS, c))).sum()) for c in subsets(5, k)]
            assert float((g[i] * eta[i]).sum()) == pytest.approx(max(values), rel=1e-12, abs=1e-15)
            assert float(support[i]) == pytest.approx(max(values), rel=1e-12, abs=1e-15)
            assert len(np.unique(IDS.numpy()[eta[i].numpy() != 0])) <= k
            assert (eta[i].abs().numpy() <= reach).all()


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@weighting
def test_project_is_the_nearest_of_all_subsets(bounds, k, weights):
    x, z = batch(10 + k)
    for eps in (0.3, math.inf):
        grp = Groups(IDS, k, eps, bounds, weights=weights)
        _, reach = reach_of(eps, weights)
        eta = grp.project(z, x)
        assert bool(grp.contains(eta, x).all())
        assert torch.equal(grp.project(eta, x), eta)
        for i in range(len(x)):
            down, up = limits(x[i].numpy(), bounds)
            clipped = np.clip(z[i].numpy(), np.maximum(down, -reach), np.minimum(up, reach))
            distances = [
                float(((np.where(np.isin(IDS, c), clipped, 0.0) - z[i].numpy()) ** 2).sum()) for c in subsets(5, k)
            ]
            assert float((eta[i] - z[i]).square().sum()) == pytest.approx(min(distances), rel=1e-12)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@weighting
def test_smallest_is_the_least_radius_of_all_subsets(bounds, k, weights):
    x, g = batch(20 + k)
    grp = Groups(IDS, k, 1e-3, bounds, weights=weights)  # eps must not matter
    w, unlimited = reach_of(math.inf, weights)
    for gap in (torch.linspace(-0.2, 5.0, len(x)).double(), torch.full((len(x),), 0.4).double()):
        eta = grp.smallest(g, gap, x)
        for i in range(len(x)):
            masks = [np.isin(IDS, c) for c in subsets(5, k)]
            args = g[i].numpy(), x[i].numpy()
            gain = float((g[i] * eta[i]).sum())
            radii = [least_radius(*args, float(gap[i]), bounds, m, w) for m in masks]
            down, up = limits(args[1], bounds)
            assert bool((eta[i].numpy() >= down - 1e-15).all())
            assert bool((eta[i].numpy() <= up + 1e-15).all())
            assert int(grp.count(eta)[i]) <= k
            if gap[i] <= 0 or not g[i].any():
                assert float(eta[i].abs().max()) == 0.0
            elif math.isfinite(min(radii)):
                assert gain >= float(gap[i]) * (1 - 1e-12)
                assert float(grp.size(eta)[i]) == pytest.approx(min(radii), rel=1e-12)
            else:
                best = max(float((args[0] * corner(*args, unlimited, bounds, m)).sum()) for m in masks)
                assert gain == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_smallest_and_support_undo_each_other(bounds):
    x, g = batch(30)
    gap = 0.5 * Groups(IDS, 2, 0.8, bounds).support(g, x)
    radius = Groups(IDS, 2, 1.0, bounds).size(Groups(IDS, 2, 1.0, bounds).smallest(g, gap, x))
    assert torch.allclose(Groups(IDS, 2, radius, bounds).support(g, x), gap, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_used_groups_do_not_change_again(bounds):
    x, g = batch(40)
    grp, eta, seen = Groups(IDS, 3, 0.4, bounds), torch.zeros_like(x), []
    for step in range(3):
        one = grp.step(1 / 3, eta)
        assert one.k == 1
        used = one.used.numpy() if one.used is not None else np.zeros((len(x), 5), dtype=bool)
        delta = one.lmo(g, x)
        for i in range(len(x)):
            taken = tuple(np.flatnonzero(used[i]))
            options = [np.isin(IDS, c) for c in subsets(5, 1, taken)]
            values = [float((g[i].numpy() * corner(g[i].numpy(), x[i].numpy(), 0.4, bounds, m)).sum()) for m in options]
            assert float((g[i] * delta[i]).sum()) == pytest.approx(max(values), rel=1e-12, abs=1e-15)
            assert not delta[i].numpy()[np.isin(IDS, taken)].any()
        seen.append(delta)
        eta = eta + delta
        assert bool((grp.count(eta) <= step + 1).all())
    # Three steps of one group each are the three best groups at once, for one and the same gradient.
    assert torch.equal(sum(seen), grp.lmo(g, x))
    blocked = Groups(IDS, 5, 0.4, bounds, torch.ones(len(x), 5, dtype=torch.bool))
    for result in (blocked.lmo(g, x), blocked.project(g, x), blocked.sample(x, Generators.of(0, torch.arange(6)))):
        assert bool((result == 0).all())
    assert bool((blocked.smallest(g, torch.ones(6).double(), x) == 0).all())
    picked = blocked.take(torch.tensor([4, 1]))
    assert picked.used is not None
    assert picked.used.shape == (2, 5)


def test_ties_take_the_first_group_and_values_cancel_nowhere():
    ids, x = torch.tensor([0, 0, 1, 1, 2, 2]), torch.full((1, 6), 0.5)
    tie = torch.tensor([[0.5, -0.5, -1.0, 0.0, 0.25, 0.75]])
    assert torch.equal(Groups(ids, 1, 0.1).lmo(tie, x), torch.tensor([[0.1, -0.1, 0.0, 0.0, 0.0, 0.0]]))
    # Far outside, the better group saves little of a huge distance: still the right one must win, in float32 too.
    z = torch.tensor([[1e8, 1e8, 1e8, 1.5e8, 1e8, 1.2e8]])
    expected = torch.tensor([[0.0, 0.0, 0.1, 0.1, 0.0, 0.0]])
    assert torch.equal(Groups(ids, 1, 0.1).project(z, x), expected)
    assert torch.equal(Groups(ids, 1, 0.1).project(z * 1e22, x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_magnitudes_and_batches_do_not_matter(dtype):
    x, g = (t.to(dtype) for t in batch(50))
    gap = torch.linspace(0.0, 1.0, len(x)).to(dtype)
    for bounds in BOUNDS:
        grp = Groups(IDS, 2, torch.linspace(0.1, 0.5, len(x)).to(dtype), bounds)
        tol = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 0.0}
        for scale in (1e30, 1e-30):
            assert torch.allclose(grp.lmo(g * scale, x), grp.lmo(g, x), **tol)
            assert torch.allclose(grp.smallest(g * scale, gap * scale, x), grp.smallest(g, gap, x), **tol)
        order = torch.tensor([3, 0, 5, 2, 1, 4])
        part = grp.take(order)
        assert torch.equal(part.lmo(g[order], x[order]), grp.lmo(g, x)[order])
        assert torch.equal(part.project(g[order], x[order]), grp.project(g, x)[order])
        assert torch.equal(part.smallest(g[order], gap[order], x[order]), grp.smallest(g, gap, x)[order])


@pytest.mark.parametrize("boundary", [False, True])
def test_sample_changes_k_random_groups(boundary):
    x = torch.full((4000, 3, 4), 0.5)
    grp = Groups(IDS, 2, 0.3)
    eta = grp.sample(x, Generators.of(3, torch.arange(len(x))), boundary=boundary)
    assert bool(grp.contains(eta, x).all())
    assert bool((grp.count(eta) == 2).all())
    # Each of the five groups is among the two chosen with chance 2/5: five standard errors.
    chosen = torch.stack([(eta[:, s == IDS] != 0).any(1).double().mean() for s in range(5)])
    assert bool(((chosen - 0.4).abs() < 5 * math.sqrt(0.24 / 4000)).all())
    moved = eta[eta != 0]
    assert abs(float((moved > 0).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(len(moved))
    if boundary:
        assert torch.allclose(moved.abs(), torch.tensor(0.3))
    else:
        assert abs(float(moved.abs().mean()) - 0.15) < 0.01
    inside = Groups(IDS, 2, 0.9, (0.0, 1.0))
    assert bool(inside.contains(inside.sample(x, Generators.of(3, torch.arange(len(x)))), x).all())


def test_weights_limit_and_freeze_the_entries_of_a_draw():
    x = torch.full((4000, 3, 4), 0.5, dtype=torch.float64)
    grp = Groups(IDS, 2, 0.3, weights=W)
    streams = Generators.of(3, torch.arange(len(x)))
    eta = grp.sample(x, streams, boundary=True)
    assert bool(grp.contains(eta, x).all())
    assert bool((eta[:, W == 0] == 0).all())
    # Group 3 is frozen whole and never drawn: each of the other four has the chance 2/4.
    assert bool((grp.count(eta) == 2).all())
    chosen = torch.stack([(eta[:, s == IDS] != 0).any(1).double().mean() for s in (0, 1, 2, 4)])
    assert bool(((chosen - 0.5).abs() < 5 * math.sqrt(0.25 / 4000)).all())
    moved = eta != 0
    torch.testing.assert_close(eta[moved].abs(), (0.3 * W).expand_as(eta)[moved])
    offset = grp.dither(x, 0.5, streams)
    assert bool((offset.abs() <= 0.15 * W).all())
    assert float(offset[:, 1, 0].abs().mean()) == pytest.approx(0.5 * 0.15 * 3.0, rel=0.05)
    with pytest.raises(InputError, match=r"weights of the shape of one sample, \(3, 4\), got \(12,\)"):
        Groups(IDS, 1, 0.3, weights=W.flatten()).check(x)
    with pytest.raises(InputError, match="finite weights >= 0"):
        Groups(IDS, 1, 0.3, weights=-W)


def test_size_and_contains_are_those_of_the_weighted_entries():
    x = torch.full((1, 3, 4), 0.5, dtype=torch.float64)
    grp = Groups(IDS, 2, 0.1, weights=W)
    eta = torch.zeros_like(x)
    eta[0, 1, 0] = 0.3  # weight 3
    assert float(grp.size(eta)) == pytest.approx(0.1)
    assert bool(grp.contains(eta, x))
    assert not bool(grp.contains(1.001 * eta, x))
    eta[0, 0, 3] = 1e-9  # frozen, of the same group
    assert float(grp.size(eta)) == math.inf
    assert not bool(grp.contains(eta, x))


def test_contains_counts_groups_radius_and_range():
    x = torch.full((1, 3, 4), 0.5)
    grp = Groups(IDS, 2, 0.3, (0.0, 1.0))
    good = torch.where((IDS == 1) | (IDS == 4), 0.3, 0.0)[None]
    assert bool(grp.contains(good, x))
    assert bool(grp.contains((x + good) - x, x))
    assert not bool(grp.contains(good * 1.01, x))
    assert not bool(grp.contains(torch.where(IDS <= 2, 0.01, 0.0)[None], x))
    assert not bool(Groups(IDS, 2, 0.9, (0.0, 1.0)).contains(good * 2.0, x))
    assert not bool(grp.contains(good * math.nan, x))


@pytest.mark.parametrize(("groups", "number"), [(pixels(1), 16), (channels(1), 3), (patches(2), 4), (patches(3), 4)])
def test_named_partitions_attack_the_right_entries(groups, number):
    rng = np.random.default_rng(0)
    x, g = torch.full((2, 3, 4, 4), 0.5).double(), torch.tensor(rng.normal(size=(2, 3, 4, 4)))
    eta = Groups(groups, 1, 0.1).lmo(g, x)
    size = {16: 3, 3: 16}.get(number)
    for i in range(2):
        changed = eta[i] != 0
        if size is not None:
            assert int(changed.sum()) == size
        if number == 16:
            assert int(changed.any(0).sum()) == 1
        if number == 3:
            assert int(changed.flatten(1).any(1).sum()) == 1
    assert bool(Groups(groups, number, 0.1).lmo(g, x).bool().all())
    with pytest.raises(InputError, match=rf"k <= {number}"):
        Groups(groups, number + 1, 0.1).lmo(g, x)


def test_refusals_and_empty_batch():
    x, g = batch(60)
    with pytest.raises(InputError, match="finite eps"):
        Groups(IDS, 1).lmo(g, x)
    with pytest.raises(InputError, match="finite eps"):
        Groups(IDS, 1).sample(x, Generators.of(0, torch.arange(6)))
    for k in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="expected k as an integer"):
            Groups(IDS, k)
    with pytest.raises(InputError, match="shape"):
        Groups(IDS, 1, 0.1).lmo(g[:, :2], x[:, :2])
    grp = Groups(IDS, 1, 0.1, (0.0, 1.0))
    for eta in (grp.lmo(g[:0], x[:0]), grp.project(g[:0], x[:0]), grp.smallest(g[:0], g[:0, 0, 0], x[:0])):
        assert eta.shape == (0, 3, 4)
    assert grp.contains(g[:0], x[:0]).shape == (0,)
