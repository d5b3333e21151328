"""Figure 2: an image, its adversarial and its noisy version, each with what the autoencoder makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from epsball.experiments.paper.common import Progress, check_writable, versions, write
from epsball.experiments.paper.regressors import PANELS, load_panel
from epsball.metrics import psnr
from epsball.recipes import recipe

__all__ = ["figure2"]

#: Panel of the paper: the panel of Figure 4 whose network it shows, attack, noise, ε.
_EXAMPLES = {
    "a": ("b", "quadratic-lp", "random-linf", 0.2),
    "b": ("c", "linear-pixel-100", "random-pixel-100", 0.5),
}
COUNT = 4


def figure2(
    out: Path,
    *,
    data_root: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    weights: dict[str, str] | None = None,
    panels: str = "ab",
    progress: Progress | None = None,
) -> str:
    """Show what attacks and random noise of the same size do to the autoencoders' outputs, as Figure 2(a) and (b).

    The first `limit` (4) of the random test images, unbounded as in the paper, quadratic-l∞ at ε = 0.2 and 100 pixels
    at ε = 0.5. Writes figure2.json and the figures; returns a table of the PSNRs as Markdown.
    """
    from epsball.report.paper_regression import figure2_markdown, save_figure2

    check_writable(out)
    records: list[dict[str, Any]] = []
    for key, (source, attack, noise, eps) in _EXAMPLES.items():
        if key not in panels:
            continue
        panel = next(panel for panel in PANELS if panel.key == source)
        model, x, ids, weights_from = load_panel(panel, out, data_root, weights or {}, seed, progress)
        x, ids = x[: limit or COUNT], ids[: limit or COUNT]
        with torch.no_grad():
            clean = model(x)
        shown: dict[str, Any] = {"original": {"input": x, "output": clean}}
        for label, name in (("adversarial", attack), ("noisy", noise)):
            result = recipe(name, eps=eps)(model, x, x, seed=seed, sample_id=ids)
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
                "weights": weights_from,
                "sample_id": ids.tolist(),
                "shown": rows,
            }
        )
        if progress is not None:
            progress(f"panel ({key})", 1, 1, 1.0)
    record = {"made_by": "epsball paper figure2", "seed": seed, "limit": limit, "panels": records, **versions()}
    text = figure2_markdown(record)
    write(out, "figure2.json", record)
    write(out, "figure2.md", text)
    save_figure2(record, out / "figures")
    return text
