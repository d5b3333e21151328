"""Write the catalogue of attacks between the markers of docs/attacks.md, from the catalogue itself.

python docs/make_attacks.py          # rewrites docs/attacks.md
python docs/make_attacks.py --check  # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import epsball as eb

PAGE = Path(__file__).with_name("attacks.md")
BEGIN, END = "<!-- catalogue: begin, written by docs/make_attacks.py -->", "<!-- catalogue: end -->"
HEADINGS = ("recipe", "what it does", "objective", "problem", "set", "steps", "update", "stops", "dither", "options")
NEEDED: dict[str, Any] = {"surrogates": [torch.nn.Identity()]}  # options without which a row composes nothing


def objective(row: eb.Recipe) -> str:
    built = row.objective({name: NEEDED[name] for name in row.options if name in NEEDED})
    if not row.formulation.uses_model:
        return "–"
    return f"`{built.objective!r}` of the surrogates" if isinstance(built, eb.Ensemble) else f"`{built!r}`"


def problem(row: eb.Recipe) -> str:
    if not row.formulation.uses_model:
        return "a random point"
    return "largest gain within ε" if row.formulation.budgeted else "smallest norm"


def constraint(row: eb.Recipe) -> str:
    if row.family == "groups":
        return "T groups, ℓ∞ inside"
    if row.over_groups is not None:
        return "ℓp, any p, or groups"
    return "ℓp, any p" if row.order is None else "ℓ∞" if row.order == math.inf else f"ℓ{row.order:g}"


def steps(row: eb.Recipe) -> str:
    if row.name.endswith("-T") and row.iterative:
        return "T"
    return f"T, default {row.steps}" if row.iterative else "1"


def dither(row: eb.Recipe) -> str:
    schedule = row.schedule(row.steps)
    radii = schedule.dithers()
    found = "random start" if schedule.random_start else "–"
    if any(radii):
        found = f"{radii[0]:g} ε at t = 1" if not any(radii[1:]) else f"{radii[0]:g} ε"
    return "option" if "dither" in row.options else found


def cells(row: eb.Recipe) -> tuple[str, ...]:
    schedule = row.schedule(row.steps)
    one = not row.iterative or not row.formulation.uses_model
    update = "–" if one else "projected" if schedule.update == "project" else "added"
    stops = "never" if schedule.stop == "never" else "at success"
    options = ", ".join(f"`{name}=`" for name in row.options if name != "dither") or "–"
    return (
        f'<a id="{row.name.lower()}"></a>`{row.name}`',
        f"{row.summary} ({row.reference})",
        objective(row),
        problem(row),
        constraint(row),
        steps(row),
        update,
        stops,
        dither(row),
        options,
    )


def table() -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(cells(row) for row in eb.recipes())]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def page(text: str) -> str:
    """Return the page with the table between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{PAGE}: expected the two markers once each, in order.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    arguments = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if arguments.check:
        sys.exit(0 if old == new else f"{PAGE} is out of date; run python docs/make_attacks.py")
    if old != new:
        handle, name = tempfile.mkstemp(dir=PAGE.parent, prefix=f".{PAGE.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(new)
        os.chmod(name, PAGE.stat().st_mode)
        os.replace(name, PAGE)


if __name__ == "__main__":
    main()
