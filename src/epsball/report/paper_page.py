"""One page for the whole paper: its values and curves beside ours, and which of its statements hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from epsball.metrics.intervals import wilson_interval
from epsball.report import style
from epsball.report.paper_claims import UNBOUNDED, VERDICTS, Statement, answer, claims_markdown, statements
from epsball.report.paper_curves import cost_rows, curve_table, described
from epsball.report.paper_table3 import deviations, orders
from epsball.report.paper_text import COLORIZATION, DIFFERENCES, FIGURES, NOTES, PAPER
from epsball.report.render import render

__all__ = ["claims_markdown", "paper_page"]

Record = Mapping[str, Any]

FEW_IMAGES = 200  # below it most comparisons cannot be decided, and the page says so first


@dataclass(frozen=True, eq=False)
class _Saved(style.Drawing):
    """A figure that lies in a folder; figure: its SVG file."""

    @cached_property
    def svg(self) -> str:
        """The SVG document without the white sheet under it."""
        text: str = self.figure.read_text(encoding="utf-8")
        return text.replace('<rect width="100%" height="100%" fill="white"/>', "", 1)


def paper_page(record: Record, out: Path) -> str:
    """Return the page for the record of `epsball paper all`; out: its folder, with the figures that were drawn.

    One file without scripts that loads nothing; everything from the record is escaped.
    """
    found = statements(record)
    table3 = record["table3"]
    counts = [row["count"] for row in table3["rows"]]
    # A panel of large images has few, whatever is asked for; their differences are plain on fewer.
    counts += [panel["count"] for panel in record["figure4"]["panels"] if panel["count"] < panel["few"]]
    context = {
        "palette": style.PALETTE,
        "noise": style.BASELINE,
        "paper": PAPER,
        "record": record,
        "answer": answer(record),
        "verdicts": VERDICTS,
        "by_verdict": {v: [s for s in found if s.papers and s.verdict == v] for v in VERDICTS},
        "few": min(counts, default=0) if min(counts, default=0) < FEW_IMAGES else None,
        "claims": [_claims(found, where) for where in dict.fromkeys(s.artefact for s in found)],
        "differences": [*DIFFERENCES[:1], *_data(record), *DIFFERENCES[1:], *_colorization(record)],
        "networks": _networks(record),
        "deviations": {(d.network, d.measure): d for d in deviations(table3)},
        "large": [d for d in deviations(table3) if d.is_large],
        "orders": orders(table3),
        "figures": [_figure(record, out, name) for name in FIGURES],
        "costs": cost_rows(record),
        "left_out": _left_out(record),
        "command": _command(record),
    }
    return render("paper", context)


def _claims(found: Sequence[Statement], artefact: str) -> dict[str, Any]:
    """Arrange the statements about one artefact: a line each, a column for each panel and range."""
    mine = [statement for statement in found if statement.artefact == artefact]
    judged = [j for statement in mine for j in statement.judged]
    ranges = list(dict.fromkeys(j.range for j in judged))
    heads = sorted({(j.panel, j.range) for j in judged}, key=lambda head: (ranges.index(head[1]), head[0]))
    several = len(ranges) > 1
    lines: dict[bool, list[Any]] = {True: [], False: []}
    for statement in sorted(mine, key=lambda s: not s.papers):
        cells = {(j.panel, j.range): j for j in statement.judged}
        # Comparisons with random noise, of which there is one for each method, are apart.
        main = "at or below random" not in statement.text
        lines[main].append((statement, [cells.get(head) for head in heads]))
    return {"artefact": artefact, "heads": heads, "lines": lines[True], "further": lines[False], "several": several}


def _data(record: Record) -> list[tuple[str, str]]:
    """Say which images were used, of which test sets."""
    panels = [*record["figure3"]["panels"], *record["figure4"]["panels"]]
    sources = list(dict.fromkeys(panel["source"] for panel in panels))
    few = {panel["few"] for panel in record["figure4"]["panels"]}
    facts = [("Data" if place == 0 else "", source) for place, source in enumerate(sources)]
    if few:
        facts.append(
            (
                "Averages of Figure 4",
                f"Over all of these images; the paper takes 20. The mean over the first {max(few)} stands beside it in "
                "the tables.",
            )
        )
    return facts


def _colorization(record: Record) -> Sequence[tuple[str, str]]:
    return COLORIZATION if any(panel["key"] == "d" for panel in record["figure4"]["panels"]) else ()


def _networks(record: Record) -> list[dict[str, Any]]:
    """Arrange the cards: what each network is, how it was trained, and its test error beside the paper's."""
    errors = {row["network"]: row["error"]["paper"] for row in record["table3"]["rows"]}
    rows = []
    for name, entry in record.get("networks", {}).items():
        card = entry.get("card") or {}
        rows.append(
            {
                "name": name,
                "summary": card.get("summary", ""),
                "paper": f"{errors[name]:g} % test error" if name in errors else "not given",
                "ours": _quality(card),
                "training": _training(card),
                "weights": Path(entry["weights"]).name,
                "command": card.get("command", ""),
                "digest": card.get("weights_sha256", ""),
            }
        )
    return rows


def _quality(card: Record) -> str:
    """Say how good a network is by its card."""
    count = card.get("test_count", 0)
    if "test_psnr" in card:
        return f"{card['test_psnr']:.1f} dB output PSNR on {count:,} images"
    if not count:
        return ""
    low, high = wilson_interval(round(card["test_error"] * count), count)
    return f"{100 * card['test_error']:.2f} % test error ({100 * low:.2f} to {100 * high:.2f}) on {count:,} images"


def _training(card: Record) -> str:
    """Say how a network was trained by its card."""
    if "training" not in card:
        return ""
    schedule = f"{card['schedule']} schedule, " if card.get("schedule") else ""
    limit = card["training"]["count"]
    return f"{schedule}{card['epochs']} epochs on {limit:,} images, {card['optimiser']}"


def _figure(record: Record, out: Path, name: str) -> dict[str, Any]:
    """Arrange one figure: its pictures, and for each panel our curves in words and in numbers."""
    known = FIGURES[name]
    panels = record[name]["panels"]
    # By name: a folder may still hold figures of an earlier run.
    drawn = [panel["key"] for panel in panels if panel.get("examples", True)]
    endings = {"figure3": ["-unbounded", "-bounded"], "figure4": [""]}.get(name, drawn)
    files = [out / name / "figures" / f"{name}{ending}.svg" for ending in endings]
    pictures = [
        {"svg": _Saved(path, path.stem).inline(), "alt": _alt(name, path.stem, panels)}
        for path in files
        if path.is_file()
    ]
    return {
        "name": name,
        "title": known.title,
        "number": name.removeprefix("figure"),
        "paper": known.paper,
        "note": NOTES.get(name, ""),
        "pictures": pictures,
        "here": [described(name, panel) for panel in panels if panel.get("range", UNBOUNDED) == UNBOUNDED],
        "tables": [curve_table(name, panel) for panel in panels] if name in ("figure3", "figure4") else [],
        "made": [letter for letter in known.panels if any(panel["key"] == letter for panel in panels)],
    }


def _alt(name: str, stem: str, panels: Sequence[Record]) -> str:
    """Say in words what a picture shows."""
    if name == "figure1":
        panel = next(panel for panel in panels if stem.endswith(panel["key"]))
        seen = ", ".join(f"{e['name']} seen as {e['predicted']}" for e in panel["examples"])
        return f"Images beside their perturbed versions that {panel['network']} misclassifies: {seen}."
    if name == "figure2":
        panel = next(panel for panel in panels if stem.endswith(panel["key"]))
        return (
            f"{described(name, panel)} Each row is an image: original, adversarial and noisy, each beside its output."
        )
    limits = "inside [0, 1]" if stem.endswith("-bounded") else UNBOUNDED
    shown = [panel for panel in panels if panel.get("range", limits) == limits]
    words = " ".join(described(name, panel) for panel in shown)
    return f"Curves of every method, a panel for each network; the same numbers are in the tables below. {words}"


def _left_out(record: Record) -> list[tuple[str, str, str]]:
    """Name the networks whose panels and rows were not made, what was not, and why."""
    found: dict[str, list[str]] = {}
    for name in record["table3"].get("left_out", []):
        found.setdefault(name, []).append("its row of Table 3")
    for name, figure in FIGURES.items():
        made = {panel["key"] for panel in record[name]["panels"]}
        for letter, (_, network) in figure.panels.items():
            if letter not in made:
                found.setdefault(network, []).append(f"{name.replace('figure', 'Figure ')}({letter})")
    hopeless = record["figure3"].get("none_correct", [])
    reasons = dict.fromkeys(hopeless, "it classifies none of the images correctly")
    other = "no weights of this network come with epsball, and none were given"
    return [(network, ", ".join(what), reasons.get(network, other)) for network, what in found.items()]


def _command(record: Record) -> str:
    """Return the command that makes the page again; files of weights by name alone."""
    words = [record["made_by"], "--out runs/paper"]
    words += [f"--samples {record['limit']}"] if record.get("limit") else []
    words += [f"--seed {record['seed']}"] if record.get("seed") else []
    for name, entry in record.get("networks", {}).items():
        if entry.get("given"):
            words.append(f"--weights {name}={Path(entry['weights']).name}")
    return " ".join(words)
