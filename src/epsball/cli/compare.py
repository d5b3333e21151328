"""`epsball compare`: two runs side by side, for people and for CI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from epsball.cli.display import write
from epsball.experiments.compare import Comparison, compare_runs, write_comparison
from epsball.report.compare_page import answer, p_text, points
from epsball.report.text import norm_name, number, one_line, percent

__all__ = ["FELL", "compare"]

FELL = 3


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of the run to compare with.", metavar="DIR1")],
    second: Annotated[Path, typer.Argument(help="Folder of the run in question.", metavar="DIR2")],
    tolerance: Annotated[
        float,
        typer.Option(help="Rise of the fooling ratio that is allowed, 0.02 for 2 points; of a gain, as a share of it."),
    ] = 0.02,
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.html; default: DIR2.", metavar="DIR", show_default=False)
    ] = None,
) -> None:
    """Compare two models on the same data and samples, attack by attack, and write compare.html.

    Fooling ratios (over the samples that both models classify correctly) or, for regression, mean gains relative to
    DIR1. A cell is one attack at one p and eps; robustness fell in it if the whole 95 % paired interval of the rise
    lies above --tolerance and the paired test (McNemar's, or the sign-flip test), adjusted by Holm's method for the
    number of cells, is below 0.05. Exit code 3 if it fell in any cell, 0 if in none, 2 for folders that cannot be
    compared: no run, nothing in common, other data.
    """
    found = compare_runs(first, second, tolerance=tolerance)
    page = write_comparison(found, second if out is None else out)
    _show(found)
    write(f"page: {page}")
    if found.fell:
        raise typer.Exit(FELL)


def _show(found: Comparison) -> None:
    first, second = (one_line(name, 40) for name in found.names)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    several = len({cell.p for cell in found.cells}) > 1
    heads = ["attack", *(["norm"] if several else []), "eps", "samples", first, second, "difference", "95 % interval"]
    for place, head in enumerate([*heads, "p, adjusted", "robustness"]):
        table.add_column(
            Text(head), justify="right" if head not in ("attack", "robustness") else "left", no_wrap=not place
        )
    for cell in found.cells:
        values = (number(v) if found.regression else percent(100.0 * v) for v in (cell.first, cell.second))
        ends = f"{100.0 * cell.low:+.1f} to {100.0 * cell.high:+.1f}"
        row = [
            one_line(cell.attack, 40),
            *([norm_name(cell.p)] if several else []),
            number(cell.eps),
            f"{cell.n:,}",
            *values,
        ]
        row += [points(cell.difference, found.regression, True), ends, p_text(cell.adjusted), cell.verdict]
        table.add_row(*map(Text, row), style="bold red" if cell.fell else None)
    what = "mean gain" if found.regression else "fooling ratio in %"
    console = Console() if sys.stdout.isatty() else Console(width=200)
    write("", f"{what}, {first} against {second}, {found.common:,} common samples")
    console.print(table)
    clean = found.clean
    if clean is not None:
        write(
            f"without a perturbation: {percent(100.0 * clean.first)} % and {percent(100.0 * clean.second)} % correct "
            f"({points(clean.difference, False, True)}, p {p_text(clean.p_value)}); not counted"
        )
    if any(found.alone):
        write(f"left out, in one run alone: {found.alone[0]:,} and {found.alone[1]:,} samples")
    for note in found.notes:
        write(f"warning: not only the model differs: {note}")
    write(*answer(found, found.rows))
