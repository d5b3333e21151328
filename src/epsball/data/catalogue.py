"""The data sets by name, and the one door to all data: a name or a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epsball.data import cifar10, digits, folder, mnist, parquet, python_data, stl10, tensors
from epsball.data.dataset import Dataset
from epsball.data.remote import Location, is_url, locate
from epsball.data.user_code import is_reference
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
SUFFIXES = (".npz", ".pt", ".pth", ".parquet")


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
    skip_bad: bool = False,
    x_columns: Sequence[str] = (),
    y_columns: Sequence[str] = (),
) -> Dataset:
    """Return the samples of a data set: a name of the catalogue, a path, a URL or Python code.

    name       a name of the catalogue; a folder of images or of Parquet files; an .npz, .pt or .parquet file; a URL of
               fsspec such as s3://bucket/folder to one of these; or file.py:factory, package.module:factory, Python
               that is run and gives (x, y) or a Dataset

    split      "train" or "test", or another that the set has, such as "unlabeled"; data from a path have no splits
               (`Dataset.split` is "all"), except a folder whose sub-folders are `train` and `test`, and Parquet files
               whose names begin so, see `load_parquet`
    data_root  folder that holds the catalogue's sets; default: EPSBALL_DATA, else the user's cache folder
    limit      only the first so many samples, in the official order
    download   fetch the files of a catalogue set where they are absent
    skip_bad   leave out samples that cannot be read, and list them in `Dataset.skipped`; `ids` count them, and of
               files, rows and the samples of a PyTorch Dataset so does `limit`
    x_columns, y_columns  of Parquet files, as in `load_parquet`

    A name of the catalogue wins over a path: write ./digits for a folder of that name. InputError for anything that
    cannot be read whole and unambiguously; nothing is unpickled and no code in a data file is run.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit must be an integer of at least 1, or None for all samples, got {limit!r}.")
    row = CATALOGUE.get(name) if isinstance(name, str) else None
    splits = ("train", "test") if row is None else row.splits
    if split not in splits:
        raise InputError(f"split must be {', '.join(map(repr, splits[:-1]))} or {splits[-1]!r}, got {split!r}.")
    if row is not None:
        found = row.read(split, data_root, download)
    elif isinstance(name, str) and is_reference(name):
        found = python_data.load(name, limit, skip_bad=skip_bad)
    else:
        found = _from_path(name, split, limit, skip_bad, x_columns, y_columns)
    return found if limit is None else found.head(limit)


def _from_path(
    name: str | os.PathLike[str],
    split: str,
    limit: int | None,
    skip_bad: bool,
    x_columns: Sequence[str],
    y_columns: Sequence[str],
) -> Dataset:
    path: Location = locate(name) if isinstance(name, str) and is_url(name) else Path(name).expanduser()
    try:
        if not path.exists():
            looks_like_path = not isinstance(name, str) or path.suffix or "/" in name or os.sep in name
            if looks_like_path:
                raise InputError(
                    f"data: {path} does not exist; give a folder of images, a file that ends in {', '.join(SUFFIXES)}, "
                    "a URL, file.py:factory or a name."
                )
            raise unknown_name("data set", str(name), CATALOGUE)
        suffix = path.suffix.lower()
        is_dir = path.is_dir()
        if (is_dir and parquet.is_folder_of_parquet(path)) or (suffix == ".parquet" and not is_dir):
            return parquet.load_parquet(
                path, limit, split=split, x_columns=x_columns, y_columns=y_columns, skip_bad=skip_bad
            )
        if x_columns or y_columns:
            raise InputError(f"expected a Parquet file for x_columns and y_columns, got {path}; leave them out.")
        if is_dir:
            return folder.load(path, split, limit, skip_bad=skip_bad)
        if suffix == ".npz":
            return tensors.load_npz(path, skip_bad=skip_bad)
        if suffix in SUFFIXES:
            return tensors.load_pt(path, skip_bad=skip_bad)
    except OSError as error:
        raise InputError(
            f"data: {path} cannot be read ({error}); check the path, the network and your access."
        ) from error
    raise InputError(f"data: {path} must be a folder of images or end in {', '.join(SUFFIXES)}.")
