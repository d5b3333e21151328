"""sRGB and CIELAB, differentiable both ways: white D65, observer 2 degrees, scikit-image's constants."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grey", "lab_to_rgb", "lightness", "rgb_to_lab"]

XYZ_FROM_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# Where the curves go over into straight lines, which go on to negative values: no power sees one.
ENCODED_KNEE, LINEAR_KNEE = 0.04045, 0.0031308
XYZ_KNEE, F_KNEE = 0.008856, 0.2068966
SLOPE, OFFSET = 7.787, 16.0 / 116.0


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return L* in [0, 100], a* and b* of sRGB images, (B, 3, H, W) -> (B, 3, H, W), float32 or float64.

    Nothing is clipped: beyond [0, 1] the curves go on as they are, below 0 in a straight line, so that L* may be
    negative. The gradient is finite everywhere, black included.
    """
    white = rgb.new_tensor(WHITE).view(3, 1, 1)
    x, y, z = _f(_mix(rgb.new_tensor(XYZ_FROM_RGB), _decode(rgb)) / white).unbind(1)
    return torch.stack((116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)), 1)


def lab_to_rgb(lab: Tensor, *, clip: bool = True) -> Tensor:
    """Return the sRGB images in [0, 1] of L*, a*, b*, (B, 3, H, W) -> (B, 3, H, W), float32 or float64.

    Colours outside the gamut are clipped channel by channel at the very end, where their gradient is then 0, and before
    that a negative (L* + 16) / 116 - b* / 200, a blue beyond all gamuts, becomes 0, as in scikit-image. With `clip` off
    nothing is: the exact inverse of `rgb_to_lab`, whose values leave [0, 1].
    """
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16.0) / 116.0
    z = y - b / 200.0
    f = torch.stack((y + a / 500.0, y, z.clamp(min=0.0) if clip else z), 1)
    xyz = torch.where(f > F_KNEE, f.clamp(min=F_KNEE) ** 3, (f - OFFSET) / SLOPE) * lab.new_tensor(WHITE).view(3, 1, 1)
    rgb = _encode(_mix(_inverse(lab), xyz))
    return rgb.clamp(0.0, 1.0) if clip else rgb


def grey(rgb: Tensor) -> Tensor:
    """Return the grey sRGB images with the same L* as these colours, (B, 3, H, W) -> (B, 1, H, W) in [0, 1]."""
    return _encode(_mix(rgb.new_tensor(XYZ_FROM_RGB[1:2]), _decode(rgb)))


def lightness(image: Tensor) -> Tensor:
    """Return L* of grey sRGB images, (B, 1, H, W) -> (B, 1, H, W); negative below black, finite gradient there too."""
    return 116.0 * _f(_decode(image)) - 16.0


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("oc,bchw->bohw", matrix, channels)


def _inverse(like: Tensor) -> Tensor:
    # In double precision first: the rounded matrix is the inverse's, not the inverse of a rounded one.
    inverse: Tensor = torch.linalg.inv(torch.tensor(XYZ_FROM_RGB, dtype=torch.float64))
    return inverse.to(like)


def _decode(rgb: Tensor) -> Tensor:
    """Undo sRGB's curve. The clamp keeps the power, and so the gradient, off the branch that is not taken."""
    return torch.where(rgb > ENCODED_KNEE, ((rgb.clamp(min=ENCODED_KNEE) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def _encode(linear: Tensor) -> Tensor:
    curve = 1.055 * linear.clamp(min=LINEAR_KNEE) ** (1.0 / 2.4) - 0.055
    return torch.where(linear > LINEAR_KNEE, curve, 12.92 * linear)


def _f(t: Tensor) -> Tensor:
    return torch.where(t > XYZ_KNEE, t.clamp(min=XYZ_KNEE) ** (1.0 / 3.0), SLOPE * t + OFFSET)
