"""How robust a model is, measured: fooling ratios, distances to the decision boundary, signal-to-noise ratios."""

from epsball.metrics.distance import Robustness, first_order_distance, robustness
from epsball.metrics.fooling import FoolingCurve, fooling_curve, sweep
from epsball.metrics.optimality import optimality
from epsball.metrics.psnr import psnr
from epsball.metrics.regression import PsnrCurve, psnr_curve

__all__ = [
    "FoolingCurve",
    "PsnrCurve",
    "Robustness",
    "first_order_distance",
    "fooling_curve",
    "optimality",
    "psnr",
    "psnr_curve",
    "robustness",
    "sweep",
]
