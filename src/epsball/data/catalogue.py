"""The data sets by name, and the one door to all data: a name or a path."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from epsball.data import cifar10, digits, folder, mnist, stl10, tensors
from epsball.data.dataset import Dataset
from epsball.errors import InputError, unknown_name

__all__ = ["CATALOGUE", "Entry", "entry", "load", "names"]


@dataclass(frozen=True)
class Entry:
    """A row of the catalogue: `read(split, data_root, download)` returns the whole split."""

    name: str
    summary: str
    splits: tuple[str, ...]
    read: Callable[[str, str | os.PathLike[str] | None, bool], Dataset]


# A new set is one file with its reader, and one row here.
CATALOGUE: dict[str, Entry] = {
    row.name: row
    for row in (
        Entry(
            "digits", "1,797 handwritten digits, 8x8 grey, bundled with scikit-learn", ("train", "test"), digits.load
        ),
        Entry("mnist", "70,000 handwritten digits, 28x28 grey, official files", ("train", "test"), mnist.load),
        Entry("cifar10", "60,000 colour images, 32x32, ten classes, official files", ("train", "test"), cifar10.load),
        Entry("stl10", "113,000 colour images, 96x96, ten classes or none, official files", stl10.SPLITS, stl10.load),
    )
}
SUFFIXES = (".npz", ".pt", ".pth")


def names() -> list[str]:
    """Return the names of the data sets in the catalogue."""
    return list(CATALOGUE)


def entry(name: str) -> Entry:
    """Return the catalogue's row of this name."""
    if name not in CATALOGUE:
        raise unknown_name("data set", name, CATALOGUE)
    return CATALOGUE[name]


def load(
    name: str | os.PathLike[str],
    *,
    split: str = "test",
    data_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    download: bool = True,
) -> Dataset:
    """Return the samples of a data set: a name of the catalogue, a folder of images, an .npz or a .pt file.

    split      "train" or "test", or another that the set has, such as "unlabeled"; data from a path have no splits
               (`Dataset.split` is "all"), except a folder whose sub-folders are `train` and `test`
    data_root  folder that holds the catalogue's sets; default: EPSBALL_DATA, else the user's cache folder
    limit      only the first so many samples, in the official order
    download   fetch the files of a catalogue set where they are absent

    A name of the catalogue wins over a path: write ./digits for a folder of that name. InputError for anything that
    cannot be read whole and unambiguously; nothing is unpickled and no code in a file is run.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit must be an integer of at least 1, or None for all samples, got {limit!r}.")
    row = CATALOGUE.get(name) if isinstance(name, str) else None
    splits = ("train", "test") if row is None else row.splits
    if split not in splits:
        raise InputError(f"split must be {', '.join(map(repr, splits[:-1]))} or {splits[-1]!r}, got {split!r}.")
    found = _from_path(name, split, limit) if row is None else row.read(split, data_root, download)
    return found if limit is None else found.head(limit)


def _from_path(name: str | os.PathLike[str], split: str, limit: int | None) -> Dataset:
    path = Path(name).expanduser()
    if not path.exists():
        looks_like_path = not isinstance(name, str) or path.suffix or "/" in name or os.sep in name
        if looks_like_path:
            raise InputError(f"data: {path} does not exist; give a folder of images, an .npz or .pt file, or a name.")
        raise unknown_name("data set", name, CATALOGUE)
    if path.is_dir():
        return folder.load(path, split, limit)
    if path.suffix.lower() == ".npz":
        return tensors.load_npz(path)
    if path.suffix.lower() in SUFFIXES:
        return tensors.load_pt(path)
    raise InputError(f"data: {path} must be a folder of images or end in {', '.join(SUFFIXES)}.")
