"""Partitions: every entry in exactly one group, the same group for the right entries, and bad groups refused."""

import itertools

import pytest
import torch

from epsball.errors import InputError
from epsball.sets import Groups, channels, patches, pixels
from epsball.sets.partition import as_partition, pixels_or_entries

SHAPE = (3, 5, 4)


def by_rule(rule, shape):
    """Group numbers from a key for each entry's position, renumbered in the order in which the keys first come."""
    seen = {}
    return torch.tensor([seen.setdefault(rule(at), len(seen)) for at in itertools.product(*map(range, shape))])


def same(a, b):
    """Whether two numberings are the same partition."""
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


@pytest.mark.parametrize(
    ("partition", "shape", "rule", "number"),
    [
        (pixels(), SHAPE, lambda at: at[1:], 20),
        (pixels(channel_dim=1), SHAPE, lambda at: at[1:], 20),
        (pixels(channel_dim=3), SHAPE, lambda at: at[:2], 15),
        (pixels(channel_dim=-1), SHAPE, lambda at: at[:2], 15),
        (pixels(channel_dim=-3), SHAPE, lambda at: at[1:], 20),
        (pixels(), (7,), lambda at: (), 1),
        (pixels_or_entries(), SHAPE, lambda at: at[1:], 20),
        (pixels_or_entries(), (7,), lambda at: at, 7),
        (channels(), SHAPE, lambda at: at[0], 3),
        (channels(channel_dim=-1), SHAPE, lambda at: at[2], 4),
        (patches(2), SHAPE, lambda at: (at[1] // 2, at[2] // 2), 6),
        (patches(3, channel_dim=3), SHAPE, lambda at: (at[0] // 3, at[1] // 3), 2),
        (patches(2, channel_dim=None), (5, 4), lambda at: (at[0] // 2, at[1] // 2), 6),
        (patches(9), SHAPE, lambda at: (), 1),
        (patches(1), SHAPE, lambda at: at[1:], 20),
        (patches(2), (1, 3, 3, 3), lambda at: tuple(a // 2 for a in at[1:]), 8),
    ],
)
def test_partitions_by_position(partition, shape, rule, number):
    ids = partition.index(shape)
    assert ids.dtype == torch.int64
    assert sorted(set(ids.tolist())) == list(range(number))
    assert same(ids, by_rule(rule, shape))


def test_given_groups_in_every_form_are_the_same():
    numbers = torch.tensor([[1, 0, 2], [0, 2, 2]])
    lists = [[1, 3], [0], [2, 5, 4]]
    x = torch.full((1, 2, 3), 0.5)
    g = torch.tensor([[[1.0, -2.0, 3.0], [1.0, 1.0, -0.5]]])
    expected = Groups(numbers, 1, 0.1).lmo(g, x)
    assert torch.equal(expected, torch.tensor([[[0.0, 0.0, 0.1], [0.0, 0.1, -0.1]]]))
    forms = [lists, tuple(map(tuple, lists)), [torch.tensor(m) for m in lists], as_partition(lists)]
    forms += [numbers.to(t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32)]
    for form in forms:
        assert torch.equal(Groups(form, 1, 0.1).lmo(g, x), expected)
    assert repr(as_partition(lists)) == "3 groups"
    assert repr(pixels()) == "pixels(channel_dim=1)"


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (torch.tensor([0.0, 1.0]), "integer tensor"),
        (torch.tensor([True, False]), "integer tensor"),
        (torch.zeros(0, dtype=torch.int64), "integer tensor"),
        (torch.tensor([0, 2]), "without a gap"),
        (torch.tensor([1, 2]), "without a gap"),
        (torch.tensor([-1, 0]), "without a gap"),
        (torch.tensor([0, 10**12]), "without a gap"),
        ([], "at least one group"),
        ([[0], []], "at least one entry"),
        ([[0], [0, 1]], "entry 0"),
        ([[0], [2]], "entry 1"),
        ([[-1], [0]], "negative"),
        ([0, 1], "lists of entry numbers"),
        ([[0.5], [1]], "lists of entry numbers"),
        ([["a"]], "lists of entry numbers"),
        (None, "lists of entry numbers"),
        (3, "lists of entry numbers"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, words):
    with pytest.raises(InputError, match=words):
        Groups(groups, 1, 0.1)


@pytest.mark.parametrize(
    "partition",
    [
        pixels(channel_dim=0),
        pixels(channel_dim=4),
        pixels(channel_dim=-4),
        channels(channel_dim=5),
        patches(2, 0),
        as_partition([[0], [1]]),
        as_partition(torch.zeros(2, 2, dtype=torch.int64)),
    ],
)
def test_partitions_of_another_shape_are_refused(partition):
    with pytest.raises(InputError, match="expected"):
        partition.index(SHAPE)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2"])
def test_patch_sizes(size):
    with pytest.raises(InputError, match="expected size as an integer"):
        patches(size)
