"""Figure 2: an image, its adversarial and its noisy version, each with what the autoencoder makes of it."""

from __future__ import annotations

from typing import Any

import torch

from epsball.experiments.paper.common import write
from epsball.experiments.paper.regressors import PANELS
from epsball.experiments.paper.setting import Setting
from epsball.metrics import psnr
from epsball.recipes import recipe

__all__ = ["figure2"]

#: Panel of the paper: the panel of Figure 4 whose network it shows, attack, noise, ε.
_EXAMPLES = {
    "a": ("b", "quadratic-lp", "random-linf", 0.2),
    "b": ("c", "linear-pixel-100", "random-pixel-100", 0.5),
}
COUNT = 4


def figure2(setting: Setting) -> str:
    """Show what attacks and random noise of the same size do to the networks' outputs, as Figure 2.

    The first `limit` (4) of the random test images, unbounded as in the paper, quadratic-l∞ at ε = 0.2 and 100 pixels
    at ε = 0.5. Writes figure2.json and the figures; returns a table of the PSNRs as Markdown.
    """
    from epsball.report.paper_regression import figure2_markdown, save_figure2

    setting.prepare("".join(_EXAMPLES))
    records: list[dict[str, Any]] = []
    for key, (source, attack, noise, eps) in _EXAMPLES.items():
        if not setting.has(key):
            continue
        panel = next(panel for panel in PANELS if panel.key == source)
        loaded = setting.regressor(panel.network, panel.data, COUNT)
        model, x, ids = loaded.model, loaded.images.x, loaded.images.ids
        with torch.no_grad():
            clean = model(x)
        shown: dict[str, Any] = {"original": {"input": x, "output": clean}}
        for label, name in (("adversarial", attack), ("noisy", noise)):
            result = recipe(name, eps=eps)(model, x, x, seed=setting.seed, sample_id=ids)
            shown[label] = {"input": result.perturbed, "output": result.outputs}
        for pictures in shown.values():
            pictures["psnr_in"] = psnr(x, pictures["input"]) if pictures["input"] is not x else x.new_zeros(0)
            pictures["psnr_out"] = psnr(x, pictures["output"])
        rows = {name: {k: v.tolist() for k, v in pictures.items()} for name, pictures in shown.items()}
        records.append(
            {
                "key": key,
                "title": panel.title.split(",")[0],
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
