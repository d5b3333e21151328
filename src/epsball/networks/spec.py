"""What the catalogue says about a network: its shape, its task, where it comes from, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Loss", "NetworkSpec", "TrainingRecipe"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained: AdamW, the learning rate falling to zero along a cosine.

    loss             (outputs, target) -> mean loss over the batch; a named function, its name goes on the card
    target_is_input  the reference output is the input itself: autoencoders
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss: Loss = nn.functional.cross_entropy
    target_is_input: bool = False


@dataclass(frozen=True)
class NetworkSpec:
    """A row of the catalogue.

    data         the data set it is trained on, a name in `epsball.data`
    input_shape  S, without the batch dimension, in the data's units: pixels in [0, 1] go in directly
    outputs      number of outputs K: logits of a classifier, all values of a regression model's output
    reference    where the architecture is described
    build        returns the module with fresh weights, drawn from PyTorch's global generator
    """

    name: str
    summary: str
    data: str
    input_shape: tuple[int, ...]
    outputs: int
    task: Literal["classification", "regression"]
    reference: str
    build: Callable[[], nn.Module]
    recipe: TrainingRecipe

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one sample's output: that of the input for an autoencoder, else (K,)."""
        return self.input_shape if self.recipe.target_is_input else (self.outputs,)
