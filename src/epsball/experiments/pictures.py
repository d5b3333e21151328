"""Perturbed images as PNG files, whose 8-bit values are exactly those that were judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from epsball.data.optional import require
from epsball.engines.local import Array
from epsball.errors import InputError

__all__ = ["PictureFolder", "check_pictures"]


def check_pictures(shape: tuple[int, ...], bounds: tuple[float, float] | None, lattice: int | None) -> None:
    """Refuse what has no exact form as a PNG file: other shapes, ranges and lattices than those of 8-bit images."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"expected images (1, H, W) or (3, H, W) to save as png, got samples of shape {shape}.")
    if bounds != (0.0, 1.0) or lattice != 255:
        raise InputError(
            "expected lattice=255 and bounds 0,1 to save as png: what is rounded afterwards may no longer fool the "
            f"model; got lattice={lattice}, bounds={bounds}; give --lattice 255."
        )


class PictureFolder:
    """DIR/png/ATTACK/SAMPLE.png: perturbed images, each under the number of its sample."""

    def __init__(self, path: Path) -> None:
        require("PIL.Image", "pillow", "writing PNG files")
        self.path = path

    def write(self, attack: str, sample_id: Array, perturbed: Array) -> None:
        """Write the images of one attack, (B, C, H, W) in [0, 1]."""
        from PIL import Image

        folder = self.path / attack
        folder.mkdir(parents=True, exist_ok=True)
        values = np.rint(perturbed * 255.0).astype(np.uint8)
        for number, image in zip(sample_id.tolist(), values, strict=True):
            picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            Image.fromarray(picture).save(folder / f"{number:06d}.png")
