"""The model under attack: evaluated in eval mode with frozen parameters, counted, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.validation import check_callable, check_count, check_seed

__all__ = ["TargetModel", "describe_outputs"]

Selector = str | int | Callable[[Any], Tensor]


class TargetModel:
    """A model x (B, *S) -> outputs (B, *O), with a selector for outputs that are dicts, tuples or objects.

    model: a torch.nn.Module or any callable. selector: a key or attribute name, an index, or a function of the output.
    draws: for a model that draws random numbers (dropout that stays on, noise, random crops) the outputs are the mean
    over so many forward passes, and gradients are the mean's: expectation over transformation (Athalye et al. 2018).
    Memory and time grow with it, a pass counts as one. seed: of these draws; an attack takes its own.

    As a context manager it puts every sub-module in eval mode and stops gradients of the parameters; on exit, also
    after an error, each one's own mode and flag return, and with draws the random numbers go on as if nothing had been
    drawn. `.grad` and hooks are never touched.
    """

    model: Callable[[Tensor], Any]
    selector: Selector | None
    draws: int
    seed: int

    def __init__(
        self,
        model: Callable[[Tensor], Any] | TargetModel,
        selector: Selector | None = None,
        *,
        draws: int | None = None,
        seed: int | None = None,
    ) -> None:
        if isinstance(model, TargetModel):
            selector = model.selector if selector is None else selector
            draws, seed = model.draws if draws is None else draws, model.seed if seed is None else seed
            model = model.model
        self.model = check_callable("model", model)
        self.selector = selector
        self.draws, self.seed = 1 if draws is None else draws, check_seed(0 if seed is None else seed)
        check_count("draws", self.draws)
        self._modes: list[tuple[nn.Module, bool]] = []
        self._flags: list[nn.Parameter] = []
        self._random = ExitStack()
        self._spares: bool | None = None  # whether the model was seen to leave its input as it came

    @property
    def randomised(self) -> bool:
        """Whether the outputs are a mean over random draws."""
        return self.draws > 1

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the selected outputs, (B, *O), or their mean over the draws."""
        outputs = self.once(x)
        for _ in range(self.draws - 1):
            outputs = outputs + self.once(x)
        return outputs / self.draws if self.randomised else outputs

    def once(self, x: Tensor) -> Tensor:
        """Compute the selected outputs of one forward pass, (B, *O)."""
        outputs = self._ran(x)
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

    def _ran(self, x: Tensor) -> Any:
        """Run the model on a copy, since it may change its input in place, or on a leaf where it was seen not to."""
        if self._spares and x.requires_grad and x.is_leaf:
            try:
                return self.model(x)
            except RuntimeError as error:
                if "leaf Variable that requires grad" not in str(error):
                    raise
                self._spares = False  # it depends on the input
        given = x.clone()
        outputs = self.model(given)
        if self._spares is None and not x.requires_grad:
            self._spares = torch.equal(given, x)
        return outputs

    def __enter__(self) -> Self:
        for module in self.modules():
            self._modes += [(m, m.training) for m in module.modules()]
            self._flags += [p for p in module.parameters() if p.requires_grad]
        # The flags themselves, as on exit: eval() and train() may be overridden with effects that nothing undoes.
        for module, _ in self._modes:
            module.training = False
        for parameter in self._flags:
            parameter.requires_grad_(False)
        if self.randomised:
            # Not torch.manual_seed: it would also seed devices that are not brought back.
            devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
            self._random.enter_context(torch.random.fork_rng(devices=devices))
            torch.default_generator.manual_seed(self.seed)
            if devices:
                torch.cuda.manual_seed_all(self.seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._random.close()
        # Each module's own flag, not train() on the root: users freeze some layers in eval mode.
        for module, mode in self._modes:
            module.training = mode
        for parameter in self._flags:
            parameter.requires_grad_(True)
        self._modes, self._flags = [], []

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the wrapped module, none for a plain callable."""
        return [p for module in self.modules() for p in module.parameters()]

    @property
    def convolutional(self) -> bool:
        """Whether the model contains a convolution (which decides how class gradients are batched)."""
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        modules = self.modules()
        # A vectorised backward pass cannot draw random numbers.
        return (
            self.randomised or not modules or any(isinstance(m, kinds) for module in modules for m in module.modules())
        )

    def modules(self) -> list[nn.Module]:
        """Return the wrapped module, or those that a plain callable holds."""
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
