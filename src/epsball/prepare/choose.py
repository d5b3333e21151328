"""Which copy of a model the passes are made on: compared with the model, timed where asked for, and remembered."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from epsball.errors import EpsballWarning
from epsball.prepare.compare import compare, direction, passes
from epsball.prepare.copies import Prepared, build, copyable
from epsball.prepare.forms import AUTO, NoCopyError, parts
from epsball.target_model import TargetModel

__all__ = ["prepared"]

_TRIED = (("fold",), ("channels_last",), ("fold", "channels_last"))
_ROUNDS = 4
_GAIN = 0.95  # a copy that takes more than this of the model's time is not worth its memory
_LEAST = 8  # samples below which a pass says nothing of a larger one

Bounds = tuple[float | Tensor, float | Tensor] | None


@dataclass
class _Known:
    """What is remembered of a model as long as it lives: its tensors as they were, copies by form, choices."""

    tensors: list[Tensor] = field(default_factory=list)
    marks: list[tuple[int, int]] = field(default_factory=list)
    copies: dict[tuple[str, ...], Prepared] = field(default_factory=dict)
    failed: dict[tuple[str, ...], NoCopyError] = field(default_factory=dict)
    chosen: dict[tuple[object, ...], tuple[str, ...]] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def prepared(model: TargetModel, x: Tensor, prepare: str, bounds: Bounds) -> TargetModel:
    """Return the copy on which the passes for samples like x (B, *S) are made, or the model itself.

    prepare: as `check_prepare` returns it. To be called while the model is in eval mode with frozen parameters. What is
    found once holds for later calls; where the model's tensors have changed since, the copy is made again, and where
    copy and model no longer agree, the model itself serves.
    """
    key = (prepare, x.shape[1:], x.dtype, x.device)
    try:
        known = _known(copyable(model))
        if key not in known.chosen:
            auto = AUTO in parts(prepare)
            known.chosen[key] = _fastest(known, model, x, prepare, bounds) if auto else parts(prepare)
        form = known.chosen[key]
        return _copy(known, model, form, x, bounds) if form else model
    except NoCopyError as reason:
        if AUTO not in parts(prepare):
            warnings.warn(
                f"prepare={prepare!r} is not used, and all passes are made on the model itself: {reason}.",
                EpsballWarning,
                stacklevel=6,
            )
        return model


def _known(module: nn.Module) -> _Known:
    """Return what is remembered of a module, without its copies if a tensor of it has changed since."""
    known = _KNOWN.setdefault(module, _Known())
    tensors = [*module.parameters(), *module.buffers()]
    # `.data = ` moves the storage without counting a change, an in-place operation counts one.
    marks = [(t._version, t.data_ptr()) for t in tensors]
    same = len(tensors) == len(known.tensors) and all(a is b for a, b in zip(tensors, known.tensors, strict=True))
    if not same or marks != known.marks:
        known.tensors, known.marks = tensors, marks
        known.copies.clear()
        known.failed.clear()
    return known


def _copy(known: _Known, model: TargetModel, form: tuple[str, ...], x: Tensor, bounds: Bounds) -> Prepared:
    """Return the copy of a form, one that was made before if it still computes what the model does."""
    if form in known.failed:
        raise known.failed[form]
    found = known.copies.get(form)
    if found is not None:
        found = copy.copy(found)
        found.selector = model.selector
        try:  # what is no tensor of the model, such as a flag, may have changed
            found.gap = compare(model, found, x, bounds)
            return found
        except NoCopyError:
            known.copies.pop(form)
    try:
        found = build(model, form, x)
        found.gap = compare(model, found, x, bounds)
    except NoCopyError as reason:
        known.failed[form] = reason
        raise
    known.copies[form] = found
    return found


def _fastest(known: _Known, model: TargetModel, x: Tensor, prepare: str, bounds: Bounds) -> tuple[str, ...]:
    """Return the form whose passes take the least time on some of the samples, () where none is worth it."""
    best = _race(known, model, x, _TRIED, bounds)
    if "compile" in parts(prepare):
        best = _race(known, model, x, [best, (*best, "compile")], bounds)
    for form in list(known.copies):
        if form != best and form not in known.chosen.values():
            known.copies.pop(form)
    return best


def _race(
    known: _Known, model: TargetModel, x: Tensor, forms: Sequence[tuple[str, ...]], bounds: Bounds
) -> tuple[str, ...]:
    runners: dict[tuple[str, ...], TargetModel] = {(): model}
    for form in forms:
        try:
            made = _copy(known, model, form, x, bounds) if form else None
        except NoCopyError:
            continue
        # A form of which a part changes nothing is another one.
        if made is not None and made.form == form:
            runners[form] = made
    if len(runners) == 1:
        return ()
    some = x[: max(_LEAST, len(x) // 3)]
    along = direction(model, some)
    seconds: dict[tuple[str, ...], list[float]] = {form: [] for form in runners}
    for _ in range(_ROUNDS):
        for form, runner in runners.items():
            _synchronise(x.device)
            started = time.perf_counter()
            passes(runner, some, along)
            _synchronise(x.device)
            seconds[form].append(time.perf_counter() - started)
    share = {
        form: statistics.median(a / b for a, b in zip(taken, seconds[()], strict=True))
        for form, taken in seconds.items()
    }
    best = min(share, key=lambda form: share[form])
    return best if share[best] <= _GAIN else ()


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps", "xpu"):
        getattr(torch, device.type).synchronize()
