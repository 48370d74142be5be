"""The screening kernel: one pass over a batch's bytes that says of each value whether it certainly is a good payment,
and where its fields stand.

It reads the text as a chain of names and values of one flat object (and of `attributes` in it), and checks all that
JSON's grammar, UTF-8 and the contract say about them. A value that is certain here is accepted by the reference
(schemas.payment) with the very fields that the kernel found; of any other the reference decides.

Why that holds. The kernel takes a subset of the grammar (RFC 8259): one object, names of the contract alone, each once;
strings without a backslash, so that every string ends at the next quote byte (0x22 is no part of a longer UTF-8
sequence); literals letter by letter; whole numbers without a leading zero, decimal numbers without an exponent, of at
most 18 digits, which are rounded here as IEEE 754 wants it (`decimal_number`). Control characters end a string before
its quote, and bytes from 0x80 on are proved to be UTF-8 (RFC 3629). What stands between values is space, one colon or
one comma. So what is certain is JSON, and each field has the type, the form and the bounds of the contract.

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
    LOWER_A,
    LOWER_E,
    LOWER_F,
    LOWER_L,
    LOWER_N,
    LOWER_R,
    LOWER_S,
    LOWER_T,
    LOWER_U,
    OPEN_BRACE,
    POINT,
    QUOTE,
    UNDERSCORE,
    ZERO,
    Integer,
    is_digit,
    is_letter,
)
from schemas.card_numbers import DIGITS_MIN
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.field_kinds import DEGREES_MAX, Kind
from schemas.field_table import Tables, name_slot
from schemas.field_types import AMOUNT_DIGITS_MAX, ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTES_MAX
from schemas.kernel_decorators import inlined_reader, reader
from schemas.screened import NO_PLACE, PLACE_BITS
from schemas.text_kernels import Bytes, decimal_number, is_utf8, rfc3339_ms, skip_space
from schemas.text_verdict import TEXT_BYTES_MAX, certain_text_end
from schemas.verification_names import may_end_verification

UNCERTAIN: Final = 0
CERTAIN: Final = 1
NULL_ATTRIBUTE: Final = 2  # certain, and an attribute is null: the same as no such attribute

# Numba freezes globals into compiled code: plain integers here.
_TIME, _AMOUNT, _ATTRIBUTES = int(Kind.TIME), int(Kind.AMOUNT), int(Kind.ATTRIBUTES)
_LATITUDE, _LONGITUDE, _IDENTIFIER = int(Kind.LATITUDE), int(Kind.LONGITUDE), int(Kind.IDENTIFIER)
_LATITUDE_MAX, _LONGITUDE_MAX = float(DEGREES_MAX[Kind.LATITUDE]), float(DEGREES_MAX[Kind.LONGITUDE])
_TIME_DIGITS_MAX = 13
_TIME_MIN, _TIME_END = np.int64(EVENT_TIME_MS_MIN), np.int64(EVENT_TIME_MS_END)
_LETTER_BITS = np.uint64(8)
_LOWER_CASE = np.uint8(32)  # the bit that makes a capital letter small
_FNV_START = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)

Words = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


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
    places: npt.NDArray[np.int64],
    numbers: Numbers,
) -> None:
    """For each value data[offsets[i]:offsets[i+1]] its verdict, and where that is not UNCERTAIN its time, amount, the
    places of its texts and of the object of attributes, and its positions.

    tested: by field, whether its value must be no card number (schemas.card_fields) · places int64 [fields, n] ·
    numbers float64 [positions, n]
    """
    # Array by array: taking one out of a tuple costs numba a reference count each time, so `_payment` takes no tuple.
    slot, multiplier, names, lengths = tables.names
    kinds, required, position = tables.kind, tables.required, tables.position
    weight, currency = tables.texts
    following = np.zeros(len(kinds) + 1, dtype=np.int64)  # by field: the field that came after it the last time
    hashes = np.empty(ATTRIBUTES_MAX, dtype=np.uint64)
    bytes_max = min(value_bytes_max, TEXT_BYTES_MAX)
    for i in range(len(verdict)):
        start, end = offsets[i], offsets[i + 1]
        verdict[i] = UNCERTAIN
        for f in range(len(places)):
            places[f, i] = NO_PLACE
        for f in range(len(numbers)):
            numbers[f, i] = np.nan
        if end - start <= bytes_max:
            verdict[i], event_time_ms[i], amount_minor[i] = _payment(
                data, start, end, slot, multiplier, names, lengths, kinds, tested, required, position, weight, currency,
                following, hashes, places, numbers, i,
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
    position: Words,
    weight: Words,
    currency: Flags,
    following: Words,
    hashes: Hashes,
    places: npt.NDArray[np.int64],
    numbers: Numbers,
    i: int,
) -> tuple[int, Integer, Integer]:
    """(Verdict, event time, amount) of the value data[start:end]; the rest of it into column i."""
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
            p = _null(data, p, end)
        else:
            present |= 1 << field
            first = p
            if kind == _AMOUNT:
                amount_minor, p = _whole_number(data, p, end, AMOUNT_DIGITS_MAX)
            elif kind == _TIME:
                event_time_ms, p = _time(data, p, end)
            elif kind == _LATITUDE:
                numbers[position[field], i], p = decimal_number(data, p, end, _LATITUDE_MAX)
            elif kind == _LONGITUDE:
                numbers[position[field], i], p = decimal_number(data, p, end, _LONGITUDE_MAX)
            elif kind == _ATTRIBUTES:
                p, null_seen = _attributes(data, p, end, hashes, weight, currency)
                if null_seen:
                    verdict = NULL_ATTRIBUTE
                places[field, i] = (np.int64(first) << PLACE_BITS) | np.int64(p - first)
            else:
                p = _string(data, p, end, kind, weight, currency, tested[field])
                places[field, i] = (np.int64(first + 1) << PLACE_BITS) | np.int64(p - first - 2)
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
def _null(data: Bytes, p: int, end: int) -> int:
    if p + 4 > end or data[p + 1] != LOWER_U or data[p + 2] != LOWER_L or data[p + 3] != LOWER_L:
        return -1
    return p + 4


@inlined_reader
def _true(data: Bytes, p: int, end: int) -> int:
    if p + 4 > end or data[p + 1] != LOWER_R or data[p + 2] != LOWER_U or data[p + 3] != LOWER_E:
        return -1
    return p + 4


@inlined_reader
def _false(data: Bytes, p: int, end: int) -> int:
    if p + 5 > end or data[p + 1] != LOWER_A or data[p + 2] != LOWER_L or data[p + 3] != LOWER_S:
        return -1
    return p + 5 if data[p + 4] == LOWER_E else -1


@inlined_reader
def _whole_number(data: Bytes, p: int, end: int, digits_max: int) -> tuple[Integer, int]:
    """(The whole number of 1 to digits_max digits at p, the position after it)."""
    start = p
    value = np.int64(0)
    while p < end and p - start <= digits_max and is_digit(data[p]):
        value = value * 10 + np.int64(data[p]) - ZERO
        p += 1
    right = 1 <= p - start <= digits_max and (data[start] != ZERO or p - start == 1)
    return value, p if right else -1


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
    start = p + 1
    p = certain_text_end(data, start, end, kind, weight, currency, tested)
    if p < 0 or p >= end or data[p] != QUOTE:
        return -1
    # Fields of any other kind hold ASCII alone.
    return -1 if kind in (_IDENTIFIER, _ATTRIBUTES) and not is_utf8(data, start, p) else p + 1


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
    if b == LOWER_N:
        return _null(data, p, end)
    if b == LOWER_T:
        return _true(data, p, end)
    if b == LOWER_F:
        return _false(data, p, end)
    # Up to 12 digits before the point, no exponent: below any card number, and an integer of 64 bits.
    if b == DASH:
        p += 1
    start = p
    while p < end and is_digit(data[p]):
        p += 1
    if p == start or p - start > AMOUNT_DIGITS_MAX or (data[start] == ZERO and p - start > 1):
        return -1
    if p < end and data[p] == POINT:
        first = p + 1
        p = first
        while p < end and is_digit(data[p]):
            p += 1
        if p == first:
            return -1
    return p
