"""Sphinx reads the pages as they are: plain Markdown, docstrings in plain text, formulas without a network."""

from __future__ import annotations

import contextlib
import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import epsball

log = logging.getLogger(__name__)

project = "epsball"
author = "The epsball developers"
copyright = author
version = release = epsball.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"epsball {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
html_show_sphinx = False
pygments_dark_style = "github-dark"

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
nitpicky = True
# Types of other packages, and the library's own that are no page of their own; names in links are still checked.
nitpick_ignore_regex = [("py:(class|data|obj|exc)", r"(?!epsball\.).*|epsball\..*\.(Formulation|Generators|_\w+)")]


# ----------------------------------------------------------------------------- docstrings, which are plain text


def names_of(what: Any) -> set[str]:
    """The arguments, fields and attributes that a docstring may explain."""
    found = {field.name for field in fields(what)} if is_dataclass(what) else set()
    found |= set(getattr(what, "__annotations__", {}))
    with contextlib.suppress(TypeError, ValueError):
        found |= set(inspect.signature(what).parameters)
    return found


def literal(text: str) -> str:
    """Plain text as reStructuredText: `code` becomes a literal, every other character stands for itself."""
    parts = re.split(r"`([^`]+)`", text)
    safe = [re.sub(r"([\\*|_:\[\]<>])", r"\\\1", part) for part in parts[::2]]
    code = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(safe, [*code, ""], strict=True))


def explained(paragraph: str, names: set[str]) -> list[str]:
    """A paragraph as lines: one entry of a list for each `name: what it is.`, the rest as it is."""
    one = rf"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?: \([^)]*\)(?: bool| int64)?)?"
    starts = list(re.finditer(rf"(?:^|(?<=[.;] ))({one}(?:,? (?:and )?{one})*): ", paragraph)) if names else []
    if not starts:
        return [literal(paragraph), ""]
    lines = [literal(paragraph[: starts[0].start()].strip()), ""] if starts[0].start() else []
    # The last entry ends where a sentence speaks of the whole.
    after = re.compile(r"(?<=[.;] )(?:Raises|InputError|Sources?:|The|It|All|Nothing|Write) ").search(
        paragraph, starts[-1].end()
    )
    last = after.start() if after else len(paragraph)
    ends = [match.start() for match in starts[1:]] + [last]
    for match, end in zip(starts, ends, strict=True):
        lines += [f"- **{literal(match[1])}**: {literal(paragraph[match.end() : end].strip())}", ""]
    return [*lines, literal(paragraph[last:]), ""]


def readable(
    app: Sphinx, kind: str, name: str, what: Any, options: Any, given: str | None, returned: str | None
) -> Any:
    """Write a default that is made by a factory so that the signature can be parsed, and its types be linked."""
    return (given.replace("<factory>", "...") if given else given), returned


def as_text(app: Sphinx, kind: str, name: str, what: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring's lines into reStructuredText that shows the same text."""
    names = names_of(what)
    made: list[str] = []
    for block in "\n".join(lines).strip().split("\n\n"):
        rows = block.split("\n")
        if rows[0].startswith(">>>"):
            made += [*rows, ""]
        elif len(rows) > 1 and re.match(r"[\w, ]+  +\S", rows[0]):  # a table of names, its columns aligned
            made += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            made += explained(" ".join(row.strip() for row in rows), names)
    lines[:] = made


# ------------------------------------------------------------------------------- formulas as MathML, without scripts


# docutils sets the subscript of an accented letter below it, like a limit.
ACCENTED = re.compile(r"<munderover>\s*(<mi>[^<]*</mi>)\s*(<m[in]>[^<]*</m[in]>)\s*(<mo [^<]*</mo>)\s*</munderover>")
BESIDE = r'<msub><mover accent="true">\1\3</mover>\2</msub>'


def mathml(block: bool) -> Any:
    def visit(self: Any, node: nodes.Element) -> None:
        try:
            formula = ACCENTED.sub(BESIDE, latex2mathml.tex2mathml(node.astext(), as_block=block))
        except MathError as error:
            log.warning("%s in %r", error, node.astext(), location=node)
            raise nodes.SkipNode from error
        self.body.append(f'<div class="formula" tabindex="0">{formula}</div>' if block else formula)
        raise nodes.SkipNode

    return visit


# ------------------------------------------------------------------------------------------- pages read elsewhere too


def anchors(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn `<a id="x"></a>`, which a Git host shows, into an anchor that links are checked against."""
    source[0] = re.sub(r'<a id="([^"]+)"></a>', r"[]{#\1}", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (mathml(False), None), (mathml(True), None))
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-process-docstring", as_text)
    app.connect("source-read", anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
