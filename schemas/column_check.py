"""The check of payments that come as columns: which rows the contract certainly accepts.

A row is certain when the JSON of its cells would certainly be accepted, and its fields then are the cells themselves:
texts without quote, backslash or control character (JSON writes those as they are), numbers in their field's range.
The verdict on a text is the one for JSON strings (schemas.text_verdict). Refusing, and the reason, is left to the
reference, so both ways accept and refuse the same (property tests compare them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas.card_fields import UNDECLARED, CardFields, CardRule
from schemas.card_numbers import SAFE_DIGITS_MAX, holds_card_number
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.field_kinds import DEGREES_MAX, Kind
from schemas.field_table import KINDS, REQUIRED_FIELDS, TABLES, TEXT_FIELDS
from schemas.field_types import AMOUNT_MINOR_END
from schemas.payment_columns import Attribute, PaymentColumns
from schemas.text_kernels import Bytes
from schemas.text_verdict import certain_text_end
from schemas.verification_names import is_verification_name

# Below every card number, and exact as a double.
NUMBER_END: Final = 10**SAFE_DIGITS_MAX
# A payment's JSON holds its texts as they are and, for up to 84 names and numbers, less than 8 KiB more: far below the
# contract's 64 KiB.
TEXT_BYTES_MAX: Final = 32_768
_ATTRIBUTE = int(Kind.ATTRIBUTES)
_FNV_START = 0xCBF29CE484222325


@dataclass(frozen=True)
class Checked:
    """certain bool [n]: which rows the contract certainly accepts · payload uint64 [n]: a hash of all that a row says,
    which stands for its bytes where repeated payments are compared."""

    certain: npt.NDArray[np.bool_]
    payload: npt.NDArray[np.uint64]


def check(columns: PaymentColumns, cards: CardFields = UNDECLARED) -> Checked:
    """What is certain of each row. Texts must be valid UTF-8. `cards` declares which may look like a card number."""
    n = len(columns)
    time, amount = columns.event_time_ms, columns.amount_minor
    certain = (time >= EVENT_TIME_MS_MIN) & (time < EVENT_TIME_MS_END) & (amount >= 0) & (amount < AMOUNT_MINOR_END)
    payload = np.full(n, _FNV_START, dtype=np.uint64)
    size = np.zeros(n, dtype=np.int64)
    for name in REQUIRED_FIELDS:
        if name in TEXT_FIELDS:
            text = columns.texts.get(name)
            certain &= False if text is None else _present(text)
    _mix_words(time, 1, payload)
    _mix_words(amount, 2, payload)
    for name, text in columns.texts.items():
        _check(text, int(KINDS[name]), certain, size, payload, tested=cards.rule(name) is CardRule.REFUSE)
    for name, numbers in columns.numbers.items():
        certain &= np.isnan(numbers) | (np.abs(numbers) <= DEGREES_MAX[KINDS[name]])
        _mix_words(_words(numbers), 3, payload)
    for name, attribute in columns.attributes.items():
        # Then the reference refuses each row that has a value for it.
        if holds_card_number(name) or is_verification_name(name):
            certain &= ~_has_value(attribute)
        _check_attribute(attribute, certain, size, payload)
    certain &= size <= TEXT_BYTES_MAX
    return Checked(certain, payload)


def _present(text: pa.StringArray) -> npt.NDArray[np.bool_]:
    if text.null_count == 0:
        return np.ones(len(text), dtype=np.bool_)
    return np.asarray(text.is_valid())


def _has_value(attribute: Attribute) -> npt.NDArray[np.bool_]:
    if isinstance(attribute, pa.Array):
        return np.asarray(attribute.is_valid())
    return np.array([value is not None for value in attribute.tolist()], dtype=np.bool_)


def _words(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bits of each number; one value for every NaN."""
    return np.where(np.isnan(numbers), np.nan, numbers).view(np.int64)


def _check(
    text: pa.StringArray,
    kind: int,
    certain: npt.NDArray[np.bool_],
    size: npt.NDArray[np.int64],
    payload: npt.NDArray[np.uint64],
    *,
    tested: bool = True,
) -> None:
    if len(text) == 0:
        return
    _, offsets_buffer, buffer = text.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, count=len(text) + 1, offset=4 * text.offset)
    data = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else np.zeros(1, np.uint8)
    tables = TABLES.texts
    _check_texts(data, offsets, _present(text), kind, tables.currency, tables.weight, tested, certain, size, payload)


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
    tested: bool,
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
            if end - start > TEXT_BYTES_MAX:  # what is hashed of it does not matter: the row goes as JSON
                certain[i], end = False, start
            elif certain_text_end(data, start, end, kind, weight, currency, tested) != end:
                certain[i] = False
            for p in range(start, end):
                hashed = (hashed ^ np.uint64(data[p])) * np.uint64(0x100000001B3)  # FNV-1a
        payload[i] = hashed ^ (hashed >> np.uint64(29))


@nb.njit(cache=True, nogil=True)
def _mix_words(words: npt.NDArray[np.int64], salt: int, payload: npt.NDArray[np.uint64]) -> None:
    """Move each hash on by a word: splitmix64's finaliser."""
    for i in range(len(words)):
        x = payload[i] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(words[i]) + np.uint64(salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        payload[i] = x ^ (x >> np.uint64(27))
