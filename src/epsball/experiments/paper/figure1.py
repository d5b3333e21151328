"""Figure 1: images that one step of Algorithm 1 makes a network misclassify."""

from __future__ import annotations

import math
from typing import Any

from epsball.experiments.paper.common import write
from epsball.experiments.paper.setting import Setting
from epsball.metrics.fooling import batches, predict
from epsball.recipes import recipe

__all__ = ["figure1"]

#: Panel: network, and the ε of the single step, which the paper does not give.
_PANELS = {"a": ("mnist-lenet5", 0.1), "b": ("cifar10-nin", 0.02)}


def figure1(setting: Setting) -> str:
    """Show correctly classified images that Algorithm 1 makes a network misclassify: (a) LeNet-5, (b) NIN.

    Of each class the first test image that one step at ε = 0.1 (a) or 0.02 (b) fools, unbounded as the paper. Writes
    figure1.json and the figures; returns a line that says what was drawn. A network without weights is left out.
    """
    from epsball.report.paper import save_figure1

    setting.prepare("".join(_PANELS))
    panels = [
        _search(setting, key, network, eps)
        for key, (network, eps) in _PANELS.items()
        if setting.has(key) and setting.has_weights(network)
    ]
    record = setting.record("figure1") | {"panels": panels}
    write(setting.out, "figure1.json", record)
    save_figure1(record, setting.out / "figures")
    found = ", ".join(
        f"({panel['key']}) {len(panel['examples'])} images that {panel['network']} misclassifies at eps = "
        f"{panel['eps']:g}"
        for panel in panels
    )
    return f"Figure 1, Algorithm 1: {found}; in {setting.out / 'figures'}"


def _search(setting: Setting, key: str, network: str, eps: float) -> dict[str, Any]:
    loaded = setting.classifier(network)
    images, target = loaded.images, loaded.images.labels
    names = images.classes or tuple(str(i) for i in range(int(target.max()) + 1))
    attack = recipe("alg1", p=math.inf, eps=eps)
    advance = setting.counter(f"searching images, panel ({key})", len(images))
    found: dict[int, dict[str, Any]] = {}
    for rows in batches(len(images), loaded.batch_size):
        x, labels = images.x[rows], target[rows]
        result = attack(loaded.model, x, labels, seed=setting.seed, sample_id=images.ids[rows])
        for i in (result.success & (predict(loaded.model, x) == labels)).nonzero()[:, 0].tolist():
            label = int(labels[i])
            if label not in found:
                found[label] = {
                    "sample_id": int(images.ids[rows][i]),
                    "label": label,
                    "name": names[label],
                    "prediction": int(result.outputs[i].argmax()),
                    "predicted": names[int(result.outputs[i].argmax())],
                    "x": x[i].tolist(),
                    "perturbed": result.perturbed[i].tolist(),
                }
        advance(rows.stop - rows.start)
        if len(found) == len(names):
            break
    return {
        "key": key,
        "network": network,
        "weights": loaded.weights,
        "eps": eps,
        "examples": [found[label] for label in sorted(found)],
    }
