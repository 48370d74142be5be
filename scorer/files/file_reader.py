"""Payments from files: Parquet, CSV and JSON lines, in blocks, as the very bytes that Kafka would carry.

    FraudScorerError
    ├── FileError               the file cannot be read, or a cell cannot become its field;
    │                           names file, row, field and column
    └── UsageError
        └── MappingError        the mapping does not fit the file

Each row becomes a JSON payment, so that a file goes through the same decoder as the topic, with the same refusals.
Memory is bounded by the block and by the file's own unit (a Parquet page, 16 MiB of CSV, one line), never by the file.
Rows keep the file's order.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from schemas.contract_error import ContractError
from schemas.currencies import CURRENCY_EXPONENT
from schemas.event_time import event_time_ms
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from scorer.errors import FraudScorerError
from scorer.files.cells import (
    CellError,
    Column,
    attributes,
    labels,
    minor_units,
    numbers,
    text_attributes,
    texts,
    times_ms,
    whole_numbers,
)
from scorer.files.mapping import Constant, Mapping, MappingError

ROWS_PER_BLOCK = 65_536
CSV_BYTES_PER_READ = 16 << 20
LINE_BYTES_MAX = 16 << 20

_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}


class FileError(FraudScorerError):
    """The file cannot be read to its end as payments; the message says where and why."""


@dataclass(frozen=True, slots=True)
class FileBlock:
    """Rows of a file, in its order; all columns have the same length n, 1 <= n <= rows_per_block."""

    values: list[bytes]  # payments as JSON, per the contract; the decoder says which are accepted
    keys: list[bytes | None]  # customer_id, or None
    payment_ids: list[str | None]
    event_time_ms: npt.NDArray[np.int64]  # [n] epoch ms; -1 where it cannot be read (the decoder refuses the row)
    label: npt.NDArray[np.int8]  # [n] 1 fraud, 0 genuine, -1 not known
    label_known_at_ms: npt.NDArray[np.int64]  # [n] event_time + label_delay; -1 where there is no label
    row: npt.NDArray[np.int64]  # [n] place in the file: the line of JSON lines, else the row of data; counted from 1

    def __len__(self) -> int:
        return len(self.values)


def read_payments(
    path: Path, mapping: Mapping | None = None, rows_per_block: int = ROWS_PER_BLOCK
) -> Iterator[FileBlock]:
    """The payments of `path`, by its suffix: .parquet .pq .csv(.gz) .jsonl .ndjson .json(l.gz).

    Without a mapping the file must be JSON lines in the contract's own form; such lines are passed on as they are,
    good or bad. Raises MappingError and FileError; a missing file or column is an error here, before the first block.
    """
    if rows_per_block < 1:
        raise ValueError(f"rows_per_block={rows_per_block}: at least 1")
    kind, packed = _kind(path)
    if mapping is None:
        if kind != "jsonl":
            raise MappingError(f"{path}: a {kind} file needs a mapping that says which column is which field")
        return _contract_lines(path, packed, rows_per_block)
    return _mapped(path, kind, packed, mapping, rows_per_block)


def _kind(path: Path) -> tuple[str, bool]:
    """parquet, csv or jsonl, and whether it is packed. Raises FileError."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = _SUFFIXES.get(suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else "")
    if kind is None or (packed and kind == "parquet"):
        raise FileError(
            f"{path}: the suffix tells no file type; known are {', '.join(_SUFFIXES)}, and .gz after those of text"
        )
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    return kind, packed


def rows_before(path: Path, mapping: Mapping, end_ms: int) -> int | None:
    """How many rows of a Parquet file reach its last payment before `end_ms` (epoch ms), wherever that stands.

    Reads the time column alone. None where only reading everything would tell: other files, a constant time.
    """
    if _SUFFIXES.get(path.suffix.lower()) != "parquet" or not isinstance(mapping.event_time, str):
        return None
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    row = last = 0
    for batch in file.iter_batches(batch_size=ROWS_PER_BLOCK, columns=[mapping.event_time], use_threads=False):
        try:
            times = times_ms(_plain(batch.column(0)))
        except CellError:
            return None  # reading the payments raises the error with its row
        before = np.flatnonzero(np.fromiter((t is not None and t < end_ms for t in times), np.bool_, len(times)))
        last = row + int(before[-1]) + 1 if len(before) else last
        row += len(times)
    return last


def row_count(path: Path) -> int | None:
    """How many rows a Parquet file says it has; None for other files, and for one that cannot be read."""
    if _SUFFIXES.get(path.suffix.lower()) != "parquet":
        return None
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None  # reading the payments raises the error


def label_records(block: FileBlock) -> list[bytes]:
    """Control-topic records of the rows with label >= 0, in the block\'s order; one record for each such row."""
    encode = msgspec.json.encode
    return [
        encode(
            {
                "type": "label",
                "payment_id": block.payment_ids[i],
                "fraud": bool(block.label[i]),
                "known_at": known_at,
                "event_time": time,
            }
        )
        for i, known_at, time in zip(
            range(len(block)), block.label_known_at_ms.tolist(), block.event_time_ms.tolist(), strict=True
        )
        if known_at >= 0
    ]


FieldColumns = Mapping_[str, Sequence[object]]
# Blocks of columns: (number of the first row or line of each row, columns by name).
_Get = Callable[[str, "str | Constant"], Column]
_Columns = tuple[npt.NDArray[np.int64], dict[str, Column]]


def _mapped(path: Path, kind: str, packed: bool, mapping: Mapping, rows_per_block: int) -> Iterator[FileBlock]:
    if kind == "jsonl":
        return _blocks(path, mapping, _json_columns(path, packed, mapping, rows_per_block))
    return _blocks(path, mapping, _opened(path, kind, mapping, rows_per_block), of_text=kind == "csv")


def _opened(path: Path, kind: str, mapping: Mapping, rows_per_block: int) -> Iterator[_Columns]:
    # Opened here, not at the first block: a missing column is an error at once.
    try:
        batches = _parquet(path, mapping, rows_per_block) if kind == "parquet" else _csv(path, mapping)
    except (pa.ArrowException, OSError) as exc:
        raise FileError(f"{path}: not readable as {kind}: {_first_line(exc)}") from exc
    return _arrow_columns(path, kind, batches, rows_per_block)


def _parquet(path: Path, mapping: Mapping, rows_per_block: int) -> Iterator[pa.RecordBatch]:
    # A buffer makes pyarrow stream a column's pages instead of loading its whole row group.
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    _check_columns(path, mapping, file.schema_arrow.names)
    return file.iter_batches(batch_size=rows_per_block, columns=mapping.columns, use_threads=False)  # type: ignore[no-any-return]


def _csv(path: Path, mapping: Mapping) -> Iterator[pa.RecordBatch]:
    # Everything is read as text: a guessed float would already have lost digits.
    reader = pa_csv.open_csv(
        path,
        read_options=pa_csv.ReadOptions(block_size=CSV_BYTES_PER_READ, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(mapping.columns, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            check_utf8=True,
        ),
    )
    _check_columns(path, mapping, reader.schema.names)
    return iter(reader)


def _check_columns(path: Path, mapping: Mapping, names: list[str]) -> None:
    for column in mapping.columns:
        if column not in names:
            shown = ", ".join(name[:40] for name in names[:30]) + (", …" if len(names) > 30 else "")
            hint = (
                "; the columns seem to be separated by semicolons: write commas"
                if len(names) == 1 and ";" in names[0]
                else ""
            )
            raise MappingError(f"{path}: there is no column {column!r}; there are {shown}{hint}")
        if names.count(column) > 1:
            raise MappingError(
                f"{path}: the column {column!r} is there {names.count(column)} times; rename all but one"
            )


def _arrow_columns(path: Path, kind: str, batches: Iterator[pa.RecordBatch], rows_per_block: int) -> Iterator[_Columns]:
    row = 1
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, rows_per_block):
                part = batch.slice(start, rows_per_block)
                columns = {name: _plain(part.column(name)) for name in part.schema.names}
                _check_texts(path, row, columns)
                yield np.arange(row, row + part.num_rows), columns
                row += part.num_rows
    except (pa.ArrowException, OSError) as exc:
        raise FileError(f"{path}: after row {row - 1}: not readable as {kind}: {_first_line(exc)}") from exc


def _check_texts(path: Path, row: int, columns: Mapping_[str, pa.Array]) -> None:
    """Parquet's texts are whatever bytes were written. Raises FileError for those that are not UTF-8."""
    for name, column in columns.items():
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowException as exc:
                raise FileError(
                    f"{path}: rows {row} to {row + len(column) - 1}: column {name} holds bytes that are not UTF-8; "
                    "write it as UTF-8 text"
                ) from exc


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _lines(path: Path, packed: bool, rows_per_block: int) -> Iterator[list[tuple[int, bytes]]]:
    """Lines that are not blank, without their ends, with their numbers from 1."""
    block: list[tuple[int, bytes]] = []
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as raw:
            lines: io.BufferedIOBase = raw  # type: ignore[assignment]
            number = 0
            while line := lines.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise FileError(
                        f"{path}: line {number} is longer than {LINE_BYTES_MAX} bytes; write one payment a line"
                    )
                line = line.strip(b" \t\r\n")
                if line:
                    block.append((number, line))
                if len(block) == rows_per_block:
                    yield block
                    block = []
    except (OSError, EOFError) as exc:
        raise FileError(f"{path}: cannot be read: {_first_line(exc)}") from exc
    if block:
        yield block


def _json_columns(path: Path, packed: bool, mapping: Mapping, rows_per_block: int) -> Iterator[_Columns]:
    # Decimals keep every digit; from a float they would have to be guessed.
    decoder = msgspec.json.Decoder(dict[str, object], float_hook=Decimal)
    names: dict[str, None] = {}
    for first, block in enumerate(_lines(path, packed, rows_per_block)):
        objects = []
        for number, line in block:
            try:
                objects.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise FileError(f"{path}: line {number}: not a JSON object") from exc
        if first == 0:
            for row in objects:
                names.update(dict.fromkeys(row))
            _check_columns(path, mapping, list(names))
        yield (
            np.array([number for number, _ in block], dtype=np.int64),
            {name: [row.get(name) for row in objects] for name in mapping.columns},
        )


def _blocks(path: Path, mapping: Mapping, blocks: Iterator[_Columns], *, of_text: bool = False) -> Iterator[FileBlock]:
    for rows, columns in blocks:
        yield _named_block(path, mapping, rows, columns, of_text=of_text)


def _named_block(
    path: Path, mapping: Mapping, rows: npt.NDArray[np.int64], columns: dict[str, Column], *, of_text: bool
) -> FileBlock:
    """One block; a cell that cannot become its field is a FileError that says where it is."""
    count = len(rows)
    field = "payment_id"

    def column(name: str, source: str | Constant) -> Column:
        nonlocal field
        field = f"{name} (column {source})" if isinstance(source, str) else f"{name} (constant)"
        return columns[source] if isinstance(source, str) else [source.constant] * count

    try:
        return _block(mapping, rows, column, of_text=of_text)
    except CellError as exc:
        raise FileError(f"{path}: row {rows[exc.index]}: {field}: {exc}") from exc


def mapped_block(
    mapping: Mapping, rows: npt.NDArray[np.int64], columns: dict[str, Column], *, of_text: bool
) -> FileBlock:
    """Rows of a file, given as the columns that the mapping names. Raises CellError, whose index counts those rows."""
    count = len(rows)

    def column(_name: str, source: str | Constant) -> Column:
        return columns[source] if isinstance(source, str) else [source.constant] * count

    return _block(mapping, rows, column, of_text=of_text)


@dataclass(frozen=True)
class Part:
    """Some rows of a Parquet or CSV file, as they stand there. `of_text`: the file has no types."""

    rows: npt.NDArray[np.int64]
    columns: dict[str, pa.Array]
    of_text: bool
    block: Callable[[], FileBlock]  # the same rows as `read_payments` gives them; raises FileError


def parts(path: Path, mapping: Mapping, rows_per_block: int) -> Iterator[Part] | None:
    """The columns of a Parquet or CSV file, block by block as `read_payments` cuts it; None for any other file.

    Raises what `read_payments` raises.
    """
    kind, _ = _kind(path)
    if kind == "jsonl":
        return None
    of_text = kind == "csv"
    return (
        Part(rows, dict(columns), of_text, partial(_named_block, path, mapping, rows, columns, of_text=of_text))
        for rows, columns in _opened(path, kind, mapping, rows_per_block)
    )


def _block(mapping: Mapping, rows: npt.NDArray[np.int64], column: _Get, *, of_text: bool) -> FileBlock:
    """One block's columns as payments; `of_text`: the file has no types. Raises CellError; `column` remembers which
    field was asked for last."""
    count = len(rows)
    payment_ids = texts(column("payment_id", mapping.payment_id))
    times = times_ms(column("event_time", mapping.event_time))
    currency = texts(column("currency", mapping.currency))
    if mapping.amount is not None:
        exponent = [CURRENCY_EXPONENT.get(code) if code is not None else None for code in currency]
        amounts = minor_units(column("amount", mapping.amount), exponent)
    else:
        assert mapping.amount_minor is not None
        amounts = whole_numbers(column("amount_minor", mapping.amount_minor))
    fields: dict[str, list[object]] = {
        "payment_id": [*payment_ids],
        "event_time": [*times],
        "amount_minor": [*amounts],
        "currency": [*currency],
    }
    for name in TEXT_FIELDS:
        source = getattr(mapping, name)
        if source is not None and name not in fields:
            fields[name] = [*texts(column(name, source), digits=4 if name == "mcc" else 0)]
    for name in POSITION_FIELDS:
        source = getattr(mapping, name)
        if source is not None:
            fields[name] = [*numbers(column(name, source))]
    if mapping.attributes:
        extra = {
            name: (text_attributes if of_text and isinstance(source, str) else attributes)(
                column(f"attributes.{name}", source)
            )
            for name, source in mapping.attributes.items()
        }
        fields["attributes"] = [_present(extra, i) for i in range(count)]
    event_time = np.array([-1 if t is None else t for t in times], dtype=np.int64)
    label = np.full(count, -1, dtype=np.int8)
    if mapping.label is not None:
        # A payment without an id or a time is refused by the decoder, so there is nothing that its label could be of.
        nameless = np.array([name is None for name in payment_ids]) | (event_time < 0)
        label = np.where(nameless, np.int8(-1), labels(column("label", mapping.label)))
    customers = fields.get("customer_id") or [None] * count
    return FileBlock(
        values=_encode(fields),
        keys=[None if customer is None else str(customer).encode() for customer in customers],
        payment_ids=payment_ids,
        event_time_ms=event_time,
        label=label,
        label_known_at_ms=np.where(label >= 0, event_time + mapping.label_delay, -1),
        row=rows,
    )


def _present(columns: FieldColumns, row: int) -> dict[str, object] | None:
    present = {name: values[row] for name, values in columns.items() if values[row] is not None}
    return present or None


def _encode(fields: dict[str, list[object]]) -> list[bytes]:
    """Rows of the columns as JSON objects in the contract's order, without fields that have no value."""
    encode, names = msgspec.json.encode, list(fields)
    return [
        encode({name: value for name, value in zip(names, row, strict=True) if value is not None})
        for row in zip(*fields.values(), strict=True)
    ]


class _Line(msgspec.Struct):
    """What a block wants to know of a payment in the contract's form."""

    payment_id: object = None
    event_time: object = None
    customer_id: object = None


def _contract_lines(path: Path, packed: bool, rows_per_block: int) -> Iterator[FileBlock]:
    decoder = msgspec.json.Decoder(_Line)
    for block in _lines(path, packed, rows_per_block):
        parsed = [_peek(decoder, line) for _, line in block]
        nothing = np.full(len(block), -1, dtype=np.int64)
        yield FileBlock(
            values=[line for _, line in block],
            keys=[p.customer_id.encode() if isinstance(p.customer_id, str) else None for p in parsed],
            payment_ids=[p.payment_id if isinstance(p.payment_id, str) else None for p in parsed],
            event_time_ms=np.array([_contract_time_ms(p.event_time) for p in parsed], dtype=np.int64),
            label=np.full(len(block), -1, dtype=np.int8),
            label_known_at_ms=nothing,
            row=np.array([number for number, _ in block], dtype=np.int64),
        )


def _peek(decoder: msgspec.json.Decoder[_Line], line: bytes) -> _Line:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Line()  # the payment decoder says what is wrong with it


def _contract_time_ms(value: object) -> int:
    try:
        return event_time_ms(value)
    except ContractError:
        return -1


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [exc.__class__.__name__])[0][:200]
