"""Exit codes and one-line errors, for the installed command and for tests alike."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from epsball.errors import EpsballWarning, InputError
from epsball.report.text import printable

__all__ = ["OneLineGroup"]

# Typer brings its own copy of click in some versions and not in others; its errors have one base in both.
USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)

INTERRUPTED = 130


class OneLineGroup(TyperGroup):
    """A group of commands: 0 done, 1 failure, 2 bad input with one line on stderr, 130 interrupted."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit with its code, or return the code where standalone_mode is off."""
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning(warnings.showwarning)
            try:
                # Typer's own handling would print several lines.
                result = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
                code = result if isinstance(result, int) else 0
                if code == INTERRUPTED:  # as newer versions of Typer report it
                    raise KeyboardInterrupt
            except InputError as error:
                code = _say(str(error), 2)
            except USAGE_ERRORS as error:
                message = error.format_message() if hasattr(error, "format_message") else str(error)
                code = _say(f"{message} Try 'epsball --help'.", 2)
            except (KeyboardInterrupt, typer.Abort):
                code = _say("interrupted; nothing incomplete was left behind.", INTERRUPTED)
            except (OSError, MemoryError, FloatingPointError) as error:
                code = _say(f"failed: {str(error) or type(error).__name__}", 1)
        if standalone_mode:
            sys.exit(code)
        return code


def _say(message: str, code: int) -> int:
    print(f"epsball: {' '.join(printable(message).split())}", file=sys.stderr)
    return code


def _one_line_warning(default: Any) -> Any:
    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, EpsballWarning):
            print(f"epsball: warning: {' '.join(printable(message).split())}", file=sys.stderr)
        else:
            default(message, category, *rest, **named)

    return show
