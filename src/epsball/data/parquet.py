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
from epsball.data.remote import Location
from epsball.data.skipping import Skipper
from epsball.data.tensors import from_tensors
from epsball.errors import InputError

__all__ = ["is_folder_of_parquet", "load_parquet"]

LABELS = ("label", "labels", "target", "targets", "y", "class")


def is_folder_of_parquet(folder: Location) -> bool:
    """Return whether all visible files of a folder are Parquet files: the shards of one set."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith((".", "_"))]
    return bool(entries) and all(entry.suffix.lower() == ".parquet" for entry in entries)


def load_parquet(
    path: Location,
    limit: int | None = None,
    *,
    x_columns: Sequence[str] = (),
    y_columns: Sequence[str] = (),
    skip_bad: bool = False,
) -> Dataset:
    """Return the samples of a Parquet file, or of the shards in a folder, in the order of their names.

    x_columns  one column of images (bytes, or a struct with `bytes`) gives (N, C, H, W) in [0, 1]; one of lists gives
               (N, L); several of numbers give (N, M). Default: the one image column, else the one of lists, else all
               columns of numbers that are not y
    y_columns  integers or text give classes, floating numbers reference outputs (N, O). Default: the column called
               label, labels, target, targets, y or class, where there is one

    skip_bad: rows with a missing or damaged image or value are left out, and listed by row in `Dataset.skipped`.
    """
    pq, pa = (require(name, "pyarrow", "reading Parquet") for name in ("pyarrow.parquet", "pyarrow"))
    files = sorted(_shards(path), key=lambda file: file.name)
    table, total = _read(files, path, pq, pa, limit, tuple(x_columns), tuple(y_columns))
    schema, skipper = table.schema, Skipper(skip_bad)
    xs, ys = _choose(schema, pa, tuple(x_columns), tuple(y_columns), str(path))
    images = _is_image(schema.field(xs[0]).type, pa)
    y, classes = _labels(table, ys, pa, str(path))
    name = str(path)
    if images:
        x, places = _images(table[xs[0]], f"{path}, column {xs[0]}", skipper)
        ids = torch.tensor(places, dtype=torch.int64)
        found = from_tensors(name, x, None if y is None else y[ids], skipper, ids)
    else:
        found = from_tensors(name, _features(table, xs, pa, str(path)), y, skipper)
    source = f"{path}: {len(found):,} of {total:,} rows{skipper.said}"
    return Dataset.of(
        name,
        found.x,
        found.target,
        split="all",
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
) -> tuple[Any, int]:
    """Read the columns that are asked for of the first rows, and count all rows."""
    parts: list[Any] = []
    total = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                reader = pq.ParquetFile(stream)
                wanted = [name for side in _choose(reader.schema_arrow, pa, xs, ys, str(file)) for name in side]
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
    return table, total


def _choose(schema: Any, pa: Any, xs: tuple[str, ...], ys: tuple[str, ...], where: str) -> tuple[list[str], list[str]]:
    """Return the columns of x and those of y."""
    names = list(schema.names)
    absent = next((name for name in (*xs, *ys) if name not in names), None)
    if absent is not None:
        raise InputError(f"{where}: no column {absent!r}; there are {', '.join(map(repr, names[:12]))}.")
    found = list(ys) or [name for name in LABELS if name in names and name not in xs][:1]
    if xs:
        return list(xs), found
    rest = [name for name in names if name not in found]
    for kind, test in (("images", _is_image), ("lists", _is_list)):
        chosen = [name for name in rest if test(schema.field(name).type, pa)]
        if len(chosen) > 1:
            raise InputError(
                f"{where}: several columns hold {kind}: {', '.join(map(repr, chosen))}; "
                "choose one (x_columns=, --x-columns)."
            )
        if chosen:
            return chosen, found
    numbers = [name for name in rest if _is_number(schema.field(name).type, pa)]
    if not numbers:
        raise InputError(
            f"{where}: no column of images, lists or numbers among {', '.join(map(repr, names[:12]))}; name those of x "
            "(x_columns=, --x-columns)."
        )
    return numbers, found


def _is_image(kind: Any, pa: Any) -> bool:
    if pa.types.is_struct(kind):
        inner = [kind.field(i) for i in range(kind.num_fields)]
        return any(part.name == "bytes" and _is_bytes(part.type, pa) for part in inner)
    return _is_bytes(kind, pa)


def _is_bytes(kind: Any, pa: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: Any, pa: Any) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists) and bool(pa.types.is_floating(kind.value_type) or _is_list(kind.value_type, pa))


def _is_number(kind: Any, pa: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _images(column: Any, where: str, skipper: Skipper) -> tuple[torch.Tensor, list[int]]:
    def opened(value: Any) -> io.BytesIO:
        raw = value.get("bytes") if isinstance(value, dict) else value
        if raw is None:
            # A path beside it is not followed: it may lead anywhere.
            raise ValueError("the row holds no bytes")
        return io.BytesIO(raw)

    rows = ((f"{where}, row {row}", partial(opened, value.as_py())) for row, value in enumerate(column))
    return read_images(cast(Any, rows), len(column), skipper)


def _features(table: Any, names: list[str], pa: Any, where: str) -> torch.Tensor:
    columns = []
    for name in names:
        kind = table.schema.field(name).type
        if _is_number(kind, pa):
            columns.append(_numbers(table[name], pa)[:, None])
        elif _is_list(kind, pa) and len(names) == 1:
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


def _labels(table: Any, names: list[str], pa: Any, where: str) -> tuple[torch.Tensor | None, tuple[str, ...] | None]:
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
            classes = sorted({value for value in values if value is not None})
            _complete(column, names[0], where)
            index = {value: place for place, value in enumerate(classes)}
            return torch.tensor([index[value] for value in values]), tuple(classes)
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            _complete(column, names[0], where)
            return torch.from_numpy(column.cast(pa.int64()).to_numpy().copy()), _class_names(table.schema, names[0])
    wrong = next((n for n, kind in zip(names, kinds, strict=True) if not _is_number(kind, pa)), None)
    if wrong is not None:
        raise InputError(
            f"{where}: the column {wrong!r} holds {table.schema.field(wrong).type}, expected numbers as y."
        )
    return torch.from_numpy(np.stack([_numbers(table[name], pa) for name in names], 1)), None


def _complete(column: Any, name: str, where: str) -> None:
    if column.null_count:
        raise InputError(
            f"{where}: the label column {name!r} misses {column.null_count} values; drop those rows first."
        )


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the names that Hugging Face datasets keep beside a column of class indices."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return tuple(map(str, names.values() if isinstance(names, dict) else names))
    except (KeyError, TypeError, ValueError):
        return None
