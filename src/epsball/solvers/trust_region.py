"""The quadratic problem over the Euclidean ball, exactly: Lanczos with reorthogonalisation and the secular equation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.solvers.view import View

__all__ = ["Solved", "secular", "trust_region"]

_BISECTIONS = 80
_KEPT = 6  # leading Ritz vectors that a restart keeps


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
    batch = len(eps)
    active = torch.ones(batch, dtype=torch.bool, device=eps.device)
    zeta, top = torch.zeros_like(space.linear), torch.zeros_like(space.linear)
    kkt, value = torch.zeros_like(eps), torch.zeros_like(eps)
    converged = ~active
    if not bool(space.grow([space.linear, space.probe], active).any()):
        return Solved(zeta, ~converged, kkt, top, value)
    added = 2
    while True:
        found = space.solve(tolerance)
        for kept, now in ((zeta, found.zeta), (top, found.top)):
            kept[active] = now[active]
        kkt[active], value[active] = found.kkt[active], found.value[active]
        converged = torch.where(active, found.done, converged)
        active = active & ~found.done
        if not bool(active.any()) or added >= limit:
            break
        if space.full:
            space.restart(found)
        moved = space.grow([found.residual, found.second], active)
        # A space that no residual leaves is invariant: its solution is the whole problem's.
        converged, active = converged | (active & ~moved), active & moved
        added += 2
    return Solved(zeta, converged, kkt, top, value)


@dataclass
class _Found:
    """What the space knows: the solution and the vectors by which it grows, each (B, M)."""

    zeta: Tensor
    top: Tensor
    value: Tensor
    kkt: Tensor
    done: Tensor
    residual: Tensor
    second: Tensor
    coefficients: Tensor  # (B, m, n): the solution, the leading Ritz vectors, Jᵀr


class _Space:
    """An orthonormal basis V (m, B, M) of each sample's space, with JᵀJV; small matrices are in float64.

    A vector that adds nothing for a sample is stored as zeros, and not `used`. slope, mark: ⟨v, Jᵀr⟩ and ⟨v, probe⟩.
    """

    def __init__(self, view: View, eps: Tensor) -> None:
        self.view, self.eps = view, eps.double()
        self.linear, self.probe = view.gradient(), view.probe()
        batch, entries = self.linear.shape
        share = 0.1 * view.model.options.memory * 1e9 / (entries * self.linear.element_size())
        self.most = int(min(max(share, 12), 48))  # more than a restart keeps
        self.basis = self.linear.new_zeros(self.most, batch, entries)
        self.image = torch.zeros_like(self.basis)
        self.matrix = torch.zeros(batch, self.most, self.most, dtype=torch.float64, device=eps.device)
        self.slope, self.mark = self.matrix.new_zeros(2, batch, self.most)
        self.used = torch.zeros_like(self.slope, dtype=torch.bool)
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for two more vectors."""
        return self.size + 2 > self.most

    def grow(self, vectors: list[Tensor], active: Tensor) -> Tensor:
        """Add what these vectors (B, M) bring, with one product JᵀJv each; tell for whom there was any, (B,) bool."""
        moved = torch.zeros_like(active)
        for vector in vectors:
            # What a finished sample knows need not be finite (ε = 0 has no multiplier).
            unit = self._orthonormal(torch.where(active[:, None], vector, 0.0))
            new = (unit != 0).any(1)
            moved = moved | new
            m = self.size
            self.basis[m] = unit
            self.image[m] = self.view.normal(unit, new) if bool(new.any()) else 0.0
            row = torch.einsum("mbd,bd->bm", self.basis[: m + 1], self.image[m]).double()
            self.matrix[:, m, : m + 1] = row
            self.matrix[:, : m + 1, m] = row
            self.slope[:, m] = (unit * self.linear).sum(1).double()
            self.mark[:, m] = (unit * self.probe).sum(1).double()
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
        lam = theta[:, -1] + above
        zeta, top = self._combine(self.basis, y), self._combine(self.basis, vectors[:, :, -1])
        scale = lam.to(zeta.dtype)[:, None]
        residual = self._combine(self.image, y) + self.linear - scale * zeta
        tops = theta[:, -1].to(zeta.dtype)[:, None]
        ritz = self._combine(self.image, vectors[:, :, -1]) - tops * top
        # Without a linear term the two coincide, and the second eigenvector's residual helps more.
        if m > 1:
            other = self._combine(self.image, vectors[:, :, -2])
            other = other - theta[:, -2].to(zeta.dtype)[:, None] * self._combine(self.basis, vectors[:, :, -2])
            second = torch.where((self.linear != 0).any(1, keepdim=True), ritz, other)
        else:
            second = ritz
        tiny = torch.finfo(zeta.dtype).tiny
        left = torch.linalg.vector_norm(residual, dim=1)
        kkt = left / torch.linalg.vector_norm(scale * zeta, dim=1).clamp_min(tiny)
        error = torch.linalg.vector_norm(ritz, dim=1)
        # λ is safely at or above λ_max where it exceeds the Ritz value by that value's error, or the error is small.
        sure = (above.to(error.dtype) >= error) | (error <= tolerance * tops[:, 0].clamp_min(tiny))
        kkt = torch.where(self.eps > 0, kkt, 0.0)
        kept = [y[:, :, None], vectors[:, :, -min(_KEPT, m) :], slope[:, :, None]]
        return _Found(
            zeta=zeta,
            top=top,
            value=theta[:, -1].clamp_min(0.0).to(zeta.dtype),
            kkt=kkt,
            done=(kkt <= tolerance) & sure,
            residual=residual,
            second=second,
            coefficients=torch.cat(kept, 2),
        )

    def restart(self, found: _Found) -> None:
        """Keep the solution, the leading Ritz vectors and Jᵀr, and drop the rest of the space (a thick restart)."""
        m, chosen = self.size, _independent(found.coefficients)
        n = chosen.shape[2]
        for stored in (self.basis, self.image):
            kept = torch.einsum("mbd,bmn->nbd", stored[:m], chosen.to(stored.dtype))
            stored[:n] = kept
            stored[n:] = 0.0
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

    def _orthonormal(self, vector: Tensor) -> Tensor:
        """Return the part of the vector outside the space, of length 1, or zeros where there is none."""
        length = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        unit = vector / torch.where(length > 0, length, 1.0)
        rounding = torch.finfo(vector.dtype).eps
        present = again = length[:, 0] > 0
        for turn in range(3):
            inside = torch.einsum("mbd,bd->mb", self.basis[: self.size], unit)
            outside = unit - torch.einsum("mbd,mb->bd", self.basis[: self.size], inside)
            length = torch.linalg.vector_norm(outside, dim=1, keepdim=True)
            present = present & ((length[:, 0] > 50.0 * rounding) | ~again)
            unit = torch.where(again[:, None], outside / torch.where(length > 0, length, 1.0), unit)
            # Twice is enough but for a sample of which almost all went.
            again = again & present & ((length[:, 0] < 0.5) | (turn == 0))
            if not bool(again.any()):
                break
        return torch.where(present[:, None], unit, 0.0)

    def _combine(self, stored: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("mbd,bm->bd", stored[: self.size], y.to(stored.dtype))


def secular(theta: Tensor, vectors: Tensor, slope: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Solve max yᵀTy + 2⟨slope, y⟩ subject to ‖y‖ ≤ ε from T's eigenvalues (rising) and vectors.

    Returns y (B, m) and λ - θ_max (B,).

    Σ c_i² / (λ - θ_i)² = ε² in the basis of eigenvectors; at λ = θ_max, where no λ above solves it (the hard case),
    the leading eigenvector makes up the length.
    """
    c = (vectors.transpose(1, 2) @ slope[:, :, None])[:, :, 0]
    gap = theta[:, -1:] - theta
    radius = eps.clamp_min(torch.finfo(torch.float64).tiny)
    total = torch.linalg.vector_norm(c, dim=1)
    least = 1e-14 * theta[:, -1].abs().clamp_min(1e-280)
    low = torch.maximum(c[:, -1].abs() / radius, least)
    high = torch.maximum(total / radius, low)
    low, high = low.log(), high.log()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        longer = torch.linalg.vector_norm(c / (middle.exp()[:, None] + gap), dim=1) > eps
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    above = high.exp()
    y = c / (above[:, None] + gap)
    short = (eps.square() - y[:, :-1].square().sum(1)).clamp_min(0.0).sqrt()
    hard = above <= 2.0 * least
    # Elsewhere the last coordinate is changed by rounding alone, to meet ‖y‖ = ε.
    sign = torch.where(c[:, -1] < 0, -1.0, 1.0)
    y = torch.cat([y[:, :-1], torch.where(hard, sign * short, y[:, -1])[:, None]], 1)
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    y = torch.where(length > 0, y * (eps[:, None] / torch.where(length > 0, length, 1.0)), y)
    return (vectors @ y[:, :, None])[:, :, 0], torch.where(hard, 0.0, above)


def _independent(columns: Tensor) -> Tensor:
    """Orthonormalise the columns (B, m, n) from the first on; a dependent one becomes zeros."""
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
    return kept
