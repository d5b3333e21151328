"""Parquet files: a column of images, as Hugging Face datasets write them, or feature columns, with a label column."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from epsball.data.checks import check_memory
from epsball.data.dataset import Dataset
from epsball.data.images import read_images
from epsball.data.optional import require
from epsball.data.parquet_columns import (
    choose,
    damaged_rows,
    files_of,
    is_image,
    is_list,
    is_number,
    is_text,
    text_classes,
)
from epsball.data.remote import Location
from epsball.data.skipping import Skipper
from epsball.data.tensors import from_tensors
from epsball.errors import InputError

__all__ = ["is_folder_of_parquet", "load_parquet"]


def is_folder_of_parquet(folder: Location) -> bool:
    """Return whether all visible files of a folder are Parquet files: the shards of one set."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "_"))]
    return bool(entries) and all(entry.suffix.lower() == ".parquet" for entry in entries)


def load_parquet(
    path: Location,
    limit: int | None = None,
    *,
    split: str = "test",
    x_columns: Sequence[str] = (),
    y_columns: Sequence[str] = (),
    skip_bad: bool = False,
) -> Dataset:
    """Return the samples of a Parquet file, or of the shards in a folder, in the order of their names.

    split      in a folder where the names of files begin with several of train, test and validation: "train" reads the
               train files, "test" the test files or, where there are none, the validation files. Else all are read
    x_columns  one column of images (bytes, or a struct with `bytes`) gives (N, C, H, W) in [0, 1]; one of lists gives
               (N, L); several of numbers give (N, M). Default: the one image column, else the one of lists, else all
               columns of numbers that are neither y nor the index of a pandas table
    y_columns  integers or text give classes (text in sorted order, a dictionary column in its own), floating numbers
               reference outputs (N, O). Default: the column called label, labels, target, targets, y or class, where
               there is one

    skip_bad: rows with a missing or damaged image, value or label, or with a list of another shape than most, are left
    out, and listed by row in `Dataset.skipped`.
    """
    pq, pa = (require(name, "pyarrow", "reading Parquet") for name in ("pyarrow.parquet", "pyarrow"))
    files, chosen = files_of(split, sorted(_shards(path), key=lambda file: file.name), str(path))
    table, total, names = _read(files, path, pq, pa, limit, tuple(x_columns), tuple(y_columns))
    schema, skipper = table.schema, Skipper(skip_bad)
    xs, ys = choose(schema, pa, tuple(x_columns), tuple(y_columns), str(path))
    rows = torch.arange(table.num_rows)
    if skip_bad:
        bad = damaged_rows(table, xs, ys, pa)
        for row, reason in bad.items():
            skipper.refuse(f"{path}, row {row}", reason)
        rows = torch.tensor([row for row in rows.tolist() if row not in bad], dtype=torch.int64)
        skipper.check_some(len(rows), str(path))
        table = table.take(rows.numpy()) if bad else table
    images = is_image(schema.field(xs[0]).type, pa)
    y, classes = _labels(table, ys, pa, str(path), names)
    name = str(path)
    if images:
        x, places = _images(table[xs[0]], f"{path}, column {xs[0]}", rows.tolist(), skipper)
        index = torch.tensor(places, dtype=torch.int64)
        found = from_tensors(name, x, None if y is None else y[index], skipper, rows[index])
    else:
        found = from_tensors(name, _features(table, xs, pa, str(path)), y, skipper, rows)
    kind = "" if chosen == "all" else f", {chosen} files"
    source = f"{path}{kind}: {len(found):,} of {total:,} rows{skipper.said}"
    return Dataset.of(
        name,
        found.x,
        found.target,
        split=chosen,
        source=source,
        classes=classes,
        bounds=(0.0, 1.0) if images else None,
        ids=found.ids,
        skipped=tuple(skipper.found),
        total=total,
    )


def _shards(path: Location) -> list[Location]:
    if not path.is_dir():
        return [path]
    return [entry for entry in path.iterdir() if not entry.name.startswith((".", "_"))]


def _read(
    files: list[Location], path: Location, pq: Any, pa: Any, limit: int | None, xs: tuple[str, ...], ys: tuple[str, ...]
) -> tuple[Any, int, tuple[str, ...]]:
    """Read the columns that are asked for of the first rows, count all rows, and find all classes that are text."""
    parts: list[Any] = []
    labels: list[Any] = []
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                reader = pq.ParquetFile(stream)
                sides = choose(reader.schema_arrow, pa, xs, ys, str(file))
                wanted = [name for side in sides for name in side]
                if len(sides[1]) == 1 and is_text(reader.schema_arrow.field(sides[1][0]).type, pa):
                    # Whole, beyond the limit: an index must mean the same class whatever is read.
                    labels.append(reader.read(columns=sides[1]).column(0))
                have = sum(part.num_rows for part in parts)
                total += reader.metadata.num_rows
                left = reader.metadata.num_rows if limit is None else max(0, limit - have)
                batches: list[Any] = []
                for batch in reader.iter_batches(batch_size=1024, columns=wanted) if left or not parts else ():
                    batches.append(batch.slice(0, left))
                    left -= len(batches[-1])
                    if left <= 0:
                        break
                schema = pa.schema([reader.schema_arrow.field(name) for name in wanted], reader.schema_arrow.metadata)
                parts.append(pa.Table.from_batches(batches, schema=schema))
        except InputError:
            raise
        except Exception as error:  # pyarrow raises ArrowInvalid, OSError and more
            said = " ".join(str(error).split())
            raise InputError(f"{file}: not a sound Parquet file ({said}); write it again.") from error
    try:
        table = pa.concat_tables(parts)
    except Exception as error:
        raise InputError(f"{path}: the files differ in their columns ({error}); read them one by one.") from error
    if not table.num_rows:
        raise InputError(f"{path}: holds no rows.")
    return table, total, text_classes(labels, pa)


def _images(column: Any, where: str, ids: list[int], skipper: Skipper) -> tuple[torch.Tensor, list[int]]:
    def opened(value: Any) -> io.BytesIO:
        raw = value.get("bytes") if isinstance(value, dict) else value
        if raw is None:
            # A path beside it is not followed: it may lead anywhere.
            raise ValueError("the row holds no bytes")
        return io.BytesIO(raw)

    rows = ((f"{where}, row {row}", partial(opened, value.as_py())) for row, value in zip(ids, column, strict=True))
    return read_images(cast(Any, rows), len(column), skipper)


def _features(table: Any, names: list[str], pa: Any, where: str) -> torch.Tensor:
    columns = []
    for name in names:
        kind = table.schema.field(name).type
        if is_number(kind, pa):
            columns.append(_numbers(table[name], pa)[:, None])
        elif is_list(kind, pa) and len(names) == 1:
            return _lists(table[name], name, where)
        else:
            raise InputError(
                f"{where}: the column {name!r} holds {kind}, expected numbers; leave it out (--x-columns)."
            )
    check_memory(4 * len(names) * table.num_rows, f"{where}: {len(names)} columns")
    return torch.from_numpy(np.concatenate(columns, 1))


def _numbers(column: Any, pa: Any) -> Any:
    """Return a column as float32, with NaN where a value is missing."""
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32)


def _lists(column: Any, name: str, where: str) -> torch.Tensor:
    rows = column.to_pylist()
    first: Any = next((row for row in rows if row is not None), [])
    empty = np.full(np.shape(first), np.nan)
    try:
        return torch.from_numpy(
            np.stack([empty if row is None else np.asarray(row, dtype=np.float32) for row in rows])
        ).float()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{where}: the lists in column {name!r} must be numbers, all of one length ({error})."
        ) from error


def _labels(
    table: Any, names: list[str], pa: Any, where: str, text: tuple[str, ...]
) -> tuple[torch.Tensor | None, tuple[str, ...] | None]:
    """Return y, (N,) class indices or (N, O) reference outputs, and the class names where they are known."""
    if not names:
        return None, None
    kinds = [table.schema.field(name).type for name in names]
    if len(names) == 1:
        column, kind = table[names[0]], kinds[0]
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return _lists(column, names[0], where), None
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            values = column.to_pylist()
            _complete(column, names[0], where)
            index = {value: place for place, value in enumerate(text)}
            return torch.tensor([index[value] for value in values]), text
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            _complete(column, names[0], where)
            return torch.from_numpy(column.cast(pa.int64()).to_numpy().copy()), _class_names(table.schema, names[0])
    wrong = next((n for n, kind in zip(names, kinds, strict=True) if not is_number(kind, pa)), None)
    if wrong is not None:
        raise InputError(
            f"{where}: the column {wrong!r} holds {table.schema.field(wrong).type}, expected numbers as y."
        )
    return torch.from_numpy(np.stack([_numbers(table[name], pa) for name in names], 1)), None


def _complete(column: Any, name: str, where: str) -> None:
    if column.null_count:
        raise InputError(
            f"{where}: the label column {name!r} misses {column.null_count} values; drop those rows first, or leave "
            "them out (--skip-bad)."
        )


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face datasets keep beside a column of class indices."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return tuple(map(str, names.values() if isinstance(names, dict) else names))
    except (KeyError, TypeError, ValueError):
        return None
