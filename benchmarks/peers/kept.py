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
from benchmarks.peers.environment import PARTS

RESULTS = Path(__file__).parent / "results"


def pack(root: Path, kept: Path = RESULTS) -> dict[str, int]:
    """Put the cells under `root` into one file a part, in place of those kept before; how many cells each then holds.

    What is kept and does not lie under `root` stays.
    """
    counts = {}
    for part in PARTS:
        path, cells = kept / f"{part}.parquet", {}
        if path.is_file():
            cells = _apart(pq.read_table(path))
        cells |= {file.relative_to(root).as_posix(): pq.read_table(file) for file in (root / part).rglob("*.parquet")}
        tables = [_named(table, name) for name, table in sorted(cells.items()) if table.num_rows]
        if tables:
            save(pa.concat_tables(tables, promote_options="permissive"), path)
            counts[part] = len(tables)
    return counts


def unpack(root: Path, kept: Path = RESULTS) -> dict[str, int]:
    """Write the cells that are kept as files under `root`, where there is none yet; how many of each part."""
    counts = {}
    for path in sorted(kept.glob("*.parquet")):
        cells = _apart(pq.read_table(path))
        missing = [name for name in cells if not (root / name).is_file()]
        for name in missing:
            save(cells[name], root / name)
        counts[path.stem] = len(missing)
    return counts


def _apart(table: pa.Table) -> dict[str, pa.Table]:
    """Take a part into its cells, without the columns that only others have."""
    cells = {}
    for name in pc.unique(table["cell"]).to_pylist():
        rows = table.filter(pc.equal(table["cell"], name)).drop_columns(["cell"])
        empty = [column for column in rows.column_names if rows[column].null_count == rows.num_rows]
        cells[name] = rows.drop_columns(empty)
    return cells


def _named(table: pa.Table, name: str) -> pa.Table:
    return table.append_column("cell", pa.array([name] * table.num_rows))
