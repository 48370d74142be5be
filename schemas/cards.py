"""Card numbers: found at the door, masked in everything that keeps a refused record.

A text is a card number when, without its spaces and dashes, it is 13 to 19 ASCII digits that pass the Luhn check
(ISO/IEC 7812-1). One in ten numeric ids of that length passes by chance; that is why ids should not be bare digits.
A text holds a card number, too, when one hides in it: between letters, behind other separators, in digits of another
script. That rule is `schemas.card_rule`'s, which asks for an issuer's beginning as well.

Masking is wider than refusing, because it works on bytes that may not even be text. Digits belong to one run as long
as nothing but spaces, dashes or NUL bytes stands between them (NUL: UTF-16 text), written plainly or as JSON's
\\u0030 .. \\u0039. Inside a run every stretch of 13 to 19 digits that begins and ends where digits touch something
else is checked; unbroken digits longer than 19 are masked whole, since nobody can tell what is in them. So are twelve
digits or more before an exponent: 4.111111111111111e15 is what a spreadsheet makes of a card number.
"""

from __future__ import annotations

import re

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.card_rule import hidden_spans, luhn, luhn_holds, may_hide

Bytes = npt.NDArray[np.uint8]
Integer = int | np.int64  # numba's integers are all int64; numpy's stubs tell the two apart

DIGITS_MIN = 13
DIGITS_MAX = 19
EXPONENT_DIGITS_MIN = 12
_DIGIT = re.compile(r"\\u([0-9a-fA-F]{4})|\d")

# A 13-digit time in milliseconds is below 4 * 10^12, while 13-digit card numbers began with a 4 (old Visa): see
# schemas.times. So such a number after one of these names stays readable in a dead letter, and the record can be sent
# again once repaired.
_TIME_NAMES = (b'"event_time"', b'"known_at"')
_TIME_NAME_BYTES = np.frombuffer(b"".join(name.rjust(16) for name in _TIME_NAMES), dtype=np.uint8).reshape(
    len(_TIME_NAMES), 16
)
_TIME_NAME_LENGTHS = np.array([len(name) for name in _TIME_NAMES], dtype=np.int64)


def is_card_number(text: str) -> bool:
    """Whether `text` is a card number as a whole, spaces and dashes aside.

    Pure Python: the reference of the kernels.
    """
    if len(text) < DIGITS_MIN:
        return False
    digits = text.replace(" ", "").replace("-", "")
    if not (DIGITS_MIN <= len(digits) <= DIGITS_MAX and digits.isascii() and digits.isdigit()):
        return False
    return luhn(digits)


def holds_card_number(text: str) -> bool:
    """Whether `text` is a card number, or one hides in it. The rule of every door."""
    if len(text) < DIGITS_MIN or (text.isascii() and _ascii_digits(text) < DIGITS_MIN):
        return False  # by far the most texts: too few digits for either rule
    return is_card_number(text) or next(hidden_spans(text), None) is not None


def _ascii_digits(text: str) -> int:
    return len(text) - len(text.encode("ascii").translate(None, b"0123456789"))


def number_is_card_number(value: float) -> bool:
    """Whether a JSON number, its sign aside, is a whole number that is a card number."""
    if isinstance(value, float):
        if not value.is_integer() or abs(value) >= 10**DIGITS_MAX:
            return False
        value = int(value)
    return is_card_number(str(abs(value)))


def key_is_card_number(key: bytes) -> bool:
    """Whether a record's key holds a card number, also as a JSON string with its quotes."""
    return len(key) >= DIGITS_MIN and holds_card_number(key.strip(b' \t\r\n"').decode("utf-8", "replace"))


def mask_card_numbers(raw: bytes) -> bytes:
    """`raw` with every digit of every card number in it replaced by an asterisk; the very object when there is none."""
    if len(raw) < DIGITS_MIN:
        return raw
    data = np.frombuffer(raw, dtype=np.uint8).copy()
    masked = _mask(data, _TIME_NAME_BYTES, _TIME_NAME_LENGTHS)
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
def luhn_valid(data: Bytes, start: int, end: int) -> bool:
    """The Luhn check over the digits in data[start:end]; other bytes are passed over."""
    total: Integer = 0
    odd = False
    for p in range(end - 1, start - 1, -1):
        digit = np.int64(data[p]) - 48
        if 0 <= digit <= 9:
            if odd:
                digit *= 2
                if digit > 9:
                    digit -= 9
            total += digit
            odd = not odd
    return total % 10 == 0


@nb.njit(cache=True, nogil=True)
def key_candidates(data: Bytes, offsets: npt.NDArray[np.int64], out: npt.NDArray[np.bool_]) -> None:
    """Mark the keys that `key_is_card_number` has to look at: 13-19 digits and else only spaces, dashes, quotes; and
    those in which a number may hide."""
    for i in range(len(out)):
        digits = 0
        possible = offsets[i + 1] - offsets[i] >= DIGITS_MIN
        if possible:
            for p in range(offsets[i], offsets[i + 1]):
                b = data[p]
                if 48 <= b <= 57:
                    digits += 1
                elif b not in (32, 45, 34, 9, 10, 13):
                    possible = False
                    break
        plain = possible and DIGITS_MIN <= digits <= DIGITS_MAX
        long = offsets[i + 1] - offsets[i] >= DIGITS_MIN
        out[i] = plain or (long and may_hide(data, offsets[i], offsets[i + 1]))


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
            if 48 <= b <= 57:
                value = np.int64(b) - 48
            elif b in (32, 45, 0):
                separator = True
            elif b == 92 and p + 5 < n and data[p + 1] == 117 and data[p + 2] == 48 and data[p + 3] == 48:  # \u00..
                high, low = data[p + 4], data[p + 5]
                if high == 51 and 48 <= low <= 57:  # 0030 to 0039
                    value, size = np.int64(low) - 48, 6
                elif (high == 50 and low in (48, 68, 100)) or (high == 48 and low == 48):  # 0020 space, 002d dash, 0000
                    separator, size = True, 6
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
        elif b == 46 and count > 0 and not separated and _exponent_follows(data, p + 1):
            pass  # the point inside of a number: its digits go on
        else:
            exponent = b in (69, 101) and p + 1 < n and (48 <= data[p + 1] <= 57 or data[p + 1] in (43, 45))
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
    while p < len(data) and 48 <= data[p] <= 57:
        p += 1
    return p > start and p < len(data) and data[p] in (69, 101)


@nb.njit(cache=True, nogil=True)
def _cover(data: Bytes, place: npt.NDArray[np.int64], start: int, end: int) -> None:
    """Write an asterisk over the digits start to end of a run; a digit that is escaped stays an escape."""
    for k in range(start, end):
        if data[place[k]] == 92:
            data[place[k] + 4], data[place[k] + 5] = 50, 97  # \u002a
        else:
            data[place[k]] = 42


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
    while p >= 0 and data[p] == 32:
        p -= 1
    if p < 0 or data[p] != 58:
        return False
    p -= 1
    while p >= 0 and data[p] == 32:
        p -= 1
    for row in range(len(names)):
        length = name_lengths[row]
        if p + 1 >= length:
            same = True
            for k in range(length):
                same = same and data[p - k] == names[row, 15 - k]
            if same:
                return True
    return False
