"""A folder of images; its sub-folders, if it has any, are the classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import torch

from epsball.data.dataset import Dataset
from epsball.data.images import read_images
from epsball.data.remote import Location
from epsball.data.skipping import Skipper
from epsball.errors import InputError

__all__ = ["load"]


def load(path: Location, split: str, limit: int | None = None, *, skip_bad: bool = False) -> Dataset:
    """Return the images of a folder, (N, C, H, W) in [0, 1], in sorted order; C is 1 for grey and 3 for RGB.

    With sub-folders, their sorted names are the classes and the targets their indices; sub-folders named exactly
    `train` and `test` are splits, each laid out in the same way. Hidden files are skipped; every other file must be
    an 8-bit image of the same size as the first. Pixels are taken as stored: no resizing, no rotation. `limit` reads
    only the first images.

    skip_bad: files that are no such images, that differ in size or channels from most, that are links out of the
    folder or in the wrong place, are left out and listed in `Dataset.skipped`; `ids` are positions among all files.
    A class folder that cannot be read is refused all the same: without it the other classes had other indices.
    """
    root = path.resolve() if isinstance(path, Path) else None
    skipper = Skipper(skip_bad)
    base, chosen = path, "all"
    # What is wrong with an entry of a split is said when the split is read.
    if sorted(entry.name for entry in _visible(path)) == ["test", "train"] and (path / "train").is_dir():
        base, chosen = path / split, split
        _inside(base, root, Skipper())
    files, labels, classes = _list(base, root, skipper)
    count = len(files) + len(skipper.found)  # with what is not even opened, such as links out of the folder
    chosen_files = files[:limit]
    opened = ((str(file), cast(Callable[[], BinaryIO], partial(file.open, "rb"))) for file in chosen_files)
    x, places = read_images(opened, len(chosen_files), skipper)
    target = torch.tensor([labels[place] for place in places], dtype=torch.int64) if classes else None
    return Dataset.of(
        str(path),
        x,
        target,
        split=chosen,
        source=f"{base}: {len(x):,} of {count:,} images{skipper.said}",
        classes=classes,
        bounds=(0.0, 1.0),
        ids=torch.tensor(places, dtype=torch.int64),
        skipped=tuple(skipper.found),
        total=count,
    )


def _visible(folder: Location) -> list[Location]:
    """List a folder in sorted order, without hidden entries."""
    try:
        visible: list[Location] = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be listed ({error.strerror or error}).") from error
    return sorted(visible, key=lambda entry: entry.name)


def _inside(entry: Location, root: Path | None, skipper: Skipper) -> bool:
    """Tell whether an entry stays within the root; refuse a link that does not."""
    if not isinstance(entry, Path) or root is None:
        return True  # object storage has no links
    try:
        inside = entry.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        skipper.refuse(str(entry), "a link that leads nowhere", "remove it")
        return False
    if not inside:
        skipper.refuse(str(entry), f"a link that leads out of {root}", "copy the file into the folder instead")
    return inside


def _entries(folder: Location, root: Path | None, skipper: Skipper) -> list[Location]:
    return [entry for entry in _visible(folder) if _inside(entry, root, skipper)]


def _files(entries: list[Location], skipper: Skipper) -> list[Location]:
    """Keep regular files: reading a pipe or a device may never end."""
    special = [entry for entry in entries if isinstance(entry, Path) and not entry.is_file()]
    for entry in special:
        skipper.refuse(str(entry), "not a regular file", "remove it")
    return [entry for entry in entries if entry not in special]


def _list(
    base: Location, root: Path | None, skipper: Skipper
) -> tuple[list[Location], list[int], tuple[str, ...] | None]:
    visible = _visible(base)
    classes = {entry.name for entry in visible if entry.is_dir()}
    for entry in visible if classes else ():
        # A link that leads nowhere may have been a class as well.
        if isinstance(entry, Path) and (entry.name in classes or not entry.exists()):
            tried = Skipper(True)
            if not _inside(entry, root, tried):
                raise InputError(
                    f"{entry}: {tried.found[0].reason}, and the classes are numbered by their folders; copy it in or "
                    "remove it."
                )
    entries = [entry for entry in visible if _inside(entry, root, skipper)]
    folders = [entry for entry in entries if entry.name in classes]
    if not entries and not skipper.found:
        raise InputError(f"{base}: the folder holds no images.")
    if not folders:
        return _files(entries, skipper), [0] * len(entries), None
    for stray in (entry for entry in entries if entry not in folders):
        skipper.refuse(
            str(stray), f"{base} holds class sub-folders and also the file {stray.name}", "move it into one of them"
        )
    files: list[Location] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        members = _entries(folder, root, skipper)
        nested = [member for member in members if member.is_dir()]
        for member in nested:
            skipper.refuse(str(member), f"a folder inside the class folder {folder.name}", "one level is read: move it")
        if not members and not skipper.found:
            raise InputError(f"{folder}: the class folder holds no images; remove it or fill it.")
        images = _files([member for member in members if member not in nested], skipper)
        files += images
        labels += [label] * len(images)
    return files, labels, tuple(folder.name for folder in folders)
