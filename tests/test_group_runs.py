"""Group attacks from the command line: what they change, and how it is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import epsball as eb
from epsball import data, networks
from epsball.cli.app import app
from epsball.experiments.compare import compare_runs
from epsball.experiments.config import RunConfig
from epsball.experiments.manifest import _question
from epsball.experiments.plan import prepare
from epsball.report import FewestGroupsCurves, read_results
from epsball.report.answer import fewest_answer
from epsball.report.manifest import Manifest


@pytest.mark.parametrize("groups", ["pixels", "patches:4"])
def test_the_command_line_finds_the_fewest_groups(tmp_path: Path, groups: str) -> None:
    words = ["--model", "digits-cnn", "--attacks", "nearest,linear-pixel-2,fgsm", "--eps", "0.5,1", "--limit", "12"]
    words += ["--groups", groups, "--passes", "60", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(app, ["evaluate", *words])
    assert result.exit_code == 0, result.output
    size = 1 if groups == "pixels" else 4
    digits, model = data.load("digits", limit=12), networks.load("digits-cnn")
    table = pq.read_table(tmp_path / "r" / "results.parquet").to_pylist()
    medians = []
    for eps in (0.5, 1.0):
        own = eb.recipe("nearest", groups=eb.patches(size), eps=eps, bounds=(0.0, 1.0), passes=60)
        found = own(model, digits.x, digits.target, sample_id=digits.ids)
        changed = (found.perturbation != 0).unfold(2, size, size).unfold(3, size, size).flatten(4).any(4)
        rows = [row for row in table if row["attack"] == "nearest" and row["eps"] == eps]
        assert [row["groups"] for row in rows] == changed.flatten(1).sum(1).tolist()
        assert [row["success"] for row in rows] == found.success.tolist()
        right = [row for row in rows if row["success"] and row["target"] == row["clean_prediction"]]
        medians.append(f"{np.median([row['groups'] for row in right]):g} at eps = {eps:g}")
    told = f"nearest changes so many groups ({groups}) of a fooled sample, median: {', '.join(medians)}"
    assert told in " ".join(result.stdout.split())
    page = (tmp_path / "r" / "report.html").read_text()
    assert "median groups" in page
    assert all(f"<td>{median.split()[0]}</td>" in page for median in medians)
    assert f"How few {groups.partition(':')[0]} change the answer" in page
    shown = FewestGroupsCurves.from_table(read_results(tmp_path / "r"), "nearest", "pixels", "digits-cnn")
    assert list(shown.needed) == [0.5, 1.0]
    for name, judge in (("pgd", "digits-cnn"), ("nearest", "digits-fcnn")):
        with pytest.raises(eb.InputError, match=name if name == "pgd" else judge):
            FewestGroupsCurves.from_table(read_results(tmp_path / "r"), name, "pixels", judge)
    mine = [row for row in table if row["attack"] == "nearest" and row["target"] == row["clean_prediction"]]
    for eps, k in ((0.5, 0), (0.5, 2), (1.0, 1), (1.0, 3), (1.0, shown.largest)):
        within = [row["success"] and row["groups"] <= k for row in mine if row["eps"] == eps]
        assert shown.percent(eps, k) == pytest.approx(100.0 * np.mean(within))
    assert shown.counts[-1] == shown.largest == max(row["groups"] for row in mine if row["success"])
    least = sorted(row["groups"] if row["success"] else np.inf for row in mine if row["eps"] == 1.0)
    assert (
        f"nearest finds, for half of the {len(least)} correctly classified images, that changing at most "
        f"{least[(len(least) - 1) // 2]} of their {groups.partition(':')[0]}, no value in them by more than 1, makes"
    ) in page
    lines = shown.plot().get_lines()
    assert [line.get_label() for line in lines] == ["eps = 0.5", "eps = 1"]
    for eps, line in zip(shown.needed, lines, strict=True):
        x, y = line.get_data()
        assert [y[x <= k][-1] for k in range(shown.largest + 1)] == pytest.approx(
            [shown.percent(eps, k) for k in range(shown.largest + 1)]
        )
    assert {row["groups"] for row in table if row["attack"] == "fgsm"} == {None}
    assert all(row["groups"] <= 2 for row in table if row["attack"] == "linear-pixel-2")
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert manifest["groups"] == {"of": groups, "k": 1, "fewest": ["nearest"]}
    assert "a perturbation of at most eps in the linf norm, inside [0, 1]?" in manifest["question"]
    assert f"1 × {groups}; nearest: as few as possible" in (tmp_path / "r" / "report.html").read_text()
    assert {row["name"]: row["family"] for row in manifest["attacks"]}["nearest"] == "groups"


def test_configurations_of_earlier_versions_are_read() -> None:
    """They name one pixel where nothing was given."""
    for attack, left in (("fgsm", (None, None)), ("linear-pixel-2", (None, None)), ("nearest", ("pixels", 1))):
        given = RunConfig("evaluate", "digits-cnn", attacks=(attack, "pgd"), eps=(0.1,)).to_dict()
        given |= {"groups": "pixels", "k": 1}
        if attack == "nearest":
            with pytest.raises(eb.InputError, match="takes no k"):
                RunConfig.from_dict(given)
        else:
            again = RunConfig.from_dict(given)
            assert (again.groups, again.k) == left


def test_equal_groups_said_and_unsaid_are_no_difference(tmp_path: Path) -> None:
    for name, words in (("a", []), ("b", ["--groups", "pixels", "--k", "1"]), ("c", ["--k", "2"])):
        common = ["evaluate", "--model", "digits-cnn", "--attacks", "linear-pixel-2", "--eps", "0.5", "--limit", "12"]
        result = CliRunner().invoke(app, [*common, *words, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    same, other = (compare_runs(tmp_path / "a", tmp_path / name) for name in ("b", "c"))
    assert not same.notes
    asked = json.loads((tmp_path / "b" / "manifest.json").read_text())["question"]
    assert "after a change of few pixels, no value in them by more than eps, inside [0, 1]?" in asked
    assert other.notes == ("k is 1 in the first run and 2 in the second.",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--attacks", "nearest", "--groups", "pixels", "--eps", "0.5", "--k", "2"], "nearest', which takes no k"),
        (["--attacks", "nearest", "--k", "2"], "which takes no k"),
        (["--attacks", "nearest", "--groups", "pixels"], "expected eps"),
        (["--attacks", "nearest", "--groups", "pixels", "--eps", "0.5", "--p", "2"], "p = inf"),
    ],
)
def test_what_the_command_line_cannot_mean_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--model", "digits-cnn", *words, "--out", str(tmp_path / "r")])
    assert result.exit_code != 0
    assert said in f"{result.output} {result.exception}"


def test_the_page_says_how_few_groups_are_enough_for_half() -> None:
    needed = {0.5: np.array([1.0]), np.inf: np.array([2.0, 3.0, 1204.0])}
    three, five = (FewestGroupsCurves("nearest", "pixels", n, needed) for n in (3, 5))
    assert fewest_answer(three) == (
        "nearest finds, for half of the 3 correctly classified samples, that changing at most 3 of their pixels makes "
        "the answer wrong."
    )
    assert "at most 1,204 of" in fewest_answer(five, "images")
    few = FewestGroupsCurves("nearest", "channels", 3, {0.5: np.array([1.0])})
    assert fewest_answer(few) == (
        "nearest fools fewer than half of the 3 correctly classified samples, however many of their channels it "
        "changes, no value in them by more than 0.5."
    )


@pytest.mark.parametrize(
    ("model", "attack", "options", "asked"),
    [
        (
            "digits-cnn",
            "nearest",
            {"groups": "patches:4"},
            "How few patches of the 500 samples of digits (test) must change, no value in them by more than eps, "
            "inside [0, 1], before digits-cnn misclassifies them?",
        ),
        (
            "digits-cnn",
            "nearest,linear-pixel-2",
            {"groups": "pixels"},
            "what share is misclassified after a change of few pixels, no value in them by more than eps, inside [0, ",
        ),
        (
            "digits-autoencoder",
            "quadratic-pixel",
            {},
            "How far does a change of few pixels, no value in them by more than eps, inside [0, 1], push the output of "
            "digits-autoencoder away from",
        ),
    ],
)
def test_the_question_is_that_of_the_attacks(model: str, attack: str, options: dict[str, str], asked: str) -> None:
    plan = prepare(RunConfig("evaluate", model, attacks=tuple(attack.split(",")), eps=(0.5,), **options))
    assert asked in _question(plan)
    entries = replace(plan, dataset=replace(plan.dataset, x=plan.dataset.x.flatten(1)))
    assert ("few entries" in _question(entries)) == ("pixels" in asked)


@pytest.mark.parametrize(("shape", "of"), [([1, 8, 8], "pixels"), ([64], "entries")])
def test_a_pixel_of_a_flat_sample_is_an_entry(shape: list[int], of: str) -> None:
    attacks = [{"name": "nearest", "family": "groups"}, {"name": "fgsm", "family": "lp"}]
    manifest = Manifest({"attacks": attacks, "groups": {"of": "pixels"}, "data": {"shape": shape}})
    assert (manifest.groups("nearest"), manifest.groups("fgsm")) == (of, "")


def test_an_attack_with_a_budget_of_passes_is_listed_with_it():
    attacks = [{"name": "best", "steps": 40, "passes": 100}, {"name": "pgd", "steps": 40, "passes": None}]
    assert [attack["steps"] for attack in Manifest({"attacks": attacks}).attacks] == ["100 passes", "40"]
