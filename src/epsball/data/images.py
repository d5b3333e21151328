"""Images decoded and stacked: 8-bit grey or RGB of one size, from files or from bytes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import torch

from epsball.data.checks import check_memory
from epsball.data.optional import require
from epsball.data.skipping import Skipper

__all__ = ["FORMATS", "read_images"]

# Named, because Pillow would otherwise also try formats that start other programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class _UnreadableError(Exception):
    """An image that is not taken, with a remedy where there is another than its removal."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


def read_images(
    files: Iterable[tuple[str, Callable[[], BinaryIO]]], count: int, skipper: Skipper
) -> tuple[torch.Tensor, list[int]]:
    """Return the images (N, C, H, W) in [0, 1] and their positions among the files; each file is (name, open).

    All have the size and channels of the first or, where bad ones are skipped, of most of them.
    """
    image_module = require("PIL.Image", "pillow", "reading images")
    kept: list[tuple[int, str, Pixels]] = []
    for place, (name, opened) in enumerate(files):
        try:
            found = _decode(opened, image_module)
        except _UnreadableError as error:
            skipper.refuse(name, str(error), error.remedy)
            continue
        if not kept:
            check_memory(found.nbytes * 4 * count, f"{count} images of {_say(found)}")
        elif not skipper.skip and found.shape != kept[0][2].shape:
            skipper.refuse(
                name,
                f"{kept[0][1]} is {_say(kept[0][2])}, {name} is {_say(found)}: all must agree in size and channels",
                "resize or convert them first",
            )
        kept.append((place, name, found))
    if skipper.skip and kept:
        kept = _alike(kept, skipper)
    skipper.check_some(len(kept), "images")
    x = np.empty((len(kept), *kept[0][2].shape), dtype=np.float32)
    for row, (_, _, pixels) in enumerate(kept):
        x[row] = pixels
    return torch.from_numpy(x).div_(255.0), [place for place, _, _ in kept]


def _alike(kept: list[tuple[int, str, Pixels]], skipper: Skipper) -> list[tuple[int, str, Pixels]]:
    """Keep the images of the commonest size and channels; the first of equally common ones."""
    shape = Counter(pixels.shape for _, _, pixels in kept).most_common(1)[0][0]
    example = next(pixels for _, _, pixels in kept if pixels.shape == shape)
    for _, name, pixels in kept:
        if pixels.shape != shape:
            skipper.refuse(name, f"is {_say(pixels)}, most images are {_say(example)}")
    return [item for item in kept if item[2].shape == shape]


def _say(pixels: Pixels) -> str:
    channels, height, width = pixels.shape
    return f"{width} x {height} {'grey' if channels == 1 else 'RGB'}"


def _decode(opened: Callable[[], BinaryIO], image_module: Any) -> Pixels:
    """Return one image as (C, H, W) uint8."""
    bomb = (image_module.DecompressionBombWarning, image_module.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            # Pillow only warns where an image is up to twice its limit, and where a file is damaged in a lesser way.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", image_module.DecompressionBombWarning)
            with opened() as stream, image_module.open(stream, formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) != 1:
                    raise _UnreadableError(f"holds {image.n_frames} frames, expected one image")
                array = np.asarray(_grey_or_rgb(image))
    except bomb as error:
        raise _UnreadableError(f"too many pixels, it may be a decompression bomb ({error})") from error
    except _UnreadableError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        unknown = isinstance(error, image_module.UnidentifiedImageError)
        said = str(error) or type(error).__name__  # a failed assertion says nothing
        reason = "not an image of a known format" if unknown else " ".join(said.split())
        raise _UnreadableError(
            f"cannot be read as an image ({reason})", f"the folder must hold {', '.join(FORMATS)} images only"
        ) from error
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _grey_or_rgb(image: Any) -> Any:
    """Convert to 8-bit grey or RGB where that loses nothing, and refuse the rest."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] == 255:
        return image.convert(image.mode[:-1])
    raise _UnreadableError(f"expected 8-bit grey or RGB without transparency, got mode {image.mode}", "convert it")
