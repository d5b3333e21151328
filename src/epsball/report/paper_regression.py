"""Figures 2 and 4 of the paper, from the records that `epsball paper` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epsball.report.paper import _versions as versions
from epsball.report.paper import _wrapped as wrapped
from epsball.report.paper import panel_grid
from epsball.report.paper_text import method_name
from epsball.report.style import INK, MUTED, line_styles, new_figure, save, show_image, tidy
from epsball.report.tables import to_markdown

__all__ = ["figure2_markdown", "figure4_markdown", "save_figure2", "save_figure4"]

Record = Mapping[str, Any]

VISIBLE = 0.05  # an ε below it leaves images that one cannot tell from the original


def figure4_markdown(record: Record) -> str:
    """Write each panel's mean output PSNR as a table, on all images and on the paper's 20, and the verdicts."""
    lines = wrapped(
        "Output PSNR in dB between y and f(x + η), averaged over random test images; unbounded; y = x for "
        "autoencoders, y := f(x) for the colorization. Lower is a stronger attack. The input PSNR is that of the whole "
        "budget, of which several steps may use less. In brackets: the average over the first 20 of the images, as "
        "many as the paper takes."
    )
    for panel in record["panels"]:
        few, clean = panel["few"], panel["clean"]
        lines += ["", f"## ({panel['key']}) {panel['title']}: n = {panel['count']:,} ({few})", ""]
        rows = [_row(panel, name, curve) for name, curve in panel["curves"].items()]
        lines += [
            to_markdown(rows).rstrip(),
            "",
            f"Without an attack: {clean['mean']:.2f} dB ({clean['few']:.2f})." if clean else "Reference: y := f(x).",
            "",
        ]
        claims = [
            {"statement": method_name(c["text"]), "source": c["source"], "here": c["sentence"]} for c in panel["claims"]
        ]
        lines.append(to_markdown(claims).rstrip())
    half = max(
        (high - low) / 2
        for panel in record["panels"]
        for curve in panel["curves"].values()
        for low, high in zip(curve["low"], curve["high"], strict=True)
    )
    lines += [
        "",
        *wrapped(
            f"Means over all images are within ±{half:.2f} dB (95 %); methods are compared on the same images, by "
            "paired 95 % intervals at each point. Methods marked * are not in the paper's figure. Passes are forward "
            "and backward passes and JVPs a sample and point."
        ),
        versions(record),
    ]
    return "\n".join(lines)


def _row(panel: Record, name: str, curve: Record) -> dict[str, str]:
    unit = "dB in" if panel["axis"] == "psnr" else "ε"
    row = {"method": f"{method_name(name)}{' *' if curve['ours'] else ''}"}
    order = np.argsort(panel["at"])
    for i in order:
        key = f"{panel['at'][i]:g} {unit}" if unit != "ε" else f"ε = {panel['at'][i]:g}"
        row[key] = f"{curve['mean'][i]:.2f} ({curve['few'][i]:.2f})"
    return row | {"passes": f"{curve['passes'] + curve['jvps']:.1f}"}


def save_figure4(record: Record, directory: Path) -> list[Path]:
    """Draw the panels two by two, each mean with its 95 % band, the clean output as a line across."""
    panels = record["panels"]
    figure, axes = panel_grid(len(panels), 5.6, 5.3)
    for ax, panel in zip(axes, panels, strict=True):
        tidy(ax)
        order = np.argsort(panel["at"])
        at = np.asarray(panel["at"])[order]
        styles = line_styles(list(panel["curves"]))
        for (name, curve), style in zip(panel["curves"].items(), styles, strict=True):
            mean, low, high = (np.asarray(curve[key])[order] for key in ("mean", "low", "high"))
            ax.fill_between(at, low, high, color=style["color"], alpha=0.14, linewidth=0)
            ax.plot(
                at,
                mean,
                linewidth=1.8,
                markersize=5.5,
                label=f"{method_name(name)}{' *' if curve['ours'] else ''}",
                **style,
            )
        _clean_line(ax, panel, at)
        ax.set_title(f"({panel['key']}) {panel['title']}, n = {panel['count']:,}", fontsize=11, loc="left", color=INK)
        ax.set_xlabel("input PSNR (dB)" if panel["axis"] == "psnr" else "ε, in units of x", fontsize=10.5)
        ax.set_ylabel("output PSNR (dB)", fontsize=10.5)
        ax.legend(
            frameon=False,
            fontsize=9.5,
            labelcolor=INK,
            handlelength=3.2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=3 if len(panel["curves"]) > 6 else 2,
        )
    return save(figure, directory, "figure4")


def _clean_line(ax: Any, panel: Record, at: Any) -> None:
    """Draw the output PSNR without an attack; where y := f(x), the line on which input and output move alike."""
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9.5, "color": MUTED}
    if panel["clean"] is None:
        ax.plot(at, at, color=MUTED, linewidth=1.0)
        # Left of the upper end no attack comes: it moves the output at least as far as noise does.
        ax.annotate("output PSNR = input PSNR", (at[-1], at[-1]), xytext=(-10, 2), ha="right", va="center", **style)
        return
    clean = panel["clean"]["mean"]
    ax.axhline(clean, color=MUTED, linewidth=1.0)
    # Above the end at which the curves are farthest from it.
    place: dict[str, Any] = {"xy": (at[0], clean), "xytext": (2, 3)}
    if panel["axis"] == "eps":
        place = {"xy": (at[-1], clean), "xytext": (-2, 3), "ha": "right"}
    ax.annotate("no attack", **style, **place)


def figure2_markdown(record: Record) -> str:
    """Write the PSNRs of the images shown."""
    rows = []
    for panel in record["panels"]:
        for label, pictures in panel["shown"].items():
            name = {"adversarial": panel["attack"], "noisy": panel["noise"]}.get(label, "")
            rows.append(
                {
                    "panel": f"({panel['key']}) {panel['title']}",
                    "input": f"{label} ({method_name(name)}, ε = {panel['eps']:g})" if name else label,
                    "mean input PSNR in dB": f"{np.mean(pictures['psnr_in']):.1f}" if pictures["psnr_in"] else "",
                    "mean output PSNR in dB": f"{np.mean(pictures['psnr_out']):.1f}" if pictures["psnr_out"] else "",
                }
            )
    return "\n".join(
        [
            "Figure 2. Output PSNR against the original; of the colorization, against its own output.",
            "",
            to_markdown(rows),
            versions(record),
        ]
    )


def save_figure2(record: Record, directory: Path) -> list[Path]:
    """Draw a panel a file: a row an image; original, adversarial and noisy, each beside its output.

    Where the adversarial image cannot be told from the original, the perturbation stands before it, amplified.
    """
    paths = []
    for panel in record["panels"]:
        columns, count = list(_columns(panel)), len(panel["sample_id"])
        figure = new_figure(1.6 * len(columns), 1.65 * count + 1.0)
        title = f"({panel['key']}) {panel['title']}: {panel['attack']} and {panel['noise']} at ε = {panel['eps']:g}"
        figure.suptitle(method_name(title), fontsize=12, color=INK)
        grid = figure.subplots(count, len(columns), squeeze=False)
        for axes, (head, images, decibels) in zip(grid.T, columns, strict=True):
            axes[0].set_title(head, fontsize=10.5, color=INK)
            for row, ax in enumerate(axes):
                ax.set_axis_off()
                show_image(ax, images[row])
                text = f"{decibels[row]:.1f} dB" if decibels else ""
                style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 9, "color": MUTED}
                ax.text(0.5, -0.04, text, transform=ax.transAxes, **style)
        paths += save(figure, directory, f"figure2{panel['key']}")
    return paths


def _columns(panel: Record) -> Iterator[tuple[str, Any, Sequence[float]]]:
    """Yield (head, images (N, C, H, W), PSNR of each in dB or nothing) from left to right."""
    shown = panel["shown"]
    x = np.asarray(shown["original"]["input"])
    for label, pictures in shown.items():
        given = np.asarray(pictures["input"])
        if label == "adversarial" and panel["eps"] < VISIBLE:
            # Grey where nothing changed, white and black at ±ε.
            yield f"perturbation\n×{0.5 / panel['eps']:g}", 0.5 + (given - x) * 0.5 / panel["eps"], []
        yield f"{label}\ninput", given, pictures["psnr_in"]
        yield f"{label}\noutput", np.asarray(pictures["output"]), pictures["psnr_out"]
