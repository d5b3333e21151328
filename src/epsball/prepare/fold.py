"""Batch norm folded into the convolution or the fully connected layer before it, found in a symbolic trace."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["folded"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The very classes: a subclass, and a parametrised layer is one, may compute something else.
_LINEAR: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(module: nn.Module) -> tuple[nn.Module, int]:
    """Return a module of the same function, and how many batch norms it is spared.

    module: in eval mode, and the caller's to take apart; of its tensors none is changed. What cannot be traced (control
    flow, calls outside torch) stays as it is, and what is inside it is looked at by itself.
    """
    signature = inspect.signature(module.forward).parameters.values()
    fixed = {p.name: p.default for p in signature if p.default is not p.empty}
    plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature) and len(signature) == len(fixed) + 1
    tracer = _Tracer()
    try:
        graph = tracer.trace(module, concrete_args=fixed or None) if plain else None
    except Exception:  # whatever the user's forward raises on symbols in place of tensors
        graph = None
    if graph is None:
        return module, _inside(module)
    count = _fold(graph, module, tracer.path)
    count += sum(_inside(module.get_submodule(path)) for path in tracer.opaque)
    return (fx.GraphModule(module, graph), count) if count else (module, 0)


def _inside(module: nn.Module) -> int:
    """Fold in the children of a module whose own forward cannot be traced."""
    count = 0
    for name, child in list(module.named_children()):
        # How a child with further arguments is called is not known here.
        if type(child).__module__.startswith("torch.nn.") and not isinstance(child, nn.Sequential):
            found, more = child, _inside(child)
        elif len(inspect.signature(child.forward).parameters) == 1:
            found, more = folded(child)
        else:
            found, more = child, _inside(child)
        if found is not child:
            setattr(module, name, found)
        count += more
    return count


class _Tracer(fx.Tracer):
    """Traces what it can: a module whose forward cannot be traced becomes one node."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: list[str] = []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before = set(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever the user's forward raises on symbols in place of tensors
            for node in reversed([node for node in self.graph.nodes if node not in before]):
                self.graph.erase_node(node)
            path = self.path_of_module(m)
            self.opaque = [other for other in self.opaque if not f"{other}.".startswith(f"{path}.")] + [path]
            return self.create_proxy("call_module", path, args, kwargs)

    @staticmethod
    def path(module: nn.Module, target: Any) -> nn.Module:
        """Return the module that a node calls."""
        return module.get_submodule(str(target))


def _fold(graph: fx.Graph, root: nn.Module, find: Callable[[nn.Module, Any], nn.Module]) -> int:
    """Fold each batch norm whose input is the output of a layer that nothing else reads; change graph and root."""
    count = 0
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, layer = find(root, node.target), find(root, before.target)
        if type(norm) not in _NORMS or type(layer) not in _LINEAR or not _fit(layer, norm):
            continue
        # A layer that is called in several places gets one folded layer for each of them.
        name = f"folded_{count}"
        while hasattr(root, name):
            name += "_"
        root.add_module(name, _merge(layer, norm))
        before.target = name
        node.replace_all_uses_with(before)
        graph.erase_node(node)
        count += 1
    return count


def _fit(layer: nn.Module, norm: nn.Module) -> bool:
    """Tell whether the norm is an affine map of the layer's own outputs."""
    # Without running statistics, and in training mode, it depends on the batch.
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return bool(norm.num_features == width)


def _merge(layer: Any, norm: Any) -> nn.Module:
    """Return a layer x -> norm(layer(x)), with tensors of its own."""
    weight: Tensor = layer.weight
    wide = torch.float64 if weight.device.type in ("cpu", "cuda") else weight.dtype
    with torch.no_grad():
        scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.to(wide)
        shift = -norm.running_mean.to(wide) if layer.bias is None else (layer.bias - norm.running_mean).to(wide)
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias.to(wide)
        if isinstance(layer, _TRANSPOSED):
            # (in, out / groups, *kernel): the outputs of one group stand in the rows of that group.
            grouped = weight.to(wide).reshape(layer.groups, -1, *weight.shape[1:])
            columns = scale.reshape(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
            merged = (grouped * columns).flatten(0, 1)
        else:
            merged = weight.to(wide) * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        new: nn.Module = copy.copy(layer)
        new._parameters = {
            "weight": nn.Parameter(merged.to(weight.dtype), requires_grad=False),
            "bias": nn.Parameter(bias.to(weight.dtype), requires_grad=False),
        }
    return new
