"""The paper's statements of Section 6.2, judged by paired differences of output PSNR at every point of a panel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["judge_panel", "paired_mean"]


@dataclass(frozen=True)
class _Comparison:
    """`first` has the lower output PSNR; with a tolerance, is at most so many dB above `second`."""

    text: str
    source: str
    first: str
    second: str
    tolerance: float = 0.0


def _balls(p: str) -> tuple[_Comparison, ...]:
    return (
        _Comparison("iterating lowers the output PSNR (10 steps)", "section 6.2", f"linear-l{p}-10", f"linear-l{p}-1"),
        _Comparison("iterating lowers it further (20 steps)", "section 6.2", f"linear-l{p}-20", f"linear-l{p}-10"),
        _Comparison(
            "one quadratic step is competitive with 20 linear ones (at most 0.5 dB above)",
            "section 6.2",
            f"quadratic-l{p}",
            f"linear-l{p}-20",
            0.5,
        ),
        _Comparison(
            "10 quadratic steps are below one", "left open in the paper", f"quadratic-l{p}-10", f"quadratic-l{p}"
        ),
        _Comparison(
            "10 quadratic steps are below 20 linear ones",
            "left open in the paper",
            f"quadratic-l{p}-10",
            f"linear-l{p}-20",
        ),
    )


_COMPARISONS = {
    "a": _balls("2"),
    "b": _balls("inf"),
    "c": tuple(
        _Comparison(
            f"the quadratic choice of {k} pixel{'s' if k > 1 else ''} is below the linear one",
            "not in the paper",
            f"quadratic-pixel-{k}",
            f"linear-pixel-{k}",
        )
        for k in (1, 10)
    ),
}


def paired_mean(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Compute the mean of first - second over the samples and its 95 % interval, normal approximation."""
    difference = (first - second).double()
    mean = float(difference.mean())
    half = 1.959964 * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return mean, mean - half, mean + half


def judge_panel(key: str, outs: dict[str, Tensor], baselines: dict[str, str], clean: Tensor) -> list[dict[str, Any]]:
    """Judge every statement about a panel; outs: output PSNR (points, samples) by method, clean: (samples,).

    Returns a row each with the differences in dB at every point and a sentence.
    """
    rows = [
        _compare(c.text, c.source, outs[c.first], outs[c.second], c.tolerance)
        for c in _COMPARISONS[key]
        if c.first in outs and c.second in outs
    ]
    for name, baseline in baselines.items():
        rows.append(_compare(f"{name} is at or below {baseline}", "not in the paper", outs[name], outs[baseline]))
    if key == "c":
        rows += [_drop(k, outs[f"linear-pixel-{k}"], outs[f"random-pixel-{k}"], clean) for k in (1, 100)]
    return rows


def _compare(text: str, source: str, first: Tensor, second: Tensor, tolerance: float = 0.0) -> dict[str, Any]:
    points = [paired_mean(a, b) for a, b in zip(first, second, strict=True)]
    difference, low, high = (list(column) for column in zip(*points, strict=True))
    holds = sum(h < tolerance for h in high)
    reversed_ = sum(lower > tolerance for lower in low)
    undecided = len(points) - holds - reversed_
    sentence = (
        f"holds at {holds} of {len(points)} points, reversed at {reversed_}, undecided at {undecided} "
        f"(differences {min(difference):+.2f} to {max(difference):+.2f} dB)"
    )
    return {
        "text": text,
        "source": source,
        "difference": difference,
        "low": low,
        "high": high,
        "holds": holds,
        "reversed": reversed_,
        "sentence": sentence,
    }


def _drop(k: int, attacked: Tensor, random: Tensor, clean: Tensor) -> dict[str, Any]:
    """Say what k pixels cost at the largest ε, against the clean output and against random pixels.

    A single pixel is stood where it costs at most 1 dB, 100 pixels are not where they cost more than 1 dB beyond
    random ones: the paper gives no numbers.
    """
    points = [paired_mean(row, clean) for row in attacked]
    difference, low, high = (list(column) for column in zip(*points, strict=True))
    if k == 1:
        holds, reversed_ = sum(value > -1.0 for value in low), sum(value < -1.0 for value in high)
    else:
        beyond = [paired_mean(a, b) for a, b in zip(attacked, random, strict=True)]
        holds, reversed_ = sum(top < -1.0 for _, _, top in beyond), sum(bottom > -1.0 for _, bottom, _ in beyond)
    beside = paired_mean(attacked[-1], random[-1])
    share = float((torch.as_tensor(attacked[-1]) < clean - 1.0).double().mean())
    sentence = (
        f"at the largest ε {difference[-1]:+.2f} dB ({low[-1]:+.2f} to {high[-1]:+.2f}) against the clean output, "
        f"{beside[0]:+.2f} dB against random pixels; more than 1 dB lost on {100.0 * share:.0f} % of the images"
    )
    words = (
        "stands a single pixel (loses at most 1 dB)"
        if k == 1
        else f"does not stand {k} pixels (loses over 1 dB more than to random ones)"
    )
    return {
        "text": f"the CIFAR-10 autoencoder {words}",
        "source": "section 6.2",
        "difference": difference,
        "low": low,
        "high": high,
        "holds": holds,
        "reversed": reversed_,
        "sentence": sentence,
    }
