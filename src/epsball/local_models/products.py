"""The maps u -> Ju and w -> Jᵀw of a model at one point, from one linearisation and without the Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from epsball.errors import InputError
from epsball.tensors import flat

__all__ = ["METHODS", "Method", "Products"]

Method = Literal["auto", "double-backward", "forward-mode"]
METHODS = ("auto", "double-backward", "forward-mode")

#: What "auto" fell back to, method and plain attention, for each object whose method the model is: that of a run.
_FALLEN: WeakKeyDictionary[object, tuple[Method, bool]] = WeakKeyDictionary()


class Products:
    """Products with the Jacobian of f: (B, *S) -> (B, *O) at a point, for vectors that are flat: (B, M) and (B, K).

    The samples of a batch do not depend on each other, so J is block diagonal and one pass serves all of them.

    double-backward: one forward pass keeps its graph, and so does one backward pass at a dummy w; Jᵀw is then one
    backward pass through the first, Ju one through the second, which is linear in w. forward-mode: Ju with dual
    numbers, one more forward pass each, with plain attention. auto: double-backward; where a layer has no second
    derivative (fused attention) the same with plain attention, and where that fails too, forward-mode; a
    bound method of an object that lives as long as a run is spared what failed before. `extra` says how many forward
    passes a Ju costs besides, `linearised` how often the model was linearised so far: once, and once more for each way
    that failed.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], point: Tensor, method: Method, *, batched: bool) -> None:
        self._model, self._point, self._batched = model, point.detach(), batched
        self._method: Method = "double-backward" if method == "auto" else method
        self._fallback = method == "auto"
        self.plain_attention = method == "forward-mode"
        owner = getattr(model, "__self__", None)
        self._owner = owner if hasattr(owner, "__weakref__") and not isinstance(owner, type) else None
        if self._fallback and self._owner is not None and self._owner in _FALLEN:
            self._method, self.plain_attention = _FALLEN[self._owner]
            self._batched = False
        self.linearised = 0
        self._checked = False
        self._known: tuple[Tensor, Tensor] | None = None  # some w and Jᵀw
        self.outputs = self._leaf = self._point
        self._linearise()

    @property
    def method(self) -> Method:
        """How products are made."""
        return self._method

    @property
    def extra(self) -> int:
        """How many forward passes each Ju costs besides."""
        return int(self._method == "forward-mode")

    def jvp(self, u: Tensor) -> Tensor:
        """Compute Ju, (B, M) -> (B, K)."""
        try:
            found = self._jvp(u)
        except (RuntimeError, NotImplementedError) as error:
            self._fall_back(error)
            return self.jvp(u)
        if not self._checked and not self._adjoint_to(u, found):
            self._fall_back(RuntimeError("its backward pass cannot be differentiated"))
            return self.jvp(u)
        self._checked = True
        return found

    def vjp(self, w: Tensor) -> Tensor:
        """Compute Jᵀw, (B, K) -> (B, M)."""
        (found,) = torch.autograd.grad(
            self.outputs, self._leaf, w.view_as(self.outputs), retain_graph=True, allow_unused=True
        )
        found = torch.zeros_like(self._point).flatten(1) if found is None else found.detach().flatten(1)
        self._known = self._known or (w, found)
        return found

    def jvps(self, u: Tensor) -> Tensor:
        """Compute J times n vectors a sample, (n, B, M) -> (n, B, K)."""
        if not self._checked and len(u):
            self.jvp(u[0])
        if self._batched and self._method == "double-backward" and len(u) > 1:
            try:
                (found,) = torch.autograd.grad(
                    self._adjoint, self._dummy, u.view(len(u), *self._point.shape), None, True, is_grads_batched=True
                )
                return found.detach().reshape(*found.shape[:2], -1)
            except RuntimeError:
                self._batched = False  # a layer that cannot be vectorised; one by one does the same
        return torch.stack([self.jvp(v) for v in u])

    def vjps(self, w: Tensor) -> Tensor:
        """Compute Jᵀ times n vectors a sample, (n, B, K) -> (n, B, M)."""
        if self._batched and len(w) > 1:
            try:
                (found,) = torch.autograd.grad(
                    self.outputs, self._leaf, w.view(len(w), *self.outputs.shape), None, True, is_grads_batched=True
                )
                return found.detach().reshape(*found.shape[:2], -1)
            except RuntimeError:
                self._batched = False
        return torch.stack([self.vjp(v) for v in w])

    @torch.enable_grad()
    def _linearise(self) -> None:
        self.linearised += 1
        self._checked, self._known = self._method == "forward-mode", None
        with self._attention():
            self._leaf = self._point.clone().requires_grad_()
            self.outputs = self._model(self._leaf)
            if not self.outputs.requires_grad:
                raise InputError(
                    "expected a model that is differentiable in its input, got outputs without a gradient; remove "
                    "detach, no_grad, argmax or rounding between x and the output."
                )
            if self._method == "double-backward":
                self._dummy = torch.zeros_like(self.outputs, requires_grad=True)
                (adjoint,) = torch.autograd.grad(
                    self.outputs, self._leaf, self._dummy, create_graph=True, allow_unused=True
                )
                self._adjoint = torch.zeros_like(self._leaf) if adjoint is None else adjoint

    def _jvp(self, u: Tensor) -> Tensor:
        u = u.view_as(self._point)
        if self._method == "forward-mode":
            with torch.no_grad(), self._attention():
                tangent: Tensor = torch.func.jvp(self._model, (self._point,), (u,))[1]
            return flat(tangent.detach())
        if not self._adjoint.requires_grad:  # the outputs do not depend on the input
            return flat(torch.zeros_like(self.outputs).detach())
        (found,) = torch.autograd.grad(self._adjoint, self._dummy, u, retain_graph=True, allow_unused=True)
        return flat((torch.zeros_like(self.outputs) if found is None else found).detach())

    def _adjoint_to(self, u: Tensor, image: Tensor) -> bool:
        """Tell whether ⟨w, Ju⟩ = ⟨Jᵀw, u⟩ for some w.

        Autograd takes what a backward pass computes outside it, in NumPy or once_differentiable, for a constant.
        """
        if self._known is None:
            w = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
            self._known = w, self.vjp(w)
        w, pulled = self._known
        gap = ((w * image).sum(1) - (pulled * u).sum(1)).abs()
        lengths = [torch.linalg.vector_norm(v, dim=1) for v in (w, image, pulled, u)]
        tolerance = 10.0 * torch.finfo(self.outputs.dtype).eps ** 0.5
        return not bool((gap > tolerance * (lengths[0] * lengths[1] + lengths[2] * lengths[3])).any())

    def _attention(self) -> AbstractContextManager[None]:
        if not self.plain_attention:
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return context

    def _fall_back(self, error: Exception) -> None:
        """Choose the next way of making products, or give up."""
        if isinstance(error, torch.OutOfMemoryError):
            raise error
        if self._fallback and self._method == "double-backward":
            if self.plain_attention:
                self._method = "forward-mode"
            self.plain_attention = True
            self._batched = False
            if self._owner is not None:
                _FALLEN[self._owner] = self._method, True
            self._linearise()
            return
        raise InputError(
            f"expected a model whose Jacobian products can be computed ({self._method}), but a layer refuses: "
            f"{str(error).strip().splitlines()[0]}; use a linear recipe, which needs first derivatives alone."
        ) from error
