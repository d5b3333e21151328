"""The Gauss-Newton model of a squared error, ‖r + Jδ‖², given by products with J alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.local_models.products import METHODS, Method, Products
from epsball.objectives import Objective, SquaredError
from epsball.tensors import flat

__all__ = ["GaussNewton", "Quadratic"]


class GaussNewton:
    """gain(δ) ≈ ‖r + Jδ‖² around a point, with r (B, K) the residual and J (B, K, M) known by its products.

    All vectors are flat: inputs (B, M), outputs (B, K). outputs: the model's outputs at the point (B, *O). Every
    product is counted for the samples it is made for; `spent` hands the counts over, (B,) int64 each.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], point: Tensor, target: Tensor, options: Quadratic, *, batched: bool
    ) -> None:
        self._model, self._batched, self._target, self.options, self.point = model, batched, target, options, point
        self._products = Products(model, point, options.products, batched=batched)
        self.outputs = self._products.outputs.detach()
        self.residual = flat(self.outputs - target)
        self._gradient: Tensor | None = None
        self._probe: Tensor | None = None
        self._linearised = self._products.linearised
        self._told: frozenset[str] = frozenset()  # which of the two are counted already
        self._reset(1)

    @property
    def entries(self) -> tuple[int, int]:
        """M and K, the numbers of input and output entries of a sample."""
        return self.point[0].numel(), self.residual.shape[1]

    def jvp(self, u: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute Ju, (B, M) -> (B, K), counted for the samples that are `active`, (B,) bool, all by default."""
        found = self._products.jvp(u)
        self._count(1, 0, active)
        return found

    def vjp(self, w: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute Jᵀw, (B, K) -> (B, M)."""
        self._count(0, 1, active)
        return self._products.vjp(w)

    def jvps(self, u: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute J times n vectors a sample, (n, B, M) -> (n, B, K)."""
        found = self._products.jvps(u)
        self._count(len(u), 0, active)
        return found

    def vjps(self, w: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute Jᵀ times n vectors a sample, (n, B, K) -> (n, B, M)."""
        self._count(0, len(w), active)
        return self._products.vjps(w)

    def gradient(self) -> Tensor:
        """Compute Jᵀr, half the gradient at δ = 0; (B, M). One product, none where the residual is zero."""
        moved = (self.residual != 0).any(1)
        self._count_once("gradient", moved)
        if self._gradient is None:
            self._gradient = (
                self._products.vjp(self.residual) if bool(moved.any()) else torch.zeros_like(self.point.flatten(1))
            )
        return self._gradient

    def probe(self) -> Tensor:
        """Compute Jᵀw for one fixed dense w, (B, M): zero only where J is, and rich in its leading directions."""
        self._count_once("probe", None)
        if self._probe is None:
            generator = torch.Generator().manual_seed(0)
            w = torch.randn(self.residual.shape[1], generator=generator, dtype=torch.float64)
            w = w.to(self.residual).expand_as(self.residual)
            self._probe = self._products.vjp(w)
        return self._probe

    def value(self, delta: Tensor, active: Tensor | None = None) -> Tensor:
        """Compute ‖r + Jδ‖², (B, M) -> (B,)."""
        return (self.residual + self.jvp(delta, active)).square().sum(1)

    def finite_and_flat(self) -> tuple[Tensor, Tensor]:
        """Tell for each sample whether residual and products are finite, and whether J is zero."""
        probe = self.probe()
        finite = self.residual.isfinite().all(1) & probe.isfinite().all(1)
        return finite, (probe == 0).all(1)

    def around(self, offset: Tensor) -> GaussNewton:
        """Return the same model with δ counted from the point minus offset (B, *S): r becomes r - J offset."""
        moved = self.recounted()
        moved._counts, moved._told = self._counts, self._told - {"gradient"}
        moved.residual = self.residual - self.jvp(offset.flatten(1))
        moved._gradient = None
        return moved

    def take(self, index: Tensor) -> GaussNewton:
        """Linearise again for some of the samples; what this repeats is not counted."""
        kept = GaussNewton(self._model, self.point[index], self._target[index], self.options, batched=self._batched)
        kept.residual = self.residual[index]
        for name in ("_gradient", "_probe"):
            known = getattr(self, name)
            setattr(kept, name, None if known is None else known[index])
        kept._told = self._told
        kept._reset(0)
        return kept

    def recounted(self) -> GaussNewton:
        """Return the same model with counts of its own, those of a model just made."""
        copy = object.__new__(GaussNewton)
        copy.__dict__.update(self.__dict__)
        copy._told = frozenset()
        copy._reset(self._linearised)
        return copy

    def spent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the forward passes, Jᵀw and Ju of each sample since this was last asked; (B,) int64 each."""
        counts = self._counts
        self._reset(0)
        return counts[0], counts[1], counts[2]

    def also_spent(self, index: Tensor, other: GaussNewton) -> None:
        """Add what a model of some of the samples has spent."""
        self._counts[:, index] += torch.stack(other.spent())

    def bytes_of_jacobian(self) -> int:
        """Return what one sample's dense Jacobian takes."""
        columns, rows = self.entries
        return columns * rows * self.point.element_size()

    def fits(self, copies: float = 1.0) -> bool:
        """Tell whether so many matrices of the Jacobian's size, of one sample, fit the memory budget."""
        return copies * self.bytes_of_jacobian() <= self.options.memory * 1e9

    def jacobian(self) -> Tensor:
        """Compute the dense Jacobian, (B, K, M), in chunks of the smaller of K Jᵀw and M Ju; only if it fits.

        Raises InputError that says how many samples fit where the memory budget is too small.
        """
        columns, rows = self.entries
        batch, one = len(self.point), self.bytes_of_jacobian()
        if batch * one > self.options.memory * 1e9:
            raise InputError(
                f"expected a memory budget of at least {batch * one / 1e9:.3g} GB for the Jacobians of {batch} samples "
                f"({rows} x {columns} each), got {self.options.memory:g} GB, which fits "
                f"{int(self.options.memory * 1e9 // one)}; give Quadratic(memory=...), a smaller batch, or leave the "
                "Jacobian implicit."
            )
        found = self.point.new_empty(batch, rows, columns)
        by_rows = rows <= columns
        for chunk in self.basis(rows if by_rows else columns):
            if by_rows:
                found[:, chunk] = self.vjps(self.unit(chunk, rows)).transpose(0, 1)
            else:
                found[:, :, chunk] = self.jvps(self.unit(chunk, columns)).permute(1, 2, 0)
        return found

    def basis(self, count: int) -> list[slice]:
        """Cut `count` basis vectors into chunks whose products stay small beside the memory budget."""
        size = max(self.entries) * max(1, len(self.point)) * self.point.element_size()
        width = int(min(64, max(1, 0.1 * self.options.memory * 1e9 // size)))
        return [slice(start, min(start + width, count)) for start in range(0, count, width)]

    def unit(self, chunk: slice, count: int) -> Tensor:
        """Return basis vectors for every sample, (n, B, count)."""
        number = torch.arange(chunk.start, chunk.stop, device=self.point.device)
        rows = torch.nn.functional.one_hot(number, count).to(self.point.dtype)
        return rows[:, None].expand(-1, len(self.point), -1)

    def _reset(self, linearised: int) -> None:
        self._counts = torch.zeros(3, len(self.point), dtype=torch.int64, device=self.point.device)
        self._count_linearised(linearised)

    def _count_linearised(self, times: int) -> None:
        self._counts[0] += times
        if self._products.method == "double-backward":
            self._counts[1] += times  # the backward pass whose graph gives Ju

    def _count_once(self, name: str, active: Tensor | None) -> None:
        """Count a Jᵀw that is kept: once a run, also where an earlier run has made it."""
        if name not in self._told:
            self._count(0, 1, active)
            self._told |= {name}

    def _count(self, jvps: int, vjps: int, active: Tensor | None) -> None:
        once = 1 if active is None else active.to(torch.int64)
        if self._products.linearised > self._linearised:  # a layer refused, and the products are made in another way
            self._count_linearised(self._products.linearised - self._linearised)
            self._linearised = self._products.linearised
        if jvps:
            self._counts[2] += jvps * once
            self._counts[0] += self._products.extra * jvps * once
        if vjps:
            self._counts[1] += vjps * once


@dataclass(frozen=True)
class Quadratic:
    """Model a squared error by ‖r + Jδ‖²: Gauss-Newton, equation (12) of the paper; J is never stored unless it fits.

    products: how Ju and Jᵀw are made ("auto", "double-backward", "forward-mode"), see `local_models.products`.
    memory: in GB, what a dense Jacobian or a chunk of products may take; solvers use a dense one only where it improves
    the answer (p = inf) and fits. 0 keeps all of them matrix-free.

    A product Ju or Jᵀw costs about as much as a forward or a backward pass; the model is linearised once a step.
    Source: section 3.2 of Balda, Behboodi, Mathar (2018).
    """

    products: Method = "auto"
    memory: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unknown way of making products and a memory budget that is no number."""
        if self.products not in METHODS:
            raise InputError(f"expected products as one of {', '.join(METHODS)}, got {self.products!r}.")
        number = isinstance(self.memory, Real) and not isinstance(self.memory, bool)
        if not number or not 0.0 <= self.memory < float("inf"):
            raise InputError(f"expected memory >= 0, a number of GB, got {self.memory!r}.")

    def check(self, objective: Objective) -> None:
        """Refuse an objective that is not a squared error."""
        if not isinstance(objective, SquaredError):
            raise InputError(
                f"expected eb.SquaredError() as the objective of a quadratic local model, got {objective!r}; "
                "use eb.Linear() for other objectives."
            )

    def expand(
        self,
        model: Callable[[Tensor], Tensor],
        objective: Objective,
        point: Tensor,
        target: Tensor,
        *,
        convolutional: bool = True,
        candidates: object = None,
    ) -> GaussNewton:
        """Linearise the model at the point (B, *S) around the target (B, *O)."""
        self.check(objective)
        return GaussNewton(model, point, target, self, batched=not convolutional)
