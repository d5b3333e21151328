"""The demo: a small classifier and a small regressor on the digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epsball import networks
from epsball.experiments.config import RunConfig
from epsball.experiments.runner import Progress
from epsball.experiments.storage import RunFolder

__all__ = ["demo_runs"]

REGRESSOR = "regressor"  # the folder of the second run, inside that of the first
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "",
        {
            "model": "digits-fcnn",
            "attacks": ("deepfool", "alg1-10", "alg1", "fgsm", "pgd", "random-linf"),
            "eps": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3),
        },
    ),
    (
        REGRESSOR,
        {
            "model": "digits-autoencoder",
            "attacks": ("quadratic-lp", "linear-lp-10", "linear-lp-1", "random-l2"),
            "eps": (0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
            "p": 2.0,
        },
    ),
)


def demo_runs(
    out: Path, *, batch_size: int = 500, seed: int = 0, overwrite: bool = False, progress: Progress | None = None
) -> Iterator[tuple[RunConfig, Path]]:
    """Yield what the demo runs and where to, the classifier into `out` and the regressor into a folder in it.

    Where no weights come with epsball, they are trained first, into that folder. InputError before any work if one of
    the folders holds other results.
    """
    folders = [out / name for name, _ in RUNS]
    for folder in folders:
        RunFolder(folder, overwrite=overwrite, replaces="demo")
    for folder, (_, settings) in zip(folders, RUNS, strict=True):
        weights = _weights(settings["model"], folder, seed, progress)
        yield (
            RunConfig(command="demo", weights=weights, batch_size=batch_size, seed=seed, **settings),
            folder,
        )


def _weights(network: str, folder: Path, seed: int, progress: Progress | None) -> str | None:
    if networks.shipped(network).is_file():
        return None
    from epsball.training import train

    path = folder / f"{network}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        train(
            network,
            seed=seed,
            out=path,
            progress=lambda done, total, _: None if progress is None else progress("training", done, total),
        )
    return str(path)
