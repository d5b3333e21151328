"""Table 3 as the page shows it: deviations from the paper, and the order that each measure puts the networks in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

__all__ = ["LARGE", "MEASURES", "Deviation", "deviations", "in_paper_setting", "judge_orders", "orders"]

Record = Mapping[str, Any]

MEASURES = {"rho1": "ρ̂₁", "rho2": "ρ̂₂", "eps99": "ε₉₉"}
NAMES = {"error": "test error", **MEASURES}
LARGE = 30.0  # percent: beyond it a deviation is to be explained by a test, or called unexplained


@dataclass(frozen=True)
class Deviation:
    """How far one value is from the paper's, in percent of it; None where there is no value.

    covered: the paper's value lies inside our 95 % interval. explanation: of a deviation, if one was tested.
    """

    network: str
    title: str
    measure: str
    paper: float
    ours: float | None
    percent: float | None
    covered: bool
    explanation: str

    @property
    def name(self) -> str:
        """The measure as it is written."""
        return NAMES[self.measure]

    @property
    def is_large(self) -> bool:
        """Whether it is above 30 %, in either direction."""
        return self.percent is None or abs(self.percent) > LARGE


def in_paper_setting(record: Record) -> list[Record]:
    """Return the rows of Table 3 without a range, as the paper measures."""
    return [row for row in record["rows"] if row["range"] == "unbounded"]


def deviations(record: Record) -> list[Deviation]:
    """Compare every value of Table 3 with the paper's; explanations are the record's, by network and measure."""
    told = {(entry["network"], entry["measure"]): entry["text"] for entry in record.get("explanations", [])}
    found = []
    for row in in_paper_setting(record):
        for measure in NAMES:
            value = row[measure]
            ours = value["ours"]
            low, high = _interval(value)
            percent = None if ours is None else 100.0 * (ours / value["paper"] - 1.0)
            found.append(
                Deviation(
                    row["network"],
                    row["title"],
                    measure,
                    value["paper"],
                    ours,
                    percent,
                    low <= value["paper"] <= high,
                    told.get((row["network"], measure), ""),
                )
            )
    return found


def orders(record: Record) -> list[dict[str, Any]]:
    """Put the networks in the order of each measure, the most robust first: the paper's order and ours.

    ours: (title, whether the interval overlaps that of the next one).
    """
    rows = in_paper_setting(record)
    found = []
    for measure, name in MEASURES.items():
        paper = sorted(rows, key=lambda row: -row[measure]["paper"])
        ours = sorted(rows, key=lambda row: -_value(row[measure]))
        close = [_side(a[measure], b[measure]) == 0 for a, b in pairwise(ours)]
        found.append(
            {
                "name": name,
                "paper": [row["title"] for row in paper],
                "ours": list(zip((row["title"] for row in ours), [*close, False], strict=True)),
            }
        )
    return found


def judge_orders(rows: Sequence[Record]) -> Iterator[tuple[str, str, int, int, int, str]]:
    """Judge, over all pairs of networks, that the measures agree with each other, and that they agree with the paper.

    Yields (statement, source, pairs for which it holds, pairs for which the reverse holds, pairs, sentence).
    """
    pairs = list(combinations(rows, 2))
    if not pairs:
        return
    alike = [{_side(a[m], b[m]) for m in MEASURES} for a, b in pairs]
    holds = sum(sides in ({1}, {-1}) for sides in alike)
    reversed_ = sum({1, -1} <= sides for sides in alike)
    yield (
        "ρ̂₁, ρ̂₂ and ε₉₉ agree on which of two networks is the more robust",
        "section 6.1",
        holds,
        reversed_,
        len(pairs),
        _sentence(holds, reversed_, len(pairs), "pairs of networks"),
    )
    agreed = [_side(a[m], b[m]) * (1 if a[m]["paper"] > b[m]["paper"] else -1) for a, b in pairs for m in MEASURES]
    holds, reversed_ = agreed.count(1), agreed.count(-1)
    yield (
        "Each measure puts the networks in the order that the paper's values do",
        "section 6.1, Table 3",
        holds,
        reversed_,
        len(agreed),
        _sentence(holds, reversed_, len(agreed), "pairs of networks and measures"),
    )


def _sentence(holds: int, reversed_: int, count: int, unit: str) -> str:
    undecided = count - holds - reversed_
    return f"holds at {holds} of {count} {unit}, reversed at {reversed_}, undecided at {undecided}"


def _side(first: Record, second: Record) -> int:
    """Return 1 where the first interval lies above the second, -1 where below, 0 where they overlap."""
    (a_low, a_high), (b_low, b_high) = _interval(first), _interval(second)
    return (a_low > b_high) - (a_high < b_low)


def _interval(value: Record) -> tuple[float, float]:
    low, high = value["low"], value["high"]
    return -math.inf if low is None else low, math.inf if high is None else high


def _value(value: Record) -> float:
    return math.inf if value["ours"] is None else float(value["ours"])
