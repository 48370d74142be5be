"""Rows of features from a file: what an imported model is tried on, with its library's own results if they are given.

Parquet or CSV; a column for each feature, and optionally `margin` or `score`. `fraud-scorer features` writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from scorer.model_import.import_errors import ModelImportError

ROWS_MAX = 1_000_000


@dataclass(frozen=True)
class GoldenFile:
    """rows float32 [n, k] in the feature set's order; margin and score float64 [n], where the file has them."""

    rows: np.ndarray
    margin: np.ndarray | None
    score: np.ndarray | None
    rounded: int
    """Rows with a number that is none of float32, in which features are computed."""


def read_golden(path: Path, names: list[str]) -> GoldenFile:
    """Read the file. Raises ModelImportError naming the column."""
    table = _table(path)
    if not 1 <= table.num_rows <= ROWS_MAX:
        raise ModelImportError(f"--golden {path} has {table.num_rows:,} rows; 1 to {ROWS_MAX:,} are taken")
    there = table.column_names
    found = [f"feature.{name}" if f"feature.{name}" in there else name for name in names]
    if lacking := [name for name in found if name not in there]:
        raise ModelImportError(
            f"--golden {path} has no column {lacking[0]!r}, a feature of the set; its columns: {', '.join(there)[:500]}"
        )
    wide = np.column_stack([_numbers(table, name, path) for name in found])
    with np.errstate(over="ignore"):
        rows = wide.astype(np.float32)
    if np.isinf(rows).any():
        column = int(np.flatnonzero(np.isinf(rows).any(axis=0))[0])
        raise ModelImportError(f"--golden {path}: {found[column]} is infinite in a row; no feature ever is")
    rounded = ((rows.astype(np.float64) != wide) & ~np.isnan(wide)).any(axis=1)
    given = {
        name: _numbers(table, name, path) if name in there and name not in names else None
        for name in ("margin", "score")
    }
    for name, values in given.items():
        if values is not None and not np.isfinite(values).all():
            raise ModelImportError(f"--golden {path}: {name} is empty or infinite in a row")
    return GoldenFile(rows, given["margin"], given["score"], int(rounded.sum()))


def _table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.ParquetFile(path).read()
        if path.suffix == ".csv":
            return pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise ModelImportError(f"--golden {path} cannot be read ({type(error).__name__})") from error
    raise ModelImportError(f"--golden {path.name} is neither .parquet nor .csv")


def _numbers(table: pa.Table, name: str, path: Path) -> np.ndarray:
    column = table[name]
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise ModelImportError(f"--golden {path}: column {name!r} is {kind}, wanted numbers")
    if pa.types.is_boolean(kind):
        column = pc.cast(column, pa.int8())
    wide = pc.cast(column, pa.float64(), safe=False)
    return np.asarray(pc.fill_null(wide, float("nan")).to_numpy(), dtype=np.float64)
