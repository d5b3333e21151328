"""The command line: reads flags, calls the library, prints; no logic of its own."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command `epsball` and exit: 0 done, 1 failure, 2 bad input, 130 interrupted, 143 terminated."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        print(f'epsball: the command line needs {error.name}; pip install "epsball[cli]"', file=sys.stderr)
        sys.exit(2)
    # PyTorch reads it at its first allocation: large tensors then cost a fraction of the page faults (Linux only).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from epsball.cli.app import app

    app()
