"""Figures 2 and 4 of the paper, from the records that `epsball paper` makes."""

from __future__ import annotations

from collections.abc import Mapping
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


def figure4_markdown(record: Record) -> str:
    """Write each panel's mean output PSNR as a table, on all images and on the paper's 20, and the verdicts."""
    lines = wrapped(
        "Output PSNR in dB between x and f(x + η), averaged over random test images; unbounded, y = x. Lower is a "
        "stronger attack. The input PSNR is that of the whole budget, of which several steps may use less. In "
        "brackets: the average over the first 20 of the images, as many as the paper takes."
    )
    for panel in record["panels"]:
        few, clean = panel["few"], panel["clean"]
        lines += ["", f"## ({panel['key']}) {panel['title']}: n = {panel['count']:,} ({few})", ""]
        rows = [_row(panel, name, curve) for name, curve in panel["curves"].items()]
        lines += [
            to_markdown(rows).rstrip(),
            "",
            f"Without an attack: {clean['mean']:.2f} dB ({clean['few']:.2f}).",
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
        clean = panel["clean"]["mean"]
        ax.axhline(clean, color=MUTED, linewidth=1.0)
        # Above the end at which the curves are farthest from it.
        place: dict[str, Any] = {"xy": (at[0], clean), "xytext": (2, 3)}
        if panel["axis"] == "eps":
            place = {"xy": (at[-1], clean), "xytext": (-2, 3), "ha": "right"}
        ax.annotate("no attack", textcoords="offset points", fontsize=9.5, color=MUTED, **place)
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
                    "mean output PSNR in dB": f"{np.mean(pictures['psnr_out']):.1f}",
                }
            )
    return "\n".join(
        ["Figure 2(a) and (b), output PSNR against the original.", "", to_markdown(rows), versions(record)]
    )


def save_figure2(record: Record, directory: Path) -> list[Path]:
    """Draw a panel a file: a row an image; original, adversarial and noisy, each beside its output."""
    paths = []
    for panel in record["panels"]:
        shown = panel["shown"]
        count = len(panel["sample_id"])
        figure = new_figure(9.6, 1.55 * count + 1.0)
        figure.suptitle(
            method_name(
                f"({panel['key']}) {panel['title']}: {panel['attack']} and {panel['noise']} at ε = {panel['eps']:g}"
            ),
            fontsize=12,
            color=INK,
        )
        grid = figure.subplots(count, 6, squeeze=False)
        for column, (label, key) in enumerate((label, key) for label in shown for key in ("input", "output")):
            for row in range(count):
                ax = grid[row, column]
                ax.set_axis_off()
                show_image(ax, np.asarray(shown[label][key][row]))
                if key == "output":
                    ax.text(
                        0.5,
                        -0.08,
                        f"{shown[label]['psnr_out'][row]:.1f} dB",
                        transform=ax.transAxes,
                        ha="center",
                        va="top",
                        fontsize=9,
                        color=MUTED,
                    )
                if row == 0:
                    ax.set_title(f"{label}\n{key}", fontsize=10.5, color=INK)
        paths += save(figure, directory, f"figure2{panel['key']}")
    return paths
