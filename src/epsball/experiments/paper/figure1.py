"""Figure 1: images that one step of Algorithm 1 makes a network misclassify."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from epsball.experiments.paper.common import Progress, check_writable, load, versions, write
from epsball.metrics.fooling import batches, predict
from epsball.recipes import recipe

__all__ = ["figure1"]


def figure1(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> str:
    """Show correctly classified MNIST images that Algorithm 1 makes LeNet-5 misclassify, as in Figure 1(a).

    Of each class the first test image that one step at ε = 0.1 (unbounded, as the paper) fools. Writes figure1.json and
    the figure; returns a line that says what was drawn.
    """
    from epsball.report.paper import save_figure1

    check_writable(out)
    model, x, target, ids = load("mnist-lenet5", data_root, limit)
    attack = recipe("alg1", p=math.inf, eps=0.1)
    found: dict[int, dict[str, Any]] = {}
    done = 0
    for rows in batches(len(x), batch_size):
        result = attack(model, x[rows], target[rows], seed=seed, sample_id=ids[rows])
        clean = predict(model, x[rows])
        for i in (result.success & (clean == target[rows])).nonzero()[:, 0].tolist():
            label = int(target[rows][i])
            if label not in found:
                found[label] = {
                    "sample_id": int(ids[rows][i]),
                    "prediction": int(result.outputs[i].argmax()),
                    "x": x[rows][i].tolist(),
                    "perturbed": result.perturbed[i].tolist(),
                }
        done += rows.stop - rows.start
        if progress is not None:
            progress("searching images", done, len(x), done / len(x))
        if len(found) == 10:
            break
    record = {"made_by": "epsball paper figure1", "eps": 0.1, "network": "mnist-lenet5", "seed": seed, **versions()}
    record["examples"] = {str(label): found[label] for label in sorted(found)}
    write(out, "figure1.json", record)
    save_figure1(record, out / "figures")
    return (
        f"Figure 1(a), {len(found)} images that Algorithm 1 at eps = 0.1 makes LeNet-5 misclassify: {out / 'figures'}"
    )
