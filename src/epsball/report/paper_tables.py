"""Tables 1 and 2 as Markdown, the paper's columns beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from epsball.report.tables import to_markdown

__all__ = ["table1_markdown", "table2_markdown"]

Row = Mapping[str, Any]


def table1_markdown(rows: Sequence[Row]) -> str:
    """Write Table 1: the paper's solution of each problem, and how often it is solved exactly here."""
    table = [
        {
            "type of attack": row["kind"],
            "problem": row["problem"],
            "the paper's solution": row["paper"],
            "here": row["recipe"],
            "solved exactly, unbounded": f"{100 * row['exact unbounded']:.0f} %",
            "inside [0, 1]": f"{100 * row['exact inside [0, 1]']:.0f} %",
        }
        for row in rows
    ]
    words = "Solved exactly: the share of eight small digits for which the solver vouches for the global solution."
    return f"{words}\n\n{to_markdown(table).rstrip()}"


def table2_markdown(rows: Sequence[Row]) -> str:
    """Write Table 2: each known attack, its objective, whether it iterates and dithers, and the recipes that are it."""
    table = [
        {
            "algorithm": row["algorithm"],
            "objective": row["objective"],
            "iterative": _yes(row["iterative"]),
            "dithering": _yes(row["dithering"]),
            "recipe here": ", ".join(ours["name"] for ours in row["recipes"]),
            "its objective": ", ".join(dict.fromkeys(ours["objective"] for ours in row["recipes"])),
            "iterates": ", ".join(dict.fromkeys(_yes(ours["iterative"]) for ours in row["recipes"])),
            "dithers": ", ".join(dict.fromkeys(_yes(ours["dithering"]) for ours in row["recipes"])),
        }
        for row in rows
    ]
    return f"The paper's columns, then the recipes that are these attacks.\n\n{to_markdown(table).rstrip()}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
