"""Assemble docs/paper.md and its figures from the folders that `epsball paper` wrote.

python docs/make_paper.py RUNS     where RUNS/table3, figure1, figure2, figure3 and figure4 are their --out folders

A section whose folder is not there stays as it is in the page. Panels of Figure 4 that were made one by one (figure4a,
figure4b, ...) are put together.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from epsball.report.paper import figure3_markdown, table3_markdown
from epsball.report.paper_regression import figure2_markdown, figure4_markdown, save_figure4

DOCS = Path(__file__).parent

INTRODUCTION = """# The paper's results made again

Table 3 and Figures 1 to 4 of [Balda, Behboodi and Mathar (2018)](https://arxiv.org/abs/1812.07385) on real MNIST and
CIFAR-10, with the networks that come with the package (their cards say how they were trained) and a CIFAR-10
autoencoder that is trained first, since its weights are too large to come along. The paper's experiments do not keep
perturbed images inside [0, 1]; the classifiers are attacked without a range, as in the paper, and inside [0, 1], as
images are; the autoencoders without a range. To make this page again, with `EPSBALL_DATA` naming a folder that holds
`mnist/` and `cifar10/`:

```sh
epsball paper table3 --out runs/table3
epsball paper figure1 --out runs/figure1
epsball train cifar10-autoencoder --out runs/cifar10-autoencoder.safetensors
epsball paper figure2 --weights cifar10-autoencoder=runs/cifar10-autoencoder.safetensors --out runs/figure2
epsball paper figure3 --out runs/figure3
epsball paper figure4 --weights cifar10-autoencoder=runs/cifar10-autoencoder.safetensors --out runs/figure4
python docs/make_paper.py runs
```
"""

#: Heading: folder, figures with what they show, and the writer of the numbers.
SECTIONS: dict[str, tuple[str, dict[str, str], Any]] = {
    "Table 3": ("table3", {}, table3_markdown),
    "Figure 1(a)": (
        "figure1",
        {"figure1a": "Ten digits, each beside its perturbed version and what LeNet-5 sees in it"},
        None,
    ),
    "Figure 2": (
        "figure2",
        {
            "figure2a": "Digits, adversarial and noisy, each beside the autoencoder's output",
            "figure2b": "The same for CIFAR-10 with 100 changed pixels",
        },
        figure2_markdown,
    ),
    "Figure 3": (
        "figure3",
        {
            "figure3-unbounded": "Fooling ratio over eps of ten methods on both networks, unbounded",
            "figure3-bounded": "The same inside the range 0 to 1",
        },
        figure3_markdown,
    ),
    "Figure 4": (
        "figure4",
        {"figure4": "Output PSNR of the autoencoders under attack, three panels"},
        figure4_markdown,
    ),
}


def join_panels(runs: Path) -> None:
    """Make RUNS/figure4 from the folders of its panels, where it is not there itself."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(runs.glob("figure4*/figure4.json"))]
    whole = runs / "figure4"
    if not parts or (whole / "figure4.json").is_file():
        return
    record = parts[0] | {"panels": sorted((p for part in parts for p in part["panels"]), key=lambda p: p["key"])}
    whole.mkdir(exist_ok=True)
    (whole / "figure4.json").write_text(json.dumps(record), encoding="utf-8")
    save_figure4(record, whole / "figures")


def section(runs: Path, heading: str, known: dict[str, str]) -> str:
    """Write one section and copy its figures, or return what the page says."""
    folder, figures, write = SECTIONS[heading]
    source = runs / folder / f"{folder}.json"
    if not source.is_file():
        return known.get(heading, "")
    parts = []
    for name, text in figures.items():
        shutil.copy(runs / folder / "figures" / f"{name}.png", DOCS / "figures")
        parts.append(f"![{text}](figures/{name}.png)\n")
    if write is not None:
        parts.append(write(json.loads(source.read_text(encoding="utf-8"))).replace("\n## ", "\n### ") + "\n")
    return "\n".join(parts)


def main() -> None:
    runs, page = Path(sys.argv[1]), DOCS / "paper.md"
    (DOCS / "figures").mkdir(exist_ok=True)
    join_panels(runs)
    before = re.split(r"^## (.+)\n\n", page.read_text(encoding="utf-8"), flags=re.M) if page.is_file() else [""]
    known = dict(zip(before[1::2], before[2::2], strict=True))
    texts = {heading: section(runs, heading, known).rstrip() for heading in SECTIONS}
    written = [f"## {heading}\n\n{text}\n" for heading, text in texts.items() if text]
    page.write_text("\n".join([INTRODUCTION, *written]), encoding="utf-8")


if __name__ == "__main__":
    main()
