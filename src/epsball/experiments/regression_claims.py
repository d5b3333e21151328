"""The paper's statements of Section 6.2, judged by paired differences of output PSNR at every point of a panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from torch import Tensor

__all__ = ["judge_panel", "paired_mean"]

STOOD = 1.0  # dB that a network may lose and still be said to stand an attack: the paper gives no number
UNSTABLE = 10.0  # dB that the paper says iterating takes off in Figure 4(d)


@dataclass(frozen=True)
class _Comparison:
    """`first` has the lower output PSNR; with a tolerance, is at most so many dB above `second`."""

    text: str
    source: str
    first: str
    second: str
    tolerance: float = 0.0


def _iterating(p: str) -> tuple[_Comparison, ...]:
    return (
        _Comparison("iterating lowers the output PSNR (10 steps)", "section 6.2", f"linear-l{p}-10", f"linear-l{p}-1"),
        _Comparison("iterating lowers it further (20 steps)", "section 6.2", f"linear-l{p}-20", f"linear-l{p}-10"),
    )


def _balls(p: str) -> tuple[_Comparison, ...]:
    return (
        *_iterating(p),
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
    "d": _iterating("inf"),
}


def paired_mean(first: Tensor, second: Tensor, choices: int = 1) -> tuple[float, float, float]:
    """Compute the mean of first - second over the samples and its 95 % interval, normal approximation.

    choices: of so many means this one was picked after a look at all; the interval allows for it (Bonferroni).
    """
    difference = (first - second).double()
    mean = float(difference.mean())
    width = NormalDist().inv_cdf(1.0 - 0.025 / choices)
    half = width * float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    return mean, mean - half, mean + half


def judge_panel(
    key: str,
    at: Sequence[float],
    outs: Mapping[str, Tensor],
    baselines: Mapping[str, str],
    *,
    clean: Tensor | None = None,
    ins: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Judge every statement about a panel.

    at: the points of the axis. outs, ins: output and input PSNR (points, samples) by method. clean: output PSNR without
    an attack (samples,). Returns a row each: the differences in dB at every point, at how many of them the statement
    holds and at how many the reverse, a sentence, and `extent`: "most" points, "all" or "some" are what it speaks of.
    """
    rows = [
        _compare(c.text, c.source, outs[c.first], outs[c.second], c.tolerance)
        for c in _COMPARISONS[key]
        if c.first in outs and c.second in outs
    ]
    for name, baseline in baselines.items():
        rows.append(_compare(f"{name} is at or below {baseline}", "not in the paper", outs[name], outs[baseline]))
    if key == "c" and clean is not None:
        rows += [_stands(at, outs["linear-pixel-1"], outs["random-pixel-1"], clean)]
        rows += [_beyond_noise(100, outs["linear-pixel-100"], outs["random-pixel-100"], clean)]
    if key == "d" and ins is not None:
        strongest = "linear-linf-20"
        # The paper says neither against what nor where on the axis.
        for source, other in (("section 6.2", "linear-linf-1"), ("section 6.2 in another reading", "random-linf")):
            rows.append(_takes_off(at, source, strongest, other, outs))
        text = "the colorization network is unstable: 20 linear steps move its output further than its input (in PSNR)"
        rows.append(_compare(text, "section 6.2", outs[strongest], ins[strongest]))
    return rows


def _compare(text: str, source: str, first: Tensor, second: Tensor, tolerance: float = 0.0) -> dict[str, Any]:
    points = [paired_mean(a, b) for a, b in zip(first, second, strict=True)]
    holds = sum(high < tolerance for _, _, high in points)
    reversed_ = sum(low > tolerance for _, low, _ in points)
    means = [mean for mean, _, _ in points]
    sentence = f"{_counts(holds, reversed_, len(points))} (differences {min(means):+.2f} to {max(means):+.2f} dB)"
    return _row(text, source, points, holds, reversed_, sentence)


def _stands(at: Sequence[float], attacked: Tensor, random: Tensor, clean: Tensor) -> dict[str, Any]:
    """Say up to which ε a single pixel costs at most 1 dB of the clean output's PSNR: a statement about every ε."""
    points = [paired_mean(row, clean) for row in attacked]
    stood = [low > -STOOD for _, low, _ in points]
    reversed_ = sum(high < -STOOD for _, _, high in points)
    first = stood.index(False) if False in stood else len(stood)
    where = f"for ε up to {at[first - 1]:g}" if first else "at no ε"
    beside = paired_mean(attacked[-1], random[-1])
    sentence = (
        f"at most {STOOD:g} dB lost {where}; {_counts(sum(stood), reversed_, len(points))}; at ε = {at[-1]:g} "
        f"{_difference(points[-1])} against the clean output, {beside[0]:+.2f} dB against a random pixel, and more "
        f"than {STOOD:g} dB lost on {_share(attacked[-1], clean)} of the images"
    )
    text = f"the CIFAR-10 autoencoder stands a single pixel (loses at most {STOOD:g} dB at every ε)"
    return _row(text, "section 6.2", points, sum(stood), reversed_, sentence, "all")


def _beyond_noise(k: int, attacked: Tensor, random: Tensor, clean: Tensor) -> dict[str, Any]:
    """Say what k chosen pixels cost beyond k random ones."""
    points = [paired_mean(a, b) for a, b in zip(attacked, random, strict=True)]
    holds = sum(high < -STOOD for _, _, high in points)
    reversed_ = sum(low > -STOOD for _, low, _ in points)
    sentence = (
        f"{_counts(holds, reversed_, len(points))}; at the largest ε {_difference(points[-1])} against random pixels, "
        f"{paired_mean(attacked[-1], clean)[0]:+.2f} dB against the clean output"
    )
    text = f"{k} chosen pixels cost the CIFAR-10 autoencoder over {STOOD:g} dB more than random ones"
    return _row(text, "section 6.2", points, holds, reversed_, sentence)


def _takes_off(at: Sequence[float], source: str, first: str, second: str, outs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Say whether iterating takes more than 10 dB off, anywhere on the axis."""
    points = [paired_mean(a, b, choices=len(at)) for a, b in zip(outs[first], outs[second], strict=True)]
    holds = sum(high < -UNSTABLE for _, _, high in points)
    reversed_ = sum(low > -UNSTABLE for _, low, _ in points)
    most = min(range(len(points)), key=lambda i: points[i][0])
    sentence = (
        f"most at an input PSNR of {at[most]:g} dB, {_difference(points[most])}; this interval allows for the "
        f"choice among {len(at)} points; {_counts(holds, reversed_, len(points))}"
    )
    text = f"iterating takes more than {UNSTABLE:g} dB off at some input PSNR ({first} against {second})"
    return _row(text, source, points, holds, reversed_, sentence, "some")


def _counts(holds: int, reversed_: int, count: int) -> str:
    return f"holds at {holds} of {count} points, reversed at {reversed_}, undecided at {count - holds - reversed_}"


def _difference(point: tuple[float, float, float]) -> str:
    mean, low, high = point
    return f"{mean:+.2f} dB" + (f" ({low:+.2f} to {high:+.2f})" if math.isfinite(low) else ", of one image")


def _share(attacked: Tensor, clean: Tensor) -> str:
    return f"{100.0 * float((attacked < clean - STOOD).double().mean()):.0f} %"


def _row(
    text: str,
    source: str,
    points: Sequence[tuple[float, float, float]],
    holds: int,
    reversed_: int,
    sentence: str,
    extent: str = "most",
) -> dict[str, Any]:
    # A single image has no interval, and JSON no infinity.
    difference, low, high = ([v if math.isfinite(v) else None for v in c] for c in zip(*points, strict=True))
    return {
        "text": text,
        "source": source,
        "difference": difference,
        "low": low,
        "high": high,
        "holds": holds,
        "reversed": reversed_,
        "extent": extent,
        "sentence": sentence,
    }
