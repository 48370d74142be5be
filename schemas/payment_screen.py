"""The screening kernel: one pass over a batch's bytes that says of each value whether it certainly is a good payment.

It reads the text as a chain of names and values of one flat object (and of `attributes` in it), checks everything the
contract says about texts, times, amounts and names, and computes event time and amount. What it leaves open is JSON's
grammar outside of strings, UTF-8, and the numbers other than amount and time; msgspec's typed decoder settles those
afterwards (schemas.payment_decoder).

Why both together are certain. Suppose msgspec accepts a value: then it is JSON and UTF-8, and every field has its
type. The kernel saw no backslash in any string it read, so every string ended at the next quote byte: 0x22 is no part
of a longer UTF-8 sequence, and without a backslash no quote is escaped. Hence the kernel's strings are the grammar's
strings, what it took for names are the names (each followed by a colon, each compared byte by byte with the
contract's), and after each value it stood where the grammar stands: before a comma or a closing brace. So it saw
every name, a name seen twice was refused by its bit, and each string's checks were made on the string's own
characters. A number of the amount or the time is all digits, and its value is exact below 10^13. Whatever breaks this
chain in an invalid value does not matter: msgspec refuses that value, and the reference says why.

Every reader below takes the position p where its part begins, never looks past `end`, and gives the position after
it, or -1 where the value is not certain.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.byte_codes import (
    CLOSE_BRACE,
    COLON,
    COMMA,
    DASH,
    LOWER_F,
    LOWER_N,
    LOWER_T,
    OPEN_BRACE,
    OPEN_BRACKET,
    POINT,
    QUOTE,
    SPACE,
    UNDERSCORE,
    ZERO,
    Integer,
    is_digit,
    is_letter,
)
from schemas.card_numbers import DIGITS_MIN
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.field_kinds import Kind
from schemas.field_table import Tables, name_slot
from schemas.field_types import AMOUNT_DIGITS_MAX, ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTES_MAX
from schemas.kernel_decorators import inlined_reader, reader
from schemas.text_kernels import Bytes, rfc3339_ms, skip_space
from schemas.text_verdict import TEXT_BYTES_MAX, certain_text_end
from schemas.verification_names import may_end_verification

UNCERTAIN: Final = 0
CERTAIN: Final = 1
CERTAIN_WITH_NULL_ATTRIBUTE: Final = 2  # an attribute is null: to be taken out after decoding

# Numba freezes globals into compiled code: plain integers here.
_TIME, _AMOUNT, _ATTRIBUTES = int(Kind.TIME), int(Kind.AMOUNT), int(Kind.ATTRIBUTES)
_LATITUDE, _LONGITUDE = int(Kind.LATITUDE), int(Kind.LONGITUDE)
_TIME_DIGITS_MAX = 13
_TIME_MIN, _TIME_END = np.int64(EVENT_TIME_MS_MIN), np.int64(EVENT_TIME_MS_END)
_LETTER_BITS = np.uint64(8)
_LOWER_CASE = np.uint8(32)  # the bit that makes a capital letter small
_FNV_START = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)

Words = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


@nb.njit(cache=True, nogil=True)
def screen(
    data: Bytes,
    offsets: Words,
    value_bytes_max: int,
    tables: Tables,
    tested: Flags,
    verdict: npt.NDArray[np.uint8],
    event_time_ms: Words,
    amount_minor: Words,
) -> None:
    """For each value data[offsets[i]:offsets[i+1]] its verdict, and where that is not UNCERTAIN its time and amount.

    tested: by field, whether its value must be no card number (schemas.card_fields).
    """
    # Array by array: taking one out of a tuple costs numba a reference count each time, so `_payment` takes no tuple.
    slot, multiplier, names, lengths = tables.names
    kinds, required = tables.kind, tables.required
    weight, currency = tables.texts
    following = np.zeros(len(kinds) + 1, dtype=np.int64)  # by field: the field that came after it the last time
    hashes = np.empty(ATTRIBUTES_MAX, dtype=np.uint64)
    bytes_max = min(value_bytes_max, TEXT_BYTES_MAX)
    for i in range(len(verdict)):
        start, end = offsets[i], offsets[i + 1]
        verdict[i] = UNCERTAIN
        if end - start <= bytes_max:
            verdict[i], event_time_ms[i], amount_minor[i] = _payment(
                data, start, end, slot, multiplier, names, lengths, kinds, tested, required, weight, currency,
                following, hashes,
            )  # fmt: skip


@reader
def _payment(
    data: Bytes,
    start: int,
    end: int,
    slot: Words,
    multiplier: int,
    names: Bytes,
    lengths: Words,
    kinds: Words,
    tested: Flags,
    required: int,
    weight: Words,
    currency: Flags,
    following: Words,
    hashes: Hashes,
) -> tuple[int, Integer, Integer]:
    """(Verdict, event time, amount) of the value data[start:end]."""
    uncertain: tuple[int, Integer, Integer] = (UNCERTAIN, np.int64(-1), np.int64(-1))
    verdict = CERTAIN
    event_time_ms: Integer = np.int64(-1)
    amount_minor: Integer = np.int64(-1)
    seen: Integer = 0  # bit by field: its name was there
    present: Integer = 0  # and its value was not null
    field: Integer = -1
    p = skip_space(data, start, end)
    if p >= end or data[p] != OPEN_BRACE:
        return uncertain
    while data[p] != CLOSE_BRACE:
        previous = field
        field, p = _name(
            data, skip_space(data, p + 1, end), end, following[previous + 1], slot, multiplier, names, lengths
        )
        if p < 0 or seen & (1 << field):
            return uncertain
        following[previous + 1] = field
        seen |= 1 << field
        p = _after_colon(data, p, end)
        if p < 0:
            return uncertain
        kind = kinds[field]
        if data[p] == LOWER_N:  # null: the field is absent
            p = _token(data, p, end)
        else:
            present |= 1 << field
            if kind == _AMOUNT:
                amount_minor, p = _whole_number(data, p, end, AMOUNT_DIGITS_MAX)
            elif kind == _TIME:
                event_time_ms, p = _time(data, p, end)
            elif kind in (_LATITUDE, _LONGITUDE):
                p = _number(data, p, end)
            elif kind == _ATTRIBUTES:
                p, null_seen = _attributes(data, p, end, hashes, weight, currency)
                if null_seen:
                    verdict = CERTAIN_WITH_NULL_ATTRIBUTE
            else:
                p = _string(data, p, end, kind, weight, currency, tested[field])
        if p < 0:
            return uncertain
        p = _separator(data, p, end)
        if p < 0:
            return uncertain
    if skip_space(data, p + 1, end) != end or (present & required) != required:
        return uncertain
    return verdict, event_time_ms, amount_minor


@inlined_reader
def _name(
    data: Bytes, p: int, end: int, guess: Integer, slot: Words, multiplier: int, names: Bytes, lengths: Words
) -> tuple[Integer, int]:
    """(The field whose name stands in quotes at p, the position after it).

    Records of one producer have their fields in one order, so the field that followed the last time is tried first.
    """
    if p >= end or data[p] != QUOTE:
        return guess, -1
    p += 1
    length = lengths[guess]
    if p + length < end and data[p + length] == QUOTE and _is_name(data, p, guess, length, names):
        return guess, p + length + 1
    start = p
    while p < end and data[p] != QUOTE:
        p += 1
    length = p - start
    if p >= end or length < 1 or length > names.shape[1]:
        return guess, -1
    field = slot[name_slot(data, start, length, multiplier)]
    if field < 0 or lengths[field] != length or not _is_name(data, start, field, length, names):
        return guess, -1
    return field, p + 1


@inlined_reader
def _is_name(data: Bytes, p: int, field: Integer, length: Integer, names: Bytes) -> bool:
    for k in range(length):  # noqa: SIM110 - numba has no generators
        if data[p + k] != names[field, k]:
            return False
    return True


@inlined_reader
def _after_colon(data: Bytes, p: int, end: int) -> int:
    """Past a colon, to the first byte of the value."""
    p = skip_space(data, p, end)
    if p >= end or data[p] != COLON:
        return -1
    p = skip_space(data, p + 1, end)
    return p if p < end else -1


@inlined_reader
def _separator(data: Bytes, p: int, end: int) -> int:
    """To the comma or the closing brace after a value."""
    p = skip_space(data, p, end)
    return p if p < end and (data[p] == COMMA or data[p] == CLOSE_BRACE) else -1


@inlined_reader
def _token(data: Bytes, p: int, end: int) -> int:
    """Past a number, true, false or null: up to a comma, a closing brace or space. msgspec says whether it is one."""
    while p < end and data[p] != COMMA and data[p] != CLOSE_BRACE and data[p] > SPACE:
        p += 1
    return p


@inlined_reader
def _number(data: Bytes, p: int, end: int) -> int:
    b = data[p]
    return -1 if b in (QUOTE, OPEN_BRACE, OPEN_BRACKET) else _token(data, p, end)


@inlined_reader
def _whole_number(data: Bytes, p: int, end: int, digits_max: int) -> tuple[Integer, int]:
    """(The whole number of 1 to digits_max digits at p, the position after it)."""
    start = p
    value = np.int64(0)
    while p < end and p - start <= digits_max and is_digit(data[p]):
        value = value * 10 + np.int64(data[p]) - ZERO
        p += 1
    ended = p < end and (data[p] == COMMA or data[p] == CLOSE_BRACE or data[p] <= SPACE)
    return value, p if ended and 1 <= p - start <= digits_max else -1


@inlined_reader
def _time(data: Bytes, p: int, end: int) -> tuple[Integer, int]:
    """(The event time at p, RFC 3339 text or epoch milliseconds; the position after it)."""
    if data[p] == QUOTE:
        start = p + 1
        p = start
        while p < end and data[p] != QUOTE:  # a time holds no quote, and rfc3339_ms looks at every byte
            p += 1
        moment_ms = rfc3339_ms(data, start, p)
        return moment_ms, p + 1 if moment_ms >= 0 else -1
    number, p = _whole_number(data, p, end, _TIME_DIGITS_MAX)
    return number, p if _TIME_MIN <= number < _TIME_END else -1


@inlined_reader
def _string(data: Bytes, p: int, end: int, kind: Integer, weight: Words, currency: Flags, tested: bool) -> int:
    """Past a string that a field of this kind certainly takes."""
    if data[p] != QUOTE:
        return -1
    p = certain_text_end(data, p + 1, end, kind, weight, currency, tested)
    return p + 1 if 0 <= p < end and data[p] == QUOTE else -1


@reader
def _attributes(data: Bytes, p: int, end: int, hashes: Hashes, weight: Words, currency: Flags) -> tuple[int, bool]:
    """(Past the object of attributes at p, whether one of them is null)."""
    null_seen = False
    if data[p] != OPEN_BRACE:
        return -1, False
    p = skip_space(data, p + 1, end)
    if p < end and data[p] == CLOSE_BRACE:
        return p + 1, False
    count = 0
    while True:
        if count == ATTRIBUTES_MAX:
            return -1, False
        hashed, p = _attribute_name(data, p, end)
        if p < 0:
            return -1, False
        for k in range(count):
            if hashes[k] == hashed:  # equal hashes count as equal names, which is only uncertain
                return -1, False
        hashes[count] = hashed
        count += 1
        p = _after_colon(data, p, end)
        if p < 0:
            return -1, False
        null_seen = null_seen or data[p] == LOWER_N
        p = _attribute_value(data, p, end, weight, currency)
        if p < 0:
            return -1, False
        p = _separator(data, p, end)
        if p < 0:
            return -1, False
        if data[p] == CLOSE_BRACE:
            return p + 1, null_seen
        p = skip_space(data, p + 1, end)


@inlined_reader
def _attribute_name(data: Bytes, p: int, end: int) -> tuple[np.uint64, int]:
    """(FNV-1a hash of the attribute's name in quotes at p, the position after it)."""
    hashed = _FNV_START
    if p >= end or data[p] != QUOTE:
        return hashed, -1
    start = p + 1
    p = start
    digits = 0
    letters = np.uint64(0)  # the last eight, small
    while p < end and data[p] != QUOTE:
        b = data[p]
        if is_letter(b):
            letters = (letters << _LETTER_BITS) | np.uint64(b | _LOWER_CASE)
            if may_end_verification(letters):  # the reference says whether it is such a name
                return hashed, -1
        elif b != UNDERSCORE:
            if p == start or not (is_digit(b) or b == POINT):
                return hashed, -1
            digits += b != POINT
        hashed = (hashed ^ np.uint64(b)) * _FNV_PRIME
        p += 1
    # With 13 digits a name may be a card number: the reference says whether it is.
    if p >= end or not 1 <= p - start <= ATTRIBUTE_NAME_BYTES_MAX or digits >= DIGITS_MIN:
        return hashed, -1
    return hashed, p + 1


@inlined_reader
def _attribute_value(data: Bytes, p: int, end: int, weight: Words, currency: Flags) -> int:
    b = data[p]
    if b == QUOTE:
        return _string(data, p, end, _ATTRIBUTES, weight, currency, True)
    if b in (LOWER_N, LOWER_T, LOWER_F):
        return _token(data, p, end)
    # Up to 12 digits before the point, no exponent: below any card number, and an integer of 64 bits.
    if b == DASH:
        p += 1
    elif not is_digit(b):
        return -1
    start = p
    while p < end and is_digit(data[p]):
        p += 1
    if p - start > AMOUNT_DIGITS_MAX:
        return -1
    if p < end and data[p] == POINT:
        p += 1
        while p < end and is_digit(data[p]):
            p += 1
    return p
