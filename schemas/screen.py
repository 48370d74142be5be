"""The screening kernel: one pass over a batch's bytes that says of each value whether it certainly is a good payment.

It reads the text as a chain of names and values of one flat object (and of `attributes` in it), checks everything the
contract says about texts, times, amounts and names, and computes event time and amount. What it leaves open is JSON's
grammar outside of strings, UTF-8, and the numbers other than amount and time; msgspec's typed decoder settles those
afterwards (schemas.decode).

Why both together are certain. Suppose msgspec accepts a value: then it is JSON and UTF-8, and every field has its
type. The kernel saw no backslash in any string it read, so every string ended at the next quote byte: 0x22 is no part
of a longer UTF-8 sequence, and without a backslash no quote is escaped. Hence the kernel's strings are the grammar's
strings, what it took for names are the names (each followed by a colon, each compared byte by byte with the
contract's), and after each value it stood where the grammar stands: before a comma or a closing brace. So it saw
every name, a name seen twice was refused by its bit, and each string's checks were made on the string's own
characters. A number of the amount or the time is all digits, and its value is exact below 10^13. Whatever breaks this
chain in an invalid value does not matter: msgspec refuses that value, and the reference says why.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.card_rule import may_hide
from schemas.cards import luhn_valid
from schemas.field_table import NAME_BYTES_MAX, Kind, Tables, name_slot
from schemas.fields import ATTRIBUTE_CHARACTERS_MAX, ATTRIBUTES_MAX, IDENTIFIER_CHARACTERS_MAX
from schemas.lexical import STRING_BYTES_MAX, Bytes, Integer, is_ip, rfc3339_ms, scan_string, skip_space

UNCERTAIN: Final = 0
CERTAIN: Final = 1
CERTAIN_WITH_NULL_ATTRIBUTE: Final = 2  # an attribute is null: to be taken out after decoding


# Numba freezes globals into compiled code: plain integers here, and the arrays come in as arguments.
_TIME, _AMOUNT, _CURRENCY, _IP, _MCC = int(Kind.TIME), int(Kind.AMOUNT), int(Kind.CURRENCY), int(Kind.IP), int(Kind.MCC)
_CHANNEL, _COUNTRY, _NUMBER, _ATTRIBUTES = int(Kind.CHANNEL), int(Kind.COUNTRY), int(Kind.NUMBER), int(Kind.ATTRIBUTES)


@nb.njit(cache=True, nogil=True)
def screen(
    data: Bytes,
    offsets: npt.NDArray[np.int64],
    value_bytes_max: int,
    tables: Tables,
    verdict: npt.NDArray[np.uint8],
    event_time_ms: npt.NDArray[np.int64],
    amount_minor: npt.NDArray[np.int64],
) -> None:
    """For each value data[offsets[i]:offsets[i+1]] its verdict, and where that is not UNCERTAIN its time and amount."""
    # Arrays one by one: taking one out of a tuple costs numba a reference count each time.
    slot, multiplier, names, lengths, kinds, required, currency, weight = tables
    hashes = np.empty(ATTRIBUTES_MAX, dtype=np.uint64)
    following = np.zeros(len(lengths) + 1, dtype=np.int64)
    for i in range(len(verdict)):
        start, end = offsets[i], offsets[i + 1]
        verdict[i] = UNCERTAIN
        if end - start <= min(value_bytes_max, STRING_BYTES_MAX):
            verdict[i] = _payment(
                data,
                start,
                end,
                i,
                slot,
                multiplier,
                names,
                lengths,
                kinds,
                required,
                currency,
                weight,
                event_time_ms,
                amount_minor,
                hashes,
                following,
            )


@nb.njit(cache=True, nogil=True)
def _payment(
    data: Bytes,
    start: int,
    end: int,
    row: int,
    slot: npt.NDArray[np.int64],
    multiplier: int,
    names: Bytes,
    lengths: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    required: int,
    currency: npt.NDArray[np.bool_],
    weight: npt.NDArray[np.int64],
    event_time_ms: npt.NDArray[np.int64],
    amount_minor: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    following: npt.NDArray[np.int64],
) -> int:
    verdict = CERTAIN
    field = -1
    seen = 0
    present = 0
    p = skip_space(data, start, end)
    if p >= end or data[p] != 123:
        return UNCERTAIN
    p = skip_space(data, p + 1, end)
    while True:
        if p >= end or data[p] != 34:
            return UNCERTAIN
        p += 1
        # A name. Records of one producer have their fields in one order: try the field that followed the last time.
        guess = following[field + 1]
        length = lengths[guess]
        same = p + length < end and data[p + length] == 34
        if same:
            for k in range(length):
                if data[p + k] != names[guess, k]:
                    same = False
                    break
        if not same:
            name = p
            while p < end and data[p] != 34:
                p += 1
            length = p - name
            if p >= end or length < 1 or length > NAME_BYTES_MAX:
                return UNCERTAIN
            guess = slot[name_slot(data, name, length, multiplier)]
            if guess < 0 or lengths[guess] != length:
                return UNCERTAIN
            for k in range(length):
                if data[name + k] != names[guess, k]:
                    return UNCERTAIN
            p = name
            following[field + 1] = guess
        p += length
        field = guess
        bit = 1 << field
        if seen & bit:
            return UNCERTAIN
        seen |= bit
        p = skip_space(data, p + 1, end)
        if p >= end or data[p] != 58:
            return UNCERTAIN
        p = skip_space(data, p + 1, end)
        if p >= end:
            return UNCERTAIN
        # Its value.
        kind = kinds[field]
        b = data[p]
        if b == 110:  # null: the field is absent
            p = _skip_token(data, p, end)
        else:
            present |= bit
            if kind == _AMOUNT:
                value, p = _digits(data, p, end, 12)
                amount_minor[row] = value
            elif kind == _TIME:
                if b == 34:
                    first = p + 1
                    p = first
                    while p < end and data[p] != 34:  # a time holds no quote, and rfc3339_ms looks at every byte
                        p += 1
                    value = rfc3339_ms(data, first, p)
                    p += 1
                else:
                    value, p = _digits(data, p, end, 13)
                    if not 946_684_800_000 <= value < 4_000_000_000_000:
                        value = -1
                event_time_ms[row] = value
            elif kind == _NUMBER:
                value = 0
                if b in (34, 123, 91):
                    return UNCERTAIN
                p = _skip_token(data, p, end)
            elif kind == _ATTRIBUTES:
                value = 0
                p, null_seen = _attributes(data, p, end, hashes, weight)
                if p < 0:
                    return UNCERTAIN
                if null_seen:
                    verdict = CERTAIN_WITH_NULL_ATTRIBUTE
            else:
                if b != 34:
                    return UNCERTAIN
                first = p + 1
                p, characters, digits, bare = scan_string(data, first, end, weight)
                if p < 0 or not text_is_good(data, first, p, kind, characters, currency):
                    return UNCERTAIN
                if digits + p - first - characters >= 13 and _card_possible(data, first, p, digits, bare):
                    return UNCERTAIN
                value = 0
                p += 1
            if value < 0:
                return UNCERTAIN
        # What follows.
        p = skip_space(data, p, end)
        if p >= end:
            return UNCERTAIN
        if data[p] == 125:
            break
        if data[p] != 44:
            return UNCERTAIN
        p = skip_space(data, p + 1, end)
    if skip_space(data, p + 1, end) != end or (present & required) != required:
        return UNCERTAIN
    return verdict


@nb.njit(cache=True, nogil=True)
def _skip_token(data: Bytes, p: int, end: int) -> int:
    """Past a number, true, false or null: up to a comma, a closing brace or space.

    Whether it is one is for msgspec to say.
    """
    while p < end and data[p] != 44 and data[p] != 125 and data[p] > 32:
        p += 1
    return p


@nb.njit(cache=True, nogil=True)
def _card_possible(data: Bytes, start: int, end: int, digits: Integer, bare: bool) -> bool:
    """Whether the reference has to say if the text is or holds a card number.

    Callers ask when ASCII digits and UTF-8's continuation bytes, of which every other character has one at least, come
    to 13: with fewer there is no card number.
    """
    if bare and 13 <= digits <= 19 and luhn_valid(data, start, end):
        return True
    return may_hide(data, start, end)


@nb.njit(cache=True, nogil=True)
def _digits(data: Bytes, p: int, end: int, count_max: int) -> tuple[Integer, int]:
    """(The whole number of 1 to count_max digits that the token at p is, or -1; the position after it)."""
    first = p
    value = np.int64(0)
    while p < end and p - first <= count_max and 48 <= data[p] <= 57:
        value = value * 10 + np.int64(data[p]) - 48
        p += 1
    ended = p < end and (data[p] == 44 or data[p] == 125 or data[p] <= 32)
    return (value if ended and 1 <= p - first <= count_max else np.int64(-1)), p


@nb.njit(cache=True, nogil=True)
def text_is_good(
    data: Bytes, start: int, end: int, kind: int, characters: Integer, currency: npt.NDArray[np.bool_]
) -> bool:
    """Whether a text of bytes that `string_weights` knows is what its field takes; card numbers aside."""
    length = end - start
    if kind in (_CURRENCY, _COUNTRY):
        if length != (3 if kind == _CURRENCY else 2):
            return False
        index: Integer = 0
        for p in range(start, end):
            if not 65 <= data[p] <= 90:
                return False
            index = index * 26 + np.int64(data[p]) - 65
        return kind == _COUNTRY or bool(currency[index])
    if kind == _IP:
        return is_ip(data, start, end)
    if kind == _MCC:
        if length != 4:
            return False
        for p in range(start, end):  # noqa: SIM110 - numba has no generators
            if not 48 <= data[p] <= 57:
                return False
        return True
    if kind == _CHANNEL:
        if not 1 <= length <= 32:
            return False
        for p in range(start, end):
            b = data[p]
            if not (97 <= b <= 122 or 48 <= b <= 57 or b == 95):
                return False
        return True
    return bool(1 <= characters <= IDENTIFIER_CHARACTERS_MAX)


@nb.njit(cache=True, nogil=True)
def _attributes(
    data: Bytes, p: int, end: int, hashes: npt.NDArray[np.uint64], weight: npt.NDArray[np.int64]
) -> tuple[int, bool]:
    """Past the object of attributes at p, and whether one of them is null; -1 when uncertain."""
    null_seen = False
    if data[p] != 123:
        return -1, False
    p = skip_space(data, p + 1, end)
    if p < end and data[p] == 125:
        return p + 1, False
    count = 0
    while True:
        if p >= end or data[p] != 34 or count == ATTRIBUTES_MAX:
            return -1, False
        p += 1
        name = p
        hashed = np.uint64(0xCBF29CE484222325)  # FNV-1a; equal hashes count as equal names, which is only uncertain
        while p < end and data[p] != 34:
            b = data[p]
            letter = 65 <= b <= 90 or 97 <= b <= 122 or b == 95
            if not letter and (p == name or not (48 <= b <= 57 or b == 46)):
                return -1, False
            hashed = (hashed ^ np.uint64(b)) * np.uint64(0x100000001B3)
            p += 1
        if p >= end or not 1 <= p - name <= 64:
            return -1, False
        for k in range(count):
            if hashes[k] == hashed:
                return -1, False
        hashes[count] = hashed
        count += 1
        p = skip_space(data, p + 1, end)
        if p >= end or data[p] != 58:
            return -1, False
        p = skip_space(data, p + 1, end)
        if p >= end:
            return -1, False
        b = data[p]
        if b == 34:
            first = p + 1
            p, characters, digits, bare = scan_string(data, first, end, weight)
            if (
                p < 0
                or characters > ATTRIBUTE_CHARACTERS_MAX
                or (digits + p - first - characters >= 13 and _card_possible(data, first, p, digits, bare))
            ):
                return -1, False
            p += 1
        elif b == 45 or 48 <= b <= 57:
            # Up to 12 digits before the point, no exponent: below any card number, and an integer of 64 bits.
            p += b == 45
            first = p
            while p < end and 48 <= data[p] <= 57:
                p += 1
            if p - first > 12:
                return -1, False
            if p < end and data[p] == 46:
                p += 1
                while p < end and 48 <= data[p] <= 57:
                    p += 1
        elif b in (110, 116, 102):
            null_seen = null_seen or b == 110
            p = _skip_token(data, p, end)
        else:
            return -1, False
        p = skip_space(data, p, end)
        if p >= end:
            return -1, False
        if data[p] == 125:
            return p + 1, null_seen
        if data[p] != 44:
            return -1, False
        p = skip_space(data, p + 1, end)
