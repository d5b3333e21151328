"""How figures look: colours, lines and markers that differ without colour, and figures without global state."""

from __future__ import annotations

import io
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from epsball.data.optional import require

__all__ = ["GRID", "INK", "MUTED", "PALETTE", "Drawing", "line_styles", "new_figure", "save", "show_image"]
__all__ += ["tidy", "write_atomic"]

# (on white, on near-black): at least 3:1 against its background and told apart with the common colour blindnesses.
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#d05a00", "#ff9a57"),
    ("#00805a", "#3fd3a4"),
    ("#b0478f", "#ee9fd0"),
    ("#3b2a8c", "#b7abff"),
    ("#8a6d00", "#e3c535"),
)
BASELINE = ("#6a727b", "#9ba5af")  # for random noise, which is what the others are measured against
INK, MUTED, GRID = "#1b2026", "#59626c", "#d4d9de"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")


def line_styles(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return colour, line and marker of each name in order; no two alike among 66 names, noise in grey."""
    styles, place = [], 0
    for index, name in enumerate(names):
        noise = name.startswith("random")
        colour = BASELINE[0] if noise else PALETTE[place % len(PALETTE)][0]
        # After six colours the line style moves on by one more, so that the same colour never keeps its line.
        line = ":" if noise else LINES[(place + place // len(PALETTE)) % len(LINES)]
        styles.append({"color": colour, "linestyle": line, "marker": MARKERS[index % len(MARKERS)]})
        place += not noise
    return styles


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of its own, in inches, that pyplot knows nothing of."""
    require("matplotlib", "matplotlib", "drawing figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def show_image(ax: Any, image: Any) -> None:
    """Draw one image (C, H, W), cut to the range that a screen can show."""
    if image.shape[0] == 1:
        ax.imshow(image[0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    else:
        ax.imshow(image.clip(0.0, 1.0).transpose(1, 2, 0), interpolation="nearest")


def tidy(ax: Any, grid: str = "both") -> None:
    """Give an Axes light rules and quiet spines; no settings outside of it are touched."""
    ax.set_axisbelow(True)
    ax.grid(True, axis=grid, color=GRID, linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(colors=INK, labelsize=10, color=MUTED)
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_color(INK)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawn figure: svg, without a background, and png, on white; both rendered once, when first asked for."""

    figure: Any
    name: str

    @cached_property
    def svg(self) -> str:
        """The figure as an SVG document."""
        buffer = io.StringIO()
        self._render(buffer, format="svg", transparent=True, metadata={"Date": None})
        return buffer.getvalue()

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self._render(buffer, format="png", dpi=200, metadata={"Software": None})
        return buffer.getvalue()

    def inline(self) -> str:
        """Return the figure as an <svg> element for the page: colours that follow light and dark, ids of its own.

        Colours of this module become variables of the page: var(--s0) and on for the palette, --noise, --line, --muted,
        and currentColor for the ink.
        """
        svg = self.svg[self.svg.index("<svg") :].strip()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        head, rest = svg.split(">", 1)
        box = re.search(r'viewBox="[^"]*"', head)
        # Inside HTML the namespaces are implied; width and height would defeat the page's layout.
        svg = f'<svg {box.group() if box else ""} aria-hidden="true" focusable="false">{rest}'
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg.replace("xlink:href", "href"))
        svg = re.sub(r'href="#', f'href="#{self.name}-', svg).replace("url(#", f"url(#{self.name}-")
        names = {light: f"var(--s{index})" for index, (light, _) in enumerate(PALETTE)}
        names |= {BASELINE[0]: "var(--noise)", GRID: "var(--line)", MUTED: "var(--muted)", INK: "currentColor"}
        for colour, name in names.items():
            svg = svg.replace(colour, name)
        return svg

    def save(self, directory: Path) -> list[Path]:
        """Write NAME.svg and NAME.png into a folder, on white, each whole or not at all."""
        svg = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', self.svg, count=1)
        contents = {"svg": svg.encode("utf-8"), "png": self.png}
        return [write_atomic(directory / f"{self.name}.{suffix}", content) for suffix, content in contents.items()]

    def _render(self, buffer: Any, **options: Any) -> None:
        import matplotlib as mpl

        # The same rows must give the same bytes: no date, and ids from a fixed salt. rc_context puts back what it
        # changes. A layout that holds for one format holds for the next: it is worked out once.
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            self.figure.savefig(buffer, **options)
        self.figure.set_layout_engine("none")


def save(figure: Any, directory: Path, name: str) -> list[Path]:
    """Write a figure as NAME.svg and NAME.png (200 dpi, on white) into a folder, each whole or not at all."""
    return Drawing(figure, name).save(directory)


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file through a temporary one beside it, so that no reader ever finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes files for their owner alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
