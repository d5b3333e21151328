"""The colorization network: its layers, what it does to images, how it is trained, and where it applies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import color
from torch import nn

import epsball as eb
from epsball import data, networks, training
from epsball.errors import InputError
from epsball.networks import catalogue
from epsball.networks.colorization import STL10_COLORIZATION, Chroma, Colorization, colorization, grey_and_colours
from epsball.networks.features import Features
from epsball.networks.storage import fill, read_tensors, save

SPEC = STL10_COLORIZATION


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def classifier() -> nn.Module:
    """A small stand-in: three scores of a 32x32 colour image, with batch normalisation and dropout to betray a mode."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()


def small(width: float = 1 / 16) -> Colorization:
    """A narrow network whose colours matter: fresh ones are nearly grey."""
    model = colorization(width, classifier()).eval()
    with torch.no_grad():
        model.chroma.decoder[-3].weight.mul_(10.0)
    return model


def pictures(count: int, side: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Smooth images, red where light and blue where dark, so that lightness says what the colours are."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(count, 1, side // 8, side // 8, generator=generator, dtype=torch.float64)
    light = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return torch.cat((light, 0.5 * light, 0.6 - 0.5 * light), 1).to(dtype)


# The architecture


def test_the_originals_layers_at_full_width() -> None:
    """Table 1 of Deep Koalarization: kernels, maps and strides, as far as convolutions go."""
    chroma = Chroma(1000, 1.0)

    def kernels(part: nn.Module) -> list[tuple[int, ...]]:
        return [(m.in_channels, m.out_channels, *m.kernel_size, *m.stride) for m in part if isinstance(m, nn.Conv2d)]

    maps, strides = [1, 64, 128, 128, 256, 256, 512, 512, 256], [2, 1, 2, 1, 2, 1, 1, 1]
    assert kernels(chroma.encoder) == [
        (before, after, 3, 3, stride, stride)
        for before, after, stride in zip(maps[:-1], maps[1:], strides, strict=True)
    ]
    assert kernels(chroma.fusion) == [(256 + 1000, 256, 1, 1, 1, 1)]
    maps = [256, 128, 64, 64, 32, 2]
    assert kernels(chroma.decoder) == [(b, a, 3, 3, 1, 1) for b, a in pairwise(maps)]
    kinds = [type(m).__name__ for m in chroma.decoder if isinstance(m, (nn.Upsample, nn.Conv2d, nn.Tanh))]
    assert kinds == ["Conv2d", "Upsample", "Conv2d", "Conv2d", "Upsample", "Conv2d", "Conv2d", "Tanh", "Upsample"]


@pytest.mark.parametrize("shape", [(32, 32), (96, 96), (40, 8), (8, 104)])
def test_sizes_and_range(shape: tuple[int, int]) -> None:
    model = small()
    x = torch.rand(3, 1, *shape)
    outputs = model(x).detach()
    assert tuple(outputs.shape) == (3, 3, *shape)
    assert float(outputs.min()) >= 0.0
    assert float(outputs.max()) <= 1.0
    assert SPEC.takes((1, *shape))
    assert tuple(model.chroma.encoder(x).shape[2:]) == (shape[0] // 8, shape[1] // 8)


@pytest.mark.parametrize("shape", [(1, 30, 32), (1, 32, 33), (3, 32, 32), (1, 0, 32), (1, 4, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    assert not SPEC.takes(shape)
    with pytest.raises(InputError, match=r"grey images \(B, 1, H, W\) with H and W multiples of 8"):
        small()(torch.zeros(2, *shape))


@pytest.mark.parametrize("side", [32, 64])
def test_the_network_step_by_step(side: int) -> None:
    """L* and the final colours by scikit-image, the fusion written out again."""
    model = small().double()
    x = pictures(2, side, torch.float64)[:, :1]
    light = color.rgb2lab(x.expand(-1, 3, -1, -1).numpy(), channel_axis=1)[:, :1]
    at32 = x if side == 32 else x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    with torch.no_grad():
        scores = model.features.network(at32.expand(-1, 3, -1, -1)) if side == 32 else model.features(x)
        local = model.chroma.encoder(torch.from_numpy(light / 50 - 1))
        place = scores.view(2, 3, 1, 1).repeat(1, 1, side // 8, side // 8)
        ab = 127 * model.chroma.decoder(model.chroma.fusion(torch.cat((local, place), 1)))
        lab = np.concatenate((light, ab.numpy()), 1)
        np.testing.assert_allclose(model(x).numpy(), color.lab2rgb(lab, channel_axis=1), atol=1e-4)
    assert float(ab.abs().max()) > 1.0


def test_lightness_is_kept_and_the_scores_matter() -> None:
    model = small().double()
    x = 0.3 + 0.4 * pictures(2, 32, torch.float64)[:, :1]
    with torch.no_grad():
        outputs = model(x)
        assert float((outputs > 1e-6).logical_and(outputs < 1 - 1e-6).double().mean()) > 0.99  # inside the gamut
        back = color.rgb2lab(outputs.numpy(), channel_axis=1)[:, :1]
        np.testing.assert_allclose(
            back, color.rgb2lab(x.expand(-1, 3, -1, -1).numpy(), channel_axis=1)[:, :1], atol=0.1
        )
        model.features.network[-1].bias.add_(2.0)
        assert float((model(x) - outputs).abs().max()) > 1e-3


# Features: frozen, in evaluation mode, and part of the attacked function


def test_features_stay_frozen_and_leave_ones_own_module_alone() -> None:
    own = classifier()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    model = colorization(1 / 16, own).train()
    model(torch.rand(8, 1, 32, 32)).sum().backward()
    assert model.chroma.training
    assert not any(module.training for module in model.features.modules())
    assert all(parameter.grad is None for parameter in model.features.parameters())
    assert all(parameter.grad is not None for parameter in model.chroma.parameters())
    for key, value in own.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(parameter.requires_grad for parameter in own.parameters())


def test_the_gradient_goes_through_the_features() -> None:
    model = small().double()
    x = pictures(1, 64, torch.float64)[:, :1].requires_grad_()
    mix = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    (whole,) = torch.autograd.grad((model(x) * mix).sum(), x)
    scores = model.features(x).detach()
    model.features.forward = lambda _: scores
    (without,) = torch.autograd.grad((model(x) * mix).sum(), x)
    assert float((whole - without).abs().max()) > 1e-5  # cut off there, the difference would be 0


def test_names_of_features() -> None:
    assert colorization(1 / 16).features.source == "cifar10-nin"
    with pytest.raises(InputError, match=r"unknown network 'cifar10-ni'; did you mean 'cifar10-nin'"):
        colorization(1.0, "cifar10-ni")
    for name in ("mnist-fcnn", "cifar10-autoencoder"):
        with pytest.raises(InputError, match="features must be a classifier of 32x32 colour images"):
            colorization(1.0, name)
    for width in (0.0, -1.0, 5.0, float("nan")):
        with pytest.raises(InputError, match=r"width must lie in \(0, 4\]"):
            colorization(width)


def test_inception_features_ask_for_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'epsball\[timm\]'"):
        colorization(1.0, "inception_resnet_v2")


@pytest.mark.slow
def test_inception_features(adapter) -> None:  # type: ignore[no-untyped-def]
    adapter("timm")
    model = colorization(1 / 16, "inception_resnet_v2").eval()
    assert (model.features.side, model.features.count) == (299, 1000)
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    outputs = model(x)
    assert tuple(outputs.shape) == (1, 3, 96, 96)
    (gradient,) = torch.autograd.grad(outputs.sum(), x)
    assert gradient.isfinite().all()


def test_trained_features_are_taken_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "catalogue.py"))
    features = colorization(1 / 16).features
    with pytest.raises(InputError, match=r"whose trained weights are not at .*epsball train cifar10-nin --out"):
        features.prepare()
    trained = networks.build("cifar10-nin", 7)
    (tmp_path / "weights").mkdir()
    save(trained, {"network": "cifar10-nin"}, tmp_path / "weights" / "cifar10-nin.safetensors", half=True)
    features.prepare()
    for own, expected in zip(features.network.parameters(), trained.parameters(), strict=True):
        assert torch.equal(own, expected.half().float())
        assert not own.requires_grad


# Training: grey images in, colours out


def test_pairs_are_grey_images_and_their_colours() -> None:
    images = pictures(250)
    grey, colours = grey_and_colours(images)
    assert colours is images
    assert tuple(grey.shape) == (250, 1, 32, 32)
    expected = color.rgb2lab(images[:5].double().numpy(), channel_axis=1)[:, :1]
    found = color.rgb2lab(grey[:5].double().expand(-1, 3, -1, -1).numpy(), channel_axis=1)[:, :1]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(InputError, match=r"colour images \(N, 3, H, W\) to colour again, got shape \(4, 1, 8, 8\)"):
        grey_and_colours(torch.zeros(4, 1, 8, 8))


def test_training_learns_colours_and_keeps_the_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=pictures(80, 16).numpy())
    own = classifier()
    spec = replace(SPEC, build=lambda: colorization(1 / 16, own))
    out = tmp_path / "w.safetensors"
    result = training.train(spec, data=tmp_path / "x.npz", epochs=25, batch_size=16, schedule="short", out=out)
    model = result.model
    assert isinstance(model, Colorization)
    for key, value in model.features.network.state_dict().items():
        torch.testing.assert_close(value, own.state_dict()[key], atol=1e-3, rtol=1e-3)  # rounded to half precision
    # Judged as f is: the output against the colours, on the sixteen images kept for the test.
    assert result.card["test_count"] == 16
    assert result.card["loss"] == "colour_error"
    assert result.psnr == result.card["test_psnr"]
    images = pictures(80, 16)
    grey, _ = grey_and_colours(images)
    with torch.no_grad():
        error = (model(grey) - images).square().mean((1, 2, 3))
    colourless = (grey - images).square().mean((1, 2, 3))
    assert float(error.mean()) < 0.5 * float(colourless.mean())
    assert result.error < 0.5 * float(colourless.mean())
    # The file holds all of it: another classifier in its place is overwritten.
    other = colorization(1 / 16, classifier()).eval()
    fill(other, read_tensors(out), str(out))
    with torch.no_grad():
        torch.testing.assert_close(other(grey[:4]), model(grey[:4]), atol=1e-5, rtol=0.0)


def test_the_part_that_is_trained_is_the_network_but_for_the_conversions() -> None:
    model = small()
    grey, colours = grey_and_colours(pictures(3))
    part, rows, reference = SPEC.part(model, grey, colours)
    assert tuple(rows.shape) == (3, 3 + 32 * 32)
    expected = color.rgb2lab(colours.double().numpy(), channel_axis=1)[:, 1:] / 127
    np.testing.assert_allclose(reference.numpy(), expected, atol=1e-5)
    with torch.no_grad():
        ab = 127 * part.eval()(rows).double().numpy()
        light = color.rgb2lab(colours.double().numpy(), channel_axis=1)[:, :1]
        rgb = color.lab2rgb(np.concatenate((light, ab), 1), channel_axis=1)
        np.testing.assert_allclose(model.eval()(grey).numpy(), rgb, atol=2e-4)
    with pytest.raises(InputError, match="expected the network that `colorization` builds"):
        SPEC.part(nn.Linear(2, 2), grey, colours)


def test_data_without_colours_are_refused() -> None:
    with pytest.raises(InputError, match="expected colour images"):
        training.train(replace(SPEC, build=small), data="digits", limit=10)


# Under attack


@pytest.mark.parametrize("recipe", ["linear-lp-10", "quadratic-lp", "random-linf"])
def test_attacks_run_at_other_sizes(recipe: str) -> None:
    model = small()
    x = 0.25 + 0.5 * torch.rand(2, 1, 8, 16)
    p = {} if recipe.startswith("random") else {"p": float("inf")}
    result = eb.recipe(recipe, eps=0.01, **p)(model, x, None, seed=0)
    assert tuple(result.outputs.shape) == (2, 3, 8, 16)
    assert float(result.perturbation.abs().max()) <= 0.01 * (1 + 1e-5)
    assert (result.gain > 0).all()


@pytest.mark.skipif(
    not (Path(os.environ.get("EPSBALL_DATA") or "absent") / "stl10").is_dir(),
    reason="EPSBALL_DATA does not point to a folder that holds stl10/",
)
def test_it_applies_to_stl10() -> None:
    part = data.load("stl10", split="unlabeled", download=False, limit=2)
    grey, colours = SPEC.pairs(part.x)
    assert SPEC.takes(tuple(grey.shape[1:]))
    with torch.no_grad():
        outputs = networks.build(SPEC).eval()(grey)
    assert outputs.shape == colours.shape
    # A fresh network adds next to no colour: its output is the grey image.
    assert float((outputs - grey).abs().mean()) < 0.1


def test_the_weights_stay_below_four_and_a_half_megabytes() -> None:
    model = networks.build(SPEC)
    halves = sum(2 * parameter.numel() for parameter in model.parameters())
    whole = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert halves + whole < 4_500_000
    assert isinstance(model.features, Features)
