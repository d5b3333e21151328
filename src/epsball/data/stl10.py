"""STL-10 in its official binary layout: images of three 96 x 96 planes, each column by column, and label bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from epsball.data.checks import check_memory
from epsball.data.dataset import Dataset
from epsball.data.download import Origin, data_root, ensure
from epsball.data.packed import read_file, read_members
from epsball.errors import InputError

__all__ = ["CLASSES", "OFFICIAL", "SPLITS", "load"]

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96
IMAGE = 3 * SIDE * SIDE
FOLDER = "stl10_binary"
ARCHIVE = "stl10_binary.tar.gz"
OFFICIAL = Origin(
    base_urls=("http://ai.stanford.edu/~acoates/stl10/", "https://cs.stanford.edu/~acoates/stl10/"),
    md5={ARCHIVE: "91f7769df0f17e558f3565bffb0c7dfb"},
)
# Of the files in the archive, and of a sample of 200 unlabelled images, which is passed on alone.
MD5 = {
    "train_X.bin": {"918c2871b30a85fa023e0c44e0bee87f"},
    "train_y.bin": {"5a34089d4802c674881badbb80307741"},
    "test_X.bin": {"7f263ba9f9e0b06b93213547f721ac82"},
    "test_y.bin": {"36f9794fa4beb8a2c72628de14fa638e"},
    "unlabeled_X.bin": {"5242ba1fed5e4be9e1e742405eb56ca4", "62959593f216737e231e42fd540dc1e7"},
}
FILES = {
    "train": ("train_X.bin", "train_y.bin"),
    "test": ("test_X.bin", "test_y.bin"),
    "unlabeled": ("unlabeled_X.bin",),
}
SPLITS = tuple(FILES)
COUNT = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}


def load(split: str, root: str | os.PathLike[str] | None, download: bool, origin: Origin = OFFICIAL) -> Dataset:
    """Return (N, 3, 96, 96) RGB images in [0, 1]: 5,000 for training, 8,000 for test, 100,000 without labels.

    Looked for in the folder `stl10` of the data root. The files `stl10_binary/*.bin`, each perhaps packed as `.bin.xz`,
    are read as they are; one with fewer images makes the split smaller, and `source` says how many of how many. Else
    the official archive `stl10_binary.tar.gz` is read, and downloaded there (2.6 GB) if absent. Where unlabelled images
    are all that is at hand they stand in for the test images: `Dataset.split` is then "unlabeled" and the target None.
    Reference: Coates, Lee, Ng, "An analysis of single layer networks in unsupervised feature learning", AISTATS 2011.
    """
    folder = data_root(root) / "stl10"
    images = {part: _find(folder / FOLDER, FILES[part][0]) for part in SPLITS}
    archived = (folder / ARCHIVE).is_file()
    if split == "test" and not archived and [part for part in SPLITS if images[part].exists()] == ["unlabeled"]:
        split = "unlabeled"
    names = FILES[split]
    paths = {name: _find(folder / FOLDER, name) for name in names}
    # Images without their labels are no reason to fetch 2.6 GB: what is missing is named.
    if all(path.exists() for path in paths.values()) or (images[split].exists() and not archived):
        raw = {name: read_file(path) for name, path in paths.items()}
        where = {name: str(path) for name, path in paths.items()}
    else:
        (archive,) = ensure("stl10", [ARCHIVE], folder, origin, download=download)
        raw = read_members(archive, FOLDER, names)
        where = {name: f"{archive}: {name}" for name in names}
    official = all(hashlib.md5(raw[name], usedforsecurity=False).hexdigest() in MD5[name] for name in names)
    pixels = _images(raw[names[0]], where[names[0]], COUNT[split])
    target = None if split == "unlabeled" else _labels(raw[names[1]], where[names[1]], len(pixels))
    kind = "images without labels" if split == "unlabeled" else f"{split} set"
    return Dataset.of(
        "stl10",
        pixels,
        target,
        split=split,
        source=f"STL-10 {kind}, {'the official files' if official else 'NOT the official files'}: "
        f"{len(pixels):,} of {COUNT[split]:,} images",
        classes=None if target is None else CLASSES,
        bounds=(0.0, 1.0),
    )


def _find(folder: Path, name: str) -> Path:
    """Return the file of this name, plain rather than packed; where there is neither, the plain one's path."""
    packed = folder / f"{name}.xz"
    return packed if packed.exists() and not (folder / name).exists() else folder / name


def _images(raw: bytes, where: str, count: int) -> torch.Tensor:
    """Return the images (N, 3, 96, 96), rows before columns, or say what is wrong with the file."""
    if len(raw) == 0 or len(raw) % IMAGE:
        raise InputError(
            f"{where}: expected whole images of {IMAGE:,} bytes, the file holds {len(raw):,} bytes = "
            f"{len(raw) / IMAGE:,.2f} images; it is truncated or damaged: fetch it again."
        )
    found = len(raw) // IMAGE
    if found > count:
        raise InputError(f"{where}: expected at most {count:,} images, the file holds {found:,}; fetch it again.")
    check_memory(4 * len(raw), where)
    planes = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).astype("float32")).div_(255.0)
    return planes.view(found, 3, SIDE, SIDE).transpose(2, 3).contiguous()


def _labels(raw: bytes, where: str, count: int) -> torch.Tensor:
    """Return the class indices (N,) from 0, or say what is wrong with the file, whose labels count from 1."""
    if len(raw) != count:
        raise InputError(
            f"{where}: expected a label byte for each of the {count:,} images, the file holds {len(raw):,} bytes; one "
            "of the two files is truncated: fetch them again."
        )
    labels = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).astype("int64"))
    if int(labels.min()) < 1 or int(labels.max()) > len(CLASSES):
        raise InputError(
            f"{where}: labels are 1 to {len(CLASSES)}, found {int(labels.min())} to {int(labels.max())}; "
            "it is damaged: fetch it again."
        )
    return labels - 1
