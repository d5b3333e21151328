"""The page in a browser: what a reader can do with it, by pointer and by keyboard, without a network."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epsball.report import gallery, write_page
from epsball.report.text import printable

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = _load("test_report")
EPS = (0.05, 0.1, 0.2)
HOSTILE = '</script><img src=x onerror="document.title=1">\x1b[31m\u202e=1+1'
ATTACKS = ("fgsm", "deepfool", "random-linf")
COUNT = 1000


def _examples(folder: Path, x: np.ndarray, regression: bool = False, attacks: tuple[str, ...] = ATTACKS) -> None:
    """Examples at three budgets: the perturbation is a known multiple of eps."""
    n = len(x)
    arrays: dict[str, Any] = {"sample_id": np.arange(n), "x": x, "example_eps": np.array(0.1), "eps": np.array(EPS)}
    if regression:
        arrays |= {"target": x, "clean_output": 0.9 * x, "clean_psnr": np.full(n, 20.0)}
    else:
        arrays |= {
            "target": np.full(n, 3),
            "clean_prediction": np.full(n, 3),
            "clean_output": np.tile(np.arange(6.0), (n, 1)),
        }
    for name in attacks:
        for end, eps in (("", 0.1), *((f"/{k}", eps) for k, eps in enumerate(EPS))):
            arrays[f"perturbed/{name}{end}"] = x + eps * np.sign(np.sin(37.0 * x))
            if regression:
                arrays[f"output/{name}{end}"] = (1 - eps) * x
                arrays |= {f"psnr_in/{name}{end}": np.full(n, 1 / eps), f"psnr_out/{name}{end}": np.full(n, 2 / eps)}
            else:
                arrays[f"prediction/{name}{end}"] = np.full(n, 5)
                arrays[f"success/{name}{end}"] = np.full(n, eps > 0.07)
                arrays[f"output/{name}{end}"] = np.tile(np.arange(6.0)[::-1] + eps, (n, 1))
    np.savez(folder / "examples.npz", **arrays)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with 1,000 samples, three budgets and names that want to be more than text."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    distance = np.round(rng.permutation(COUNT) / COUNT * 0.3 + 0.0004, 6)
    rows = []
    for name in ATTACKS:
        for eps in EPS:
            within = (
                [bool(d <= eps) for d in distance] if name != "random-linf" else [i % 50 == 0 for i in range(COUNT)]
            )
            for i, fooled in enumerate(within):
                size = float(distance[i]) if name == "deepfool" else eps
                seen = 5 if fooled or name == "deepfool" else 3
                rows.append(made.row(i, name, eps, fooled, norm_linf=size, prediction=seen))
    classes = [f"class {i}{HOSTILE}" for i in range(6)]
    manifest = made.MANIFEST | {"data": made.MANIFEST["data"] | {"classes": classes}, "question": f"Is {HOSTILE} so?"}
    made.write_run(folder, rows, manifest)
    _examples(folder, rng.uniform(0.2, 0.8, (8, 3, 32, 32)))
    write_page(folder)
    return folder


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("EPSBALL_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = _chromium()
    with playwright.sync_playwright() as started:
        if path is None and not Path(started.chromium.executable_path).is_file():
            pytest.skip("no Chromium on PATH nor in EPSBALL_CHROMIUM")
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Open a page; any error, console message or request that leaves it fails the test."""
    complaints: list[str] = []
    contexts = []

    def go(path: Path, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": options.pop("width", 1000), "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))

        def route(request: Any) -> None:
            if not request.url.startswith(("file:", "data:", "blob:")):
                complaints.append(f"request: {request.url}")

        page.on("request", route)
        page.on("dialog", lambda dialog: complaints.append("a dialog") or dialog.dismiss())
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def test_arrow_keys_read_the_curves(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    plot = page.locator(".plot:visible").first
    plot.focus()
    assert plot.get_attribute("role") == "slider"
    page.keyboard.press("End")
    text = plot.get_attribute("aria-valuetext")
    assert text.startswith("eps 0.2: ")
    assert "random-linf 2.0 % (1.3 to 3.1)" in text
    page.keyboard.press("ArrowLeft")
    assert plot.get_attribute("aria-valuetext").startswith("eps 0.1: ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("aria-valuenow") == "2"
    page.keyboard.press("Home")
    tip = page.locator(".tip:visible")
    assert tip.locator("b").inner_text() == "eps 0.05"
    assert tip.locator("tr").count() == 3
    page.keyboard.press("Escape")
    assert page.locator(".tip:visible").count() == 0


def test_the_pointer_shows_the_nearest_budget_and_a_curve_can_be_hidden(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    svg = page.locator(".plot:visible svg").first
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.52, box["y"] + box["height"] / 2)
    tip = page.locator(".tip:visible")
    assert tip.locator("b").inner_text() == "eps 0.1"
    assert tip.bounding_box()["x"] >= 0
    button = page.get_by_role("button", name="random-linf", exact=True)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    box = svg.bounding_box()  # the page may have scrolled
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
    assert tip.locator("tr").count() == 2
    assert "random-linf" not in tip.inner_text()


def test_the_slider_moves_every_picture(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    slider = page.get_by_label("Budget of the attacks").first
    cell = page.locator("td[data-kind=perturbed]").first
    before = cell.locator("img").get_attribute("src")
    assert "fooled" in cell.inner_text()
    seen = {before}
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#examples .slide output").first.inner_text() == "eps 0.05"
    assert slider.get_attribute("aria-valuetext") == "eps 0.05"
    assert "beyond eps" not in cell.inner_text()
    assert "fooled" not in cell.get_attribute("class")
    seen.add(cell.locator("img").get_attribute("src"))
    page.keyboard.press("End")
    seen.add(cell.locator("img").get_attribute("src"))
    assert len(seen) == 3
    page.keyboard.press("ArrowLeft")
    assert cell.locator("img").get_attribute("src") == before
    shown = page.locator("#examples table img").evaluate_all("nodes => nodes.map(n => n.complete && n.naturalWidth)")
    assert shown == [32] * (8 * 7)


def test_a_sample_opens_by_click_and_by_enter(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    button = page.locator("td[data-kind=perturbed] button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    attack = page.locator("#examples thead tr").first.locator("th").nth(2).inner_text()
    assert dialog.locator("h2").inner_text() == f"Sample 0 under {attack} at eps 0.1"
    names = [text.split("\n")[0] for text in dialog.locator("figcaption").all_inner_texts()]
    assert [name.split(" ")[0] for name in names] == ["original", "perturbation", "perturbed"]
    assert dialog.locator("caption").first.inner_text() == "The highest outputs"
    rows = dialog.locator(".numbers table").last.locator("tbody tr")
    assert rows.count() == 3
    assert dialog.locator("td.best").count() > 0
    dialog.get_by_text("Next sample").click()
    assert dialog.locator("h2").inner_text().startswith("Sample 1 ")
    dialog.get_by_text("Previous sample").click()
    dialog.get_by_text("Previous sample").click()
    assert dialog.locator("h2").inner_text().startswith("Sample 7 ")
    dialog.locator("select").select_option(label="random-linf")
    dialog.get_by_label("Budget of the attacks").focus()
    page.keyboard.press("End")
    assert dialog.locator("h2").inner_text() == "Sample 7 under random-linf at eps 0.2"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("node => node === document.activeElement")  # back where the reader was
    page.locator("td[data-kind=original] button").first.click()
    assert dialog.is_visible()
    dialog.get_by_text("Close").click()
    assert not dialog.is_visible()


def test_samples_sort_by_distance_both_ways_and_by_keyboard(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    table = page.locator("table.samples")

    def column(place: int) -> list[str]:
        return table.locator(f"tbody tr :nth-child({place})").evaluate_all(
            "n => n.map(c => c.dataset.value ?? c.innerText)"
        )

    head = table.locator("thead th").nth(3)
    first = [float(value) for value in column(4)]
    assert len(first) == COUNT
    assert first == sorted(first)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(4)] == first[::-1]
    table.locator("thead th").nth(0).locator("button").focus()
    page.keyboard.press("Enter")
    assert [int(value) for value in column(1)] == list(range(COUNT))
    assert head.get_attribute("aria-sort") is None
    budgets = table.locator("thead th").nth(4).locator("button")
    budgets.click()
    budgets.click()
    eps = column(5)
    known = [float(value) for value in eps if value]
    assert known == sorted(known, reverse=True)
    assert eps[len(known) :] == [""] * (COUNT - len(known)) != []  # those never fooled stay last


def test_tables_download_as_csv(run: Path, opened: Any) -> None:
    page = opened(run / "report.html", accept_downloads=True)
    with page.expect_download() as found:
        page.locator("#samples a[download]").click()
    assert found.value.suggested_filename == "samples.csv"
    rows = list(csv.DictReader(io.StringIO(Path(found.value.path()).read_text(encoding="utf-8"))))
    assert len(rows) == COUNT
    distances = [float(row["distance"]) for row in rows]
    assert distances == sorted(distances)
    assert rows[0]["label"] == printable("class 3" + HOSTILE)
    with page.expect_download() as found:
        page.locator("#numbers a[download]").click()
    rows = list(csv.DictReader(io.StringIO(Path(found.value.path()).read_text(encoding="utf-8"))))
    assert [(row["attack"], row["eps"]) for row in rows] == [(name, str(eps)) for name in ATTACKS for eps in EPS]
    assert {row["n"] for row in rows} == {str(COUNT)}


def _background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_reader(run: Path, opened: Any, scheme: str) -> None:
    page = opened(run / "report.html", color_scheme=scheme)
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}
    other = "dark" if scheme == "light" else "light"
    assert _background(page) == colours[scheme]
    button = page.get_by_role("button", name=f"{other.title()} colours")
    button.focus()
    page.keyboard.press("Enter")
    assert _background(page) == colours[other]
    page.emulate_media(media="print")
    assert _background(page) == colours["light"]  # paper is white
    assert not page.locator(".theme").is_visible()


def test_the_keyboard_meets_the_page_in_its_order(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    met = []
    for _ in range(14):
        page.keyboard.press("Tab")
        met.append(
            page.evaluate("[document.activeElement.tagName, document.activeElement.textContent.trim().slice(0, 12)]")
        )
    assert met[0] == ["A", "Skip to the "]
    assert met[1][0] == "BUTTON"
    tops = page.evaluate("""() => [...document.querySelectorAll('a[href], button, input, [tabindex="0"]')]
        .filter((n) => n.offsetParent && !n.closest("dialog, .skip, .scroll, .theme"))
        .map((n) => n.getBoundingClientRect().top)""")
    assert all(after >= before - 60 for before, after in itertools.pairwise(tops))
    assert page.locator("main").count() == page.locator("header").count() == page.locator("footer").count() == 1
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, [role], a")].filter((n) =>
        !(n.textContent.trim() || n.ariaLabel || n.labels?.length || n.querySelector("img[alt]")?.alt)).length""")
    assert unnamed == 0


def test_hostile_names_open_nothing(run: Path, opened: Any) -> None:
    page = opened(run / "report.html")
    assert page.locator("img[src=x]").count() == 0
    assert page.title().startswith("Is </script><img src=x")
    page.locator("td[data-kind=perturbed] button").first.click()
    text = page.get_by_role("dialog").inner_text()
    assert '</script><img src=x onerror="document.title=1">=1+1' in text
    assert "\u202e" not in page.content()
    assert "\x1b" not in page.content()


@pytest.mark.parametrize("width", [320, 400, 1000])
def test_nothing_is_wider_than_the_screen(run: Path, opened: Any, width: int) -> None:
    page = opened(run / "report.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".plot:visible").count() == 1


def test_without_a_script_all_is_there(run: Path, opened: Any) -> None:
    page = opened(run / "report.html", java_script_enabled=False)
    assert page.locator(".plot:visible svg path.line").count() == 3
    assert page.locator("table.samples tbody tr").count() == COUNT
    assert page.locator("#examples img:visible").count() == 8 * 7
    assert page.locator("a[download]").count() == 3
    for name in (".theme", ".slide", "dialog", ".hint"):
        assert page.locator(f"{name}:visible").count() == 0


def test_a_page_of_a_thousand_samples_is_below_five_megabytes(run: Path) -> None:
    assert (run / "report.html").stat().st_size < 5_000_000


def test_large_images_leave_out_budgets_and_samples_but_never_all(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(1).uniform(0.2, 0.8, (8, 3, 300, 260))
    made.write_run(tmp_path, [r for eps in EPS for r in made.many("fgsm", eps, 5, 10)], made.MANIFEST)
    _examples(tmp_path, x, attacks=("fgsm",))
    noise = np.random.default_rng(2).uniform(-1, 1, x.shape)
    arrays = dict(np.load(tmp_path / "examples.npz"))
    for name in [name for name in arrays if name.startswith("perturbed/")]:
        arrays[name] = np.clip(x + 0.1 * noise, 0, 1)  # as hard to compress as a picture can be
    np.savez(tmp_path / "examples.npz", **arrays)
    monkeypatch.setattr(gallery, "BYTES", 250_000)
    write_page(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 400_000
    page = opened(tmp_path / "report.html")
    assert page.locator("#examples tbody tr").count() == 2
    assert page.locator(".slide:visible").count() == 0  # one budget is left
    assert page.locator("td[data-kind=perturbed] span").first.inner_text() == "f, fooled"
    assert "one pixel in 3 is shown" in page.content()
    assert page.locator("td[data-kind=original] img").first.evaluate("n => [n.naturalWidth, n.naturalHeight]") == [
        87,
        100,
    ]


def test_regression_page_has_outputs_in_its_gallery(tmp_path: Path, opened: Any) -> None:
    none = {"target": None, "prediction": None, "clean_prediction": None}
    rows = [
        made.row(i, name, eps, **none, psnr_out=30.0 - 50 * eps + 0.1 * i, psnr_in=40.0 - 60 * eps)
        for name in ATTACKS
        for eps in EPS
        for i in range(9)
    ]
    made.write_run(tmp_path, rows, {"task": "regression", "model": {"name": "net"}, "data": {"name": "d"}})
    _examples(tmp_path, np.random.default_rng(0).uniform(0.2, 0.8, (4, 12)), regression=True)
    write_page(tmp_path)
    assert {p.name for p in (tmp_path / "tables").iterdir()} == {"psnr.tex", "cost.tex"}
    page = opened(tmp_path / "report.html")
    plot = page.locator(".plot:visible").first
    plot.focus()
    page.keyboard.press("End")
    assert "fgsm 20.4 dB (20.2 to 20.6), input 28.0 dB" in plot.get_attribute("aria-valuetext")
    slider = page.get_by_label("Budget of the attacks").first
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("td[data-kind=output][data-attack='0'] span").first.inner_text() == "10.0\u00a0dB"
    page.locator("td[data-kind=perturbed] button").first.click()
    dialog = page.get_by_role("dialog")
    assert dialog.locator("figure").count() == 5
    widths = dialog.locator("img").evaluate_all("nodes => nodes.map(n => n.naturalWidth)")
    assert widths == [240] * 5
    assert math.isclose(float(page.locator("table.samples td").first.get_attribute("data-value")), 25.0)
