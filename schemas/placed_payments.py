"""Payments that came as JSON, held as the screening kernel found them: each text a place in the batch's own bytes.

No text is copied or made a Python object before somebody asks for its column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Final, overload

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.attribute_kernel import attribute_numbers
from schemas.byte_column import ByteColumn, read_only
from schemas.byte_copy import move
from schemas.card_fields import ATTRIBUTE, CardFields
from schemas.field_table import FIELD_NAMES, POSITION_FIELDS, TEXT_FIELDS
from schemas.flags import some
from schemas.kernel_decorators import reader
from schemas.payment import pseudonyms_of, replaced_key
from schemas.payment_batch import PaymentBatch, PaymentRow, Placed, Reject, as_numbers, as_objects
from schemas.screened import LENGTH_MASK, NO_PLACE, PLACE_BITS

_FIELD: Final = {name: number for number, name in enumerate(FIELD_NAMES)}
_POSITION: Final = {name: number for number, name in enumerate(POSITION_FIELDS)}
_ATTRIBUTES: Final = _FIELD["attributes"]
_decode_row = msgspec.json.Decoder(PaymentRow).decode
_decode_attributes = msgspec.json.Decoder(dict[str, str | int | float | bool | None]).decode

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


class PlacedPayments(PaymentBatch):
    """n accepted payments of `values`.

    data: uint8, the bytes of the values, and behind them texts of other origin · places: int64 [fields, n]
    (schemas.payment_screen) · numbers: float64 [positions, n], NaN where absent · given: by index, the rows that are
    not as their value says · replaced: the text fields that hold pseudonyms
    """

    def __init__(
        self,
        *,
        index: npt.NDArray[np.int32],
        event_time_ms: Words,
        amount_minor: Words,
        rejects: list[Reject],
        values: ByteColumn,
        data: Bytes,
        places: npt.NDArray[np.int64],
        numbers: Numbers,
        given: Mapping[int, PaymentRow],
        keys: Mapping[int, bytes] | None = None,
        replaced: tuple[str, ...] = (),
        attributes: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            index=index, event_time_ms=event_time_ms, amount_minor=amount_minor, rejects=rejects, keys=keys or {}
        )
        self._values = values
        self._data = data
        self._places = places
        self._numbers = numbers
        self._given = given
        self._replaced = replaced
        self._changed_attributes = attributes or {}
        self._decoded_attributes: list[Mapping[str, Any] | None] | None = None

    @property
    def rows(self) -> Sequence[PaymentRow]:
        """The payments as rows, each made when it is asked for."""
        return _Rows(self)

    def row(self, place: int) -> PaymentRow:
        """The payment at `place`."""
        index = int(self.index[place])
        row = self._given.get(index)
        if row is None:
            row = _decode_row(self._values[index] or b"")
            if row.attributes and None in row.attributes.values():
                row = msgspec.structs.replace(row, attributes=_without_nulls(row.attributes))
        changed: dict[str, Any] = {name: self.text(name)[place].as_py() for name in self._replaced}
        if index in self._changed_attributes:
            changed["attributes"] = self._changed_attributes[index]
        return msgspec.structs.replace(row, **changed) if changed else row

    def take(self, order: npt.NDArray[np.integer[Any]]) -> PlacedPayments:
        """As PaymentBatch.take."""
        return PlacedPayments(
            index=self.index[order],
            event_time_ms=self.event_time_ms[order],
            amount_minor=self.amount_minor[order],
            rejects=self.rejects,
            values=self._values,
            data=self._data,
            places=np.take(self._places, order, axis=1),
            numbers=np.take(self._numbers, order, axis=1),
            given=self._given,
            keys=self.keys,
            replaced=self._replaced,
            attributes=self._changed_attributes,
        )

    def with_pseudonyms(self, keys: Sequence[bytes | None] | None, cards: CardFields) -> PlacedPayments:
        """The same payments, with the pseudonyms of what `cards` declares as token, their keys included."""
        texts = tuple(name for name in cards.tokens if not name.startswith(ATTRIBUTE))
        before = {name: self.text(name) for name in texts}
        places, extra, end = self._places.copy(), [], len(self._data)
        for name, text in before.items():  # each different text once: a card pays often
            encoded = pc.dictionary_encode(text)
            shown = [b"" if v is None else cards.replaced(v).encode() for v in encoded.dictionary.to_pylist()]
            at = np.array([*place_of(shown, end), NO_PLACE], dtype=np.int64)
            places[_FIELD[name]] = at[np.asarray(encoded.indices.fill_null(len(shown)), dtype=np.int64)]
            extra += shown
            end += sum(map(len, shown))
        changed = dict(self._changed_attributes)
        if len(texts) < len(cards.tokens):
            for index, held in zip(self.index.tolist(), self._attributes(), strict=True):
                values = SimpleNamespace(attributes=held, **dict.fromkeys(texts))
                if held and (found := pseudonyms_of(values, cards)):
                    changed[index] = found["attributes"]
        return PlacedPayments(
            index=self.index,
            event_time_ms=self.event_time_ms,
            amount_minor=self.amount_minor,
            rejects=self.rejects,
            values=self._values,
            data=extended(self._data, extra),
            places=places,
            numbers=self._numbers,
            given=self._given,
            keys={} if keys is None else self._replaced_keys(keys, before, cards),
            replaced=texts,
            attributes=changed,
        )

    def _replaced_keys(
        self, keys: Sequence[bytes | None], before: Mapping[str, pa.StringArray], cards: CardFields
    ) -> dict[int, bytes]:
        columns = [text.to_pylist() for text in before.values()]
        held = zip(*columns, strict=True) if columns else iter([()] * len(self))
        found: dict[int, bytes] = {}
        for index, values in zip(self.index.tolist(), held, strict=True):
            key = keys[index]
            shown = replaced_key(key, SimpleNamespace(**dict(zip(before, values, strict=True))), cards)
            if shown is not None and shown != key:
                found[index] = shown
        return found

    def attribute_numbers(self, name: str) -> Numbers:
        """As PaymentBatch.attribute_numbers."""
        found, unread = np.empty(len(self), dtype=np.float64), np.empty(len(self), dtype=np.bool_)
        at = self._places[_ATTRIBUTES]
        attribute_numbers(self._data, at, np.frombuffer(name.encode(), dtype=np.uint8), found, unread)
        if self._given or self._changed_attributes:
            unread |= np.isin(self.index, [*self._given, *self._changed_attributes])
        if some(unread):
            found[unread] = as_numbers(self.attribute(name)[unread])
        return found

    def _text_arrays(self, names: Sequence[str]) -> list[pa.StringArray]:
        n, width = len(self), len(names)
        at = self._places[[_FIELD[name] for name in names]]
        offsets = np.empty((width, n + 1), dtype=np.int32)
        present = np.zeros((width, (n + 7) // 8), dtype=np.uint8)
        begins, absent = np.empty(width + 1, dtype=np.int64), np.empty(width, dtype=np.int64)
        _measure(at, offsets, present, begins, absent)
        text = np.empty(begins[-1], dtype=np.uint8)
        _copy(self._data, at, offsets, begins, text)
        whole, found = pa.py_buffer(text), []
        for k, ((begin, end), missing) in enumerate(zip(pairwise(begins.tolist()), absent.tolist(), strict=True)):
            validity = pa.py_buffer(present[k]) if missing else None
            own = whole.slice(begin, end - begin)
            found.append(pa.StringArray.from_buffers(n, pa.py_buffer(offsets[k]), own, validity, missing))
        return found

    def _placed(self, name: str) -> Placed:
        return Placed(self._data, self._places[_FIELD[name]])

    def _numbers_of(self, name: str) -> Numbers:
        found: Numbers = self._numbers[_POSITION[name]]
        return found

    def _attributes_of(self, name: str) -> npt.NDArray[np.object_]:
        return as_objects([None if held is None else held.get(name) for held in self._attributes()])

    def _attributes(self) -> list[Mapping[str, Any] | None]:
        if self._decoded_attributes is None:
            whole = memoryview(self._data.data)
            found: list[Mapping[str, Any] | None] = [None] * len(self)
            at = self._places[_ATTRIBUTES]
            for place in np.flatnonzero(at != NO_PLACE).tolist():
                start, length = int(at[place]) >> PLACE_BITS, int(at[place]) & LENGTH_MASK
                found[place] = _decode_attributes(whole[start : start + length])
            if self._given or self._changed_attributes:
                for place, index in enumerate(self.index.tolist()):
                    if index in self._changed_attributes:
                        found[place] = self._changed_attributes[index]
                    elif index in self._given:
                        found[place] = self._given[index].attributes
            self._decoded_attributes = found
        return self._decoded_attributes


class _Rows(Sequence[PaymentRow]):
    def __init__(self, payments: PlacedPayments) -> None:
        self._payments = payments

    def __len__(self) -> int:
        return len(self._payments)

    @overload
    def __getitem__(self, index: int) -> PaymentRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[PaymentRow]: ...
    def __getitem__(self, index: int | slice) -> PaymentRow | list[PaymentRow]:
        places = range(len(self))[index]
        return self._payments.row(places) if isinstance(places, int) else [self._payments.row(p) for p in places]


def put_rows(
    rows: Mapping[int, PaymentRow], places: npt.NDArray[np.int64], numbers: Numbers, data_bytes: int
) -> list[bytes]:
    """Enter the fields of rows that were read otherwise, by their column in `places` and `numbers`. Gives their texts,
    which are to stand behind the `data_bytes` that are there."""
    texts: list[bytes] = []
    end = data_bytes
    for column, row in rows.items():
        places[:, column] = NO_PLACE
        for name in TEXT_FIELDS:
            if (value := getattr(row, name)) is not None:
                text = value.encode()
                places[_FIELD[name], column] = (end << PLACE_BITS) | len(text)
                texts.append(text)
                end += len(text)
        for number, name in enumerate(POSITION_FIELDS):
            value = getattr(row, name)
            numbers[number, column] = np.nan if value is None else value
    return texts


def place_of(texts: Sequence[bytes], first: int) -> list[int]:
    """Places of texts that stand one after the other from `first` on."""
    places = []
    for text in texts:
        places.append((first << PLACE_BITS) | len(text))
        first += len(text)
    return places


def extended(data: Bytes, texts: Sequence[bytes]) -> Bytes:
    """`data` with `texts` behind it."""
    if not texts:
        return data
    return read_only(np.concatenate([data, np.frombuffer(b"".join(texts), dtype=np.uint8)]))


def _without_nulls(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


@reader
def _measure(places: Words, offsets: npt.NDArray[np.int32], present: Bytes, begins: Words, absent: Words) -> None:
    """Of each field's places: Arrow's offsets and validity bits, where its texts begin, and how many there are not."""
    begins[0] = 0
    for k in range(len(places)):
        end, missing = 0, 0
        offsets[k, 0] = 0
        for i in range(places.shape[1]):
            place = places[k, i]
            if place < 0:
                missing += 1
            else:
                end += place & LENGTH_MASK
                present[k, i >> 3] |= np.uint8(1 << (i & 7))
            offsets[k, i + 1] = end
        begins[k + 1] = begins[k] + end
        absent[k] = missing


@reader
def _copy(data: Bytes, places: Words, offsets: npt.NDArray[np.int32], begins: Words, text: Bytes) -> None:
    source = data.ctypes.data
    for k in range(len(places)):
        target = text.ctypes.data + begins[k]
        for i in range(places.shape[1]):
            move(target + offsets[k, i], source + (places[k, i] >> PLACE_BITS), offsets[k, i + 1] - offsets[k, i])
