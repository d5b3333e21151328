"""Colorization as in "Deep Koalarization": a* and b* from L*, with the scores of an image classifier fused in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epsball.errors import InputError
from epsball.networks.features import Features, features_of
from epsball.networks.lab import grey, lab_to_rgb, lightness, rgb_to_lab
from epsball.networks.spec import NetworkSpec, TrainingRecipe

__all__ = ["STL10_COLORIZATION", "Chroma", "Colorization", "colorization", "grey_and_colours"]

MULTIPLE = 8  # height and width: three convolutions of stride 2, three upsamplings
CHROMA = 127.0  # a* and b* are this times the tanh at the end
# (maps at full width, stride) of each 3x3 convolution; after a None the image doubles in size.
ENCODER = ((64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 1), (256, 1))
DECODER = (128, None, 64, 64, None, 32)
BATCH = 100  # images at a time where a whole data set goes through


class Chroma(nn.Module):
    """Encoder, fusion and decoder: (L*/50 - 1 (B, 1, H, W), scores (B, F)) -> (a*, b*)/127 (B, 2, H, W) in (-1, 1)."""

    def __init__(self, count: int, width: float) -> None:
        super().__init__()

        def maps(full: int) -> int:
            return max(1, round(full * width))

        layers, before = [], 1
        for full, stride in ENCODER:
            layers += _convolution(before, maps(full), stride=stride)
            before = maps(full)
        self.encoder = nn.Sequential(*layers)
        self.fusion = nn.Sequential(*_convolution(before + count, before, size=1))
        layers = []
        for step in DECODER:
            if step is None:
                layers.append(nn.Upsample(scale_factor=2))
            else:
                layers += _convolution(before, maps(step))
                before = maps(step)
        last = nn.Conv2d(before, 2, 3, padding=1)
        self.decoder = nn.Sequential(*layers, last, nn.Tanh(), nn.Upsample(scale_factor=2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        # The first guess is grey, not colours at random.
        nn.init.normal_(last.weight, std=1e-2)

    def forward(self, light: Tensor, scores: Tensor) -> Tensor:
        """Return a* and b*, scaled."""
        local: Tensor = self.encoder(light)
        everywhere = scores[:, :, None, None].expand(-1, -1, *local.shape[-2:])
        found: Tensor = self.decoder(self.fusion(torch.cat((local, everywhere), 1)))
        return found


class Colorization(nn.Module):
    """The colours of grey images: f maps (B, 1, H, W) in [0, 1] to sRGB (B, 3, H, W) in [0, 1], H and W multiples of 8.

    The input is the grey image and the output the colour image, both as one sees and stores them, since Section 6.2 of
    Balda, Behboodi, Mathar (2018) perturbs the grey image, and measures by PSNR how far image and colour image are
    moved. The grey level becomes L* and L*, a*, b* become sRGB inside f, so that an attack's gradient goes through
    both, and through the frozen classifier too. L* passes to the output unchanged; what leaves the gamut is clipped.
    """

    def __init__(self, features: Features, width: float) -> None:
        super().__init__()
        self.features, self.chroma = features, Chroma(features.count, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the colour images."""
        if x.dim() != 4 or x.shape[1] != 1 or x.shape[2] % MULTIPLE or x.shape[3] % MULTIPLE or 0 in x.shape[2:]:
            raise InputError(
                f"expected grey images (B, 1, H, W) with H and W multiples of {MULTIPLE}, got {tuple(x.shape)}; crop "
                "or resize them."
            )
        light = lightness(x)
        colour = self.chroma(scaled(light), self.features(x))
        return lab_to_rgb(torch.cat((light, CHROMA * colour), 1))


class _Packed(nn.Module):
    """`Chroma` with L* and the scores of each image in one row, as the training loop hands them over."""

    def __init__(self, chroma: Chroma, count: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.chroma, self.count, self.shape = chroma, count, shape

    def forward(self, rows: Tensor) -> Tensor:
        light = rows[:, self.count :].reshape(len(rows), *self.shape)
        colour: Tensor = self.chroma(light, rows[:, : self.count])
        return colour


def grey_and_colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return (grey images with the colours' L*, the colour images), (N, 3, H, W) -> (N, 1, H, W), (N, 3, H, W)."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(
            f"expected colour images (N, 3, H, W) to colour again, got shape {tuple(images.shape)}; use data of colour "
            "images, such as 'cifar10'."
        )
    return torch.cat([grey(part) for part in torch.split(images, BATCH)]), images


def colour_part(model: nn.Module, x: Tensor, colours: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the part that is trained, its inputs and (a*, b*)/127, the frozen classifier having its trained weights.

    Its scores of the grey images x are computed once: it costs several times what is trained.
    """
    if not isinstance(model, Colorization):
        raise InputError(f"expected the network that `colorization` builds, got {type(model).__name__}.")
    model.features.prepare()
    with torch.no_grad():
        rows = [torch.cat((model.features(g), scaled(lightness(g)).flatten(1)), 1) for g in torch.split(x, BATCH)]
        reference = [rgb_to_lab(c)[:, 1:] / CHROMA for c in torch.split(colours, BATCH)]
    part = _Packed(model.chroma, model.features.count, tuple(x.shape[1:]))
    return part, torch.cat(rows), torch.cat(reference)


def colour_error(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of a* and b*, in units of 127."""
    return nn.functional.mse_loss(outputs, target)


def scaled(light: Tensor) -> Tensor:
    """Return L* in [0, 100] brought to [-1, 1]."""
    return light / 50.0 - 1.0


def colorization(width: float = 1.0, features: str | nn.Module = "cifar10-nin") -> Colorization:
    """Build the network with fresh weights; (B, 1, H, W) -> (B, 3, H, W).

    width     share of the original's maps in every convolution; 1 is the original, batch normalisation apart
    features  the classifier: "cifar10-nin" or another classifier of 32x32 colour images in the catalogue,
              "inception_resnet_v2" of the package timm, as in the original, or a module of your own, already trained,
              from colour images (B, 3, 32, 32) to scores (B, F). By name it is fresh too: its trained weights are
              filled in when training starts, and are part of the weights file from then on
    """
    if not 0.0 < width <= 4.0:
        raise InputError(f"width must lie in (0, 4], 1 being the original's, got {width!r}.")
    return Colorization(features_of(features), width)


def _convolution(before: int, after: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolve, normalise, rectify. The original knows no batch normalisation; with it an hour of one core will do."""
    convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


# 3/8 of the original's maps: with the classifier's 1.9 MB the weights then take 3.7 MB in half precision.
STL10_COLORIZATION = NetworkSpec(
    name="stl10-colorization",
    summary="a*, b* from L*: encoder, fusion with the scores of cifar10-nin, decoder; 3/8 of the original's maps",
    data="cifar10",
    input_shape=(1, 32, 32),
    outputs=3 * 32 * 32,
    task="regression",
    reference="Baldassarre, González Morín, Rodés-Guirao 2017; Balda, Behboodi, Mathar 2018, Section 6.2 (STL-10)",
    build=lambda: colorization(3 / 8),
    recipe=TrainingRecipe(
        epochs=60, batch_size=128, learning_rate=2e-3, weight_decay=1e-3, loss=colour_error, warm_up=0.05, half=True
    ),
    short=TrainingRecipe(
        epochs=10, batch_size=128, learning_rate=2e-3, weight_decay=1e-3, loss=colour_error, warm_up=0.1, half=True
    ),
    pairs=grey_and_colours,
    part=colour_part,
    multiple=MULTIPLE,
    maps=3,
)
