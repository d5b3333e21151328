"""Figure 2: an image, its adversarial and its noisy version, each with what a regression network makes of it."""

from __future__ import annotations

from typing import Any

import torch

from epsball.experiments.paper.common import write
from epsball.experiments.paper.regressors import PANELS, reference
from epsball.experiments.paper.setting import Setting
from epsball.metrics import psnr
from epsball.recipes import recipe

__all__ = ["figure2"]

#: Panel of the paper: the panel of Figure 4 whose network it shows, attack, noise, ε (which the paper does not give).
_EXAMPLES = {
    "a": ("b", "quadratic-lp", "random-linf", 0.2),
    "b": ("c", "linear-pixel-100", "random-pixel-100", 0.5),
    "c": ("d", "linear-lp-20", "random-linf", 0.01),
}
COUNT = 4


def figure2(setting: Setting) -> str:
    """Show what attacks and random noise of the same size do to the networks' outputs, as Figure 2.

    The first `limit` (4) of the random test images, unbounded as in the paper: quadratic-l∞ at ε = 0.2, 100 pixels at
    ε = 0.5, and for the colorization, whose y is f(x), linear-l∞-20 at ε = 0.01. Writes figure2.json and the figures;
    returns a table of the PSNRs as Markdown. A network that has no weights and takes long to train is left out.
    """
    from epsball.report.paper_regression import figure2_markdown, save_figure2

    setting.prepare("".join(_EXAMPLES))
    records: list[dict[str, Any]] = []
    for key, (source, attack, noise, eps) in _EXAMPLES.items():
        panel = next(panel for panel in PANELS if panel.key == source)
        if not (setting.has(key) and panel.can_be_made(setting)):
            continue
        loaded = setting.regressor(panel.network, panel.data, setting.limit or COUNT)
        model, x, ids = loaded.model, loaded.images.x, loaded.images.ids
        with torch.no_grad():
            clean = model(x)
        y = reference(panel, model, x)
        shown: dict[str, Any] = {"original": {"input": x, "output": clean}}
        for label, name in (("adversarial", attack), ("noisy", noise)):
            result = recipe(name, eps=eps)(model, x, y, seed=setting.seed, sample_id=ids)
            shown[label] = {"input": result.perturbed, "output": result.outputs}
        for label, pictures in shown.items():
            own = label == "original"
            pictures["psnr_in"] = x.new_zeros(0) if own else psnr(x, pictures["input"])
            # Of y := f(x) the output without a perturbation is y itself.
            same = own and panel.reference == "output"
            pictures["psnr_out"] = x.new_zeros(0) if same else psnr(y, pictures["output"])
        rows = {name: {k: v.tolist() for k, v in pictures.items()} for name, pictures in shown.items()}
        records.append(
            {
                "key": key,
                "title": panel.title.split(",")[0],
                "reference": panel.reference,
                "attack": attack.replace("-lp", "-l∞"),
                "noise": noise,
                "eps": eps,
                "weights": loaded.weights,
                "sample_id": ids.tolist(),
                "shown": rows,
            }
        )
        setting.say(f"panel ({key})", 1, 1)
    record = setting.record("figure2") | {"panels": records}
    text = figure2_markdown(record)
    write(setting.out, "figure2.json", record)
    write(setting.out, "figure2.md", text)
    save_figure2(record, setting.out / "figures")
    return text
