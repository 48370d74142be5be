"""Payments that come as columns: checked and held as columns, without a text of JSON in between.

    columns ──▶ check (numba, one pass over each text) ──certain──▶ ColumnarPayments
                      └─uncertain──▶ the caller writes those rows as JSON; schemas.decode accepts or refuses them

A row is certain when the JSON of its cells would certainly be accepted, and its fields then are the cells themselves:
texts without quote, backslash or control character (JSON writes those as they are), numbers in their field's range.
Refusing, and saying why, is left to the reference, so both ways accept and refuse the same (a property test holds
them against each other).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, overload

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.cards import luhn_valid
from schemas.decode import PaymentBatch, PaymentRow
from schemas.field_table import KINDS, TABLES, Kind
from schemas.fields import AMOUNT_MINOR_END, ATTRIBUTE_CHARACTERS_MAX
from schemas.lexical import Bytes
from schemas.screen import text_is_good
from schemas.times import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN

# Twelve digits: below every card number, and exact as a double.
NUMBER_END: Final = 10**12
# A payment's JSON holds its texts as they are and, for up to 84 names and numbers, less than 8 KiB more: far below the
# contract's 64 KiB.
TEXT_BYTES_MAX: Final = 32_768
_DEGREES_MAX: Final = {
    "latitude": 90.0, "longitude": 180.0, "merchant_latitude": 90.0, "merchant_longitude": 180.0,
}  # fmt: skip

_ATTRIBUTE = int(Kind.ATTRIBUTES)

Attribute: TypeAlias = "pa.Array | npt.NDArray[np.object_]"


@dataclass
class PaymentColumns:
    """n payments by field, before they are checked. A field that no payment has is not there.

    texts: utf8, null where absent · event_time_ms, amount_minor: int64 [n], -1 where absent or unreadable · numbers:
    float64 [n], NaN where absent · attributes: Arrow text, whole number, float or boolean, or object [n] (None absent)
    """

    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    texts: dict[str, pa.StringArray]
    numbers: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.event_time_ms)

    def take(self, order: npt.NDArray[np.integer[Any]]) -> PaymentColumns:
        """The payments at the positions `order`, in that order."""
        places = pa.array(order)
        return PaymentColumns(
            self.event_time_ms[order],
            self.amount_minor[order],
            {name: column.take(places) for name, column in self.texts.items()},
            {name: column[order] for name, column in self.numbers.items()},
            {
                name: column.take(places) if isinstance(column, pa.Array) else column[order]
                for name, column in self.attributes.items()
            },
        )


@dataclass(frozen=True)
class Checked:
    """certain bool [n]: which rows the contract certainly accepts · payload uint64 [n]: a hash of all that a row says,
    which stands for its bytes where repeated payments are compared."""

    certain: npt.NDArray[np.bool_]
    payload: npt.NDArray[np.uint64]


def check(columns: PaymentColumns) -> Checked:
    """What is certain of each row. Texts must be valid UTF-8."""
    n = len(columns)
    time, amount = columns.event_time_ms, columns.amount_minor
    certain = (time >= EVENT_TIME_MS_MIN) & (time < EVENT_TIME_MS_END) & (amount >= 0) & (amount < AMOUNT_MINOR_END)
    payload = np.full(n, 0xCBF29CE484222325, dtype=np.uint64)
    size = np.zeros(n, dtype=np.int64)
    for name in ("payment_id", "currency"):
        text = columns.texts.get(name)
        certain &= False if text is None else _present(text)
    _mix_words(time, 1, payload)
    _mix_words(amount, 2, payload)
    for name, text in columns.texts.items():
        kind = KINDS.get(name, Kind.IDENTIFIER)
        _check(text, int(kind), certain, size, payload)
    for name, numbers in columns.numbers.items():
        bound = _DEGREES_MAX[name]
        certain &= np.isnan(numbers) | (np.abs(numbers) <= bound)
        _mix_words(_words(numbers), 3, payload)
    for attribute in columns.attributes.values():
        _check_attribute(attribute, certain, size, payload)
    certain &= size <= TEXT_BYTES_MAX
    return Checked(certain, payload)


def _present(text: pa.StringArray) -> npt.NDArray[np.bool_]:
    if text.null_count == 0:
        return np.ones(len(text), dtype=np.bool_)
    return np.asarray(text.is_valid())


def _words(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bits of each number; one value for every NaN."""
    return np.where(np.isnan(numbers), np.nan, numbers).view(np.int64)


def _check(
    text: pa.StringArray,
    kind: int,
    certain: npt.NDArray[np.bool_],
    size: npt.NDArray[np.int64],
    payload: npt.NDArray[np.uint64],
) -> None:
    if len(text) == 0:
        return
    _, offsets_buffer, buffer = text.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, count=len(text) + 1, offset=4 * text.offset)
    data = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.zeros(1, np.uint8)
    _check_texts(data, offsets, _present(text), kind, TABLES.currency, TABLES.weight, certain, size, payload)


def _check_attribute(
    attribute: Attribute,
    certain: npt.NDArray[np.bool_],
    size: npt.NDArray[np.int64],
    payload: npt.NDArray[np.uint64],
) -> None:
    if isinstance(attribute, pa.Array) and pa.types.is_string(attribute.type):
        _check(attribute, _ATTRIBUTE, certain, size, payload)
        return
    if isinstance(attribute, pa.Array) and not pa.types.is_unsigned_integer(attribute.type):
        valid = np.asarray(attribute.is_valid())
        numbers = np.where(valid, pc.cast(attribute, pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.nan)
        # Beyond 2^53 two whole numbers can be one double.
        whole = pc.cast(attribute, pa.int64()) if pa.types.is_integer(attribute.type) else None
        words = _words(numbers) if whole is None else pc.fill_null(whole, 0).to_numpy(zero_copy_only=False)
        _mix_words(valid.astype(np.int64), 4, payload)
    else:
        values = attribute.to_pylist() if isinstance(attribute, pa.Array) else attribute.tolist()
        text = pa.array([value if isinstance(value, str) else None for value in values], pa.string())
        _check(text, _ATTRIBUTE, certain, size, payload)
        # Numbers of different types have different texts.
        _mix_words(np.array([_TYPES.get(type(value), 0) for value in values], dtype=np.int64), 5, payload)
        numbers = np.array([float(v) if isinstance(v, int | float) else np.nan for v in values], dtype=np.float64)
        exact = [v % (1 << 63) if isinstance(v, int) else 0 for v in values]
        words = _words(numbers) ^ np.array(exact, dtype=np.int64)
    # An infinite number is not below the end either.
    certain &= np.isnan(numbers) | (np.abs(numbers) < NUMBER_END)
    _mix_words(words, 6, payload)


_TYPES: Final = {str: 1, bool: 2, int: 3, float: 4}


@nb.njit(cache=True, nogil=True)
def _check_texts(
    data: Bytes,
    offsets: npt.NDArray[np.int32],
    present: npt.NDArray[np.bool_],
    kind: int,
    currency: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.int64],
    certain: npt.NDArray[np.bool_],
    size: npt.NDArray[np.int64],
    payload: npt.NDArray[np.uint64],
) -> None:
    """One text column: clears `certain` where its field would not certainly take it; moves size and payload on."""
    for i in range(len(present)):
        hashed = (payload[i] ^ np.uint64(present[i])) * np.uint64(0x9E3779B97F4A7C15)
        if present[i]:
            start, end = int(offsets[i]), int(offsets[i + 1])
            size[i] += end - start
            total = np.int64(0)
            spoilt = 0
            if end - start > TEXT_BYTES_MAX:
                spoilt, end = 1, start
            for p in range(start, end):
                w = weight[data[p]]
                if w == 0:
                    spoilt = 1
                total += w
                hashed = (hashed ^ np.uint64(data[p])) * np.uint64(0x100000001B3)  # FNV-1a
            characters, digits, bare = total & 0x1FFFFF, (total >> 21) & 0x1FFFFF, (total >> 42) == 0
            if kind == _ATTRIBUTE:
                good = bool(characters <= ATTRIBUTE_CHARACTERS_MAX)
            else:
                good = text_is_good(data, start, end, kind, characters, currency)
            if spoilt or not good or (bare and 13 <= digits <= 19 and luhn_valid(data, start, end)):
                certain[i] = False
        payload[i] = hashed ^ (hashed >> np.uint64(29))


@nb.njit(cache=True, nogil=True)
def _mix_words(words: npt.NDArray[np.int64], salt: int, payload: npt.NDArray[np.uint64]) -> None:
    """Move each hash on by a word: splitmix64's finaliser."""
    for i in range(len(words)):
        x = payload[i] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(words[i]) + np.uint64(salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        payload[i] = x ^ (x >> np.uint64(27))


class ColumnRows(Sequence[PaymentRow]):
    """The payments as rows, made when they are asked for."""

    def __init__(self, columns: PaymentColumns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, index: int) -> PaymentRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PaymentRow]: ...
    def __getitem__(self, index: int | slice) -> PaymentRow | list[PaymentRow]:
        places = np.arange(len(self))[index]
        if isinstance(index, slice):
            return list(ColumnRows(self._columns.take(places)))
        return next(iter(ColumnRows(self._columns.take(np.array([places])))))

    def __iter__(self) -> Iterator[PaymentRow]:
        c = self._columns
        fields: dict[str, list[Any]] = {"event_time": c.event_time_ms.tolist(), "amount_minor": c.amount_minor.tolist()}
        fields |= {name: text.to_pylist() for name, text in c.texts.items()}
        for name, numbers in c.numbers.items():
            fields[name] = [None if x != x else x for x in numbers.tolist()]  # noqa: PLR0124 - NaN is absent
        attributes = {name: _objects(attribute).tolist() for name, attribute in c.attributes.items()}
        for i, values in enumerate(zip(*fields.values(), strict=True)):
            held = {name: column[i] for name, column in attributes.items() if column[i] is not None}
            yield PaymentRow(**dict(zip(fields, values, strict=True)), attributes=held or None)


class ColumnarPayments(PaymentBatch):
    """Accepted payments held as columns; `rows` are made when somebody asks. Otherwise as PaymentBatch."""

    def __init__(self, index: npt.NDArray[np.int32], columns: PaymentColumns, rejects: Sequence[Any] = ()) -> None:
        super().__init__(
            index=index,
            rows=ColumnRows(columns),
            event_time_ms=columns.event_time_ms,
            amount_minor=columns.amount_minor,
            rejects=list(rejects),
            _columns=dict(columns.numbers),
            _texts=dict(columns.texts),
        )
        self._by_field = columns

    def _texts_of(self, name: str) -> Sequence[str | None]:
        return self.text(name).to_pylist()  # type: ignore[no-any-return]

    def _text_array(self, name: str) -> pa.StringArray:  # noqa: ARG002 - as below
        return pa.nulls(len(self), pa.string())

    def _numbers_of(self, name: str) -> npt.NDArray[np.float64]:  # noqa: ARG002 - those that are there are cached
        return np.full(len(self), np.nan)

    def _attributes_of(self, name: str) -> npt.NDArray[np.object_]:
        attribute = self._by_field.attributes.get(name)
        return np.full(len(self), None, dtype=np.object_) if attribute is None else _objects(attribute)

    def take(self, order: npt.NDArray[np.integer[Any]]) -> ColumnarPayments:
        """As PaymentBatch.take."""
        return ColumnarPayments(self.index[order], self._by_field.take(order), self.rejects)


def _objects(attribute: Attribute) -> npt.NDArray[np.object_]:
    """An attribute's values, object [n]; NaN is None."""
    if not isinstance(attribute, pa.Array):
        return attribute
    found = np.empty(len(attribute), dtype=np.object_)
    found[:] = attribute.to_pylist()
    if pa.types.is_floating(attribute.type):
        found[np.asarray(pc.fill_null(pc.is_nan(attribute), False))] = None
    return found
