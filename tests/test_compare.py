"""Two runs side by side: the statistics against SciPy and brute force, the comparison against counting by hand."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, permutation_test
from typer.testing import CliRunner

from epsball.cli.app import app
from epsball.errors import InputError
from epsball.experiments.compare import compare_runs, write_comparison
from epsball.experiments.paired import holm, mcnemar, ratio_interval, sign_flip

HOSTILE = "</script><script>alert(1)</script>\x1b[31mred\u202e\"'&<b>../../x"
COUNTS = st.integers(0, 60)


# ---- the tests and intervals


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    n = only_first + only_second
    expected = binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (3, 0), (400, 520), (5_000, 5_400), (0, 3_000)])
def test_mcnemar_at_its_ends_and_for_many_pairs(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts), 0.5).pvalue if sum(counts) else 1.0
    assert mcnemar(*counts) == pytest.approx(expected, rel=1e-8, abs=1e-300)
    assert mcnemar(*counts[::-1]) == mcnemar(*counts)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-3, 3).map(lambda v: round(v, 3)), min_size=2, max_size=8))
def test_sign_flip_is_scipys_permutation_of_pairs(values: list[float]) -> None:
    first = np.array(values)
    found = permutation_test(
        (first, np.zeros(len(first))),
        lambda a, b: abs((a - b).sum()),
        permutation_type="samples",
        alternative="greater",
    )
    assert sign_flip(first) == pytest.approx(found.pvalue, abs=1e-12)


def test_sign_flip_at_random_and_in_the_limit() -> None:
    rng = np.random.default_rng(3)
    for n in (200, 5_000):
        values = rng.normal(2.2 / math.sqrt(n), 1.0, n)
        z = abs(values.sum()) / math.sqrt((values**2).sum())
        assert sign_flip(values) == pytest.approx(2 * norm.sf(z), abs=0.012)
        assert sign_flip(values) == sign_flip(values)  # the seed is fixed
        assert sign_flip(1e-9 * values) == pytest.approx(sign_flip(values))
    assert sign_flip(np.zeros(9)) == 1.0
    assert sign_flip(np.ones(300)) == pytest.approx(1 / 10_000)  # the observed choice of signs counts as one


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    """A hypothesis is rejected if every set of hypotheses that holds it is, each by Bonferroni."""
    for place, adjusted in enumerate(holm(values)):
        sets = [
            chosen
            for size in range(1, len(values) + 1)
            for chosen in itertools.combinations(range(len(values)), size)
            if place in chosen
        ]
        assert adjusted == pytest.approx(max(min(1.0, len(s) * min(values[k] for k in s)) for s in sets))


def test_ratio_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        shared = rng.gamma(4.0, 1.0, 150)
        first, second = shared * rng.uniform(0.8, 1.2, 150), 1.3 * shared * rng.uniform(0.8, 1.2, 150)
        _, low, high = ratio_interval(first, second)
        covered += low <= 0.3 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_ratio_interval_at_its_ends() -> None:
    one = np.array([2.0])
    assert ratio_interval(np.zeros(0), np.zeros(0)) == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert ratio_interval(one, 2 * one) == pytest.approx((1.0, math.nan, math.nan), nan_ok=True)
    assert ratio_interval(np.zeros(3), np.zeros(3)) == (0.0, 0.0, 0.0)
    assert ratio_interval(np.zeros(3), np.ones(3)) == (math.inf,) * 3


# ---- runs made by hand


def manifest(name: str = "net", **changes: Any) -> dict[str, Any]:
    data = {"name": "digits", "split": "test", "count": 100, "of": 500, "digest": "d"} | changes.pop("data", {})
    content = {"task": "classification", "model": {"name": name, "digest": "w"}, "data": data, "p": "inf"}
    return content | {"configuration": {"bounds": "data", "seed": 0}, "versions": {"epsball": "0.1.0"}} | changes


def entry(sample: int, model: str, fooled: bool, **changes: Any) -> dict[str, Any]:
    values = {"sample_id": sample, "attack": "pgd", "p": math.inf, "eps": 0.1, "steps": 10, "target": sample % 3}
    values |= {"prediction": sample % 3 + fooled, "clean_prediction": sample % 3, "success": fooled, "gain": 1.0}
    values |= {"status": "SUCCESS" if fooled else "STANDS", "norm_l1": 1.0, "norm_l2": 0.3, "norm_linf": 0.1}
    values |= {"psnr_in": 20.0, "psnr_out": None, "forwards": 2, "backwards": 1, "seconds": 0.01}
    return values | {"crafted_on": model, "judged_on": model} | changes


def write(folder: Path, rows: list[dict[str, Any]], content: dict[str, Any]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def classifier(folder: Path, name: str, fooled: set[int], n: int = 100, wrong: frozenset[int] = frozenset()) -> Path:
    rows = [entry(i, name, i in fooled, **({"clean_prediction": -1} if i in wrong else {})) for i in range(n)]
    return write(folder, rows, manifest(name))


def regressor(folder: Path, gains: np.ndarray, **changes: Any) -> Path:
    none = {"target": None, "prediction": None, "clean_prediction": None, "psnr_out": 12.0}
    rows = [entry(i, "auto", True, gain=float(gain), **none) for i, gain in enumerate(gains)]
    return write(folder, rows, manifest("auto", task="regression", reference="input", **changes))


def test_fooling_ratios_of_pairs_by_hand(tmp_path: Path) -> None:
    one = classifier(tmp_path / "a", "old", set(range(30)), wrong=frozenset({99}))
    two = classifier(tmp_path / "b", "new", set(range(10, 60)), wrong=frozenset({0, 98}))
    found = compare_runs(one, two)
    (cell,) = found.cells
    # Samples 0, 98 and 99 do not count; 1..9 fall in the first alone, 30..59 in the second alone.
    assert (cell.n, cell.only_first, cell.only_second) == (97, 9, 30)
    assert (cell.first, cell.second) == (29 / 97, 50 / 97)
    assert cell.difference == pytest.approx(21 / 97)
    half = norm.ppf(0.975) * math.sqrt((39 / 97 - (21 / 97) ** 2) / 97)
    assert (cell.low, cell.high) == pytest.approx((21 / 97 - half, 21 / 97 + half))
    assert cell.adjusted == cell.p_value == pytest.approx(binomtest(9, 39).pvalue)
    assert cell.fell
    assert found.names == ("old", "new")
    assert found.clean is not None
    assert (found.clean.first, found.clean.second) == (0.99, 0.98)
    assert not compare_runs(two, one).fell  # more robust is no fall
    assert not compare_runs(one, two, tolerance=cell.low + 1e-9).fell
    assert compare_runs(one, two, tolerance=cell.low - 1e-9).fell


def test_only_common_samples_attacks_and_budgets_count(tmp_path: Path) -> None:
    rows = [
        entry(i, "a", i < 8, eps=eps, attack=name) for i in range(20) for eps in (0.1, 0.2) for name in ("pgd", "x")
    ]
    one = write(tmp_path / "a", rows, manifest("a", data={"count": 20, "digest": "1"}))
    rows = [entry(i, "b", True, eps=eps) for i in range(5, 30) for eps in (0.1 + 1e-13, 0.3)]
    rows += [entry(i, "b", True, crafted_on="other", eps=0.2) for i in range(10)]
    rows += [entry(i, "b", False, judged_on="other") for i in range(20)]
    two = write(tmp_path / "b", rows, manifest("b", data={"count": 25, "digest": "2"}))
    found = compare_runs(one, two)
    assert [(c.attack, c.eps, c.n) for c in found.cells] == [("pgd", 0.1, 15), ("pgd", 0.2, 10)]
    assert (found.cells[0].first, found.cells[0].second) == (3 / 15, 1.0)
    assert found.common == 15 + 5
    assert found.alone == (0, 10)


def test_gains_of_regression_models(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    gains = rng.gamma(4.0, 1.0, 60)
    one = regressor(tmp_path / "a", gains)
    two = regressor(tmp_path / "b", gains * rng.uniform(1.1, 1.5, 60))
    found = compare_runs(one, two)
    (cell,) = found.cells
    assert found.regression
    assert found.clean is None
    assert cell.first == pytest.approx(gains.mean())
    assert 0.2 < cell.difference < 0.4
    assert cell.low < cell.difference < cell.high
    assert cell.fell
    assert found.names == ("a", "b")  # of one model's name: the folders tell them apart
    assert not compare_runs(one, one).fell
    assert compare_runs(one, one).cells[0].difference == 0.0
    broken = gains.copy()
    broken[:3] = np.nan
    for pair in ((regressor(tmp_path / "c", broken), two), (two, tmp_path / "c")):
        with pytest.raises(InputError, match="3 of 60 samples"):
            compare_runs(*pair)
    unmoved = regressor(tmp_path / "d", np.zeros(60))
    assert compare_runs(unmoved, two).fell  # infinitely more than nothing
    assert not compare_runs(two, unmoved).fell


def test_chance_alone_seldom_fails(tmp_path: Path) -> None:
    """Of equal models Holm's method lets at most one comparison in twenty fail; here at tolerance 0, the hardest."""
    rng = np.random.default_rng(7)
    fell = alone = 0
    for trial in range(30):
        runs = []
        for name in "ab":
            rows = [
                entry(i, name, bool(rng.random() < 0.5), attack=f"a{k}") for k in range(6) for i in range(40)
            ]  # independent draws: the two models fool alike
            runs.append(write(tmp_path / f"{trial}{name}", rows, manifest(name)))
        found = compare_runs(*runs, tolerance=0.0)
        fell += bool(found.fell)
        alone += any(cell.low > 0.0 for cell in found.cells)
    assert fell <= 1
    assert alone >= 3  # the intervals alone would let more fail


# ---- what is refused


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = classifier(tmp_path / "a", "a", {1})

    def refused(match: str, other: Path, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            compare_runs(one, other, **options)

    refused(r"results\.parquet", tmp_path)
    rows = [entry(i, "b", False) for i in range(100)]
    refused("one data set", write(tmp_path / "b", rows, manifest("b", data={"name": "mnist", "digest": "m"})))
    refused("other samples", write(tmp_path / "c", rows, manifest("c", data={"digest": "m"})))
    refused("in common", write(tmp_path / "d", [entry(i, "d", False, eps=0.3) for i in range(9)], manifest("d")))
    refused("in common", write(tmp_path / "e", [entry(i, "e", False) for i in range(200, 209)], manifest("e")))
    refused("one task", regressor(tmp_path / "f", np.ones(5)))
    moved = [entry(i, "g", False, target=5, clean_prediction=5) for i in range(50)]
    refused("labellings", write(tmp_path / "g", moved, manifest("g", data={"count": 50, "digest": "g"})))
    wrong = [entry(i, "h", False, clean_prediction=9) for i in range(50)]
    refused("correctly", write(tmp_path / "h", wrong, manifest("h")))
    refused("at least 0", one, tolerance=-0.1)
    refused("at least 0", one, tolerance=math.nan)
    with pytest.raises(InputError, match="same reference"):
        compare_runs(
            tmp_path / "f", regressor(tmp_path / "i", np.ones(5), configuration={}) and other_reference(tmp_path)
        )


def other_reference(folder: Path) -> Path:
    content = json.loads((folder / "i" / "manifest.json").read_text(encoding="utf-8")) | {"reference": "output"}
    (folder / "i" / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "i"


def test_other_settings_are_said(tmp_path: Path) -> None:
    one = classifier(tmp_path / "a", "a", {1})
    rows = [entry(i, "b", False, steps=40) for i in range(100)]
    two = write(tmp_path / "b", rows, manifest("b", configuration={"bounds": None, "seed": 0}))
    notes = compare_runs(one, two).notes
    assert notes == (
        "bounds is data in the first run and None in the second.",
        "pgd takes 10 steps in the first run and 40 in the second.",
    )


# ---- the command and the page


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_exit_codes_for_ci(tmp_path: Path) -> None:
    one = classifier(tmp_path / "a", "old", set(range(30)))
    two = classifier(tmp_path / "b", "new", set(range(60)))
    worse = call(one, two)
    assert worse.exit_code == 3, worse.output
    assert "new is less robust than old: under pgd at eps = 0.1 the fooling ratio rose by 30.0" in " ".join(
        worse.stdout.split()
    )
    assert (two / "compare.html").is_file()
    better = call(two, one, "--out", tmp_path / "deep" / "out")
    assert better.exit_code == 0
    assert (tmp_path / "deep" / "out" / "compare.html").is_file()
    assert call(one, two, "--tolerance", "0.5").exit_code == 0
    for wrong in ((one, tmp_path), (one, two, "--tolerance", "-1"), (one, tmp_path / "absent"), (one,)):
        refused = call(*wrong)
        assert refused.exit_code == 2
        assert refused.stderr.count("\n") == 1
    assert call(one, two, "--out", one / "manifest.json").exit_code == 2  # a file where the folder should be


def test_page_says_what_the_comparison_found(tmp_path: Path) -> None:
    one = classifier(tmp_path / "a", "old", set(range(30)))
    two = classifier(tmp_path / "b", "new", set(range(60)))
    path = write_comparison(compare_runs(one, two), tmp_path)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8")))
    assert "Is new less robust than old?" in text
    assert "30.0 60.0 +30.0 points +21.0 to +39.0 fell" in text
    assert path.read_bytes() == write_comparison(compare_runs(one, two), tmp_path).read_bytes()


def test_hostile_names_are_text_in_page_and_terminal(tmp_path: Path) -> None:
    runs = []
    for folder, count in (("a", 30), ("b", 60)):
        name = folder + HOSTILE
        rows = [entry(i, name, i < count, attack=HOSTILE) for i in range(100)]
        content = manifest(name, configuration={"bounds": folder + HOSTILE}, command=HOSTILE)
        runs.append(write(tmp_path / folder, rows, content))
    done = call(*runs)
    assert done.exit_code == 3
    source = (tmp_path / "b" / "compare.html").read_text(encoding="utf-8")
    for output in (done.stdout, done.stderr, source):
        assert "\x1b" not in output
        assert "\u202e" not in output
    assert "<script>alert" not in source
    assert source.count("<script") == 1
    assert "&lt;script&gt;alert(1)" in source
    assert not list(tmp_path.parent.glob("x*"))
    assert "red" in done.stdout
    assert io.StringIO(done.stdout).read().count("</script>") >= 1  # shown as it is
