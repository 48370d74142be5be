"""Decisions with all that explains them, as Parquet: one file, or a folder of parts that a second run goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.decision import DECISIONS, MODES
from scorer.errors import UsageError
from scorer.pipeline import Outcomes

KEPT_FIELDS = ("customer_id", "account_id", "card_token", "merchant_id", "terminal_id", "mcc", "channel", "country")
_FIELDS = [
    ("payment_id", pa.string()), ("event_time", pa.timestamp("ms", tz="UTC")),
    ("partition", pa.int32()), ("offset", pa.int64()),
    ("amount_minor", pa.int64()), ("currency", pa.string()),
    *((name, pa.string()) for name in KEPT_FIELDS),
    ("decision", pa.string()), ("mode", pa.string()), ("score", pa.float64()), ("margin", pa.float32()),
    ("reasons", pa.list_(pa.string())), ("fired", pa.list_(pa.string())), ("bundle", pa.string()),
    ("label", pa.int8()), ("label_known_at", pa.timestamp("ms", tz="UTC")),
]  # fmt: skip
_TAKEN = frozenset(name for name, _ in _FIELDS)
PART_PAYMENTS = 1 << 20
_ABOUT = "_replay.json"


def feature_column(name: str) -> str:
    """The column of a feature; one that is called like a field of the decision gets a prefix."""
    return f"feature.{name}" if name in _TAKEN else name


def decision_schema(names: list[str]) -> pa.Schema:
    """Columns of a replay's output for features `names`."""
    return pa.schema([*_FIELDS, *((feature_column(name), pa.float32()) for name in names)])


def decision_table(
    outcomes: Outcomes,
    schema: pa.Schema,
    label: npt.NDArray[np.int8] | None,
    label_known_at_ms: npt.NDArray[np.int64] | None,
) -> pa.Table:
    """The rows of a batch. label int8 [records] and label_known_at_ms int64 [records]: as in TrainingTable; None where
    the source has no labels."""
    c, rows, text = outcomes.columns, outcomes.rows, outcomes.payments.text
    audited = c.record_batch
    known = np.full(len(rows), -1, np.int8) if label is None else label[rows]
    known_at = np.full(len(rows), -1, np.int64) if label_known_at_ms is None else label_known_at_ms[rows]
    time = pa.timestamp("ms", tz="UTC")
    decisions = pa.DictionaryArray.from_arrays(pa.array(c.decision.astype(np.int8)), pa.array(list(DECISIONS)))
    modes = pa.DictionaryArray.from_arrays(pa.array(c.mode.astype(np.int8)), pa.array(list(MODES)))
    columns = [
        text("payment_id"), pa.array(c.event_time_ms, time),
        pa.array(c.partition), pa.array(c.offset), pa.array(c.amount_minor), text("currency"),
        *map(text, KEPT_FIELDS),
        decisions.cast(pa.string()), modes.cast(pa.string()), pa.array(c.score), pa.array(c.margin),
        _lists(audited.column("reasons")), _lists(audited.column("fired")),
        pa.array(outcomes.bundles, pa.string()),
        pa.array(known, pa.int8(), mask=known < 0), pa.array(known_at, time, mask=known_at < 0),
        *(pa.array(np.ascontiguousarray(c.features[:, i]), pa.float32()) for i in range(c.features.shape[1])),
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(column: pa.ListArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(column.offsets, column.values)


def in_window(outcomes: Outcomes, table: pa.Table, begin_ms: int | None, until_ms: int | None) -> pa.Table:
    """The rows of `decision_table` whose event time lies in [begin_ms, until_ms), epoch ms; None is no bound."""
    times = outcomes.columns.event_time_ms
    kept = np.ones(len(times), dtype=np.bool_)
    if begin_ms is not None:
        kept &= times >= begin_ms
    if until_ms is not None:
        kept &= times < until_ms
    return table if kept.all() else table.filter(pa.array(kept))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Numbers and ids hardly repeat: dictionaries of them would double the time of writing and give larger files.
    texts = [f.name for f in schema if pa.types.is_string(f.type) and f.name != "payment_id"]
    lists = [f"{f.name}.list.element" for f in schema if pa.types.is_list(f.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts + lists)


class Output(Protocol):
    """Where a replay's decisions go."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None:
        """All is written."""

    def abandon(self) -> None:
        """Writing ended early; what is complete stays."""


class FileOutput:
    """One Parquet file in row groups, so memory stays flat. It takes its name when complete."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._file = _writer(self._partial, schema)

    def write(self, table: pa.Table) -> None:
        self._file.write_table(table)

    def close(self) -> None:
        self._file.close()
        self._partial.replace(self._path)

    def abandon(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


class FolderOutput:
    """A folder of parts `part-00000.parquet`, each of 2^20 decisions but the last one, which take their names when
    complete.

    An interrupted run goes on: the windows are computed again from the start (they are the state), the parts that are
    there are not written again. `_replay.json` says what they are of; another source or bundle is refused.
    """

    def __init__(self, folder: Path, schema: pa.Schema, about: dict[str, object]) -> None:
        self._folder, self._schema = folder, schema
        folder.mkdir(parents=True, exist_ok=True)
        stated = folder / _ABOUT
        if stated.exists():
            found = json.loads(stated.read_text(encoding="utf-8"))
            different = [key for key in about if found.get(key) != about[key]]
            if different:
                raise UsageError(
                    f"{folder} holds a replay of something else ({different[0]}: {found.get(different[0])!r} there, "
                    f"{about[different[0]]!r} now); choose another folder"
                )
        elif any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no replay; choose another folder")
        else:
            stated.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        self._parts = 0
        while (path := self._part(self._parts)).exists() and pq.read_metadata(path).num_rows == PART_PAYMENTS:
            self._parts += 1
        self.resumed = self._skip = self._parts * PART_PAYMENTS
        """Decisions that are there from an earlier run."""
        self._file: pq.ParquetWriter | None = None
        self._in_part = 0

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def _partial(self) -> Path:
        return self._folder / f".part-{self._parts:05d}.partial"

    def write(self, table: pa.Table) -> None:
        skipped = min(self._skip, table.num_rows)
        self._skip -= skipped
        table = table.slice(skipped)
        while table.num_rows:
            if self._file is None:
                self._file, self._in_part = _writer(self._partial(), self._schema), 0
            taken = table.slice(0, PART_PAYMENTS - self._in_part)
            self._file.write_table(taken)
            self._in_part += taken.num_rows
            if self._in_part == PART_PAYMENTS:
                self._finish()
            table = table.slice(taken.num_rows)

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
            self._partial().replace(self._part(self._parts))
            self._file, self._parts = None, self._parts + 1

    def close(self) -> None:
        self._finish()

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._partial().unlink(missing_ok=True)


def open_output(path: Path, names: list[str], about: dict[str, object]) -> Output:
    """A file for a path that ends in .parquet, else a folder of parts."""
    schema = decision_schema(names)
    return FileOutput(path, schema) if path.suffix == ".parquet" else FolderOutput(path, schema, about)
