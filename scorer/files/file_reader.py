"""Payments from files in blocks, as the very bytes that Kafka would carry.

    FraudScorerError
    ├── FileError               the file cannot be read to its end
    └── UsageError
        └── MappingError        the mapping does not fit the file

Each row becomes a JSON payment, so that a file goes through the same decoder as the topic, with the same refusals. A
row with a cell that cannot become its field is refused, and the next one is read. JSON lines in the contract's own form
need no mapping and pass as they are, in the order of the file (contract_lines).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.field_table import FIELD_NAMES
from scorer.files.contract_lines import ContractLines, Line, contract_time_ms, open_lines
from scorer.files.file_source import FileError, Workspace
from scorer.files.mapping import Mapping
from scorer.files.payment_file import PaymentFile, ReadOptions, RowRefused
from scorer.files.row_facts import REFUSED, RowFacts
from scorer.files.time_survey import FAR_FUTURE

ROWS_PER_BLOCK = 65_536
_ATTRIBUTE = "attributes."
_DEFAULTS = ReadOptions()


@dataclass(frozen=True, slots=True)
class FileBlock:
    """Rows of a file in the order in which they are read; all columns have the same length n <= rows_per_block."""

    values: list[bytes]  # payments as JSON, per the contract; the decoder says which are accepted
    keys: list[bytes | None]  # customer_id, or None
    payment_ids: list[str | None]
    event_time_ms: npt.NDArray[np.int64]  # [n] epoch ms; -1 where there is none (the decoder refuses the row)
    label: npt.NDArray[np.int8]  # [n] 1 fraud, 0 genuine, -1 not known
    label_known_at_ms: npt.NDArray[np.int64]  # [n] event_time + label_delay; -1 where there is no label
    row: npt.NDArray[np.int64]  # [n] place in the file: the line of JSON lines, else the row of data; counted from 1
    refused: list[RowRefused] = field(default_factory=list)  # rows that became no payment at all

    def __len__(self) -> int:
        return len(self.values)


def read_payments(
    path: str | Path,
    mapping: Mapping | None = None,
    rows_per_block: int = ROWS_PER_BLOCK,
    options: ReadOptions = _DEFAULTS,
) -> Iterator[FileBlock]:
    """The payments of a file, a folder, a pattern, a URL, or stdin ("-"): Parquet, CSV, JSON; plain, .gz or .zst.

    Without a mapping the file must be JSON lines in the contract's own form. Raises MappingError and FileError; a
    missing file or column is an error here, before the first block.
    """
    return payment_blocks(path, mapping, rows_per_block, options)[1]


def payment_blocks(
    path: str | Path, mapping: Mapping | None, rows_per_block: int, options: ReadOptions = _DEFAULTS
) -> tuple[int, Iterator[FileBlock]]:
    """As read_payments, with the number of rows."""
    if rows_per_block < 1:
        raise ValueError(f"rows_per_block={rows_per_block}: at least 1")
    if mapping is None:
        source, workspace = open_lines(path, options)
        return source.survey.rows, closing_after(contract_blocks(source, rows_per_block), workspace)
    file = PaymentFile(path, mapping, options)
    return file.facts.survey.rows, _mapped(file, rows_per_block)


_Item = TypeVar("_Item")


def closing_after(items: Iterable[_Item], workspace: Workspace) -> Iterator[_Item]:
    """The items; the workspace is removed after the last one, or when no more are taken."""
    try:
        yield from items
    finally:
        workspace.close()


def _mapped(file: PaymentFile, rows_per_block: int) -> Iterator[FileBlock]:
    for batch in file.batches(rows_per_block):
        yield json_block(file.facts, batch)
    if lost := file.facts.lost():
        empty = np.empty(0, np.int64)
        refused = [RowRefused(row, error) for row, error in lost]
        yield FileBlock([], [], [], empty, empty.astype(np.int8), empty, empty, refused)


def json_block(facts: RowFacts, batch: pa.RecordBatch) -> FileBlock:
    """Rows of a batch as JSON; those that the mapping refuses stand in `refused` alone."""
    codes = batch.column(REFUSED).to_numpy()
    rows = facts.row_numbers(batch.column("row").to_numpy())
    refused = [RowRefused(int(rows[i]), facts.refusal(int(codes[i]))) for i in np.flatnonzero(codes).tolist()]
    if refused:
        kept = np.flatnonzero(codes == 0)
        batch, rows = batch.take(pa.array(kept)), rows[kept]
    names = batch.column("payment_id").to_pylist()
    time = filled(batch.column("event_time"), -1)
    label, known_at = label_columns(facts.mapping, batch, time)
    customers = batch.column("customer_id").to_pylist() if "customer_id" in batch.schema.names else [None] * len(rows)
    keys = [None if customer is None else customer.encode() for customer in customers]
    return FileBlock(json_values(facts, batch), keys, names, time, label, known_at, rows, refused)


def json_values(facts: RowFacts, batch: pa.RecordBatch) -> list[bytes]:
    """Rows as JSON objects in the contract's order, without fields that have no value."""
    columns = {name: batch.column(name) for name in FIELD_NAMES if name in batch.schema.names}
    named: dict[str, Sequence[object]] = {name: _present(column) for name, column in columns.items()}
    attributes = {
        name.removeprefix(_ATTRIBUTE): attribute_values(facts, name, batch.column(name))
        for name in batch.schema.names
        if name.startswith(_ATTRIBUTE)
    }
    if attributes:
        found = zip(*attributes.values(), strict=True)
        named["attributes"] = [
            {name: value for name, value in zip(attributes, row, strict=True) if value is not None} or None
            for row in found
        ]
    encode, order = msgspec.json.encode, list(named)
    return [
        encode({name: value for name, value in zip(order, row, strict=True) if value is not None})
        for row in zip(*named.values(), strict=True)
    ]


def attribute_values(facts: RowFacts, name: str, column: pa.Array) -> Sequence[object]:
    """An attribute's values as Python objects, None where absent."""
    kind = facts.attribute_types.get(name)
    if kind not in ("MIXED", "JSON"):
        return _present(column)
    encoded = column.dictionary_encode()
    written = [_untyped(cell, quoted=kind == "JSON") for cell in encoded.dictionary.to_pylist()]
    return [None if i is None else written[i] for i in encoded.indices.to_pylist()]


def _untyped(cell: str, *, quoted: bool) -> object:
    """A cell whose column has no type: a JSON number, a truth value, or text."""
    if not quoted and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    if isinstance(value, str) and not quoted:
        return cell
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        # The contract takes 64 bits; longer digits are an identifier, and a float would change them.
        return value if -(1 << 63) <= value < 1 << 63 else cell
    return value if isinstance(value, float) and np.isfinite(value) else cell


def _present(column: pa.Array) -> list[object]:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.to_pylist()  # type: ignore[no-any-return]


def filled(column: pa.Array, absent: int) -> npt.NDArray[np.int64]:
    """Whole numbers as int64 [n], `absent` where there is none."""
    if column.type != pa.int64():
        column = pc.cast(column, pa.int64())
    if column.null_count:
        column = pc.fill_null(column, absent)
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def label_columns(
    mapping: Mapping, batch: pa.RecordBatch, time: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """label int8 [n] and when it becomes known, int64 [n] epoch ms; as in FileBlock."""
    label = np.full(len(time), -1, dtype=np.int8)
    if mapping.label is not None:
        # A payment without an id or a time is refused, so there is nothing that its label could be of.
        nameless = (
            np.asarray(batch.column("payment_id").is_null()) | (time < 0) | (batch.column(REFUSED).to_numpy() > 0)
        )
        label = np.where(nameless, -1, filled(batch.column("label"), -1)).astype(np.int8)
    return label, np.where(label >= 0, time + mapping.label_delay, -1)


def label_records(block: FileBlock) -> list[bytes]:
    """Control-topic records of the rows with label >= 0, in the block's order; one record for each such row."""
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


def contract_blocks(source: ContractLines, rows_per_block: int) -> Iterator[FileBlock]:
    """JSON lines in the contract's own form, passed on as they are, good or bad; those of the far future are refused.
    Raises FileError."""
    decoder = msgspec.json.Decoder(Line)
    for block in source.blocks(rows_per_block):
        parsed = [_peek(decoder, line) for _, line in block]
        times = np.array([contract_time_ms(p.event_time) for p in parsed], dtype=np.int64)
        rows = np.array([number for number, _ in block], dtype=np.int64)
        future = source.far_future(times)
        refused = [RowRefused(int(row), FAR_FUTURE) for row in rows[future]]
        kept = np.flatnonzero(~future)
        yield FileBlock(
            values=[block[i][1] for i in kept],
            keys=[_key(parsed[i]) for i in kept],
            payment_ids=[p if isinstance(p := parsed[i].payment_id, str) else None for i in kept],
            event_time_ms=times[kept],
            label=np.full(len(kept), -1, dtype=np.int8),
            label_known_at_ms=np.full(len(kept), -1, dtype=np.int64),
            row=rows[kept],
            refused=refused,
        )


def _key(line: Line) -> bytes | None:
    return line.customer_id.encode() if isinstance(line.customer_id, str) else None


def _peek(decoder: msgspec.json.Decoder[Line], line: bytes) -> Line:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Line()  # the payment decoder says what is wrong with it


__all__ = [
    "ROWS_PER_BLOCK",
    "FileBlock",
    "FileError",
    "ReadOptions",
    "RowRefused",
    "label_records",
    "read_payments",
]
