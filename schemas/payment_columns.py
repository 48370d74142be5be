"""Payments that come as columns, held as columns: no JSON text is written and read in between.

columns ──▶ schemas.column_check ──certain──▶ ColumnarPayments
                  └─uncertain──▶ the caller writes those rows as JSON; the decoder accepts or refuses them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.byte_column import read_only
from schemas.card_fields import ATTRIBUTE, CardFields
from schemas.payment_batch import PaymentBatch, PaymentRow, Placed
from schemas.screened import NO_PLACE, PLACE_BITS

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


def with_pseudonyms(columns: PaymentColumns, cards: CardFields) -> PaymentColumns:
    """The same payments, with the pseudonyms of what `cards` declares as token."""
    texts, attributes = dict(columns.texts), dict(columns.attributes)
    for name in cards.tokens:
        if not name.startswith(ATTRIBUTE):
            if (text := texts.get(name)) is not None:
                texts[name] = _replaced_text(text, cards)
        elif (found := attributes.get(name.removeprefix(ATTRIBUTE))) is not None:
            attributes[name.removeprefix(ATTRIBUTE)] = _replaced_attribute(found, cards)
    return replace(columns, texts=texts, attributes=attributes)


def _replaced_text(text: pa.StringArray, cards: CardFields) -> pa.StringArray:
    """Each different text once: a card pays often."""
    encoded = pc.dictionary_encode(text)
    shown = [cards.replaced(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(shown, pa.string()).take(encoded.indices)


def _replaced_attribute(attribute: Attribute, cards: CardFields) -> Attribute:
    if isinstance(attribute, pa.Array) and pa.types.is_string(attribute.type):
        return _replaced_text(attribute, cards)
    if isinstance(attribute, pa.Array) and pa.types.is_boolean(attribute.type):
        return attribute
    shown = [
        value if value is None or isinstance(value, bool) else cards.replaced(value)
        for value in _objects(attribute).tolist()
    ]
    found = np.empty(len(shown), dtype=np.object_)
    found[:] = shown
    return found


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
    """Accepted payments held as columns; `rows` are made when they are asked for. Otherwise as PaymentBatch."""

    def __init__(self, index: npt.NDArray[np.int32], columns: PaymentColumns, rejects: Sequence[Any] = ()) -> None:
        super().__init__(
            index=index,
            event_time_ms=columns.event_time_ms,
            amount_minor=columns.amount_minor,
            rejects=list(rejects),
            keys={},
        )
        self._by_field = columns

    @property
    def rows(self) -> Sequence[PaymentRow]:
        """As PaymentBatch.rows."""
        return ColumnRows(self._by_field)

    def _text_arrays(self, names: Sequence[str]) -> list[pa.StringArray]:
        found = (self._by_field.texts.get(name) for name in names)
        return [pa.nulls(len(self), pa.string()) if text is None else text for text in found]

    def _placed(self, name: str) -> Placed:
        return places_of(self.text(name))

    def _numbers_of(self, name: str) -> npt.NDArray[np.float64]:
        numbers = self._by_field.numbers.get(name)
        return np.full(len(self), np.nan) if numbers is None else numbers

    def _attributes_of(self, name: str) -> npt.NDArray[np.object_]:
        attribute = self._by_field.attributes.get(name)
        return np.full(len(self), None, dtype=np.object_) if attribute is None else _objects(attribute)

    def take(self, order: npt.NDArray[np.integer[Any]]) -> ColumnarPayments:
        """As PaymentBatch.take."""
        return ColumnarPayments(self.index[order], self._by_field.take(order), self.rejects)


def places_of(text: pa.StringArray) -> Placed:
    """Where the texts of an Arrow array stand in its own buffer."""
    validity, offsets_buffer, data = text.buffers()
    n = len(text)
    if n == 0 or data is None or not data.size:
        nothing = np.where(np.asarray(text.is_null()), np.int64(NO_PLACE), np.int64(0)) if n else np.zeros(0, np.int64)
        return Placed(np.frombuffer(b"\0", dtype=np.uint8), nothing)
    offsets = np.frombuffer(offsets_buffer, np.int32, count=n + 1, offset=4 * text.offset).astype(np.int64)
    places = (offsets[:-1] << PLACE_BITS) | (offsets[1:] - offsets[:-1])
    if text.null_count:
        present = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[text.offset : text.offset + n]
        places[present == 0] = NO_PLACE
    return Placed(read_only(np.frombuffer(data, dtype=np.uint8)), places)


def _objects(attribute: Attribute) -> npt.NDArray[np.object_]:
    """An attribute's values, object [n]; NaN is None."""
    if not isinstance(attribute, pa.Array):
        return attribute
    found = np.empty(len(attribute), dtype=np.object_)
    found[:] = attribute.to_pylist()
    if pa.types.is_floating(attribute.type):
        found[np.asarray(pc.fill_null(pc.is_nan(attribute), False))] = None
    return found
