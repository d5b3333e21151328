"""Programs that take batches of certain sizes only, made to take any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["AnyBatch"]


class AnyBatch(nn.Module):
    """Run a batch of any size in parts of at most `most` samples, each filled up to `least` with copies of its last.

    What comes out for the copies is dropped, so their gradients are zero. Each sample's output is what the program
    gives it in a batch of its own size.
    """

    def __init__(self, program: Callable[[Tensor], Any], least: int, most: int | None) -> None:
        super().__init__()
        self.program, self.least, self.most = program, least, most

    def forward(self, x: Tensor) -> Any:
        """Return the program's outputs for x (B, *S), in the structure in which the program returns them."""
        parts = [x] if self.most is None else list(torch.split(x, self.most))
        found = [self._part(part) for part in parts]
        if len(found) == 1:
            return found[0]
        leaves = zip(*(pytree.tree_leaves(part) for part in found), strict=True)
        joined = [
            torch.cat(list(same)) if isinstance(same[0], Tensor) and same[0].dim() else same[0] for same in leaves
        ]
        return pytree.tree_unflatten(joined, pytree.tree_structure(found[0]))

    def _part(self, x: Tensor) -> Any:
        count = len(x)
        if count >= self.least:
            return self.program(x)
        padded = torch.cat([x, x[-1:].expand(self.least - count, *x.shape[1:])])
        size = len(padded)
        return pytree.tree_map(
            lambda value: value[:count] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value,
            self.program(padded),
        )
