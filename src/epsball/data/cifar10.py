"""CIFAR-10 in its official binary layout: records of one label byte and three 32 x 32 planes."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from epsball.data.dataset import Dataset
from epsball.data.download import Origin, data_root, ensure
from epsball.data.packed import read_file, read_members
from epsball.errors import InputError

__all__ = ["CLASSES", "OFFICIAL", "load"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32
PER_FILE = 10_000
FOLDER = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"
OFFICIAL = Origin(
    base_urls=("https://www.cs.toronto.edu/~kriz/",),
    md5={ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
)
# Of the files in the archive, and of the first 1,017 records of the last, which are passed on alone.
SHA1 = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
    "test_batch_first1017.bin": "af7b4a4928acdfdd54976350b1bf270ac33ce3a1",
}
STEMS = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}


def load(split: str, root: str | os.PathLike[str] | None, download: bool, origin: Origin = OFFICIAL) -> Dataset:
    """Return (N, 3, 32, 32) RGB images in [0, 1]: 50,000 for training, 10,000 for test, in their official order.

    Looked for in the folder `cifar10` of the data root. The files `cifar-10-batches-bin/*.bin`, each perhaps packed
    as `.bin.xz`, are read as they are: where one is absent, or holds only the first N records and is named
    `..._firstN.bin`, the split is smaller, and `source` says how many of how many. Else the official archive
    `cifar-10-binary.tar.gz` is read, and downloaded there if absent. Reference: Krizhevsky, "Learning multiple layers
    of features from tiny images", technical report, University of Toronto, 2009.
    """
    folder, stems = data_root(root) / "cifar10", STEMS[split]
    paths = {stem: path for stem in stems if (path := _find(folder / FOLDER, stem)) is not None}
    whole = len(paths) == len(stems) and not any("_first" in path.name for path in paths.values())
    if not paths or (not whole and (folder / ARCHIVE).is_file()):
        (archive,) = ensure("cifar10", [ARCHIVE], folder, origin, download=download)
        members = read_members(archive, FOLDER, [f"{stem}.bin" for stem in stems])
        raw = {stem: members[f"{stem}.bin"] for stem in stems}
        names = {stem: (f"{stem}.bin", f"{archive}: {stem}.bin") for stem in stems}
    else:
        raw = {stem: read_file(path) for stem, path in paths.items()}
        names = {stem: (path.name.removesuffix(".xz"), str(path)) for stem, path in paths.items()}
    official = all(
        SHA1.get(names[stem][0]) == hashlib.sha1(raw[stem], usedforsecurity=False).hexdigest() for stem in raw
    )
    parts = {stem: _records(raw[stem], *names[stem]) for stem in raw}
    records = np.concatenate(list(parts.values()))
    starts = [PER_FILE * stems.index(stem) for stem in parts]
    ids = torch.cat([start + torch.arange(len(part)) for start, part in zip(starts, parts.values(), strict=True)])
    return Dataset.of(
        "cifar10",
        torch.from_numpy(records[:, 1:].astype("float32")).div_(255.0).view(-1, 3, 32, 32),
        torch.from_numpy(records[:, 0].astype("int64")),
        split=split,
        source=f"CIFAR-10 {split} set, {'the official files' if official else 'NOT the official files'}: "
        f"{len(records):,} of {PER_FILE * len(stems):,} images",
        classes=CLASSES,
        bounds=(0.0, 1.0),
        ids=ids,
    )


def _find(folder: Path, stem: str) -> Path | None:
    """Return the file of this name, plain rather than packed, or else the longest beginning of it; None: no such."""
    if not folder.is_dir():
        return None
    pattern = re.compile(re.escape(stem) + r"(?:_first(\d+))?\.bin(\.xz)?")
    found = [(match, path) for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))]
    if not found:
        return None
    return max(found, key=lambda item: (int(item[0][1] or PER_FILE), item[0][1] is None, item[0][2] is None))[1]


def _records(raw: bytes, name: str, where: str) -> npt.NDArray[np.uint8]:
    """Return the records (N, 3073), or say in what they differ from what a file of this name holds."""
    beginning = re.search(r"_first(\d+)\.bin$", name)
    count = int(beginning[1]) if beginning else PER_FILE
    if not 1 <= count <= PER_FILE:
        raise InputError(f"{where}: the file it begins holds 1 to {PER_FILE:,} images, its name says {count:,}.")
    if len(raw) != count * RECORD:
        what = "is truncated" if len(raw) < count * RECORD else "has bytes after its end"
        raise InputError(
            f"{where}: expected {count:,} images of {RECORD:,} bytes = {count * RECORD:,} bytes, the file holds "
            f"{len(raw):,}; it {what}: fetch it again."
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(count, RECORD)
    if records[:, 0].max() > 9:
        raise InputError(f"{where}: labels are 0 to 9, found {records[:, 0].max()}; it is damaged: fetch it again.")
    return records
