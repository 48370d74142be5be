"""Decisions with everything that explains them, as Parquet: one file, or a folder by day that a second run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.audit_record import AuditColumns
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
_ROWS_PER_GROUP = 65_536
_TABLES_WAITING_MAX = 256
# Each day of a part is an open file: a slow stream of years must not need thousands.
_DAYS_PER_PART_MAX = 366


def feature_column(name: str) -> str:
    """The column of a feature; one with the name of a decision field gets a prefix."""
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
    rows = outcomes.rows
    known = np.full(len(rows), -1, np.int8) if label is None else label[rows]
    known_at = np.full(len(rows), -1, np.int64) if label_known_at_ms is None else label_known_at_ms[rows]
    return decided_table(outcomes.columns, outcomes.text, outcomes.bundles, schema, known, known_at)


def decided_table(
    c: AuditColumns,
    text: Callable[[str], pa.StringArray],
    bundles: Sequence[str],
    schema: pa.Schema,
    label: npt.NDArray[np.int8],
    label_known_at_ms: npt.NDArray[np.int64],
) -> pa.Table:
    """Decided payments, `text` giving their fields, with label int8 [n] and label_known_at_ms int64 [n], as in
    TrainingTable."""
    time, audited = pa.timestamp("ms", tz="UTC"), c.record_batch
    decisions = pa.DictionaryArray.from_arrays(pa.array(c.decision.astype(np.int8)), pa.array(list(DECISIONS)))
    modes = pa.DictionaryArray.from_arrays(pa.array(c.mode.astype(np.int8)), pa.array(list(MODES)))
    columns = [
        audited.column("payment_id"), pa.array(c.event_time_ms, time),
        pa.array(c.partition), pa.array(c.offset), pa.array(c.amount_minor), audited.column("currency"),
        *map(text, KEPT_FIELDS),
        decisions.cast(pa.string()), modes.cast(pa.string()), pa.array(c.score), pa.array(c.margin),
        _lists(audited.column("reasons")), _lists(audited.column("fired")),
        pa.array(bundles, pa.string()),
        pa.array(label, pa.int8(), mask=label < 0), pa.array(label_known_at_ms, time, mask=label_known_at_ms < 0),
        *(pa.array(np.ascontiguousarray(c.features[:, i]), pa.float32()) for i in range(c.features.shape[1])),
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(column: pa.ListArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(column.offsets, column.values)


@dataclass(frozen=True)
class Window:
    """Which decisions are written: payments of [begin_ms, until_ms), epoch ms (None: no bound), and of topics those of
    offsets [start, end) by partition; an empty mapping is all."""

    begin_ms: int | None = None
    until_ms: int | None = None
    offsets: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def of(self, table: pa.Table) -> pa.Table:
        """The rows of `decision_table` that lie in it."""
        if self.begin_ms is None and self.until_ms is None and not self.offsets:
            return table
        times = pc.cast(table["event_time"], pa.int64()).to_numpy()
        kept = np.ones(len(times), dtype=np.bool_)
        if self.begin_ms is not None:
            kept &= times >= self.begin_ms
        if self.until_ms is not None:
            kept &= times < self.until_ms
        if self.offsets:
            partition, offset = table["partition"].to_numpy(), table["offset"].to_numpy()
            within = np.zeros(len(kept), dtype=np.bool_)
            for p, (start, end) in self.offsets.items():
                within |= (partition == p) & (offset >= start) & (offset < end)
            kept &= within
        return table if kept.all() else table.filter(pa.array(kept))

    def described(self) -> dict[str, object]:
        """As an output stores it."""
        ranges = {str(p): list(bounds) for p, bounds in sorted(self.offsets.items())}
        return {"from_ms": self.begin_ms, "until_ms": self.until_ms, **({"offsets": ranges} if ranges else {})}


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    # Numbers and ids hardly repeat: dictionary encoding would double the writing time and enlarge the files.
    texts = [f.name for f in schema if pa.types.is_string(f.type) and f.name != "payment_id"]
    lists = [f"{f.name}.list.element" for f in schema if pa.types.is_list(f.type)]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts + lists)


ALL = Window()


class Output(Protocol):
    """Where a replay's decisions go."""

    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None:
        """Complete the output."""

    def abandon(self) -> None:
        """Writing ended early; complete parts stay."""


class _Waiting:
    """Rows that wait until they are as many as a row group.

    On an idle topic a batch has one row. Its table takes 3 KB and more, and a row group of its own would stay in the
    writer's memory until the file is complete; so small tables are joined as they come.
    """

    def __init__(self) -> None:
        self._joined: list[pa.Table] = []
        self._small: list[pa.Table] = []
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self._small.append(table)
        self.rows += table.num_rows
        if len(self._small) >= _TABLES_WAITING_MAX:
            self._joined.append(pa.concat_tables(self._small).combine_chunks())
            self._small.clear()

    def take(self) -> pa.Table:
        """All of them, in order; there must be one at least. None is left."""
        table = pa.concat_tables([*self._joined, *self._small])
        self.clear()
        return table

    def clear(self) -> None:
        self._joined.clear()
        self._small.clear()
        self.rows = 0


class FileOutput:
    """One Parquet file in row groups, so memory stays flat. It gets its name when it is complete."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._file = _writer(self._partial, schema)
        self._waiting = _Waiting()

    def write(self, table: pa.Table) -> None:
        self._waiting.add(table)
        if self._waiting.rows >= _ROWS_PER_GROUP:
            self._file.write_table(self._waiting.take())

    def close(self) -> None:
        if self._waiting.rows:
            self._file.write_table(self._waiting.take())
        self._file.close()
        self._partial.replace(self._path)

    def abandon(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


class FolderOutput:
    """A folder by day of event time, `day=2026-01-31/part-00000.parquet`; a part is at most 2^20 decisions in journal
    order, whatever their days.

    An interrupted run is resumed: the windows are computed again from the start (they are the state), decisions of
    complete parts are not written again. `_replay.json` states what the folder holds and how far it is complete;
    another source or bundle is refused, and so is one whose size and time of change are not known (stdin, a URL).
    """

    def __init__(self, folder: Path, schema: pa.Schema, about: dict[str, object]) -> None:
        self._folder, self._schema, self._about = folder, schema, about
        folder.mkdir(parents=True, exist_ok=True)
        stated = folder / _ABOUT
        if stated.exists():
            found = json.loads(stated.read_text(encoding="utf-8"))
            different = [key for key in about if found.get(key) != about[key]]
            if different:
                raise UsageError(
                    f"{folder} holds another replay ({different[0]}: {found.get(different[0])!r} there, "
                    f"{about[different[0]]!r} now); choose another folder"
                )
            if "source_bytes" in about and about["source_bytes"] is None:
                raise UsageError(
                    f"{folder} holds a replay of stdin or of an address: whether that holds the same payments as then"
                    " is not known, so it cannot go on; choose another folder"
                )
            if "parts" not in found:
                raise UsageError(f"{folder} was written by an older version; choose another folder")
            self._parts, self.resumed = int(found["parts"]), int(found["decisions"])
        elif any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and has no _replay.json; choose another folder")
        else:
            self._parts = self.resumed = 0
        self._skip = self._done = self.resumed  # decisions written by an earlier run
        self._state(complete=False)
        for path in folder.glob("day=*/*"):
            if path.suffix != ".parquet" or int(path.stem.removeprefix("part-")) >= self._parts:
                path.unlink()
        self._files: dict[str, pq.ParquetWriter] = {}
        self._waiting = _Waiting()
        self._in_part = 0

    def _state(self, *, complete: bool) -> None:
        """Write how far the folder is complete."""
        state = self._about | {"parts": self._parts, "decisions": self._done, "complete": complete}
        partial = self._folder / f".{_ABOUT}.partial"
        partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._folder / _ABOUT)

    def write(self, table: pa.Table) -> None:
        skipped = min(self._skip, table.num_rows)
        self._skip -= skipped
        table = table.slice(skipped)
        while table.num_rows:
            taken = table.slice(0, PART_PAYMENTS - self._in_part)
            self._waiting.add(taken)
            self._in_part += taken.num_rows
            if self._in_part == PART_PAYMENTS:
                self._finish()
            elif self._waiting.rows >= _ROWS_PER_GROUP:
                self._flush()
                if len(self._files) >= _DAYS_PER_PART_MAX:
                    self._finish()
            table = table.slice(taken.num_rows)

    def _flush(self) -> None:
        """Write the waiting rows, by day."""
        if not self._waiting.rows:
            return
        table = self._waiting.take()
        days = pc.cast(table["event_time"], pa.date32())
        for day in pc.unique(days).to_pylist():
            place = self._folder / f"day={day}"
            if str(place) not in self._files:
                place.mkdir(exist_ok=True)
                self._files[str(place)] = _writer(place / f".part-{self._parts:05d}.partial", self._schema)
            self._files[str(place)].write_table(table.filter(pc.equal(days, day)))

    def _finish(self) -> None:
        self._flush()
        for place, file in self._files.items():
            file.close()
            (Path(place) / f".part-{self._parts:05d}.partial").replace(Path(place) / f"part-{self._parts:05d}.parquet")
        if self._files:
            self._files, self._parts, self._done = {}, self._parts + 1, self._done + self._in_part
            self._in_part = 0
            self._state(complete=False)

    def close(self) -> None:
        self._finish()
        self._state(complete=True)

    def abandon(self) -> None:
        self._waiting.clear()
        for place, file in self._files.items():
            file.close()
            (Path(place) / f".part-{self._parts:05d}.partial").unlink(missing_ok=True)
        self._files = {}


def is_complete(folder: Path) -> bool:
    """Whether a replay into this folder ran to its end; else some of its decisions are missing."""
    try:
        state = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("complete") is True


def part_files(folder: Path) -> list[Path]:
    """The Parquet files of a replay's folder, parts in their order, days in theirs."""
    return sorted(folder.glob("day=*/part-*.parquet"), key=lambda path: (path.name, path.parent.name))


Open = Callable[[pa.Schema, dict[str, object]], Output]
"""Makes an output for tables of a schema and the description of a replay, which a resumed output compares."""


@contextmanager
def opened(place: Path | Open | None, names: list[str], about: dict[str, object]) -> Iterator[Output | None]:
    """Where decisions with features `names` go: a file for a path that ends in .parquet, else a folder by day, or what
    `place` opens. Closed at the end, abandoned after an exception."""
    if place is None:
        yield None
        return
    schema = decision_schema(names)
    if not isinstance(place, Path):
        output = place(schema, about)
    else:
        output = FileOutput(place, schema) if place.suffix == ".parquet" else FolderOutput(place, schema, about)
    try:
        yield output
    except BaseException:
        output.abandon()
        raise
    output.close()
