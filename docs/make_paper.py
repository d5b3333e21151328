"""Assemble docs/paper.md and its figures from the folders that `epsball paper` wrote.

python docs/make_paper.py RUNS     where RUNS/table3, RUNS/figure1 and RUNS/figure3 are their --out folders
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from epsball.report.paper import figure3_markdown, table3_markdown

DOCS = Path(__file__).parent

INTRODUCTION = """# The paper's section 6.1 on MNIST, made again

Table 3, Figure 1 and Figure 3 of [Balda, Behboodi and Mathar (2018)](https://arxiv.org/abs/1812.07385) on the whole
MNIST test set, with the networks that come with the package (FCNN 784-150-100-10 and LeNet-5; their cards say how they
were trained). The paper's experiments do not keep perturbed images inside [0, 1]; here each is made without a range, as
in the paper, and inside [0, 1], as images are. To make this page again, with `EPSBALL_DATA` naming a folder that holds
`mnist/`:

```sh
epsball paper table3 --out runs/table3
epsball paper figure1 --out runs/figure1
epsball paper figure3 --out runs/figure3
python docs/make_paper.py runs
```
"""


def main() -> None:
    runs = Path(sys.argv[1])
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    for source in (
        "figure1/figures/figure1a.png",
        *(f"figure3/figures/figure3-{r}.png" for r in ("unbounded", "bounded")),
    ):
        shutil.copy(runs / source, figures)
    table, curves = (
        write(json.loads((runs / source).read_text(encoding="utf-8")))
        for write, source in ((table3_markdown, "table3/table3.json"), (figure3_markdown, "figure3/figure3.json"))
    )
    parts = [
        INTRODUCTION,
        "## Table 3\n",
        table + "\n",
        "## Figure 1(a)\n",
        "![Ten digits, each beside its perturbed version and what LeNet-5 sees in it](figures/figure1a.png)\n",
        "## Figure 3\n",
        "![Fooling ratio over eps of ten methods on both networks, unbounded](figures/figure3-unbounded.png)\n",
        "![The same inside the range 0 to 1](figures/figure3-bounded.png)\n",
        curves.replace("\n## ", "\n### ") + "\n",
    ]
    (DOCS / "paper.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
