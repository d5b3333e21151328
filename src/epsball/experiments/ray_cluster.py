"""The Ray that a run uses: started on this machine, or connected to."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

from epsball.errors import InputError

__all__ = ["connect", "last_line", "room_of"]


def connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start Ray on this machine; signals are left as they were."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    there = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(there)
    options = {"include_dashboard": False} if there == "local" else {}
    kept: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address=there, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ImportError, ValueError, RuntimeError, OSError) as error:
        raise _unreachable(there, last_line(error)) from error
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)


def _reach(address: str) -> None:
    """Refuse an address that nobody listens at, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"expected a Ray that can be reached, got {address} ({reason}); start one with `ray start --head` and give its "
        "--address, or leave --address out, and RAY_ADDRESS unset, to run on this machine."
    )


def room_of(ray: Any, cpus: int, gpus: int) -> int:
    """Return how many workers of so many CPUs and GPUs fit on the machines of the cluster."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            fit = int(there.get("CPU", 0) // cpus)
            room += min(fit, int(there.get("GPU", 0) // gpus)) if gpus else fit
    return room


def last_line(error: BaseException) -> str:
    """Return the line of a long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
