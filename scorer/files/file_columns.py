"""Payments of Parquet and CSV as columns, for deciding and training: no JSON text is written and read.

Cells are converted as scorer.files.file_reader converts them, a column at a time where the column's type allows, and
checked by schemas.column_check. Rows that are not certain there are written as JSON for the decoder, as those of all
files; so is a whole block with a cell that cannot become its field, so that its error is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.hashing import PUBLIC_KEY, hash_strings
from schemas.card_fields import UNDECLARED, CardFields
from schemas.column_check import Checked, check
from schemas.currencies import CURRENCY_EXPONENT
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.payment_columns import Attribute, ColumnarPayments, PaymentColumns, with_pseudonyms
from schemas.payment_decoder import PaymentBatch, Reject, decode_payments
from scorer.files import cells
from scorer.files.cells import CellError, Column
from scorer.files.file_reader import FileBlock, Part, label_records, mapped_block, parts
from scorer.files.mapping import Constant, Mapping
from scorer.pipeline.records import ControlRecord, KnownLabel, Records

# Digits after the point: at most four (schemas.currencies); the power of ten of each is an exact double.
_POWERS = np.array([10.0**digits for digits in range(10)])
_WHOLE_POWERS = np.array([10**digits for digits in range(10)], dtype=np.int64)
_NOT_KNOWN = -1


@dataclass(frozen=True)
class DecodedBlock:
    """n rows of a file, decoded: `records` and `labels` are what a batch takes; label int8 [n] and label_known_at_ms
    int64 [n] as in FileBlock."""

    records: Records
    labels: Sequence[ControlRecord]
    label: npt.NDArray[np.int8]
    label_known_at_ms: npt.NDArray[np.int64]


def decoded_blocks(
    path: Path, mapping: Mapping | None, rows_per_block: int, cards: CardFields = UNDECLARED
) -> Iterator[DecodedBlock] | None:
    """The payments of a Parquet or CSV file, block by block; None for files that are not made of columns.

    `cards`: as schemas.payment_decoder.decode_payments takes it.

    Raises what scorer.files.file_reader.read_payments raises, of the same rows.
    """
    read = None if mapping is None else parts(path, mapping, rows_per_block)
    return None if mapping is None or read is None else (_block(mapping, part, cards) for part in read)


def _block(mapping: Mapping, part: Part, cards: CardFields) -> DecodedBlock:
    try:
        return _decoded(mapping, part, cards)
    except CellError:
        return undecoded(part.block())  # which raises the error of the file's first such cell


def undecoded(block: FileBlock) -> DecodedBlock:
    """A block whose rows are JSON, still to be decoded."""
    return json_block(block.keys, block.values, label_records(block), block.label, block.label_known_at_ms)


def json_block(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    labels: Sequence[bytes],
    label: npt.NDArray[np.int8],
    label_known_at_ms: npt.NDArray[np.int64],
) -> DecodedBlock:
    """Records and label records as bytes; the last two as in DecodedBlock."""
    nothing = np.zeros(len(values), np.int64)
    records = Records(nothing.astype(np.int32), nothing, nothing, keys, values)
    control = [ControlRecord(i, None, value) for i, value in enumerate(labels)]
    return DecodedBlock(records, control, label, label_known_at_ms)


def _decoded(mapping: Mapping, part: Part, cards: CardFields) -> DecodedBlock:
    count, columns, of_text = len(part.rows), part.columns, part.of_text

    def column(source: str | Constant) -> Column:
        return columns[source] if isinstance(source, str) else pa.repeat(source.constant, count)

    texts: dict[str, pa.StringArray] = {}
    for name in TEXT_FIELDS:
        source = getattr(mapping, name)
        if source is not None:
            texts[name] = _texts(column(source), digits=4 if name == "mcc" else 0)
    if mapping.amount is not None:
        amount = _minor(column(mapping.amount), _exponents(texts["currency"]))
    else:
        assert mapping.amount_minor is not None
        amount = _whole(column(mapping.amount_minor))
    numbers = {
        name: _numbers(column(source)) for name in POSITION_FIELDS if (source := getattr(mapping, name)) is not None
    }
    attributes = {
        name: _attribute(column(source), of_text=of_text and isinstance(source, str))
        for name, source in mapping.attributes.items()
    }
    time = _times(column(mapping.event_time))
    fields = PaymentColumns(time, amount, texts, numbers, attributes)
    checked = check(fields, cards)
    payments = ColumnarPayments(np.arange(count, dtype=np.int32), with_pseudonyms(fields, cards))
    if not checked.certain.all():
        payments = _merged(payments, checked, mapping, part, cards)
    label, known_at = _labels(mapping, columns, texts["payment_id"], time)
    records = DecodedRecords(
        partition=np.zeros(count, np.int32),
        offset=np.zeros(count, np.int64),
        timestamp_ms=np.zeros(count, np.int64),
        keys=_Keys(texts.get("customer_id"), count),
        values=_Values(part),
        accepted=payments,
        payloads=checked.payload,
    )
    labels = FileLabels(texts["payment_id"], label, known_at, time, checked.certain)
    return DecodedBlock(records, labels, label, known_at)


def _merged(
    payments: ColumnarPayments, checked: Checked, mapping: Mapping, part: Part, cards: CardFields
) -> ColumnarPayments:
    """The rows that are certain and those that the decoder accepts of the rest, with its refusals."""
    uncertain = np.flatnonzero(~checked.certain)
    places = pa.array(uncertain)
    taken: dict[str, Column] = {name: column.take(places) for name, column in part.columns.items()}
    slow = mapped_block(mapping, uncertain, taken, of_text=part.of_text)
    decoded = decode_payments(slow.values, slow.keys, cards=cards)
    accepted = uncertain[decoded.index]
    # Texts and numbers are what their cells say either way; an amount may be one that only the careful way can tell.
    payments.amount_minor[accepted] = decoded.amount_minor
    checked.payload[uncertain] = hash_strings(slow.values, PUBLIC_KEY)[0][:, 0]
    kept = checked.certain.copy()
    kept[accepted] = True
    merged = payments.take(np.flatnonzero(kept))
    merged.rejects = [Reject(int(uncertain[r.index]), r.error) for r in decoded.rejects]
    return merged


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
    """The rows as JSON."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part.rows)

    @cached_property
    def _made(self) -> list[bytes]:
        return self._part.block().values

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


# Columns of one Arrow type at once; every other column cell by cell, as scorer.files.cells does.


def _texts(column: Column, *, digits: int = 0) -> pa.StringArray:
    if isinstance(column, pa.Array):
        kind = column.type
        if pa.types.is_string(kind):
            return column if column.offset == 0 else pa.concat_arrays([column])
        if pa.types.is_large_string(kind) or (pa.types.is_integer(kind) and not digits):
            return pc.cast(column, pa.string())
    return pa.array(cells.texts(column, digits=digits), pa.string())


def _exponents(currency: pa.StringArray) -> npt.NDArray[np.int64]:
    """Digits after the point of each row's currency, int64 [n]; -1 where it is not known."""
    encoded = currency.dictionary_encode()
    known = [CURRENCY_EXPONENT.get(code, _NOT_KNOWN) for code in encoded.dictionary.to_pylist()]
    table = np.array([*known, _NOT_KNOWN], dtype=np.int64)
    places: npt.NDArray[np.int64] = pc.fill_null(encoded.indices, len(known)).to_numpy(zero_copy_only=False)
    return np.take(table, places)


def _minor(column: Column, exponent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Amounts in minor units, int64 [n]; -1 where only scorer.files.cells can tell."""
    known = exponent >= 0
    digits = np.where(known, exponent, 0)
    if isinstance(column, pa.Array):
        kind = column.type
        if pa.types.is_float32(kind) or pa.types.is_float64(kind):
            return np.where(known, _floats(column, digits), -1)
        if pa.types.is_signed_integer(kind):
            whole, valid = _int64(column)
            small = valid & known & (whole >= 0) & (whole < 10**12)
            return np.where(small, np.where(small, whole, 0) * _WHOLE_POWERS[digits], -1)
        if pa.types.is_decimal128(kind) and 0 <= kind.scale < len(_WHOLE_POWERS):
            return np.where(known, _decimals(column, kind.scale, digits), -1)
    return _as_int64(cells.minor_units(column, [e if e >= 0 else None for e in exponent.tolist()]))


def _whole(column: Column) -> npt.NDArray[np.int64]:
    if isinstance(column, pa.Array) and pa.types.is_signed_integer(column.type):
        whole, valid = _int64(column)
        return np.where(valid, whole, -1)
    return _as_int64(cells.whole_numbers(column))


def _floats(column: pa.Array, digits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    limit = cells.FLOAT64_WHOLE_MAX if pa.types.is_float64(column.type) else cells.FLOAT32_MINOR_MAX
    values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = values * _POWERS[digits]
        nearest = np.rint(scaled)
        sure = (np.abs(scaled - nearest) <= cells.MINOR_TOLERANCE) & (np.abs(nearest) < limit)
    return np.where(sure, nearest, -1).astype(np.int64)


def _decimals(column: pa.Array, scale: int, digits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    words = np.frombuffer(column.buffers()[1], np.int64, count=2 * len(column), offset=16 * column.offset)
    words = words.reshape(-1, 2)
    # Nothing above the low 64 bits, and few enough digits for any currency.
    sure = np.asarray(column.is_valid()) & (words[:, 1] == 0) & (words[:, 0] >= 0) & (words[:, 0] < 10**12)
    unscaled = np.where(sure, words[:, 0], 0)
    up, down = _WHOLE_POWERS[np.maximum(digits - scale, 0)], _WHOLE_POWERS[np.maximum(scale - digits, 0)]
    return np.where(sure & (unscaled % down == 0), unscaled * up // down, -1)


def _numbers(column: Column) -> npt.NDArray[np.float64]:
    if isinstance(column, pa.Array):
        if pa.types.is_float32(column.type) or pa.types.is_float64(column.type):
            # A null becomes NaN; an infinite one is out of every field's range.
            return np.array(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False))
        if pa.types.is_signed_integer(column.type):
            whole, valid = _int64(column)
            return np.where(valid, whole.astype(np.float64), np.nan)
    return np.array(cells.numbers(column), dtype=np.float64)


def _attribute(column: Column, *, of_text: bool) -> Attribute:
    if isinstance(column, pa.Array) and not of_text:
        kind = column.type
        if pa.types.is_large_string(kind):
            return pc.cast(column, pa.string())
        if (
            pa.types.is_string(kind)
            or pa.types.is_signed_integer(kind)
            or pa.types.is_float32(kind)
            or pa.types.is_float64(kind)
            or pa.types.is_boolean(kind)
        ):
            return column if column.offset == 0 else pa.concat_arrays([column])
    values = cells.text_attributes(column) if of_text else cells.attributes(column)
    found = np.empty(len(values), dtype=np.object_)
    found[:] = values
    return found


def _times(column: Column) -> npt.NDArray[np.int64]:
    if isinstance(column, pa.Array) and pa.types.is_timestamp(column.type):
        ticks, valid = _int64(column)
        per_ms = {"s": 1, "ms": 1, "us": 1_000, "ns": 1_000_000}[column.type.unit]
        ms = ticks * 1_000 if column.type.unit == "s" else ticks // per_ms
        # The decoder refuses what was before 1970 as it refuses a missing time; -1 leaves the word to it.
        return np.where(valid, ms, -1)
    return _as_int64(cells.times_ms(column))


def _int64(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    whole = pc.cast(column, pa.int64())
    if whole.null_count == 0:
        return whole.to_numpy(zero_copy_only=False), np.ones(len(whole), dtype=np.bool_)
    return pc.fill_null(whole, 0).to_numpy(zero_copy_only=False), np.asarray(whole.is_valid())


def _as_int64(values: Sequence[int | None]) -> npt.NDArray[np.int64]:
    return np.array([-1 if v is None or not 0 <= v < 1 << 62 else v for v in values], dtype=np.int64)


def _labels(
    mapping: Mapping, columns: dict[str, Column], payment_id: pa.StringArray, time: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """label int8 [n] and when it becomes known, int64 [n] epoch ms; as in FileBlock."""
    label = np.full(len(time), -1, dtype=np.int8)
    if mapping.label is not None:
        nameless = np.asarray(payment_id.is_null()) | (time < 0)
        label = np.where(nameless, np.int8(-1), _verdicts(columns[mapping.label]))
    return label, np.where(label >= 0, time + mapping.label_delay, -1)


def _verdicts(column: Column) -> npt.NDArray[np.int8]:
    if isinstance(column, pa.Array) and (pa.types.is_signed_integer(column.type) or pa.types.is_boolean(column.type)):
        whole, valid = _int64(column)
        if ((whole == 0) | (whole == 1)).all():
            return np.where(valid, whole, -1).astype(np.int8)
    return cells.labels(column)
