"""Reading a run folder, and its rows as columns and groups."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epsball.data.optional import require
from epsball.errors import InputError

__all__ = ["COLUMNS", "NORMS", "Columns", "count_ends", "is_regression", "read_manifest", "read_results"]

TEXT = ("attack", "crafted_on", "judged_on", "status")
NUMBERS = (
    *("sample_id", "p", "eps", "steps", "target", "prediction", "clean_prediction", "success", "gain"),
    *("norm_l1", "norm_l2", "norm_linf", "forwards", "backwards", "seconds"),
)
COLUMNS = TEXT + NUMBERS
# Of regression runs, or not yet there in the runs of earlier versions: NaN, and no passes, where a table has none.
OPTIONAL = ("psnr_in", "psnr_out", "error_increase", "exact", "jvps", "groups")
# What went wrong with a sample is counted as that, also where the model was wrong from the start.
FAILURES = ("NON_FINITE", "CONSTRAINT_VIOLATED")
# The norm that a row reports in its own p; another p has no column of its own.
NORMS = {1.0: "norm_l1", 2.0: "norm_l2", float("inf"): "norm_linf"}


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a results table as arrays of one length; what is null is NaN.

    numbers: float64 or bool. codes, names: of a text column, names[codes] being its values in order of appearance.
    correct: (N,) bool, classified correctly without a perturbation. fooled: (N,) bool, correct and success.
    norm: (N,) of the perturbation in the row's own p; NaN unless p is 1, 2 or inf.
    """

    numbers: dict[str, NDArray[Any]]
    codes: dict[str, NDArray[np.int64]]
    names: dict[str, list[str]]
    correct: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    norm: NDArray[np.float64]

    @classmethod
    def of(cls, table: Any) -> Columns:
        """Take the columns that a report needs out of a pyarrow table; InputError if one is missing."""
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise InputError(
                f"expected a results table with the columns {', '.join(COLUMNS)}, got one without "
                f"{', '.join(missing)}; give the results.parquet of an epsball run."
            )
        numbers = {name: _number(table[name]) for name in NUMBERS}
        numbers |= {
            name: _number(table[name]) if name in table.column_names else np.full(len(table), np.nan)
            for name in OPTIONAL
        }
        numbers["jvps"] = np.nan_to_num(numbers["jvps"])
        text = {name: _text(table[name]) for name in TEXT}
        # No budget at all may be written as infinity or as nothing.
        numbers["eps"] = np.where(np.isnan(numbers["eps"]), np.inf, numbers["eps"])
        success = np.nan_to_num(numbers["success"]).astype(bool)
        correct = numbers["clean_prediction"] == numbers["target"]  # NaN, a regression row, is never equal
        norm = np.full(len(success), np.nan)
        for p, name in NORMS.items():
            norm = np.where(numbers["p"] == p, numbers[name], norm)
        return cls(
            numbers=numbers,
            codes={name: code for name, (code, _) in text.items()},
            names={name: values for name, (_, values) in text.items()},
            correct=correct,
            fooled=correct & success,
            norm=norm,
        )

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Tell which rows are of samples that were classified wrongly without a perturbation; none of a regression."""
        return np.asarray(~self.correct & np.isfinite(self.numbers["target"]))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.numbers[name]

    def groups(self, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], NDArray[np.int64]]]:
        """Yield the values of `keys` and the rows that share them: text in order of appearance, numbers ascending."""
        if not len(self):
            return
        parts = [self._coded(key) for key in keys]
        sizes = tuple(len(values) for _, values in parts)
        # One whole number for each combination: sorting a million of those is fast, sorting columns is not.
        combined = np.ravel_multi_index(tuple(codes for codes, _ in parts), sizes)
        order = np.argsort(combined, kind="stable")
        present, starts = np.unique(combined[order], return_index=True)
        for place, index in zip(present, np.split(order, starts[1:]), strict=True):
            chosen = np.unravel_index(place, sizes)
            yield {key: parts[i][1][chosen[i]] for i, key in enumerate(keys)}, index

    def _coded(self, key: str) -> tuple[NDArray[np.int64], list[Any]]:
        if key in self.codes:
            return self.codes[key], self.names[key]
        values, codes = np.unique(self.numbers[key], return_inverse=True)
        return codes.reshape(-1), values.tolist()


def count_ends(codes: NDArray[Any], names: Sequence[str], wrong: NDArray[np.bool_]) -> dict[str, int]:
    """Count samples by how the attack ended; names[codes] are the statuses, wrong: classified wrongly from the start.

    Those are ALREADY under every attack. A one-step attack perturbs them and calls it a success, an iterated one leaves
    them alone, noise may put them right: counted as such, attacks on the same samples would not compare.
    """
    failed = np.isin(codes, [code for code, name in enumerate(names) if name in FAILURES])
    already = wrong & ~failed
    found, numbers = np.unique(codes[~already], return_counts=True)
    counts = {names[code]: number for code, number in zip(found.tolist(), numbers.tolist(), strict=True)}
    if already.any():
        counts["ALREADY"] = counts.get("ALREADY", 0) + int(already.sum())
    return counts


def _number(column: Any) -> NDArray[Any]:
    pa = require("pyarrow", "pyarrow", "reading results")
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"expected a column of numbers, got {column.type} ({error}).") from error


def _text(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    pa = require("pyarrow", "pyarrow", "reading results")
    compute = require("pyarrow.compute", "pyarrow", "reading results")
    plain = compute.fill_null(column.cast(pa.string()), "")
    chunk = pa.chunked_array([plain.combine_chunks()]) if plain.num_chunks != 1 else plain
    if len(chunk) == 0:
        return np.zeros(0, dtype=np.int64), []
    encoded = chunk.chunk(0).dictionary_encode()
    return np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist()


def is_regression(table: Any, manifest: Mapping[str, Any]) -> bool:
    """Tell whether a table holds the rows of a regression run; what the manifest says counts for an empty one."""
    if len(table) and "psnr_out" in table.column_names:
        return bool(table["psnr_out"].null_count < len(table))
    return len(table) == 0 and manifest.get("task") == "regression"


def read_results(directory: str | os.PathLike[str]) -> Any:
    """Return DIR/results.parquet as a pyarrow table; InputError, naming the file, if it is absent or damaged."""
    parquet = require("pyarrow.parquet", "pyarrow", "reading results")
    pa = require("pyarrow", "pyarrow", "reading results")
    path = Path(directory) / "results.parquet"
    if not path.is_file():
        raise InputError(f"expected a run folder with results.parquet, found none at {path}; give the --out of a run.")
    try:
        # A ParquetFile and not read_table: that one would guess more columns from folder names such as "eps=0.1".
        return parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); run the evaluation again.") from error


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return DIR/manifest.json; InputError, naming the file, if it is absent, damaged or no JSON object."""
    path = Path(directory) / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"expected a run folder with manifest.json, found none at {path}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error}); run the evaluation again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: a manifest is a JSON object, found a {type(content).__name__}.")
    return content
