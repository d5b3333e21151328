"""The model under attack: evaluated in eval mode with frozen parameters, counted, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.validation import check_callable

__all__ = ["TargetModel", "describe_outputs"]

Selector = str | int | Callable[[Any], Tensor]


class TargetModel:
    """A model x (B, *S) -> outputs (B, *O), with a selector for outputs that are dicts, tuples or objects.

    model: a torch.nn.Module or any callable. selector: a key or attribute name, an index, or a function of the output.

    As a context manager it puts every sub-module in eval mode and stops gradients of the parameters; on exit, also
    after an error, each one's own mode and flag return. `.grad` and hooks are never touched.
    """

    model: Callable[[Tensor], Any]
    selector: Selector | None

    def __init__(self, model: Callable[[Tensor], Any] | TargetModel, selector: Selector | None = None) -> None:
        if isinstance(model, TargetModel):
            selector = model.selector if selector is None else selector
            model = model.model
        self.model = check_callable("model", model)
        self.selector = selector
        self._modes: list[tuple[nn.Module, bool]] = []
        self._flags: list[nn.Parameter] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the selected outputs, (B, *O)."""
        outputs = self.model(x.clone())  # a model may change its input in place
        selected = outputs if self.selector is None else self.select(outputs)
        if not isinstance(selected, Tensor):
            raise InputError(
                f"expected the model to return a tensor, got {describe_outputs(outputs)}; pick one with "
                "eb.TargetModel(model, selector=key, index or function)."
            )
        if selected.shape[:1] != x.shape[:1]:
            raise InputError(
                f"expected one output for each of the {len(x)} samples, got shape {tuple(selected.shape)}."
            )
        return selected

    def __enter__(self) -> Self:
        for module in self._modules():
            self._modes += [(m, m.training) for m in module.modules()]
            self._flags += [p for p in module.parameters() if p.requires_grad]
        # The flags themselves, as on exit: eval() and train() may be overridden with effects that nothing undoes.
        for module, _ in self._modes:
            module.training = False
        for parameter in self._flags:
            parameter.requires_grad_(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Each module's own flag, not train() on the root: users freeze some layers in eval mode.
        for module, mode in self._modes:
            module.training = mode
        for parameter in self._flags:
            parameter.requires_grad_(True)
        self._modes, self._flags = [], []

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the wrapped module, none for a plain callable."""
        return [p for module in self._modules() for p in module.parameters()]

    @property
    def convolutional(self) -> bool:
        """Whether the model contains a convolution (which decides how class gradients are batched)."""
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        modules = self._modules()
        return not modules or any(isinstance(m, kinds) for module in modules for m in module.modules())

    def _modules(self) -> list[nn.Module]:
        if isinstance(self.model, nn.Module):
            return [self.model]
        return list(dict.fromkeys(_held(self.model, 3)))

    def select(self, outputs: Any) -> Any:
        """Return what the selector picks from a model's outputs; InputError, with what there is, if it is not there."""
        if callable(self.selector):
            return self.selector(outputs)
        try:
            if isinstance(self.selector, str) and not isinstance(outputs, dict):
                return getattr(outputs, self.selector)
            return outputs[self.selector]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise InputError(
                f"selector {self.selector!r} does not fit the model's output, {describe_outputs(outputs)}."
            ) from error


def _held(value: Any, depth: int) -> Iterator[nn.Module]:
    """Find the modules that a callable holds, as `TargetModel` says."""
    if isinstance(value, nn.Module):
        yield value
        return
    if depth == 0 or isinstance(value, (Tensor, str, bytes, type, ModuleType)):
        return
    if isinstance(value, (list, tuple, dict)):
        inner: list[Any] = list(value.values() if isinstance(value, dict) else value)
    else:
        code, names = getattr(value, "__code__", None), getattr(value, "__globals__", {})
        inner = [getattr(value, name, None) for name in ("__self__", "func", "args", "keywords")]
        inner += [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _filled(cell)]
        inner += [names.get(name) for name in getattr(code, "co_names", ())]
        inner += list(vars(value).values()) if code is None and hasattr(value, "__dict__") else []
    for item in inner:
        yield from _held(item, depth - 1)


def _filled(cell: Any) -> bool:
    """Tell whether a closure's cell has a value yet."""
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def describe_outputs(outputs: Any) -> str:
    """Say what a model returned, with the keys or the length from which a selector can be chosen."""
    if isinstance(outputs, dict):
        return f"a dict with keys {', '.join(map(repr, outputs))}"
    if isinstance(outputs, (tuple, list)):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    return type(outputs).__name__


def stacked(models: list[TargetModel]) -> Callable[[Tensor], Tensor]:
    """Return x -> the outputs of all models, (B, models, K)."""

    def outputs(x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in models], 1)

    return outputs
