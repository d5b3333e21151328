"""The upper bound on the quadratic problem: against brute force, its own duality gap, and what it says of itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import epsball as eb


def net(seed: int, entries: int, outputs: int, activation: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(entries, 16), activation, torch.nn.Linear(16, outputs)]
    return torch.nn.Sequential(*layers).double()


def brute_force(model, x, eps, target, bounds) -> np.ndarray:
    """Try every corner of the box on the linearised model, with a Jacobian that is not ours."""
    best = []
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=x.shape[1])))
    for i, xi in enumerate(x):
        jacobian = torch.autograd.functional.jacobian(model, xi).numpy()
        residual = np.zeros(len(jacobian)) if target is None else (model(xi) - target[i]).detach().numpy()
        low, high = np.full(len(xi), -eps), np.full(len(xi), eps)
        if bounds is not None:
            low, high = np.maximum(low, bounds[0] - xi.numpy()), np.minimum(high, bounds[1] - xi.numpy())
        corners = np.where(signs > 0, high, low)
        best.append(((residual + corners @ jacobian.T) ** 2).sum(1).max())
    return np.array(best)


@pytest.mark.parametrize("memory", [1.0, 0.0])
@pytest.mark.parametrize("bounds", [None, (-0.7, 0.9)])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("activation", "outputs"), [(torch.nn.Tanh(), 7), (torch.nn.ReLU(), 1)])
def test_never_below_brute_force(memory, bounds, known, activation, outputs):
    model = net(3, 10, outputs, activation)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 10, generator=generator, dtype=torch.float64).clamp(-0.7, 0.9)
    target = model(x).detach() + torch.randn(8, outputs, generator=generator).double() if known else None
    bound = eb.upper_bound(model, x, 0.4, target, bounds=bounds, memory=memory)
    best = brute_force(model, x, 0.4, target, bounds)
    assert (bound.value.numpy() >= best).all()
    # Nesterov: at the relaxation's optimum the maximum is at least 2/π of it; the bound is near that optimum.
    assert (best >= 2.0 / np.pi * bound.value.numpy() * 0.99).all()
    assert (bound.relaxed <= bound.value).all()
    assert bound.exact.all() if memory else not bound.exact.any()


def test_duality_gap_is_small_where_the_jacobian_fits():
    model = net(0, 60, 40, torch.nn.Tanh())
    x = torch.randn(6, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = eb.upper_bound(model, x, 0.1)
    assert (bound.gap >= 0).all()
    assert float(bound.gap.max()) <= 1e-3


def slow(samples: int) -> tuple[torch.nn.Module, torch.Tensor, np.ndarray]:
    """A chain of entries, each coupled to the next alone: the ascent crawls. With each sample the best there is.

    J = F diag(x) with F > 0, so that the signs of x solve the problem, and the relaxation has the same value.
    """
    rng = np.random.default_rng(0)
    chain = np.zeros((39, 40))
    for i in range(39):
        chain[i, i : i + 2] = rng.uniform(0.2, 1.0, 2)
    x = rng.uniform(0.3, 1.0, (samples, 40)) * rng.choice([-1.0, 1.0], (samples, 40))
    x[1, 3:] = 0.0  # an easy one among them

    class Chain(torch.nn.Module):
        def forward(self, x):
            return 0.5 * x.square() @ torch.from_numpy(chain).to(x).T

    return Chain(), torch.from_numpy(x), ((np.abs(x) @ chain.T) ** 2).sum(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
def test_the_ascent_goes_on_where_the_gap_is_wide(dtype, tolerance):
    model, x, best = slow(5)
    x = x.to(dtype)
    short = eb.upper_bound(model, x, 1.0, tolerance=tolerance, sweeps=99)
    assert short.converged.tolist() == [False, True, False, False, False]
    assert f"gap above {tolerance:g} on 4" in repr(short)
    bound = eb.upper_bound(model, x, 1.0, tolerance=tolerance)
    assert bound.converged.all()
    assert "gap above" not in repr(bound)
    assert (bound.gap <= tolerance).all()
    assert (bound.value.numpy() >= best * (1.0 - 1e-12 if dtype == torch.float64 else 1.0)).all()
    assert (bound.relaxed.numpy() <= best * (1.0 + 4.0 * torch.finfo(dtype).eps)).all()
    for i in range(5):
        alone = eb.upper_bound(model, x[i : i + 1], 1.0, tolerance=tolerance, sample_id=torch.tensor([i]))
        torch.testing.assert_close(alone.value, bound.value[i : i + 1], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(short.value[1], bound.value[1], rtol=1e-6, atol=0.0)


def test_products_alone_come_near_the_dense_bound():
    model = net(0, 60, 40, torch.nn.Tanh())
    x = torch.randn(6, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = eb.upper_bound(model, x, 0.1)
    free = eb.upper_bound(model, x, 0.1, memory=0.0)
    assert (free.value >= dense.relaxed).all()
    assert (free.value <= 1.25 * dense.value).all()
    assert free.confidence == 0.99
    assert (free.jvps > 0).all()
    assert "confidence" in repr(free)


def test_scales_with_eps_squared_and_takes_one_eps_for_each_sample():
    model = net(0, 9, 5, torch.nn.Tanh())
    x = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = eb.upper_bound(model, x, 0.1)
    several = eb.upper_bound(model, x, torch.tensor([0.1, 0.2, 0.4]))
    torch.testing.assert_close(several.value, one.value * torch.tensor([1.0, 4.0, 16.0]).double(), rtol=1e-3, atol=0.0)


def test_certificate_of_a_perturbation():
    model = net(0, 11, 5, torch.nn.Tanh())
    x = torch.randn(4, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = eb.recipe("quadratic-lp", p=torch.inf, eps=0.3)(model, x)
    assert result.exact.all()
    bound = eb.upper_bound(model, x, 0.3, perturbation=result.perturbation)
    torch.testing.assert_close(bound.attained.numpy(), brute_force(model, x, 0.3, None, None), rtol=1e-9, atol=0.0)
    assert ((bound.ratio > 0.9) & (bound.ratio <= 1.0)).all()


def test_a_sample_alone_and_in_a_batch():
    model = net(0, 12, 5, torch.nn.Tanh())
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = eb.upper_bound(model, x, 0.3)
    alone = eb.upper_bound(model, x[3:4], 0.3, sample_id=torch.tensor([3]))
    torch.testing.assert_close(alone.value, whole.value[3:4], rtol=1e-5, atol=0.0)


def test_zero_jacobian_has_bound_zero():
    bound = eb.upper_bound(lambda x: x * 0.0, torch.ones(2, 20, dtype=torch.float64), 0.3)
    assert float(bound.value.abs().max()) <= 1e-12
    assert not bound.gap.isnan().any()


def test_leaves_the_model_as_it_was():
    model = net(0, 12, 5, torch.nn.Tanh()).train()
    eb.upper_bound(model, torch.zeros(2, 12, dtype=torch.float64), 0.3)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": -1.0}, "eps"),
        ({"eps": torch.inf}, "finite eps"),
        ({"eps": 0.1, "confidence": 1.0}, "confidence between"),
        ({"eps": 0.1, "tolerance": 0.0}, "tolerance > 0"),
        ({"eps": 0.1, "sweeps": 0}, "sweeps"),
        ({"eps": 0.1, "memory": -1.0}, "memory >= 0"),
        ({"eps": 0.1, "perturbation": torch.zeros(3, 12)}, "perturbation of the inputs' shape"),
        ({"eps": 0.1, "target": torch.zeros(2, 4)}, "target of the output's shape"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(eb.InputError, match=message):
        eb.upper_bound(net(0, 12, 5, torch.nn.Tanh()), torch.zeros(2, 12, dtype=torch.float64), **arguments)


def test_an_empty_batch():
    bound = eb.upper_bound(net(0, 12, 5, torch.nn.Tanh()), torch.zeros(0, 12, dtype=torch.float64), 0.3)
    assert len(bound.value) == 0
