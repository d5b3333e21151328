"""Handwritten digits, 8x8, bundled with scikit-learn: the set that needs no download."""

from __future__ import annotations

import hashlib
import os

import torch

from epsball.data.dataset import Dataset
from epsball.data.optional import require

__all__ = ["load"]

TEST_PER_CLASS = 50


def load(split: str, root: str | os.PathLike[str] | None, download: bool) -> Dataset:
    """Return (N, 1, 8, 8) images in [0, 1]: 500 for test (50 a class), the other 1,297 for training.

    The root and `download` are not used: the images come with scikit-learn. Source: UCI, "Optical recognition of
    handwritten digits" (its test part), Alpaydin and Kaynak, 1998.
    """
    raw = require("sklearn.datasets", "scikit-learn", "the data set 'digits'").load_digits()
    x = torch.from_numpy(raw.images).to(torch.float32).div_(16.0).unsqueeze(1)
    target = torch.from_numpy(raw.target).to(torch.int64)
    test = _test_positions(target)
    ids = test if split == "test" else torch.tensor(sorted(set(range(len(x))) - set(test.tolist())))
    return Dataset.of(
        "digits",
        x[ids],
        target[ids],
        split=split,
        source=f"UCI handwritten digits bundled with scikit-learn, {split} split of epsball: "
        f"{len(ids):,} of {len(x):,} images",
        classes=tuple(str(digit) for digit in range(10)),
        bounds=(0.0, 1.0),
        ids=ids,
    )


def _test_positions(target: torch.Tensor) -> torch.Tensor:
    """Choose 50 positions a class by the least hash: a random choice that no library version can change."""

    def rank(position: int) -> str:
        return hashlib.sha256(f"epsball digits {position}".encode()).hexdigest()

    chosen: list[int] = []
    for label in range(10):
        positions = (target == label).nonzero().flatten().tolist()
        chosen += sorted(positions, key=rank)[:TEST_PER_CLASS]
    return torch.tensor(sorted(chosen))
