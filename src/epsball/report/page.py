"""One self-contained page for a run folder: nothing to load, everything from the data escaped."""

from __future__ import annotations

import os
from pathlib import Path

from epsball.errors import InputError
from epsball.report.classification_page import classification_view
from epsball.report.manifest import Manifest
from epsball.report.regression_page import regression_view
from epsball.report.render import render
from epsball.report.rows import is_regression, read_manifest, read_results
from epsball.report.style import write_atomic

__all__ = ["write_page"]


def write_page(directory: str | os.PathLike[str]) -> Path:
    """Write DIR/report.html, its figures (SVG, PNG) under DIR/figures and its tables (LaTeX) under DIR/tables.

    Reads results.parquet, manifest.json and, if it is there, examples.npz. The page is one file that works offline, and
    without its script as well; it is replaced whole or not at all. The same input gives the same bytes. Raises
    InputError for a folder without a run, with a damaged file, or that cannot be written; the first two before anything
    is written.
    """
    folder = Path(directory)
    table, content = read_results(folder), read_manifest(folder)
    regresses = is_regression(table, content)
    template = "regression" if regresses else "classification"
    view = regression_view if regresses else classification_view
    made = view(folder, table, Manifest(content))
    page = render(template, made.context).encode("utf-8")
    try:
        for drawing in made.drawings:
            drawing.save(folder / "figures")
        for name, source in made.tables.items():
            write_atomic(folder / "tables" / f"{name}.tex", source.encode("ascii"))
        return write_atomic(folder / "report.html", page)
    except OSError as error:
        raise InputError(f"expected a run folder that can be written, {folder} cannot ({error}).") from error
