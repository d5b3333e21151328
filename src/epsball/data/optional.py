"""Packages that only some users need: asked for where they are used, with a remedy when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from epsball.errors import InputError

__all__ = ["require"]


def require(module: str, package: str, purpose: str, extra: str = "cli") -> Any:
    """Import `module`, or say which package is missing, for what, and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the package {package}, which cannot be imported ({error}); "
            f"install it with: pip install 'epsball[{extra}]'."
        ) from error
