"""SIGTERM and its like as exceptions, so that a run that is asked to stop leaves its folder in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Stopped", "stopping"]

_PATIENCE = 10.0  # seconds within which a repeated signal is not another one: wrappers tend to send it twice


class Stopped(BaseException):
    """A signal asked the process to stop; like KeyboardInterrupt no Exception, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number  # as shells report it


@contextmanager
def stopping() -> Iterator[None]:
    """Raise Stopped for SIGINT, SIGTERM and SIGHUP within; a signal that is ignored (nohup) remains so."""
    defaults = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    last = -_PATIENCE

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PATIENCE:
            last = now
            raise Stopped(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name, default in defaults.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is default:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
