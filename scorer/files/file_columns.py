"""Payments of files as columns, for deciding and training: no JSON text is written and read.

The columns of a file's query are checked by schemas.column_check. Rows that are not certain there are written as JSON
for the decoder, as those of all files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.hashing import PUBLIC_KEY, hash_strings
from schemas.card_fields import UNDECLARED, CardFields
from schemas.column_check import Checked, check
from schemas.contract_error import ContractError
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.payment_batch import PaymentBatch, Reject
from schemas.payment_columns import Attribute, ColumnarPayments, PaymentColumns, with_pseudonyms
from schemas.payment_decoder import decode_payments
from scorer.files.contract_lines import ContractLines, open_lines
from scorer.files.file_reader import (
    FileBlock,
    attribute_values,
    closing_after,
    contract_blocks,
    filled,
    json_values,
    label_columns,
    label_records,
)
from scorer.files.file_source import Workspace
from scorer.files.mapping import Mapping
from scorer.files.payment_file import PaymentFile, ReadOptions
from scorer.files.row_facts import REFUSED, RowFacts
from scorer.files.row_spool import SharedRows
from scorer.pipeline.records import ControlRecord, KnownLabel, Records

Shared = SharedRows | ContractLines
_ATTRIBUTE = "attributes."
_DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class DecodedBlock:
    """n rows of a file, decoded: `records` and `labels` are what a batch takes; label int8 [n], label_known_at_ms and
    row int64 [n] as in FileBlock."""

    records: Records
    labels: Sequence[ControlRecord]
    label: npt.NDArray[np.int8]
    label_known_at_ms: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]


def decoded_blocks(
    path: str | Path,
    mapping: Mapping | None,
    rows_per_block: int,
    cards: CardFields = UNDECLARED,
    *,
    options: ReadOptions = _DEFAULTS,
    until_ms: int | None = None,
    expect: Callable[[int], None] = lambda _: None,
) -> Iterator[DecodedBlock]:
    """The payments of a file, block by block. With `until_ms` (epoch ms) rows that cannot change what was before it may
    be left out. `expect` is called with the number of rows, where it is known.

    `cards`: as schemas.payment_decoder.decode_payments takes it.

    Raises what scorer.files.file_reader.read_payments raises, of the same rows.
    """
    if mapping is None:
        lines, workspace = open_lines(path, options)
        expect(lines.survey.rows)
        return closing_after(_of_lines(lines, rows_per_block), workspace)
    file = PaymentFile(path, mapping, options)
    expect(file.facts.survey.rows)
    return _blocks(file.facts, file.batches(rows_per_block, until_ms), cards)


def shared_rows(
    path: str | Path,
    mapping: Mapping | None,
    rows_per_block: int,
    *,
    options: ReadOptions = _DEFAULTS,
    until_ms: int | None = None,
) -> tuple[Shared, Workspace]:
    """A source that several processes read, parsed and ordered once; and the folder to remove after them.

    Raises what decoded_blocks raises.
    """
    if mapping is None:
        return open_lines(path, options)
    file = PaymentFile(path, mapping, options)
    try:
        return file.shared(rows_per_block, until_ms), file.opened.workspace
    except BaseException:
        file.close()
        raise


def shared_blocks(rows: Shared, rows_per_block: int, cards: CardFields = UNDECLARED) -> Iterator[DecodedBlock]:
    """As decoded_blocks, of what shared_rows gave for as many rows a block."""
    if isinstance(rows, ContractLines):
        return _of_lines(rows, rows_per_block)
    return _blocks(rows.facts, rows.batches(), cards)


def _blocks(facts: RowFacts, batches: Iterator[pa.RecordBatch], cards: CardFields) -> Iterator[DecodedBlock]:
    for batch in batches:
        yield _decoded(facts, batch, cards)
    if lost := facts.lost():
        yield _left_out(lost)


def _of_lines(source: ContractLines, rows_per_block: int) -> Iterator[DecodedBlock]:
    """Lines of the contract as JSON, still to be decoded; those of the far future stand refused in their places."""
    for block in contract_blocks(source, rows_per_block):
        if not block.refused:
            yield undecoded(block)
            continue
        refused = {one.row: one.error for one in block.refused}
        rows = np.sort(np.concatenate([block.row, np.array(list(refused), np.int64)]))
        place = {row: i for i, row in enumerate(block.row.tolist())}
        places = [place.get(row) for row in rows.tolist()]
        none = np.full(len(rows), -1, np.int64)
        plain = json_block(
            [None if i is None else block.keys[i] for i in places],
            [None if i is None else block.values[i] for i in places],
            (),
            none.astype(np.int8),
            none,
            rows,
        )
        errors = {i: refused[row] for i, row in enumerate(rows.tolist()) if row in refused}
        records = plain.records
        yield replace(
            plain,
            records=RecordsWithRefused(
                records.partition, records.offset, records.timestamp_ms, records.keys, records.values, errors
            ),
        )


@dataclass(frozen=True)
class RecordsWithRefused(Records):
    """Records as JSON, some of which were refused before decoding: `refused` by position; their values are None."""

    refused: dict[int, ContractError]

    def decode(self, cards: CardFields = UNDECLARED) -> PaymentBatch:
        """As Records.decode."""
        found = super().decode(cards)
        found.rejects = [Reject(i, self.refused.get(i, error)) for i, error in found.rejects]
        return found


def undecoded(block: FileBlock) -> DecodedBlock:
    """A block whose rows are JSON, still to be decoded."""
    return json_block(block.keys, block.values, label_records(block), block.label, block.label_known_at_ms, block.row)


def json_block(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    labels: Sequence[bytes],
    label: npt.NDArray[np.int8],
    label_known_at_ms: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64] | None = None,
) -> DecodedBlock:
    """Records and label records as bytes; the last three as in DecodedBlock."""
    nothing = np.zeros(len(values), np.int64)
    records = Records(nothing.astype(np.int32), nothing, nothing, keys, values)
    control = [ControlRecord(i, None, value) for i, value in enumerate(labels)]
    numbers = np.arange(1, len(values) + 1) if row is None else row
    return DecodedBlock(records, control, label, label_known_at_ms, numbers)


def _decoded(facts: RowFacts, batch: pa.RecordBatch, cards: CardFields) -> DecodedBlock:
    count, names = batch.num_rows, set(batch.schema.names)
    time, codes = filled(batch.column("event_time"), -1), batch.column(REFUSED).to_numpy()
    fields = PaymentColumns(
        time,
        filled(batch.column("amount_minor"), -1),
        {name: _aligned(batch.column(name)) for name in TEXT_FIELDS if name in names},
        {name: _floats(batch.column(name)) for name in POSITION_FIELDS if name in names},
        {
            name.removeprefix(_ATTRIBUTE): _attribute(facts, name, batch.column(name))
            for name in batch.schema.names
            if name.startswith(_ATTRIBUTE)
        },
    )
    checked = check(fields, cards)
    checked.certain[codes > 0] = False
    payments = ColumnarPayments(np.arange(count, dtype=np.int32), with_pseudonyms(fields, cards))
    if not checked.certain.all():
        payments = _merged(facts, payments, checked, batch, codes, cards)
    label, known_at = label_columns(facts.mapping, batch, time)
    records = DecodedRecords(
        partition=np.zeros(count, np.int32),
        offset=np.zeros(count, np.int64),
        timestamp_ms=np.zeros(count, np.int64),
        keys=_Keys(fields.texts.get("customer_id"), count),
        values=_Values(facts, batch),
        accepted=payments,
        payloads=checked.payload,
    )
    labels = FileLabels(fields.texts["payment_id"], label, known_at, time, checked.certain)
    rows = facts.row_numbers(batch.column("row").to_numpy())
    return DecodedBlock(records, labels, label, known_at, rows)


def _merged(
    facts: RowFacts,
    payments: ColumnarPayments,
    checked: Checked,
    batch: pa.RecordBatch,
    codes: npt.NDArray[np.int16],
    cards: CardFields,
) -> ColumnarPayments:
    """The rows that are certain and those that the decoder accepts of the rest, with its refusals and the mapping's."""
    uncertain = np.flatnonzero(~checked.certain & (codes == 0))
    rejects = [Reject(i, facts.refusal(int(codes[i]))) for i in np.flatnonzero(codes).tolist()]
    kept = checked.certain.copy()
    if len(uncertain):
        taken = batch.take(pa.array(uncertain))
        values = json_values(facts, taken)
        customers = (
            taken.column("customer_id").to_pylist() if "customer_id" in taken.schema.names else [None] * len(values)
        )
        decoded = decode_payments(values, [None if c is None else c.encode() for c in customers], cards=cards)
        accepted = uncertain[decoded.index]
        checked.payload[uncertain] = hash_strings(values, PUBLIC_KEY)[0][:, 0]
        kept[accepted] = True
        rejects += [Reject(int(uncertain[r.index]), r.error) for r in decoded.rejects]
    merged = payments.take(np.flatnonzero(kept))
    merged.rejects = sorted(rejects, key=lambda reject: reject.index)
    return merged


def _left_out(lost: Sequence[tuple[int, ContractError]]) -> DecodedBlock:
    """What cannot be read as rows, as refused records."""
    count = len(lost)
    empty = PaymentColumns(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        {name: pa.array([], pa.string()) for name in ("payment_id", "currency")},
    )
    payments = ColumnarPayments(np.empty(0, np.int32), empty, [Reject(i, error) for i, (_, error) in enumerate(lost)])
    nothing = np.zeros(count, np.int64)
    records = DecodedRecords(
        partition=nothing.astype(np.int32),
        offset=nothing,
        timestamp_ms=nothing,
        keys=[None] * count,
        values=[None] * count,
        accepted=payments,
        payloads=nothing.astype(np.uint64),
    )
    none = np.full(count, -1, np.int64)
    return DecodedBlock(records, (), none.astype(np.int8), none, np.array([row for row, _ in lost], np.int64))


@dataclass(frozen=True)
class DecodedRecords(Records):
    """Records of a file whose payments are decoded; keys and values are made when they are asked for.

    accepted: with the refusals · payloads uint64 [n]: a hash of what each record says
    """

    accepted: PaymentBatch
    payloads: npt.NDArray[np.uint64]

    def decode(self, cards: CardFields = UNDECLARED) -> PaymentBatch:  # noqa: ARG002 - decoded with them already
        """As Records.decode."""
        return self.accepted

    def payload(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """As Records.payload."""
        return self.payloads[rows]


class _Keys(Sequence["bytes | None"]):
    """customer_id as the record's key."""

    def __init__(self, customers: pa.StringArray | None, count: int) -> None:
        self._customers, self._count = customers, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes | None]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        customer = None if self._customers is None else self._customers[index].as_py()
        return None if customer is None else customer.encode()


class _Values(Sequence["bytes | None"]):
    """The rows as JSON, made when one is asked for."""

    def __init__(self, facts: RowFacts, batch: pa.RecordBatch) -> None:
        self._facts, self._batch = facts, batch

    def __len__(self) -> int:
        return self._batch.num_rows  # type: ignore[no-any-return]

    @cached_property
    def _made(self) -> list[bytes]:
        return json_values(self._facts, self._batch)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._made[index]


class FileLabels(Sequence[ControlRecord]):
    """The labels of a block as control records; `known` gives those that are certainly valid without their JSON."""

    def __init__(
        self,
        payment_id: pa.StringArray,
        label: npt.NDArray[np.int8],
        known_at_ms: npt.NDArray[np.int64],
        event_time_ms: npt.NDArray[np.int64],
        certain: npt.NDArray[np.bool_],
    ) -> None:
        self._rows = np.flatnonzero(known_at_ms >= 0)
        self._payment_id, self._label, self._known_at, self._time = payment_id, label, known_at_ms, event_time_ms
        # Of a certain row the id and the event time are good; what is left is the time at which the label is known.
        self._certain = certain & (known_at_ms >= EVENT_TIME_MS_MIN) & (known_at_ms < EVENT_TIME_MS_END)
        self._first = 0

    def only(self, kept: npt.NDArray[np.bool_]) -> FileLabels:
        """Those of the rows of the block where bool [n] holds."""
        self._rows = self._rows[kept[self._rows]]
        return self

    def numbered(self, first: int) -> FileLabels:
        """The same, with offsets from `first` on."""
        self._first = first
        return self

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ControlRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ControlRecord]: ...
    def __getitem__(self, index: int | slice) -> ControlRecord | list[ControlRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = self._rows[np.array([index])]
        block = FileBlock(
            values=[b""],
            keys=[None],
            payment_ids=self._payment_id.take(pa.array(i)).to_pylist(),
            event_time_ms=self._time[i],
            label=self._label[i],
            label_known_at_ms=self._known_at[i],
            row=i,
        )
        return ControlRecord(self._first + index, None, label_records(block)[0])

    def known(self) -> list[KnownLabel | None]:
        """Each label, None where its record has to be parsed."""
        rows = self._rows
        ids = self._payment_id.take(pa.array(rows)).to_pylist()
        known_at, fraud = self._known_at[rows].tolist(), (self._label[rows] == 1).tolist()
        return [
            KnownLabel(payment_id, is_fraud, at) if certain else None
            for payment_id, is_fraud, at, certain in zip(
                ids, fraud, known_at, self._certain[rows].tolist(), strict=True
            )
        ]


def _aligned(column: pa.Array) -> pa.Array:
    """The column from the beginning of its buffers, as the kernels read it."""
    return column if column.offset == 0 else pa.concat_arrays([column])


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    # A null becomes NaN; an infinite one is out of every field's range.
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _attribute(facts: RowFacts, name: str, column: pa.Array) -> Attribute:
    if facts.attribute_types.get(name) not in ("MIXED", "JSON"):
        return _aligned(column)
    found = np.empty(len(column), dtype=np.object_)
    found[:] = attribute_values(facts, name, column)
    return found
