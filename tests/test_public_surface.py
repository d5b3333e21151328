"""The public surface as code outside the repository writes it, and how light the import is."""

import inspect
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import epsball as eb

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 10))
X = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 3])


def test_the_lines_of_the_design():
    ball = eb.LpBall(p=2.0, eps=0.5, bounds=(0.0, 1.0), weights=None)
    grp = eb.Groups(eb.pixels(channel_dim=1), k=1, eps=0.5, bounds=None)
    g = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    for allowed in (ball, grp):
        for eta in (
            allowed.lmo(g, X),
            allowed.project(g, X),
            allowed.smallest(g, torch.full((4,), 0.1), X),
            allowed.sample(X, [torch.Generator().manual_seed(i) for i in range(4)]),
        ):
            assert eta.shape == X.shape
            assert eta.dtype == X.dtype
        for eta in (allowed.lmo(g, X), allowed.project(g, X)):
            assert allowed.contains(eta, X).all()
        assert allowed.contains(g, X).shape == allowed.support(g, X).shape == (4,)
        assert not allowed.contains(100.0 * g, X).any()
        torch.testing.assert_close(allowed.support(g, X), (g * allowed.lmo(g, X)).flatten(1).sum(1))
    attack = eb.Attack(
        objective=eb.Margin(classes="all"),
        constraint=ball,
        local_model=eb.Linear(),
        formulation=eb.NormConstrained(),
        schedule=eb.Schedule(steps=10),
    )
    named = eb.recipe("alg1-10", p=math.inf, eps=0.1, steps=None, bounds=None)
    for made in (attack, named):
        result = made(MODEL, X, TARGET, seed=0, sample_id=None)
        assert result.perturbed.shape == result.perturbation.shape == X.shape
        for field in ("success", "gain", "norm", "forwards", "backwards", "jvps"):
            assert getattr(result, field).shape == (4,), field
        assert result.success.dtype == torch.bool
        assert len(result.status) == 4
        assert all(isinstance(status, eb.Status) for status in result.status)
        assert isinstance(result.seconds, float)
        assert (result.backwards >= 1).any()
    numbered = attack(MODEL, X, TARGET, seed=0, sample_id=torch.arange(4))
    torch.testing.assert_close(numbered.perturbed, attack(MODEL, X, TARGET, seed=0).perturbed)

    report = eb.robustness(MODEL, X, TARGET, p=math.inf)
    assert all(isinstance(value, float) for value in (report.rho1, report.rho2, report.eps99))
    assert report.distance.shape == report.r2.shape == report.relative.shape == (4,)
    assert issubclass(eb.InputError, ValueError)
    assert issubclass(eb.EpsballWarning, UserWarning)


def test_every_recipe_by_name_with_the_common_arguments():
    for row in eb.recipes():
        name = row.name.replace("-T", "-2")
        options = {"surrogates": [MODEL]} if "surrogates" in row.options else {}
        attack = eb.recipe(name, eps=0.1, steps=None, bounds=(0.0, 1.0), **options)
        assert isinstance(attack, eb.Attack)
        if row.task != "regression":
            assert len(attack(MODEL, X, TARGET)) == 4
        if not row.needs_eps:
            eb.recipe(name, **options)  # minimal-norm recipes need no budget
        else:
            with pytest.raises(eb.InputError, match=f"expected eps for '{name}'"):
                eb.recipe(name, **options)
        if row.family == "groups":
            eb.recipe(name, eps=0.1, groups=eb.pixels(channel_dim=1), k=1, **options)


def test_every_public_name_is_documented_and_there():
    names = {
        *("Attack", "AttackResult", "InputError", "EpsballWarning", "Status"),
        *("Margin", "TargetedMargin", "TrueScore", "CrossEntropy", "SquaredError", "Custom", "Ensemble", "Objective"),
        *("Linear", "NormConstrained", "MinNorm", "RandomPoint", "Schedule", "TargetModel"),
        *("LpBall", "Groups", "Partition", "ConstraintSet", "pixels", "patches", "channels"),
        *("recipe", "recipes", "Recipe"),
        *("robustness", "Robustness", "first_order_distance", "fooling_curve", "psnr"),
    }
    for name in names:
        assert inspect.getdoc(getattr(eb, name)), name
    assert eb.__version__


def test_arguments_are_named_as_in_the_vocabulary():
    called = inspect.signature(eb.Attack.__call__).parameters
    assert list(called)[1:4] == ["model", "x", "target"]
    assert {"seed", "sample_id"} <= set(called)
    composed = inspect.signature(eb.recipe).parameters
    assert next(iter(composed)) == "name"
    assert {"p", "eps", "steps", "bounds", "groups", "k"} <= set(composed)
    assert list(inspect.signature(eb.robustness).parameters)[:4] == ["model", "x", "target", "p"]
    assert list(inspect.signature(eb.LpBall).parameters) == ["p", "eps", "bounds", "weights", "lattice"]
    with pytest.raises(TypeError):
        eb.recipe("fgsm", 2.0, 0.1)  # a budget is never a bare number between others


def test_importing_is_light():
    """Only torch and numpy: everything else is imported by the function that needs it."""
    heavy = {
        *("cvxpy", "scipy", "sklearn", "matplotlib", "pandas", "pyarrow"),
        *("typer", "rich", "jinja2", "pooch", "PIL"),
    }
    code = "import sys, torch, numpy; before = set(sys.modules); import epsball; print(*(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in found.stdout.split()}
    assert "epsball" in loaded
    assert not loaded & heavy
