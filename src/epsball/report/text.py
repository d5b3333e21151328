"""Text from outside made safe to show, and numbers written for people."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["count", "data_text", "decibels", "label", "lines", "listed", "norm_name", "number", "one_line", "percent"]
__all__ += ["printable", "share"]

# Escape sequences of terminals, whole, so that no "[31m" stays behind; then every other control character, and those
# that reorder or hide text (bidirectional overrides, zero-width marks).
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]|\x9b[0-?]*[ -/]*[@-~]"
)
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def printable(value: Any) -> str:
    """Return text without terminal escapes, control characters (but tab and newline), or marks that reorder text."""
    text = _HIDDEN.sub("", _SEQUENCES.sub("", str(value)))
    return text.encode("utf-8", "replace").decode("utf-8")


def one_line(value: Any, limit: int = 200) -> str:
    """Return text in one line of at most so many letters, safe for a terminal."""
    text = " ".join(printable(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def data_text(value: Any) -> str:
    """Write a value as JSON that can stand inside a <script> or an attribute: no <, > or &, every text printable."""
    text = json.dumps(_clean(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(key): _clean(entry) for key, entry in value.items()}
    return [_clean(entry) for entry in value] if isinstance(value, list | tuple) else value


def label(value: Any, limit: int = 40) -> str:
    """Return text for a figure: one line, not too long, and no formula or hidden entry by accident."""
    text = " ".join(printable(value).split())
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    # matplotlib reads $…$ as a formula, and leaves names that begin with "_" out of legends.
    text = text.replace("$", r"\$")
    return "\u2009" + text if text.startswith("_") else text


def lines(value: Any, width: int, most: int = 2) -> str:
    """Return text for a figure in at most so many lines of at most so many letters."""
    return textwrap.fill(label(value, width * most), width, max_lines=most, placeholder="…")


def listed(names: Sequence[str], most: int = 4) -> str:
    """Write names as a list: "a", "a and b", "a, b and c", "a, b, c and 2 more"."""
    shown = list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def number(value: float | None) -> str:
    """Write a number to four digits: 0.1, 1e-05, 12.35; "–" for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}".replace("inf", "∞")


def count(value: int) -> str:
    """Write a count: 9,820."""
    return f"{value:,}"


def share(part: int, whole: int) -> str:
    """Write part/whole in percent to a tenth, with more digits where a tenth would falsely say none or all."""
    if whole == 0:
        return "–"
    value, digits = 100.0 * part / whole, 1
    while 0 < part < whole and digits < 6 and float(f"{value:.{digits}f}") in (0.0, 100.0):
        digits += 1
    return f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Write a percentage to a tenth; "–" for none."""
    return "–" if value is None else f"{value:.1f}"


def decibels(value: float | None) -> str:
    """Write a PSNR to a tenth of a decibel: 21.3 dB; ∞ where nothing differs, "–" for none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1f}\u00a0dB" if math.isfinite(value) else f"{'-' if value < 0 else ''}∞\u00a0dB"


def norm_name(p: float) -> str:
    """Name the norm of order p: ℓ∞, ℓ2, ℓ1.5."""
    return "ℓ∞" if math.isinf(p) else f"ℓ{p:g}"
