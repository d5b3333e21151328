"""The finished cells as one Parquet file a part, which the repository keeps: measure here, go on elsewhere.

`pack` before a commit, `unpack` after a clone: a part goes on with the cells that are not there yet. The column `cell`
is the path of the file that a row was in.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.peers.cells import save

RESULTS = Path(__file__).parent / "results"
PARTS = ("fixed", "minimal", "exact", "overhead", "silent", "autoattack")


def pack(root: Path, kept: Path = RESULTS) -> dict[str, int]:
    """Write the cells under `root` into one file a part; how many cells each holds. A part without cells stays."""
    counts = {}
    for part in PARTS:
        paths = sorted((root / part).rglob("*.parquet"))
        if not paths:
            continue
        tables = [_named(pq.read_table(path), path.relative_to(root).as_posix()) for path in paths]
        save(pa.concat_tables(tables, promote_options="permissive"), kept / f"{part}.parquet")
        counts[part] = len(paths)
    return counts


def unpack(root: Path, kept: Path = RESULTS) -> dict[str, int]:
    """Write the cells that are kept as files under `root`, where there is none yet; how many of each part."""
    counts = {}
    for path in sorted(kept.glob("*.parquet")):
        table = pq.read_table(path)
        names = [name for name in pc.unique(table["cell"]).to_pylist() if not (root / name).is_file()]
        for name in names:
            rows = table.filter(pc.equal(table["cell"], name)).drop_columns(["cell"])
            # Columns that only other cells have come back empty.
            empty = [column for column in rows.column_names if rows[column].null_count == rows.num_rows]
            save(rows.drop_columns(empty), root / name)
        counts[path.stem] = len(names)
    return counts


def _named(table: pa.Table, name: str) -> pa.Table:
    return table.append_column("cell", pa.array([name] * table.num_rows))
