"""Perturbed inputs on the lattice of 8-bit images: inside the set, judged there, and the same when read from a file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import epsball as eb
from epsball import networks
from epsball.data import load

LEVELS = 255


def eight_bit(count: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(LEVELS + 1, (count, *shape), generator=generator).to(dtype) / LEVELS


def on_lattice(x: Tensor, levels: int = LEVELS) -> bool:
    return bool(torch.equal((x * levels).round() / levels, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_points_are_on_the_lattice_and_inside_the_set(p, weighted, dtype):
    x = eight_bit(20, (3, 4, 4), dtype=dtype)
    weights = torch.rand(3, 4, 4, dtype=dtype) * 2 if weighted else None
    if weights is not None:
        weights[0, 0, 0] = 0.0
    eps = torch.linspace(0.001, 0.2, 20, dtype=dtype)
    ball = eb.LpBall(p=p, eps=eps, bounds=(0.0, 1.0), weights=weights, lattice=LEVELS)
    eta = ball.project(torch.randn(x.shape, dtype=dtype) * 0.1, x)
    placed = ball.place(x, eta)
    assert on_lattice(placed)
    assert bool(ball.contains(placed - x, x).all())
    assert float(placed.min()) >= 0
    assert float(placed.max()) <= 1
    if weights is not None:
        assert torch.equal(placed[:, 0, 0, 0], x[:, 0, 0, 0])


def test_for_p_inf_the_nearest_point_of_every_entry_is_taken():
    x = eight_bit(5, (6,), dtype=torch.float64)
    for steps in (1, 4, 8):
        ball = eb.LpBall(eps=steps / LEVELS, bounds=(0.0, 1.0), lattice=LEVELS)
        eta = torch.randn(5, 6, dtype=torch.float64) * 0.05
        placed = ball.place(x, eta)
        for i, j in itertools.product(range(5), range(6)):
            points = [
                k / LEVELS for k in range(LEVELS + 1) if abs(k / LEVELS - float(x[i, j])) <= steps / LEVELS + 1e-9
            ]
            wanted = min(points, key=lambda v: abs(v - float(x[i, j] + eta[i, j])))
            assert abs(float(placed[i, j]) - wanted) < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 10_000), st.integers(1, 8))
def test_no_entry_that_fits_is_left_behind(p, seed, steps):
    """Rounded towards x, then up where that is nearer, in order of the remainder, until the norm is spent."""
    x = torch.full((1, 4), 0.5, dtype=torch.float64) * 8 / 8
    generator = torch.Generator().manual_seed(seed)
    eta = torch.randn(1, 4, generator=generator, dtype=torch.float64) * 0.2
    eps = steps / 8
    ball = eb.LpBall(p=p, eps=eps, bounds=(0.0, 1.0), lattice=8)
    eta = ball.project(eta, x)
    found = ((ball.place(x, eta) - x) * 8).round()[0]
    t = (eta * 8)[0]
    low = torch.floor(t.abs() + 1e-5)
    order = sorted(range(4), key=lambda j: float(low[j] - t[j].abs()))
    current = low.clone()
    for j in order:
        raised = current.clone()
        raised[j] += 1
        if float(t[j].abs() - low[j]) < 0.5 or float(raised.norm(p=p)) > eps * 8 * (1 + 1e-5):
            break
        current = raised
    assert torch.equal(found, (t.sign() * current).clamp(-4, 4) + 0.0)


@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "alg1-10", "deepfool", "best", "nearest", "random-linf", "linear-pixel-3"]
)
def test_every_recipe_returns_points_of_the_lattice_and_judges_them(name):
    data = load("digits", split="test").head(24)
    levels = 16  # digits have 17 grey values
    model = networks.load("digits-cnn")
    budget = {} if name in ("deepfool", "nearest") else {"eps": 0.9 if "pixel" in name else 2 / 16}
    result = eb.recipe(name, bounds=(0.0, 1.0), lattice=levels, **budget)(model, data.x, data.target)
    assert on_lattice(result.perturbed, levels)
    with torch.no_grad():
        wrong = model(result.perturbed).argmax(1) != data.target
    assert torch.equal(wrong, result.success)
    assert bool(result.success.any())
    if budget and "pixel" not in name:
        assert float(result.norm.max()) <= 2 / 16 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("name", ["pgd", "deepfool", "nearest", "best"])
def test_whole_attacks_on_inputs_that_are_on_the_lattice_up_to_rounding(name, p, frozen, dtype):
    """As float32 images are after a cast to float64, with frozen entries, and with inputs misclassified already."""
    data = load("digits", split="test").head(30)
    x = ((data.x.float() * LEVELS).round() / LEVELS).to(dtype)
    model = networks.load("digits-cnn").to(dtype)
    target = data.target.clone()
    target[:3] = (target[:3] + 1) % 10
    weights = torch.ones(x.shape[1:], dtype=dtype)
    if frozen:
        weights[0, :2] = 0.0
    budget = {} if name in ("deepfool", "nearest") else {"eps": {1.0: 4.0, 2.0: 1.0}.get(p, 0.1)}
    result = eb.recipe(name, p=p, bounds=(0.0, 1.0), weights=weights, lattice=LEVELS, **budget)(model, x, target)
    assert not {eb.Status.CONSTRAINT_VIOLATED, eb.Status.NON_FINITE} & set(result.status)
    assert int(result.success.sum()) >= 10
    if frozen:
        assert torch.equal(result.perturbation[:, 0, :2], torch.zeros_like(x[:, 0, :2]))
    if name != "pgd":  # which begins at a random point
        assert set(result.status[:3]) == {eb.Status.ALREADY}
    assert float((result.perturbed * LEVELS - (result.perturbed * LEVELS).round()).abs().max()) < 1e-4


def test_group_attacks_change_no_group_by_rounding():
    data = load("digits", split="test").head(30)
    x = ((data.x.float() * LEVELS).round() / LEVELS).double()
    attack = eb.recipe("linear-pixel-3", eps=0.9, bounds=(0.0, 1.0), lattice=LEVELS)
    result = attack(networks.load("digits-cnn").double(), x, data.target)
    assert eb.Status.CONSTRAINT_VIOLATED not in result.status
    assert int((result.perturbation != 0).flatten(1).sum(1).max()) <= 3
    assert int(result.success.sum()) > 10


@pytest.mark.parametrize("name", ["deepfool", "nearest"])
def test_eps_pulls_no_smallest_perturbation_back(name):
    data = load("digits", split="test").head(30)
    model, x = networks.load("digits-cnn"), (data.x * LEVELS).round() / LEVELS
    free, limited = (
        eb.recipe(name, eps=eps, bounds=(0.0, 1.0), lattice=LEVELS)(model, x, data.target) for eps in (math.inf, 0.05)
    )
    torch.testing.assert_close(free.perturbed, limited.perturbed)
    assert eb.Status.BEYOND in limited.status
    assert bool((limited.success == (free.success & (free.norm <= 0.05 + 1e-6))).all())


@pytest.mark.parametrize("eps", [0.0313725, 0.117647])
def test_a_budget_just_below_a_step_of_the_lattice_is_kept(eps):
    x = eight_bit(20, (1, 8, 8), 1, torch.float64)
    ball = eb.LpBall(eps=eps, bounds=(0.0, 1.0), lattice=LEVELS)
    placed = ball.place(x, torch.full_like(x, eps))
    assert bool(ball.contains(placed - x, x).all())


def test_no_power_overflows():
    x = torch.full((1, 4), 128 / 255)
    ball = eb.LpBall(p=40.0, eps=30.3 / 255, bounds=(0.0, 1.0), lattice=LEVELS)
    eta = torch.tensor([[25.8, 25.9, 3.0, 0.2]]) / 255
    assert ((ball.place(x, eta) - x) * 255).round().tolist() == [[26.0, 26.0, 3.0, 0.0]]


@pytest.mark.parametrize("eps", [1 / 16, 2 / 16])
def test_success_is_not_below_that_of_rounding_afterwards(eps):
    data = load("digits", split="test")
    model = networks.load("digits-cnn")
    for name in ("alg1-10", "pgd", "best"):
        plain = eb.recipe(name, eps=eps, bounds=(0.0, 1.0))(model, data.x, data.target).perturbed
        ball = eb.LpBall(eps=eps, bounds=(0.0, 1.0), lattice=16)
        with torch.no_grad():
            rounded = model(ball.place(data.x, plain - data.x)).argmax(1) != data.target
        found = eb.recipe(name, eps=eps, bounds=(0.0, 1.0), lattice=16)(model, data.x, data.target)
        assert int(found.success.sum()) >= int(rounded.sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.LpBall(eps=0.1, lattice=255), "expected finite numbers as bounds for lattice=255"),
        (lambda: eb.LpBall(eps=0.1, bounds=(0.0, 1.0), lattice=0), "expected lattice as an integer >= 1"),
        (
            lambda: eb.recipe("fgsm", eps=0.1, bounds=(0.0, 1.0), lattice=255)(
                networks.load("digits-cnn"), torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
            ),
            "expected x on the lattice of 255 steps",
        ),
    ],
)
def test_lattices_that_cannot_be_are_refused(make, message):
    with pytest.raises(eb.InputError, match=message):
        make()


def test_pictures_read_back_fool_the_model_as_the_rows_say(tmp_path: Path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    from epsball.experiments.config import RunConfig
    from epsball.experiments.runner import run

    digits = load("digits", split="test").head(30)
    pictures = (digits.x * LEVELS).round() / LEVELS
    np.savez(tmp_path / "data.npz", x=pictures.numpy(), y=digits.target.numpy())
    config = RunConfig(
        command="attack",
        model="digits-cnn",
        attacks=("alg1-10", "best"),
        eps=(8 / 255, 20 / 255),
        passes=20,
        data=str(tmp_path / "data.npz"),
        bounds=(0.0, 1.0),
        lattice=255,
        save="png",
    )
    run(config, tmp_path / "out")
    model = networks.load("digits-cnn")
    rows = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    checked = 0
    for row in rows:
        if abs(row["eps"] - 20 / 255) < 1e-9:
            path = tmp_path / "out" / "png" / row["attack"] / f"{row['sample_id']:06d}.png"
            x = torch.from_numpy(np.asarray(image.open(path)).copy()).float()[None, None] / 255
            with torch.no_grad():
                assert (int(model(x).argmax()) != row["target"]) == row["success"], path.name
            assert float((x - pictures[row["sample_id"]]).abs().max()) <= 20 / 255 + 1e-6
            checked += 1
    assert checked == 60


def test_pictures_without_the_lattice_are_refused():
    from epsball.experiments.config import RunConfig

    with pytest.raises(eb.InputError, match=r"expected save as 'png'.*lattice=255"):
        RunConfig(command="attack", model="digits-cnn", attacks=("fgsm",), eps=(0.1,), save="png")
