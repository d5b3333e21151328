"""Each library's attacks under one signature, one file a library."""

from __future__ import annotations

import importlib

from benchmarks.peers.adapters.row import FIXED, MINIMAL, Attack, Job

__all__ = ["FIXED", "MINIMAL", "Attack", "Job", "attacks", "failures"]

_FILES = {
    "epsball": "ours",
    "Foolbox": "of_foolbox",
    "torchattacks": "of_torchattacks",
    "ART": "of_art",
    "adv-lib": "of_adv_lib",
    "SecML-Torch": "of_secml",
    "pyautoattack": "of_pyautoattack",
}
failures: dict[str, str] = {}  # library -> why it could not be imported


def attacks(libraries: tuple[str, ...] | None = None, recipes: tuple[str, ...] = ()) -> list[Attack]:
    """Return the attacks of every library that can be imported. recipes: further epsball recipes by name."""
    found: list[Attack] = []
    for library, file in _FILES.items():
        if libraries and library not in libraries:
            continue
        try:
            module = importlib.import_module(f"benchmarks.peers.adapters.{file}")
        except Exception as error:  # a peer may fail to import in any way; it is listed with its error
            failures[library] = f"{type(error).__name__}: {error}"
            continue
        found += module.attacks(recipes) if library == "epsball" else module.ATTACKS
    return found
