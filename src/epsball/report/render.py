"""The template engine, and what the pages of both tasks share."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import Any

from epsball.data.optional import require
from epsball.report import style, text
from epsball.report.examples import png
from epsball.report.manifest import Manifest
from epsball.report.tables import cost_table, format_cell

__all__ = ["SHOWN_SAMPLES", "Drawings", "common", "picture_uri", "render"]

SHOWN_SAMPLES = 8


class Drawings:
    """The figures of one page: inline pictures for the page, and those to be saved beside it once all is drawn."""

    def __init__(self) -> None:
        self.kept: list[style.Drawing] = []

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
        "configuration": json.dumps(manifest.configuration, indent=2, ensure_ascii=False, default=str),
    }


def picture_uri(picture: Any) -> str:
    """Return an RGB picture (H, W, 3) as a data: address."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode("ascii")


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
    environment.filters |= {"count": text.count, "number": text.number}
    environment.globals |= {
        "drawn": markup,
        "norm_name": text.norm_name,
        "share": text.share,
        "cell": format_cell,
        "inf": float("inf"),
    }
    return str(environment.get_template(f"{template}.html.jinja").render(context))


def _source(name: str) -> str:
    return resources.files("epsball.report").joinpath(name).read_text(encoding="utf-8")
