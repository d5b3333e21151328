"""A configuration as text: the values of strict JSON, and the command line that runs it again."""

from __future__ import annotations

import dataclasses
import math
import shlex
from typing import Any

__all__ = ["command_line", "from_plain", "plain"]


def plain(value: Any) -> Any:
    """Return a value as strict JSON can hold it: tuples as lists, infinity as "inf"."""
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return "inf" if value == math.inf else value


def from_plain(name: str, value: Any) -> Any:
    """Return the value of the entry of this name again."""
    if name == "p" and value == "inf":
        return math.inf
    return tuple(value) if isinstance(value, list) else value


def command_line(config: Any) -> str:
    """Return the command that runs a RunConfig again."""
    words = ["epsball", config.command]
    if config.command != "demo":
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            # The task is the network's own, whether or not it was said.
            skipped = field.name in ("command", "task") or (config.command, field.name) == ("robustness", "attacks")
            if not skipped and value != field.default:
                words += [f"--{field.name.replace('_', '-')}"]
                words += [] if value is True else [_flag(value)]
    return shlex.join([*words, "--out", "DIR"])


def _flag(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_flag, value))
    return "none" if value is None else str(value)
