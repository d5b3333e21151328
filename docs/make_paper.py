"""Assemble docs/paper.md and its figures from the folders that `epsball paper` wrote.

python docs/make_paper.py RUNS     where RUNS/table3, figure1, figure2, figure3 and figure4 are their --out folders
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from epsball.report.paper import figure3_markdown, table3_markdown
from epsball.report.paper_regression import figure2_markdown, figure4_markdown

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

FIGURES = {
    "figure1a": "figure1/figures",
    "figure2a": "figure2/figures",
    "figure2b": "figure2/figures",
    "figure3-unbounded": "figure3/figures",
    "figure3-bounded": "figure3/figures",
    "figure4": "figure4/figures",
}


def record(runs: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs / name / f"{name}.json").read_text(encoding="utf-8"))
    return content


def main() -> None:
    runs = Path(sys.argv[1])
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    for name, folder in FIGURES.items():
        shutil.copy(runs / folder / f"{name}.png", figures)
    parts = [
        INTRODUCTION,
        "## Table 3\n",
        table3_markdown(record(runs, "table3")) + "\n",
        "## Figure 1(a)\n",
        "![Ten digits, each beside its perturbed version and what LeNet-5 sees in it](figures/figure1a.png)\n",
        "## Figure 2\n",
        "![Digits, adversarial and noisy, each beside the autoencoder's output](figures/figure2a.png)\n",
        "![The same for CIFAR-10 with 100 changed pixels](figures/figure2b.png)\n",
        figure2_markdown(record(runs, "figure2")) + "\n",
        "## Figure 3\n",
        "![Fooling ratio over eps of ten methods on both networks, unbounded](figures/figure3-unbounded.png)\n",
        "![The same inside the range 0 to 1](figures/figure3-bounded.png)\n",
        figure3_markdown(record(runs, "figure3")).replace("\n## ", "\n### ") + "\n",
        "## Figure 4\n",
        "![Output PSNR of the autoencoders under attack, three panels](figures/figure4.png)\n",
        figure4_markdown(record(runs, "figure4")).replace("\n## ", "\n### ") + "\n",
    ]
    (DOCS / "paper.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
