"""The template engine, and what the pages of both tasks share."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from epsball.data.optional import require
from epsball.report import style, text
from epsball.report.example_files import png
from epsball.report.manifest import Manifest
from epsball.report.tables import Row, cost_table, format_cell, to_csv

__all__ = ["SHOWN_SAMPLES", "Drawings", "View", "common", "csv_link", "picture_uri", "render"]

SHOWN_SAMPLES = 8


@dataclass(frozen=True)
class View:
    """One page: what its template shows, the figures to be saved beside it, and its tables as LaTeX by name."""

    context: dict[str, Any]
    drawings: list[style.Drawing]
    tables: dict[str, str]


class Drawings:
    """The figures of one page: inline pictures for the page, and those to be saved beside it once all is drawn."""

    def __init__(self) -> None:
        self.kept: list[style.Drawing] = []

    def save(self, figure: Any, name: str) -> None:
        """Remember to save a figure beside the page, which shows it in another way."""
        self.kept.append(style.Drawing(figure, name))

    def keep(self, figure: Any, name: str) -> str:
        """Return a figure as a picture for the page, and remember to save it under this name."""
        self.kept.append(style.Drawing(figure, name))
        return self.kept[-1].inline()


def common(manifest: Manifest, table: Any) -> dict[str, Any]:
    """Return what every page shows."""
    return {
        "manifest": manifest,
        "cost": cost_table(table),
        "palette": style.PALETTE,
        "noise": style.BASELINE,
        "interactive": True,
        "configuration": json.dumps(manifest.configuration, indent=2, ensure_ascii=False, default=str),
    }


def picture_uri(picture: Any) -> str:
    """Return an RGB picture (H, W, 3) as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


def csv_link(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Return rows as a data: address of a CSV file, which a link can hand out without a script or a server."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(to_csv(rows, columns).encode("utf-8")).decode()


def render(template: str, context: dict[str, Any]) -> str:
    """Fill in a template of this folder, by its name without ending; everything from outside is escaped."""
    jinja2 = require("jinja2", "jinja2", "writing the report")
    markup = require("markupsafe", "markupsafe", "writing the report").Markup

    def shown(value: Any) -> Any:
        # Every value passes here on its way out; only what this package drew itself is markup and stays as it is.
        return value if isinstance(value, markup) or not isinstance(value, str) else text.printable(value)

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = _source("page.js") + (_source("gallery.js") if context.get("gallery") else "")
    script = script if context.get("interactive") else ""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.filters |= {"count": text.count, "number": text.number}
    environment.globals |= {
        "drawn": markup,
        "norm_name": text.norm_name,
        "share": text.share,
        "cell": format_cell,
        "csv_link": csv_link,
        "script": markup(script),
        "digest": digest,
        "inf": float("inf"),
    }
    return str(environment.get_template(f"{template}.html.jinja").render(context))


def _source(name: str) -> str:
    return resources.files("epsball.report").joinpath(name).read_text(encoding="utf-8")
