"""How sure a measured share is: the Wilson score interval of a binomial proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from epsball.errors import InputError

__all__ = ["wilson_interval"]


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Bound the probability behind `successes` out of `n` independent trials, as (low, high) in [0, 1].

    The set of probabilities that a two-sided score test at 1 - level does not reject: closed form, no iteration, never
    empty and never outside [0, 1], also at 0 and n successes, where the textbook interval has no width. n = 0 knows
    nothing and gives (0, 1). Raises InputError unless 0 <= successes <= n and 0 < level < 1. Source: Wilson 1927.
    """
    if n < 0 or not 0 <= successes <= n:
        raise InputError(f"expected 0 <= successes <= n, got successes={successes!r}, n={n!r}; give two counts.")
    if not 0.0 < level < 1.0:
        raise InputError(f"expected level between 0 and 1, such as 0.95, got {level!r}.")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, weight = successes / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    # The ends are exact where nothing or everything succeeds; rounding would leave them a hair off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> tuple[float, float, float]:
    """Compute the difference of two shares measured on the same samples, and its interval: (difference, low, high).

    Normal approximation from the spread of the per-sample differences -1, 0, 1; the interval is as wide as one sample
    where no sample differs (nan for no samples).
    """
    n = len(first)
    if n != len(second):
        raise InputError(f"expected two measurements of the same samples, got {n} and {len(second)}.")
    if n == 0:
        return math.nan, math.nan, math.nan
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    better = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    worse = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    mean = (better - worse) / n
    # One discordant sample is the least that a finite sample can resolve.
    variance = max(better + worse, 1) / n - mean * mean
    half = z * math.sqrt(max(variance, 0.0) / n)
    return mean, mean - half, mean + half
