"""The report: tables against counting by hand, figures against the tables, the page against hostile input."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import binomtest

from epsball.errors import InputError, Status
from epsball.metrics.intervals import wilson_interval
from epsball.report import (
    DistanceHistogram,
    ExampleGrid,
    FoolingCurves,
    cost_table,
    fooling_table,
    to_csv,
    to_latex,
    to_markdown,
    transfer_table,
    write_page,
)
from epsball.report.answer import answer, explain_eps
from epsball.report.paper import draw_figure3
from epsball.report.paper_text import method_name
from epsball.report.quality import quality_answer
from epsball.report.style import Drawing, line_styles, new_figure
from epsball.report.text import label, listed, printable, share
from epsball.report.views import status_view

SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("sample_id", "steps", "target", "prediction", "clean_prediction")),
        *((name, pa.int64()) for name in ("forwards", "backwards")),
        *((name, pa.string()) for name in ("attack", "status", "crafted_on", "judged_on")),
        *((name, pa.float64()) for name in ("p", "eps", "gain", "norm_l1", "norm_l2", "norm_linf")),
        *((name, pa.float64()) for name in ("psnr_in", "psnr_out", "seconds")),
        ("success", pa.bool_()),
    ]
)


def row(sample: int, attack: str = "fgsm", eps: float = 0.1, success: bool = True, **changes: Any) -> dict[str, Any]:
    """One row of a results table: sample `sample` of class 3, attacked on and judged by the network "net"."""
    values = {
        **{"sample_id": sample, "attack": attack, "p": math.inf, "eps": eps, "steps": 1, "target": 3},
        **{"prediction": 5 if success else 3, "clean_prediction": 3, "success": success},
        **{"status": "SUCCESS" if success else "STANDS", "gain": 1.0 if success else -1.0},
        **{"norm_l1": 8 * eps, "norm_l2": 3 * eps, "norm_linf": eps, "psnr_in": 20.0, "psnr_out": None},
        **{"forwards": 2, "backwards": 1, "seconds": 0.004, "crafted_on": "net", "judged_on": "net"},
    }
    return values | changes


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def many(attack: str, eps: float, fooled: int, n: int, **changes: Any) -> list[dict[str, Any]]:
    """Make n correctly classified samples, of which the first `fooled` are fooled."""
    return [row(i, attack, eps, i < fooled, **changes) for i in range(n)]


SMALL = table(
    [
        row(0, norm_linf=0.02),
        row(1, norm_linf=0.06, forwards=4),
        row(2, success=False, backwards=3),
        row(3, norm_linf=0.1, seconds=0.008),
        row(4, norm_linf=0.0, clean_prediction=7, status="ALREADY"),  # wrong from the start: does not count
        row(0, "pgd", 0.2, success=False),
        row(0, "pgd", 0.05, success=False),
    ]
)


def write_run(folder: Path, rows: list[dict[str, Any]], manifest: dict[str, Any] | None = None) -> Path:
    pq.write_table(table(rows), folder / "results.parquet")
    (folder / "manifest.json").write_text(json.dumps({} if manifest is None else manifest), encoding="utf-8")
    return folder


def write_examples(folder: Path, shape: tuple[int, ...], attacks: tuple[str, ...] = ("fgsm",), **changes: Any) -> Path:
    x = np.random.default_rng(0).uniform(0.2, 0.8, (3, *shape))
    arrays: dict[str, Any] = {"sample_id": np.array([4, 8, 15]), "x": x, "target": np.array([3, 3, 1])}
    arrays |= {"clean_prediction": np.array([3, 3, 2]), "example_eps": np.array(0.1)}
    for name in attacks:
        arrays[f"perturbed/{name}"] = x + 0.1 * np.sign(np.sin(37.0 * x))
        arrays[f"prediction/{name}"] = np.array([5, 3, 2])
        arrays[f"success/{name}"] = np.array([True, False, True])
    np.savez(folder / "examples.npz", **(arrays | changes))
    return folder / "examples.npz"


MANIFEST: dict[str, Any] = {
    "command": "epsball evaluate --model net",
    "created": "2026-03-01T10:00:00+00:00",
    "question": "How much does net stand?",
    "task": "classification",
    "model": {"name": "net", "summary": "a net", "digest": "ab", "parameters": 1234, "card": {"epochs": 3}},
    "data": {
        "name": "mnist",
        "split": "test",
        "count": 1000,
        "of": 10000,
        "bounds": [0.0, 1.0],
        "classes": list("abcdef"),
    },
    "attacks": [
        {"name": "fgsm", "steps": 1, "summary": "one step", "reference": "someone", "formulation": "norm-constrained"},
        {"name": "deepfool", "steps": 50, "formulation": "minimal-norm"},
    ],
    "p": "inf",
    "bounds": None,
    "versions": {"epsball": "0.1.0"},
    "configuration": {"eps": [0.1]},
}


HOSTILE = (
    '</script><script>alert("1")</script>"\'><img src=x onerror=alert(1)>\x1b[31mred\x1b]0;t\x07\u202e{{ 7*7 }}\ud800'
)


class Page(HTMLParser):
    """Checks that elements close in order, and collects text, attributes and tags."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th") else ""

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def read(path: Path) -> tuple[str, Page]:
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


# ---- intervals


@settings(deadline=None)  # SciPy's first call imports for a second
@given(st.integers(0, 3000), st.integers(0, 3000), st.floats(0.5, 0.999))
def test_wilson_interval_is_scipys(a: int, b: int, level: float) -> None:
    k, n = min(a, b), max(a, b, 1)
    expected = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson_interval(k, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_at_its_ends() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0 < wilson_interval(0, 10)[1]
    assert wilson_interval(10, 10)[1] == 1.0 > wilson_interval(10, 10)[0]


@pytest.mark.parametrize(("k", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (0, -1, 0.95), (1, 2, 0.0), (1, 2, 1.0)])
def test_wilson_interval_refuses(k: int, n: int, level: float) -> None:
    with pytest.raises(InputError, match="expected"):
        wilson_interval(k, n, level)


# ---- tables


def test_fooling_table_by_hand() -> None:
    rows = fooling_table(SMALL)
    assert [(r["attack"], r["eps"]) for r in rows] == [("fgsm", 0.1), ("pgd", 0.05), ("pgd", 0.2)]
    first = rows[0]
    assert (first["n"], first["fooled"], first["steps"]) == (4, 3, 1)
    assert first["percent"] == 75.0
    # Wilson at 3 of 4, z = 1.959964: centre (0.75 + z²/8) / (1 + z²/4), worked out on paper.
    assert first["low"] == pytest.approx(30.0642, abs=1e-3)
    assert first["high"] == pytest.approx(95.4413, abs=1e-3)
    assert first["median_norm"] == 0.06
    # Costs are means over all five samples, the one that does not count included.
    assert first["forwards"] == (2 + 4 + 2 + 2 + 2) / 5
    assert first["backwards"] == (1 + 1 + 3 + 1 + 1) / 5
    assert first["seconds_per_1000"] == pytest.approx(1000 * (4 * 0.004 + 0.008) / 5)
    assert rows[1]["median_norm"] is None


@pytest.mark.parametrize(("p", "column"), [(1.0, "norm_l1"), (2.0, "norm_l2"), (math.inf, "norm_linf"), (1.5, None)])
def test_median_is_in_the_norm_of_the_run(p: float, column: str | None) -> None:
    rows = [row(i, p=p, norm_l1=1.0 + i, norm_l2=2.0 + i, norm_linf=3.0 + i) for i in range(3)]
    expected = None if column is None else statistics.median(r[column] for r in rows)
    assert fooling_table(table(rows))[0]["median_norm"] == expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["b", "a"]), st.sampled_from([0.1, 0.3]), st.booleans(), st.booleans(), st.integers(0, 9)
        ),
        max_size=40,
    )
)
def test_fooling_table_is_the_count_by_hand(entries: list[tuple[str, float, bool, bool, int]]) -> None:
    rows = [
        row(i, attack, eps, success, clean_prediction=3 if correct else 0, forwards=cost)
        for i, (attack, eps, success, correct, cost) in enumerate(entries)
    ]
    found = {(r["attack"], r["eps"]): r for r in fooling_table(table(rows))}
    assert set(found) == {(attack, eps) for attack, eps, *_ in entries}
    for (attack, eps), line in found.items():
        mine = [e for e in entries if e[:2] == (attack, eps)]
        correct = [e for e in mine if e[3]]
        assert line["n"] == len(correct)
        assert line["fooled"] == sum(e[2] for e in correct)
        assert line["percent"] == (100 * sum(e[2] for e in correct) / len(correct) if correct else None)
        assert line["forwards"] == pytest.approx(sum(e[4] for e in mine) / len(mine))


def test_chunked_and_dictionary_columns_are_the_same_table() -> None:
    whole = table([row(i, attack) for attack in ("fgsm", "pgd") for i in range(3)])
    parts = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    index = parts.schema.get_field_index("attack")
    parts = parts.set_column(index, "attack", parts["attack"].dictionary_encode())
    assert fooling_table(parts) == fooling_table(whole)


def test_cost_table_by_hand() -> None:
    assert cost_table(SMALL)[0] == {
        **{"attack": "fgsm", "crafted_on": "net", "steps": 1, "n": 5, "forwards": 2.4, "backwards": 1.4},
        "jvps": 0.0,
        **{"passes": pytest.approx(3.8), "seconds_per_1000": pytest.approx(4.8)},
    }
    twice = table([row(0, "deepfool", eps, forwards=7, backwards=9) for eps in (0.1, 0.2)])
    assert cost_table(twice)[0]["passes"] == 16  # one run, in the rows of two budgets


def test_transfer_table_takes_the_largest_budget_and_own_perturbations_first() -> None:
    rows = many("alg1", 0.1, 1, 4, crafted_on="a", judged_on="b") + many(
        "alg1", 0.2, 2, 4, crafted_on="a", judged_on="b"
    )
    rows += many("alg1", 0.2, 4, 4, crafted_on="b", judged_on="b")
    lines = transfer_table(table(rows))
    assert [(r["crafted_on"], r["judged_on"], r["percent"]) for r in lines] == [("b", "b", 100.0), ("a", "b", 50.0)]
    assert [r["percent"] for r in transfer_table(table(rows), eps=0.1)] == [25.0]


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(InputError, match="without status"):
        fooling_table(SMALL.drop_columns(["status"]))
    index = SMALL.schema.get_field_index("eps")
    with pytest.raises(InputError, match="column of numbers"):
        fooling_table(SMALL.set_column(index, "eps", pa.array(["wide"] * len(SMALL))))


def test_markdown_csv_and_latex() -> None:
    rows = [{"attack": "a|b_<i>&%\n", "eps": 0.1, "n": 9820, "percent": 93.14159, "median_norm": None}]
    assert to_markdown(rows) == (
        "| attack | eps | samples | fooling ratio (%) | median norm |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| a\\|b\\_&lt;i&gt;&amp;%  | 0.1 | 9,820 | 93.1 | – |\n"
    )
    assert to_csv(rows) == 'attack,eps,n,percent,median_norm\n"a|b_<i>&%\n",0.1,9820,93.14159,\n'
    latex = to_latex(rows, ["attack", "percent"])
    assert r"a\textbar{}b\_\textless{}i\textgreater{}\&\% & 93.1 \\" in latex
    assert latex.startswith("\\begin{tabular}{lr}\n\\hline\n")
    assert r"fooling ratio (\%)" in latex
    assert (to_markdown([]), to_csv([]), to_latex([])) == ("", "", "")


def test_no_cell_is_a_formula_for_a_spreadsheet() -> None:
    rows = [{"attack": text} for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a=1")]
    assert to_csv(rows).splitlines()[1:] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "a=1"]


NASTY = (
    "\\input{/etc/passwd}",
    "a%b",
    "$x$",
    "x^2_1~#&{}",
    "[1pt] * --",
    "a--b---c",
    "é ñ Å ž ∞ ℓ 日本",
    "`?`!`",
    HOSTILE,
)


def test_latex_is_ascii_and_every_sign_is_escaped() -> None:
    text = to_latex([{"attack": name} for name in NASTY], ["attack"])
    assert text.isascii()
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert r"{[}1pt] {*} -{}-" in text  # neither belongs to the end of the row above
    assert r"\'{e} \~{n} \r{A} \v{z} $\infty$ $\ell$ {[}U+65E5]{[}U+672C]" in text
    assert "a-{}-b-{}-{}-c" in text
    assert not re.search(r"(?<!\\)[%#&_]", text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_in_an_empty_document(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "nasty.tex").write_text(to_latex([{"attack": n, "eps": math.inf} for n in NASTY]), encoding="ascii")
    inputs = [tmp_path / "nasty.tex", *(finished / "tables").iterdir()]
    body = "\n\n".join(f"\\input{{{path}}}" for path in inputs)
    document = f"\\documentclass{{article}}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (tmp_path / "main.tex").write_text(document, encoding="ascii")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout


# ---- the answer


def test_answer_names_the_strongest_attack_at_the_first_budget_that_fools_half() -> None:
    rows = many("alg1-10", 0.05, 9, 40) + many("alg1-10", 0.1, 30, 40) + many("alg1-10", 0.2, 40, 40)
    rows += many("pgd", 0.05, 10, 40) + many("pgd", 0.1, 21, 40) + many("random-linf", 0.1, 1, 40)
    found = answer(fooling_table(table(rows)), "images")
    low, high = (100 * end for end in wilson_interval(30, 40))
    assert found.text.replace("\u00a0", " ") == (
        f"At eps = 0.1 the strongest attack run, alg1-10, fools 75.0 % ({low:.1f} to {high:.1f}) of the 40 correctly "
        "classified images; random noise of the same size fools 2.5 %."
    )
    assert (
        found.reason
        == "0.1 is the smallest of the 3 budgets tried (0.05 to 0.2) at which an attack fools at least half."
    )
    assert found.eps == 0.1


def test_answer_where_nothing_fools_half_a_tie_and_noise_in_another_norm() -> None:
    rows = many("dear", 0.1, 4, 10, forwards=50) + many("cheap", 0.1, 4, 10) + many("random-l2", 0.1, 1, 10, p=2.0)
    rows += many("cheap", 0.05, 1, 10)
    found = answer(fooling_table(table(rows)))
    assert "the strongest attacks run, cheap and dear, each fool 40.0" in found.text
    assert found.strongest is not None
    assert found.strongest["attack"] == "cheap"
    assert "noise" not in found.text
    assert (
        found.reason
        == "0.1 is the largest of the 2 budgets tried (0.05 to 0.1); at none of them did an attack fool half."
    )


def test_answer_names_whatever_lies_within_the_interval_of_the_strongest() -> None:
    """Both ends of Wilson's interval by SciPy: 40 of 100 reaches down to 31 of 100, not to 30."""
    low = 100 * binomtest(40, 100).proportion_ci(0.95, "wilson").low
    assert 30 < low <= 31
    rows = [r for name, n in (("best", 40), ("near", 39), ("edge", 31), ("far", 30)) for r in many(name, 0.1, n, 100)]
    text = answer(fooling_table(table(rows))).text.replace("\u00a0", " ")
    assert "strongest attack run, best, fools 40.0 %" in text
    assert text.endswith("; near (39.0 %) and edge (31.0 %) lie within that interval.")
    rows += many("random-linf", 0.1, 35, 100)  # noise is no attack: it is compared with, not tied
    text = answer(fooling_table(table(rows))).text.replace("\u00a0", " ")
    assert text.endswith("lie within that interval; random noise of the same size fools 35.0 %.")
    same = [r for name in "abcdef" for r in many(name, 0.1, 7, 7)]
    assert "attacks run, a, b, c and 3 more, each fool 100.0" in answer(fooling_table(table(same))).text
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c", "d"]) == "a, b, c and d"


def test_quality_answer_names_ties_and_those_within_the_interval() -> None:
    def of(attack: str, quality: float, passes: float = 3.0) -> dict[str, Any]:
        ends = {"psnr_out": quality, "psnr_out_low": quality - 0.5, "psnr_out_high": quality + 0.5}
        return {"attack": attack, "p": 2.0, "eps": 0.1, "n": 9, "psnr_in": 30.0, "passes": passes} | ends

    rows = [of("dear", 12.0, 90.0), of("cheap", 12.0), of("near", 12.5), of("far", 12.6), of("random-l2", 12.2)]
    text = quality_answer(rows, 20.0).text.replace("\u00a0", " ")
    assert "the strongest attacks run, cheap and dear, each bring the output PSNR from 20.0 dB" in text
    assert "over 9 samples; near (12.5 dB) lies within that interval; the perturbed inputs" in text
    assert "far" not in text
    assert "the strongest attack run, near, brings the output PSNR" in quality_answer(rows[2:], 20.0).text
    lone = of("one", 12.0) | {"psnr_out_low": math.nan, "psnr_out_high": math.nan}  # one sample has no interval
    assert "interval;" not in quality_answer([lone, of("near", 12.1)], None).text


def test_samples_wrong_from_the_start_are_already_under_every_attack(tmp_path: Path) -> None:
    """One-step attacks and noise perturb them, iterated ones leave them: in the table all of them agree."""
    kinds = {"one-step": "SUCCESS", "iterated": "ALREADY", "random-linf": "STANDS", "stuck": "ZERO_GRADIENT"}
    rows = []
    for attack, status in kinds.items():
        rows += many(attack, 0.1, 6, 10)
        rows += [row(10 + i, attack, success=status != "STANDS", clean_prediction=5, status=status) for i in range(3)]
    rows += [row(13, "one-step", success=False, clean_prediction=5, status="NON_FINITE")]  # a failure stays one
    seen = status_view(table(rows), "net", 0.1, {})
    assert seen is not None
    counted = {names[0]: dict(zip(seen.heads, cells, strict=True)) for names, cells in seen.lines}
    for attack in kinds:
        expected = {"SUCCESS": 6, "STANDS": 4, "ALREADY": 3, "NON_FINITE": int(attack == "one-step")}
        assert counted[attack] == expected, attack
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST)))
    assert "classified wrongly from the start are ALREADY under every attack, whether it changed them" in page.words


def test_warnings_are_the_manifests_and_said_before_the_numbers(tmp_path: Path) -> None:
    warning = {"kind": "eps-range", "seen": "eps = 8 <b>is</b> large.", "means": "Other units?", "next": "Less."}
    content = MANIFEST | {"warnings": [warning, "no", {"seen": ""}, {"seen": 3, "means": None}]}
    text, page = read(write_page(write_run(tmp_path, many("fgsm", 0.1, 6, 10), content)))
    assert "Warning: eps = 8 <b>is</b> large. Other units? Less." in page.words
    assert "<b>is" not in text
    assert page.words.count("Warning:") == 2
    assert page.words.index("Warning:") < page.words.index("Fooling ratio in %")
    _, page = read(write_page(write_run(tmp_path, many("fgsm", 0.1, 6, 10), MANIFEST | {"warnings": 3})))
    assert "Warning:" not in page.words


def test_answer_to_nothing() -> None:
    assert "no classified samples" in answer([]).text
    wrong = table([row(0, clean_prediction=1)])
    assert "none of these samples correctly" in answer(fooling_table(wrong)).text
    assert "random-linf, fools" in answer(fooling_table(table(many("random-linf", 0.1, 1, 4)))).text


def test_eps_in_words() -> None:
    assert explain_eps(math.inf, 0.1, (0.0, 1.0), True) == (
        "eps = 0.1 means that every pixel value may be changed, none of them by more than 0.1, on a scale from 0 to 1."
    )
    assert "Euclidean length" in explain_eps(2.0, 0.5, None, False)
    assert "added up without sign" in explain_eps(1.0, 0.5, None, False)
    assert "ℓ1.5 norm" in explain_eps(1.5, 0.5, (0.0, 1.0), False)


def test_a_share_is_never_rounded_to_all_or_none() -> None:
    assert (share(9999, 10000), share(1, 100000), share(10, 10), share(0, 10)) == ("99.99", "0.001", "100.0", "0.0")
    assert (share(93, 1000), share(0, 0)) == ("9.3", "–")


# ---- figures


def curves_table() -> pa.Table:
    rows = [r for eps, k in ((0.05, 1), (0.1, 4), (0.2, 9)) for r in many("alg1", eps, k, 10)]
    return table(rows + [r for eps, k in ((0.05, 0), (0.2, 1)) for r in many("random-linf", eps, k, 10)])


def test_curves_hold_and_draw_the_numbers_of_the_table() -> None:
    before = dict(mpl.rcParams)
    display = FoolingCurves.from_table(curves_table(), data="mnist test, 10 of 10,000")
    alg1 = display.curves[0]
    rows = [r for r in fooling_table(curves_table()) if r["attack"] == "alg1"]
    assert alg1.name == "alg1"
    for key in ("eps", "percent", "low", "high"):
        np.testing.assert_array_equal(getattr(alg1, key), [r[key] for r in rows])
    ax = display.plot()
    lines = {tuple(line.get_xydata()[:, 1]) for line in ax.lines}
    assert lines == {(10.0, 40.0, 90.0), (0.0, 10.0)}
    assert ax.get_title(loc="left") == "mnist test, 10 of 10,000; n = 10 correctly classified"
    assert "units of x" in ax.get_xlabel()
    assert "ℓ∞" in ax.get_xlabel()
    assert "%" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["alg1", "random-linf"]
    assert dict(mpl.rcParams) == before


def test_the_legend_stays_clear_of_the_curves() -> None:
    for legend in ("right", "below"):
        ax = FoolingCurves.from_table(curves_table()).plot(legend=legend)
        ax.figure.draw_without_rendering()
        box, area, page = ax.get_legend().get_window_extent(), ax.get_window_extent(), ax.figure.bbox
        assert not box.overlaps(area)
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
    with pytest.raises(InputError, match="legend"):
        FoolingCurves(()).plot(legend="inside")


def test_figures_draw_on_the_users_axes_and_leave_pyplot_alone() -> None:
    import sys

    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert FoolingCurves.from_table(curves_table()).plot(first) is first
    assert DistanceHistogram(np.array([0.1, 0.2]), 2.0).plot(second) is second
    assert second.patches
    assert first.lines
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_one_eps_is_drawn_as_points_and_several_judges_are_named() -> None:
    rows = many("a", 0.1, 3, 10) + many("b", 0.1, 5, 10)
    ax = FoolingCurves.from_table(table(rows)).plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_legend() is None
    rows += many("a", 0.1, 3, 10, judged_on="other")
    assert [c.name for c in FoolingCurves.from_table(table(rows)).curves] == [
        *("a on net", "b on net", "a (crafted on net) on other"),
    ]
    assert len(FoolingCurves.from_table(table(rows), judged_on="other").curves) == 1
    assert FoolingCurves.from_table(table([])).plot().lines[:] == []


def test_line_styles_differ_without_colour() -> None:
    names = [f"attack-{i}" for i in range(20)] + ["random-linf", "random-l2"]
    styles = line_styles(names)
    assert len({(str(s["linestyle"]), s["marker"], s["color"]) for s in styles}) == len(names)
    assert len({(str(s["linestyle"]), s["marker"]) for s in styles[:11]}) == 11  # in greyscale
    assert styles[-1]["color"] == styles[-2]["color"] != styles[0]["color"]


def test_hostile_names_are_drawn_as_they_are() -> None:
    rows = [r for eps in (0.1, 0.2) for r in many("$\\frac{$_^", eps, 3, 10) + many("_hidden\x1b[31m", eps, 1, 10)]
    ax = FoolingCurves.from_table(table(rows), data="a $\\nonsense{$ name").plot()
    assert len(ax.get_legend().get_texts()) == 2
    ax.figure.draw_without_rendering()


def test_distances_count_each_sample_once_and_those_never_fooled_apart() -> None:
    rows = []
    for eps in (0.1, 0.2):
        rows += [row(i, "deepfool", eps, d <= eps, norm_linf=d, prediction=5) for i, d in enumerate((0.05, 0.3, 0.15))]
        rows += [row(3, "deepfool", eps, False, norm_linf=0.4, prediction=3)]  # nothing found
        rows += [row(4, "deepfool", eps, True, norm_linf=0.0, clean_prediction=5, prediction=5)]  # wrong before
    display = DistanceHistogram.from_table(table(rows), "deepfool")
    assert sorted(display.distances) == [0.05, 0.15, 0.3]
    assert (display.missing, display.count, display.median, display.p) == (1, 4, 0.15, math.inf)
    ax = display.plot()
    assert sum(patch.get_height() for patch in ax.patches) == 3
    assert "1 not fooled" in ax.get_title(loc="left")
    assert DistanceHistogram(np.array([0.1]), 2.0, missing=3).median == math.inf
    assert math.isnan(DistanceHistogram(np.zeros(0), 2.0).median)
    DistanceHistogram(np.zeros(0), 2.0).plot()
    with pytest.raises(InputError, match="did you mean"):
        DistanceHistogram.from_table(table(rows), "deepfol")
    with pytest.raises(InputError, match="expected one p"):
        DistanceHistogram.from_table(table([row(0, "deepfool", p=1.5)]), "deepfool")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)])
def test_examples_as_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    grid = ExampleGrid.from_npz(write_examples(tmp_path, shape), classes=list("abcdef"))
    assert grid.is_image
    assert len(grid) == 3
    assert grid.eps == 0.1
    assert grid.factor == pytest.approx(5.0)  # 0.1 fills half of [0, 1]
    np.testing.assert_allclose(grid.perturbation("fgsm"), grid.attacks["fgsm"].perturbed - grid.x)
    picture = grid.amplified("fgsm", 0)
    assert picture.shape == (*shape[1:], 3)
    assert set(np.unique(picture)) <= {0, 128, 255}  # -0.1, 0 and 0.1, times five, around mid-grey
    zero = ExampleGrid(grid.sample_id, grid.x, {"none": type(grid.attacks["fgsm"])(grid.x, None, np.zeros(3, bool))})
    assert (zero.amplified("none", 0) == 128).all()
    assert [grid.original_text(i) for i in range(3)] == ["d", "d", "c (is b)"]
    assert [grid.perturbed_text("fgsm", i) for i in range(3)] == ["f, fooled", "d, stands", "c, fooled"]
    axes = grid.plot()
    assert axes.shape == (3, 3)
    assert "×5" in axes[0, 1].get_title()
    np.testing.assert_array_equal(axes[1, 2].images[0].get_array(), grid.picture(grid.attacks["fgsm"].perturbed[1]))


def test_a_perturbation_without_a_budget_can_lie_beyond_eps(tmp_path: Path) -> None:
    grid = ExampleGrid.from_npz(write_examples(tmp_path, (1, 4, 4), example_eps=np.array(0.05)))
    assert [grid.perturbed_text("fgsm", i) for i in range(3)] == ["5, fooled", "3, beyond eps", "2, fooled"]


@pytest.mark.parametrize("shape", [(13,), (2, 9), (1, 1, 7), (4, 5, 5)])
def test_examples_that_are_no_images_are_lines(tmp_path: Path, shape: tuple[int, ...]) -> None:
    grid = ExampleGrid.from_npz(write_examples(tmp_path, shape, ("fgsm", "pgd")), attacks=["pgd"], limit=2)
    assert not grid.is_image
    assert len(grid) == 2
    assert list(grid.attacks) == ["pgd"]
    axes = grid.plot(Figure().subplots(2, 3))
    np.testing.assert_allclose(axes[0, 1].lines[-1].get_ydata(), grid.perturbation("pgd")[0].reshape(-1))
    with pytest.raises(InputError, match="2 x 3 Axes"):
        grid.plot(Figure().subplots(1, 3))


def test_examples_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_examples(tmp_path, (1, 4, 4))
    with pytest.raises(InputError, match="unknown attack"):
        ExampleGrid.from_npz(path, attacks=["fgms"])
    with pytest.raises(InputError, match="found none"):
        ExampleGrid.from_npz(tmp_path / "absent.npz")
    content = path.read_bytes()
    for damage in (b"", b"no archive", content[: len(content) // 2], content[:200] + b"\xff" * 200 + content[400:]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="not a readable"):
            ExampleGrid.from_npz(path)
    write_examples(tmp_path, (1, 4, 4), x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):  # pickled objects stay unopened
        ExampleGrid.from_npz(path)
    write_examples(tmp_path, (1, 4, 4), **{"perturbed/fgsm": np.zeros((3, 1, 4, 5))})
    with pytest.raises(InputError, match="expected that of x"):
        ExampleGrid.from_npz(path)


def test_inline_svg_has_its_own_ids_and_no_addresses() -> None:
    ax = FoolingCurves.from_table(curves_table()).plot()
    svg = Drawing(ax.figure, "one").inline()
    Page(svg)
    assert "http" not in svg
    assert "var(--s0)" in svg
    assert "currentColor" in svg
    assert "<?xml" not in svg
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert {ref.lstrip("#") for ref in re.findall(r'href="([^"]*)"', svg)} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(ids)
    again = FoolingCurves.from_table(curves_table()).plot()
    assert Drawing(again.figure, "one").inline() == svg


# ---- the page


def full_run(folder: Path, manifest: dict[str, Any] | None = None) -> Path:
    rows = [r for eps, k in ((0.05, 10), (0.1, 62), (0.2, 100)) for r in many("fgsm", eps, k, 100)]
    rows += [r for eps, k in ((0.05, 9), (0.1, 50), (0.2, 90)) for r in many("deepfool", eps, k, 100)]
    rows += [r for eps in (0.05, 0.1, 0.2) for r in many("random-linf", eps, 2, 100)]
    write_examples(folder, (1, 8, 8), ("fgsm", "deepfool", "random-linf"))
    return write_run(folder, rows, MANIFEST if manifest is None else manifest)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its page, for tests that only read."""
    folder = full_run(tmp_path_factory.mktemp("run"))
    assert write_page(folder) == folder / "report.html"
    return folder


def test_page_of_a_run(finished: Path) -> None:
    _, page = read(finished / "report.html")
    low, high = (100 * end for end in wilson_interval(62, 100))
    assert (
        f"At eps = 0.1 the strongest attack run, fgsm, fools 62.0 % ({low:.1f} to {high:.1f}) of the 100 correctly "
        "classified images; random noise of the same size fools 2.0 %." in page.words
    )
    assert "How much does net stand?" in page.words
    assert "mnist test, 1,000 of 10,000 images" in page.words  # a part of a set says so
    assert "How far from a wrong answer" in page.words
    assert "Do perturbations transfer?" not in page.words
    assert Status.STANDS.value in page.words
    assert "none: perturbed values may leave the data's range" in page.words
    names = {path.name for path in (finished / "figures").iterdir()}
    assert names == {f"{name}.{end}" for name in ("fooling", "examples", "distances-0") for end in ("svg", "png")}
    assert {path.name for path in (finished / "tables").iterdir()} == {"fooling.tex", "cost.tex"}
    assert (finished / "figures" / "fooling.png").read_bytes().startswith(b"\x89PNG")
    assert 'fill="white"' in (finished / "figures" / "fooling.svg").read_text(encoding="utf-8")
    assert not list(finished.rglob(".*"))


def test_page_loads_nothing_and_runs_its_own_script_alone(finished: Path) -> None:
    source, page = read(finished / "report.html")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", source, re.DOTALL)
    assert [head for head, _ in scripts] == [' type="application/json" id="gallery-data"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode("utf-8")).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")  # no other script would run
    for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest", "import("):
        assert word not in scripts[1][1]
    assert "iframe" not in page.tags
    assert "object" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.findall(r"url\((?!#)", source)
    assert "@import" not in source
    source = source.replace('"http://www.w3.org/2000/svg"', "")  # the name of SVG, which nothing looks up
    assert "http:" not in source
    assert "https:" not in source
    targets = [value for tag, name, value in page.attributes if name == "id"]
    assert len(targets) == len(set(targets))
    assert {v[1:] for t, n, v in page.attributes if n == "href" and v.startswith("#")} <= set(targets)


def test_page_can_be_heard(finished: Path) -> None:
    _, page = read(finished / "report.html")
    count = page.tags.count
    assert count("caption") == count("table") > 3
    assert count("th") == sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert count("img") == len(alts) == 3 * 7
    assert all(alts)
    assert ("html", "lang", "en") in page.attributes
    assert count("h1") == 1


def test_hostile_values_are_text(tmp_path: Path) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key if key in MANIFEST or key in STRUCTURE else key + HOSTILE: spoil(v) for key, v in value.items()}
        if isinstance(value, list):
            return [spoil(entry) for entry in value]
        return value + HOSTILE if isinstance(value, str) else value

    name = HOSTILE.replace("\ud800", "")  # no text column can hold half a character
    rows = many(name, 0.1, 6, 10, crafted_on=name, judged_on=name, status=name)
    write_run(tmp_path, rows, spoil(MANIFEST))
    write_examples(tmp_path, (1, 8, 8), ("a" + name.replace("/", "∕"),))
    source, page = read(write_page(tmp_path))
    assert page.tags.count("script") == 2
    assert "<script>alert" not in source
    assert not [value for tag, attribute, value in page.attributes if attribute.startswith("on") or value == "x"]
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "[31m" not in source
    assert "\x07" not in source
    assert '<script>alert("1")</script>"\'><img src=x onerror=alert(1)>red{{ 7*7 }}' in page.text
    assert "49" not in re.findall(r"red(\d*)", page.text)
    for path in (tmp_path / "tables").iterdir():
        text = path.read_text(encoding="ascii")
        assert "\x1b" not in text
        assert "<" not in text
        assert not re.search(r"(?<!\\)[%#&_$]{2}|\{\{ 7", text)


STRUCTURE = frozenset(
    key for part in (*MANIFEST.values(), *MANIFEST["attacks"]) if isinstance(part, dict) for key in part
)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        dict.fromkeys(MANIFEST),
        dict.fromkeys(MANIFEST, "text"),
        {key: [1, {"name": 2}] for key in MANIFEST},
        {key: {"name": [], "value": {}} for key in MANIFEST},
        {**MANIFEST, "data": {"count": "many", "bounds": [1, 0], "classes": [None]}, "seconds": math.nan, "p": "x"},
        {**MANIFEST, "task": "regression", "question": ""},
    ],
)
def test_whatever_the_manifest_lacks(tmp_path: Path, manifest: dict[str, Any]) -> None:
    _, page = read(write_page(write_run(tmp_path, many("fgsm", 0.1, 6, 10), manifest)))
    assert "fgsm, fools 60.0 %" in page.words


def test_regression_rows_do_not_break_the_page(tmp_path: Path) -> None:
    nothing = {"target": None, "prediction": None, "clean_prediction": None, "psnr_out": 12.0}
    write_run(tmp_path, [row(i, **nothing) for i in range(4)], {"task": "regression", "model": {"name": "net"}})
    made: dict[str, Any] = {"target": np.zeros((3, 3, 8, 8)), "clean_output": np.ones((3, 3, 8, 8))}
    made |= {"output/fgsm": np.full((3, 3, 8, 8), 0.5), "clean_psnr": np.array([21.0, np.inf, np.nan])}
    made |= {"psnr_in/fgsm": np.full(3, 20.0), "psnr_out/fgsm": np.full(3, 12.0)}
    write_examples(tmp_path, (3, 8, 8), **made)
    _, page = read(write_page(tmp_path))
    assert "brings the output PSNR to 12.0 dB (12.0 to 12.0), the mean over 4 images" in page.words
    assert page.tags.count("img") == 3 * 5  # original and its output; perturbation, perturbed input and output
    assert "∞ dB" in page.words


def test_an_empty_table(tmp_path: Path) -> None:
    assert fooling_table(table([])) == cost_table(table([])) == transfer_table(table([])) == []
    _, page = read(write_page(write_run(tmp_path, [], MANIFEST)))
    assert "no classified samples" in page.words
    assert "There are no rows to show." in page.words


def test_one_eps_and_many(tmp_path: Path) -> None:
    _, page = read(write_page(write_run(tmp_path, many("fgsm", 0.1, 6, 10), MANIFEST)))
    assert "bars are 95 % confidence intervals" in page.words
    assert "budgets tried" not in page.words
    grid = [round(0.01 * k, 2) for k in range(1, 21)]
    rows = [r for eps in grid for r in many("fgsm", eps, 6, 10)]
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST)))
    assert sum(1 for tag, name, value in page.attributes if (tag, name, value) == ("th", "scope", "row")) > len(grid)


def test_infinite_budgets_have_no_curve_but_a_line(tmp_path: Path) -> None:
    rows = many("deepfool", math.inf, 6, 10) + many("deepfool", math.nan, 6, 10)
    assert FoolingCurves.from_table(table(rows)).curves == ()
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST)))
    assert "Without a limit on eps the strongest attack run, deepfool, fools 60.0 %" in page.words
    assert "there was none" in page.words


def test_features_instead_of_images(tmp_path: Path) -> None:
    write_examples(tmp_path, (13,))
    _source, page = read(write_page(write_run(tmp_path, many("fgsm", 0.1, 6, 10), MANIFEST)))
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 3 * 3
    for picture in pictures:  # each a drawing with a line, nothing in it that runs
        svg = Page(base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).decode("ascii"))
        assert set(svg.tags) <= {"svg", "path", "circle"}
        assert "path" in svg.tags
    assert "correctly classified samples" in page.words
    assert "every input value" in page.words


def test_transfer_and_the_judge_that_the_page_is_about(tmp_path: Path) -> None:
    rows = many("alg1", 0.1, 9, 10, crafted_on="other") + many("alg1", 0.1, 6, 10)
    rows += many("alg1", 0.1, 10, 10, judged_on="other", crafted_on="other")
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST)))
    assert "the strongest attack run, alg1 (crafted on other), fools 90.0 %" in page.words
    assert "Do perturbations transfer?" in page.words
    assert "judged onother" in page.text


def test_robustness_runs_answer_with_a_distance(tmp_path: Path) -> None:
    rows = [row(i, "deepfool", 0.2, True, norm_linf=0.01 * (i + 1)) for i in range(10)]
    measures = {"rho1": {"value": 0.036, "low": 0.03, "high": 0.04}, "eps99": {"value": None, "low": 0.1, "high": None}}
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST | {"robustness": measures})))
    assert "for half of the 10 correctly classified samples, a perturbation of ℓ∞ norm 0.05 or less" in page.words
    assert "ρ̂₁ 0.036 0.03 to 0.04" in page.words
    assert "ε₉₉ ∞ 0.1 to ∞" in page.words


@pytest.mark.parametrize("status", ["CONSTRAINT_VIOLATED", "NON_FINITE"])
def test_what_went_wrong_is_said_first(tmp_path: Path, status: str) -> None:
    rows = [*many("fgsm", 0.1, 6, 10), row(10, success=False, status=status)]
    _, page = read(write_page(write_run(tmp_path, rows, MANIFEST)))
    assert page.words.index(f"ended with {status}") < page.words.index("Fooling ratio in %")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, finished: Path) -> None:
    assert write_page(full_run(tmp_path)).read_bytes() == (finished / "report.html").read_bytes()
    for path in [*(finished / "figures").iterdir(), *(finished / "tables").iterdir()]:
        assert (tmp_path / path.parent.name / path.name).read_bytes() == path.read_bytes()


def _no_rows(folder: Path) -> None:
    (folder / "results.parquet").unlink()


def _cut_rows(folder: Path) -> None:
    path = folder / "results.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"model": ', encoding="utf-8")


def _list_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]", encoding="utf-8")


def _cut_examples(folder: Path) -> None:
    (folder / "examples.npz").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize("damage", [_no_rows, _cut_rows, _no_manifest, _cut_manifest, _list_manifest, _cut_examples])
def test_a_damaged_run_is_refused_before_anything_is_written(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(full_run(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"results\.parquet|manifest|examples\.npz"):
        write_page(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_run(tmp_path, many("fgsm", 0.1, 6, 10))
    (tmp_path / "figures").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(InputError, match="can be written"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_text_for_terminals_and_figures() -> None:
    assert printable("a\x1b[1;31mb\x9b0mc\x1b]8;;x\x1b\\d\u2066e\tf\n") == "abcde\tf\n"
    assert label("a $x$\nb") == r"a \$x\$ b"
    assert len(label("x" * 100)) == 40


def test_new_figures_are_unknown_to_pyplot() -> None:
    import matplotlib.pyplot as plt

    new_figure(2.0, 2.0)
    assert plt.get_fignums() == []


def test_a_method_has_one_line_in_all_panels_of_figure_3_and_in_the_legend():
    """Also where a panel has not all of the methods: each line is found again by what it shows."""
    curve = {"low": [0.0, 1.0], "high": [100.0, 100.0], "forwards": [1.0, 1.0], "backwards": [0.0, 0.0], "seconds": 1.0}

    def panel(key, names):
        curves = {name: curve | {"percent": [float(10 * k), float(10 * k + 5)]} for k, name in names.items()}
        return {"key": key, "title": key, "range": "unbounded", "count": 50, "eps": [0.1, 0.2], "curves": curves}

    names = {1: "deepfool", 2: "random-linf", 3: "bim", 4: "pgd", 5: "fgsm"}
    panels = [panel("a", names), panel("b", {k: name for k, name in names.items() if name != "bim"})]
    for order in (panels, panels[::-1]):
        figure = draw_figure3(order)
        seen = {}
        for ax in figure.axes:
            for line in ax.get_lines():
                place = round(float(line.get_ydata()[1])) // 10
                look = line.get_color(), line.get_linestyle(), line.get_marker()
                seen.setdefault(names[place], set()).add(look)
        assert set(seen) == set(names.values())
        assert all(len(looks) == 1 for looks in seen.values()), seen
        assert len(set.union(*seen.values())) == len(names)
        (legend,) = figure.legends
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            name = next(name for name in names.values() if method_name(name) == text.get_text())
            assert {(handle.get_color(), handle.get_linestyle(), handle.get_marker())} == seen.pop(name)
        assert not seen


def test_text_stands_left_and_numbers_right_in_a_markdown_table():
    rows = [
        {"a": "text", "b": 1.5, "c": "2.4", "d": "0.1 → 0.2", "e": None},
        {"a": "1", "b": None, "c": "", "d": "", "e": 2},
    ]
    assert to_markdown(rows).splitlines()[1] == "| --- | ---: | ---: | --- | ---: |"
