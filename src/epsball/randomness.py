"""Randomness as a function of (seed, sample_id, step) alone, drawn for the whole batch at once.

A counter-based generator: entry i of sample b is a hash of (key_b, i), with the finaliser of SplitMix64 (Steele, Lea,
Flood, "Fast splittable pseudorandom number generators", 2014). No state, so a sample's draw is the same alone, in any
batch, in any order, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from epsball.errors import InputError

__all__ = ["Generators", "as_generators"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch's >> on int64 is arithmetic."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """Mix `z` in place: the draws of a batch are its largest integers, and copies of them would be its peak memory."""
    z ^= _shift(z, 30)
    z *= _MIX_1
    z ^= _shift(z, 27)
    z *= _MIX_2
    z ^= _shift(z, 31)
    return z


@dataclass(frozen=True, eq=False)
class Generators:
    """One random stream for each sample of a batch: `keys` is (B,) int64."""

    keys: Tensor

    @classmethod
    def of(cls, seed: int, sample_id: Tensor, *steps: int) -> Generators:
        """Return the streams of (seed, sample_id, *steps)."""
        return cls(_mix(sample_id.to(torch.int64) * _GOLDEN + _wrap(seed * 2 + 1))).fork(*steps)

    def fork(self, *tags: int) -> Generators:
        """Return independent streams, one for each tag path (a step, a restart, a purpose)."""
        keys = self.keys
        for tag in tags:
            keys = _mix(_mix(keys + _GOLDEN).bitwise_xor_(_wrap((tag + 1) * 0x632BE59BD9B4E019)))
        return Generators(keys)

    def take(self, index: Tensor) -> Generators:
        """Keep the streams of some samples."""
        return Generators(self.keys[index])

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Draw 64 random bits for each entry: (B, *shape) int64."""
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=self.keys.device, dtype=torch.int64) * _GOLDEN
        return _mix(self.keys[:, None] + counter).reshape(len(self.keys), *shape)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw from the open interval (0, 1): (B, *shape)."""
        bits = 52 if dtype == torch.float64 else 23  # one less than the type holds, or the last half would round to 1
        return _shift(self.bits(shape), 64 - bits).to(dtype).add_(0.5).mul_(2.0**-bits)

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw standard normal entries: (B, *shape)."""
        return self.uniform(shape, dtype).mul_(2.0).sub_(1.0).erfinv_().mul_(math.sqrt(2.0))

    def coin(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw -1 or +1 with equal chance: (B, *shape)."""
        return ((self.bits(shape) >> 63) * 2 + 1).to(dtype)

    def gamma(self, concentration: float, shape: Sequence[int], dtype: torch.dtype, rounds: int = 12) -> Tensor:
        """Draw Gamma(concentration, 1) entries: (B, *shape).

        Marsaglia and Tsang (2000) for concentration + 1, then U^(1/concentration). Each round accepts at least 95 % of
        the entries; one that no round accepts (chance below 1e-15) keeps the last proposal.
        """
        d = concentration + 1.0 - 1.0 / 3.0
        c = 1.0 / math.sqrt(9.0 * d)
        value = torch.zeros(len(self.keys), *shape, dtype=dtype, device=self.keys.device)
        accepted = torch.zeros_like(value, dtype=torch.bool)
        for step in range(rounds):
            stream = self.fork(step)
            z = stream.fork(0).normal(shape, dtype)
            v = (1.0 + c * z).clamp_min(torch.finfo(dtype).tiny).pow(3)
            ok = (c * z > -1.0) & (stream.fork(1).uniform(shape, dtype).log() < 0.5 * z * z + d - d * v + d * v.log())
            value = torch.where(accepted, value, d * v)
            accepted = accepted | ok
        return value * self.fork(rounds).uniform(shape, dtype).pow(1.0 / concentration)


def _wrap(value: int) -> int:
    """Bring a Python integer into the signed 64-bit range."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def as_generators(generators: Generators | Sequence[torch.Generator] | torch.Generator, x: Tensor) -> Generators:
    """Accept `Generators`, one torch.Generator for each sample, or a single one for the batch."""
    if isinstance(generators, Generators):
        streams = generators
    elif isinstance(generators, torch.Generator):
        bits = torch.randint(-(1 << 62), 1 << 62, (len(x),), generator=generators, device=generators.device)
        streams = Generators(bits.to(x.device))
    else:
        each = [torch.randint(-(1 << 62), 1 << 62, (1,), generator=g, device=g.device).cpu() for g in generators]
        streams = Generators(torch.cat([*each, torch.zeros(0, dtype=torch.int64)]).to(x.device))
    if len(streams.keys) != len(x):
        raise InputError(f"expected one generator for each of the {len(x)} samples, got {len(streams.keys)}.")
    return streams
