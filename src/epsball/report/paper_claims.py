"""The paper's statements, and what the verdicts in a record make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epsball.report.paper_table3 import MEASURES, deviations, in_paper_setting, judge_orders
from epsball.report.paper_text import method_name
from epsball.report.tables import to_markdown
from epsball.report.text import listed

__all__ = ["UNBOUNDED", "VERDICTS", "Judged", "Statement", "answer", "claims_markdown", "statements"]

Record = Mapping[str, Any]

#: The range of the paper's experiments: none.
UNBOUNDED = "unbounded"
#: What is said of a statement, and when.
VERDICTS = {
    "holds": "95 % intervals say so at half of the points or more, and at no point the reverse",
    "holds in part": "at some points they say so, at others the reverse; or on some networks and not on others",
    "does not hold": "95 % intervals say the reverse at half of the points or more, and at no point that it holds",
    "undecided": "all else: too few images to tell",
}


@dataclass(frozen=True)
class Judged:
    """A statement on one panel: at how many of its points (ε or input PSNR) it holds, and at how many the reverse.

    extent: what it speaks of, "most" points, "all" of them or "some".
    """

    panel: str
    range: str
    holds: int
    reversed: int
    points: int
    sentence: str
    extent: str = "most"

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        if self.extent == "some":
            return "holds" if self.holds else "does not hold" if 0 < self.points == self.reversed else "undecided"
        if self.extent == "all" and 0 < self.holds < self.points:
            return "holds in part"
        if self.holds and self.reversed:
            return "holds in part"
        if 2 * self.holds >= max(1, self.points):
            return "holds"
        return "does not hold" if 2 * self.reversed >= max(1, self.points) else "undecided"

    @property
    def briefly(self) -> str:
        """At how many points it holds; of a statement that is not about most of them, the first that was found."""
        return self.where if self.extent == "most" else self.sentence.split(";")[0]

    @property
    def where(self) -> str:
        """At how many points it holds; of a statement that is not about most of them, what was found."""
        if self.extent != "most":
            return self.sentence
        reverse = f", the reverse at {self.reversed}" if self.reversed else ""
        return f"{self.holds} of {self.points}{reverse}"


@dataclass(frozen=True)
class Statement:
    """A statement about a table or figure, where it is from, and how it was judged on each panel."""

    text: str
    source: str
    artefact: str
    judged: tuple[Judged, ...]

    @property
    def papers(self) -> bool:
        """Whether the paper makes it."""
        return self.source.startswith("section") and "reading" not in self.source

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`, over the panels in the paper's setting; of those that decide anything."""
        found = {j.verdict for j in self.judged if j.range == UNBOUNDED}
        decided = found - {"undecided"}
        return decided.pop() if len(decided) == 1 else "holds in part" if decided else "undecided"


def statements(record: Record) -> list[Statement]:
    """Collect every statement of the record in the order of the artefacts."""
    found: dict[tuple[str, str, str], list[Judged]] = {}
    for text, source, holds, reversed_, points, sentence in judge_orders(in_paper_setting(record["table3"])):
        key = ("Table 3", text, source)
        found[key] = [Judged("all networks", UNBOUNDED, holds, reversed_, points, sentence)]
    for number in (3, 4):
        for panel in record[f"figure{number}"]["panels"]:
            for claim in panel["claims"]:
                text = method_name(claim["text"])
                judged = Judged(
                    f"({panel['key']}) {panel['title']}",
                    panel.get("range", UNBOUNDED),
                    claim["holds"],
                    claim["reversed"],
                    len(claim["difference"]),
                    claim["sentence"],
                    claim.get("extent", "most"),
                )
                found.setdefault((f"Figure {number}", text[0].upper() + text[1:], claim["source"]), []).append(judged)
    return [Statement(text, source, where, tuple(judged)) for (where, text, source), judged in found.items()]


def answer(record: Record) -> list[str]:
    """Say in a few plain sentences what holds, how near Table 3 is, and on what that was measured."""
    mine = [statement for statement in statements(record) if statement.papers]
    kinds = {verdict: [s for s in mine if s.verdict == verdict] for verdict in VERDICTS}
    words = {"holds": "hold", "holds in part": "hold in part", "does not hold": "do not", "undecided": "are undecided"}
    one = {"holds": "holds", "holds in part": "holds in part", "does not hold": "does not", "undecided": "is undecided"}
    counts = [f"{len(rows)} {(one if len(rows) == 1 else words)[verdict]}" for verdict, rows in kinds.items() if rows]
    first = f"Of {len(mine)} statements that the paper makes about its experiments, {listed(counts)} here."
    if len(kinds["holds"]) == len(mine):
        first = f"All {len(mine)} statements that the paper makes about its experiments hold here."
    but = [
        f"{'Not so' if verdict == 'does not hold' else 'In part'}: {'; '.join(_words(s) for s in kinds[verdict])}."
        for verdict in ("does not hold", "holds in part")
        if kinds[verdict]
    ]
    return [first, *but, _near(record), measured_on(record)]


def _words(statement: Statement) -> str:
    """Write a statement with where it was judged: "Algorithm 1 ... (FCNN: 9 of 10; LeNet-5: 3 of 10)"."""
    judged = (j for j in statement.judged if j.range == UNBOUNDED)
    return f"{statement.text} ({'; '.join(f'{j.panel}: {j.briefly}' for j in judged)})"


def _near(record: Record) -> str:
    """Say how near Table 3 is, in the paper's setting."""
    rows = [row for row in deviations(record["table3"]) if row.measure in MEASURES and row.percent is not None]
    if not rows:
        return "Table 3: no value could be compared with the paper's."
    far = [row for row in rows if row.is_large]
    largest = max(rows, key=lambda row: abs(row.percent or 0.0))
    return (
        f"Table 3: {len(rows) - len(far)} of {len(rows)} robustness values lie within 30 % of the paper's; the largest "
        f"deviation is {largest.percent:+.0f} % ({largest.name} of {largest.title})."
    )


def measured_on(record: Record) -> str:
    """Say on which networks and how many images."""
    counts: dict[str, list[str]] = {}
    for row in in_paper_setting(record["table3"]):
        counts.setdefault(f"{row['count']:,}", []).append(row["title"])
    for panel in record["figure4"]["panels"]:
        counts.setdefault(f"{panel['count']:,}", []).append(panel["title"].split(",")[0])
    parts = [f"{listed(list(dict.fromkeys(names)), 9)} on {count} test images" for count, names in counts.items()]
    left = list(record["table3"].get("left_out", []))
    return f"Measured on: {'; '.join(parts)}." + (f" Left out: {listed(left)}, without weights." if left else "")


def spell(judged: Sequence[Judged]) -> str:
    """Say where a statement holds: "(a) FCNN (MNIST): holds (10 of 10); (b) ..."."""
    return "; ".join(f"{j.panel}: {j.verdict} ({j.where})" for j in judged)


def claims_markdown(record: Record) -> str:
    """Write the answer and the verdict on every statement as Markdown."""
    rows = [
        {
            "of": s.artefact,
            "statement": s.text,
            "source": s.source,
            "here": s.verdict,
            "panel by panel, unbounded": spell([j for j in s.judged if j.range == UNBOUNDED]),
        }
        for s in statements(record)
        if s.papers
    ]
    return "\n\n".join([*answer(record), to_markdown(rows).rstrip()])
