"""The demo's configuration: a small network on the digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

from epsball import networks
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import Progress
from epsball.experiments.storage import RunFolder

__all__ = ["demo_config"]

NETWORK = "digits-fcnn"
ATTACKS = ("deepfool", "alg1-10", "alg1", "fgsm", "pgd", "random-linf")
EPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def demo_config(
    out: Path, *, batch_size: int = 500, seed: int = 0, overwrite: bool = False, progress: Progress | None = None
) -> RunConfig:
    """Return what the demo runs; where no weights come with epsball, train them first, into `out`."""
    weights = None
    if not networks.shipped(NETWORK).is_file():
        from epsball.training import train

        RunFolder(out, overwrite=overwrite, replaces="demo")  # refuse before, not after, the training
        weights = out / f"{NETWORK}.safetensors"
        if not weights.is_file():
            train(
                NETWORK,
                seed=seed,
                out=weights,
                progress=lambda done, total, _: None if progress is None else progress("training", done, total),
            )
    return RunConfig(
        command="demo",
        model=NETWORK,
        weights=None if weights is None else str(weights),
        attacks=ATTACKS,
        eps=EPS,
        batch_size=batch_size,
        seed=seed,
    )
