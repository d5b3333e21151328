"""What the catalogue says about a network: its shape, its task, where it comes from, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Augment", "Loss", "NetworkSpec", "Pairs", "Part", "TrainingRecipe", "crop_and_flip"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Augment = Callable[[torch.Tensor], torch.Tensor]
Pairs = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Part = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[nn.Module, torch.Tensor, torch.Tensor]]

CROP_MARGIN = 4  # pixels of zeros around an image of 32x32, as usual for CIFAR-10


def crop_and_flip(x: torch.Tensor) -> torch.Tensor:
    """Return each image (B, C, H, W) moved by up to 4 pixels either way, zeros moving in, and mirrored half the time.

    Drawn from PyTorch's global generator on the CPU: the same draws whatever the device.
    """
    count, _, height, width = x.shape
    down, across = torch.randint(2 * CROP_MARGIN + 1, (2, count, 1))
    columns = torch.arange(width) + across
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns).to(x.device)
    rows = (torch.arange(height) + down).to(x.device)
    padded = nn.functional.pad(x, (CROP_MARGIN,) * 4)
    image = torch.arange(count, device=x.device)[:, None, None]
    # Channels last while indexing: one gather of whole pixels.
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained; the learning rate falls to zero along a cosine.

    loss             (outputs, target) -> mean loss over the batch; a named function, its name goes on the card
    target_is_input  the reference output is the input itself: autoencoders
    optimiser        "adamw", or "sgd": with Nesterov's momentum of 0.9
    warm_up          share of all steps over which the learning rate first rises from 0
    augment          x -> x, what each batch of training inputs goes through; it draws from PyTorch's CPU generator
    sizes            ((share, side), ...): until that share of the steps is done, images are scaled to side x side.
                     Small images first are several times faster on a CPU, and cost little if the end is at full size
    dropout          probability for all dropout layers while training; None: the network's own
    half             weights are rounded to half precision at the end, before the test error is measured: they ship so
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss: Loss = nn.functional.cross_entropy
    target_is_input: bool = False
    optimiser: Literal["adamw", "sgd"] = "adamw"
    warm_up: float = 0.0
    augment: Augment | None = None
    sizes: tuple[tuple[float, int], ...] = ()
    dropout: float | None = None
    half: bool = False


@dataclass(frozen=True)
class NetworkSpec:
    """A row of the catalogue.

    data         the data set it is trained on, a name in `epsball.data`
    input_shape  S, without the batch dimension, in the data's units: pixels in [0, 1] go in directly
    outputs      number of outputs K: logits of a classifier, all values of a regression model's output
    reference    where the architecture is described
    build        returns the module with fresh weights, drawn from PyTorch's global generator
    recipe       how it is trained where there is time, an accelerator for the large ones
    short        how it is trained on a CPU of few cores where `recipe` would take days; None: also by `recipe`
    pairs        samples of the data -> (inputs, reference outputs), where both are made of them, such as grey images
                 and colours; None: the inputs are the samples
    part         (network, inputs, reference outputs) -> (the part that is trained, its inputs, its reference outputs),
                 with the rest of the network made ready: a frozen one is run once; None: all of it is trained.
                 Both come from and stay on the network's device
    multiple     fully convolutional: height and width may be any multiples of this; None: only those of input_shape
    maps         the output is an image of so many channels, as large as the input; None: of input_shape where the
                 reference output is the input, else (K,)
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
    short: TrainingRecipe | None = None
    pairs: Pairs | None = None
    part: Part | None = None
    multiple: int | None = None
    maps: int | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the output for one sample of `input_shape`."""
        if self.maps is not None:
            return (self.maps, *self.input_shape[1:])
        return self.input_shape if self.recipe.target_is_input else (self.outputs,)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether inputs may have this shape, without the batch dimension."""
        if self.multiple is None or len(shape) != 3:
            return shape == self.input_shape
        fits = all(size > 0 and size % self.multiple == 0 for size in shape[1:])
        return shape[0] == self.input_shape[0] and fits
