"""Batches that fit the memory: where it runs out, half as many samples at a time."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from epsball.errors import EpsballWarning

__all__ = ["Batches", "out_of_memory"]

T = TypeVar("T")

# What torch and its libraries say where they raise no torch.OutOfMemoryError.
_SAYS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out, on a device or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAYS)


@dataclass
class Batches:
    """Cuts samples into batches of `size`, or of what `reduced` holds for a kind of work that needed smaller ones."""

    size: int
    reduced: dict[str, int] = field(default_factory=dict)

    def each(self, name: str, rows: slice, function: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """Yield each batch of `rows` with what the function makes of it; MemoryError if one sample is too many."""
        start = rows.start
        while start < rows.stop:
            part = slice(start, min(start + self.reduced.get(name, self.size), rows.stop))
            found = self._attempt(name, part, function)
            if found is not None:
                yield part, found[0]
                start = part.stop

    def _attempt(self, name: str, part: slice, function: Callable[[slice], T]) -> tuple[T] | None:
        count = part.stop - part.start
        try:
            return (function(part),)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if count == 1:
                raise MemoryError(
                    f"the memory does not hold even one sample of {name}: use a device with more memory, float32, "
                    "smaller inputs, or leave this attack out."
                ) from error
        # Here the exception is gone, and with it the frames that held the tensors of the attempt.
        self._halve(name, count)
        return None

    def _halve(self, name: str, count: int) -> None:
        if not self.reduced:
            warnings.warn(
                f"out of memory in {name} with {count:,} samples at a time; going on with half as many, as often as it "
                "takes. The results do not depend on it, but for the draws of --eot; the manifest says what was used.",
                EpsballWarning,
                stacklevel=2,
            )
        self.reduced[name] = count // 2
        gc.collect()  # frames may be parts of cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
