"""Kernels that read single values from bytes: space, UTF-8, decimal numbers, times, IP addresses. Each is exact on the
inputs it accepts.

All take `data` (uint8), a start and an end, and never look past the end. They are as strict as the reference
(schemas.field_types, schemas.event_time) or stricter: a value they refuse is checked again by the reference, which
alone refuses.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.byte_codes import (
    ASCII_END,
    CARRIAGE_RETURN,
    COLON,
    DASH,
    LINE_FEED,
    PLUS,
    POINT,
    SPACE,
    TAB,
    UPPER_T,
    UPPER_Z,
    ZERO,
    Integer,
    is_digit,
    is_hex_letter,
)
from schemas.event_time import EVENT_TIME_MS_END, EVENT_TIME_MS_MIN
from schemas.kernel_decorators import inlined_reader, reader

Bytes = npt.NDArray[np.uint8]

# 10^0 to 10^18: as doubles exact, and as whole numbers below 2^60.
_POWERS: Final = tuple(10**k for k in range(19))
_DOUBLE_POWERS: Final = tuple(float(power) for power in _POWERS)
_SCALE_MAX = 18
_VALUE_MAX = 10**17  # one more digit stays below 10^18
_DOUBLE_END = 1 << 53  # whole numbers below are doubles

_TIME_MIN = np.int64(EVENT_TIME_MS_MIN)
_TIME_END = np.int64(EVENT_TIME_MS_END)


@inlined_reader
def skip_space(data: Bytes, p: int, end: int) -> int:
    """The first position from p that holds none of JSON's four whitespace characters."""
    while p < end and (data[p] == SPACE or data[p] == LINE_FEED or data[p] == CARRIAGE_RETURN or data[p] == TAB):
        p += 1
    return p


@inlined_reader
def is_utf8(data: Bytes, start: int, end: int) -> bool:
    """Whether the bytes are UTF-8 (RFC 3629): shortest forms, no surrogates, nothing beyond U+10FFFF."""
    joined = np.uint8(0)
    for p in range(start, end):
        joined |= data[p]
    return True if joined < ASCII_END else _is_utf8(data, start, end)


@reader
def _is_utf8(data: Bytes, start: int, end: int) -> bool:
    p = start
    while p < end:
        b = np.int64(data[p])
        p += 1
        if b < 0x80:
            continue
        if 0xC2 <= b <= 0xDF:
            more, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= b <= 0xEF:
            more, low, high = 2, 0xA0 if b == 0xE0 else 0x80, 0x9F if b == 0xED else 0xBF
        elif 0xF0 <= b <= 0xF4:
            more, low, high = 3, 0x90 if b == 0xF0 else 0x80, 0x8F if b == 0xF4 else 0xBF
        else:
            return False
        if p + more > end or not low <= data[p] <= high:
            return False
        for k in range(1, more):
            if not 0x80 <= data[p + k] <= 0xBF:
                return False
        p += more
    return True


@reader
def decimal_number(data: Bytes, p: int, end: int, bound: float) -> tuple[float, int]:
    """(The double next to the JSON number at p, the position after it; -1 where that is not certain).

    Certain are numbers without an exponent, of at most 18 digits (zeros before the first other digit do not count) and
    18 decimal places, within `bound`. Rounded half to even, as every reader of JSON does.
    """
    negative = data[p] == DASH
    if negative:
        p += 1
    first = p
    value = np.int64(0)
    scale = 0
    while p < end and is_digit(data[p]):
        if value >= _VALUE_MAX:
            return 0.0, -1
        value = value * 10 + np.int64(data[p]) - ZERO
        p += 1
    if p == first or (data[first] == ZERO and p - first > 1):
        return 0.0, -1
    if p < end and data[p] == POINT:
        p += 1
        after_point = p
        while p < end and is_digit(data[p]):
            if value >= _VALUE_MAX:
                return 0.0, -1
            value = value * 10 + np.int64(data[p]) - ZERO
            p += 1
        scale = p - after_point
        if scale == 0 or scale > _SCALE_MAX:
            return 0.0, -1
    elif negative and value == 0:  # without a point it is the whole number 0, which has no sign
        return 0.0, -1
    # Of two exact doubles below 2^53 the quotient is rounded once.
    number = float(value) / _DOUBLE_POWERS[scale] if value < _DOUBLE_END else _divided(value, _POWERS[scale])
    if number > bound:
        return 0.0, -1
    return -number if negative else number, p


@reader
def _divided(value: Integer, divisor: Integer) -> float:
    """The double next to value / divisor, for 2^53 <= value < 10^18 and divisor <= 10^18: long division in bits until
    the quotient has more of them than a double, then one rounding half to even."""
    quotient, rest = value // divisor, value % divisor
    exponent = 0
    while quotient < 2 * _DOUBLE_END:
        rest <<= 1
        quotient <<= 1
        if rest >= divisor:
            rest -= divisor
            quotient |= 1
        exponent -= 1
    dropped = 0
    kept = quotient
    while kept >= _DOUBLE_END:
        kept >>= 1
        dropped += 1
    below = quotient & ((1 << dropped) - 1)
    half = 1 << (dropped - 1)
    if below > half or (below == half and (rest > 0 or kept & 1)):
        kept += 1
    return math.ldexp(float(kept), exponent + dropped)


@reader
def _two(data: Bytes, p: int) -> Integer:
    """Two digits as a number, -1 when they are not digits."""
    high, low = np.int64(data[p]) - ZERO, np.int64(data[p + 1]) - ZERO
    return high * 10 + low if 0 <= high <= 9 and 0 <= low <= 9 else -1


@reader
def _days_from_civil(year: Integer, month: Integer, day: Integer) -> Integer:
    """Days since 1970-01-01 in the Gregorian calendar, years from 1 on. Years from March put the leap day last."""
    y = year - (month <= 2)
    era = y // 400
    year_of_era = y - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


@reader
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
        or data[start + 4] != DASH
        or data[start + 7] != DASH
        or between not in (UPPER_T, SPACE)
        or data[start + 13] != COLON
        or data[start + 16] != COLON
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
    if data[p] == POINT:
        first = p + 1
        p = first
        scale = 100
        while p < end and is_digit(data[p]):
            milliseconds += (np.int64(data[p]) - ZERO) * scale
            scale //= 10
            p += 1
        if not 1 <= p - first <= 9:
            return -1
    offset_minutes: Integer = 0
    if p >= end:
        return -1
    zone = data[p]
    if zone == UPPER_Z:
        if p + 1 != end:
            return -1
    elif zone in (PLUS, DASH):
        if p + 6 != end or data[p + 3] != COLON:
            return -1
        offset_hours, minutes = _two(data, p + 1), _two(data, p + 4)
        if not 0 <= offset_hours <= 23 or not 0 <= minutes <= 59:
            return -1
        offset_minutes = offset_hours * 60 + minutes
        if zone == DASH:
            offset_minutes = -offset_minutes
    else:
        return -1
    seconds = _days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset_minutes * 60
    moment_ms = seconds * 1_000 + milliseconds
    return moment_ms if _TIME_MIN <= moment_ms < _TIME_END else -1


@reader
def is_ipv4(data: Bytes, start: int, end: int) -> bool:
    """Four numbers up to 255 without leading zeros."""
    parts = 0
    p = start
    while True:
        first = p
        value: Integer = 0
        while p < end and p - first < 3 and is_digit(data[p]):
            value = value * 10 + np.int64(data[p]) - ZERO
            p += 1
        if p == first or value > 255 or (data[first] == ZERO and p - first > 1):
            return False
        parts += 1
        if p == end:
            return parts == 4
        if parts == 4 or data[p] != POINT:
            return False
        p += 1


@reader
def is_ipv6(data: Bytes, start: int, end: int) -> bool:
    """RFC 4291 text: groups of 1-4 hexadecimal digits, one "::" at most, perhaps IPv4 at the end; no scope."""
    groups = 0
    compressed = False
    p = start
    if end - start >= 2 and data[p] == COLON and data[p + 1] == COLON:
        compressed = True
        p += 2
    while p < end:
        first = p
        while p < end and (is_digit(data[p]) or is_hex_letter(data[p])):
            p += 1
        if p < end and data[p] == POINT:
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
        if data[p] != COLON or p + 1 == end:
            return False
        p += 1
        if data[p] == COLON:
            if compressed:
                return False
            compressed = True
            p += 1
    return groups <= 7 if compressed else groups == 8


@reader
def is_ip(data: Bytes, start: int, end: int) -> bool:
    """IPv4 or IPv6 text."""
    for p in range(start, min(end, start + 5)):
        if data[p] == COLON:
            return is_ipv6(data, start, end)
    return is_ipv4(data, start, end)
