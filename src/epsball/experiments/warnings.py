"""What a run has to warn of: made once, written into the manifest, and said by the terminal and the page alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.engines.local import STATUSES, Array, Chunk
from epsball.errors import Status
from epsball.experiments.masking import signs_of_masking
from epsball.experiments.plan import Plan
from epsball.problem import look_like_probabilities
from epsball.sets import LpBall
from epsball.target_model import TargetModel

__all__ = ["warnings_of", "wrong_from_the_start"]

_ENOUGH = 20  # samples from which on a share says something


def warnings_of(plan: Plan, chunks: Iterable[Chunk]) -> list[dict[str, str]]:
    """Return the warnings of a run: kind, what was seen, what it means, and what to do next."""
    found = [
        _probabilities(plan),
        _chance(plan, chunks),
        _zero_gradients(plan, chunks),
        *signs_of_masking(plan, chunks),
        *_wide(plan),
    ]
    return [warning for warning in found if warning is not None]


def wrong_from_the_start(chunk: Chunk) -> Array:
    """Tell which samples the model classifies wrongly without a perturbation, (B,) bool; none of a regression run."""
    columns = chunk.columns
    if "clean_prediction" not in columns:
        return np.zeros(len(columns["status"]), dtype=bool)
    return np.asarray(columns["clean_prediction"] != columns["target"])


def _probabilities(plan: Plan) -> dict[str, str] | None:
    """Warn of a classifier that returns probabilities."""
    if plan.config.regresses:
        return None
    x = plan.x[:32].to(plan.here)
    with TargetModel(plan.model.module) as model, torch.no_grad():

        def outputs(x: Tensor) -> Tensor:
            return torch.cat([model(each) for each in torch.split(x, 1)])  # what one sample takes, the run had

        found = outputs(x)
        if not look_like_probabilities(outputs, found, x):
            return None
    seen = "all lie between 0 and 1" if found.shape[1] == 1 else "none is negative, and they add up to 1"
    return {
        "kind": "probabilities",
        "seen": f"The outputs of {plan.config.model} look like probabilities: {seen}.",
        "means": (
            "Behind a softmax or a sigmoid the gradient of a sure answer is nearly zero, in float32 often exactly, and "
            "an attack that follows it stands still; that does not make the model robust."
        ),
        "next": "Let the model return its logits, what goes into that last layer: leave the layer out.",
    }


def _chance(plan: Plan, chunks: Iterable[Chunk]) -> dict[str, str] | None:
    """Warn of a classifier that gives all samples one class, or is right hardly more often than guessing would be."""
    first: tuple[str, float] | None = None
    targets, given = [], []
    for chunk in chunks:
        first = first or ((chunk.attack, chunk.eps) if chunk.main else None)
        if chunk.main and (chunk.attack, chunk.eps) == first and "clean_prediction" in chunk.columns:
            targets.append(chunk.columns["target"])
            given.append(chunk.columns["clean_prediction"])
    if sum(map(len, targets)) < _ENOUGH:
        return None
    true, seen = np.concatenate(targets), np.concatenate(given)
    count, right, classes = len(true), int((true == seen).sum()), len(np.union1d(true, seen))
    share = 1.0 / classes
    if len(np.unique(true)) == 1:
        return None
    if len(np.unique(seen)) == 1:
        what = f"{plan.config.model} gives all {count:,} samples class {seen[0]}, of which {right:,} are."
    elif right <= count * share + math.sqrt(count * share * (1.0 - share)):
        guess = count * share
        what = (
            f"{plan.config.model} classifies {right:,} of {count:,} samples correctly, "
            f"{'no' if right <= guess else 'hardly'} more than the {guess:.0f} of a guess among {classes} classes."
        )
    else:
        return None
    return {
        "kind": "chance",
        "seen": what,
        "means": "What is measured on a model that does not know its task says nothing of a trained one.",
        "next": (
            "Check that the weights are those of the trained model (--weights), that the inputs are prepared as in its "
            "training (--mean, --std, --resize, --channel-order), and that its classes have the data's numbers: those "
            "of a folder are numbered in the order of their names."
        ),
    }


def _zero_gradients(plan: Plan, chunks: Iterable[Chunk]) -> dict[str, str] | None:
    """Warn where most samples of an attack ended without a direction to go, at the budget where most of them did."""
    # With a known reference an output that does not move still differs from it: a success by itself.
    names = [Status.ZERO_GRADIENT] + [Status.ALREADY] * plan.config.regresses
    codes = [STATUSES.index(status.name) for status in names]
    counts: dict[tuple[str, float], tuple[int, int]] = {}
    for chunk in chunks:
        if chunk.main and chunk.eps > 0:
            stuck, of = counts.get((chunk.attack, chunk.eps), (0, 0))
            counted = ~wrong_from_the_start(chunk)
            stuck += int((counted & np.isin(chunk.columns["status"], codes)).sum())
            counts[chunk.attack, chunk.eps] = stuck, of + int(counted.sum())
    worst: dict[str, tuple[int, int, float]] = {}
    for (attack, eps), (stuck, of) in counts.items():
        if 2 * stuck > of and stuck > worst.get(attack, (0,))[0]:
            worst[attack] = stuck, of, eps
    if not worst:
        return None
    parts = [
        f"{attack} ({stuck:,} of {of:,}{f' at eps = {eps:g}' if math.isfinite(eps) else ''})"
        for attack, (stuck, of, eps) in worst.items()
    ]
    what = "correctly classified samples ended with ZERO_GRADIENT"
    if plan.config.regresses:
        what = "samples were left as they are (ZERO_GRADIENT or ALREADY)"
    return {
        "kind": "zero-gradient",
        "seen": f"Most {what} under {', '.join(parts)}.",
        **(_unmoved(plan) if plan.config.regresses else _saturated(plan)),
    }


def _saturated(plan: Plan) -> dict[str, str]:
    more = "" if plan.config.dtype == "float64" else ", and compute in float64 (--dtype float64)"
    return {
        "means": (
            "Where the gradient is exactly zero, an attack that follows it has no direction; that does not make the "
            "model robust. Usual causes: probabilities instead of logits as outputs, scores so far apart that the "
            "cross-entropy is zero in this number format, rounding or thresholds inside the model."
        ),
        "next": (
            "Do not read these fooling ratios as robustness: let the model return logits, add an attack on the margin "
            f"such as alg1-10 or deepfool{more}."
        ),
    }


def _unmoved(plan: Plan) -> dict[str, str]:
    own = plan.reference == "output"
    return {
        "means": (
            "Where the gradient is exactly zero, an attack that follows it has no direction; that does not make the "
            "model robust. "
            + (
                "Here the reference is the model's own output, where the squared error is least and flat."
                if own
                else "Usual causes: outputs that saturate, rounding or thresholds inside the model."
            )
        ),
        "next": (
            "Do not read these output PSNRs as robustness: add an attack that needs no gradient at x, such as "
            f"quadratic-lp{', or a reference (--target input, --target data)' if own else ''}."
        ),
    }


def _wide(plan: Plan) -> list[dict[str, str]]:
    """Warn, for each norm, of budgets that are as large as the whole range of x."""
    bounds = plan.bounds or plan.dataset.bounds
    if bounds is None or not all(math.isfinite(end) for end in bounds):
        return []
    width, entries = bounds[1] - bounds[0], math.prod(plan.x.shape[1:])
    orders = {c.p for c in (attack.constraint for attack in plan.attacks.values()) if isinstance(c, LpBall)}
    found = []
    for p in sorted(orders):
        # The length of the range's diagonal: from there on no input is out of reach of another.
        reach = width * entries ** (1.0 / p)
        large = [eps for eps in plan.config.eps if eps >= reach * (1.0 - 1e-9)]
        if large:
            found.append(_too_large(plan, bounds, p, reach, large))
    return found


def _too_large(
    plan: Plan, bounds: tuple[float, float], p: float, reach: float, large: Sequence[float]
) -> dict[str, Any]:
    what = "the valid range" if plan.bounds else "the range of the data"
    length = f"{reach:.4g}" if math.isinf(p) else f"{reach:.4g} in the l{p:g} norm over all entries"
    return {
        "kind": "eps-range",
        "seen": (
            f"eps = {', '.join(f'{eps:g}' for eps in large)} reaches or exceeds {what}, {bounds[0]:g} to "
            f"{bounds[1]:g}, whose length is {length}."
        ),
        "means": (
            "Such a perturbation may turn any input into any other, so it says nothing of changes that go unnoticed; "
            "perhaps eps is in other units than x, such as 8 of 255 levels."
        ),
        "next": f"Give eps in the units of x, well below {reach:.4g}, such as --eps {0.05 * reach:.2g}.",
    }
