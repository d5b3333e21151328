"""How good an answer to the quadratic problem is: an upper bound on what any perturbation can attain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models import GaussNewton, Quadratic
from epsball.objectives import SquaredError
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.sets import LpBall
from epsball.sets.base import Bounds
from epsball.solvers.upper_bound import bound_box
from epsball.target_model import TargetModel
from epsball.validation import check_batch, check_bounds_contain, check_count, check_model, check_sample_id, check_seed

__all__ = ["UpperBound", "upper_bound"]


@dataclass(frozen=True, eq=False)
class UpperBound:
    """A bound on max ‖r + Jη‖² over the set; the network's own squared error, beyond the model, may exceed it.

    value (B,): the bound. relaxed (B,): what the semidefinite relaxation attains, a lower bound on the best `value`
    there is. exact (B,) bool: whether the largest eigenvalue in the bound is exact; where not, value holds with
    probability `confidence` over the random start of Lanczos. attained (B,): ‖r + Jη‖² of the perturbation that was
    given, NaN without one. confidence, tolerance: as asked for. forwards, backwards, jvps: (B,) int64. seconds: of
    the call.
    """

    value: Tensor
    relaxed: Tensor
    exact: Tensor
    attained: Tensor
    confidence: float
    tolerance: float
    forwards: Tensor
    backwards: Tensor
    jvps: Tensor
    seconds: float

    @property
    def gap(self) -> Tensor:
        """The relative duality gap of the bound itself, (value - relaxed) / value, (B,); 0 where the bound is 0."""
        return torch.where(self.value > 0, (self.value - self.relaxed) / self.value, 0.0)

    @property
    def converged(self) -> Tensor:
        """Whether the gap is within the tolerance that was asked for, (B,) bool; the bound holds either way."""
        return self.gap <= self.tolerance

    @property
    def ratio(self) -> Tensor:
        """The certificate attained / value, (B,): 1 proves the perturbation a global solution; 1 where both are 0."""
        return torch.where(self.value > 0, self.attained / self.value, torch.where(self.attained <= 0, 1.0, torch.nan))

    def __repr__(self) -> str:
        exact = "exact" if bool(self.exact.all()) else f"with confidence {self.confidence:g}"
        ratio = "" if bool(self.attained.isnan().all()) else f", attained/bound {float(self.ratio.mean()):.4f}"
        wide = int((~self.converged).sum())
        gap = f", gap above {self.tolerance:g} on {wide}" if wide else ""
        return f"UpperBound({len(self.value)} samples, {exact}{ratio}{gap}, {self.seconds:.2f} s)"


def upper_bound(
    model: Callable[[Tensor], Any],
    x: Tensor,
    eps: float | Tensor,
    target: Tensor | None = None,
    *,
    bounds: Bounds | None = None,
    perturbation: Tensor | None = None,
    memory: float = 1.0,
    tolerance: float = 1e-3,
    confidence: float = 0.99,
    sweeps: int | None = None,
    seed: int = 0,
    sample_id: Tensor | None = None,
) -> UpperBound:
    """Bound max ‖f(x) - y + Jη‖² over ‖η‖_∞ ≤ ε inside the bounds from above; (B,).

    model, x (B, *S), seed, sample_id: as for an `Attack`. eps: a number or (B,). target: y (B, *O), or None for
    y := f(x), then it bounds max ‖Jη‖². perturbation: (B, *S), for the certificate attained/value. memory: GB that the
    Jacobians of the samples handled together may take; where one does not fit, products alone are used and the bound
    holds with the given confidence. tolerance: the relative duality gap that is worked for where a Jacobian fits, and
    that `converged` is told by. sweeps: the largest number of steps of the relaxation, 2,000 dense, 60 with products
    alone; where a dense one leaves a wider gap, at most as many again, in rounds of 100.

    At the relaxation's optimum attained/value of a best perturbation is at least 2/π. Raises InputError for what cannot
    be linearised. Source: Goemans, Williamson 1995; Nesterov 1998.
    """
    started = time.perf_counter()
    with torch.inference_mode(False):
        x = check_batch(x)
        options = Quadratic(memory=memory)
        ball = LpBall(eps=eps, bounds=bounds)
        _check(confidence, tolerance, sweeps, perturbation, x)
        ids = check_sample_id(sample_id, x)
        check_bounds_contain(x, bounds)
        check_model(model.model if isinstance(model, TargetModel) else model, x)
        ball.check(x)
        if bounds is None and not ball.eps_of(x).isfinite().all():
            raise InputError("expected a finite eps without bounds, got eps=inf; give eps or bounds.")
        with TargetModel(model) as judge:
            if judge.randomised:
                raise InputError(f"expected a model without random draws for a bound, got draws={judge.draws}.")
            streams = Generators.of(check_seed(seed), ids)
            if len(x) == 0:
                return _empty(x, confidence, tolerance)
            problem = Problem(judge, [], SquaredError(), x, target, streams)
            expansion = problem.expand(options, problem.objective, x, problem.target)
            if not isinstance(expansion, GaussNewton):
                raise TypeError("Quadratic expands to a GaussNewton")
            radius = ball.eps_of(x)[:, None]
            down, up = (torch.minimum(bound.abs().flatten(1), radius) for bound in ball.room(x))
            dense = expansion.fits(4.0 * max(1.0, expansion.entries[0] / expansion.entries[1]))
            count = sweeps if sweeps is not None else 2000 if dense else 60
            found = bound_box(expansion, down, up, streams, tolerance=tolerance, confidence=confidence, sweeps=count)
            attained = torch.full_like(found.value, torch.nan)
            if perturbation is not None:
                attained = expansion.value(perturbation.to(x).flatten(1)).double()
            forwards, backwards, jvps = expansion.spent()
        return UpperBound(
            value=found.value,
            relaxed=found.relaxed,
            exact=found.exact,
            attained=attained,
            confidence=confidence,
            tolerance=tolerance,
            forwards=forwards + problem.clean_forwards,
            backwards=backwards,
            jvps=jvps,
            seconds=time.perf_counter() - started,
        )


def _check(confidence: float, tolerance: float, sweeps: int | None, perturbation: Tensor | None, x: Tensor) -> None:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"expected confidence between 0 and 1, got {confidence!r}.")
    if not tolerance > 0.0:
        raise InputError(f"expected tolerance > 0, got {tolerance!r}.")
    if sweeps is not None:
        check_count("sweeps", sweeps)
    if perturbation is not None and perturbation.shape != x.shape:
        raise InputError(
            f"expected a perturbation of the inputs' shape {tuple(x.shape)}, got {tuple(perturbation.shape)}."
        )


def _empty(x: Tensor, confidence: float, tolerance: float) -> UpperBound:
    none, count = x.new_zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64, device=x.device)
    return UpperBound(none, none, none.bool(), none, confidence, tolerance, count, count, count, 0.0)
