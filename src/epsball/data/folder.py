"""A folder of images; its sub-folders, if it has any, are the classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.data.checks import check_memory
from epsball.data.dataset import Dataset
from epsball.data.optional import require
from epsball.errors import InputError

__all__ = ["load"]

# Named, because Pillow would otherwise also try formats that start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")


def load(path: Path, split: str, limit: int | None = None) -> Dataset:
    """Return the images of a folder, (N, C, H, W) in [0, 1], in sorted order; C is 1 for grey and 3 for RGB.

    With sub-folders, their sorted names are the classes and the targets their indices; sub-folders named exactly
    `train` and `test` are splits, each laid out in the same way. Hidden files are skipped; every other file must be
    an 8-bit image of the same size as the first. Pixels are taken as stored: no resizing, no rotation. `limit` reads
    only the first images.
    """
    root = path.resolve()
    base, chosen = path, "all"
    if sorted(entry.name for entry in _entries(path, root)) == ["test", "train"] and (path / "train").is_dir():
        base, chosen = path / split, split
    files, labels, classes = _list(base, root)
    count = len(files)
    x = _read(files[:limit])
    target = torch.tensor(labels[:limit], dtype=torch.int64) if classes else None
    source = f"{base}: {len(x):,} of {count:,} images"
    return Dataset.of(str(path), x, target, split=chosen, source=source, classes=classes, bounds=(0.0, 1.0))


def _entries(folder: Path, root: Path) -> list[Path]:
    """List a folder in sorted order, without hidden entries, refusing links that lead out of the root."""
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be listed ({error.strerror or error}).") from error
    found = sorted(visible, key=lambda entry: entry.name)
    for entry in found:
        try:
            inside = entry.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{entry}: a link that leads nowhere; remove it.") from error
        if not inside:
            raise InputError(f"{entry}: a link that leads out of {root}; copy the file into the folder instead.")
    return found


def _list(base: Path, root: Path) -> tuple[list[Path], list[int], tuple[str, ...] | None]:
    entries = _entries(base, root)
    folders = [entry for entry in entries if entry.is_dir()]
    if not entries:
        raise InputError(f"{base}: the folder holds no images.")
    if not folders:
        return entries, [0] * len(entries), None
    if len(folders) != len(entries):
        stray = next(entry for entry in entries if not entry.is_dir())
        raise InputError(f"{base}: holds class sub-folders and also the file {stray.name}; move it into one of them.")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        members = _entries(folder, root)
        nested = next((member for member in members if member.is_dir()), None)
        if nested is not None:
            raise InputError(f"{nested}: a folder inside the class folder {folder.name}; one level is read.")
        if not members:
            raise InputError(f"{folder}: the class folder holds no images; remove it or fill it.")
        files += members
        labels += [label] * len(members)
    return files, labels, tuple(folder.name for folder in folders)


def _read(files: list[Path]) -> torch.Tensor:
    image_module = require("PIL.Image", "pillow", "reading a folder of images")
    first = _pixels(files[0], image_module)
    check_memory(first.nbytes * 4 * len(files), f"{len(files)} images of {_say(first)}")
    x = np.empty((len(files), *first.shape), dtype=np.float32)
    for row, file in enumerate(files):
        pixels = first if row == 0 else _pixels(file, image_module)
        if pixels.shape != first.shape:
            raise InputError(
                f"all images must agree in size and channels: {files[0]} is {_say(first)}, {file} is {_say(pixels)}; "
                "resize or convert them first."
            )
        x[row] = pixels
    return torch.from_numpy(x).div_(255.0)


def _say(pixels: np.ndarray[Any, Any]) -> str:
    channels, height, width = pixels.shape
    return f"{width} x {height} {'grey' if channels == 1 else 'RGB'}"


def _pixels(file: Path, image_module: Any) -> np.ndarray[Any, Any]:
    """Return one image as (C, H, W) uint8."""
    bomb = (image_module.DecompressionBombWarning, image_module.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            # Pillow only warns where an image is up to twice its limit.
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with image_module.open(file, formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) != 1:
                    raise InputError(f"{file}: holds {image.n_frames} frames, expected one image.")
                array = np.asarray(_grey_or_rgb(image, file))
    except bomb as error:
        raise InputError(f"{file}: too many pixels, it may be a decompression bomb ({error}).") from error
    except InputError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = "not an image of a known format" if _unknown(error, image_module) else str(error)
        raise InputError(
            f"{file}: cannot be read as an image ({reason}); the folder must hold {', '.join(FORMATS)} images only."
        ) from error
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _unknown(error: Exception, image_module: Any) -> bool:
    return isinstance(error, image_module.UnidentifiedImageError)


def _grey_or_rgb(image: Any, file: Path) -> Any:
    """Convert to 8-bit grey or RGB where that loses nothing, and refuse the rest."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] == 255:
        return image.convert(image.mode[:-1])
    raise InputError(f"{file}: expected 8-bit grey or RGB without transparency, got mode {image.mode}; convert it.")
