"""Deviations of Table 3 above 30 %: what could explain them, tested on the rows that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from epsball.metrics import Robustness
from epsball.tensors import norm

__all__ = ["centred_norm", "explanations", "mean_centred"]

LARGE = 30.0  # percent
_HALF = 0.0005  # of the paper's last digit
_NAMES = {"rho2": "ρ̂₂", "eps99": "ε₉₉"}


def centred_norm(x: Tensor, p: float) -> Tensor:
    """Compute ‖x - m‖_p, (B,), where m is each channel's mean over these images: x as many networks are fed it."""
    return norm(x - x.mean(dim=(0, *range(2, x.dim())), keepdim=True), p)


def explanations(rows: Sequence[Mapping[str, Any]], centred: Mapping[str, float]) -> list[dict[str, str]]:
    """Test, for each deviation above 30 %, what could explain it; entries (network, measure, text).

    rows: Table 3's, of which those without a range are compared. For ρ̂₁ the norm of x that it is relative to: the
    paper does not say whether x is the image or what the network is fed. centred: for each network the mean of
    ‖η‖_p / ‖x - m‖_p. For ρ̂₂ and ε₉₉ the rounding of the paper's value to three decimals.
    """
    return [*_of_the_norm(rows, centred), *_of_rounding(rows)]


def _of_rounding(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Hold ours to the value nearest to it that the paper would have written the same."""
    found = []
    for row in rows:
        for key in _NAMES:
            value = row[key]
            if row["range"] != "unbounded" or not _known(value) or abs(_percent(value)) <= LARGE:
                continue
            edge = value["paper"] + math.copysign(_HALF, value["ours"] - value["paper"])
            off = _percent({"paper": edge, "ours": value["ours"]})
            verdict = "that would explain it" if abs(off) <= LARGE else "that does not explain it"
            text = (
                f"tested whether the paper's three decimals explain it: of {edge:.4f}, the nearest value that is "
                f"rounded to {value['paper']:.3f}, ours is {off:+.0f} %, {verdict}."
            )
            found.append({"network": row["network"], "measure": key, "text": text})
    return found


def _of_the_norm(rows: Sequence[Mapping[str, Any]], centred: Mapping[str, float]) -> list[dict[str, str]]:
    """Hold ρ̂₁ relative to ‖x - m‖ to the paper's."""
    found = []
    for row in rows:
        value = row["rho1"]
        if row["range"] != "unbounded" or value["ours"] is None or abs(_percent(value)) <= LARGE:
            continue
        other = {"paper": value["paper"], "ours": centred[row["network"]]}
        rest = " and ".join(f"{name} ({_percent(row[key]):+.0f} %)" for key, name in _NAMES.items() if _known(row[key]))
        verdict = (
            "that would explain it"
            if abs(_percent(other)) <= LARGE
            else f"that would {'not explain it' if abs(_percent(other)) >= abs(_percent(value)) else 'explain a part'}"
        )
        text = (
            "tested whether the norm of x that ρ̂₁ is relative to is that of the image less its channels' means, as "
            f"networks for CIFAR-10 are often fed it: then ρ̂₁ is {other['ours']:.4f} ({_percent(other):+.0f} %), "
            f"{verdict}."
        )
        if rest:
            text += f" The measures that know no norm of x: {rest}."
        found.append({"network": row["network"], "measure": "rho1", "text": text})
    return found


def mean_centred(result: Robustness, centred: Tensor) -> float:
    """Compute the mean of ‖η‖_p / ‖x - m‖_p over the images classified correctly, from their norms (N,)."""
    relative = torch.where(centred > 0, result.distance / centred, torch.inf)
    return result.mean(relative)[0]


def _percent(value: Mapping[str, float]) -> float:
    return 100.0 * (value["ours"] / value["paper"] - 1.0)


def _known(value: Mapping[str, Any]) -> bool:
    return value["ours"] is not None
