"""Which columns of a Parquet file are x and y, which files are of a split, and which rows cannot be stacked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from epsball.data.remote import Location
from epsball.errors import InputError

__all__ = ["choose", "damaged_rows", "files_of", "is_image", "is_list", "is_number", "is_text", "text_classes"]

LABELS = ("label", "labels", "target", "targets", "y", "class")
SPLIT = re.compile(r"(train|test|validation)(?![A-Za-z0-9])")


def files_of(split: str, files: Sequence[Location], where: str) -> tuple[list[Location], str]:
    """Return the files of a split, by how their names begin, and its name; all of them, "all", where that is one."""
    kinds = {file.name: found[1] if (found := SPLIT.match(file.name)) else "" for file in files}
    there = set(kinds.values())
    if len(there - {""}) < 2:
        return list(files), "all"
    stray = next((name for name, kind in kinds.items() if not kind), None)
    if stray is not None:
        raise InputError(
            f"{where}: holds files of several splits and also {stray}, whose name begins with none of train, test, "
            "validation; move or rename it."
        )
    # Of a set without test files, validation files are what nobody trained on.
    chosen = "validation" if split == "test" and "test" not in there else split
    if chosen not in there:
        raise InputError(f"{where}: expected files of the split {split!r}, found {', '.join(sorted(there))}.")
    return [file for file in files if kinds[file.name] == chosen], chosen


def choose(schema: Any, pa: Any, xs: tuple[str, ...], ys: tuple[str, ...], where: str) -> tuple[list[str], list[str]]:
    """Return the columns of x and those of y."""
    names = list(schema.names)
    absent = next((name for name in (*xs, *ys) if name not in names), None)
    if absent is not None:
        raise InputError(f"{where}: no column {absent!r}; there are {', '.join(map(repr, names[:12]))}.")
    found = list(ys) or [name for name in LABELS if name in names and name not in xs][:1]
    if xs:
        return list(xs), found
    index = _index_columns(schema)
    rest = [name for name in names if name not in found and name not in index]
    for kind, test in (("images", is_image), ("lists", is_list)):
        chosen = [name for name in rest if test(schema.field(name).type, pa)]
        if len(chosen) > 1:
            raise InputError(
                f"{where}: several columns hold {kind}: {', '.join(map(repr, chosen))}; "
                "choose one (x_columns=, --x-columns)."
            )
        if chosen:
            return chosen, found
    numbers = [name for name in rest if is_number(schema.field(name).type, pa)]
    if not numbers:
        raise InputError(
            f"{where}: no column of images, lists or numbers among {', '.join(map(repr, names[:12]))}; name those of x "
            "(x_columns=, --x-columns)."
        )
    return numbers, found


def _index_columns(schema: Any) -> set[str]:
    """Return the columns that hold the index of a pandas table: row numbers, not features."""
    found = {name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)}
    try:
        listed = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return found | {name for name in listed if isinstance(name, str)}
    except (KeyError, TypeError, ValueError):
        return found


def is_image(kind: Any, pa: Any) -> bool:
    """Return whether a column holds bytes, or structs with `bytes`."""
    if pa.types.is_struct(kind):
        inner = [kind.field(i) for i in range(kind.num_fields)]
        return any(part.name == "bytes" and _is_bytes(part.type, pa) for part in inner)
    return _is_bytes(kind, pa)


def _is_bytes(kind: Any, pa: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_list(kind: Any, pa: Any) -> bool:
    """Return whether a column holds lists of floating numbers, of any depth."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists) and bool(pa.types.is_floating(kind.value_type) or is_list(kind.value_type, pa))


def is_number(kind: Any, pa: Any) -> bool:
    """Return whether a column holds numbers or booleans."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def is_text(kind: Any, pa: Any) -> bool:
    """Return whether a column holds text, plain or as a dictionary."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


def text_classes(columns: Iterable[Any], pa: Any) -> tuple[str, ...]:
    """Return the classes in whole columns of text: a dictionary's in its own order, plain text sorted."""
    found: dict[str, None] = {}
    ordered = True
    for column in columns:
        ordered = ordered and pa.types.is_dictionary(column.type)
        parts = [chunk.dictionary for chunk in column.chunks] if ordered else [column.unique()]
        found |= {value: None for part in parts for value in part.to_pylist() if value is not None}
    return tuple(found if ordered else sorted(found))


def damaged_rows(table: Any, xs: list[str], ys: list[str], pa: Any) -> dict[int, str]:
    """Return the rows, with reasons, whose label is missing or whose list is of another shape than most."""
    found: dict[int, str] = {}
    for name in dict.fromkeys((*xs, *ys)):
        kind, column = table.schema.field(name).type, table[name]
        if is_list(kind, pa):
            shapes = [None if row is None else _shape(row) for row in column.to_pylist()]
            most = Counter(shape for shape in shapes if shape is not None).most_common(1)
            for row, shape in enumerate(shapes):
                if most and shape is not None and shape != most[0][0]:
                    found.setdefault(row, f"the list in column {name!r} has another length than most")
        elif name in ys and not pa.types.is_floating(kind):
            for row in np.flatnonzero(column.is_null().to_numpy()).tolist():
                found.setdefault(row, f"the label column {name!r} misses its value")
    return found


def _shape(row: Any) -> tuple[int, ...]:
    try:
        return np.shape(row)
    except ValueError:  # uneven inside
        return (-1,)
