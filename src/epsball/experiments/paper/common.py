"""What the paper's tables and figures have in common: ranges, intervals and files."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from epsball.errors import InputError
from epsball.experiments.storage import write_table

__all__ = ["RANGES", "Bounds", "Progress", "arrow", "check_writable", "concat", "finite", "normal", "versions", "write"]

Progress = Callable[[str, int, int, float], None]
Bounds = tuple[float, float] | None

#: The paper's experiments know no valid range; the second panel stays inside it.
RANGES: dict[str, Bounds] = {"unbounded": None, "inside [0, 1]": (0.0, 1.0)}


def check_writable(out: Path) -> None:
    """Refuse an output folder that cannot be written before any work."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"expected an output folder that can be written, got {out} ({error.strerror}).") from error


def normal(mean: float, error: float) -> dict[str, float | None]:
    """Return the 95 % interval of a mean."""
    spread = 1.959964 * error
    return {"low": finite(mean - spread), "high": finite(mean + spread)}


def finite(value: float) -> float | None:
    """Return None for what JSON cannot say: infinity, or a value that nothing was measured for."""
    return value if math.isfinite(value) else None


def write(out: Path, name: str, content: Any) -> None:
    """Write one file whole: a table as Parquet, a record as JSON, text as it is."""
    from epsball.report.style import write_atomic

    buffer = io.BytesIO()
    if name.endswith(".parquet"):
        write_table(buffer, content)
    elif name.endswith(".json"):
        buffer.write((json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())
    else:
        buffer.write(f"{content}\n".encode())
    write_atomic(out / name, buffer.getvalue())


def concat(tables: list[Any]) -> Any:
    """Put pyarrow tables of one schema together."""
    import pyarrow as pa

    return pa.concat_tables(tables).unify_dictionaries()


def arrow(columns: dict[str, list[Any]]) -> Any:
    """Return a pyarrow table of these columns."""
    import pyarrow as pa

    return pa.table(columns)


def versions() -> dict[str, Any]:
    """Return what a record says of the software it was made with."""
    import epsball

    return {
        "versions": {"epsball": epsball.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    }
