"""Assemble docs/paper.md and its figures from the folder that `epsball paper all` wrote.

python docs/make_paper.py RUN     where RUN is its --out folder, with table3, figure1, figure2, figure3 and figure4

A section whose folder is not there stays as it is in the page, and so does a figure whose panel was not made.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from epsball.report.paper import figure3_markdown, table3_markdown
from epsball.report.paper_page import claims_markdown
from epsball.report.paper_regression import figure2_markdown, figure4_markdown
from epsball.report.paper_tables import table1_markdown, table2_markdown

DOCS = Path(__file__).parent

INTRODUCTION = """# The paper's results made again

Tables 1 to 3 and Figures 1 to 4 of [Balda, Behboodi and Mathar (2018)](https://arxiv.org/abs/1812.07385) on real MNIST,
CIFAR-10 and STL-10, with the networks that come with the package (their cards say how they were trained) and a CIFAR-10
autoencoder that is trained first, since its weights are too large to come along. The paper's experiments do not keep
perturbed images inside [0, 1]; the classifiers are attacked without a range, as in the paper, and inside [0, 1], as
images are; the regression networks without a range. To make this page again, with `EPSBALL_DATA` naming a folder that
holds `mnist/`, `cifar10/` and `stl10/` (what is missing is downloaded; STL-10 is 2.6 GB):

```sh
epsball train cifar10-autoencoder --out runs/cifar10-autoencoder.safetensors
epsball paper all --weights cifar10-autoencoder=runs/cifar10-autoencoder.safetensors{samples} --out runs/paper
python docs/make_paper.py runs/paper
```

The first line may be left out: what has no weights is trained first. A run that was killed goes on with `--resume`.
`runs/paper/paper.html` holds the same on one page, with the networks' cards, and which of the paper's statements hold;
`runs/paper/results.parquet` holds every row.
"""

#: Heading: the writer of a section that is made of the whole record.
WHOLE = {
    "What holds": claims_markdown,
    "Table 1": lambda record: table1_markdown(record["table1"]),
    "Table 2": lambda record: table2_markdown(record["table2"]),
}

#: Heading: folder, figures with what they show, and the writer of the numbers.
SECTIONS: dict[str, tuple[str, dict[str, str], Any]] = {
    "Table 3": ("table3", {}, table3_markdown),
    "Figure 1": (
        "figure1",
        {
            "figure1a": "Ten digits, each beside its perturbed version and what LeNet-5 sees in it",
            "figure1b": "Ten images of CIFAR-10, each beside its perturbed version and what NIN sees in it",
        },
        None,
    ),
    "Figure 2": (
        "figure2",
        {
            "figure2a": "Digits, adversarial and noisy, each beside the autoencoder's output",
            "figure2b": "The same for CIFAR-10 with 100 changed pixels",
            "figure2c": "Images of STL-10, adversarial and noisy, each beside its colorization",
        },
        figure2_markdown,
    ),
    "Figure 3": (
        "figure3",
        {
            "figure3-unbounded": "Fooling ratio over eps of ten methods on each network, unbounded",
            "figure3-bounded": "The same inside the range 0 to 1",
        },
        figure3_markdown,
    ),
    "Figure 4": (
        "figure4",
        {"figure4": "Output PSNR of the regression networks under attack, a panel for each"},
        figure4_markdown,
    ),
}


def section(run: Path, heading: str, known: dict[str, str]) -> str:
    """Write one section and copy its figures, or return what the page says."""
    folder, figures, write = SECTIONS[heading]
    source = run / folder / f"{folder}.json"
    if not source.is_file():
        return known.get(heading, "")
    parts = []
    for name, text in figures.items():
        drawn = run / folder / "figures" / f"{name}.png"
        if drawn.is_file():
            shrink(drawn, DOCS / "figures" / drawn.name)
        if (DOCS / "figures" / drawn.name).is_file():
            parts.append(f"![{text}](figures/{name}.png)\n")
    if write is not None:
        parts.append(write(json.loads(source.read_text(encoding="utf-8"))).replace("\n## ", "\n### ") + "\n")
    return "\n".join(parts)


def shrink(drawn: Path, there: Path) -> None:
    """Copy a figure with 256 colours, which is a third of its size; a photograph keeps all."""
    from PIL import Image

    if drawn.stem in ("figure1b", "figure2b", "figure2c"):
        shutil.copy(drawn, there)
        return
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256).save(there, optimize=True)


def whole(run: Path, heading: str, known: dict[str, str]) -> str:
    """Write a section from the record of all, or return what the page says."""
    source = run / "paper.json"
    if not source.is_file():
        return known.get(heading, "")
    return wrapped(WHOLE[heading](json.loads(source.read_text(encoding="utf-8"))))


def _samples(run: Path) -> str:
    """Return the option that limited the images."""
    source = run / "paper.json"
    limit = json.loads(source.read_text(encoding="utf-8")).get("limit") if source.is_file() else None
    return f" --samples {limit}" if limit else ""


def wrapped(text: str) -> str:
    """Break the lines that are not a table's."""
    lines = [line if line.startswith("|") else textwrap.fill(line, 118) for line in text.splitlines()]
    return "\n".join(lines)


def main() -> None:
    run, page = Path(sys.argv[1]), DOCS / "paper.md"
    (DOCS / "figures").mkdir(exist_ok=True)
    before = re.split(r"^## (.+)\n\n", page.read_text(encoding="utf-8"), flags=re.M) if page.is_file() else [""]
    known = dict(zip(before[1::2], before[2::2], strict=True))
    texts = {heading: whole(run, heading, known).rstrip() for heading in WHOLE}
    texts |= {heading: section(run, heading, known).rstrip() for heading in SECTIONS}
    written = [f"## {heading}\n\n{text}\n" for heading, text in texts.items() if text]
    introduction = [INTRODUCTION.replace("{samples}", _samples(run))]
    if (run / "paper.html").is_file():
        shutil.copy(run / "paper.html", DOCS)
    if (DOCS / "paper.html").is_file():
        introduction.append("The page that the command writes is kept here too: [paper.html](paper.html).\n")
    page.write_text("\n".join([*introduction, *written]), encoding="utf-8")


if __name__ == "__main__":
    main()
