"""The quadratic problem over the Euclidean ball against a dense eigen-decomposition in NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball.errors import Status
from epsball.local_models import GaussNewton
from epsball.randomness import Generators
from epsball.solvers.trust_region import trust_region
from epsball.solvers.view import View
from helpers import generator

SHARP = {torch.float64: 1e-6, torch.float32: 1e-3}


def np_trust_region(jacobian, residual, eps):
    """The largest ‖r + Jη‖² over ‖η‖ ≤ eps, from all eigenvalues of JᵀJ.

    The value of the dual, min ‖r‖² + λε² + Σ c_i² / (λ - θ_i) over λ ≥ θ_max, which is never below the problem's and
    equal to it: no multiplier, however rough, makes this bound too small.
    """
    values, vectors = np.linalg.eigh(jacobian.T @ jacobian)
    top, c = values[-1], vectors.T @ (jacobian.T @ residual)
    low, high = math.log(1e-16 * top), math.log(np.linalg.norm(c) / eps + top)
    for _ in range(200):
        middle = 0.5 * (low + high)
        longer = np.linalg.norm(c / (math.exp(middle) + (top - values))) > eps
        low, high = (middle, high) if longer else (low, middle)
    step = math.exp(high)
    return float(residual @ residual + (top + step) * eps**2 + np.sum(c**2 / (step + (top - values))))


def orthogonal(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def with_spectrum(singular, rows, columns, seed=0):
    """A matrix (rows, columns) of the given singular values, and its right singular vectors."""
    count = len(singular)
    left, right = orthogonal(rows, seed)[:, :count], orthogonal(columns, seed + 1)[:, :count]
    return (left * singular) @ right.T, right, left


def local_model(matrix, residual, dtype=torch.float64, memory=1.0):
    """The model x -> Wx at x = 0 with target -r."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).to(dtype)
    layer.weight.data = torch.from_numpy(matrix).to(dtype)
    residual = torch.from_numpy(np.atleast_2d(residual)).to(dtype)
    x = torch.zeros(len(residual), matrix.shape[1], dtype=dtype)
    return GaussNewton(layer, x, -residual, eb.Quadratic(memory=memory), batched=True)


def solved(local, eps, tolerance=None, **options):
    eps = torch.as_tensor(eps, dtype=local.point.dtype).expand(len(local.point))
    tolerance = tolerance or (1e-4 if eps.dtype == torch.float32 else 1e-7)
    return trust_region(View(local), eps, tolerance=tolerance, **options)


def assert_optimal(matrix, residual, eps, dtype=torch.float64, **options):
    residual = np.atleast_2d(residual)
    eps = np.broadcast_to(eps, len(residual))
    memory = options.pop("memory", 1.0)
    found = solved(local_model(matrix, residual, dtype, memory), torch.from_numpy(eps.copy()), **options)
    zeta = found.zeta.double().numpy()
    rounding = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(np.linalg.norm(zeta, axis=1), eps, rtol=rounding)
    for i in range(len(residual)):
        best = np_trust_region(matrix, residual[i], eps[i])
        value = np.sum((residual[i] + matrix @ zeta[i]) ** 2)
        assert value >= best * (1.0 - SHARP[dtype]), (i, value, best)
        assert value <= best * (1.0 + SHARP[dtype])
    assert found.converged.all()
    # The KKT residual, measured again with the multiplier that fits best.
    for i in range(len(residual)):
        force = matrix.T @ (residual[i] + matrix @ zeta[i])
        lam = force @ zeta[i] / eps[i] ** 2
        kkt = np.linalg.norm(lam * zeta[i] - force) / np.linalg.norm(lam * zeta[i])
        assert kkt <= 3.0 * (1e-4 if dtype == torch.float32 else 1e-7)
        assert lam >= np.linalg.norm(matrix, 2) ** 2 * (1.0 - SHARP[dtype])
    return found


SPECTRA = {
    "even": np.linspace(1.0, 3.0, 8),
    "steep": np.geomspace(1e-4, 1e2, 8),
    "double": np.array([0.5, 1.0, 1.0, 2.0, 2.0, 2.0]),
    "cluster": np.array([0.3, 1.0, 1.9999, 1.99999, 2.0]),
    "rank one": np.array([2.0]),
    "all equal": np.full(8, 1.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(20, 8), (8, 40)])
@pytest.mark.parametrize("name", SPECTRA)
def test_residual_zero_and_not(name, rows, columns, dtype):
    matrix, _, left = with_spectrum(SPECTRA[name], rows, columns)
    draw = np.random.default_rng(5)
    residuals = np.concatenate([np.zeros((1, rows)), draw.normal(size=(4, rows)), 1e-6 * draw.normal(size=(1, rows))])
    residuals = np.concatenate([residuals, 1e3 * left.T[-1:], left.T[:1]])
    for eps in (0.01, 5.0):
        assert_optimal(matrix, residuals, eps, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("share", [0.0, 1e-14, 1e-9, 1e-4])
@pytest.mark.parametrize("name", ["even", "steep", "double", "cluster"])
def test_the_hard_case_and_nearly(name, share, dtype):
    """Jᵀr orthogonal to the leading eigenvectors: λ = λ_max, and they make up the length."""
    singular = SPECTRA[name]
    matrix, right, left = with_spectrum(singular, 12, 15)
    leads = singular > singular[-1] * (1.0 - 1e-9)
    c = np.where(leads, 0.0, singular * 0.3)  # Jᵀr in the basis of eigenvectors
    c[-1] = share * np.linalg.norm(c)
    residual = left @ (c / singular)
    np.testing.assert_allclose(right.T @ (matrix.T @ residual), c, atol=1e-12 * singular[-1] ** 2)
    for eps in (0.1, 5.0):
        assert_optimal(matrix, np.stack([residual, -residual]), eps, dtype)


@pytest.mark.parametrize("memory", [1.0, 0.0])
def test_large_and_ill_conditioned_needs_restarts(memory, monkeypatch):
    """More directions than the basis holds: the space is restarted, and the answer is the same."""
    from epsball.solvers import trust_region as module

    restarts = []
    original = module._Space.restart

    def restart(space, *found):
        restarts.append(space.most)
        return original(space, *found)

    monkeypatch.setattr(module._Space, "restart", restart)
    columns, rows = 120, 120
    singular = np.sqrt(np.concatenate([np.geomspace(1e-8, 0.9, 100), np.linspace(0.9, 1.0, 20)]))
    matrix, _, _ = with_spectrum(singular, rows, columns)
    draw = np.random.default_rng(0)
    residuals = np.concatenate([np.zeros((1, rows)), draw.normal(size=(2, rows)), 1e-4 * draw.normal(size=(1, rows))])
    assert_optimal(matrix, residuals, 1.0, memory=memory)
    assert restarts
    assert set(restarts) == {12 if memory == 0.0 else 48}


def test_millions_of_float32_entries():
    """A product of so many entries at once is wrong in the fourth digit; the basis must not be."""
    entries = 3 * 2**20
    scale = torch.rand(entries, generator=generator(0)) ** 0.5
    x = torch.zeros(1, entries)
    local = GaussNewton(lambda z: z * scale, x, x, eb.Quadratic(memory=0.0), batched=True)
    found = trust_region(View(local), torch.tensor([10.0]), tolerance=1e-3)
    assert found.converged.all()
    zeta, steps = found.zeta.double()[0], int(local.spent()[2])
    assert float(torch.linalg.vector_norm(zeta)) == pytest.approx(10.0, rel=2e-6)
    gram = scale.double() ** 2 * zeta
    multiplier = float(zeta @ gram) / 100.0
    assert float(found.value) == pytest.approx(multiplier, rel=2e-6)
    assert float(torch.linalg.vector_norm(gram - multiplier * zeta)) <= 1.1e-3 * multiplier * 10.0
    assert multiplier >= 0.999 * float(scale.max()) ** 2
    assert steps <= 120


def test_one_output_and_one_input():
    draw = np.random.default_rng(1)
    for rows, columns in ((1, 1), (1, 5), (5, 1), (1, 2), (3, 3), (2, 4), (4, 5)):
        matrix = draw.normal(size=(rows, columns))
        residuals = np.concatenate([np.zeros((1, rows)), draw.normal(size=(2, rows))])
        for eps in (1e-3, 1.0):
            found = assert_optimal(matrix, residuals, eps)
            if columns == 1:
                assert found.zeta.abs().flatten().tolist() == pytest.approx([eps] * 3)
            assert_optimal(matrix, np.zeros((1, rows)), eps)  # alone, no slot of the basis is another sample's


def test_no_budget_one_budget_a_sample_and_scale():
    matrix, _, _ = with_spectrum(SPECTRA["even"], 9, 11)
    residual = np.random.default_rng(2).normal(size=(5, 9))
    residual[3] = 0.0
    eps = np.array([0.0, 0.3, 7.0, 0.0, 1e-9])
    found = solved(local_model(matrix, residual), torch.from_numpy(eps))
    assert found.zeta[[0, 3]].abs().max() == 0
    assert found.converged.all()
    assert found.kkt.isfinite().all()
    for i in (1, 2, 4):
        alone = solved(local_model(matrix, residual[i]), eps[i])
        torch.testing.assert_close(found.zeta[i : i + 1], alone.zeta, rtol=1e-9, atol=1e-15)
        value = float(((residual[i] + matrix @ found.zeta[i].numpy()) ** 2).sum())
        assert value == pytest.approx(np_trust_region(matrix, residual[i], eps[i]), rel=1e-6)
    for dtype in (torch.float32, torch.float64):  # no multiplier of a sample without a budget spoils the others
        large = solved(local_model(1e3 * matrix, 1e3 * residual, dtype), torch.from_numpy(eps).to(dtype))
        assert large.converged.all()
        torch.testing.assert_close(
            large.zeta.double(), found.zeta, rtol=0, atol=2e-2 if dtype == torch.float32 else 1e-6
        )
    for scale in (1e-12, 1e12):
        assert_optimal(scale * matrix, scale * residual, 0.5)


def test_a_limit_too_small_says_so():
    matrix, _, _ = with_spectrum(np.linspace(0.99, 1.0, 60), 60, 60)
    found = solved(local_model(matrix, np.random.default_rng(3).normal(size=(2, 60)) * 1e-3), 1.0, limit=4)
    assert not found.converged.any()
    assert (found.kkt > 1e-7).all()
    torch.testing.assert_close(torch.linalg.vector_norm(found.zeta, dim=1), torch.ones(2, dtype=torch.float64))


# ------------------------------------------------------------------------------------------- curved models, in a batch


class Curved(nn.Module):
    """x -> A tanh(Bx): another Jacobian at every point, A diag(1 - tanh²(Bx)) B; zero where x is huge."""

    def __init__(self, rows=7, columns=9, seed=0):
        super().__init__()
        draw = generator(seed)
        self.inner = nn.Parameter(torch.randn(12, columns, generator=draw, dtype=torch.float64))
        self.outer = nn.Parameter(torch.randn(rows, 12, generator=draw, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.inner.T) @ self.outer.T

    def jacobian(self, x):
        slope = 1.0 - torch.tanh(x @ self.inner.T) ** 2
        return ((self.outer * slope[:, None]) @ self.inner).detach().numpy()


def problem(batch=5, seed=1):
    model = Curved()
    x = 0.3 * torch.randn(batch, 9, generator=generator(seed), dtype=torch.float64)
    with torch.no_grad():
        target = model(x) + 0.5 * torch.randn(batch, 7, generator=generator(seed + 1), dtype=torch.float64)
        target[0] = model(x)[0]  # no residual
    return model, x, target


@pytest.mark.parametrize("weighted", [False, True])
def test_through_the_set_with_weights_and_a_batch_as_its_samples_alone(weighted):
    model, x, target = problem()
    weights = None
    if weighted:
        weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 3.0, 1.0, 0.1, 1.0], dtype=torch.float64)
    eps = torch.tensor([0.5, 0.1, 1.0, 0.7, 2.0], dtype=torch.float64)

    def step(rows):
        local = GaussNewton(model, x[rows], target[rows], eb.Quadratic(), batched=False)
        ball = eb.LpBall(p=2, eps=eps[rows], weights=weights)
        return eb.NormConstrained().solve(local, ball, x[rows], Generators.of(0, torch.tensor(rows)))

    whole = step([0, 1, 2, 3, 4])
    jacobian, residual = model.jacobian(x), (model(x) - target).detach().numpy()
    w = np.ones(9) if weights is None else weights.numpy()
    for i in range(5):
        delta = whole.delta[i].numpy()
        assert (delta[w == 0] == 0).all()
        assert np.linalg.norm(delta[w > 0] / w[w > 0]) == pytest.approx(float(eps[i]))
        best = np_trust_region(jacobian[i] * w, residual[i], float(eps[i]))
        assert np.sum((residual[i] + jacobian[i] @ delta) ** 2) == pytest.approx(best, rel=1e-6)
        alone = step([i]).delta[0]
        if i == 0 and float((alone - whole.delta[0]).abs().max()) > 1e-6:
            alone = -alone  # without a residual both are solutions, and rounding in f(x) decides
        # There the space starts from that rounding too, and the solution is known to the solver's tolerance.
        torch.testing.assert_close(alone, whole.delta[i], rtol=0, atol=1e-12 if i else 1e-7)
    assert whole.exact.all()
    assert (whole.kkt <= 1e-7).all()
    torch.testing.assert_close(step([4, 2, 1]).delta, whole.delta[[4, 2, 1]], rtol=0, atol=1e-12)


def test_a_jacobian_of_zeros_in_a_batch_is_a_status():
    model, x, target = problem()
    x[2] = 1e4  # every tanh is flat there
    eps = torch.tensor([0.5, 0.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    with torch.no_grad():
        target[2] = model(x)[2]
    for name in ("quadratic-lp", "quadratic-lp-3"):
        for p in (1.0, 2.0, 3.0, math.inf):
            result = eb.recipe(name, p=p, eps=eps)(model, x, target)
            assert result.status[2] is Status.ZERO_GRADIENT
            assert result.perturbation[2].abs().max() == result.gain[2] == 0
            assert [s is Status.SUCCESS for s in result.status] == [True, False, False, True, True]
            assert result.perturbation.isfinite().all()
            sound = eb.recipe(name, p=p, eps=0.5)(model, x[3:], target[3:], sample_id=torch.tensor([3, 4]))
            torch.testing.assert_close(result.perturbation[3:], sound.perturbation, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------ inside bounds


def test_inside_bounds_never_below_the_clipped_solution_and_exact_only_where_nothing_was_cut():
    model, x, target = problem(batch=12)
    x = 0.5 + x.clamp(-0.45, 0.45)
    with torch.no_grad():
        target = target - model(x - 0.5) + model(x)
    jacobian, residual = model.jacobian(x), (model(x) - target).detach().numpy()
    claimed = 0
    for eps in (0.02, 0.2, 2.0, math.inf):
        ball = eb.LpBall(p=2, eps=eps, bounds=(0.0, 1.0))
        local = GaussNewton(model, x, target, eb.Quadratic(), batched=False)
        found = eb.NormConstrained().solve(local, ball, x, Generators.of(0, torch.arange(12)))
        assert ball.contains(found.delta, x).all()
        assert ball.contains(found.mirror, x).all()
        for i in range(12):
            value = np.sum((residual[i] + jacobian[i] @ found.delta[i].numpy()) ** 2)
            if eps == math.inf:  # a box of nine entries, solved as such
                assert found.exact[i]
                continue
            best = np_trust_region(jacobian[i], residual[i], eps)
            assert value <= best * (1.0 + 1e-9)
            free = GaussNewton(model, x[i : i + 1], target[i : i + 1], eb.Quadratic(), batched=False)
            clipped = torch.clamp(x[i] + solved(free, eps).zeta[0], 0.0, 1.0) - x[i]
            assert value >= np.sum((residual[i] + jacobian[i] @ clipped.numpy()) ** 2) * (1.0 - 1e-9)
            if found.exact[i]:
                claimed += 1
                assert value == pytest.approx(best, rel=1e-6)
                assert found.kkt[i] <= 1e-7
            else:
                assert found.kkt[i].isnan()
    assert 5 < claimed < 36


def test_with_no_residual_the_way_that_has_room_is_taken():
    """±η are equal; where only one of them is inside the bounds, it is exact."""
    layer = nn.Linear(4, 3, bias=False).double()
    x = torch.full((2, 4), 0.05, dtype=torch.float64)
    x[1] = 0.95
    layer.weight.data = torch.rand(3, 4, generator=generator(0), dtype=torch.float64) + 0.1
    for p in (1.0, 2.0):
        result = eb.recipe("quadratic-lp", p=p, eps=0.4, bounds=(0.0, 1.0))(layer, x)
        assert result.exact.all()
        assert (result.perturbation[0] >= 0).all()
        assert (result.perturbation[1] <= 0).all()
        assert result.norm.tolist() == pytest.approx([0.4, 0.4])
