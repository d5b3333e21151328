"""The optional packages behind the adapters, with what to do where one does not import."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from epsball.errors import InputError

__all__ = ["import_adapter"]


def import_adapter(module: str, extra: str) -> Any:
    """Import an optional package; InputError says which extra is missing, or why torchvision does not load.

    timm and onnx2torch import torchvision, whose compiled operators load only beside the build of torch that they
    were compiled for.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if "torchvision" in str(error) and getattr(error, "name", "") != "torchvision":
            raise _no_operators(module, error) from error
        raise InputError(
            f"models of this kind need the package {error.name or module}, which cannot be imported ({error}); install "
            f"it with: pip install 'epsball[{extra}]'."
        ) from error
    except (RuntimeError, AttributeError, OSError) as error:
        if "torchvision" in str(error):
            raise _no_operators(module, error) from error
        raise InputError(f"the package {module} cannot be imported ({error}); reinstall it.") from error


def _no_operators(module: str, error: Exception) -> InputError:
    build = torch.__version__.partition("+")[2] or "default"
    where = f" --index-url https://download.pytorch.org/whl/{build}" if build not in ("default",) else ""
    try:
        theirs = version("torchvision")
    except PackageNotFoundError:
        theirs = "of unknown version"
    return InputError(
        f"{module} imports torchvision, whose compiled operators do not load here ({_first(error)}): torchvision "
        f"{theirs} was built for another torch than the installed {torch.__version__}. Install the one of the same "
        f"version and build: python -m pip install --force-reinstall --no-deps 'torchvision{_matching()}'{where}"
    )


def _matching() -> str:
    """Return the requirement of the torchvision that belongs to the installed torch: 0.(N+15).x for 2.N.x."""
    release, _, build = torch.__version__.partition("+")
    major, minor, patch, *_ = [*release.split("."), "0", "0"]
    if major != "2" or not (minor + patch).isdigit():
        return ""
    return f"==0.{int(minor) + 15}.{patch}" + (f"+{build}" if build else "")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
