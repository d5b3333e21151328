"""What the libraries need before they can be imported, and which versions were measured."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import platform
import subprocess
import sys
import types
import warnings
from datetime import date
from functools import cache
from pathlib import Path

PARTS = ("fixed", "minimal", "exact", "overhead", "silent", "autoattack")
DISTRIBUTIONS = {
    "epsball": "epsball",
    "Foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "ART": "adversarial-robustness-toolbox",
    "adv-lib": "adv-lib",
    "SecML-Torch": "secml-torch",
    "pyautoattack": "pyautoattack",
}
LIBRARIES = tuple(DISTRIBUTIONS)
MODULES = {
    "epsball": "epsball",
    "Foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "ART": "art.attacks.evasion",
    "adv-lib": "adv_lib.attacks",
    "SecML-Torch": "secmlt.adv.evasion",
    "pyautoattack": "pyautoattack",
}


def prepare() -> None:
    """Make the peers importable: a stub for visdom, schemas for torchvision's operators, no chatter.

    adv-lib imports visdom for a plot that is off by default. Where torchvision's compiled operators cannot load beside
    a CPU build of torch, its import fails on the schemas of two of them, which no attack calls.
    """
    warnings.filterwarnings("ignore")
    stub_visdom()
    define_operators()


def stub_visdom() -> None:
    if "visdom" in sys.modules:
        return
    visdom = types.ModuleType("visdom")
    visdom.__spec__ = importlib.machinery.ModuleSpec("visdom", None)  # SecML-Torch looks for it before it imports
    visdom.Visdom = type("Visdom", (), {"__init__": lambda self, *args, **options: None})  # type: ignore[attr-defined]
    sys.modules["visdom"] = visdom


def define_operators() -> None:
    import torch

    # A library must stay referenced, or its definitions go with it.
    if not hasattr(torch, "_epsball_torchvision"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._epsball_torchvision = library  # type: ignore[attr-defined]


def versions() -> dict[str, str]:
    """Return the version of each library, "not installed" where there is none."""
    found = {}
    for name, distribution in (*DISTRIBUTIONS.items(), ("torch", "torch"), ("NumPy", "numpy")):
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Say on what the figures were measured, and when."""
    import torch

    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} virtual cores" if names else platform.processor() or platform.machine()


@cache
def code(here: Path = Path(__file__).parent) -> str:
    """Return the commit that is measured, "+" where the sources differ from it; "unknown" outside git.

    To be called before anything is measured: a commit made meanwhile is not what was imported.
    """
    seen = ["git", "status", "--porcelain", "--", "../../src", ".", ":(exclude)results"]
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=9", "HEAD"], cwd=here, capture_output=True, check=True)
        changed = subprocess.run(seen, cwd=here, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.decode().strip() + ("+" if changed.stdout.strip() else "")
