"""Rows as a LaTeX tabular that needs no package and no encoding, whatever the text in it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from epsball.report.tables import HEADINGS, LEFT, format_cell
from epsball.report.text import printable

__all__ = ["latex_text", "to_latex"]

_SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "—": "---"}
_SIGNS |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", '"': "''", "`": r"\textasciigrave{}"}
_SIGNS |= {"∞": r"$\infty$", "ℓ": r"$\ell$", "ε": r"$\varepsilon$", "ρ": r"$\rho$", "×": r"$\times$", "±": r"$\pm$"}
_SIGNS |= {"−": r"$-$", "…": r"\dots{}", "’": "'", "‘": "`", "“": "``", "”": "''", "\u00a0": "~", "ß": r"\ss{}"}
_SIGNS |= {"[": "{[}", "*": "{*}"}  # after the end of a row both would belong to it
_SIGNS |= {character: "\\" + character for character in "&%$#_{}"}
_ACCENTS = {0x300: "`", 0x301: "'", 0x302: "^", 0x303: "~", 0x308: '"', 0x30A: "r", 0x30C: "v", 0x327: "c"}


def to_latex(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Write rows as a LaTeX tabular with rounded numbers, of plain rules and ASCII alone; columns: which keys.

    It stands in any document as it is: \\input it. Letters that LaTeX has no command for are written as their code.
    """
    keys = list(columns) if columns is not None else list(rows[0]) if rows else []
    if not keys:
        return ""
    align = "".join("l" if key in LEFT else "r" for key in keys)
    lines = [[latex_text(HEADINGS.get(key, key)) for key in keys]]
    lines += [[latex_text(format_cell(key, row.get(key))) for key in keys] for row in rows]
    head, *body = (" & ".join(line) + r" \\" for line in lines)
    parts = [f"\\begin{{tabular}}{{{align}}}", r"\hline", head, r"\hline", *body, r"\hline", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def latex_text(value: Any) -> str:
    """Return text as LaTeX source of ASCII alone that typesets it and does nothing else."""
    text = " ".join(printable(value).split())
    parts = re.split(r"(?<=-)(?=-)", text)  # two hyphens would become a dash
    return "{}".join("".join(map(_letter, part)) for part in parts)


def _letter(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if character.isascii():
        return character
    base, *marks = list(unicodedata.normalize("NFD", character))
    if len(marks) == 1 and ord(marks[0]) in _ACCENTS and base.isascii() and base.isalpha():
        return f"\\{_ACCENTS[ord(marks[0])]}{{{base}}}"
    return f"{{[}}U+{ord(character):04X}]"
