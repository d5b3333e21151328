"""The answer of a run in one or two sentences, computed from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from epsball.report.figures import DistanceHistogram, curve_name
from epsball.report.group_curves import FewestGroupsCurves
from epsball.report.tables import Row
from epsball.report.text import count, listed, norm_name, number, percent, printable, share

__all__ = ["Answer", "answer", "distance_answer", "explain_eps", "fewest_answer"]

NBSP = "\u00a0"


@dataclass(frozen=True)
class Answer:
    """The sentences that answer a run's question, and the budget and rows that they speak of.

    eps: the least budget at which some attack fools at least half, else the largest. strongest: the row of
    `fooling_table` with the highest fooling ratio there, of equal ones the cheapest; None if there is nothing to speak
    of. noise: that of random noise in the same norm, if it was run. The text names every attack that fools as many, and
    those within the interval of the strongest.
    """

    text: str
    reason: str = ""
    eps: float | None = None
    strongest: Row | None = None
    noise: Row | None = None


def answer(rows: Sequence[Row], unit: str = "samples") -> Answer:
    """Answer "how much does the model stand" from the rows of `fooling_table` for one judging model."""
    if not rows:
        return Answer("The run holds no classified samples, so there is no fooling ratio to report.")
    rows = [row for row in rows if math.isfinite(row["eps"])] or list(rows)
    usable = [row for row in rows if row["n"]]
    if not usable:
        return Answer(
            f"The model classifies none of these {unit} correctly without a perturbation, so there is none to fool."
        )
    attacks = [row for row in usable if not _is_noise(row)] or usable
    grid = sorted({row["eps"] for row in attacks})
    half = [eps for eps in grid if _best(attacks, eps)["percent"] >= 50.0]
    eps = half[0] if half else grid[-1]
    strongest = _best(attacks, eps)
    noise = [row for row in usable if _is_noise(row) and (row["eps"], row["p"]) == (eps, strongest["p"])]
    quiet = max(noise, key=lambda row: row["percent"]) if noise and not _is_noise(strongest) else None
    low, high = percent(strongest["low"]), percent(strongest["high"])
    where = f"At eps = {number(eps)}" if math.isfinite(eps) else "Without a limit on eps"
    there = sorted((row for row in attacks if row["eps"] == eps), key=_strength, reverse=True)
    equal = [row for row in there if row["percent"] == strongest["percent"]]
    near = [row for row in there if strongest["low"] <= row["percent"] < strongest["percent"]]
    names = listed([printable(curve_name(row)) for row in equal])
    lead = f"attack run, {names}, fools" if len(equal) == 1 else f"attacks run, {names}, each fool"
    text = (
        f"{where} the strongest {lead} {share(strongest['fooled'], strongest['n'])}{NBSP}% ({low} to {high}) of the "
        f"{count(strongest['n'])} correctly classified {unit}"
    )
    if near:
        others = [f"{printable(curve_name(row))} ({share(row['fooled'], row['n'])}{NBSP}%)" for row in near]
        text += f"; {listed(others)} {'lies' if len(near) == 1 else 'lie'} within that interval"
    if quiet is not None:
        text += f"; random noise of the same size fools {share(quiet['fooled'], quiet['n'])}{NBSP}%"
    return Answer(text + ".", _reason(eps, grid, bool(half)), eps, strongest, quiet)


def distance_answer(found: DistanceHistogram, unit: str = "samples") -> str:
    """Answer "how far are they from being misclassified" from the distances of a minimal-norm attack."""
    lead = f"{found.name} finds, for half of the {count(found.count)} correctly classified {unit}, a perturbation"
    if not found.count or not math.isfinite(found.median):
        return (
            f"{found.name} fools fewer than half of the {count(found.count)} correctly classified {unit}, at any size."
        )
    return f"{lead} of {norm_name(found.p)} norm {number(found.median)} or less that makes the answer wrong."


def fewest_answer(found: FewestGroupsCurves, unit: str = "samples") -> str:
    """Answer "how few pixels change the answer" from a search for the fewest groups, at its largest eps."""
    eps = max(found.needed)
    needed, half = found.needed[eps], math.ceil(found.n / 2)
    limit = f", no value in them by more than {number(eps)}," if math.isfinite(eps) else ""
    whom = f"half of the {count(found.n)} correctly classified {unit}"
    if len(needed) < half:
        limit = limit.rstrip(",")
        return f"{printable(found.name)} fools fewer than {whom}, however many of their {found.of} it changes{limit}."
    most = f"at most {count(int(needed[half - 1]))} of their {found.of}"
    return f"{printable(found.name)} finds, for {whom}, that changing {most}{limit} makes the answer wrong."


def explain_eps(p: float, eps: float, bounds: tuple[float, float] | None, image: bool, groups: str = "") -> str:
    """Say in everyday words what a budget of this size in this norm allows; groups: what an attack changes few of."""
    if not math.isfinite(eps):
        return "eps is the largest perturbation allowed; here there was none."
    entry = "pixel value" if image else "input value"
    scale = f"{number(bounds[0])} to {number(bounds[1])}" if bounds else ""
    size, on = number(eps), f", on a scale from {scale}" if scale else ""
    if groups:
        return f"eps = {size} means that a few {groups} may be changed, no value in them by more than {size}{on}."
    if math.isinf(p):
        return f"eps = {size} means that every {entry} may be changed, none of them by more than {size}{on}."
    each = f"; each {entry} runs from {scale}" if scale else ""
    if p == 1:
        return f"eps = {size} means that the changes of all {entry}s, added up without sign, are at most {size}{each}."
    what = "Euclidean length" if p == 2 else f"{norm_name(p)} norm"
    return f"eps = {size} means that the {what} of the whole change, over all {entry}s, is at most {size}{each}."


def _reason(eps: float, grid: list[float], half: bool) -> str:
    if len(grid) == 1:
        return ""
    tried = f"the {len(grid)} budgets tried ({number(grid[0])} to {number(grid[-1])})"
    if half:
        return f"{number(eps)} is the smallest of {tried} at which an attack fools at least half."
    return f"{number(eps)} is the largest of {tried}; at none of them did an attack fool half."


def _best(rows: Sequence[Row], eps: float) -> Row:
    return max((row for row in rows if row["eps"] == eps), key=_strength)


def _strength(row: Row) -> tuple[float, float]:
    # Of equal attacks the cheapest comes first.
    return row["percent"], -(row["forwards"] + row["backwards"])


def _is_noise(row: Row) -> bool:
    return str(row["attack"]).startswith("random")
