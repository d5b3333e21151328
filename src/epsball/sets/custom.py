"""Any convex set written as a CVXPY problem (optional extra `cvxpy`): slow, but general."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.errors import EpsballWarning, InputError
from epsball.randomness import Generators, as_generators
from epsball.sets.base import ConstraintSet
from epsball.tensors import expand
from epsball.validation import check_callable

__all__ = ["CustomSet"]

# A projection to 1e-8 in the objective is one to 1e-4 in the entries, so ask for more first; it is not always reached.
_DEFAULT = [
    {"solver": "CLARABEL", **dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], tol)}
    for tol in (1e-11, 1e-9, 1e-8)
]


@dataclass(frozen=True, eq=False)
class CustomSet(ConstraintSet):
    """C(x) = {η : every constraint of build(η, x, ε) holds, lo ≤ x + η ≤ hi}, convex and with 0 in it.

    build(eta, x, eps): returns a list of CVXPY constraints. `eta` is a `cvxpy.Variable` of shape (M,), the entries of
    one sample in C order (`cp.reshape(eta, (H, W), order="C")` gives an image back); `x` a `Parameter` (M,); `eps` a
    non-negative scalar `Parameter`. Write it affine in the parameters (`cp.norm2(eta) <= eps`, not
    `cp.sum_squares(eta) <= eps**2`): such a problem (DPP) is compiled once for each sample size and only re-solved;
    any other is compiled for every sample.
    eps: the budget, a finite number or (B,). bounds: (lo, hi) or None, as for every set; build need not state them.
    measure(eta): the convex, absolutely homogeneous CVXPY expression that eps limits, by default `cp.norm2`. Give it
    when eps limits something else, or `size` and `smallest` answer another question than `lmo`.
    options: keyword arguments of `cvxpy.Problem.solve`, e.g. {"solver": "SCS"}; None for CLARABEL at the
    tightest of the tolerances 1e-11, 1e-9 and 1e-8 that it reaches.

    Nothing is closed-form: one conic program for each sample, in a loop (CVXPY has no batches), in float64 on the CPU.
    A sample whose solve fails, is inaccurate or unbounded comes back as NaN with one EpsballWarning for the batch,
    never as a guess. Compiled problems are shared by the sets derived from this one (scaled, step, take), so use one
    set in one thread.
    """

    build: Callable[[Any, Any, Any], Any]
    eps: float | Tensor = 1.0
    bounds: tuple[float | Tensor, float | Tensor] | None = None
    measure: Callable[[Any], Any] | None = None
    options: Mapping[str, Any] | None = None
    share: float = 1.0  # the set is share · C(x - offset): one of 1/share steps, `offset` being accumulated so far
    offset: Tensor | None = field(default=None, repr=False)
    programs: dict[Any, _Program] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse a set that cannot be built; CVXPY must be installed."""
        super().__post_init__()
        _cvxpy()
        check_callable("build", self.build)
        if self.measure is not None:
            check_callable("measure", self.measure)
        if not math.isfinite(float(torch.as_tensor(self.eps).amax() if torch.as_tensor(self.eps).numel() else 0.0)):
            raise InputError("expected a finite eps for a set written in CVXPY, got eps=inf; leave eps out of build.")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled problems behind: they belong to one process."""
        return {**self.__dict__, "programs": {}}

    def lmo(self, g: Tensor, x: Tensor) -> Tensor:
        """Solve max ⟨g, η⟩ over C(x), (B, *S). Zero for a sample whose whole g is; NaN where the solve failed."""
        flat = g.detach().flatten(1)
        length = flat.abs().amax(1)
        skip = torch.where((length == 0)[:, None], 0.0, flat * math.nan)
        todo = flat.isfinite().all(1) & (length > 0)
        unit = flat / torch.where(todo, length, 1.0)[:, None]  # the solution is the same, and the scaling is good
        return self._each("lmo", x, todo, skip, g=unit)

    def project(self, eta: Tensor, x: Tensor) -> Tensor:
        """Solve min ‖η - eta‖₂ over C(x), (B, *S). A point inside comes back as it is; NaN where the solve failed."""
        inside = self.contains(eta, x, tol=0.0)
        finite = eta.flatten(1).isfinite().all(1)
        kept = torch.where(inside[:, None], eta.flatten(1), math.nan)
        return self._each("project", x, finite & ~inside, kept, z=eta.detach().flatten(1) / self.share)

    def smallest(self, g: Tensor, gap: Tensor, x: Tensor) -> Tensor:
        """Solve min measure(η) subject to ⟨g, η⟩ ≥ gap, the bounds and every constraint without eps in it; (B, *S).

        Zero where gap ≤ 0. Where the constraints leave no such η, the one of largest ⟨g, η⟩; NaN where a solve failed.
        """
        flat = g.detach().flatten(1)
        length = flat.abs().amax(1)
        todo = flat.isfinite().all(1) & gap.isfinite() & (length > 0) & (gap > 0)
        skip = torch.where(((gap <= 0) | (length == 0))[:, None], 0.0, flat * math.nan)
        scale = torch.where(todo, length, 1.0)
        return self._each("smallest", x, todo, skip, g=flat / scale[:, None], gap=gap.detach() / scale / self.share)

    def size(self, eta: Tensor) -> Tensor:
        """Compute measure(η), (B,)."""
        program = self._program("size", eta[0].numel() if len(eta) else 1, None)
        values = []
        for row in _numpy(eta):
            program.eta.value = row
            values.append(float(program.value.value) if np.isfinite(row).all() else math.nan)
        return torch.tensor(values, dtype=eta.dtype, device=eta.device)

    def contains(self, eta: Tensor, x: Tensor, tol: float | None = None) -> Tensor:
        """Tell for each sample whether no constraint is violated by more than tol (1e-6 and rounding); (B,) bool."""
        if tol is None:
            moved = torch.where(eta == 0, 0.0, x.abs() + eta.abs()).flatten(1).sum(1)
            slack = 1e-6 + 2.0 * torch.finfo(x.dtype).eps * moved.double()
        else:
            slack = torch.full((len(x),), tol, dtype=torch.float64, device=x.device)
        finite = eta.flatten(1).isfinite().all(1)
        program = self._program("check", x[0].numel() if len(x) else 1, None)
        base, eps = self._base(x), self.eps_of(x)
        worst = []
        for i, row in enumerate(_numpy(eta / self.share)):
            if not bool(finite[i]):
                worst.append(math.inf)
                continue
            program.eta.value, program.x.value, program.eps.value = row, base[i], float(eps[i])
            # What is violated at η / share is violated share times as much at η.
            worst.append(self.share * max([0.0, *(float(np.max(c.violation())) for c in program.constraints)]))
        inside = torch.tensor(worst, dtype=torch.float64, device=x.device) <= slack
        down, up = (edge.flatten(1) for edge in self.room(x))
        edge = slack[:, None] if tol is not None else 4.0 * torch.finfo(x.dtype).eps * (1.0 + x.flatten(1).abs())
        flat = eta.flatten(1)
        return inside & finite & ((flat >= down - edge) & (flat <= up + edge)).all(1)

    def sample(self, x: Tensor, generators: Generators, *, boundary: bool = False) -> Tensor:
        """Draw the extreme point in a Gaussian direction, times U^(1/M) unless `boundary`: not uniform; (B, *S)."""
        streams, shape = as_generators(generators, x), x.shape[1:]
        corner = self.lmo(streams.fork(0).normal(shape, x.dtype), x)
        if boundary or not len(x):
            return corner
        radius = streams.fork(1).uniform((1,), x.dtype)[:, 0].pow(1.0 / x[0].numel())
        return corner * expand(radius, x)

    def step(self, share: float, eta: Tensor) -> CustomSet:
        """Return share · C(x): by convexity the sum of the steps stays in C(x), also where a constraint ignores eps."""
        return replace(self, share=self.share * share, offset=eta.detach())

    def take(self, index: Tensor) -> CustomSet:
        """Keep the budgets of some samples."""
        kept = super().take(index)
        return kept if self.offset is None else replace(kept, offset=self.offset[index])

    def _base(self, x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the inputs that the constraints are written around: where the accumulation of steps began."""
        return _numpy(x if self.offset is None else x - self.offset)

    def _program(self, kind: str, count: int, finite: tuple[Any, Any] | None) -> _Program:
        """Compile the problem of this kind for samples of `count` entries, once."""
        key = (self.build, self.measure, kind, count, None if finite is None else tuple(f.tobytes() for f in finite))
        if key not in self.programs:
            self.programs[key] = _Program(kind, count, self.build, self.measure, finite)
        return self.programs[key]

    def _each(self, kind: str, x: Tensor, todo: Tensor, result: Tensor, **values: Tensor) -> Tensor:
        """Solve the samples of `todo` one after the other; the others keep their row of `result`."""
        down, up = self.room(x)
        rows, edges = result.clone(), (_numpy(down / self.share), _numpy(up / self.share))
        base, eps, failed = self._base(x), self.eps_of(x), []
        arrays = {name: value.detach().to("cpu", torch.float64).numpy() for name, value in values.items()}
        for i in todo.nonzero()[:, 0].tolist():
            limits = edges[0][i], edges[1][i]
            finite = None if self.bounds is None else (np.isfinite(limits[0]), np.isfinite(limits[1]))
            given = {name: array[i] for name, array in arrays.items()} | {"x": base[i], "eps": float(eps[i])}
            status, eta = self._program(kind, base.shape[1], finite).solve(limits, given, self.options)
            if kind == "smallest" and eta is None and "infeasible" in status:
                status, eta = self._program("corner", base.shape[1], finite).solve(limits, given, self.options)
            if eta is None:
                failed.append(status)
                rows[i] = math.nan
            else:  # the solver may stand outside by its tolerance; the valid range is kept exactly
                rows[i] = torch.as_tensor(self.share * eta).to(rows)
                rows[i] = rows[i].clamp(down[i].flatten(), up[i].flatten())
        if failed:
            warnings.warn(
                f"CVXPY found no accurate solution of the {kind} problem for {len(failed)} of {len(x)} samples "
                f"({', '.join(sorted(set(failed)))}); their rows are NaN.",
                EpsballWarning,
                stacklevel=3,
            )
        return rows.view_as(x)


class _Program:
    """One parametrised CVXPY problem for samples of one size."""

    def __init__(
        self,
        kind: str,
        count: int,
        build: Callable[[Any, Any, Any], Any],
        measure: Callable[[Any], Any] | None,
        finite: tuple[Any, Any] | None,
    ) -> None:
        """Write the constraints and the objective; refuse what is not a convex program."""
        cp = _cvxpy()
        self.cp = cp
        self.eta = cp.Variable(count)
        self.x, self.eps = cp.Parameter(count), cp.Parameter(nonneg=True)
        self.given: dict[str, Any] = {"x": self.x, "eps": self.eps}
        self.limits: list[tuple[int, Any, Any]] = []
        if kind == "size":
            self.value = (measure or cp.norm2)(self.eta)
            return
        self.constraints = self._constraints(build)
        if kind == "check":
            return
        if kind in ("smallest", "corner"):  # whatever eps is
            self.constraints = [c for c in self.constraints if all(p is not self.eps for p in c.parameters())]
        for side, entries in enumerate(finite or ()):  # an infinite bound is no constraint
            if entries.any():
                edge = cp.Parameter(int(entries.sum()))
                moved = self.eta[np.flatnonzero(entries)]
                self.constraints.append(moved <= edge if side else moved >= edge)
                self.limits.append((side, entries, edge))
        self.problem = cp.Problem(self._objective(kind, count, measure), self.constraints)
        if not self.problem.is_dcp():
            raise InputError(
                "expected build and measure to give a convex (DCP) CVXPY problem, got one that is not; see "
                "problem.is_dcp() and the rules at dcp.stanford.edu."
            )
        self.dpp = self.problem.is_dcp(dpp=True)

    def _constraints(self, build: Callable[[Any, Any, Any], Any]) -> list[Any]:
        given = build(self.eta, self.x, self.eps)
        kind = self.cp.constraints.constraint.Constraint
        if not isinstance(given, (list, tuple)) or not all(isinstance(c, kind) for c in given):
            raise InputError(f"expected build(eta, x, eps) to return a list of CVXPY constraints, got {given!r}.")
        return list(given)

    def _objective(self, kind: str, count: int, measure: Callable[[Any], Any] | None) -> Any:
        cp = self.cp
        if kind == "project":
            self.given["z"] = cp.Parameter(count)
            return cp.Minimize(cp.sum_squares(self.eta - self.given["z"]))
        self.given["g"] = cp.Parameter(count)
        gain = self.given["g"] @ self.eta
        if kind != "smallest":
            return cp.Maximize(gain)
        self.given["gap"] = cp.Parameter()
        self.constraints.append(gain >= self.given["gap"])
        return cp.Minimize((measure or cp.norm2)(self.eta))

    def solve(
        self, limits: tuple[Any, Any], values: dict[str, Any], options: Mapping[str, Any] | None
    ) -> tuple[str, Any]:
        """Solve for one sample; returns the status, and η (M,) where it is optimal, else None."""
        for name, parameter in self.given.items():
            parameter.value = values[name]
        for side, entries, edge in self.limits:
            edge.value = limits[side][entries]
        status = ""
        with warnings.catch_warnings():  # an inaccurate solution is refused below
            warnings.simplefilter("ignore", UserWarning)
            for attempt in _DEFAULT if options is None else [options]:
                try:
                    self.problem.solve(ignore_dpp=not self.dpp, **attempt)
                    status = self.problem.status
                except self.cp.error.SolverError as error:
                    status = f"solver error: {str(error).splitlines()[0]}"
                    continue
                if status == self.cp.OPTIMAL and np.isfinite(self.eta.value).all():
                    return status, self.eta.value
                if status in (self.cp.INFEASIBLE, self.cp.UNBOUNDED):
                    break
        return status, None


def _numpy(a: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a batch as (B, M) float64 on the CPU."""
    return a.detach().flatten(1).to("cpu", torch.float64).numpy()


def _cvxpy() -> Any:
    """Import CVXPY, or say how to install it."""
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise InputError(
            'expected CVXPY for a CustomSet, and it is not installed; run pip install "epsball[cvxpy]".'
        ) from error
