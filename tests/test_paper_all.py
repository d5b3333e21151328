"""The whole paper in one folder: parts that survive a kill, checks at the door, and the page that is made of them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from epsball import data, networks
from epsball.errors import InputError
from epsball.experiments import paper
from epsball.experiments.paper.parts import Part, Parts
from epsball.networks.storage import save
from epsball.report.paper_claims import Judged, answer, claims_markdown, statements
from epsball.report.paper_page import paper_page
from epsball.report.paper_table3 import deviations, judge_orders, orders
from epsball.report.paper_text import method_name

needs_data = pytest.mark.skipif("EPSBALL_DATA" not in os.environ, reason="needs MNIST and CIFAR-10 in EPSBALL_DATA")

# --------------------------------------------------------------------------------------------------------------- parts


def part(value: float = 1.0) -> Part:
    return Part(pa.table({"sample_id": [0, 1], "gain": [value, 0.1]}), {"seconds": 2.5})


def never() -> Part:
    raise AssertionError("this part was measured already")


def test_a_part_is_measured_once_and_read_again(tmp_path: Path) -> None:
    first = Parts.at(tmp_path, resume=False).get({"seed": 0, "method": "fgsm"}, part)
    again = Parts.at(tmp_path, resume=True).get({"method": "fgsm", "seed": 0}, never)
    assert again.rows.equals(first.rows)
    assert again.rows.equals(part().rows)
    assert again.facts == first.facts == {"seconds": 2.5}


def test_a_part_of_something_else_is_another_file(tmp_path: Path) -> None:
    parts = Parts.at(tmp_path, resume=True)
    for value, identity in enumerate(({"seed": 0}, {"seed": 1}, {"seed": 0, "weights": "other"})):
        got = parts.get(identity, lambda value=value: part(float(value)))
        assert got.rows["gain"][0].as_py() == value
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_without_resume_parts_are_measured_again(tmp_path: Path) -> None:
    Parts.at(tmp_path, resume=False).get({"seed": 0}, part)
    assert Parts.at(tmp_path, resume=False).get({"seed": 0}, lambda: part(7.0)).rows["gain"][0].as_py() == 7.0


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "renamed"])
def test_a_damaged_part_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    parts = Parts.at(tmp_path, resume=True)
    parts.get({"seed": 0}, part)
    (path,) = (tmp_path / "parts").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        parts.get({"seed": 1}, part)
        (other,) = set((tmp_path / "parts").iterdir()) - {path}
        other.replace(path)
    with pytest.raises(InputError, match="remove it to measure it again") as caught:
        parts.get({"seed": 0}, never)
    assert str(path) in str(caught.value)
    path.unlink()
    assert parts.get({"seed": 0}, part).rows.equals(part().rows)


def test_a_part_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.at(tmp_path, resume=True)
    with pytest.raises(AssertionError, match="measured already"):
        parts.get({"seed": 0}, never)
    assert list((tmp_path / "parts").iterdir()) == []

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        parts.get({"seed": 0}, part)
    assert list((tmp_path / "parts").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panels": "ae"}, "expected --panels as letters of 'abcd'"),
        ({"weights": {"cifar10-nim": "w.safetensors"}}, "cifar10-nin"),
    ],
)
def test_settings_are_checked_before_any_work(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paper.figure3(paper.Setting(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_all_makes_all_panels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no --panels"):
        paper.everything(paper.Setting(tmp_path / "out", panels="a"))
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- the tables


def test_table1_is_exact_where_the_paper_says_so() -> None:
    rows = paper.table1()
    for row in rows:
        # ℓ∞ with the quadratic model is NP-hard: nobody can vouch for it; single subsets are enumerated here.
        assert row["exact unbounded"] == (0.0 if row["kind"] == "ℓ∞ constrained, quadratic" else 1.0), row["kind"]
        if "linear" in row["kind"]:
            assert row["exact inside [0, 1]"] == 1.0
    assert {row["problem"] for row in rows} == {"(13)", "(16)", "(18)", "(22)"}


def test_table2_recipes_have_the_papers_columns() -> None:
    rows = paper.table2()
    assert [row["algorithm"] for row in rows] == ["FGSM", "DeepFool", "BIM", "PGD", "Ensemble", "Targeted", "Ours"]
    for row in rows:
        for ours in row["recipes"]:
            assert (ours["iterative"], ours["dithering"]) == (row["iterative"], row["dithering"]), ours["name"]


# ----------------------------------------------------------------------------------------------- a record made by hand

HOSTILE = '<script>alert("x")</script>&\u202e'


def value(paper_value: float, ours: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"paper": paper_value, "ours": ours, "low": low, "high": high}


def row(network: str, title: str, scale: float, spread: float = 0.01) -> dict[str, Any]:
    measures = {
        key: value(scale, scale * (1.0 + by), scale * (1.0 + by - spread), scale * (1.0 + by + spread))
        for key, by in (("rho1", 0.05), ("rho2", -0.1), ("eps99", 0.5))
    }
    error = value(1.7, 1.6, 1.4, 1.8)
    return {"network": network, "title": title, "range": "unbounded", "count": 1000, "error": error, **measures}


def claim(text: str, holds: int, reversed_: int, source: str = "section 6.1") -> dict[str, Any]:
    return {
        "text": text,
        "source": source,
        "difference": [0.0] * 10,
        "holds": holds,
        "reversed": reversed_,
        "sentence": f"holds at {holds} of 10",
    }


def curve(percent: float) -> dict[str, Any]:
    points = {"percent": [percent] * 2, "low": [percent - 1.0] * 2, "high": [percent + 1.0] * 2}
    return points | {"forwards": [2.0, 2.0], "backwards": [1.0, 1.0], "seconds": 3.0}


def hand_made(folder: Path) -> dict[str, Any]:
    """A record with hostile names and verdicts of every kind; figures are a file each."""
    for name in ("figure1/figures/figure1a", "figure3/figures/figure3-unbounded"):
        path = folder / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('<svg viewBox="0 0 1 1"><rect width="100%" height="100%" fill="white"/><g id="here"/></svg>')
    example = {"name": HOSTILE, "predicted": "3", "x": [[[0.0]]], "perturbed": [[[0.1]]]}
    claims = [
        claim("A beats B", 10, 0),
        claim("B beats C", 6, 4),
        claim("C beats D", 0, 9),
        claim("D beats E", 1, 0),
        claim("E beats F", 0, 10, "not in the paper"),
    ]
    panel = {"network": "mnist-fcnn", "title": HOSTILE, "source": HOSTILE, "eps": [0.1, 0.2], "key": "a"}
    panel |= {"range": "unbounded", "count": 990, "total": 1000, "claims": claims, "curves": {HOSTILE: curve(40.0)}}
    psnr = {"mean": [9.0, 8.0], "low": [8.0, 7.0], "high": [10.0, 9.0], "few": [9.5, 8.5], "psnr_in": [1.0, 2.0]}
    psnr |= {"passes": 2.0, "jvps": 1.0, "seconds": 30.0, "ours": True, "recipe": "random-linf"}
    fourth = {"key": "b", "title": "MNIST autoencoder, ℓ∞", "network": "mnist-autoencoder", "axis": "psnr", "few": 20}
    fourth |= {"source": "MNIST", "at": [40.0, 10.0], "count": 30, "clean": {"mean": 20.0, "few": 21.0}}
    fourth |= {"weights": HOSTILE, "claims": [claim("linear-linf-1 is low", 7, 0)], "curves": {"random-linf": psnr}}
    made = {"made_by": "epsball paper all", "seed": 0, "limit": None, "versions": {"epsball": "1", "torch": "2"}}
    made["versions"] |= {"threads": 1}  # type: ignore[dict-item]
    first = {"key": "a", "network": "mnist-lenet5", "weights": "w", "eps": 0.1, "examples": [example]}
    rows = [row("mnist-fcnn", HOSTILE, 0.03), row("mnist-lenet5", "LeNet-5", 0.08)]
    return {
        **made,
        "table1": [],
        "table2": [],
        "table3": {"rows": rows, "left_out": ["cifar10-nin"]},
        "figure1": {"panels": [first]},
        "figure2": {"panels": []},
        "figure3": {"panels": [panel], "left_out": ["cifar10-nin"]},
        "figure4": {"panels": [fourth]},
        "networks": {"mnist-fcnn": {"weights": f"/somewhere/{HOSTILE}.pt", "given": True, "card": None}},
    }


@pytest.mark.parametrize(
    ("holds", "reversed_", "points", "verdict"),
    [
        (10, 0, 10, "holds"),
        (5, 0, 10, "holds"),
        (4, 0, 10, "undecided"),
        (0, 5, 10, "does not hold"),
        (0, 4, 10, "undecided"),
        (9, 1, 10, "holds in part"),
        (0, 0, 0, "undecided"),
    ],
)
def test_verdicts(holds: int, reversed_: int, points: int, verdict: str) -> None:
    assert Judged("a", "unbounded", holds, reversed_, points, "").verdict == verdict


@pytest.mark.parametrize(
    ("extent", "holds", "reversed_", "points", "verdict"),
    [
        ("all", 7, 0, 7, "holds"),
        ("all", 6, 0, 7, "holds in part"),
        ("all", 1, 6, 7, "holds in part"),
        ("all", 0, 4, 7, "does not hold"),
        ("all", 0, 3, 7, "undecided"),
        ("some", 1, 6, 7, "holds"),
        ("some", 0, 7, 7, "does not hold"),
        ("some", 0, 6, 7, "undecided"),
        ("some", 0, 0, 0, "undecided"),
    ],
)
def test_verdicts_on_every_point_and_on_some(
    extent: str, holds: int, reversed_: int, points: int, verdict: str
) -> None:
    judged = Judged("c", "unbounded", holds, reversed_, points, "up to ε = 0.4", extent)
    assert judged.verdict == verdict
    assert judged.where == "up to ε = 0.4"
    assert Judged("c", "unbounded", 4, 2, 7, "").where == "4 of 7, the reverse at 2"


def test_what_is_said_of_single_pixels_says_up_to_which_eps(tmp_path: Path) -> None:
    record = hand_made(tmp_path)
    pixel = claim("the autoencoder stands a single pixel", 4, 0, "section 6.2")
    pixel |= {"extent": "all", "difference": [0.0] * 7, "sentence": "at most 1 dB lost for ε up to 0.4"}
    record["figure4"]["panels"][0]["claims"] = [pixel]
    (found,) = [s for s in statements(record) if "single pixel" in s.text]
    assert found.verdict == "holds in part"
    page = _Tags(paper_page(record, tmp_path)).text
    assert "stands a single pixel" in page[page.index("Holds in part") : page.index("Does not hold")]
    assert "(b) MNIST autoencoder, ℓ∞: at most 1 dB lost for ε up to 0.4)" in page


def test_a_panel_measured_against_its_own_output_has_no_clean_value(tmp_path: Path) -> None:
    record = hand_made(tmp_path)
    (panel,) = record["figure4"]["panels"]
    assert "Reference of Figure 4(d)" not in paper_page(record, tmp_path)
    record["figure4"]["panels"] = [panel | {"key": "d", "title": "STL-10 colorization, ℓ∞", "clean": None}]
    text = _Tags(paper_page(record, tmp_path)).text
    assert "(d) STL-10 colorization, ℓ∞: against the output without an attack; at an input PSNR of" in text
    assert "Reference of Figure 4(d)" in text
    assert "Figure 2(c)" in text[text.index("What was left out") :]


def test_a_network_that_gets_nothing_right_is_left_out_and_the_page_says_why(tmp_path: Path) -> None:
    record = hand_made(tmp_path)
    record["figure3"] |= {"left_out": [], "none_correct": ["cifar10-nin"]}
    text = _Tags(paper_page(record, tmp_path)).text
    assert "Figure 3(c)): it classifies none of the images correctly." in text


def test_a_statement_that_holds_on_one_network_alone_holds_in_part(tmp_path: Path) -> None:
    record = hand_made(tmp_path)
    (panel,) = record["figure3"]["panels"]
    record["figure3"]["panels"] = [
        panel | {"claims": [claim("A beats B", 10, 0)]},
        panel | {"key": "b", "claims": [claim("A beats B", 0, 10)]},
        panel | {"range": "inside [0, 1]", "claims": [claim("A beats B", 0, 10)]},
    ]
    (found,) = [s for s in statements(record) if s.text == "A beats B"]
    assert found.verdict == "holds in part"
    record["figure3"]["panels"][1]["claims"] = [claim("A beats B", 0, 0)]
    # What happens inside [0, 1] judges nothing that the paper says.
    (found,) = [s for s in statements(record) if s.text == "A beats B"]
    assert found.verdict == "holds"


def test_the_answer_counts_the_verdicts_and_names_the_exceptions(tmp_path: Path) -> None:
    first, wrong, part_of, near, where = answer(hand_made(tmp_path))
    # Two of Table 3 and one of Figure 4 hold besides "A beats B"; what is not the paper's is not counted.
    assert "Of 7 statements" in first
    for words in ("4 hold", "1 holds in part", "1 does not", "1 is undecided"):
        assert words in first
    assert wrong.startswith("Not so: C beats D (")
    assert part_of.startswith("In part: B beats C (")
    assert "4 of 6 robustness values" in near
    assert "+50 % (ε₉₉" in near
    assert "1,000 test images" in where
    assert "30 test images" in where
    assert "cifar10-nin" in where
    text = claims_markdown(hand_made(tmp_path))
    assert "E beats F" not in text
    assert "| Figure 4 | Linear-ℓ∞-1 is low |" in text


def test_orders_of_the_networks_are_judged_by_intervals() -> None:
    table = {"rows": [row("a", "A", 0.03), row("b", "B", 0.08), row("c", "C", 0.0801)]}
    (first, second) = judge_orders(table["rows"])
    # B and C lie within each other's intervals: of three pairs two are decided.
    assert first[2:5] == (2, 0, 3)
    assert second[2:5] == (6, 0, 9)
    assert orders(table)[0]["paper"] == ["C", "B", "A"]
    assert orders(table)[0]["ours"] == [("C", True), ("B", False), ("A", False)]
    turned = row("d", "D", 0.05)
    turned["rho1"] |= {"ours": 1.0, "low": 0.9, "high": 1.1}
    (first, second) = judge_orders([table["rows"][1], turned])
    assert first[2:5] == (0, 1, 1)
    assert second[2:5] == (2, 1, 3)


def test_deviations_are_explained_by_a_test_or_called_unexplained(tmp_path: Path) -> None:
    record = hand_made(tmp_path)
    large = [d for d in deviations(record["table3"]) if d.is_large]
    assert [(d.network, d.measure) for d in large] == [("mnist-fcnn", "eps99"), ("mnist-lenet5", "eps99")]
    assert large[0].percent == pytest.approx(50.0)
    assert paper_page(record, tmp_path).count("unexplained: no explanation was tested") == 2
    told = {"network": "mnist-fcnn", "measure": "eps99", "text": "With 10 epochs it is +3 %."}
    record["table3"]["explanations"] = [told]
    page = paper_page(record, tmp_path)
    assert page.count("unexplained: no explanation was tested") == 1
    assert "With 10 epochs it is +3 %." in page


def test_names_of_methods_are_the_papers() -> None:
    assert method_name("linear-linf-10 is below random-l2") == "linear-ℓ∞-10 is below random-ℓ2"
    assert method_name("quadratic-l∞ of linear pixels") == "quadratic-ℓ∞ of linear pixels"


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str) -> _Tags:
    """It loads nothing, runs nothing, every link leads somewhere, and every picture can be heard."""
    found = _Tags(page)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "link", "iframe", "object", "img"} - {"link"}
    assert "default-src 'none'" in page
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in found.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        target = attrs.get("href") or ""
        if tag == "a":
            assert target == "https://arxiv.org/abs/1812.07385" or target[1:] in ids, target
        if tag == "figure":
            assert attrs.get("role") == "img"
            assert len(attrs.get("aria-label") or "") > 20
    for section in ("table1", "table2", "table3", "figure1", "figure2", "figure3", "figure4", "cost", "left-out"):
        assert section in ids
    return found


def test_hostile_values_are_text_on_the_page(tmp_path: Path) -> None:
    page = paper_page(hand_made(tmp_path), tmp_path)
    found = check_page(page)
    assert "<script" not in page
    assert "\u202e" not in page
    assert 'alert("x")' in found.text
    assert "/somewhere" not in page  # a page that is published says nothing of the machine's folders
    assert 'id="figure1a-here"' in page
    assert 'fill="white"' not in page
    left = page[page.index('id="left-out"') :]
    assert "cifar10-nin (its row of Table 3, Figure 1(b), Figure 3(c))" in left
    assert "stl10-colorization (Figure 2(c), Figure 4(d))" in left


# ----------------------------------------------------------------------------------------------------- real, and killed

# The command itself on a few images, with four methods in Figure 3 and one or two of the seven points of Figure 4:
# every network, every panel, and the whole grids of Figure 3.
RUN = """
import sys, torch
from dataclasses import replace
from importlib import import_module
from pathlib import Path
torch.set_num_threads(1)
from epsball.experiments.paper import Setting, everything
figure3, figure4 = (import_module(f"epsball.experiments.paper.{name}") for name in ("figure3", "figure4"))
figure3.METHODS = {name: figure3.METHODS[name] for name in ("deepfool", "alg1", "fgsm", "random-linf")}
figure3.CLAIMS = [claim for claim in figure3.CLAIMS if {claim.first, claim.second} <= set(figure3.METHODS)]
figure4.PANELS = tuple(
    replace(panel, grid=panel.grid[1::4] if panel.key in "ad" else panel.grid[3:4]) for panel in figure4.PANELS
)
weights = {path.stem: str(path) for path in Path(sys.argv[2]).glob("*.safetensors")}
everything(Setting(Path(sys.argv[1]), limit=4, resume=True, weights=weights))
"""
UNTRAINED = ("cifar10-nin", "cifar10-densenet40", "cifar10-autoencoder", "stl10-colorization")


def start(out: Path, weights: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(out), str(weights)])


def count_parts(out: Path) -> int:
    return len(list(out.glob("*/parts/*.parquet")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained weights of the large networks, and a card of each."""
    folder = tmp_path_factory.mktemp("weights")
    for name in UNTRAINED:
        model = networks.build(name, lucky_seed(name) if networks.spec(name).task == "classification" else 0)
        save(model, {"summary": f"untrained {name}", "command": "none"}, folder / f"{name}.safetensors")
    return folder


def lucky_seed(name: str) -> int:
    """The first seed with which an untrained classifier, which sees one class nearly everywhere, gets one right."""
    images = data.load("cifar10", limit=4)
    with torch.no_grad():
        return next(
            seed
            for seed in range(100)
            if (networks.build(name, seed).eval()(images.x).argmax(1) == images.labels).any()
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert start(out, weights).wait() == 0
    return out


@needs_data
@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_rows_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: Path, weights: Path
) -> None:
    draw = random.Random(0)
    total = count_parts(undisturbed)
    for moment in sorted(draw.sample(range(total), 3)):
        process = start(tmp_path, weights)
        while count_parts(tmp_path) < moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2 * draw.random())
        assert process.poll() is None, "the kill must come before the end"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert moment <= count_parts(tmp_path) < total
        assert not (tmp_path / "results.parquet").exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/parts/*.parquet")}
    assert kept
    assert start(tmp_path, weights).wait() == 0
    assert count_parts(tmp_path) == total
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "finished parts are not made again"
    rows, expected = (pq.read_table(out / "results.parquet") for out in (tmp_path, undisturbed))
    assert rows.schema == expected.schema
    assert rows.num_rows == expected.num_rows > 500
    # Row by row; NaN, which equals nothing, does not occur where null is meant.
    assert rows.equals(expected)
    assert without_seconds(tmp_path) == without_seconds(undisturbed)


def without_seconds(out: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(entry) for key, entry in value.items() if key != "seconds"}
        return [strip(entry) for entry in value] if isinstance(value, list) else value

    return strip(json.loads((out / "paper.json").read_text(encoding="utf-8")))


@needs_data
@pytest.mark.slow
def test_the_page_of_a_real_run(undisturbed: Path) -> None:
    page = (undisturbed / "paper.html").read_text(encoding="utf-8")
    found = check_page(page)
    record = json.loads((undisturbed / "paper.json").read_text(encoding="utf-8"))
    assert "Few images" in found.text
    for name in ("table1", "table2", "table3", "figure1", "figure2", "figure3", "figure4"):
        assert name in record
    for number in (1, 2, 3, 4):
        for picture in (undisturbed / f"figure{number}" / "figures").glob("*.svg"):
            assert f'id="{picture.stem}-' in page, picture
    for panel in (*record["figure3"]["panels"], *record["figure4"]["panels"]):
        for method, values in panel["curves"].items():
            assert method_name(method) in found.text
            first = values["percent"][0] if "percent" in values else values["mean"][0]
            assert f"{first:.1f}" in found.text
        assert method_name(panel["claims"][0]["text"])[1:] in found.text
    for network in record["table3"]["left_out"]:
        assert re.search(rf"{network} \(its row of Table 3", found.text)
    for network in ("mnist-fcnn", "mnist-autoencoder", "cifar10-autoencoder"):
        assert record["networks"][network]["card"]
        assert network in found.text
    assert record["figure1"]["panels"]
    assert "perturbed" not in json.dumps(record["figure1"]["panels"][0].get("examples", []))
    assert torch.__version__ in found.text
    assert len(record["figure2"]["panels"][0]["sample_id"]) == 4


@needs_data
@pytest.mark.slow
def test_every_panel_of_the_paper_is_there_and_says_what_was_different(undisturbed: Path) -> None:
    record = json.loads((undisturbed / "paper.json").read_text(encoding="utf-8"))
    keys = {n: [p["key"] for p in record[f"figure{n}"]["panels"]] for n in (1, 2, 3, 4)}
    assert keys == {1: list("ab"), 2: list("abc"), 3: list("abcdabcd"), 4: list("abcd")}
    classifiers = ["mnist-fcnn", "mnist-lenet5", "cifar10-nin", "cifar10-densenet40"]
    assert [row["network"] for row in record["table3"]["rows"]] == [name for name in classifiers for _ in range(2)]
    eps = {panel["key"]: panel["eps"] for panel in record["figure3"]["panels"]}
    assert eps["c"] == pytest.approx([0.003 * i for i in range(1, 11)])
    assert eps["d"] == pytest.approx([0.001 * i for i in range(2, 11)])
    for panel in record["figure3"]["panels"]:
        assert panel["count"] >= 1, panel["network"]
    page = (undisturbed / "paper.html").read_text(encoding="utf-8")
    text = _Tags(page).text
    assert "Nothing: every table and every panel of every figure is here." in text
    for name in ("figure1a", "figure2a", "figure2b", "figure2c", "figure3-unbounded", "figure4"):
        assert f'id="{name}-' in page
    different = text[text.index("What is different from the paper") : text.index("Table 1: problems")]
    for name in UNTRAINED:
        assert f"untrained {name}" in different
    for words in ("1,017 of 10,000 images", "200 of 100,000", "13.8 % test error", "5.2 % test error", "y := f(x)"):
        assert words in different, words
    # The paper's errors beside ours, which with untrained weights are far off.
    for row in record["table3"]["rows"]:
        assert f"{row['error']['ours']:.2f}" in text


@needs_data
@pytest.mark.slow
def test_results_hold_the_rows_of_every_artefact(undisturbed: Path) -> None:
    rows = pq.read_table(undisturbed / "results.parquet")
    counts = {entry["values"]: entry["counts"] for entry in rows["artefact"].value_counts().to_pylist()}
    record = json.loads((undisturbed / "paper.json").read_text(encoding="utf-8"))
    networks_made = len(record["table3"]["rows"]) // 2
    assert counts["table3"] == 2 * networks_made * 4
    points = sum(len(panel["eps"]) * len(panel["curves"]) for panel in record["figure3"]["panels"])
    assert counts["figure3"] == 4 * points
    assert counts["figure4"] == 4 * sum(
        len(panel["at"]) * len(panel["curves"]) for panel in record["figure4"]["panels"]
    )


@needs_data
@pytest.mark.slow
def test_the_docs_are_made_of_the_folder(tmp_path: Path, undisturbed: Path) -> None:
    docs = Path(__file__).parents[1] / "docs"
    copy = tmp_path / "docs"
    shutil.copytree(docs, copy)
    before = (copy / "paper.md").read_text(encoding="utf-8")
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "figure4")
    subprocess.run([sys.executable, str(copy / "make_paper.py"), str(run)], check=True)
    after = (copy / "paper.md").read_text(encoding="utf-8")
    for heading in ("What holds", "Table 1", "Table 2", "Table 3", "Figure 1", "Figure 2", "Figure 3", "Figure 4"):
        assert after.count(f"\n## {heading}\n") == 1
    last = "\n## Figure 4\n"
    assert after.split(last)[1] == before.split(last)[1], "a section whose folder is not there stays"
    assert "n = 4 of 4" in after
    assert "[paper.html](paper.html)" in after
    assert (copy / "paper.html").read_bytes() == (undisturbed / "paper.html").read_bytes()
    assert all(len(line) <= 120 for line in after.splitlines() if not line.startswith("|"))
    drawn = undisturbed / "figure3" / "figures" / "figure3-unbounded.png"
    with Image.open(copy / "figures" / drawn.name) as copied, Image.open(drawn) as whole:
        assert copied.mode == "P"  # of fewer colours
        off = np.abs(np.asarray(copied.convert("RGB"), float) - np.asarray(whole.convert("RGB"), float))
    assert off.mean() < 1.0


def test_weights_are_read_before_anything_is_removed_or_measured(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "kept.parquet").write_bytes(b"measured for hours")
    with pytest.raises(InputError, match=r"typo\.safetensors does not exist"):
        paper.Setting(tmp_path, weights={"mnist-fcnn": str(tmp_path / "typo.safetensors")}).prepare()
    assert (tmp_path / "parts" / "kept.parquet").is_file()


def test_trained_weights_of_an_earlier_run_are_taken_only_to_resume(tmp_path, monkeypatch):
    asked = []

    def train(name, *, out, resume, **_):
        asked.append(resume)
        out.write_bytes(b"fresh")

    monkeypatch.setattr("epsball.training.train", train)
    old = tmp_path / "weights" / "cifar10-autoencoder.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"stale")
    assert paper.Setting(tmp_path, resume=True).weights_of("cifar10-autoencoder") == str(old)
    assert (asked, old.read_bytes()) == ([], b"stale")
    setting = paper.Setting(tmp_path)
    for _ in range(2):  # once for a whole run
        assert setting.weights_of("cifar10-autoencoder") == str(old)
    assert (asked, old.read_bytes()) == ([False], b"fresh")
