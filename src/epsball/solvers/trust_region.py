"""The quadratic problem over the Euclidean ball, exactly: Lanczos with reorthogonalisation and the secular equation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.solvers.secular import secular
from epsball.solvers.view import View

__all__ = ["Solved", "trust_region"]

_KEPT = 6  # leading Ritz vectors that a restart keeps
_LEAST, _MOST = 12, 48  # vectors of the basis
_STRIP = 2**16  # entries that are summed in their own precision, and rewritten at once by a restart


@dataclass(frozen=True, eq=False)
class Solved:
    """The solution zeta (B, M), whether it met the tolerance, (B,) bool, and what is known beside it.

    kkt: ‖(λI - JᵀJ)ζ - Jᵀr‖ / ‖λζ‖, (B,). top: the leading right singular vector of J as far as the space knows it,
    (B, M), and value: its Ritz value of JᵀJ, (B,).
    """

    zeta: Tensor
    converged: Tensor
    kkt: Tensor
    top: Tensor
    value: Tensor


def trust_region(view: View, eps: Tensor, *, tolerance: float, limit: int = 400) -> Solved:
    """Solve max ‖r + Jζ‖² subject to ‖ζ‖₂ ≤ ε; eps (B,), zeta (B, M) with ‖ζ‖₂ = ε.

    (λI - JᵀJ)ζ = Jᵀr with λ ≥ λ_max(JᵀJ), solved in each sample's own Krylov space, the hard case included. The space
    starts from Jᵀr and a dense vector, and grows by the residuals of the solution and of the leading eigenvector, so
    that λ is held against λ_max in the same space. Where r = 0 the solution is the top right singular vector (14).
    tolerance: of the relative KKT residual. limit: the largest number of vectors that are added; a sample that has not
    converged by then says so.

    Source: equations (12)-(14) of Balda, Behboodi, Mathar (2018); Gould, Lucidi, Roma, Toint 1999 (the trust-region
    problem in a Krylov space); Davidson 1975 and Stathopoulos, Saad, Wu 1998 (growth by residuals, thick restarts).
    """
    space = _Space(view, eps)
    active = torch.ones_like(eps, dtype=torch.bool)
    zeta, top = torch.zeros_like(space.linear), torch.zeros_like(space.linear)
    kkt, value = torch.zeros_like(eps, dtype=torch.float64), torch.zeros_like(eps)
    converged = ~active
    moved = space.grow([space.linear, space.probe], active)
    if not bool(moved.any()):
        return Solved(zeta, ~converged, kkt, top, value)
    before: _Found | None = None
    while True:
        found = space.solve(tolerance)
        kkt, value = torch.where(active, found.kkt, kkt), torch.where(active, found.value, value)
        # A space that no residual leaves is invariant: its solution is the whole problem's.
        solved = active & (found.done | ~moved)
        finished = solved | (active & (space.added >= limit))
        for kept, coordinates in ((zeta, found.y), (top, found.vectors[:, :, -1])):
            space.collect(kept, coordinates, finished)
        converged, active = converged | solved, active & ~finished
        if not bool(active.any()):
            return Solved(zeta, converged, kkt, top, value)
        if space.full:
            space.restart(found, before or found)
            before = None
        else:
            before = found
        moved = space.grow(space.residuals, active)


@dataclass
class _Found:
    """What the space knows: coordinates (B, m) of the solution, eigenvectors (B, m, m) with the leading one last."""

    y: Tensor
    vectors: Tensor
    value: Tensor
    kkt: Tensor
    done: Tensor


class _Space:
    """An orthonormal basis V (m, B, M) of each sample's space, with JᵀJV; small matrices are in float64.

    A vector that adds nothing for a sample is stored as zeros, and not `used`. slope, mark: ⟨v, Jᵀr⟩ and ⟨v, probe⟩.
    residuals: (1 or 2, B, M), what `solve` leaves to grow by. Large inputs decide how this is written: vectors are
    changed in place, since a new one costs as much time as reading several.
    """

    def __init__(self, view: View, eps: Tensor) -> None:
        self.view, self.eps = view, eps.double()
        self.linear, self.probe = view.gradient(), view.probe()
        self.sloped = (self.linear != 0).any(1)
        batch, entries = self.linear.shape
        share = 0.1 * view.model.options.memory * 1e9 / (entries * self.linear.element_size())
        self.most = int(min(max(share, _LEAST), _MOST))  # more than a restart keeps
        self.basis = self.linear.new_empty(self.most, batch, entries)
        self.image = torch.empty_like(self.basis)
        # Without a linear term the solution is the leading eigenvector, and their residuals are one.
        self.residuals = self.linear.new_zeros(1 + int(bool(self.sloped.any())), batch, entries)
        self.matrix = torch.zeros(batch, self.most, self.most, dtype=torch.float64, device=eps.device)
        self.slope, self.mark = self.matrix.new_zeros(2, batch, self.most)
        self.used = torch.zeros_like(self.slope, dtype=torch.bool)
        self.added = torch.zeros_like(eps, dtype=torch.int64)
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for what is added at once."""
        return self.size + len(self.residuals) > self.most

    def grow(self, vectors: Iterable[Tensor], active: Tensor) -> Tensor:
        """Add what these vectors (B, M) bring, with one product JᵀJv each; tell for whom there was any, (B,) bool."""
        moved = torch.zeros_like(active)
        for vector in vectors:
            m = self.size
            unit = self.basis[m].copy_(vector)
            # What a finished sample knows need not be finite (ε = 0 has no multiplier).
            unit[~active] = 0.0
            new = self._orthonormalise(unit)
            if not bool(new.any()):
                continue
            moved, self.added = moved | new, self.added + new
            self.image[m] = self.view.normal(unit, new)
            row = _inside(self.basis[: m + 1], self.image[m])
            self.matrix[:, m, : m + 1] = row
            self.matrix[:, : m + 1, m] = row
            self.slope[:, m] = torch.linalg.vecdot(unit, self.linear).double()
            self.mark[:, m] = torch.linalg.vecdot(unit, self.probe).double()
            self.used[:, m] = new
            self.size += 1
        return moved

    def solve(self, tolerance: float) -> _Found:
        """Solve the problem in the space and measure what is left of it outside."""
        m = self.size
        matrix, slope = self.matrix[:, :m, :m], self.slope[:, :m]
        # What is not used gets an eigenvalue below all others, and of their size: eigh rounds at the largest.
        below = matrix.diagonal(dim1=1, dim2=2).amax(1, keepdim=True) * ~self.used[:, :m]
        theta, vectors = torch.linalg.eigh(matrix - torch.diag_embed(below))
        # The leading eigenvector's sign, which decides where Jᵀr does not, must not depend on the batch.
        sign = torch.where((self.mark[:, :m] * vectors[:, :, -1]).sum(1) < 0, -1.0, 1.0)
        vectors = torch.cat([vectors[:, :, :-1], vectors[:, :, -1:] * sign[:, None, None]], 2)
        y, above = secular(theta, vectors, slope, self.eps)
        lam, kind = theta[:, -1] + above, self.basis.dtype
        tiny = torch.finfo(torch.float64).tiny
        ritz = self._residual(self.residuals[0], vectors[:, :, -1], theta[:, -1])
        error = _length(ritz)
        relative = error / theta[:, -1].clamp_min(tiny)
        kkt = relative
        if len(self.residuals) > 1:
            residual = self._residual(self.residuals[1], y, lam).add_(self.linear)
            kkt = _length(residual) / (lam * self.eps).clamp_min(tiny)
            kkt = torch.where(self.sloped, kkt, relative)
            residual[~self.sloped] = 0.0
        kkt = torch.where(self.eps > 0, kkt, 0.0)
        # λ is safely at or above λ_max where it exceeds the Ritz value by that value's error, or the error is small.
        sure = (above >= error) | (relative <= tolerance) | (self.eps == 0)
        value = theta[:, -1].clamp_min(0.0).to(kind)
        return _Found(y, vectors, value, kkt, (kkt <= tolerance) & sure)

    def collect(self, kept: Tensor, coordinates: Tensor, samples: Tensor) -> None:
        """Write the vectors with these coordinates (B, m) into kept (B, M), for some of the samples."""
        if bool(samples.any()):
            kept[samples] = 0.0
            self._add(kept, self.basis, torch.where(samples[:, None], coordinates, 0.0))

    def restart(self, found: _Found, before: _Found) -> None:
        """Keep the solution, the leading Ritz vectors, Jᵀr and both as they were one step before; drop the rest.

        That is a thick restart; the step before makes it about as good as a space that was never cut.
        """
        m = self.size
        past = [before.y, before.vectors[:, :, -1]]
        past = [torch.nn.functional.pad(known, (0, m - known.shape[1])) for known in past]
        leading = found.vectors[:, :, -min(_KEPT, m) :].flip(2)
        chosen = _independent(torch.cat([found.y[:, :, None], leading, torch.stack([*past, self.slope[:, :m]], 2)], 2))
        n = chosen.shape[2]
        for stored in (self.basis, self.image):
            for start in range(0, stored.shape[2], _STRIP):
                strip = stored[:, :, start : start + _STRIP]
                strip[:n] = torch.einsum("mbd,bmn->nbd", strip[:m], chosen.to(strip.dtype))
        small = chosen.transpose(1, 2) @ self.matrix[:, :m, :m] @ chosen
        for known in (self.slope, self.mark):
            now = (chosen.transpose(1, 2) @ known[:, :m, None])[:, :, 0]
            known.zero_()
            known[:, :n] = now
        self.used.zero_()
        self.used[:, :n] = chosen.square().sum(1) > 0.5
        self.matrix.zero_()
        self.matrix[:, :n, :n] = small
        self.size = n

    def _orthonormalise(self, unit: Tensor) -> Tensor:
        """Make unit (B, M) the part of it outside the space, of length 1, or 0 where there is none; (B,) bool, where.

        In place. Once is enough for what hardly changes, twice for all but a sample of which almost all went.
        """
        rounding = torch.finfo(unit.dtype).eps
        present = again = self._scale(unit, torch.ones_like(unit[:, 0], dtype=torch.bool)) > 0
        for _ in range(3):
            inside = _inside(self.basis[: self.size], unit) * again[:, None]
            self._add(unit, self.basis, -inside)
            length = self._scale(unit, again)
            present = present & ((length > 50.0 * rounding) | ~again)
            again = again & present & (length < 0.7)
            if not bool(again.any()):
                break
        unit[~present] = 0.0
        return present

    @staticmethod
    def _scale(vector: Tensor, samples: Tensor) -> Tensor:
        """Bring vectors (B, M) to length 1 in place, for some of the samples; return their lengths before."""
        length = _length(vector)
        vector.div_(torch.where(samples & (length > 0), length, 1.0)[:, None])
        return length

    def _residual(self, out: Tensor, y: Tensor, multiplier: Tensor) -> Tensor:
        """Compute JᵀJVy - λVy, (B, M), in place."""
        out.zero_()
        self._add(out, self.image, y)
        self._add(out, self.basis, -multiplier[:, None] * y)
        return out

    def _add(self, out: Tensor, stored: Tensor, y: Tensor) -> None:
        """Add the combination of stored vectors with coefficients y (B, m) to out (B, M), in place."""
        m = y.shape[1]
        out[:, None].baddbmm_(y.to(out.dtype)[:, None], stored[:m].transpose(0, 1))


def _inside(stored: Tensor, vector: Tensor) -> Tensor:
    """Compute ⟨v, vector⟩ for stored vectors v (m, B, M) and a vector (B, M); (B, m) in float64.

    A product of millions of float32 entries at once loses four digits, and with them the space its orthogonality.
    """
    found: Tensor = vector.new_zeros(len(vector), len(stored), dtype=torch.float64)
    for start in range(0, vector.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        found += torch.bmm(stored[:, :, strip].transpose(0, 1), vector[:, strip, None])[:, :, 0]
    return found


def _length(vector: Tensor) -> Tensor:
    """Compute the Euclidean length of vectors (B, M), in float64; (B,).

    Strip by strip for precision, and in units of each strip's largest entry: squares of 1e-23 are 0 in float32.
    """
    parts = []
    for start in range(0, vector.shape[1], _STRIP):
        strip = vector[:, start : start + _STRIP]
        largest = torch.maximum(strip.amax(1), -strip.amin(1))
        unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        parts.append(torch.linalg.vector_norm(strip / unit[:, None], dim=1).double() * unit.double())
    length: Tensor = torch.linalg.vector_norm(torch.stack(parts, 1), dim=1)
    return length


def _independent(columns: Tensor) -> Tensor:
    """Orthonormalise the columns (B, m, n) from the first on; dependent ones become zeros, and come last."""
    kept = torch.zeros_like(columns)
    for n in range(columns.shape[2]):
        column = columns[:, :, n]
        length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
        column = column / torch.where(length > 0, length, 1.0)
        present = length[:, 0] > 0
        for _ in range(2):
            column = column - (kept @ (kept.transpose(1, 2) @ column[:, :, None]))[:, :, 0]
            length = torch.linalg.vector_norm(column, dim=1, keepdim=True)
            present = present & (length[:, 0] > 1e-10)
            column = column / torch.where(length > 0, length, 1.0)
        kept[:, :, n] = torch.where(present[:, None], column, 0.0)
    used = kept.square().sum(1) > 0.5
    order = (~used).to(torch.uint8).argsort(dim=1, stable=True)[:, None].expand_as(kept)
    return kept.gather(2, order)[:, :, : int(used.sum(1).max())]
