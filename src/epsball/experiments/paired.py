"""Tests on paired measurements, and several tests at once: exact where that is possible, never from a look at time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["holm", "mcnemar", "ratio_interval", "sign_flip"]

EXACT = 14  # differences of which every choice of signs is tried
MOST = 2_000  # differences beyond which the sum is as good as normal
FLIPS = 9_999


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test: are both kinds of discordant pairs equally likely?

    only_first, only_second: the pairs of which only one member succeeds. The sum of the binomial(n, 1/2) probabilities
    up to the smaller count, twice, at most 1; 1 where no pair is discordant.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    k = np.arange(1, least + 1, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1.0) / k))]) - n * math.log(2.0)
    top = float(logs.max())
    return min(1.0, 2.0 * math.exp(top) * float(np.exp(logs - top).sum()))


def sign_flip(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip test: are the differences (n,) symmetric around zero?

    The share of all choices of signs with a sum at least as far from zero as that observed: every choice up to 14
    differences, 9,999 random ones (from the seed alone) and the observed one up to 2,000, beyond which the sum is
    taken as normal. Differences of zero change nothing; 1 where there is no other.
    """
    values = differences[differences != 0.0]
    if not len(values):
        return 1.0
    values = values / np.abs(values).max()
    seen = abs(float(values.sum())) * (1.0 - 1e-12)
    if len(values) <= EXACT:
        bits = np.arange(2 ** (len(values) - 1))[:, None] >> np.arange(len(values)) & 1  # the other half mirrors these
        return float((np.abs((1.0 - 2.0 * bits) @ values) >= seen).mean())
    if len(values) > MOST:
        return math.erfc(seen / math.sqrt(2.0 * float((values**2).sum())))
    rng, beyond, left = np.random.default_rng(seed), 0, FLIPS
    while left:
        some = min(left, 1_000)
        signs = rng.integers(0, 2, (some, len(values)), dtype=np.int8) * 2.0 - 1.0
        beyond += int((np.abs(signs @ values) >= seen).sum())
        left -= some
    return (1 + beyond) / (1 + FLIPS)


def ratio_interval(
    first: NDArray[np.float64], second: NDArray[np.float64], level: float = 0.95
) -> tuple[float, float, float]:
    """Bound how much larger the mean of `second` is than that of `first`, paired (n,): (mean₂ / mean₁ - 1, low, high).

    The logarithm of the ratio is taken as normal, with the variance of second/mean₂ - first/mean₁ over n (delta
    method). One pair has no interval (nan, nan); equal samples have the interval (0, 0). A mean that rises above zero
    from none is infinitely larger (inf, inf, inf), and one that does not is not compared (nan, nan, nan).
    """
    if not len(first):
        return math.nan, math.nan, math.nan
    above, below = float(second.mean()), float(first.mean())
    if np.array_equal(first, second):
        return 0.0, 0.0, 0.0
    if not (above > 0.0 and below > 0.0):
        return (math.inf,) * 3 if above > 0.0 else (math.nan,) * 3
    ratio = above / below
    if len(first) < 2:
        return ratio - 1.0, math.nan, math.nan
    error = float((second / above - first / below).std(ddof=1)) / math.sqrt(len(first))
    factor = math.exp(min(NormalDist().inv_cdf(0.5 + level / 2.0) * error, 700.0))
    return ratio - 1.0, ratio / factor - 1.0, ratio * factor - 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, in the order given.

    Rejecting those at most α rejects a true hypothesis with probability at most α, however the tests depend on each
    other: the k-th smallest times (m - k + 1), made increasing, at most 1.
    """
    adjusted, most = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        most = max(most, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = most
    return adjusted
