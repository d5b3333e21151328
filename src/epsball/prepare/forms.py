"""The ways to prepare a model, by name."""

from __future__ import annotations

from epsball.errors import InputError

__all__ = ["AUTO", "PARTS", "NoCopyError", "check_prepare", "parts"]

AUTO = "auto"
PARTS = ("fold", "channels_last", "bfloat16", "compile")


class NoCopyError(Exception):
    """The reason why there is no copy of this kind; the model itself serves."""


def check_prepare(value: object) -> str | None:
    """Return the name with its parts in order, None for the model itself; InputError for any other."""
    if value is None:
        return None
    given = set(value.split("+")) if isinstance(value, str) else {""}
    # What is tried and timed must compute the same: bfloat16 does not.
    if not given <= ({AUTO, "compile"} if AUTO in given else set(PARTS)):
        raise InputError(
            f'expected prepare as None, "auto", "auto+compile", or of {", ".join(PARTS)} one or several joined by "+" '
            f'such as "fold+channels_last", got {value!r}.'
        )
    return "+".join(part for part in (AUTO, *PARTS) if part in given)


def parts(form: str | None) -> tuple[str, ...]:
    """Return the parts of a name that was checked."""
    return () if form is None else tuple(form.split("+"))
