"""Signs that a gradient is masked: results that no attack which follows a sound gradient would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from epsball.engines.local import Array, Chunk
from epsball.experiments.plan import Plan
from epsball.recipes import find
from epsball.sets import LpBall

__all__ = ["signs_of_masking"]

_SURE = 3.0  # standard errors of a paired difference from which on it is no accident

_MEANS = (
    "An attack that follows a sound gradient is at least as strong; where it is not, the gradient is likely masked "
    "(saturated, shattered or random), and the model looks more robust than it is."
)
_NEXT = (
    "Do not read these ratios as robustness: attack the margin instead of the cross-entropy (best, alg1-10), let the "
    "model return logits, compute in float64, take rounding and random draws out of the forward pass."
)


def signs_of_masking(plan: Plan, chunks: Iterable[Chunk]) -> list[dict[str, str]]:
    """Return a warning for every kind of sign, at the eps where it is plainest; for classifiers alone.

    Signs: noise, a transferred attack or a single step fools more samples than the strongest attack that follows the
    model's own gradient step by step (paired, by three standard errors); at an eps from which every input can be
    turned into one and the same, more samples stand than chance allows.
    """
    if plan.config.regresses:
        return []
    fooled = _fooled(plan, chunks)
    found = [
        _beaten(fooled, "noise-beats-gradient", "the random baseline {}", _is_noise, _follows),
        _beaten(fooled, "transfer-beats-gradient", "{}, a transferred attack,", _is_transferred, _follows),
        _beaten(fooled, "one-step-beats-many", "{}, which takes one step,", _is_one_step, _is_iterated),
        _above_chance(plan, fooled),
    ]
    return [warning for warning in found if warning is not None]


Key = tuple[str, str, bool, float]  # attack, network it was crafted on, whether on the model's own, eps


def _fooled(plan: Plan, chunks: Iterable[Chunk]) -> dict[Key, Array]:
    """Gather which of the correctly classified samples each attack fooled, in the order of the samples."""
    parts: dict[Key, list[Array]] = {}
    own = plan.config.model
    for chunk in chunks:
        if chunk.judged_on == own and chunk.eps > 0:
            columns = chunk.columns
            right = columns["clean_prediction"] == columns["target"]
            key = chunk.attack, chunk.crafted_on, chunk.crafted_on == own, chunk.eps
            parts.setdefault(key, []).append(columns["success"][right])
    return {key: np.concatenate(found).astype(bool) for key, found in parts.items()}


def _is_noise(key: Key) -> bool:
    return not find(key[0])[0].formulation.uses_model


def _is_transferred(key: Key) -> bool:
    return not key[2] and not _is_noise(key)


def _follows(key: Key) -> bool:
    return key[2] and not _is_noise(key)


def _is_one_step(key: Key) -> bool:
    return _follows(key) and not find(key[0])[0].iterative


def _is_iterated(key: Key) -> bool:
    return _follows(key) and find(key[0])[0].iterative and find(key[0])[0].formulation.budgeted


def _strongest(fooled: dict[Key, Array], of: Callable[[Key], bool], eps: float) -> tuple[str, Array] | None:
    found = [(key[0], value) for key, value in fooled.items() if key[3] == eps and of(key)]
    return max(found, key=lambda pair: int(pair[1].sum()), default=None)


def _beaten(
    fooled: dict[Key, Array],
    kind: str,
    name: str,
    weaker: Callable[[Key], bool],
    stronger: Callable[[Key], bool],
) -> dict[str, str] | None:
    """Warn where an attack that should be the weaker one fools more samples, paired."""
    plainest, seen = _SURE, ""
    for eps in _grid(fooled):
        weak, strong = _strongest(fooled, weaker, eps), _strongest(fooled, stronger, eps)
        if weak is None or strong is None or len(weak[1]) != len(strong[1]):
            continue
        more, fewer = int((weak[1] & ~strong[1]).sum()), int((strong[1] & ~weak[1]).sum())
        surplus = (more - fewer) / math.sqrt(max(more + fewer, 1))
        if surplus > plainest:
            plainest = surplus
            seen = (
                f"At eps = {eps:g}, {name.format(weak[0])} fools {int(weak[1].sum()):,} of {len(weak[1]):,} samples, "
                f"{strong[0]} only {int(strong[1].sum()):,}."
            )
    return {"kind": kind, "seen": seen, "means": _MEANS, "next": _NEXT} if seen else None


def _above_chance(plan: Plan, fooled: dict[Key, Array]) -> dict[str, str] | None:
    """Warn where inputs withstand an eps within which all of them can become the same grey image."""
    classes = plan.dataset.classes
    if plan.bounds is None or not classes:
        return None
    width, chance = plan.bounds[1] - plan.bounds[0], 1.0 / len(classes)
    (p, *others) = {c.p for c in (a.constraint for a in plan.attacks.values()) if isinstance(c, LpBall)} or {0.0}
    if others or p == 0.0:
        return None
    reach = 0.5 * width * math.prod(plan.x.shape[1:]) ** (1.0 / p)
    for eps in _grid(fooled):
        strong = _strongest(fooled, _follows, eps)
        if strong is None or eps < reach * (1.0 - 1e-9):
            continue
        count = len(strong[1])
        standing = 1.0 - float(strong[1].mean()) if count else 0.0
        if standing > chance + _SURE * math.sqrt(chance * (1.0 - chance) / max(count, 1)):
            return {
                "kind": "above-chance",
                "seen": (
                    f"At eps = {eps:g}, {standing:.1%} of {count:,} samples withstand {strong[0]}, the strongest "
                    f"attack, though every input can be made the same within {reach:.4g}, where only chance, "
                    f"{chance:.1%}, is left."
                ),
                "means": _MEANS,
                "next": _NEXT,
            }
    return None


def _grid(fooled: Iterable[Key]) -> list[float]:
    return sorted({key[3] for key in fooled if math.isfinite(key[3])})
