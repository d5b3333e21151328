"""The paper's claims about its methods, judged at every ε by paired differences of fooling ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epsball.metrics import FoolingCurve
from epsball.metrics.intervals import paired_difference

__all__ = ["CLAIMS", "Claim", "Verdict", "judge"]


@dataclass(frozen=True)
class Claim:
    """`first` fools more samples than `second`; or, with a tolerance, at most that many percentage points fewer."""

    text: str
    source: str
    first: str
    second: str
    tolerance: float = 0.0


CLAIMS = (
    Claim("Iterating helps: Algorithm 1-10 fools more than Algorithm 1", "section 6.1", "alg1-10", "alg1"),
    Claim("Iterating helps: DeepFool fools more than Algorithm 1", "section 6.1", "deepfool", "alg1"),
    Claim("Algorithm 1 fools more than FGSM", "section 6.1", "alg1", "fgsm"),
    Claim("Algorithm 1-10 fools more than PGD (the paper's, T = 10)", "section 6.1", "alg1-10", "pgd-paper"),
    Claim("Algorithm 1-5 fools more than PGD (the paper's, T = 10)", "section 6.1", "alg1-5", "pgd-paper"),
    Claim("Algorithm 1-10 fools more than DeepFool", "section 6.1", "alg1-10", "deepfool"),
    Claim("Algorithm 2 is competitive with FGSM (at most 5 points below)", "section 6.1", "alg2", "fgsm", 5.0),
    Claim("Algorithm 1-10 fools more than projected PGD (T = 10)", "not in the paper", "alg1-10", "pgd"),
)


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of one claim: at how many ε it holds, is reversed, or is undecided at 95 %.

    difference, low, high: of the fooling ratios in percentage points at each ε.
    """

    text: str
    source: str
    first: str
    second: str
    tolerance: float
    difference: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def holds(self) -> int:
        """At how many ε the interval lies above the claim's tolerance."""
        return sum(low > -self.tolerance for low in self.low)

    @property
    def reversed(self) -> int:
        """At how many ε the interval lies below the claim's tolerance."""
        return sum(high < -self.tolerance for high in self.high)

    def sentence(self) -> str:
        """Say it: "holds at 8 of 10 eps, reversed at 1, undecided at 1 (differences -0.3 to +8.2 points)"."""
        count = len(self.difference)
        undecided = count - self.holds - self.reversed
        return (
            f"holds at {self.holds} of {count} eps, reversed at {self.reversed}, undecided at {undecided} "
            f"(differences {min(self.difference):+.1f} to {max(self.difference):+.1f} points)"
        )


def judge(claim: Claim, curves: Mapping[str, FoolingCurve]) -> Verdict:
    """Compare two methods sample by sample at every ε, on the samples classified correctly."""
    first, second = curves[claim.first], curves[claim.second]
    points = [
        paired_difference(a[first.correct].tolist(), b[first.correct].tolist())
        for a, b in zip(first.fooled, second.fooled, strict=True)
    ]
    difference, low, high = (tuple(100.0 * value for value in column) for column in zip(*points, strict=True))
    return Verdict(claim.text, claim.source, claim.first, claim.second, claim.tolerance, difference, low, high)
