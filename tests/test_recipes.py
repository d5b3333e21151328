"""The catalogue: every recipe on small networks, judged from the returned tensor alone, and what each name composes."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from epsball import working_set
from epsball.errors import Status
from epsball.recipes import find
from helpers import (
    BUILDERS,
    CLASSES,
    SHAPE,
    Counting,
    Failing,
    cases,
    images,
    is_random,
    labels,
    network,
    np_gain,
    np_norm,
    np_success,
    scores,
    surrogates,
)

ALL = cases(1.0, 1.5, 2.0, math.inf)
TWO = cases(2.0, math.inf)
ONE = cases(math.inf)
by_name = {"ids": str}
TOL = {torch.float32: 1e-5, torch.float64: 1e-9}


# ------------------------------------------------------------------------------------ every result, measured again


@pytest.mark.parametrize(
    ("net", "dtype"), [("tanh", torch.float64), ("relu", torch.float32), ("lenet", torch.float32)], ids=str
)
@pytest.mark.parametrize("case", ALL, **by_name)
def test_every_number_is_that_of_the_returned_tensor(case, net, dtype):
    model = network(net, 0, dtype)
    x = images(6, seed=3, dtype=dtype)
    target = case.target(model, x, wrong=1)
    clean = scores(model, x).double().numpy()
    for bounds in (None, (0.0, 1.0)):
        attack = case.attack(net, dtype, bounds=bounds)
        result = attack(model, x, target, seed=5)

        assert result.perturbed.dtype == result.perturbation.dtype == dtype
        assert result.perturbed.shape == x.shape
        assert not result.perturbed.requires_grad
        torch.testing.assert_close(result.perturbation, result.perturbed - x, rtol=0, atol=0)
        if bounds is not None:
            assert result.perturbed.min() >= 0.0
            assert result.perturbed.max() <= 1.0

        # The set, in NumPy: no entry of a subtraction is more exact than the rounding of its operands.
        eta = result.perturbed.double().numpy() - x.double().numpy()
        rounding = np_norm(np.full(math.prod(SHAPE), 2.0 * torch.finfo(dtype).eps), case.p)
        size = np.array([np_norm(e, case.p) for e in eta])
        np.testing.assert_allclose(result.norm.double().numpy(), size, rtol=10 * TOL[dtype], atol=rounding)
        if attack.formulation.budgeted:
            assert (size <= case.eps * (1.0 + TOL[dtype]) + rounding).all()
        if case.row.family == "groups":
            changed = (np.abs(eta).max(1) > 0).reshape(len(x), -1).sum(1)
            assert (changed <= attack.constraint.k).all()
            assert (changed > 0).any()

        # Success, gain and outputs from a call of the model past the library.
        outputs = scores(model, result.perturbed)
        torch.testing.assert_close(result.outputs, outputs, rtol=1e3 * TOL[dtype], atol=1e2 * TOL[dtype])
        raw, truth = outputs.double().numpy(), target.double().numpy() if target.is_floating_point() else target.numpy()
        success = np_success(attack.objective, raw, truth, clean)
        np.testing.assert_array_equal(result.success.numpy(), success)
        np.testing.assert_allclose(
            result.gain.double().numpy(),
            np_gain(attack.objective, raw, truth, clean),
            rtol=1e3 * TOL[dtype],
            atol=1e2 * TOL[dtype],
        )

        assert len(result.status) == len(result) == len(x)
        untouched = np.abs(eta).reshape(len(x), -1).max(1) == 0
        for status, fooled, still in zip(result.status, success, untouched, strict=True):
            assert status.ok == fooled
            assert (status is Status.ALREADY) == (fooled and still)
            assert status in (Status.SUCCESS, Status.ALREADY, Status.STANDS, Status.INFEASIBLE)
        assert result.seconds > 0
        assert (result.jvps == 0).all() or isinstance(attack.local_model, eb.Quadratic)


def test_the_budgets_of_these_tests_tell_strong_from_weak():
    """Guard of the test above: with nothing or everything fooled, it would not see a wrong success flag."""
    model, x = network("tanh"), images(6, seed=3)
    target = labels(model, x)
    for case in cases(1.5, 2.0, math.inf):
        crafted = case.row.formulation.uses_model and "surrogates" not in case.row.options
        if case.row.needs_eps and crafted and case.classifies:
            assert 0 < case.attack(bounds=(0.0, 1.0))(model, x, target).success.sum() < len(x), str(case)


# ---------------------------------------------------------------------------------------------- counting from outside


@pytest.mark.parametrize("case", TWO, **by_name)
def test_passes_are_those_counted_from_outside(case):
    """Every row that went through the model is in `forwards`, but for the probes: a sample alone and beside another."""
    model, x = network("lenet"), images(6, seed=3)
    target = case.target(model, x, wrong=1)
    attack = case.attack("lenet", bounds=(0.0, 1.0))
    transfers = bool(attack.objective.surrogates)
    judge = Counting(model.eval())
    crafters = [Counting(m.eval()) for m in attack.objective.surrogates]
    if transfers:
        attack = case.attack("lenet", bounds=(0.0, 1.0), surrogates=crafters)
    result = attack(judge, x, target)
    probe, single = (1, 2) if attack.objective.needs_clean else (3, 3)
    if transfers:
        # forwards: those through the surrogates, side by side, and the verification through the judged model.
        assert judge.forwards == len(x) + probe
        for crafter in crafters:
            assert crafter.forwards + len(x) == int(result.forwards.sum()) + 3  # the probes of each surrogate
            assert crafter.backwards == int(result.backwards.sum())
        assert judge.backwards == 0
    else:
        # A batch may differentiate a class for samples that do not need it, where that is faster than leaving them
        # out; what counts is what a sample takes by itself.
        pieces = attack.objective in (eb.Margin("all"), eb.ByTarget(eb.Margin("all"))) and attack.schedule.steps > 1
        exact = not pieces and not isinstance(attack.local_model, eb.Quadratic)
        seen = judge.forwards - probe, judge.backwards
        told = int(result.forwards.sum()), int(result.backwards.sum())
        assert seen == told if exact else (seen[0] >= told[0] and seen[1] >= told[1])
        for i in range(len(x)):
            alone = Counting(model)
            one = attack(alone, x[i : i + 1], target[i : i + 1], sample_id=torch.tensor([i]))
            assert alone.forwards == int(one.forwards) + single
            assert alone.backwards == int(one.backwards)
            assert int(one.forwards) == int(result.forwards[i])
            assert int(one.backwards) == int(result.backwards[i])
    # However class gradients are batched, the passes reported are the same.
    inner = attack(model, x, target)
    assert torch.equal(inner.forwards, result.forwards)
    assert torch.equal(inner.backwards, result.backwards)


# ------------------------------------------------------------------------------------ alone, in any batch, in any order


@pytest.mark.parametrize("case", TWO, **by_name)
def test_a_sample_gets_the_same_perturbation_alone_in_any_batch_and_order(case, monkeypatch):
    model, x = network("tanh"), images(6, seed=4)
    target, ids = case.target(model, x, wrong=2), torch.tensor([7, 3, 900, 0, 41, 5])
    attack = case.attack(bounds=(0.0, 1.0))
    whole = attack(model, x, target, seed=3, sample_id=ids)

    def check(rows, result):
        torch.testing.assert_close(result.perturbed, whole.perturbed[rows], rtol=0, atol=1e-12)
        assert result.status == tuple(whole.status[i] for i in rows)
        assert torch.equal(result.forwards, whole.forwards[rows])
        assert torch.equal(result.backwards, whole.backwards[rows])

    for rows in ([[i] for i in range(6)], [[4, 1], [5, 0, 3, 2]], [[5, 4, 3, 2, 1, 0]], [[0, 1, 2, 3, 4, 5]]):
        for part in rows:
            check(part, attack(model, x[part], target[part], seed=3, sample_id=ids[part]))
    with monkeypatch.context() as patch:
        patch.setattr(working_set, "_BYTES", 1)  # every sample passes through the model by itself
        check(range(6), attack(model, x, target, seed=3, sample_id=ids))

    numbered = attack(model, x, target, seed=3, sample_id=torch.arange(6))
    torch.testing.assert_close(attack(model, x, target, seed=3).perturbed, numbered.perturbed, rtol=0, atol=0)
    other = attack(model, x, target, seed=4, sample_id=ids)
    if is_random(case, attack):
        differs = (other.perturbed != whole.perturbed).flatten(1).any(1)
        moves = torch.tensor([status is not Status.ALREADY for status in whole.status])
        assert differs.any()
        # Draws are per sample: one input under many ids is perturbed in many ways.
        many = attack(model, x[[0] * 8], target[[0] * 8], seed=3, sample_id=torch.arange(8))
        assert len(torch.unique(many.perturbed, dim=0)) > 1
        if case.p != math.inf or not attack.formulation.uses_model:  # sign steps forget where they began
            assert differs[moves].all()
            assert len(torch.unique(many.perturbed, dim=0)) == 8
    else:
        torch.testing.assert_close(other.perturbed, whole.perturbed, rtol=0, atol=0)


@pytest.mark.parametrize("case", TWO, **by_name)
def test_the_global_generator_neither_matters_nor_moves(case):
    model, x = network("tanh"), images(3)
    target, attack = case.target(model, x), case.attack()
    torch.manual_seed(1)
    first, state = attack(model, x, target), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    torch.testing.assert_close(attack(model, x, target).perturbed, first.perturbed, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", TWO, **by_name)
def test_over_a_grid_is_as_separate_calls(case):
    model, x = network("lenet"), images(5, seed=6)
    target = case.target(model, x, wrong=0)
    attack = case.attack("lenet", bounds=(0.0, 1.0), eps=case.eps)
    each = torch.linspace(0.2, 1.5, 5, dtype=x.dtype) * case.eps
    grid = [0.0, 0.5 * case.eps, each, 2.0 * case.eps]
    together = attack.over(model, x, target, eps=grid, seed=8)
    assert len(together) == len(grid)
    for eps, result in zip(grid, together, strict=True):
        alone = attack.with_eps(eps)(model, x, target, seed=8)
        torch.testing.assert_close(result.perturbed, alone.perturbed, rtol=0, atol=1e-12)
        assert result.status == alone.status
        for field in ("success", "forwards", "backwards"):
            assert torch.equal(getattr(result, field), getattr(alone, field)), field
        for field in ("gain", "norm", "outputs"):
            torch.testing.assert_close(getattr(result, field), getattr(alone, field), rtol=0, atol=1e-12)
    # One budget a sample is as each sample with its own number; in a batch as large, for rounding to be the same.
    for i in range(len(x)):
        one = attack.with_eps(float(each[i]))(model, x, target, seed=8)
        torch.testing.assert_close(one.perturbed[i], together[2].perturbed[i], rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------------------------- batches of no size


@pytest.mark.parametrize("case", ONE, **by_name)
def test_an_empty_batch(case):
    model = network("tanh")
    result = case.attack()(model, images(0), torch.zeros(0, dtype=torch.int64))
    assert len(result) == 0
    assert result.status == ()
    assert result.perturbed.shape == result.perturbation.shape == (0, *SHAPE)
    for field in ("success", "gain", "norm", "forwards", "backwards", "jvps"):
        assert getattr(result, field).shape == (0,)
    assert result.success.dtype == torch.bool
    assert "none" in repr(result)


@pytest.mark.parametrize("case", ONE, **by_name)
def test_a_batch_of_one_without_labels_takes_the_models_own(case):
    model, x = network("tanh"), images(1)
    if case.row.task != "classification":
        pytest.skip("without a target it is the squared error to the model's own output")
    attack = case.attack()
    torch.testing.assert_close(
        attack(model, x).perturbed, attack(model, x, labels(model, x)).perturbed, rtol=0, atol=1e-12
    )


# ----------------------------------------------------------------------------- the user's model comes back as it was


class Delicate(nn.Module):
    """Batch norm, dropout, mixed modes and flags, hooks, a gradient in flight: all of it must survive an attack."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.9)
        self.first, self.second = nn.Linear(math.prod(SHAPE), 12), nn.Linear(12, CLASSES)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
            self.norm.weight.fill_(1.0)
            self.norm.running_mean.copy_(torch.tensor([0.4, 0.5, 0.6]))
            self.norm.running_var.copy_(torch.tensor([0.2, 0.1, 0.3]))
        self.to(dtype)
        self.train()
        self.norm.eval()  # as in fine-tuning: the root trains, one layer does not
        self.second.bias.requires_grad_(False)
        self.first.weight.grad = torch.full_like(self.first.weight, 0.25)
        self.modes_seen = set()
        self.second.register_forward_hook(self.look)
        self.first.register_full_backward_hook(lambda module, ins, outs: None)
        self.first.register_forward_pre_hook(lambda module, ins: None)

    def look(self, module, ins, outs):
        self.modes_seen.add((self.training, self.norm.training, self.dropout.training, torch.is_grad_enabled()))

    def forward(self, x):
        return self.second(self.dropout(torch.tanh(self.first(self.norm(x).flatten(1)))))

    def record(self):
        """Everything that must not change, by module and parameter."""
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return {
            "modes": {name: m.training for name, m in self.named_modules()},
            "flags": {name: p.requires_grad for name, p in self.named_parameters()},
            "grads": {
                name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in self.named_parameters()
            },
            "state": {name: t.clone() for name, t in self.state_dict().items()},
            "hooks": {name: [list(getattr(m, h).values()) for h in hooks] for name, m in self.named_modules()},
            "leaf hooks": {name: p._backward_hooks for name, p in self.named_parameters()},
            "parameters": {name: id(p) for name, p in self.named_parameters()},
        }

    def assert_as(self, before):
        after = self.record()
        for kind in ("modes", "flags", "hooks", "leaf hooks", "parameters"):
            assert after[kind] == before[kind], kind
        for name, old in before["grads"].items():
            new = after["grads"][name]
            assert (new is None) == (old is None), name
            if old is not None:
                assert new[0] == old[0], name
                assert torch.equal(new[1], old[1]), name
        for name, old in before["state"].items():
            assert torch.equal(after["state"][name], old), name


@pytest.mark.parametrize("case", ONE, **by_name)
def test_the_model_comes_back_as_it_was(case):
    model, x = Delicate(), images(4)
    target = case.target(model, x, wrong=0)
    before = model.record()
    options = {"surrogates": [model, Delicate()]} if "surrogates" in case.row.options else {}
    attack = case.attack(**options)
    model.modes_seen.clear()
    x.requires_grad_()
    result = attack(model, x, target)
    model.assert_as(before)
    assert x.grad is None
    assert x.requires_grad
    for field in ("perturbed", "perturbation", "gain", "norm", "outputs"):  # nothing holds on to the caller's graph
        assert not getattr(result, field).requires_grad, field
    # Inside, everything evaluated: no dropout, no batch statistics.
    assert {seen[:3] for seen in model.modes_seen} == {(False, False, False)}
    again = attack(model.eval(), x.detach(), target)
    torch.testing.assert_close(result.perturbed, again.perturbed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("case", ONE, **by_name)
def test_the_model_comes_back_as_it_was_when_the_attack_raises(case, fails_at):
    inner, x = Delicate(), images(4)
    target = case.target(inner, x)
    model, surrogate = Failing(inner, fails_at), Failing(Delicate(), fails_at)
    transfers = "surrogates" in case.row.options
    attack = case.attack(**({"surrogates": [surrogate]} if transfers else {}))
    sound = Failing(Delicate(), -1)
    case.attack(**({"surrogates": [Delicate()]} if transfers else {}))(sound, x, target)
    for failing in (model, surrogate):
        failing.inner.train()
        failing.inner.norm.eval()
        failing.train(True)
        failing.inner.norm.eval()
    before, other = inner.record(), surrogate.inner.record()
    if sound.calls < fails_at and not transfers:
        attack(model, x, target)  # a baseline that never gets so far
    else:
        with pytest.raises(RuntimeError, match="the model fails here"):
            attack(model, x, target)
    inner.assert_as(before)
    surrogate.inner.assert_as(other)
    assert model.training


@pytest.mark.parametrize("case", ONE, **by_name)
def test_works_under_no_grad_and_keeps_the_mode(case):
    model, x = network("tanh"), images(3)
    target, attack = case.target(model, x), case.attack()
    with torch.no_grad():
        inside = attack(model, x, target)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside.perturbed, attack(model, x, target).perturbed, rtol=0, atol=0)
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------------ what names mean


def test_every_row_explains_itself():
    rows = eb.recipes()
    assert len({row.name for row in rows}) == len(rows)
    assert len({row.summary for row in rows}) == len(rows)
    for row in rows:
        assert row.reference
        assert row.task in ("classification", "regression", "any")
        assert row.family in ("ball", "groups")


def composed(name, **options):
    attack = eb.recipe(name, **options)
    return attack.objective, attack.schedule, attack.formulation


def test_the_table_of_the_design():
    """Row by row: what a recipe's name promises."""
    assert {row.name for row in eb.recipes()} >= {
        *("fgsm", "bim", "pgd", "pgd-paper", "deepfool", "targeted", "ensemble", "alg1", "alg1-T", "alg2"),
        *("random-l1", "random-l2", "random-linf", "random-pixel-T"),
    }
    everything = {"eps": 0.1}
    for name, objective, steps in (
        ("fgsm", eb.CrossEntropy(), 1),
        ("alg1", eb.Margin("all"), 1),
        ("alg2", eb.TrueScore(), 1),
        ("bim", eb.CrossEntropy(), 10),
        ("alg1-7", eb.Margin("all"), 7),
    ):
        found, schedule, formulation = composed(name, **everything)
        assert found == objective
        assert schedule.shares() == pytest.approx((1.0 / steps,) * steps)
        assert schedule.update == "accumulate"
        assert not schedule.random_start
        assert not any(schedule.dithers())
        assert formulation == eb.NormConstrained()

    objective, schedule, _ = composed("pgd", steps=8, **everything)
    assert objective == eb.CrossEntropy()
    assert schedule.update == "project"
    assert schedule.random_start
    assert schedule.shares() == pytest.approx((2.5 / 8,) * 8)

    objective, schedule, _ = composed("pgd-paper", steps=4, **everything)
    assert objective == eb.CrossEntropy()
    assert schedule.dithers() == (1.0, 0.0, 0.0, 0.0)
    assert schedule.shares() == pytest.approx((0.25,) * 4)

    objective, schedule, formulation = composed("deepfool")
    assert objective == eb.Margin("all")
    assert schedule.steps == 50
    assert formulation == eb.MinNorm(overshoot=0.02)
    assert schedule.stop == "success"

    objective, schedule, _ = composed("targeted", label=3, dither=0.1, **everything)
    assert isinstance(objective, eb.TargetedMargin)
    assert objective.label == 3
    assert set(schedule.dithers()) == {0.1}
    assert composed("alg1-3", classes="runner-up", **everything)[0] == eb.Margin("runner-up")


def test_random_baselines_spend_the_budget_exactly():
    model, x = network("tanh"), images(40)
    pixel = eb.recipe("random-pixel-3", eps=0.3)(model, x).perturbation
    changed = (pixel != 0).all(1).flatten(1)
    assert (changed.sum(1) == 3).all()  # three whole pixels, each channel at plus or minus eps
    torch.testing.assert_close(pixel[pixel != 0].abs(), torch.full((40 * 9,), 0.3, dtype=x.dtype))
    linf = eb.recipe("random-linf", eps=0.3)(model, x).perturbation
    torch.testing.assert_close(linf.abs(), torch.full_like(linf, 0.3))
    l2 = eb.recipe("random-l2", eps=0.3)(model, x)
    torch.testing.assert_close(l2.norm, torch.full((40,), 0.3, dtype=x.dtype))
    l1 = eb.recipe("random-l1", eps=0.3)(model, x)
    torch.testing.assert_close(l1.norm, l1.perturbation.abs().flatten(1).sum(1))
    torch.testing.assert_close(l1.norm, torch.full((40,), 0.3, dtype=x.dtype))
    for eta in (pixel, linf, l2.perturbation, l1.perturbation):
        share = float((eta > 0).sum() / (eta != 0).sum())
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(int((eta != 0).sum()))
    # A Gaussian direction is not a scaled coin, and all pixels have the same chance.
    assert float(l2.perturbation.abs().std()) > 0.2 * float(l2.perturbation.abs().mean())
    assert len(torch.unique(changed.nonzero()[:, 1])) > 40


def test_group_recipes_take_groups_and_count_them():
    model, x = network("tanh"), images(3)
    attack = eb.recipe("random-pixel-2", eps=0.3, groups=eb.channels())
    eta = attack(model, x).perturbation
    assert ((eta != 0).flatten(2).any(2).sum(1) == 2).all()
    assert attack.constraint.k == 2


@pytest.mark.parametrize("name", ["linear-pixel-3", "quadratic-pixel", "random-pixel-3"])
def test_group_recipes_change_single_entries_of_flat_samples(name):
    """Tabular data (B, M): without groups each entry is one, and the best are those with the largest slopes."""
    x = torch.rand(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = nn.Linear(9, 3).double()
    slopes = torch.tensor([0.1, 3.0, 0.2, -2.0, 0.3, 0.0, 1.0, -0.4, 0.5], dtype=torch.float64)
    layer.weight.data = torch.stack([slopes, -slopes, torch.zeros_like(slopes)])
    k = {"k": 3} if name == "quadratic-pixel" else {}
    target = torch.full((4, 3), -50.0, dtype=torch.float64)
    target[:, 1] = 50.0  # raising the first score and lowering the second always moves the outputs away
    eta = eb.recipe(name, eps=0.1, **k)(layer, x, target).perturbation
    assert (eta != 0).sum(1).tolist() == [3] * 4
    assert eta[eta != 0].abs().numpy() == pytest.approx(0.1, abs=1e-12)
    if name != "random-pixel-3":
        assert (eta[:, [1, 3, 6]] != 0).all()
    own = eb.recipe(name, eps=0.1, groups=torch.arange(9), **k)(layer, x, target).perturbation
    torch.testing.assert_close(own, eta, rtol=0, atol=0)


def test_group_recipes_take_weights():
    """Of a linear model: the pixels with the largest weighted slopes, each entry at the end of its own reach."""
    x = 0.2 + 0.6 * images(3)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 2).double())
    weights = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[0] = 0.0
    target = labels(layer, x)
    result = eb.recipe("linear-pixel-1", k=2, eps=0.1, weights=weights, stop="never")(layer, x, target)
    w = layer[1].weight.detach().double().numpy()
    for i in range(3):
        slope = (w[1 - int(target[i])] - w[int(target[i])]).reshape(SHAPE)
        gain = (np.abs(slope) * weights.numpy()).sum(0).ravel()
        best = np.zeros(64, dtype=bool)
        best[np.argsort(gain)[-2:]] = True
        expected = np.where(best.reshape(8, 8), np.sign(slope) * 0.1 * weights.numpy(), 0.0)
        np.testing.assert_allclose(result.perturbation[i].numpy(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.norm, torch.full((3,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_weighted_quadratic_pixel_is_the_best_of_all_corners_of_all_pixels(bounds):
    generator = torch.Generator().manual_seed(2)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 5)).double()
    x = torch.rand(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    y = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(3, 2, 2, generator=generator, dtype=torch.float64)
    weights[1, 0, 0] = 0.0
    result = eb.recipe("quadratic-pixel", eps=0.7, bounds=bounds, weights=weights)(layer, x, y)
    w, b = (parameter.detach().numpy() for parameter in layer[1].parameters())
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    for i in range(4):
        best = -np.inf
        for row, column in itertools.product(range(2), range(2)):
            for signs in itertools.product((-1.0, 1.0), repeat=3):
                moved = x[i].numpy().copy()
                moved[:, row, column] += 0.7 * weights[:, row, column].numpy() * np.array(signs)
                best = max(best, np.sum((w @ moved.clip(low, high).ravel() + b - y[i].numpy()) ** 2))
        assert float(result.gain[i]) == pytest.approx(best, rel=1e-9)
    assert bool(result.exact.all())
    assert (result.perturbation[:, 1, 0, 0] == 0).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alg1-T", "T stands for a number of steps, e.g. 'alg1-10'."),
        ("alg1-t", "t stands for a number of steps, e.g. 'alg1-10'."),
        ("linear-lp", "T stands for a number of steps, e.g. 'linear-lp-10'."),
        ("random-pixel-T", "T stands for a number of groups, e.g. 'random-pixel-3'."),
        (
            "quadratic-l2",
            "p stands for a norm, which is given apart from the name, e.g. 'quadratic-lp' with p=2 (--p 2).",
        ),
        (
            "quadratic-l2-T",
            "T stands for a number of steps; p stands for a norm, which is given apart from the name, e.g. "
            "'quadratic-lp-10' with p=2 (--p 2).",
        ),
        (
            "linear-linf-7",
            "p stands for a norm, which is given apart from the name, e.g. 'linear-lp-7' with p=math.inf (--p inf).",
        ),
        ("random-lp", "p stands for a norm: 'random-l1', 'random-l2' or 'random-linf'."),
        ("pgd-7", "'pgd' takes the number of steps apart from its name: steps=7 (--steps 7)."),
        ("quadratic-pixel-4", "'quadratic-pixel' takes the number of groups apart from its name: k=4 (--k 4)."),
    ],
)
def test_letters_and_norms_in_names_are_explained(name, message):
    with pytest.raises(eb.InputError) as caught:
        eb.recipe(name, eps=0.1)
    assert str(caught.value) == f"unknown attack {name!r}; {message}"


@pytest.mark.parametrize("row", eb.recipes(), ids=lambda row: row.name)
def test_every_name_with_its_letter_says_a_name_that_exists(row):
    """What the catalogue prints, typed as it is: the error names a recipe that can be composed."""
    if not row.name.endswith("-T"):
        assert find(row.name)[0] is row
        return
    with pytest.raises(eb.InputError, match="T stands for a number of") as caught:
        find(row.name)
    (named,) = re.findall(r"e\.g\. '([^']+)'", str(caught.value))
    assert find(named)[0] is row


@pytest.mark.parametrize(
    ("name", "option", "meant"),
    [
        ("pgd", "epsilon", "eps"),
        ("pgd", "EPS", "eps"),
        ("pgd", "norm", "p"),
        ("pgd", "num_steps", "steps"),
        ("pgd", "step", "steps"),
        ("pgd", "clip_values", "bounds"),
        ("pgd", "bound", "bounds"),
        ("pgd", "weight", "weights"),
        ("targeted", "labels", "label"),
        ("ensemble", "surrogate", "surrogates"),
        ("alg1-10", "dithering", "dither"),
    ],
)
def test_a_near_miss_says_which_option_was_meant(name, option, meant):
    with pytest.raises(
        eb.InputError, match=f"unexpected option '{option}' for '{name}': did you mean {meant}\\? every"
    ):
        eb.recipe(name, **{option: 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "algl-10", "eps": 0.1}, r"unknown attack 'algl-10'; did you mean .*'alg1-10'"),
        ({"name": "deepfol"}, r"did you mean .*'deepfool'"),
        ({"name": "zzzzzz"}, r"choose one of: .*'?fgsm"),
        ({"name": "alg1-T", "eps": 0.1}, r"unknown attack 'alg1-T'; T stands for .*'alg1-10'"),
        ({"name": "alg1-10\n", "eps": 0.1}, "unknown attack"),
        ({"name": "alg1--3", "eps": 0.1}, "unknown attack"),
        ({"name": None, "eps": 0.1}, "unknown attack None"),
        ({"name": "alg1-0", "eps": 0.1}, "expected steps as an integer >= 1, got 0"),
        ({"name": "bim", "eps": 0.1, "steps": 0}, "expected steps as an integer >= 1, got 0"),
        ({"name": "bim", "eps": 0.1, "steps": 2.5}, "expected steps as an integer >= 1, got 2.5"),
        ({"name": "alg1-10", "eps": 0.1, "steps": 5}, "expected steps=10 .* got 5"),
        ({"name": "fgsm", "eps": 0.1, "steps": 3}, "'fgsm' takes one step, got steps=3"),
        ({"name": "fgsm"}, "expected eps for 'fgsm'"),
        ({"name": "fgsm", "eps": -0.1}, "expected eps >= 0 in the units of x, got -0.1"),
        ({"name": "fgsm", "eps": math.nan}, "expected eps >= 0"),
        ({"name": "fgsm", "eps": "0.1"}, "expected eps as a number"),
        ({"name": "fgsm", "eps": 0.1, "p": 0.5}, r"norm order p in \[1, inf\], got 0.5"),
        ({"name": "fgsm", "eps": 0.1, "p": math.nan}, "norm order p"),
        ({"name": "best", "eps": 0.1, "p": "inf"}, r"norm order p in \[1, inf\], got 'inf'; use 1, 2, math.inf"),
        ({"name": "fgsm", "eps": 0.1, "bounds": (1.0, 0.0)}, "lo < hi"),
        ({"name": "fgsm", "eps": 0.1, "bounds": 1.0}, "expected bounds as a pair"),
        (
            {"name": "fgsm", "eps": 0.1, "label": 3},
            "unexpected option 'label' for 'fgsm': every recipe takes p, eps.*apply.$",
        ),
        (
            {"name": "targeted", "eps": 0.1, "lable": 3},
            "unexpected option 'lable' for 'targeted': .*of its own it takes label",
        ),
        ({"name": "targeted", "eps": 0.1, "label": "worst"}, "expected label"),
        ({"name": "targeted", "eps": 0.1, "label": 1.5}, "expected label"),
        ({"name": "alg1-3", "eps": 0.1, "classes": 0}, "expected classes"),
        ({"name": "alg1-3", "eps": 0.1, "dither": -1.0}, "expected dither >= 0"),
        ({"name": "alg1-3", "eps": 0.1, "dither": (0.1, 0.1)}, "one for each of the 3 steps, got 2"),
        ({"name": "ensemble", "eps": 0.1}, "expected surrogates= for 'ensemble'"),
        ({"name": "ensemble", "eps": 0.1, "surrogates": []}, "at least one surrogate"),
        ({"name": "ensemble", "eps": 0.1, "surrogates": [3]}, "at least one surrogate"),
        ({"name": "alg1-3", "eps": 0.1, "restarts": 4}, "restarts without random_start, restart_corners or dither"),
        ({"name": "pgd", "eps": 0.1, "restarts": 0}, "expected restarts as an integer >= 1"),
        ({"name": "pgd", "eps": 0.1, "stop": "soon"}, "expected stop as"),
        ({"name": "random-l2", "eps": 0.1, "p": 1.0}, "expected p=2 for 'random-l2', got p=1.0"),
        (
            {"name": "random-pixel-3", "eps": 0.1, "p": 2.0},
            r"at most eps in each entry \(p = inf\), got p=2.0; leave p out",
        ),
        ({"name": "fgsm", "eps": 0.1, "groups": eb.pixels()}, "is no group recipe"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be_composed_is_refused(arguments, message):
    with pytest.raises(eb.InputError, match=message):
        eb.recipe(**arguments)


# --------------------------------------------------------------------------------------------------------- transfer


def test_ensemble_is_crafted_on_the_surrogates_and_judged_on_the_model():
    """One step of FGSM on the mean cross-entropy of the surrogates, written out with autograd."""
    model, x = network("tanh"), images(5)
    target = labels(model, x)
    others = surrogates("tanh", x.dtype)
    result = eb.recipe("ensemble", eps=0.05, steps=1, surrogates=others)(model, x, target)
    point = x.clone().requires_grad_()
    loss = sum(nn.functional.cross_entropy(m(point), target, reduction="sum") for m in others)
    (gradient,) = torch.autograd.grad(loss, point)
    torch.testing.assert_close(result.perturbed, x + 0.05 * gradient.sign(), rtol=0, atol=1e-12)
    assert torch.equal(result.success, scores(model, result.perturbed).argmax(1) != target)
    own = eb.recipe("fgsm", eps=0.05)(model, x, target)
    assert not torch.equal(own.perturbed, result.perturbed)


def test_ensemble_never_stops_early_because_the_judge_is_not_asked():
    model, x = network("tanh"), images(5)
    judge = Counting(model.eval())
    result = eb.recipe("ensemble", eps=0.05, steps=4, surrogates=surrogates("tanh", x.dtype))(
        judge, x, labels(model, x, wrong=0)
    )
    assert judge.calls == [1, 2, 5]  # the probe, alone and beside another sample, and the verification
    assert result.forwards.tolist() == [5] * 5
    assert result.backwards.tolist() == [4] * 5


def test_ensembles_of_one_logit_models():
    """Surrogates with one logit are two-class models, as the judged model is."""
    draw = torch.Generator().manual_seed(0)
    models = [nn.Linear(6, 1).double() for _ in range(3)]
    for m in models:
        m.weight.data = torch.randn(1, 6, generator=draw, dtype=torch.float64)
    x = torch.rand(4, 6, generator=draw, dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 1])
    result = eb.recipe("ensemble", eps=0.1, steps=1, surrogates=models[1:])(models[0], x, target)
    logits = [m(x).detach()[:, 0] for m in models[1:]]
    sign = 1.0 - 2.0 * target.double()  # class 0 falls by raising the logit
    slopes = [torch.sigmoid(sign * z)[:, None] * m.weight.detach() for z, m in zip(logits, models[1:], strict=True)]
    expected = 0.1 * sign[:, None] * sum(slopes).sign()
    torch.testing.assert_close(result.perturbation, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("net", sorted(BUILDERS))
def test_weights_freeze_what_the_user_says(net):
    model, x = network(net), images(3)
    weights = torch.ones(SHAPE, dtype=x.dtype)
    weights[1] = 0.0
    weights[2] = 2.0
    for case in TWO:
        if case.row.family == "ball":
            result = case.attack(net, weights=weights, bounds=(0.0, 1.0))(model, x, case.target(model, x))
            assert (result.perturbation[:, 1] == 0).all()
            scaled = result.perturbation[:, [0, 2]].numpy() / np.array([1.0, 2.0])[None, :, None, None]
            np.testing.assert_allclose(result.norm.numpy(), [np_norm(e, case.p) for e in scaled], rtol=1e-9, atol=1e-14)


def test_recipes_are_frozen_values():
    attack = eb.recipe("alg1-3", eps=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.schedule = eb.Schedule()
    assert "Margin" in repr(attack)
    assert "eps=0.1" in repr(attack)
