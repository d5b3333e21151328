"""The rows of a run: as Parquet files of single shards, read again one shard at a time, and as the table of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.data.optional import require
from epsball.engines.columns import NO_GROUPS
from epsball.engines.local import STATUSES, Chunk
from epsball.experiments.grid import spread

__all__ = ["Rows", "merge", "results_table", "write_results", "write_rows"]

# These, error_increase and psnr_out belong to one task only: they are null in the other.
_INTEGERS = ("target", "prediction", "clean_prediction")
_NUMBERS = ("gain", "error_increase", "norm_l1", "norm_l2", "norm_linf", "psnr_in", "psnr_out")
_KEY = b"epsball"
_NAMES = ("attack", "crafted_on", "judged_on", "p", "steps", "eps", "main")
_ENOUGH = 1 << 15  # rows of the results that are held before they are written


def merge(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Put the chunks of consecutive batches together: one for each attack, pair of models and eps, as they came."""
    groups: dict[tuple[str, str, str, float], list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault((chunk.attack, chunk.crafted_on, chunk.judged_on, chunk.eps), []).append(chunk)
    return [
        replace(group[0], columns={name: np.concatenate([c.columns[name] for c in group]) for name in group[0].columns})
        for group in groups.values()
    ]


def write_rows(path: Path, chunks: Sequence[Chunk]) -> None:
    """Write the chunks of a shard as they are, each a row group, and what their rows agree in beside them."""
    pa, pq = require("pyarrow", "pyarrow", "writing results"), require("pyarrow.parquet", "pyarrow", "writing results")
    shared = json.dumps([{name: getattr(chunk, name) for name in _NAMES} for chunk in chunks])  # inf as Infinity
    tables = [pa.table({name: pa.array(values) for name, values in chunk.columns.items()}) for chunk in chunks]
    schema = tables[0].schema.with_metadata({_KEY: shared.encode()})
    with path.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


class Rows:
    """The rows of all shards, read from their files whenever they are iterated over, so that few are held at a time.

    grid: of a run without a limit, the budgets at which its rows are told. columns: those that are read.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        self._pq = require("pyarrow.parquet", "pyarrow", "reading results")
        self._files, self._columns = list(files), columns
        self._grid: tuple[float, ...] = ()
        self._dtype = torch.float64

    def only(self, *columns: str) -> Rows:
        """Return the same rows with these columns, as far as they exist."""
        rows = Rows(self._files, columns)
        rows._grid, rows._dtype = self._grid, self._dtype
        return rows

    def spread(self, grid: Sequence[float], dtype: torch.dtype) -> Rows:
        """Return the rows of a run without a limit at every eps, as `grid.spread` does."""
        rows = Rows(self._files, self._columns)
        rows._grid, rows._dtype = tuple(grid), dtype
        return rows

    def __iter__(self) -> Iterator[Chunk]:
        """Yield the chunks of each shard in turn."""
        for path in self._files:
            with self._pq.ParquetFile(path) as file:
                for place in range(file.num_row_groups):
                    yield from self._read(file, place, self._grid)

    def groups(self) -> Iterator[Chunk]:
        """Yield the chunks in the order of the results: attacks in their order, then eps, then samples."""
        with self._pq.ParquetFile(self._files[0]) as file:
            count = file.num_row_groups
        budgets: list[tuple[float, ...]] = [(eps,) for eps in self._grid] or [()]
        for place in range(count):
            for grid in budgets:
                for path in self._files:
                    with self._pq.ParquetFile(path) as file:
                        yield from self._read(file, place, grid)

    def _read(self, file: Any, place: int, grid: Sequence[float]) -> Iterator[Chunk]:
        names = None
        if self._columns is not None:
            names = [name for name in file.schema_arrow.names if name in self._columns]
        table = file.read_row_group(place, columns=names, use_threads=False)
        shared = json.loads(file.schema_arrow.metadata[_KEY])[place]
        chunk = Chunk(**shared, columns={name: table[name].to_numpy() for name in table.column_names})
        if grid:
            yield from spread(chunk, grid, self._dtype)
        else:
            yield chunk


def write_results(path: Path, rows: Rows) -> None:
    """Write results.parquet from the shards, a part at a time."""
    pa, pq = require("pyarrow", "pyarrow", "writing results"), require("pyarrow.parquet", "pyarrow", "writing results")
    waiting, count = [results_table(next(rows.groups())).slice(0, 0)], 0
    with path.open("wb") as file, pq.ParquetWriter(file, waiting[0].schema, compression="zstd") as writer:
        for chunk in rows.groups():
            waiting.append(results_table(chunk))
            count += len(waiting[-1])
            if count >= _ENOUGH:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting, count = [], 0
        if count:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())


def results_table(chunk: Chunk) -> Any:
    """Return the rows of a chunk as a pyarrow table."""
    pa = require("pyarrow", "pyarrow", "writing results")
    columns, count = chunk.columns, len(chunk.columns["sample_id"])
    whole, number, text = pa.int64(), pa.float64(), pa.string()

    def same(value: Any, kind: Any) -> Any:
        return pa.repeat(pa.scalar(value, kind), count)

    def each(name: str, kind: Any) -> Any:
        if name not in columns:
            return pa.nulls(count, kind)
        return pa.array(columns[name].astype(kind.to_pandas_dtype()), kind)

    groups = columns.get("groups")  # not of shards that earlier versions wrote
    entries = {
        "sample_id": each("sample_id", whole),
        "attack": same(chunk.attack, text),
        "p": same(chunk.p, number),
        "eps": same(chunk.eps, number),
        "steps": same(chunk.steps, whole),
        **{name: each(name, whole) for name in _INTEGERS},
        "success": pa.array(columns["success"]),
        "status": pa.array(STATUSES, text).take(pa.array(columns["status"])),
        "exact": pa.array(columns["exact"]),
        **{name: each(name, number) for name in _NUMBERS},
        "groups": each("groups", whole) if groups is None else pa.array(groups, whole, mask=groups == NO_GROUPS),
        **{name: each(name, whole) for name in ("forwards", "backwards", "jvps")},
        "seconds": each("seconds", number),
        "crafted_on": same(chunk.crafted_on, text),
        "judged_on": same(chunk.judged_on, text),
    }
    return pa.table(entries)
