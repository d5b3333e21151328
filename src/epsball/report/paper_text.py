"""What the page knows of the paper itself: its panels, its words about each figure, and how our setting differs."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["COLORIZATION", "DIFFERENCES", "FIGURES", "NOTES", "PAPER", "Figure", "method_name"]

PAPER = "https://arxiv.org/abs/1812.07385"


@dataclass(frozen=True)
class Figure:
    """A figure of the paper.

    panels   letter: (what it shows, the network it needs)
    paper    what the paper's figure shows and what its text says of it
    """

    title: str
    panels: dict[str, tuple[str, str]]
    paper: str


FIGURES = {
    "figure1": Figure(
        "Images that Algorithm 1 makes a network misclassify",
        {"a": ("MNIST digits", "mnist-lenet5"), "b": ("CIFAR-10 images", "cifar10-nin")},
        "Correctly classified images that are misclassified once the perturbation of Algorithm 1 is added. The paper "
        "gives no ε.",
    ),
    "figure2": Figure(
        "What attacks and noise of one size do to the output of regression networks",
        {
            "a": ("MNIST autoencoder, quadratic-ℓ∞", "mnist-autoencoder"),
            "b": ("CIFAR-10 autoencoder, linear-pixel-100", "cifar10-autoencoder"),
            "c": ("STL-10 colorization, linear-ℓ∞-20", "stl10-colorization"),
        },
        "(a) The autoencoder removes random noise, and fails on the adversarial perturbation. (b) 100 chosen pixels "
        "distort the output far more than 100 random ones. (c) The colorization network is highly sensitive: original "
        "and adversarial image are nearly identical. The paper gives no ε.",
    ),
    "figure3": Figure(
        "Fooling ratio over ε",
        {
            "a": ("FCNN (MNIST)", "mnist-fcnn"),
            "b": ("LeNet-5 (MNIST)", "mnist-lenet5"),
            "c": ("NIN (CIFAR-10)", "cifar10-nin"),
            "d": ("DenseNet (CIFAR-10)", "cifar10-densenet40"),
        },
        "Fooling ratio in percent of DeepFool, Algorithms 1-10, 1-5, 1 and 2, FGSM, PGD and random noise, for ε from 0 "
        "to 0.10 (a), to 0.20 (b), to 0.03 (c), and from 0.002 to 0.01 (d). Iterative methods fool more than one-step "
        "methods, though in (a) and (c) not always by much; Algorithm 1-T is above DeepFool and PGD, Algorithm 1 above "
        "FGSM, and Algorithm 2 is competitive with FGSM.",
    ),
    "figure4": Figure(
        "Output PSNR of regression networks under attack",
        {
            "a": ("MNIST autoencoder, ℓ2", "mnist-autoencoder"),
            "b": ("MNIST autoencoder, ℓ∞", "mnist-autoencoder"),
            "c": ("CIFAR-10 autoencoder, pixels", "cifar10-autoencoder"),
            "d": ("STL-10 colorization, ℓ∞", "stl10-colorization"),
        },
        "Mean output PSNR over 20 images. (a), (b): over an input PSNR of 10 to 40 dB, on an axis from 12 to 22 dB; "
        "successive linearisations lower it, and the single quadratic step is competitive with them. (c): on an axis "
        "from 14 to 24 dB; the autoencoder stands a single pixel, while 100 chosen pixels cost far more than 100 "
        "random ones. (d): on an axis from 15 to 40 dB; successive linearisations take off more than 10 dB (against "
        "what and where on the axis is not said), and the colorization network is clearly unstable.",
    ),
}

#: What is to be known to read our picture of a figure.
NOTES = {
    "figure2": "Below an input stands its PSNR against the original, below an output its own against the reference: "
    "the original in (a) and (b), the network's output for the original in (c). The perturbation is drawn amplified.",
    "figure3": "Bands are 95 % confidence intervals. bim and pgd (projected steps) are not in the paper's figure; bim, "
    "which all but repeats pgd-paper, is measured on the networks for MNIST only.",
    "figure4": "Bands are 95 % confidence intervals of the mean; the level line is the output PSNR without an attack. "
    "Methods marked * are not in the paper's figure. The input PSNR is that of the whole budget, of which several "
    "steps may use less. In (d) the output without an attack is the reference itself and has no PSNR; the rising line "
    "is where input and output move alike.",
}

#: What differs whatever the run: (what, how).
DIFFERENCES = (
    (
        "Range of x",
        "As in the paper, perturbed images may leave [0, 1]. Classifiers are also attacked inside [0, 1], as images "
        "are; those numbers are told apart everywhere and judge no statement of the paper.",
    ),
    (
        "Methods",
        "BIM, PGD with projected steps, and quadratic steps that are iterated are not in the paper's figures; they are "
        "run with the same number of steps. Quadratic-ℓ∞ starts from the paper's greedy choice (20) among others and "
        "keeps the best, so that it can only be stronger than the paper's.",
    ),
    (
        "Axis of Figure 4(c)",
        "The paper's axis reads input PSNR, 0.1 to 0.7 dB. One pixel changed by 0.7 leaves an input PSNR of over "
        "30 dB, so that the axis can only be ε, and is ε here.",
    ),
    (
        "Pixels in Figure 4(c)",
        "The paper gives no number for what an autoencoder may lose and still stand an attack; 1 dB is taken here.",
    ),
    (
        "ε of Figures 1 and 2",
        "Not given in the paper; each picture says which ε it was made with.",
    ),
)

#: What differs where the colorization network is among those measured.
COLORIZATION = (
    (
        "Colorization network",
        "The paper's is the original of Deep Koalarization, with the features of Inception-ResNet-v2, trained on "
        "STL-10. Ours has fewer maps, the features of a NIN, and learnt the colours of CIFAR-10; it is convolutional, "
        "and is shown images of STL-10 at their 96x96 pixels. Grey image in, colour image out, both as one sees them: "
        "the conversions to and from L*a*b* are part of the attacked network.",
    ),
    (
        "Reference of Figure 4(d)",
        "y := f(x), the network's own output, as the paper proposes where the true output is unknown. Its figure does "
        "not say which, but its axis goes up to 40 dB, which no colorization reaches against the true colours.",
    ),
)


def method_name(text: str) -> str:
    """Write the names of methods as the paper does: linear-linf-10 as linear-ℓ∞-10, also inside a sentence."""
    return re.sub(r"-l(?:inf|∞)\b|-l∞", "-ℓ∞", text).replace("-l2", "-ℓ2")
