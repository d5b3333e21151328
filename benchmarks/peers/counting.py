"""The passes that an attack makes, counted outside it: a module around the model, the same for every library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Counting(nn.Module):
    """The model itself, with a count of the samples that pass through it.

    forwards: samples that went forward, however they were batched. backwards: samples whose gradient with respect to
    the outputs arrived, once for each backward pass; a vectorised pass for several classes counts once for each class.
    training_seen: whether a forward was made in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.forwards = 0
        self.backwards = 0
        self.training_seen = False

    def forward(self, x: Tensor) -> Any:
        outputs = self.model(x)
        self.forwards += len(x)
        self.training_seen |= self.model.training
        if outputs.requires_grad:
            outputs.register_hook(self._backward)
        return outputs

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += _samples(gradient)


def _samples(gradient: Tensor) -> int:
    """Count the samples of a gradient, each as often as a vectorised pass holds it."""
    whole = gradient
    # autograd.grad(is_grads_batched=True) batches in the older way, torch.func in the newer.
    if torch._C._functorch.is_legacy_batchedtensor(whole):
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        whole = torch._remove_batch_dim(whole, level, 1, 0)
    while torch._C._functorch.is_batchedtensor(whole):
        whole = torch._C._functorch.get_unwrapped(whole)
    return len(gradient) * (whole.numel() // max(1, gradient.numel()))
