"""Random moves of blocks of entries to the faces of an ℓ∞ ball, kept where the gain rises: forward passes alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.batch import Batch, State, place
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.sets import LpBall
from epsball.sets.base import ConstraintSet
from epsball.tensors import expand

__all__ = ["move_blocks", "takes_moves"]

_TAG = 1 << 20  # of the moves' own random draws, beyond every attempt's
_LARGEST = 0.03  # share of a sample's entries in the first block, halved nine times on the way to the last one


def move_blocks(
    problem: Problem, constraint: ConstraintSet, state: State, active: Tensor, moves: int, *, stops: bool
) -> None:
    """Raise the gain of some samples, from where they stand, by up to so many moves with one forward pass each.

    A move takes a block to one side of the ball, as far as the bounds let it, every channel to its own. Blocks have
    the proportions of an image (C, H, W), are runs of a signal (C, N) or any entries of a flat sample (M,), and become
    smaller. It needs no gradient, so it goes on where gradients are zero or lead nowhere; by itself it needs thousands
    of passes.
    Source: Andriushchenko, Croce, Flammarion and Hein 2020 (Square Attack), here from the end of gradient steps.
    """
    batch = Batch.of(problem, constraint, state, problem.streams.fork(_TAG), active)
    gain = batch.objective.gain(problem.outputs(place(batch.x, batch.eta, batch.constraint)), batch.target)
    state.forwards[active] += 1
    for move in range(moves):
        streams = batch.streams.fork(move)
        block = _block(batch.x, streams, _LARGEST * 0.5 ** (9.0 * move / moves))
        eta = torch.where(block, batch.constraint.lmo(_sides(batch.x, streams), batch.x), batch.eta)
        outputs = problem.outputs(place(batch.x, eta, batch.constraint))
        state.forwards[batch.index] += 1
        now = batch.objective.gain(outputs, batch.target)
        higher = now > gain
        batch.eta, gain = torch.where(expand(higher, eta), eta, batch.eta), torch.where(higher, now, gain)
        if stops:
            done = higher & batch.objective.success(outputs, batch.target)
            if bool(done.any()):
                left = (~done).nonzero()[:, 0]
                batch.leave(state, done)
                batch, gain = batch.take(left), gain[left]
                if len(left) == 0:
                    return
    batch.leave(state, torch.ones_like(gain, dtype=torch.bool))


def takes_moves(constraint: ConstraintSet) -> bool:
    """Tell whether a set has the faces that blocks move to."""
    return isinstance(constraint, LpBall) and constraint.p == math.inf


def _sides(x: Tensor, streams: Generators) -> Tensor:
    """Draw the side of each channel, of a flat sample of each entry; (B, *S) of ±1."""
    shape = x.shape[1:]
    channels = (shape[0], *(1,) * (len(shape) - 1))
    return streams.fork(0).coin(channels, x.dtype).expand_as(x)


def _block(x: Tensor, streams: Generators, share: float) -> Tensor:
    """Draw which entries move, about this share and at least one; (B, *S) bool, equal in all channels."""
    shape = x.shape[1:]
    if len(shape) < 2:
        draw = streams.fork(1).uniform(shape, x.dtype)
        return (draw < share) | (draw == draw.flatten(1).amin(1).view(-1, *(1,) * len(shape)))
    spans = shape[1:]
    side = share ** (1.0 / len(spans))
    starts = streams.fork(1).uniform((len(spans),), x.dtype)
    block = torch.ones((len(x), 1, *spans), dtype=torch.bool, device=x.device)
    for axis, length in enumerate(spans):
        size = min(length, max(1, round(side * length)))
        start = (starts[:, axis] * (length - size + 1)).floor()[:, None]
        place_of = torch.arange(length, device=x.device)
        inside = (place_of >= start) & (place_of < start + size)
        block = block & inside.view(len(x), 1, *(length if n == axis else 1 for n in range(len(spans))))
    return block
