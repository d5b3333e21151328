"""Random moves of blocks of entries to the faces of an ℓ∞ ball, kept where the gain rises: forward passes alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from epsball.batch import Batch, State, place
from epsball.blocks import channel_signs, one_block
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.sets import LpBall
from epsball.sets.base import ConstraintSet
from epsball.tensors import expand

__all__ = ["move_blocks", "takes_moves"]

_TAG = 1 << 20  # of the moves' own random draws, beyond every attempt's
_LARGEST = 0.2  # share of a sample's entries in the first block, halved nine times on the way to the last one
_EXCHANGED = 0.5  # share of the moves that take a block of another end


def move_blocks(
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    active: Tensor,
    moves: int,
    ends: list[Tensor],
    *,
    stops: bool,
) -> None:
    """Raise the gain of some samples, from where they stand, by up to so many moves with one forward pass each.

    A move takes a block to one side of the ball, as far as the bounds let it, every channel to its own, or, every other
    time, to what it is in one of the sample's other `ends` (each (b, *S)). Blocks have the proportions of an image
    (C, H, W), are runs of a signal (C, N) or any entries of a flat sample (M,), and become smaller. It needs no
    gradient, so it goes on where gradients are zero or lead nowhere; by itself it needs thousands of passes.
    Source: Andriushchenko, Croce, Flammarion and Hein 2020 (Square Attack), here from the ends of gradient steps.
    """
    batch = Batch.of(problem, constraint, state, problem.streams.fork(_TAG), active)
    others = torch.stack(ends) if ends else None
    gain = batch.objective.gain(problem.outputs(place(batch.x, batch.eta, batch.constraint)), batch.target)
    state.forwards[active] += 1
    for move in range(moves):
        streams = batch.streams.fork(move)
        block = one_block(batch.x, streams.fork(1), _LARGEST * 0.5 ** (9.0 * move / moves))
        towards = batch.constraint.lmo(channel_signs(batch.x, streams.fork(0)), batch.x)
        if others is not None:
            towards = _exchanged(towards, others, streams.fork(2))
        eta = torch.where(block, towards, batch.eta)
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
                others = None if others is None else others[:, left]
                if len(left) == 0:
                    return
    batch.leave(state, torch.ones_like(gain, dtype=torch.bool))


def _exchanged(eta: Tensor, others: Tensor, streams: Generators) -> Tensor:
    """Put one of the other ends of a sample, (K, b, *S), in the place of η, by the toss of a coin; (b, *S)."""
    draw = streams.uniform((1,), eta.dtype)[:, 0] / _EXCHANGED
    pick = (draw * len(others)).long().clamp_max(len(others) - 1)
    return torch.where(expand(draw < 1.0, eta), others[pick, torch.arange(len(eta), device=eta.device)], eta)


def takes_moves(constraint: ConstraintSet) -> bool:
    """Tell whether a set has the faces that blocks move to."""
    return isinstance(constraint, LpBall) and constraint.p == math.inf
