"""Card numbers masked, in everything that keeps a refused record.

Masking is wider than refusing (`schemas.card_numbers`), because it works on bytes that may not even be text. Digits
belong to one run as long as nothing but spaces, dashes or NUL bytes stands between them (NUL: UTF-16 text), written
plainly or as JSON's \\u0030 .. \\u0039. Inside a run every stretch of 13 to 19 digits that begins and ends where
digits touch something else is checked; unbroken digits longer than 19 are masked whole, since what is in them cannot
be known. So are twelve digits or more before an exponent: 4.111111111111111e15 is what a spreadsheet makes of a card
number.
"""

from __future__ import annotations

import re
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.byte_codes import (
    BACKSLASH,
    COLON,
    DASH,
    LOWER_A,
    LOWER_E,
    LOWER_U,
    PLUS,
    POINT,
    SPACE,
    UPPER_E,
    ZERO,
    Integer,
    is_digit,
    is_hex_letter,
)
from schemas.card_numbers import DIGITS_MAX, DIGITS_MIN, Bytes
from schemas.card_rule import hidden_spans, luhn_holds, may_hide

EXPONENT_DIGITS_MIN: Final = 12
_DIGIT = re.compile(r"\\u([0-9a-fA-F]{4})|\d")
_NUL = 0
_ASTERISK = 42
_TWO = 50
_LOWER_CASE = 32  # the bit that makes a capital letter small
_ESCAPE_BYTES = 6  # \u0034
_NAME_BYTES = 16  # room for a name with its quotes

# A 13-digit time in milliseconds is below 4 * 10^12, while 13-digit card numbers began with a 4 (old Visa): see
# schemas.event_time. So such a number after one of these names stays readable in a dead letter, and the record can be
# sent again once repaired.
_TIME_NAMES = (b'"event_time"', b'"known_at"')
_TIME_NAME_BYTES = np.frombuffer(b"".join(name.rjust(_NAME_BYTES) for name in _TIME_NAMES), dtype=np.uint8).reshape(
    len(_TIME_NAMES), _NAME_BYTES
)
_TIME_NAME_LENGTHS = np.array([len(name) for name in _TIME_NAMES], dtype=np.int64)


def mask_card_numbers(raw: bytes) -> bytes:
    """`raw` with every digit of every card number in it replaced by an asterisk; the very object when there is none."""
    if len(raw) < DIGITS_MIN:
        return raw
    data = np.frombuffer(raw, dtype=np.uint8).copy()
    masked = _mask(data, _TIME_NAME_BYTES, _TIME_NAME_LENGTHS)
    data.flags.writeable = False  # as everywhere else: the kernel is compiled for one kind of array
    if may_hide(data, 0, len(data)):
        # What is no UTF-8 stays as it is there and back.
        text = data.tobytes().decode("utf-8", "surrogateescape")
        if spans := list(hidden_spans(text)):
            hidden = {place for span in spans for place in range(*span) if text[place].isdecimal()}
            return "".join("*" if i in hidden else c for i, c in enumerate(text)).encode("utf-8", "surrogateescape")
    return data.tobytes() if masked else raw


def mask_digits(raw: bytes) -> bytes:
    """`raw` without any digit: for records refused for a card number, in whose JSON one may hide in more ways than a
    mask can see."""
    return _DIGIT.sub(_masked_digit, raw.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _masked_digit(found: re.Match[str]) -> str:
    if found[1] is None:
        return "*"
    escaped = chr(int(found[1], 16))
    # Half of a pair may be half of a digit.
    return "\\u002a" if escaped.isdecimal() or "\ud800" <= escaped <= "\udfff" else found[0]


@nb.njit(cache=True, nogil=True)
def _mask(data: Bytes, names: Bytes, name_lengths: npt.NDArray[np.int64]) -> bool:
    """Mask in place; whether anything was masked."""
    n = len(data)
    place = np.empty(n, dtype=np.int64)  # where each digit of the current run stands
    digit = np.empty(n, dtype=np.int64)
    first = np.empty(n + 1, dtype=np.bool_)  # whether a separator (or nothing) stands before it
    count = 0
    mantissa = 0  # the digit that the number being read begins with
    separated = True
    masked = False
    p = 0
    while p <= n:
        value: Integer = -1
        size = 1
        separator = False
        b = np.uint8(0) if p == n else data[p]
        if p < n:
            code: Integer = np.int64(b)
            if b == BACKSLASH:
                code = _escaped(data, p)
                size = _ESCAPE_BYTES
            if is_digit(code):
                value = code - ZERO
            elif code in (SPACE, DASH, _NUL):
                separator = True
            else:
                size = 1
        if value >= 0:
            if separated:
                mantissa = count
            place[count] = p
            digit[count] = value
            first[count] = separated
            count += 1
            separated = False
        elif separator:
            separated = True
        elif b == POINT and count > 0 and not separated and _exponent_follows(data, p + 1):
            pass  # the point inside of a number: its digits go on
        else:
            exponent = b in (LOWER_E, UPPER_E) and p + 1 < n and (is_digit(data[p + 1]) or data[p + 1] in (PLUS, DASH))
            if exponent and not separated and count - mantissa >= EXPONENT_DIGITS_MIN:
                masked = True
                _cover(data, place, mantissa, count)
            if count >= DIGITS_MIN:
                first[count] = True
                masked = _mask_run(data, place, digit, first, count, names, name_lengths) or masked
            count = 0
            separated = True
        p += size
    return masked


@nb.njit(cache=True, nogil=True)
def _exponent_follows(data: Bytes, p: int) -> bool:
    """Whether digits and then an e stand at p."""
    start = p
    while p < len(data) and is_digit(data[p]):
        p += 1
    return p > start and p < len(data) and data[p] in (LOWER_E, UPPER_E)


@nb.njit(cache=True, nogil=True)
def _escaped(data: Bytes, p: int) -> Integer:
    """The character below 256 that JSON's escape \\u00XX at p stands for; -1 where there is none."""
    if p + _ESCAPE_BYTES > len(data) or data[p + 1] != LOWER_U or data[p + 2] != ZERO or data[p + 3] != ZERO:
        return -1
    high, low = _hex_value(data[p + 4]), _hex_value(data[p + 5])
    return high * 16 + low if high >= 0 and low >= 0 else -1


@nb.njit(cache=True, nogil=True)
def _hex_value(b: Integer) -> Integer:
    if is_digit(b):
        return np.int64(b) - ZERO
    return (np.int64(b) | _LOWER_CASE) - LOWER_A + 10 if is_hex_letter(b) else -1


@nb.njit(cache=True, nogil=True)
def _cover(data: Bytes, place: npt.NDArray[np.int64], start: int, end: int) -> None:
    """Write an asterisk over the digits start to end of a run; a digit that is escaped stays an escape."""
    for k in range(start, end):
        if data[place[k]] == BACKSLASH:
            data[place[k] + 4], data[place[k] + 5] = _TWO, LOWER_A  # \u002a
        else:
            data[place[k]] = _ASTERISK


@nb.njit(cache=True, nogil=True)
def _mask_run(
    data: Bytes,
    place: npt.NDArray[np.int64],
    digit: npt.NDArray[np.int64],
    first: npt.NDArray[np.bool_],
    count: int,
    names: Bytes,
    name_lengths: npt.NDArray[np.int64],
) -> bool:
    if (
        count == DIGITS_MIN
        and place[count - 1] - place[0] == count - 1
        and digit[0] < 4
        and _is_time(data, place[0], names, name_lengths)
    ):
        return False
    masked = False
    for i in range(count):
        if not first[i]:
            continue
        unbroken = i + 1
        while not first[unbroken]:
            unbroken += 1
        reach = unbroken if unbroken - i > DIGITS_MAX else -1
        for end in range(i + DIGITS_MIN, min(count, i + DIGITS_MAX) + 1):
            if first[end] and luhn_holds(digit, i, end):
                reach = max(reach, end)
        if reach > i:
            masked = True
            _cover(data, place, i, reach)
    return masked


@nb.njit(cache=True, nogil=True)
def _is_time(data: Bytes, start: int, names: Bytes, name_lengths: npt.NDArray[np.int64]) -> bool:
    """Whether one of `names` (right-aligned rows), a colon and spaces stand just before `start`."""
    p = start - 1
    while p >= 0 and data[p] == SPACE:
        p -= 1
    if p < 0 or data[p] != COLON:
        return False
    p -= 1
    while p >= 0 and data[p] == SPACE:
        p -= 1
    for row in range(len(names)):
        length = name_lengths[row]
        if p + 1 >= length:
            same = True
            for k in range(length):
                same = same and data[p - k] == names[row, _NAME_BYTES - 1 - k]
            if same:
                return True
    return False
