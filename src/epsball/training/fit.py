"""The training loop: one path for CPU and accelerator, every step's randomness its own, so that it can be resumed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from epsball.networks import TrainingRecipe
from epsball.training.checkpoint import Checkpoint

__all__ = ["Progress", "fit"]

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the loss of that step."""

MOMENTUM = 0.9


def fit(
    model: nn.Module,
    recipe: TrainingRecipe,
    x: torch.Tensor,
    target: torch.Tensor,
    seed: int,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> float:
    """Minimise the recipe's mean loss over (x, target) from where the checkpoint stands; return the seconds in all.

    Convolutions run with channels last, which a CPU does faster too; on an accelerator in
    bfloat16 where autocast takes it. FloatingPointError if the loss is not finite.
    """
    start = time.perf_counter()
    place = x.device
    optimiser = _optimiser(model, recipe)
    done = checkpoint.restore(model, optimiser)
    epoch_steps = math.ceil(len(x) / recipe.batch_size)
    steps = recipe.epochs * epoch_steps
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    order = torch.Generator().manual_seed(seed)
    model.train()
    with _reproducible(place), _dropout(model, recipe.dropout):
        for epoch in range(recipe.epochs):
            shuffled = torch.randperm(len(x), generator=order).to(place)
            for index, rows in enumerate(torch.split(shuffled, recipe.batch_size)):
                step = epoch * epoch_steps + index
                if step < done:
                    continue
                _seed(place, seed, step)
                rate = _rate(recipe, step, steps)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                value = _step(model, recipe, optimiser, x[rows], target[rows], step / steps)
                if not math.isfinite(value):
                    raise FloatingPointError(f"training diverged: the loss is {value} at step {step + 1} of {steps}")
                checkpoint.offer(model, optimiser, step + 1, time.perf_counter() - start)
                if progress is not None:
                    progress(step + 1, steps, value)
    model.eval()
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if recipe.half:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
    return checkpoint.seconds + time.perf_counter() - start


def _step(
    model: nn.Module,
    recipe: TrainingRecipe,
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    target: torch.Tensor,
    share: float,
) -> float:
    """Take one step; share: of all steps, done before. Return the loss."""
    optimiser.zero_grad()
    given = x if recipe.augment is None else recipe.augment(x)
    side = next((side for until, side in recipe.sizes if share < until), None)
    if side is not None:
        given = nn.functional.interpolate(given, (side, side), mode="area")
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type != "cpu"):
        outputs = model(given)
    loss = recipe.loss(outputs.float(), given if recipe.target_is_input else target)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())


def _optimiser(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            model.parameters(), recipe.learning_rate, MOMENTUM, weight_decay=recipe.weight_decay, nesterov=True
        )
    return torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _rate(recipe: TrainingRecipe, step: int, steps: int) -> float:
    """Return the learning rate of a step: up in a line over the share `warm_up`, then down to 0 along a cosine."""
    rising = recipe.warm_up * steps
    if step < rising:
        return recipe.learning_rate * (step + 1) / (rising + 1)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (steps - rising)))


def _seed(place: torch.device, seed: int, step: int) -> None:
    """Seed the global generators, which dropout and augmentation draw from, for this step alone."""
    mixed = int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()) >> 1
    torch.default_generator.manual_seed(mixed)
    if place.type != "cpu":
        torch.get_device_module(place).manual_seed(mixed)


@contextmanager
def _dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Give all dropout layers this probability for a while."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    layers = [module for module in model.modules() if isinstance(module, kinds)] if probability is not None else []
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = probability or 0.0
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.p = own


@contextmanager
def _reproducible(place: torch.device) -> Iterator[None]:
    """Give the global generators back as they were, and let convolutions take deterministic algorithms."""
    index = [] if place.type == "cpu" else [place.index or 0]
    kind = "cuda" if place.type == "cpu" else place.type
    with (
        torch.random.fork_rng(devices=index, device_type=kind),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield
