"""How sure a measured mean is: Student's t interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

from epsball.errors import InputError

__all__ = ["student_interval", "student_quantile"]

_EXACT = 100  # degrees of freedom up to which the distribution is summed, beyond which it is expanded


def student_interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Bound the mean of the distribution that the values come from: (mean, low, high).

    mean ± t s/√n, t from Student's distribution with n - 1 degrees of freedom: exact for normal values, and for others
    the better the more there are. Values that are not finite are left out; where all are inf, so is the mean. One value
    has a mean and no interval (nan, nan), no value not even a mean. Raises InputError unless 0 < level < 1.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"expected level between 0 and 1, such as 0.95, got {level!r}.")
    given = [float(value) for value in values]
    sample = [value for value in given if math.isfinite(value)]
    if len(sample) < 2:
        none = math.inf if math.inf in given else math.nan
        return (sample[0] if sample else none), math.nan, math.nan
    mean, half = fmean(sample), student_quantile(len(sample) - 1, level) * stdev(sample) / math.sqrt(len(sample))
    return mean, mean - half, mean + half


@lru_cache(maxsize=256)
def student_quantile(freedom: int, level: float = 0.95) -> float:
    """Return t with P(|T| <= t) = level for Student's T with this many degrees of freedom, to six digits."""
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    if freedom > _EXACT:
        second = (z**3 + z) / 4 + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom)
        return z + (second + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**2)) / freedom
    low, high = 0.0, 1.0
    while _inside(high, freedom) < level:
        high *= 2.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return 0.5 * (low + high)


def _inside(t: float, freedom: int) -> float:
    """Compute P(|T| <= t): the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):  # the powers of the cosine that go with k = 2, 4, .. or 3, 5, ..
        total += term
        term *= square * (k - 1) / k
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total
