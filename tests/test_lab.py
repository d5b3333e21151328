"""CIELAB against scikit-image, and its gradients against finite differences, in the gamut and outside."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color

from epsball.networks.lab import grey, lab_to_rgb, lightness, rgb_to_lab

DTYPES = [torch.float32, torch.float64]


def cube(steps: int = 12) -> np.ndarray:
    """Every colour on a grid over [0, 1]^3, corners included, and a fine ramp near black: (3, H, W)."""
    axis = np.linspace(0.0, 1.0, steps)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, steps, -1)
    dark = np.random.default_rng(0).uniform(0.0, 0.06, (3, steps, 40))  # both sides of the curves' knees
    return np.concatenate((grid, dark), 2)


def gamut_and_beyond() -> np.ndarray:
    """L* from below 0 to above 100 with a* and b* to ±128: most of it is in no gamut."""
    generator = np.random.default_rng(1)
    return generator.uniform([-20.0, -128.0, -128.0], [120.0, 128.0, 128.0], (40, 40, 3)).transpose(2, 0, 1)


def images(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Two images, the second upside down, so that the batch matters."""
    return torch.from_numpy(np.stack((array, array[:, ::-1].copy()))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rgb_to_lab_agrees_with_scikit_image(dtype: torch.dtype) -> None:
    rgb = images(cube(), dtype)
    found = rgb_to_lab(rgb)
    assert (found.dtype, found.shape) == (dtype, rgb.shape)
    expected = color.rgb2lab(rgb.double().numpy(), channel_axis=1)
    assert np.abs(found.double().numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lab", [color.rgb2lab(cube(), channel_axis=0), gamut_and_beyond()], ids=["gamut", "beyond"])
def test_lab_to_rgb_agrees_with_scikit_image(lab: np.ndarray, dtype: torch.dtype) -> None:
    given_lab = images(lab, dtype)
    found = lab_to_rgb(given_lab)
    assert (found.dtype, found.shape) == (dtype, given_lab.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-image warns of what is beyond the gamut
        expected = color.lab2rgb(given_lab.double().numpy(), channel_axis=1)
    assert np.abs(found.double().numpy() - expected).max() < 1e-4


def test_known_colours() -> None:
    """Lindbloom's values for the primaries under D65, to the digits that both matrices share."""
    rgb = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1)
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(rgb_to_lab(rgb).flatten(1).numpy(), expected, atol=0.02)
    white = rgb_to_lab(torch.ones(1, 3, 1, 1, dtype=torch.float64)).flatten()
    np.testing.assert_allclose(white.numpy(), [100.0, 0.0, 0.0], atol=0.01)


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3))
def test_round_trip(colour: list[float]) -> None:
    rgb = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
    # 2e-5: scikit-image's two curves do not meet exactly at the knee.
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, atol=2e-5, rtol=0.0)


@settings(deadline=None)
@given(st.lists(st.floats(-0.3, 1.5), min_size=3, max_size=3))
def test_round_trip_out_of_gamut_without_clipping(colour: list[float]) -> None:
    rgb = torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)
    lab = rgb_to_lab(rgb)
    torch.testing.assert_close(lab_to_rgb(lab, clip=False), rgb, atol=1e-4, rtol=0.0)
    clipped = lab_to_rgb(lab)
    assert float(clipped.min()) >= 0.0
    assert float(clipped.max()) <= 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_grey_keeps_lightness(dtype: torch.dtype) -> None:
    rgb = images(cube(), dtype)
    found = grey(rgb)
    assert (found.dtype, tuple(found.shape)) == (dtype, (2, 1, *rgb.shape[2:]))
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0 + 1e-6
    expected = color.rgb2lab(rgb.double().numpy(), channel_axis=1)[:, :1]
    assert np.abs(lightness(found).double().numpy() - expected).max() < 1e-4
    replicated = color.rgb2lab(found.double().expand(-1, 3, -1, -1).numpy(), channel_axis=1)
    assert np.abs(replicated[:, :1] - expected).max() < 1e-4
    assert np.abs(replicated[:, 1:]).max() < 0.02  # no colour, but for the digits of the matrix


MAPS = {
    "rgb_to_lab": (rgb_to_lab, cube(6) * 1.6 - 0.3),
    "lab_to_rgb": (lab_to_rgb, gamut_and_beyond()),
    "lab_to_rgb, unclipped": (lambda lab: lab_to_rgb(lab, clip=False), gamut_and_beyond()),
    "grey": (grey, cube(6)),
    "lightness": (lightness, np.linspace(-0.3, 1.3, 90).reshape(1, 9, 10)),
}


@pytest.mark.parametrize("name", MAPS)
def test_gradient_against_finite_differences(name: str) -> None:
    function, array = MAPS[name]
    x = images(array, torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    outputs = function(x)
    mix = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((outputs * mix).sum(), x)
    assert gradient.isfinite().all()
    size = 1e-6 * float(x.detach().abs().max())
    with torch.no_grad():
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        slopes = (function(x + size * direction) - function(x - size * direction)) / (2 * size)
        # Pixel by pixel: a sum over all of them would hide a wrong branch.
        found, expected = (slopes * mix).sum(1), (gradient * direction).sum(1)
    error = (found - expected).abs() / (1.0 + expected.abs())
    # A few pixels lie so near a knee that the two points are on either side of it.
    assert float(error.quantile(0.99)) < 1e-5
    assert float(gradient.abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 2.0, 0.04045, 1e-30, -1e-30])
def test_gradients_are_finite_everywhere(value: float, dtype: torch.dtype) -> None:
    for function, channels in ((rgb_to_lab, 3), (grey, 3), (lightness, 1)):
        x = torch.full((1, channels, 2, 2), value, dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0
    for lab in ([0.0, 0.0, 0.0], [-16.0, 0.0, 0.0], [-50.0, 0.0, 0.0], [50.0, 127.0, 127.0], [100.0, -128.0, -128.0]):
        x = torch.tensor(lab, dtype=dtype).view(1, 3, 1, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(lab_to_rgb(x).sum(), x)
        assert gradient.isfinite().all()
