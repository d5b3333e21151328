"""What can go wrong: refused input is an exception with a remedy, a sample's failure is data with a message."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

__all__ = ["EpsballWarning", "InputError", "Status", "unknown_name"]


class InputError(ValueError):
    """Input refused before any work: the message says what was expected, what came, and what to do."""


class EpsballWarning(UserWarning):
    """Input that is accepted, but probably not what was meant."""


class Status(Enum):
    """How the attack ended for one sample; the value is the message."""

    SUCCESS = "the returned perturbation succeeds"
    ALREADY = "the input succeeds without any perturbation"
    STANDS = "the steps are spent and the model stands"
    INFEASIBLE = "no perturbation inside the bounds solves the last linearised problem; the best corner was taken"
    ZERO_GRADIENT = "the gradient is exactly zero, so the linear model has no direction"
    NON_FINITE = "the model's output or gradient is not finite at this sample"
    BEYOND = "the smallest perturbation found is larger than eps"
    CONSTRAINT_VIOLATED = "the returned perturbation lies outside the constraint"

    @property
    def ok(self) -> bool:
        """Whether this status means that the objective's success condition holds on the returned tensor."""
        return self in (Status.SUCCESS, Status.ALREADY)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Build the error for a name that is not in a catalogue, with the nearest names."""
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of: {', '.join(known)}."
    return InputError(f"unknown {kind} {name!r}; {hint}")
