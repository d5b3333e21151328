"""A frozen copy of a model that shares the tensors which it does not change."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from epsball.prepare.fold import folded
from epsball.prepare.forms import NoCopyError
from epsball.target_model import TargetModel

__all__ = ["Prepared", "build", "copyable", "several_backwards"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Prepared(TargetModel):
    """A copy of a model for the passes of an attack: x (B, *S) -> outputs (B, *O) of the type of x.

    form: the parts that were made of it. gap: how far its outputs were from the model's own where the two were
    compared, over the largest output of the sample.
    """

    def __init__(self, module: nn.Module, model: TargetModel, form: tuple[str, ...]) -> None:
        super().__init__(_Compiled(module) if "compile" in form else module, model.selector)
        self.form, self.gap = form, 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the selected outputs, (B, *O)."""
        if "channels_last" in self.form:
            x = x.contiguous(memory_format=torch.channels_last)
        if "bfloat16" not in self.form:
            return super().__call__(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().__call__(x).to(x.dtype)


class _Compiled:
    """A compiled module for batches of every size, but for one sample, which would be compiled apart."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.run = module, torch.compile(module)

    def __call__(self, x: Tensor) -> Any:
        if len(x) < 2:
            return self.module(x)
        import torch._dynamo

        # The number of samples shrinks as they finish. Without a promise of that: a model may need a fixed one.
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return self.run(x)


def several_backwards() -> AbstractContextManager[Any]:
    """Let compiled models be differentiated several times, once for each class, as long as this lasts."""
    import torch._functorch.config as settings

    # Else the backward pass takes buffers of the forward pass over, and there can be only one.
    return settings.patch(donated_buffer=False) if hasattr(settings, "donated_buffer") else nullcontext()


def copyable(model: TargetModel) -> nn.Module:
    """Return the module that can be copied; NoCopyError says why there is none."""
    module = model.model
    if not isinstance(module, nn.Module):
        raise NoCopyError("it is a function, and only a torch.nn.Module can be copied")
    if model.randomised:
        raise NoCopyError("it draws random numbers, so no two passes agree")
    if any(getattr(m, name, None) for m in module.modules() for name in _HOOKS):
        raise NoCopyError("it has hooks (also those of an old weight_norm), which belong to the model itself")
    return module


def build(model: TargetModel, form: tuple[str, ...], x: Tensor) -> Prepared:
    """Make the copy, of those parts of the form that change something; NoCopyError says why there is none.

    To be called while the model is in eval mode with frozen parameters; x: (b, *S), some samples.
    """
    module = copyable(model)
    if "bfloat16" in form and not (x.dtype == torch.float32 and has_bfloat16(x.device)):
        raise NoCopyError(f"bfloat16 needs float32 samples and hardware that multiplies it, got {x.dtype}, {x.device}")
    try:
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        twin, count = copy.deepcopy(module, shared), 0
        if "fold" in form:
            twin, count = folded(twin)
    except Exception as error:  # whatever the user's classes raise when they are copied
        raise NoCopyError(f"it cannot be copied ({type(error).__name__}: {error})") from error
    for part in twin.modules():
        part.training = False
    made = {"fold": count > 0, "channels_last": "channels_last" in form and x.dim() == 4 and _relay(twin)}
    kept = tuple(part for part in form if made.get(part, True))
    if not kept:
        missing = {"fold": "batch norm behind a convolution or linear layer", "channels_last": "convolution of images"}
        raise NoCopyError(f"it has no {' and no '.join(missing[part] for part in form)}")
    return Prepared(twin, model, kept)


def _relay(module: nn.Module) -> bool:
    """Lay the weights of convolutions of images out channels last; tell whether there were any."""
    laid: dict[int, nn.Parameter] = {}
    for part in module.modules():
        weight = part._parameters.get("weight")
        if type(part) in (nn.Conv2d, nn.ConvTranspose2d) and weight is not None:
            if id(weight) not in laid:
                moved = weight.detach().contiguous(memory_format=torch.channels_last)
                laid[id(weight)] = nn.Parameter(moved, requires_grad=False)
            part._parameters["weight"] = laid[id(weight)]
    return bool(laid)


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    asks = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16")]
    return device.type == "cpu" and any(ask() for ask in asks if ask is not None)
