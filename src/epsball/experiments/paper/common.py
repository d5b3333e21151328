"""What the paper's tables and figures have in common: networks with their test sets, records and files."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball import data, networks
from epsball.errors import InputError
from epsball.experiments.storage import write_table

__all__ = ["RANGES", "Bounds", "Progress", "arrow", "check_writable", "concat", "finite", "load", "normal", "samples"]
__all__ += ["versions", "write"]

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


def load(name: str, data_root: str | None, limit: int | None) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Load a shipped network and the test set that it belongs to."""
    chosen = data.load(networks.spec(name).data, split="test", data_root=data_root, limit=limit)
    if chosen.target is None:  # the paper's data sets have labels
        raise ValueError(f"{chosen.name} has no labels")
    return networks.load(name), chosen.x, chosen.target, chosen.ids


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


def samples(progress: Progress | None, label: str, total: int) -> Callable[[int], None] | None:
    """Turn "n more samples are done" into the caller's progress."""
    if progress is None:
        return None
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(label, done, total, done / total)

    return advance


def versions() -> dict[str, Any]:
    """Return what a record says of the software it was made with."""
    import epsball

    return {
        "versions": {"epsball": epsball.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    }
