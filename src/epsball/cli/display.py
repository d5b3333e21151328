"""What the terminal shows: tables on stdout, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from epsball.cli.catalogues import error_text
from epsball.experiments.runner import RunResult
from epsball.report.quality import psnr_table
from epsball.report.tables import Row, fooling_table
from epsball.report.text import decibels, norm_name, number, printable

__all__ = ["ProgressBar", "show_card", "show_catalogue", "show_measures", "show_result", "show_transfer", "write"]

PATIENCE = 2.0  # seconds of work before a bar appears
EVERY = 30.0  # seconds between the lines of a log
COLUMNS = 7  # budgets that fit a terminal


class ProgressBar:
    """A bar on stderr with the samples done, their rate and the time left; not for short work.

    Without a terminal a line every half minute, so that a log shows that the work goes on.
    """

    def __init__(self, unit: str = "samples", console: Console | None = None, patience: float = PATIENCE) -> None:
        self._unit, self._patience = unit, patience
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._since = (time.monotonic(), "", 0)

    def __enter__(self) -> Self:
        self._start = self._said = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, label: str, done: int, total: int, share: float | None = None) -> None:
        """Show where the work stands."""
        now = time.monotonic()
        if label != self._since[1] or done <= self._since[2]:
            self._since = (now, label, done)
        share = done / max(total, 1) if share is None else share
        if not self._console.is_terminal:
            if now - self._said >= EVERY:
                self._said = now
                self._console.print(
                    f"{printable(label)} {done:,} of {total:,} {self._unit}, {share:.0%} of the work",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            return
        if now - self._start < self._patience:
            return
        if self._bar is None:
            self._begin(share)
        if self._bar is not None:
            seconds = now - self._since[0]
            rate = f", {(done - self._since[2]) / seconds:,.0f} {self._unit}/s" if seconds > 0.2 else ""
            where = f"{printable(label)} {done:,} of {total:,} {self._unit}{rate}"
            self._bar.update(self._task, completed=share, where=where)

    def _begin(self, share: float) -> None:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[where]}", markup=False),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, speed_estimate_period=3600.0)
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0, where="")


def write(*lines: str) -> None:
    """Print plain lines; long ones are not cut where the output is read by a program."""
    console = _console()
    for line in lines:
        console.print(Text(printable(line)), soft_wrap=True)


def write_markdown(text: str) -> None:
    """Print Markdown: drawn in a terminal, as it is where a program reads it."""
    console = _console()
    if not console.is_terminal:
        return write(text)
    from rich.markdown import Markdown

    console.print(Markdown(printable(text)))
    return None


def show_result(result: RunResult) -> None:
    """Print what the attacks do to the model, one row an attack: fooling ratios, or output PSNR of a regression run."""
    if result.manifest["task"] == "regression":
        _show_quality(result)
    else:
        _show_fooling(result)
    _show_warnings(result)


def _show_warnings(result: RunResult) -> None:
    """Print what the run warned of, as the report says it."""
    for warning in result.manifest["warnings"]:
        write("", f"warning: {warning['seen']} {warning['means']} {warning['next']}")


def _show_quality(result: RunResult) -> None:
    manifest, rows = result.manifest, psnr_table(result.table)
    shown = _some(sorted({row["eps"] for row in rows}))
    table = _table()
    table.add_column("output PSNR, dB at eps =")
    for eps in shown:
        table.add_column(f"{eps:g}", justify="right")
    table.add_column("passes", justify="right")
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = {row["eps"]: row for row in rows if row["attack"] == attack}
        passes = sum(row["passes"] for row in mine.values()) / len(mine)
        table.add_row(attack, *(f"{mine[eps]['psnr_out']:.1f}" for eps in shown), f"{passes:.1f}")
    small = [row["psnr_in"] for row in rows if row["eps"] == shown[-1]]
    clean = manifest["clean"]["psnr_out"]["value"]
    reference = {"input": "the input", "output": "the output without a perturbation", "data": "the data's y"}
    start = (
        ""
        if clean is None or manifest["reference"] == "output"
        else f", {decibels(float(clean))} without a perturbation"
    )
    write("", f"{manifest['model']['name']} on {_data(result)}{start}")
    _console().print(table)
    orders = ", ".join(sorted({norm_name(row["p"]) for row in rows}))
    write(
        f"mean over {manifest['clean']['count']:,} samples, against {reference[manifest['reference']]}; {orders} norm; "
        f"lower is stronger; input PSNR at eps = {number(shown[-1])}: {decibels(min(small))} or more; "
        "passes: through the network and its derivatives, mean a sample"
    )


def _show_fooling(result: RunResult) -> None:
    name = result.manifest["model"]["name"]
    transfer = result.manifest.get("transfer", {}).get("attack")
    rows = [
        row
        for row in fooling_table(result.table)
        if row["judged_on"] == name and (row["attack"] != transfer or row["crafted_on"] == name)
    ]
    shown = _some(sorted({row["eps"] for row in rows}))
    count = result.manifest["clean"]["correct"]
    clean = f"{100 * result.manifest['clean']['error']:.1f} % error without a perturbation"
    table = _table()
    table.add_column("fooled, % at eps =")
    for eps in shown:
        table.add_column(f"{eps:g}", justify="right")
    table.add_column("passes", justify="right")
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = {row["eps"]: row for row in rows if row["attack"] == attack}
        passes = sum(row["forwards"] + row["backwards"] for row in mine.values()) / len(mine)
        table.add_row(attack, *(_percent(mine[eps]) for eps in shown), f"{passes:.1f}")
    orders = ", ".join(sorted({norm_name(row["p"]) for row in rows}))
    write("", f"{name} on {_data(result)}, {clean}")
    _console().print(table)
    write(f"of the {count:,} correctly classified samples, {orders} norm; passes: through the network, mean a sample")
    for attack in dict.fromkeys(row["attack"] for row in rows):
        over_groups = [row for row in rows if row["attack"] == attack and row["median_groups"] is not None]
        if over_groups:
            counts = ", ".join(f"{row['median_groups']:g} at eps = {row['eps']:g}" for row in over_groups)
            of = result.manifest["groups"]["of"]
            write(f"{attack} changes so many groups ({of}) of a fooled sample, median: {counts}")


def show_transfer(result: RunResult) -> None:
    """Print which share of the samples that one network classifies correctly an attack crafted on another fools."""
    if "transfer" not in result.manifest:
        return
    attack, networks = result.manifest["transfer"]["attack"], result.manifest["transfer"]["networks"]
    rows = [row for row in fooling_table(result.table) if row["attack"] == attack]
    eps = max(row["eps"] for row in rows)
    cells = {(row["crafted_on"], row["judged_on"]): row for row in rows if row["eps"] == eps}
    table = _table()
    table.add_column("fooled, %; crafted on")
    for judge in networks:
        table.add_column(f"judged on {judge}", justify="right")
    for crafted in networks:
        table.add_row(crafted, *(_percent(cells[crafted, judge]) for judge in networks))
    write("", f"transfer of {attack} at eps = {eps:g}")
    _console().print(table)


def show_measures(result: RunResult) -> None:
    """Print the paper's three measures with their 95 % intervals."""
    found, order = result.manifest["robustness"], norm_name(float(result.manifest["p"]))
    table = _table()
    for head in ("measure", "value", "95 % interval", "what it is"):
        table.add_column(head, justify="left" if head in ("measure", "what it is") else "right")
    meanings = {
        "rho1": "mean of DeepFool's perturbation over the input, in norms",
        "rho2": "mean first-order distance to the decision boundary, in units of x",
        "eps99": "least eps at which DeepFool fools more than 99 %, in units of x",
    }
    for name, meaning in meanings.items():
        none = "∞" if name == "eps99" else "–"  # DeepFool never gets there; no sample to measure on
        value, low, high = (
            none if found[name][k] is None else f"{found[name][k]:.4g}" for k in ("value", "low", "high")
        )
        table.add_row(name, value, f"{low} to {high}", meaning)
    write("", f"robustness of {result.manifest['model']['name']} on {_data(result)}, {order} norm")
    _console().print(table)
    write(
        f"over the {found['count']:,} correctly classified samples; DeepFool found nothing for {found['unreached']:,}"
    )
    _show_warnings(result)


def show_catalogue(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print the rows of a catalogue."""
    table = _table()
    for place, head in enumerate(heads):
        table.add_column(head, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    write(title)
    _console().print(table)


def show_card(card: dict[str, Any]) -> None:
    """Print what is known of trained weights."""
    rows = [(key.replace("_", " "), str(value)) for key, value in card.items() if not isinstance(value, dict)]
    show_catalogue(f"{card['network']}: test error {error_text(card['network'], card)}", ("entry", "value"), rows)


def _console() -> Console:
    # Without a terminal there is no width to respect, and a table must not be cut.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False)


def _data(result: RunResult) -> str:
    data = result.manifest["data"]
    of = f" of {data['of']:,}" if data["of"] not in (None, data["count"]) else ""
    return f"{data['name']} {data['split']}, {data['count']:,}{of} samples"


def _percent(row: Row) -> str:
    return "–" if row["percent"] is None else f"{row['percent']:.1f}"


def _some(eps: list[float]) -> list[float]:
    """Choose budgets evenly where there are too many for a terminal; the report has all."""
    if len(eps) <= COLUMNS:
        return eps
    return [eps[round(place * (len(eps) - 1) / (COLUMNS - 1))] for place in range(COLUMNS)]
