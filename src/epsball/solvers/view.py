"""A Gauss-Newton model in other coordinates: δ = centre + scale ⊙ ζ, which only changes r and J's columns."""

from __future__ import annotations

from torch import Tensor

from epsball.local_models import GaussNewton

__all__ = ["View"]


class View:
    """The same model as a function of ζ: r' = r + J centre, J' = J diag(scale); both (B, M), None for 0 and 1."""

    def __init__(self, model: GaussNewton, scale: Tensor | None = None, centre: Tensor | None = None) -> None:
        self.model, self.scale, self.centre = model, scale, centre
        self.residual = model.residual if centre is None else model.residual + model.jvp(centre)

    def delta(self, zeta: Tensor) -> Tensor:
        """Return δ for ζ, (B, M) or (B, n, M)."""
        extra = zeta.dim() - 2
        scale, centre = (
            None if part is None else part.reshape(len(part), *[1] * extra, -1) for part in (self.scale, self.centre)
        )
        delta = zeta if scale is None else zeta * scale
        return delta if centre is None else delta + centre

    def jvp(self, u: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute J'u, (B, M) -> (B, K)."""
        return self.model.jvp(u if self.scale is None else u * self.scale, active)

    def vjp(self, w: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute J'ᵀw, (B, K) -> (B, M)."""
        found = self.model.vjp(w, active)
        return found if self.scale is None else found * self.scale

    def normal(self, u: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute J'ᵀJ'u, (B, M) -> (B, M)."""
        return self.vjp(self.jvp(u, active), active)

    def gradient(self) -> Tensor:
        """Compute J'ᵀr', (B, M)."""
        if self.centre is not None:
            return self.vjp(self.residual)
        found = self.model.gradient()
        return found if self.scale is None else found * self.scale

    def probe(self) -> Tensor:
        """Compute J'ᵀw for a fixed dense w, (B, M)."""
        found = self.model.probe()
        return found if self.scale is None else found * self.scale
