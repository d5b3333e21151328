"""Randomness as a function of (seed, sample_id, step): repeatable in any batch, and with the right distributions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from epsball.errors import InputError
from epsball.randomness import Generators, as_generators
from epsball.sets import LpBall

DTYPES = [torch.float32, torch.float64]
P_VALUE = 1e-4  # seeds are fixed, so this either holds for ever or never


def streams(count, seed=0, *steps):
    return Generators.of(seed, torch.arange(count), *steps)


def draws(kind, dtype, count=200, size=200, seed=0):
    """Entries over many streams, flat."""
    generators = streams(count, seed)
    call = {
        "uniform": lambda: generators.uniform((size,), dtype),
        "normal": lambda: generators.normal((size,), dtype),
        "coin": lambda: generators.coin((size,), dtype),
        "gamma": lambda: generators.gamma(0.4, (size,), dtype),
    }[kind]
    return call()


@pytest.mark.parametrize("kind", ["uniform", "normal", "coin", "gamma"])
def test_a_stream_is_the_same_in_any_batch_and_order(kind):
    ids = torch.tensor([5, 3, 1_000_000_007, 0, -4, 3])
    call = {
        "uniform": lambda g: g.uniform((2, 3), torch.float64),
        "normal": lambda g: g.normal((2, 3), torch.float64),
        "coin": lambda g: g.coin((2, 3), torch.float64),
        "gamma": lambda g: g.gamma(0.7, (2, 3), torch.float64),
    }[kind]
    together = call(Generators.of(9, ids, 2))
    assert torch.equal(together[1], together[5])
    alone = torch.cat([call(Generators.of(9, i[None], 2)) for i in ids])
    assert torch.equal(alone, together)
    order = torch.tensor([4, 0, 2, 1, 5, 3])
    assert torch.equal(call(Generators.of(9, ids[order], 2)), together[order])
    assert torch.equal(call(Generators.of(9, ids, 2).take(order)), together[order])
    assert torch.equal(call(Generators.of(9, ids).fork(2)), together)


def test_seed_sample_and_step_all_matter():
    keys = [
        Generators.of(s, torch.arange(50), *t).keys for s in range(-3, 20) for t in ((), (0,), (1,), (0, 0), (0, 1))
    ]
    flat = torch.cat(keys)
    assert len(flat.unique()) == len(flat)
    assert len(streams(1000).bits((1000,)).unique()) == 1_000_000
    big = Generators.of(2**70 + 1, torch.tensor([2**62]))
    assert big.keys.shape == (1,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_is_uniform_and_open(dtype):
    u = draws("uniform", dtype).double()
    assert 0.0 < float(u.min()) < 1e-3
    assert 1.0 - 1e-3 < float(u.max()) < 1.0
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > P_VALUE
    # Across samples for one entry and across entries for one sample, not only all together.
    assert stats.kstest(streams(20_000).uniform((1,), dtype)[:, 0].double().numpy(), "uniform").pvalue > P_VALUE
    assert stats.kstest(streams(1).uniform((20_000,), dtype)[0].double().numpy(), "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_extreme_bits_stay_inside_the_open_interval(dtype):
    class Extreme(Generators):
        def bits(self, shape):
            return torch.tensor([[-1, 0]])

    high, low = Extreme(torch.zeros(1, dtype=torch.int64)).uniform((2,), dtype)[0]
    assert 0.0 < float(low) < 1e-6
    assert 1.0 - 1e-6 < float(high) < 1.0
    assert bool(Extreme(torch.zeros(1, dtype=torch.int64)).normal((2,), dtype).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_coin_and_gamma_have_their_distributions(dtype):
    z = draws("normal", dtype, seed=1).double().flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > P_VALUE
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert abs(z.var() - 1.0) < 5 * math.sqrt(2.0 / z.size)
    coin = draws("coin", dtype, count=1000, size=1000, seed=2).double()
    assert set(coin.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(coin.mean())) < 5 / math.sqrt(coin.numel())
    for concentration in (0.1, 0.5, 1.0, 1.7, 4.0):
        sample = streams(100, 3).gamma(concentration, (200,), dtype).double().flatten().numpy()
        assert stats.kstest(sample, stats.gamma(concentration).cdf).pvalue > P_VALUE
        assert abs(sample.mean() - concentration) < 5 * math.sqrt(concentration / sample.size)


@pytest.mark.parametrize("kind", ["uniform", "normal", "coin"])
def test_streams_and_entries_are_uncorrelated(kind):
    count = 20_000
    generators = [
        streams(count),
        streams(count, 0, 1),
        streams(count, 1),
        streams(count, 0, 0),
        streams(count, 0, 1, 0),
    ]
    columns = torch.cat([getattr(g, kind)((3,), torch.float64) for g in generators], 1)
    shifted = torch.cat([columns, columns.roll(1, 0)], 1)  # also neighbouring samples
    correlation = np.corrcoef(shifted.numpy().T) - np.eye(shifted.shape[1])
    assert np.abs(correlation).max() < 5.5 / math.sqrt(count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 5.0, 40.0, 1000.0, math.inf])
def test_a_sample_is_uniform_in_the_lp_ball(p, dtype):
    """Uniform in a ball of dimension M: (||eta|| / eps)^M is uniform, and so is each coordinate's own marginal law."""
    count, size, eps = 20_000, 4, 0.3
    x = torch.zeros(count, 2, 2, dtype=dtype)
    eta = LpBall(p, eps).sample(x, streams(count, 5)).double().flatten(1)
    radius = LpBall(p).size(eta) / eps
    assert float(radius.max()) <= 1.0 + 1e-6
    assert stats.kstest((radius**size).numpy(), "uniform").pvalue > P_VALUE
    # |eta_1 / eps| has the density (1 - t^p)^((M-1)/p), that is t^p ~ Beta(1/p, 1 + (M-1)/p).
    first = (eta[:, 0].abs() / eps).numpy()
    cube = p >= 1000.0  # t^p underflows; the law is within 0.004 of the cube's
    law = stats.uniform() if cube else stats.beta(1.0 / p, 1.0 + (size - 1) / p)
    assert stats.kstest(first, lambda t: law.cdf(t if cube else t**p)).pvalue > P_VALUE
    assert abs(float(eta.sign().mean())) < 5 / math.sqrt(eta.numel())


def test_boundary_samples_are_the_random_baselines():
    x = torch.full((4000, 5), 0.5, dtype=torch.float64)
    coin = LpBall(math.inf, 0.2).sample(x, streams(4000, 6), boundary=True)
    assert torch.equal(coin.abs(), torch.full_like(coin, 0.2))
    sphere = LpBall(2.0, 0.2).sample(x, streams(4000, 6), boundary=True)
    assert torch.allclose(sphere.norm(dim=1), torch.tensor(0.2).double())
    # A uniform direction in five dimensions: the squared first coordinate is Beta(1/2, 2).
    assert stats.kstest((sphere[:, 0] / 0.2).square().numpy(), stats.beta(0.5, 2.0).cdf).pvalue > P_VALUE
    diamond = LpBall(1.0, 0.2).sample(x, streams(4000, 6), boundary=True)
    assert torch.allclose(diamond.abs().sum(1), torch.tensor(0.2).double())
    # Uniform on the l1 sphere: sizes are Dirichlet(1, 1, 1, 1, 1), each one Beta(1, 4), and signs are fair coins.
    for entry in (0, 4):
        assert stats.kstest((diamond[:, entry].abs() / 0.2).numpy(), stats.beta(1.0, 4.0).cdf).pvalue > P_VALUE
    assert abs(float(diamond.sign().mean())) < 5 / math.sqrt(diamond.numel())
    assert np.corrcoef(diamond.abs()[:, :2].T.numpy())[0, 1] == pytest.approx(-0.25, abs=5 / math.sqrt(4000))
    inside = LpBall(1.0, 2.0, (0.0, 1.0)).sample(x, streams(4000, 6), boundary=True)
    torch.testing.assert_close(inside, (10.0 * diamond).clamp(-0.5, 0.5))  # cut off at the bounds, as the others are
    weighted = LpBall(2.0, 0.2, None, torch.tensor([1.0, 0.0, 3.0, 1.0, 1.0]).double())
    eta = weighted.sample(x, streams(4000, 6))
    assert bool((eta[:, 1] == 0).all())
    assert float(eta[:, 2].std() / eta[:, 0].std()) == pytest.approx(3.0, rel=0.1)
    assert bool(weighted.contains(eta, x).all())


def test_as_generators_accepts_torch_generators():
    x = torch.zeros(3, 2)
    one = as_generators(torch.Generator().manual_seed(1), x)
    assert torch.equal(one.keys, as_generators(torch.Generator().manual_seed(1), x).keys)
    assert len(one.keys.unique()) == 3
    each = as_generators([torch.Generator().manual_seed(i) for i in (4, 5, 4)], x)
    assert each.keys[0] == each.keys[2] != each.keys[1]
    assert as_generators([], x[:0]).keys.shape == (0,)
    assert as_generators(one, x) is one
    with pytest.raises(InputError, match="each of the 3 samples, got 2"):
        as_generators(streams(2), x)
