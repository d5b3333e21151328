"""Random blocks of entries: their sizes, where they lie, and the sign that each one draws."""

from __future__ import annotations

import math

import pytest
import torch

from epsball.blocks import block_signs, channel_signs, one_block
from epsball.randomness import Generators

SHAPES = [(40,), (3, 40), (3, 12, 9), (2, 5, 6, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1e-4, 0.03, 0.3])
def test_a_block_is_of_the_size_asked_for_and_moves_about(shape, share):
    x = torch.zeros(4000, *shape)
    block = one_block(x, Generators.of(0, torch.arange(4000)), share).expand_as(x)
    entries = block.flatten(1).sum(1).double() / (shape[0] if len(shape) > 1 else 1)
    spans = shape[1:] if len(shape) > 1 else shape
    assert (entries >= 1).all()
    if len(shape) > 1:
        sides = [min(length, max(1, round(share ** (1 / len(spans)) * length))) for length in spans]
        assert (entries == math.prod(sides)).all()
        assert torch.equal(block[:, 0], block[:, -1])  # all channels together
        assert block[:, 0].flatten(1).any(0).all()  # to the very ends
    else:
        assert abs(float(entries.mean()) - max(1.0, share * 40)) < 0.5 + 0.1 * share * 40
    assert len(torch.unique(block.flatten(1), dim=0)) > 10


@pytest.mark.parametrize("shape", [*SHAPES, (1, 28, 28), (3, 32, 45)])
def test_signs_are_the_same_throughout_a_block_and_fair(shape):
    x = torch.zeros(500, *shape, dtype=torch.float64)
    signs = block_signs(x, Generators.of(3, torch.arange(500)))
    assert signs.shape == x.shape
    assert signs.dtype == x.dtype
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05
    # Along an axis: as many blocks as entries, at most 14, of sizes that differ by one at most.
    for axis, length in enumerate(shape[1:]):
        every = signs.movedim(2 + axis, -1).reshape(-1, length)
        starts = [n for n in range(1, length) if bool((every[:, n] != every[:, n - 1]).any())]
        sizes = [b - a for a, b in zip([0, *starts], [*starts, length], strict=True)]
        assert len(sizes) == min(14, length)
        assert max(sizes) - min(sizes) <= 1
    if len(shape) > 1 and shape[0] > 1:
        assert bool((signs[:, 0] != signs[:, 1]).any())  # each channel has its own


@pytest.mark.parametrize("shape", SHAPES)
def test_channels_have_a_sign_each(shape):
    x = torch.zeros(500, *shape)
    signs = channel_signs(x, Generators.of(3, torch.arange(500)))
    assert signs.shape == x.shape
    flat = signs.flatten(2) if len(shape) > 1 else signs[..., None]
    assert torch.equal(flat, flat[..., :1].expand_as(flat))
    assert abs(float(flat[..., 0].mean())) < 0.1
    assert bool((flat[:, 0, 0] != flat[:, 1, 0]).any())


def test_a_sample_draws_the_same_alone():
    x, ids = torch.zeros(5, 3, 12, 9), torch.tensor([7, 3, 900, 0, 41])
    whole, alone = Generators.of(1, ids), Generators.of(1, ids[2:3])
    for draw in (block_signs, channel_signs, lambda x, streams: one_block(x, streams, 0.1)):
        assert torch.equal(draw(x, whole)[2:3], draw(x[2:3], alone))
