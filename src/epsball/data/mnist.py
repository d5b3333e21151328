"""MNIST in its official layout: four gzipped idx files."""

from __future__ import annotations

import os

import torch

from epsball.data import idx
from epsball.data.dataset import Dataset
from epsball.data.download import Origin, data_root, ensure, is_official
from epsball.errors import InputError

__all__ = ["OFFICIAL", "load"]

OFFICIAL = Origin(
    base_urls=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
_PREFIX = {"train": "train", "test": "t10k"}


def load(split: str, root: str | os.PathLike[str] | None, download: bool, origin: Origin = OFFICIAL) -> Dataset:
    """Return (N, 1, 28, 28) images in [0, 1]: 60,000 for training, 10,000 for test, in their official order.

    The files are looked for in the folder `mnist` of the data root, and downloaded there if absent. Files that are
    sound but are not the official ones are read, and `source` says so. Reference: LeCun, Bottou, Bengio, Haffner,
    "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
    """
    names = [f"{_PREFIX[split]}-images-idx3-ubyte.gz", f"{_PREFIX[split]}-labels-idx1-ubyte.gz"]
    paths = ensure("mnist", names, data_root(root) / "mnist", origin, download=download)
    images, labels = idx.read(paths[0], 3), idx.read(paths[1], 1)
    if images.shape[1:] != (28, 28):
        raise InputError(f"{paths[0]}: MNIST images are 28 x 28, these are {images.shape[1]} x {images.shape[2]}.")
    if len(images) != len(labels) or len(images) == 0:
        raise InputError(f"{paths[0]} holds {len(images)} images and {paths[1].name} {len(labels)} labels.")
    if labels.max() > 9:
        raise InputError(f"{paths[1]}: labels are 0 to 9, found {labels.max()}; it is damaged.")
    official = all(is_official(path, origin) for path in paths)
    return Dataset.of(
        "mnist",
        torch.from_numpy(images.astype("float32")).div_(255.0).unsqueeze(1),
        torch.from_numpy(labels.astype("int64")),
        split=split,
        source=f"MNIST {split} set, {'the official files' if official else 'NOT the official files'}: "
        f"{len(images):,} of {len(images):,} images",
        classes=tuple(str(digit) for digit in range(10)),
        bounds=(0.0, 1.0),
    )
