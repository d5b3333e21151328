"""The door for models of one's own: one sample forward and back, before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from epsball.errors import InputError
from epsball.target_model import TargetModel

__all__ = ["check_model_door"]

# Their derivative is zero wherever it exists.
_FLAT = {"round", "floor", "ceil", "trunc", "sign", "fix", "heaviside", "bucketize", "fake_quantize_per_tensor_affine"}
_FLAT |= {f"{name}_" for name in _FLAT}


def check_model_door(model: Callable[[Tensor], Any], x: Tensor, name: str) -> tuple[int, ...]:
    """Return the shape O of the outputs for a sample; x (b, *S) a few samples in the run's type and place.

    InputError where the model does not take such samples, does not return one floating tensor (B, *O), or gives no
    gradient with respect to its input; then the message says which operation is in the way.
    """
    x = x[:2].detach().clone().requires_grad_(True)
    trace = _Trace()
    with TargetModel(model) as target, torch.enable_grad():
        try:
            with trace:
                outputs = target(x)
        except InputError:
            raise
        except Exception as error:  # whatever the user's network raises
            raise _failed(error, x, name) from error
        if outputs.is_complex() or not outputs.is_floating_point():
            raise InputError(
                f"expected {name} to return floating scores or values, got {outputs.dtype}; return them before they "
                "are turned into class indices or levels."
            )
        if not outputs.requires_grad:
            raise InputError(
                f"expected a model with gradients with respect to its input, but {name} gives none: {trace.reason}; "
                "attacks follow gradients."
            )
        try:
            (gradient,) = torch.autograd.grad(outputs.double().square().sum() + outputs.double().sum(), x)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"expected a model with gradients with respect to its input, but {name}'s cannot be computed: {reason}."
            ) from error
    if trace.flat and not bool(gradient.any()):
        raise InputError(
            f"expected a model with gradients with respect to its input, but {name}'s is exactly zero, since it goes "
            f"through {trace.flat}, whose derivative is zero everywhere; leave it out, or put a smooth function or a "
            "straight-through estimate in its place."
        )
    return tuple(outputs.shape[1:])


def _failed(error: Exception, x: Tensor, name: str) -> InputError:
    text = " ".join(str(error).split())
    shape = tuple(x.shape[1:])
    lowered = text.lower()
    if "numpy()" in lowered and "grad" in lowered:
        return InputError(
            f"expected a model with gradients with respect to its input, but {name} gives none: it calls .numpy() on "
            "the way; compute in torch all through."
        )
    if "indices" in lowered and ("long" in lowered or "int" in lowered):
        return InputError(
            f"expected a model of floating inputs, but {name} takes integers ({_short(text)}), which have no gradient; "
            "give the part of it after the embedding, with the embedded vectors as data."
        )
    hint = ""
    if "same dtype" in lowered or "double" in lowered or "expected scalar type" in lowered:
        hint = " a program may be bound to the type it was exported with: try --dtype float32;"
    elif "shape" in lowered or "size" in lowered or "channel" in lowered or "dimension" in lowered:
        hint = " check the shape of the data, or give --resize HEIGHTxWIDTH for images of another size;"
    return InputError(
        f"expected a model that takes samples of shape {shape} in {str(x.dtype).removeprefix('torch.')}, but {name} "
        f"fails on them:{hint} {type(error).__name__}: {_short(text)}"
    )


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


class _Trace(TorchFunctionMode):
    """Watches where gradients are lost: the last operation that took a tensor with a gradient and gave one without."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = "its outputs do not depend on the input"
        self.flat = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        had = any(isinstance(value, Tensor) and value.requires_grad for value in _tensors(args, given))
        result = func(*args, **given)
        called = _name(func)
        if had and called in _FLAT:
            self.flat = f"{called.rstrip('_')}()"
        if had and isinstance(result, Tensor) and not result.requires_grad and not called.startswith("__"):
            self._lost(called, result)
        return result

    def _lost(self, called: str, result: Tensor) -> None:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.reason = "it computes under torch.no_grad() or inference_mode(); take that out of its forward"
        elif called in ("detach", "data", "detach_"):
            self.reason = f"it cuts the gradient off with .{called.rstrip('_')}; take that out of its forward"
        elif not result.is_floating_point():
            self.reason = (
                f"its outputs depend on the input only through {called}(), which gives {result.dtype} and has no "
                "derivative; return the scores before it"
            )
        else:
            self.reason = f"it goes through {called}(), which has no derivative"


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    found = []
    for value in (*args, *kwargs.values()):
        found += list(value) if isinstance(value, (list, tuple)) else [value]
    return found


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "") or resolve_name(func) or "an operation"
    if name == "__get__":  # a property such as .data or .shape
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return str(name).rpartition(".")[2]
