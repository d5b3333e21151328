"""The peers' benchmark: its counter against passes counted by hand, and its verdicts against cases made by hand.

No other library is needed: an attack is any function of a model and a batch.
"""

import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import epsball as eb
from helpers import generator

sys.path.insert(0, str(Path(__file__).parents[1]))

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq
from benchmarks import ablation
from benchmarks.peers import cells, environment, exact, networks, summary, tried
from benchmarks.peers.adapters import ours
from benchmarks.peers.adapters.row import FIXED, MINIMAL, Attack, Job
from benchmarks.peers.cells import Cell
from benchmarks.peers.counting import Counting
from benchmarks.peers.figures import _strongest
from benchmarks.peers.fixed import fixed, minimal
from benchmarks.peers.judging import judge, slack
from benchmarks.peers.kept import pack, unpack

needs_mnist = pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST in EPSBALL_DATA")


def classifier():
    """Two scores: x₀ + x₁ - 1 and its negative; class 0 where the sum is above 1."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        model.bias.copy_(torch.tensor([-1.0, 1.0]))
    return model


# ------------------------------------------------------------------------------------------------------------ counting


def test_each_sample_counts_once_a_pass():
    counting = Counting(nn.Linear(3, 4))
    x = torch.rand(5, 3, requires_grad=True)
    with torch.no_grad():
        counting(x)
    assert (counting.forwards, counting.backwards) == (5, 0)
    torch.autograd.grad(counting(x).sum(), x)
    assert (counting.forwards, counting.backwards) == (10, 5)
    counting(x[:2]).sum().backward()
    assert (counting.forwards, counting.backwards) == (12, 7)


def test_each_class_gradient_is_a_backward():
    counting = Counting(nn.Linear(3, 4))
    x = torch.rand(5, 3, requires_grad=True)
    scores = counting(x)
    for c in range(4):
        torch.autograd.grad(scores[:, c].sum(), x, retain_graph=True)
    assert (counting.forwards, counting.backwards) == (5, 20)


def test_a_vectorised_backward_counts_for_every_class():
    counting = Counting(nn.Linear(3, 4))
    x = torch.rand(5, 3, requires_grad=True)
    scores = counting(x)
    seeds = torch.eye(4)[:, None, :].expand(4, 5, 4)
    torch.autograd.grad(scores, x, seeds, is_grads_batched=True)
    assert (counting.forwards, counting.backwards) == (5, 20)


def test_a_gradient_that_stops_at_the_scores_is_no_backward():
    counting = Counting(nn.Linear(3, 4))
    x = torch.rand(5, 3, requires_grad=True)
    scores = counting(x)
    loss = scores.square().sum(1)
    torch.autograd.grad(loss.exp().sum(), loss)
    assert counting.backwards == 0


@pytest.mark.parametrize("name", ["pgd", "alg1-3", "deepfool", "fgsm"])
def test_it_counts_what_the_attack_reports(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)).eval()
    counting = Counting(model)
    x = torch.rand(7, 12, generator=generator(1))
    target = model(x).argmax(1)
    result = eb.recipe(name, eps=None if name == "deepfool" else 0.05, bounds=(0.0, 1.0))(counting, x, target)
    assert counting.backwards == int(result.backwards.sum()) > 0
    # What the attack reports is what each sample takes by itself. Seen from outside it also looks at how the model
    # treats a few samples before it starts, and may carry a batch forward once more.
    assert 0 <= counting.forwards - int(result.forwards.sum()) <= 3 + len(x)


def test_it_tells_whether_the_model_was_in_training_mode():
    counting = Counting(nn.Linear(3, 4).eval())
    assert not counting.training
    counting(torch.rand(2, 3))
    assert not counting.training_seen
    counting.train()(torch.rand(2, 3))
    assert counting.training_seen
    counting.reset()
    assert (counting.forwards, counting.backwards, counting.training_seen) == (0, 0, False)


# ------------------------------------------------------------------------------------------------------------- judging


def test_a_success_is_a_wrong_class_inside_bounds_and_ball():
    x, y = torch.full((6, 2), 0.6), torch.zeros(6, dtype=torch.long)
    perturbed = torch.tensor(
        [
            [0.45, 0.45],  # crosses within 0.15
            [0.55, 0.55],  # does not cross
            [0.30, 0.30],  # crosses, too far
            [-0.01, 0.70],  # crosses, outside the bounds
            [math.nan, 0.4],  # no number
            [math.inf, 0.4],
        ]
    )
    verdict = judge(classifier(), x, y, perturbed, math.inf, 0.16)
    assert verdict.success.tolist() == [True, False, False, False, False, False]
    assert verdict.wrong.tolist() == [True, False, True, True, False, False]
    assert verdict.valid.tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(verdict.norm[:4].numpy(), [0.15, 0.05, 0.3, 0.61], atol=1e-6)
    assert verdict.norm[4:].isnan().all()
    assert verdict.distance.tolist()[1:] == [math.inf] * 5


@pytest.mark.parametrize(("p", "norm"), [(1.0, 0.3), (2.0, math.sqrt(0.05)), (math.inf, 0.2)])
def test_the_norm_is_that_of_the_returned_tensor(p, norm):
    x, y = torch.full((1, 2), 0.6), torch.zeros(1, dtype=torch.long)
    perturbed = torch.tensor([[0.5, 0.4]])
    assert judge(classifier(), x, y, perturbed, p).norm.item() == pytest.approx(norm, abs=1e-6)
    assert judge(classifier(), x, y, perturbed, p, 1.01 * norm).success.item()
    assert not judge(classifier(), x, y, perturbed, p, 0.99 * norm).success.item()


def test_the_slack_is_rounding_and_no_more():
    assert slack(784, math.inf) < 1.1e-6
    assert slack(784, 2.0) < 3e-6
    assert slack(784, 1.0) < 5e-5
    x, y = torch.full((1, 2), 0.6), torch.zeros(1, dtype=torch.long)
    for over, valid in ((5e-7, True), (5e-6, False)):
        perturbed = torch.tensor([[0.45 - over, 0.45]], dtype=torch.float64)
        assert judge(classifier().double(), x.double(), y, perturbed, math.inf, 0.15).valid.item() is valid


def test_scores_that_are_not_finite_are_no_success():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([math.nan, 1.0]))
    x = torch.full((1, 2), 0.6)
    assert not judge(model, x, torch.zeros(1, dtype=torch.long), x, 2.0).success.item()


# --------------------------------------------------------------------------------------------------- cells and summary


def shift(step):
    """An attack that subtracts a constant, and takes one forward and one backward a sample."""

    def call(job):
        point = job.x.clone().requires_grad_()
        torch.autograd.grad(job.model(point).sum(), point)
        return (job.x - step).clamp(0, 1)

    return call


def broken(job):
    raise RuntimeError("cannot")


def test_a_finished_cell_is_kept_and_an_error_is_a_result(tmp_path):
    x = torch.tensor([[0.6, 0.6], [0.9, 0.9], [0.55, 0.55]])
    data = (x, torch.zeros(3, dtype=torch.long), torch.tensor([4, 7, 9]))
    for name, call, eps in (("near", shift(0.12), 0.15), ("far", shift(0.2), 0.15), ("broken", broken, 0.15)):
        library = "epsball" if name == "near" else "peer"
        cell = Cell("fixed", "net", library, name, math.inf, eps, 1, 3)
        attack = Attack(library, name, FIXED, (math.inf,), "", call)
        assert cells.run(cell, attack, classifier, data, tmp_path, batch_size=2)
        assert not cells.run(cell, attack, classifier, data, tmp_path, batch_size=2)
    rows = {row["attack"]: row for row in summary.fixed(tmp_path)}
    assert rows["near"]["ratio"] == pytest.approx(2 / 3)
    assert rows["near"]["passes"] == 1.0
    assert rows["near"]["fooled"] == [True, False, True]
    assert rows["far"]["ratio"] == 0.0  # crosses, outside the ball
    assert "cannot" in rows["broken"]["error"]
    (duel,) = summary.duels(list(rows.values()), "near")
    assert duel["peer"] == "peer far"
    assert duel["difference"] == pytest.approx(2 / 3)
    assert cells.forget(tmp_path, "fixed", "peer/far") == 1
    assert {row["attack"] for row in summary.fixed(tmp_path)} == {"near", "broken"}


def test_kept_cells_come_back_as_they_were(tmp_path):
    first, kept, second = (tmp_path / name for name in ("first", "kept", "second"))
    data = (torch.full((2, 2), 0.6), torch.zeros(2, dtype=torch.long), torch.tensor([4, 7]))
    for part, name, call, eps in (
        ("fixed", "near", shift(0.12), 0.15),
        ("fixed", "broken", broken, 0.15),
        ("minimal", "small", shift(0.11), None),
    ):
        kind = FIXED if part == "fixed" else MINIMAL
        cell = Cell(part, "net", "peer", name, math.inf, eps, 1, 2)
        cells.run(cell, Attack("peer", name, kind, (math.inf,), "", call), classifier, data, first)
    assert pack(first, kept) == {"fixed": 2, "minimal": 1}
    assert unpack(second, kept) == {"fixed": 2, "minimal": 1}
    written, again = (
        {
            path.relative_to(root): str(sorted(pq.read_table(path).to_pydict().items()))
            for path in root.rglob("*.parquet")
        }
        for root in (first, second)
    )
    assert again == written
    assert len(written) == 3
    assert all("'code'" in rows and "'processor'" in rows for rows in written.values())
    assert summary.fixed(second) == summary.fixed(first)
    # What was measured here stays, and takes the place of what is kept; the rest of that stays too.
    here = next((second / "fixed").rglob("*near*"))
    kept_here = pq.read_table(here)
    cells.save(kept_here.set_column(kept_here.column_names.index("part"), "part", [["again"] * 2]), here)
    assert cells.forget(second, "fixed", "peer/broken") == 1
    assert unpack(second, kept) == {"fixed": 1, "minimal": 0}
    assert pq.read_table(here)["part"].to_pylist() == ["again"] * 2
    assert cells.forget(second, "fixed", "peer/broken") == 1
    assert cells.forget(second, "minimal", "peer") == 1
    assert pack(second, kept) == {"fixed": 2, "minimal": 1}
    assert unpack(tmp_path / "third", kept) == {"fixed": 2, "minimal": 1}
    assert {row["attack"]: bool(row["error"]) for row in summary.fixed(tmp_path / "third")} == {
        "near": False,
        "broken": True,
    }
    near = next((tmp_path / "third" / "fixed").rglob("*near*"))
    assert pq.read_table(near)["part"].to_pylist() == ["again"] * 2
    (made,) = summary.made(first)
    assert made["parts"] == "fixed, minimal"
    assert made["threads"] == str(torch.get_num_threads())


def test_a_run_on_other_samples_is_another_cell(tmp_path):
    for count in (2, 3):
        data = (torch.full((count, 2), 0.6), torch.zeros(count, dtype=torch.long), torch.arange(count))
        cell = Cell("fixed", "net", "peer", "near", math.inf, 0.15, 1, count)
        attack = Attack("peer", "near", FIXED, (math.inf,), "", shift(0.12))
        cells.run(cell, attack, classifier, data, tmp_path)
    assert sorted(len(row["fooled"]) for row in summary.fixed(tmp_path)) == [2, 3]


@needs_mnist
def test_each_part_runs_the_attacks_of_its_kind(tmp_path, capsys):
    rows = [
        Attack("peer", "within", FIXED, (2.0,), "", shift(0.0)),
        Attack("peer", "exact", FIXED, (2.0,), "", shift(0.0), exact_only=True),
        Attack("peer", "free", MINIMAL, (2.0,), "", shift(0.0)),
        Attack("peer", "other", MINIMAL, (1.0,), "", shift(0.0)),
    ]
    fixed(rows, ("mnist-fcnn",), 2, tmp_path, steps=(1, 5), orders=(2.0,))
    minimal(rows, ("mnist-fcnn",), 2, tmp_path, budgets=(30,), orders=(2.0,))
    said = capsys.readouterr().out.splitlines()
    radii = networks.SUBJECTS["mnist-fcnn"].eps[2.0]
    assert said == [
        *(f"mnist-fcnn p=2 eps={eps:.4g} budget={steps} peer/within" for eps in radii for steps in (1, 5)),
        "mnist-fcnn p=2 budget=30 peer/free",
    ]


def test_the_commit_of_a_cell_is_marked_where_files_differ(tmp_path):
    here = tmp_path / "benchmarks" / "peers"
    for folder in (here / "results", tmp_path / "src"):
        folder.mkdir(parents=True)
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    assert environment.code(tmp_path / "src") == "unknown"
    (tmp_path / "src" / "a.py").write_text("1")
    run(["git", "init", "-q"])
    run(["git", "add", "."])
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a"])
    (here / "results" / "fixed.parquet").write_text("a result is no source")
    clean = environment.code(here)
    assert len(clean) == 9
    environment.code.cache_clear()
    (tmp_path / "src" / "b.py").write_text("2")
    assert environment.code(here) == f"{clean}+"


def test_minimal_rows_are_held_to_the_envelope_of_all(tmp_path):
    x = torch.tensor([[0.6, 0.6], [0.7, 0.7], [0.8, 0.8]])
    data = (x, torch.zeros(3, dtype=torch.long), torch.arange(3))
    calls = {"small": shift(0.11), "middle": shift(0.25), "large": shift(0.4)}
    for name, call in calls.items():
        cell = Cell("minimal", "net", "peer", name, math.inf, None, 30, 3)
        cells.run(cell, Attack("peer", name, MINIMAL, (math.inf,), "", call), classifier, data, tmp_path)
    rows = {row["attack"]: row for row in summary.minimal(tmp_path)}
    assert [rows[name]["found"] for name in calls] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rows["middle"]["median"] == pytest.approx(0.25, abs=1e-6)
    distance = torch.tensor([[0.11, math.inf, math.inf], [0.25, 0.25, math.inf], [0.4, 0.4, 0.4]])
    expected = eb.metrics.optimality(distance)
    assert [rows[name]["optimality"] for name in calls] == pytest.approx(expected.tolist(), abs=1e-5)


def test_nearest_is_held_to_the_best_peer_and_to_the_least_whole_mean():
    def row(library, attack, budget, optimality, mean, found=1.0):
        return {"network": "n", "p": 2.0, "library": library, "attack": attack, "budget": budget, "error": ""} | {
            "optimality": optimality,
            "mean": mean,
            "found": found,
        }

    rows = [
        row("epsball", "nearest", 30, 0.9, 1.0),
        row("A", "a", 30, 0.8, 1.2),
        row("A", "b", 30, 0.7, 0.5),
        row("B", "b", 200, 0.95, 0.9),
        row("B", "half", 200, 0.4, 0.1, found=0.5),
        row("epsball", "deepfool", 200, 0.99, 0.3),
    ]
    (duel,) = summary.nearest_duels(rows, "nearest")
    assert (duel["peer"]["attack"], duel["budget"], duel["most"]) == ("a", 30, 200)
    assert duel["least"]["mean"] == 0.9  # a mean over half of the samples is none


def test_figures_draw_ours_and_the_strongest_of_each_peer():
    strength = {("epsball", "x"): 0.1, ("A", "a"): 0.5, ("A", "b"): 0.7, ("B", "c"): 0.2, ("epsball", "y"): 0.9}
    assert _strongest(strength) == [("epsball", "y"), ("A", "b"), ("B", "c"), ("epsball", "x")]


def test_passes_until_a_share_of_the_final_ratio():
    curve = ((1, 0.1), (5, 0.5), (10, 0.91), (40, 1.0))
    base = {"network": "n", "p": 2.0, "eps": 1.0, "error": ""}
    rows = [{**base, "library": "a", "attack": "x", "budget": t, "passes": float(t), "ratio": r} for t, r in curve]
    rows += [{**base, "library": "b", "attack": "y", "budget": t, "passes": 2.0 * t, "ratio": r / 2} for t, r in curve]
    found = summary.passes_to(rows)
    assert found["n", 2.0, 1.0, "a", "x"] == {"own": 10.0, "common": 10.0}
    assert found["n", 2.0, 1.0, "b", "y"] == {"own": 20.0, "common": math.inf}


# ---------------------------------------------------------------------------------------------- recipes and the optimum


@pytest.mark.parametrize("attack", ours.attacks(("bim", "alg1-7")), ids=lambda attack: attack.key)
def test_any_recipe_runs_within_its_budget(attack):
    given = exact.problem(attack.kind, batch=6)
    budget = 12 if attack.kind == FIXED else 100
    counting = Counting(given.model)
    eps = exact.EPS[2.0] if attack.kind == FIXED else None
    perturbed = attack.call(Job(counting, given.x, given.y, 2.0, eps, budget, 0, exact.CLASSES))
    verdict = judge(given.model, given.x, given.y, perturbed, 2.0, eps)
    assert verdict.valid.all()
    # What is left over: the verdict on the result, and a few samples that are looked at once a call.
    passes = counting.backwards if attack.kind == FIXED else counting.forwards + counting.backwards
    assert passes <= (budget + 2) * len(given.x)


@pytest.mark.parametrize("kind", [FIXED, MINIMAL])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_the_affine_optimum_is_cvxpys(kind, p):
    pytest.importorskip("cvxpy")
    given = exact.problem(kind, batch=4)
    best = exact.optimum(given, kind, p)
    assert (np.abs(given.x.numpy() % 1.0) == 0).mean() > 0.55  # most entries lie on a face
    g = torch.from_numpy(given.g).expand(len(best), -1)
    flat = given.x.flatten(1).double()
    ball = eb.LpBall(p=p, eps=exact.EPS[p] if kind == FIXED else math.inf, bounds=(0.0, 1.0))
    if kind == FIXED:
        np.testing.assert_allclose(ball.support(g, flat).numpy(), best, rtol=1e-5)
    else:
        eta = ball.smallest(g, torch.from_numpy(given.gap), flat)
        eta = eta[0] if isinstance(eta, tuple) else eta
        np.testing.assert_allclose(torch.linalg.vector_norm(eta, p, dim=1).numpy(), best, rtol=1e-5)


@pytest.mark.parametrize("passes", [5, 12, 40, 100, 400])
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_the_variants_of_the_recipes_can_be_made(p, passes):
    """Their schedules refuse what no longer fits the recipe whole."""
    best, nearest = ablation.variants_of_best(p, 0.1, passes), ablation.variants_of_nearest(p, passes)
    assert len(best) > 3
    assert len(nearest) > 3
    if p == 1.0:
        assert len(dict(tried.search_first(0.1, max(passes, 40)))) >= 3
    assert len(dict(tried.nearest())) == 3
    assert len(dict(tried.sparse())) == 2
