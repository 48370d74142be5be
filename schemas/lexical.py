"""Kernels that read single values from bytes: strings, times, IP addresses. Each is exact on the inputs it accepts.

All take `data` (uint8), a start and an end, and never look past the end. They are stricter or equal to the reference
(schemas.fields, schemas.times), never laxer: a value they refuse is looked at again by the reference, which alone
says no.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.times import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN

Bytes = npt.NDArray[np.uint8]
Integer = int | np.int64  # numba's integers are all int64; numpy's stubs tell the two apart

STRING_BYTES_MAX = (1 << 21) - 1  # of `scan_string`: its sums have 21 bits
_TIME_MIN = np.int64(EVENT_TIME_MS_MIN)
_TIME_END = np.int64(EVENT_TIME_MS_END)


@nb.njit(cache=True, nogil=True)
def skip_space(data: Bytes, p: int, end: int) -> int:
    """The first position from p that holds none of JSON's four whitespace characters."""
    while p < end and (data[p] == 32 or data[p] == 10 or data[p] == 13 or data[p] == 9):
        p += 1
    return p


def string_weights() -> npt.NDArray[np.int64]:
    """int64 [256]: what each byte inside a JSON string adds to the sums of `scan_string`; 0 for bytes that end or
    spoil it.

    Bits 0-20 count characters (bytes that are no UTF-8 continuation), 21-41 digits, 42-62 bytes other than digit,
    space, dash: each sum holds for strings up to 2 MiB. Continuation bytes are "other" too, so no byte of a string
    weighs 0.
    """
    weight = np.zeros(256, dtype=np.int64)
    for b in range(32, 256):
        if b in b'"\\\x7f':
            continue
        digit = 48 <= b <= 57
        weight[b] = ((b & 0xC0) != 0x80) + (int(digit) << 21) + (int(not digit and b not in b" -") << 42)
    return weight


@nb.njit(cache=True, nogil=True)
def scan_string(data: Bytes, start: int, end: int, weight: npt.NDArray[np.int64]) -> tuple[int, Integer, Integer, bool]:
    """A JSON string's inside from `start`, as four values.

    Position of the closing quote or -1; characters; digits; whether there are only digits, spaces and dashes. -1 also
    for a backslash and for control characters. One table load and one addition a byte.
    """
    total = np.int64(0)
    p = start
    while p < end:
        w = weight[data[p]]
        if w == 0:
            break
        total += w
        p += 1
    if p >= end or data[p] != 34:
        p = -1
    return p, total & 0x1FFFFF, (total >> 21) & 0x1FFFFF, bool((total >> 42) == 0)


@nb.njit(cache=True, nogil=True)
def _two(data: Bytes, p: int) -> Integer:
    """Two digits as a number, -1 when they are not digits."""
    high, low = np.int64(data[p]) - 48, np.int64(data[p + 1]) - 48
    return high * 10 + low if 0 <= high <= 9 and 0 <= low <= 9 else -1


@nb.njit(cache=True, nogil=True)
def _days_from_civil(year: Integer, month: Integer, day: Integer) -> Integer:
    """Days since 1970-01-01 in the Gregorian calendar, years from 1 on. Years from March put the leap day last."""
    y = year - (month <= 2)
    era = y // 400
    year_of_era = y - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


@nb.njit(cache=True, nogil=True)
def rfc3339_ms(data: Bytes, start: int, end: int) -> Integer:
    """Epoch milliseconds of an RFC 3339 time that is data[start:end] and lies in the contract's range; else -1."""
    if end - start < 20:
        return -1
    century, year_low = _two(data, start), _two(data, start + 2)
    month, day = _two(data, start + 5), _two(data, start + 8)
    hour, minute, second = _two(data, start + 11), _two(data, start + 14), _two(data, start + 17)
    between = data[start + 10]
    if (
        century < 0
        or year_low < 0
        or not 1 <= month <= 12
        or day < 1
        or not 0 <= hour <= 23
        or not 0 <= minute <= 59
        or not 0 <= second <= 59
        or data[start + 4] != 45
        or data[start + 7] != 45
        or between not in (84, 32)
        or data[start + 13] != 58
        or data[start + 16] != 58
    ):
        return -1
    year = century * 100 + year_low
    days_in_month = 31
    if month in (4, 6, 9, 11):
        days_in_month = 30
    elif month == 2:
        days_in_month = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if day > days_in_month or year < 1:
        return -1
    p = start + 19
    milliseconds: Integer = 0
    if data[p] == 46:
        first = p + 1
        p = first
        scale = 100
        while p < end and 48 <= data[p] <= 57:
            milliseconds += (np.int64(data[p]) - 48) * scale
            scale //= 10
            p += 1
        if not 1 <= p - first <= 9:
            return -1
    offset_minutes: Integer = 0
    if p >= end:
        return -1
    zone = data[p]
    if zone == 90:
        if p + 1 != end:
            return -1
    elif zone in (43, 45):
        if p + 6 != end or data[p + 3] != 58:
            return -1
        offset_hours, minutes = _two(data, p + 1), _two(data, p + 4)
        if not 0 <= offset_hours <= 23 or not 0 <= minutes <= 59:
            return -1
        offset_minutes = offset_hours * 60 + minutes
        if zone == 45:
            offset_minutes = -offset_minutes
    else:
        return -1
    seconds = _days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_minutes * 60
    moment_ms = seconds * 1_000 + milliseconds
    return moment_ms if _TIME_MIN <= moment_ms < _TIME_END else -1


@nb.njit(cache=True, nogil=True)
def is_ipv4(data: Bytes, start: int, end: int) -> bool:
    """Four numbers up to 255 without leading zeros."""
    parts = 0
    p = start
    while True:
        first = p
        value: Integer = 0
        while p < end and p - first < 3 and 48 <= data[p] <= 57:
            value = value * 10 + np.int64(data[p]) - 48
            p += 1
        if p == first or value > 255 or (data[first] == 48 and p - first > 1):
            return False
        parts += 1
        if p == end:
            return parts == 4
        if parts == 4 or data[p] != 46:
            return False
        p += 1


@nb.njit(cache=True, nogil=True)
def is_ipv6(data: Bytes, start: int, end: int) -> bool:
    """RFC 4291 text: groups of 1-4 hexadecimal digits, one "::" at most, perhaps IPv4 at the end; no scope."""
    groups = 0
    compressed = False
    p = start
    if end - start >= 2 and data[p] == 58 and data[p + 1] == 58:
        compressed = True
        p += 2
    while p < end:
        first = p
        while p < end and (48 <= data[p] <= 57 or 65 <= data[p] <= 70 or 97 <= data[p] <= 102):
            p += 1
        if p < end and data[p] == 46:
            if not is_ipv4(data, first, end):
                return False
            groups += 2
            p = end
            break
        if not 1 <= p - first <= 4:
            return False
        groups += 1
        if p == end:
            break
        if data[p] != 58 or p + 1 == end:
            return False
        p += 1
        if data[p] == 58:
            if compressed:
                return False
            compressed = True
            p += 1
    return groups <= 7 if compressed else groups == 8


@nb.njit(cache=True, nogil=True)
def is_ip(data: Bytes, start: int, end: int) -> bool:
    """IPv4 or IPv6 text."""
    for p in range(start, min(end, start + 5)):
        if data[p] == 58:
            return is_ipv6(data, start, end)
    return is_ipv4(data, start, end)
