"""A run's manifest as the page reads it: whatever is missing or of another kind is left out, never an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from epsball.report.text import count, number, printable

__all__ = ["Fact", "Manifest"]

Fact = tuple[str, str]

_MEASURES = {
    "rho1": ("ρ̂₁", "mean over the samples of the size of DeepFool's perturbation divided by the size of the input"),
    "rho2": ("ρ̂₂", "mean first-order distance to the decision boundary (Theorem 1), in units of x"),
    "eps99": ("ε₉₉", "least eps at which DeepFool fools more than 99 %, in units of x"),
}
_REPEATED = ("network", "summary", "parameters", "weights_sha256")


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json, and what the page says of it."""

    content: Mapping[str, Any]

    def part(self, key: str) -> Mapping[str, Any]:
        """Return an object of the manifest; an empty one where there is none."""
        value = self.content.get(key)
        return value if isinstance(value, Mapping) else {}

    def text(self, key: str, part: str = "") -> str:
        """Return a value as text; "" where there is none."""
        value = (self.part(part) if part else self.content).get(key)
        return "" if value is None or isinstance(value, Mapping | list) else printable(value).strip()

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return self.text("name", "model") or "this model"

    @property
    def question(self) -> str:
        """The question that the run was made to answer."""
        return self.text("question") or f"How large a perturbation does {self.model_name} stand?"

    @property
    def created(self) -> str:
        """When the run was made, to the minute, with its time zone."""
        try:
            when = datetime.fromisoformat(self.text("created"))
        except ValueError:
            return self.text("created")
        return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()

    @property
    def data_name(self) -> str:
        """The data in short, "mnist test, 1,000 of 10,000"; never without the "of" where that is known."""
        words = " ".join(filter(None, (self.text("name", "data"), self.text("split", "data"))))
        have, of = (self._whole(self.part("data").get(key)) for key in ("count", "of"))
        size = "" if have is None else count(have) if of in (None, have) else f"{count(have)} of {count(of)}"
        return ", ".join(filter(None, (words, size)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; none where the manifest has none."""
        names = self.part("data").get("classes")
        return tuple(printable(name) for name in names) if isinstance(names, list) else ()

    @property
    def data_bounds(self) -> tuple[float, float] | None:
        """The valid range of the data."""
        return _pair(self.part("data").get("bounds"))

    @property
    def p(self) -> float:
        """The norm order of the run, inf where it is not a number; JSON may hold it as text."""
        try:
            return float(self.content.get("p", math.inf))
        except (TypeError, ValueError):
            return math.inf

    @property
    def is_image(self) -> bool:
        """Whether the manifest says that samples are images (C, H, W)."""
        shape = self.part("data").get("shape")
        return isinstance(shape, list) and len(shape) == 3 and shape[0] in (1, 3)

    @property
    def attacks(self) -> list[dict[str, str]]:
        """The attacks of the run: name, steps, summary, formulation and reference as text, "" where one is missing.

        Where an attack divides a budget of passes itself, the steps are that budget.
        """
        rows = self.content.get("attacks")
        named = [row for row in rows if isinstance(row, Mapping) and "name" in row] if isinstance(rows, list) else []
        keys = ("name", "steps", "summary", "formulation", "reference")
        found = [{key: "" if row.get(key) is None else printable(row[key]) for key in keys} for row in named]
        for text, row in zip(found, named, strict=True):
            if row.get("passes") is not None:
                text["steps"] = f"{printable(row['passes'])} passes"
        return found

    def groups(self, attack: str) -> str:
        """Name what a group attack changes few of: "pixels", of flat samples "entries"; "" for other attacks."""
        rows = self.content.get("attacks")
        named = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        if not any(row.get("name") == attack and row.get("family") == "groups" for row in named):
            return ""
        of = self.text("of", "groups").partition(":")[0] or "groups"
        shape = self.part("data").get("shape")
        return "entries" if of == "pixels" and isinstance(shape, list) and len(shape) == 1 else of

    @property
    def fewest(self) -> list[str]:
        """The names of the attacks that look for the fewest groups."""
        names = self.part("groups").get("fewest")
        return [str(name) for name in names] if isinstance(names, list) else []

    def _groups(self) -> str:
        count, of, fewest = (self.part("groups").get(name) for name in ("k", "of", "fewest"))
        if not count:
            return f"as few {of} as possible"
        return f"{count} × {of}" + (f"; {', '.join(fewest)}: as few as possible" if fewest else "")

    @property
    def minimal(self) -> list[str]:
        """The names of the minimal-norm attacks, which are run once, without a budget."""
        return [row["name"] for row in self.attacks if row["formulation"].lower().startswith("min")]

    @property
    def statuses(self) -> dict[str, dict[str, int]]:
        """How many samples ended how, by attack, as the run counted them."""
        rows = {str(name): value for name, value in self.part("statuses").items() if isinstance(value, Mapping)}
        return {
            name: {str(status): int(n) for status, n in value.items() if isinstance(n, int)}
            for name, value in rows.items()
        }

    @property
    def warnings(self) -> list[tuple[str, str, str]]:
        """What the run warned of: what was seen, what it may mean, what to do next."""
        entries = self.content.get("warnings")
        found = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
        keys = ("seen", "means", "next")
        return [
            (texts[0], texts[1], texts[2])
            for texts in ([printable(entry.get(key) or "").strip() for key in keys] for entry in found)
            if texts[0]
        ]

    @property
    def ends(self) -> list[tuple[str, float, float, float]]:
        """The measures of a robustness run: key, value, its interval's ends; a missing end is infinite."""
        rows = []
        for key in _MEASURES:
            entry = self.part("robustness").get(key)
            if isinstance(entry, Mapping):
                value, low, high = (entry.get(end) for end in ("value", "low", "high"))
                ends = [math.inf if not isinstance(end, int | float) else float(end) for end in (value, low, high)]
                rows.append((key, ends[0], ends[1], ends[2]))
        return rows

    @property
    def measures(self) -> list[tuple[str, float, float, float, str]]:
        """The measures of a robustness run as the page shows them: sign, value, its interval's ends, meaning."""
        return [(_MEASURES[key][0], value, low, high, _MEASURES[key][1]) for key, value, low, high in self.ends]

    @property
    def configuration(self) -> Any:
        """The full configuration of the run, as it was written down."""
        return self.content.get("configuration", {})

    def judge(self, candidates: Iterable[str]) -> str:
        """Choose the model that the page is about among those that judged: the manifest's, else the first by name."""
        names = sorted(candidates)
        return self.model_name if self.model_name in names or not names else names[0]

    @property
    def run_facts(self) -> list[Fact]:
        """How the run was made."""
        bounds = _pair(self.content.get("bounds"))
        within = "none: perturbed values may leave the data's range" if "bounds" in self.content else ""
        seconds = self.content.get("seconds")
        facts = [
            ("Task", self.text("task")),
            (
                "Reference output",
                {"input": "the input (y = x)", "output": "the model's own (y := f(x))", "data": "that of the data"}.get(
                    self.text("reference"), ""
                ),
            ),
            ("Groups", self._groups() if self.part("groups") else ""),
            ("Valid range of x", f"{number(bounds[0])} to {number(bounds[1])}" if bounds else within),
            ("Seed", self.text("seed")),
            ("Number format", self.text("dtype").removeprefix("torch.")),
            ("Device", self.text("device")),
            ("Batch size", self.text("batch_size")),
            ("Time", _duration(seconds) if isinstance(seconds, int | float) else ""),
            ("Made", self.created),
            ("Command", self.text("command")),
        ]
        return [fact for fact in facts if fact[1]]

    @property
    def model_facts(self) -> list[Fact]:
        """What is known of the model."""
        parameters = self._whole(self.part("model").get("parameters"))
        facts = [
            ("Name", self.text("name", "model")),
            ("What it is", self.text("summary", "model")),
            ("Parameters", count(parameters) if parameters is not None else ""),
            ("Digest of the weights", self.text("digest", "model")),
        ]
        return [fact for fact in facts if fact[1]]

    @property
    def training_facts(self) -> list[Fact]:
        """How the model was trained, from the card of its weights; what is said elsewhere is left out."""
        card = self.part("model").get("card")
        return [
            (printable(key).replace("_", " ").capitalize(), printable(value))
            for key, value in (card.items() if isinstance(card, Mapping) else ())
            if isinstance(value, str | int | float) and not isinstance(value, bool) and key not in _REPEATED
        ]

    @property
    def data_facts(self) -> list[Fact]:
        """What is known of the data."""
        bounds = self.data_bounds
        facts = [
            ("Name", self.data_name),
            ("Source", self.text("source", "data")),
            ("Range of x", f"{number(bounds[0])} to {number(bounds[1])}" if bounds else ""),
            ("Classes", ", ".join(self.classes)),
            ("Digest of the samples", self.text("digest", "data")),
        ]
        return [fact for fact in facts if fact[1]]

    @property
    def versions(self) -> list[Fact]:
        """The versions of the software."""
        return [(printable(name), printable(version)) for name, version in self.part("versions").items()]

    @staticmethod
    def _whole(value: Any) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(end, int | float) for end in value):
        return None
    return (float(value[0]), float(value[1])) if all(math.isfinite(end) for end in value) else None


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
