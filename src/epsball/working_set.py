"""How many samples pass through a model together on a CPU: as many as keep its largest tensor small."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from epsball.target_model import TargetModel

__all__ = ["Largest", "cut"]

# Of the largest tensor, for each thread. Above it a pass over a sample takes up to twice as long: caches are left, and
# from 32 MB on the C library asks the system for every tensor anew (benchmarks/working_set.py).
_BYTES = 8 * 2**20


class Largest:
    """The bytes of the largest tensor that a model's layers take or return for one sample; 0 while it is unknown."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def watch(self, model: TargetModel, x: Tensor) -> Iterator[None]:
        """Note the tensors of one pass over one sample x (1, *S)."""
        modules = [] if x.device.type != "cpu" else [m for held in model.modules() for m in held.modules()]
        if any(_compiled(m) for m in modules):
            yield  # a hook would have it compiled once more
        elif any(isinstance(m, (torch.jit.ScriptModule, torch.fx.GraphModule)) for m in modules):
            with _Operations(self):  # these have no layers to hook
                yield
        else:
            handles = [module.register_forward_hook(self._note) for module in modules]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def see(self, tensors: Any) -> None:
        """Take in the tensors that hold the sample; no batch makes others larger, such as weights."""
        for t in tree_leaves(tensors):
            if isinstance(t, Tensor) and t.shape[:1] == (1,) and t.device.type == "cpu":
                self.bytes = max(self.bytes, t.numel() * t.element_size())

    def _note(self, module: nn.Module, given: Any, returned: Any) -> None:
        self.see((given, returned))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what every operation makes. Not for models with compiled parts: these would never be compiled again."""

    def __init__(self, largest: Largest) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._largest = largest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self._largest.see(returned)
        return returned


def cut(batch: int, largest: int) -> list[slice]:
    """Cut a batch into equal parts, each as large as the largest tensor of one sample lets it be."""
    if not largest:
        return [slice(0, batch)]
    count = math.ceil(batch / max(1, _BYTES * torch.get_num_threads() // largest))
    size = math.ceil(batch / max(1, count)) or 1
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _compiled(module: nn.Module) -> bool:
    # Loaded by whoever compiled: importing it takes longer than many an attack.
    loaded = sys.modules.get("torch._dynamo.eval_frame")
    return getattr(module, "_compiled_call_impl", None) is not None or (
        loaded is not None and isinstance(module, loaded.OptimizedModule)
    )
