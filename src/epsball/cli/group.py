"""Exit codes and one-line errors, for the installed command and for tests alike."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from epsball.cli.stopping import Stopped, stopping
from epsball.errors import EpsballWarning, InputError
from epsball.report.text import printable

__all__ = ["OneLineGroup"]

# Typer brings its own copy of click in some versions and not in others; its errors have one base in both.
USAGE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)

INTERRUPTED = 130
_NOTHING = "nothing incomplete was left behind."


class OneLineGroup(TyperGroup):
    """A group of commands: 0 done, 1 failure, 2 bad input with one line on stderr, 130 or 143 stopped by a signal."""

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
        with warnings.catch_warnings(), stopping():
            warnings.showwarning = _one_line_warning(warnings.showwarning)
            try:
                # Typer's own handling would print several lines.
                result = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
                code = result if isinstance(result, int) else 0
                if code == INTERRUPTED:  # as newer versions of Typer report it
                    raise KeyboardInterrupt
            except InputError as error:
                code = _say(_with_notes(str(error), error), 2)
            except USAGE_ERRORS as error:
                message = error.format_message() if hasattr(error, "format_message") else str(error)
                code = _say(f"{message} Try 'epsball --help'.", 2)
            except (KeyboardInterrupt, typer.Abort) as error:
                code = _say(_with_notes("interrupted", error, _NOTHING), INTERRUPTED)
            except Stopped as error:
                how = "interrupted" if error.code == INTERRUPTED else f"stopped by {error}"
                code = _say(_with_notes(how, error, _NOTHING), error.code)
            except (OSError, MemoryError, FloatingPointError) as error:
                code = _say(_with_notes(f"failed: {str(error) or type(error).__name__}", error), 1)
        if standalone_mode:
            sys.exit(code)
        return code


def _with_notes(message: str, error: BaseException, otherwise: str = "") -> str:
    """Add what is to be known of the unfinished work, which the exception was given on its way."""
    notes = " ".join(getattr(error, "__notes__", [])) or otherwise
    return f"{message.rstrip('.')}; {notes}" if notes else message


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
