"""Samples that cannot be read: an error for the first, or a list of all of them where they are to be left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from epsball.errors import InputError

__all__ = ["Skipped", "Skipper"]


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out: its file, or its place in a file, and why."""

    file: str
    reason: str


@dataclass
class Skipper:
    """Takes what is wrong with a sample: raises it, or where `skip` is set notes it and goes on."""

    skip: bool = False
    found: list[Skipped] = field(default_factory=list)

    def refuse(self, file: str, reason: str, remedy: str = "") -> None:
        """Note this sample as left out, or raise InputError with the remedy and with how to leave it out."""
        if not self.skip:
            raise InputError(f"{file}: {reason}; {remedy or 'remove or repair it'}, or leave it out (--skip-bad).")
        self.found.append(Skipped(file, reason))

    def check_some(self, kept: int, where: str) -> None:
        """Refuse data of which nothing is left."""
        if not kept:
            first = f", the first is {self.found[0].file}: {self.found[0].reason}" if self.found else ""
            raise InputError(f"{where}: none of the {len(self.found):,} samples can be read{first}.")

    @property
    def said(self) -> str:
        """What is added to the source of the data."""
        return f", {len(self.found):,} left out" if self.found else ""
