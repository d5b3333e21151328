"""Random moves of blocks of entries to the faces of an ℓ∞ ball, kept where the gain rises: forward passes alone."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from epsball.batch import Batch, place
from epsball.blocks import channel_signs, one_block
from epsball.problem import Problem
from epsball.randomness import Generators
from epsball.sets import LpBall
from epsball.sets.base import ConstraintSet
from epsball.state import State
from epsball.tensors import expand

__all__ = ["Ends", "move_blocks", "takes_moves"]

_TAG = 1 << 20  # of the moves' own random draws, beyond every attempt's
_LARGEST = 0.2  # share of a sample's entries in the first block, halved nine times on the way to the last one
_ENDS = 20  # how many ends are kept: what they take in memory must not grow with the passes
_EXCHANGED = 0.5  # share of the moves that take a block of another end


@dataclass
class Ends:
    """Where the last few attempts ended."""

    kept: deque[tuple[int, Tensor, Tensor]] = field(default_factory=partial(deque, maxlen=_ENDS))

    def add(self, attempt: int, index: Tensor, eta: Tensor) -> None:
        """Keep where an attempt on the samples `index` ended, η (b, *S)."""
        self.kept.append((attempt, index, eta))

    def of(self, index: Tensor, attempt: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the ends (K, b, *S) of samples that took part in all of them, and which of them is that of `attempt`.

        attempt: a number for each sample of the batch; (b,), K where its end is no longer kept. None without others.
        """
        if len(self.kept) < 2:
            return None
        place = torch.empty_like(attempt)
        ends = []
        for _, whose, eta in self.kept:
            place[whose] = torch.arange(len(whose), device=whose.device)
            ends.append(eta[place[index]])
        own = attempt[index] - self.kept[0][0]
        self.kept.clear()
        return torch.stack(ends), torch.where(own >= 0, own, len(ends))


def move_blocks(
    problem: Problem,
    constraint: ConstraintSet,
    state: State,
    active: Tensor,
    moves: int,
    others: tuple[Tensor, Tensor] | None,
    *,
    stops: bool,
) -> None:
    """Raise the gain of some samples, from where they stand, by up to so many moves with one forward pass each.

    A move takes a block to one side of the ball, as far as the bounds let it, every channel to its own, or, every other
    time, to what it is where another attempt ended (others: of `Ends`). Blocks have the proportions of an image
    (C, H, W), are runs of a signal (C, N) or any entries of a flat sample (M,), and become smaller. It needs no
    gradient, so it goes on where gradients are zero or lead nowhere; by itself it needs thousands of passes.
    Source: Andriushchenko, Croce, Flammarion and Hein 2020 (Square Attack), here from the ends of gradient steps.
    """
    batch = Batch.of(problem, constraint, state, problem.streams.fork(_TAG), active)
    rows = torch.arange(len(active), device=active.device)
    gain = batch.objective.gain(problem.outputs(place(batch.x, batch.eta, batch.constraint)), batch.target)
    state.forwards[active] += 1
    for move in range(moves):
        streams = batch.streams.fork(move)
        block = one_block(batch.x, streams.fork(1), _LARGEST * 0.5 ** (9.0 * move / moves))
        towards = batch.constraint.lmo(channel_signs(batch.x, streams.fork(0)), batch.x)
        if others is not None:
            towards = _exchanged(towards, *others, rows, streams.fork(2))
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
                batch, gain, rows = batch.take(left), gain[left], rows[left]
                if len(left) == 0:
                    return
    batch.leave(state, torch.ones_like(gain, dtype=torch.bool))


def _exchanged(eta: Tensor, ends: Tensor, own: Tensor, rows: Tensor, streams: Generators) -> Tensor:
    """Put one of the other ends of a sample in the place of η, by the toss of a coin; (b, *S)."""
    draw, own = streams.uniform((1,), eta.dtype)[:, 0] / _EXCHANGED, own[rows]
    choices = len(ends) - (own < len(ends)).long()
    pick = torch.minimum((draw * choices).long(), choices - 1)
    pick = pick + (pick >= own).long()
    return torch.where(expand(draw < 1.0, eta), ends[pick, rows], eta)


def takes_moves(constraint: ConstraintSet) -> bool:
    """Tell whether a set has the faces that blocks move to."""
    return isinstance(constraint, LpBall) and constraint.p == math.inf
