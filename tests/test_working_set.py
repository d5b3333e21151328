"""A batch passes through the model in parts where its tensors would be large, and nothing of the result says so."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import epsball as eb
from epsball import working_set
from epsball.target_model import TargetModel
from epsball.working_set import Largest, cut
from helpers import Counting, images, network


@pytest.fixture
def in_parts(monkeypatch):
    """Room for two samples of the network "tanh" at a time."""
    watched = largest_of(network("tanh").eval(), images(1, seed=0))
    monkeypatch.setattr(working_set, "_BYTES", 2.5 * watched / torch.get_num_threads())


def largest_of(model, x):
    largest = Largest()
    with TargetModel(model) as judge, largest.watch(judge, x):
        judge(x)
    return largest.bytes


@pytest.mark.parametrize("batch", [0, 1, 7, 8, 1000])
@pytest.mark.parametrize("largest", [0, 1, 3 * 2**20, 2**40])
def test_a_cut_takes_every_sample_once_in_parts_that_fit(batch, largest):
    parts = cut(batch, largest)
    assert [i for rows in parts for i in range(batch)[rows]] == list(range(batch))
    sizes = [rows.stop - rows.start for rows in parts]
    if largest:
        room = working_set._BYTES * torch.get_num_threads() // largest
        assert all(1 <= size <= max(1, room) for size in sizes)
        # Not more parts than it takes, and as equal as they can be.
        assert len(parts) == -(-batch // max(sizes, default=1))
        assert len(sizes) < 2 or (len(sizes) - 1) * max(1, room) < batch
    else:
        assert parts == [slice(0, batch)]


def test_the_largest_tensor_is_that_of_all_layers():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))
    assert largest_of(model, torch.zeros(1, 1, 8, 8)) == 4 * 6 * 36
    assert largest_of(model.double(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)) == 8 * 6 * 36
    assert largest_of(nn.Linear(100, 2), torch.zeros(1, 100)) == 400  # an input may be the largest
    assert largest_of(lambda x: 2.0 * model(x), torch.zeros(1, 1, 8, 8, dtype=torch.float64)) == 8 * 6 * 36
    assert largest_of(lambda x: x.flatten(1), torch.zeros(1, 1, 8, 8)) == 0  # nothing to watch


def test_weights_that_pass_through_modules_are_none_of_a_sample():
    """A parametrised layer hands its whole weight through modules, and an attention mask may be an argument."""

    class Masked(nn.Module):
        def forward(self, x, mask):
            return x * mask.sum()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, 32))
            self.masked = Masked()

        def forward(self, x):
            return self.masked(self.layer(x.flatten(1)), torch.ones(200, 200))

    assert largest_of(Model(), torch.zeros(1, 1, 8, 8)) == 4 * 64


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("form", ["script", "trace", "export"])
def test_programs_without_layers_are_measured_by_their_operations(form):
    """The transposed weight of the last layer is larger than any tensor, and not one of a sample."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)).eval()
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if form == "export":
        free = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(model, (x,), dynamic_shapes=free).module()
    else:
        program = torch.jit.script(model) if form == "script" else torch.jit.trace(model, x)
    assert largest_of(program, x[:1]) == 4 * 6 * 36
    attack, target = eb.recipe("pgd", p=math.inf, eps=0.1, steps=3), model(x).argmax(1)
    torch.testing.assert_close(attack(program, x, target).perturbed, attack(model, x, target).perturbed)


def test_a_compiled_model_is_compiled_once_and_not_for_being_watched():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), backend=backend, dynamic=True)
    x = torch.zeros(3, 1, 8, 8)
    with torch.no_grad():
        compiled(x)
    before = len(graphs)
    assert before
    assert largest_of(compiled, x[1:]) == 0
    with torch.no_grad():
        compiled(x)
    assert len(graphs) <= before + 1  # one for the flag of the parameters


def test_hooks_are_gone_also_after_an_error():
    class Raises(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = nn.Sequential(nn.Flatten(), Raises())
    with pytest.raises(ValueError, match="no"):
        eb.recipe("fgsm", p=math.inf, eps=0.1)(model, torch.zeros(2, 3, 3), torch.zeros(2, dtype=torch.int64))
    assert not any(module._forward_hooks for module in model.modules())


CASES = {
    "alg1-10": {"p": 2.0},
    "deepfool": {"p": math.inf},
    "pgd": {"p": math.inf, "steps": 5, "restarts": 3},
    "best": {"p": 2.0, "passes": 30},
    "nearest": {"p": 2.0, "passes": 40},
    "quadratic-lp": {"p": 2.0},
    "random-l2": {"p": 2.0},
}


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_the_whole_batch(name, monkeypatch):
    options = dict(CASES[name])
    model, x = network("tanh").eval(), images(7, seed=4)
    regression = name == "quadratic-lp"
    target = None if regression else (model(x).argmax(1) + torch.tensor([0, 0, 0, 1, 0, 0, 0])) % 5
    if name not in ("deepfool", "nearest"):
        options["eps"] = torch.linspace(0.01, 0.3, 7, dtype=x.dtype)
    attack = eb.recipe(name, bounds=(0.0, 1.0), **options)
    ids = torch.tensor([7, 3, 900, 0, 41, 5, 6])
    counting = Counting(model)
    found = attack(counting, x, target, seed=2, sample_id=ids)
    assert max(counting.calls) <= 2
    monkeypatch.setattr(working_set, "_BYTES", 2**30)
    expected = attack(model, x, target, seed=2, sample_id=ids)
    for field in dataclasses.fields(found):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, equal_nan=True)
        elif field.name != "seconds":
            assert ours == theirs, field.name


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("nested", [False, True])
def test_a_grid_of_budgets_is_joined_budget_by_budget(nested, monkeypatch):
    model, x = network("tanh").eval(), images(7, seed=4)
    target = model(x).argmax(1)
    attack, grid = eb.recipe("alg1-5", p=2.0, eps=1.0), [0.0, 0.05, 0.2, 0.5]
    found = attack.over(model, x, target, eps=grid, nested=nested)
    monkeypatch.setattr(working_set, "_BYTES", 2**30)
    expected = attack.over(model, x, target, eps=grid, nested=nested)
    assert len(found) == len(grid)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.perturbed, theirs.perturbed, rtol=0, atol=1e-10)
        assert ours.status == theirs.status
        assert torch.equal(ours.forwards, theirs.forwards)
    assert bool(found[-1].success.any())


@pytest.mark.usefixtures("in_parts")
def test_surrogates_are_watched_too(monkeypatch):
    small, large = network("lenet").eval(), network("tanh").eval()
    x = images(5, seed=1)
    counting = Counting(large)
    attack = eb.recipe("ensemble", p=2.0, eps=0.2, surrogates=[counting, small])
    attack(small, x, small(x).argmax(1))
    assert max(counting.calls) <= 2


@pytest.mark.usefixtures("in_parts")
def test_the_first_order_distance_is_that_of_the_whole_batch(monkeypatch):
    from epsball.metrics import first_order_distance

    model, x = network("tanh").eval(), images(7, seed=4)
    target = model(x).argmax(1)
    counting = Counting(model)
    found = first_order_distance(counting, x, target, p=2.0)
    assert max(counting.calls) <= 2
    monkeypatch.setattr(working_set, "_BYTES", 2**30)
    torch.testing.assert_close(found, first_order_distance(model, x, target, p=2.0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("which", ["judge", "surrogate"])
def test_models_that_draw_are_left_whole_also_beside_others_that_do_not(which, monkeypatch):
    """A batch shares its draws, so parts of it would have others."""

    class Noisy(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x + 0.1 * torch.randn_like(x))

    monkeypatch.setattr(working_set, "_BYTES", 1)
    plain, x = network("tanh").eval(), images(5, seed=1)
    counting = Counting(Noisy(network("lenet").eval()))
    draws = eb.TargetModel(counting, draws=3)
    judge, surrogate = (draws, plain) if which == "judge" else (plain, draws)
    attack = eb.recipe("ensemble", p=2.0, eps=0.2, steps=2, surrogates=[surrogate])
    attack(judge, x, plain(x).argmax(1))
    assert set(counting.calls) <= {1, 5}
    assert 5 in counting.calls


def test_the_first_order_distance_of_a_model_that_draws_is_of_the_whole_batch(monkeypatch):
    from epsball.metrics import first_order_distance

    monkeypatch.setattr(working_set, "_BYTES", 1)
    model, x = network("tanh").eval(), images(5, seed=1)
    counting = Counting(model)
    first_order_distance(eb.TargetModel(counting, draws=2), x, model(x).argmax(1))
    assert set(counting.calls) == {1, 5}


def test_outputs_whose_shape_depends_on_the_batch_are_refused_in_parts_too(monkeypatch):
    class Similar(nn.Module):
        def forward(self, x):
            return x.flatten(1) @ x.flatten(1).T

    monkeypatch.setattr(working_set, "_BYTES", 12.0 * 8 / torch.get_num_threads())
    x = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(eb.InputError, match="the same O for every batch"):
        eb.recipe("linear-lp-10", p=2.0, eps=0.1)(nn.Sequential(nn.Identity(), Similar()), x)


def test_joined_results_took_the_time_of_all(monkeypatch):
    model, x = network("tanh").eval(), images(4, seed=1)
    one, two = (eb.recipe("fgsm", eps=0.1)(model, part, model(part).argmax(1)) for part in x.split(2))
    joined = eb.AttackResult.joined([one, two])
    assert joined.seconds == one.seconds + two.seconds
    assert len(joined) == len(joined.status) == 4


def test_batch_statistics_are_found_where_every_part_is_one_sample(monkeypatch):
    class Centred(nn.Module):
        def forward(self, x):
            return x.flatten(1) - x.flatten(1).mean(0)

    monkeypatch.setattr(working_set, "_BYTES", 1)
    model = nn.Sequential(nn.Identity(), Centred())
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(eb.InputError, match="the samples beside it"):
        eb.recipe("linear-lp-10", p=2.0, eps=0.1)(model, x)
