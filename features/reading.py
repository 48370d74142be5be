"""Reading: the features of one payment from the cells of its keys, and the prepared payment itself.

The only floating-point steps are here: from exact integers to a value.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import math

import numpy as np

from features import plan as p
from features.arithmetic import deviation, distance_km, halved, multiply
from features.memory import inlined, kernel, peek64, poke_float
from features.series import bounds, expire, median
from features.state import State, view_state, view_tables
from features.table import find

NAN = np.float32(np.nan)
# Strip 0 is never given away and all zeros: reading it gives what a key without history has.
NO_KEY, NO_STRIP = -1, 0
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@inlined
def word(payment: int, k: int) -> int:
    """Word k (B_ words of the plan) of the prepared payment at an address."""
    return peek64(payment + 8 * k)


@inlined
def key_of(payment: int, e: int):  # type: ignore[no-untyped-def]
    """The hashed key of entity e: (low, high)."""
    return np.uint64(word(payment, p.B_KEYS + 2 * e)), np.uint64(word(payment, p.B_KEYS + 2 * e + 1))


@inlined
def distinct_low(cell: int, value: np.uint64) -> np.uint64:
    """First word of the key of (cell, value) in the table of distinct values; `cell` is the second."""
    x = np.uint64(cell) * np.uint64(0x9E3779B97F4A7C15)
    return (x ^ (x >> np.uint64(32))) ^ value


@inlined
def _read_numeric(t: p.Tables, s: State, payment: int, read, strip: int, current: bool):  # type: ignore[no-untyped-def]
    """STD, DISTINCT, FRAUD_COUNT and FRAUD_RATE."""
    kind = read[p.R_KIND]
    n = s.arena[strip + read[p.R_CELL]]
    if current:
        n += 1
    if kind == p.DISTINCT:
        cell = strip + read[p.R_SECOND]
        total = s.arena[cell]
        value = np.uint64(word(payment, p.B_KEYS + 2 * len(t.entity) + read[p.R_THIRD]))
        if current and value != 0:
            total += 1 if find(s.distincts, distinct_low(cell, value), np.uint64(cell)) < 0 else 0
        return np.float64(total)
    total = s.arena[strip + read[p.R_SECOND]]
    if kind == p.FRAUD_COUNT:
        return np.float64(total)
    if kind == p.FRAUD_RATE:
        return np.float64(total) / n if n > 0 else np.nan
    amount = word(payment, p.B_AMOUNT)
    if current:
        total += amount
    if n == 0:
        return np.nan
    low, high = np.uint64(s.arena[strip + read[p.R_THIRD]]), np.uint64(s.arena[strip + read[p.R_THIRD] + 1])
    if current:
        square_high, square_low = multiply(np.uint64(amount), np.uint64(amount))
        low += square_low
        high += square_high + (np.uint64(1) if low < square_low else np.uint64(0))
    return deviation(n, total, low, high) / t.minor_units[0]


@inlined
def _read_series(c: int, t: p.Tables, s: State, amount: int, read, strip: int, current: bool, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    """MIN, MAX and MEDIAN."""
    kind = read[p.R_KIND]
    limit_ms = now_ms - read[p.R_WINDOW]
    cell = strip + read[p.R_CELL]
    if kind == p.MEDIAN:
        return median(c, cell, limit_ms, amount if current else np.int64(-1), p.MEDIAN_MAX, scratch) / t.minor_units[0]
    block = s.arena[cell]
    if block != 0:
        first, end = expire(s, block, limit_ms)
        if first < end:
            extreme = s.pool[block + 3 + 2 * first]
            if current:
                extreme = max(extreme, amount) if kind == p.MAX else min(extreme, amount)
            return np.float64(extreme) / t.minor_units[0]
    return np.float64(amount) / t.minor_units[0] if current else np.nan


@inlined
def _read_decayed(t: p.Tables, s: State, payment: int, read, strip: int, current: bool, now_ms: int):  # type: ignore[no-untyped-def]
    """Σ 2^-(age / half_life), or of amounts; age is stream time minus event time."""
    second = 1 if read[p.R_KIND] == p.DECAYED_COUNT else 2
    half_life = np.float64(read[p.R_HALF_LIFE])
    total = 0.0
    cell = strip + read[p.R_CELL]
    if s.arena[cell] != 0:
        total = s.arena_f[cell + second] * halved((now_ms - s.arena[cell]) / half_life)
    if current:
        own = halved((now_ms - word(payment, p.B_TIME)) / half_life)
        total += own if second == 1 else own * np.float64(word(payment, p.B_AMOUNT))
    return total if second == 1 else total / t.minor_units[0]


@inlined
def _read_latest(t: p.Tables, s: State, payment: int, read, strip: int, now_ms: int):  # type: ignore[no-untyped-def]
    """What is known of the key's latest (or first) payments. NaN when there is none, or none inside the window."""
    kind = read[p.R_KIND]
    cell = strip + read[p.R_CELL]
    limit_ms = now_ms - read[p.R_WINDOW] if read[p.R_WINDOW] >= 0 else np.int64(0)
    if kind == p.SINCE_FRAUD or kind == p.SINCE_FIRST_FRAUD:  # noqa: PLR1714
        block = s.arena[cell]
        if block == 0:
            return np.nan
        first, end = bounds(s, block)
        if first == end:
            return np.nan
        fraud_ms = s.pool[block + 2 * (end if kind == p.SINCE_FRAUD else first + 1)]
        return np.float64(now_ms - fraud_ms) / 1000.0 if fraud_ms > limit_ms else np.nan
    time_ms = s.arena[cell]
    if time_ms == 0 or time_ms <= limit_ms:
        return np.nan
    if kind == p.SINCE_LAST or kind == p.SINCE_FIRST:  # noqa: PLR1714
        return np.float64(now_ms - time_ms) / 1000.0
    if kind == p.LAST:
        return np.float64(s.arena[cell + 1]) / t.minor_units[0]
    if kind == p.LAST_LABEL:
        return 1.0 if s.arena[cell + 2] == 1 else 0.0
    # SPEED_KMH
    latitude, longitude = degrees(word(payment, p.B_LATITUDE)), degrees(word(payment, p.B_LONGITUDE))
    apart_ms = abs(word(payment, p.B_TIME) - time_ms)
    if apart_ms == 0 or math.isnan(latitude) or math.isnan(longitude):
        return np.nan
    return distance_km(s.arena_f[cell + 1], s.arena_f[cell + 2], latitude, longitude) * 3_600_000.0 / apart_ms


@inlined
def degrees(bits: np.uint64) -> float:
    return np.uint64(bits).view(np.float64)


@inlined
def _derive(read, out):  # type: ignore[no-untyped-def]
    """A column made of earlier columns of the same payment. A zero divisor gives NaN; so will a
    result beyond float32."""
    kind = read[p.R_KIND]
    x, y = np.float64(out[read[1]]), np.float64(out[read[2]])
    if kind == p.DIFFERENCE:
        return x - y
    if kind == p.RATIO:
        return x / y if y != 0.0 else np.nan
    z = np.float64(out[read[3]])
    return (x - y) / z if z != 0.0 else np.nan


@kernel
def _read_more(c: int, payment: int, f: int, strip: int, current: bool, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    t, s = view_tables(c), view_state(c)
    read = t.reads[f]
    kind = read[p.R_KIND]
    if kind == p.STD or (kind >= p.DISTINCT and kind <= p.FRAUD_RATE):
        return _read_numeric(t, s, payment, read, strip, current)
    if kind <= p.MEDIAN:
        return _read_series(c, t, s, word(payment, p.B_AMOUNT), read, strip, current, now_ms, scratch)
    if kind <= p.DECAYED_SUM:
        return _read_decayed(t, s, payment, read, strip, current, now_ms)
    return _read_latest(t, s, payment, read, strip, now_ms)


@inlined
def _plain(place: int, kind: int, strip: int, current: int, amount: int, minor_units: float) -> np.float32:
    """COUNT, SUM and MEAN of the strip at an address; `place` is the address of the read operation."""
    n = peek64(strip + 8 * peek64(place + 8 * p.R_CELL)) + current
    if kind == p.COUNT:
        return np.float32(n)
    total = np.float64(peek64(strip + 8 * peek64(place + 8 * p.R_SECOND)) + current * amount)
    if kind == p.SUM:
        return np.float32(total / minor_units)
    return np.float32(total / n / minor_units) if n > 0 else NAN


@inlined
def read_all(c: int, t: p.Tables, s: State, payment: int, strips, now_ms: int, out, scratch) -> np.uint64:  # type: ignore[no-untyped-def]
    """Fill payment i's row of `out` in column order; its filter bits, with the filters on features decided."""
    bits = np.uint64(word(payment, p.B_WHERE))
    time_ms, amount = word(payment, p.B_TIME), word(payment, p.B_AMOUNT)
    arena, minor_units = np.int64(s.arena.ctypes.data), t.minor_units[0]
    place = np.int64(t.reads.ctypes.data) - 8 * p.READ_WORDS
    target = np.int64(out.ctypes.data) - 4
    for f in range(len(t.reads)):
        place += 8 * p.READ_WORDS
        target += 4
        kind = peek64(place)
        if peek64(place + 8 * p.R_PLAIN) != 0:  # by far the most common ones
            strip = peek64(strips + 8 * peek64(place + 8 * p.R_ENTITY))
            if strip == NO_KEY:
                poke_float(target, NAN)
            else:
                current = peek64(place + 8 * p.R_CURRENT)
                poke_float(target, _plain(place, kind, arena + 8 * strip, current, amount, minor_units))
            continue
        if kind >= p.RATIO:
            derived = np.float32(_derive(t.reads[f], out))
            out[f] = NAN if math.isinf(derived) else derived
        elif kind >= p.COUNT:
            strip = peek64(strips + 8 * peek64(place + 8 * p.R_ENTITY))
            bit = peek64(place + 8 * p.R_WHERE)
            current = peek64(place + 8 * p.R_CURRENT)
            if bit >= 0 and not (bits >> np.uint64(bit)) & np.uint64(1):
                current = 0
            if strip == NO_KEY:
                out[f] = NAN
            elif kind <= p.MEAN:
                out[f] = _plain(place, kind, arena + 8 * strip, current, amount, minor_units)
            else:
                out[f] = _read_more(c, payment, f, strip, current == 1, now_ms, scratch)
        elif kind == p.AMOUNT:
            out[f] = amount / minor_units
        elif kind == p.HOUR:
            out[f] = time_ms // HOUR_MS % 24
        elif kind == p.DAY:  # Monday is 0; 1970-01-01 was a Thursday
            out[f] = (time_ms // DAY_MS + 3) % 7
        for k in range(t.test_start[f], t.test_start[f + 1]):
            value = np.float64(out[f])
            holds = False
            for j in range(t.tests[k, 1], t.tests[k, 2]):
                if t.intervals[j, 0] <= value <= t.intervals[j, 1]:
                    holds = True
            if not holds:
                bits &= ~(np.uint64(1) << np.uint64(t.tests[k, 0]))
    return bits
