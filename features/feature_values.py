"""Feature values: the columns of one payment, read from the accumulators of its keys and the prepared payment itself.

The only floating-point steps are here: from exact integers to a value.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import math

import numpy as np

from features import kernel_tables as kt
from features.arithmetic import (
    arc_km,
    circle_place,
    circular,
    degrees_of,
    deviation,
    distance_km,
    fading,
    halved,
    haversine,
    multiply,
    place_of,
    weighed,
)
from features.engine_state import State, view_state, view_tables
from features.hash_table import find, get
from features.raw_memory import inlined, kernel, peek64, poke_float, prefetch
from features.series import bounds, expire, median

NAN = np.float32(np.nan)
# Slot 0 belongs to no key and is all zeros: reading it gives the values of a key without history.
NO_KEY, NO_SLOT = -1, 0


@inlined
def word(payment: int, k: int) -> int:
    """Word k (B_ words of features/kernel_tables.py) of the prepared payment at an address."""
    return peek64(payment + 8 * k)


@inlined
def key_of(payment: int, e: int):  # type: ignore[no-untyped-def]
    """The hashed key of entity e: (low, high)."""
    return np.uint64(word(payment, kt.B_KEYS + 2 * e)), np.uint64(word(payment, kt.B_KEYS + 2 * e + 1))


@inlined
def distinct_low(accumulator: int, value: np.uint64) -> np.uint64:
    """First word of the key of (accumulator, value) in the table of distinct values; `accumulator` is the second."""
    x = np.uint64(accumulator) * np.uint64(0x9E3779B97F4A7C15)
    return (x ^ (x >> np.uint64(32))) ^ value


@inlined
def _smoothed(t: kt.Tables, f: int, hits: int, n: int) -> float:
    """The share that `hits` of n payments are, after column f's prior. NaN for no payments without a prior."""
    weight = np.float64(n) + t.priors[f, 1]
    return (np.float64(hits) + t.priors[f, 0]) / weight if weight > 0.0 else np.nan


@inlined
def _read_numeric(t: kt.Tables, s: State, payment: int, f: int, slot: int, current: bool):  # type: ignore[no-untyped-def]
    """STD, DISTINCT, SHARE, CIRCULAR_…, FRAUD_COUNT and FRAUD_RATE."""
    read = t.reads[f]
    kind = read[kt.R_KIND]
    n = s.arena[slot + read[kt.R_ACCUMULATOR]]
    if current:
        n += 1
    if kind == kt.READ_DISTINCT or kind == kt.READ_SHARE:  # noqa: PLR1714
        accumulator = slot + read[kt.R_SECOND]
        value = np.uint64(word(payment, kt.B_KEYS + 2 * len(t.entity) + read[kt.R_THIRD]))
        if kind == kt.READ_SHARE:
            if value == 0:
                return np.nan
            same = max(np.int64(0), get(s.distincts, distinct_low(accumulator, value), np.uint64(accumulator)))
            return _smoothed(t, f, same + (1 if current else 0), n)
        total = s.arena[accumulator]
        if current and value != 0:
            total += 1 if find(s.distincts, distinct_low(accumulator, value), np.uint64(accumulator)) < 0 else 0
        return np.float64(total)
    total = s.arena[slot + read[kt.R_SECOND]]
    if kind == kt.READ_CIRCULAR_DISPERSION or kind == kt.READ_CIRCULAR_VARIANCE:  # noqa: PLR1714
        place = circle_place(word(payment, kt.B_TIME), read[kt.R_THIRD])
        cosine, sine = t.circle[place, 0], t.circle[place, 1]
        cosines, sines = total, s.arena[slot + read[kt.R_SECOND] + 1]
        if current:
            cosines, sines = cosines + cosine, sines + sine
        return circular(n, cosines, sines, cosine, sine, kind == kt.READ_CIRCULAR_DISPERSION)
    if kind == kt.READ_FRAUD_COUNT:
        return np.float64(total)
    if kind == kt.READ_FRAUD_RATE:
        return _smoothed(t, f, total, n)
    amount = word(payment, kt.B_AMOUNT)
    if current:
        total += amount
    if n == 0:
        return np.nan
    low, high = np.uint64(s.arena[slot + read[kt.R_THIRD]]), np.uint64(s.arena[slot + read[kt.R_THIRD] + 1])
    if current:
        square_high, square_low = multiply(np.uint64(amount), np.uint64(amount))
        low += square_low
        high += square_high + (np.uint64(1) if low < square_low else np.uint64(0))
    return deviation(n, total, low, high) / t.minor_units[0]


@inlined
def _read_series(c: int, t: kt.Tables, s: State, amount: int, read, slot: int, current: bool, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    """MIN, MAX and MEDIAN."""
    kind = read[kt.R_KIND]
    limit_ms = now_ms - read[kt.R_WINDOW_MS]
    accumulator = slot + read[kt.R_ACCUMULATOR]
    if kind == kt.READ_MEDIAN:
        return (
            median(c, accumulator, limit_ms, amount if current else np.int64(-1), read[kt.R_THIRD], scratch)
            / t.minor_units[0]
        )
    block = s.arena[accumulator]
    if block != 0:
        first, end = expire(s, block, limit_ms)
        if first < end:
            extreme = s.pool[block + 3 + 2 * first]
            if current:
                extreme = max(extreme, amount) if kind == kt.READ_MAX else min(extreme, amount)
            return np.float64(extreme) / t.minor_units[0]
    return np.float64(amount) / t.minor_units[0] if current else np.nan


@inlined
def _read_recent(t: kt.Tables, s: State, payment: int, read, slot: int, current: bool, now_ms: int):  # type: ignore[no-untyped-def]
    """RECENT_… and MEAN_GAP: of the latest payments in the window, of which R_THIRD count at most. The current one is
    the latest of them."""
    kind, count_max, limit_ms = read[kt.R_KIND], read[kt.R_THIRD], now_ms - read[kt.R_WINDOW_MS]
    amount, time_ms = word(payment, kt.B_AMOUNT), word(payment, kt.B_TIME)
    n = np.int64(1 if current else 0)
    total = least = most = amount if current else np.int64(0)
    first_ms = last_ms = time_ms
    high, low = multiply(np.uint64(total), np.uint64(total))
    block = s.arena[slot + read[kt.R_ACCUMULATOR]]
    if block != 0:
        first, end = bounds(s, block)
        j = end - 1
        while j >= first and n < count_max and s.pool[block + 2 + 2 * j] > limit_ms:
            time_ms, amount = s.pool[block + 2 + 2 * j], s.pool[block + 3 + 2 * j]
            total += amount
            square_high, square_low = multiply(np.uint64(amount), np.uint64(amount))
            low += square_low
            high += square_high + (np.uint64(1) if low < square_low else np.uint64(0))
            least, most = (min(least, amount), max(most, amount)) if n > 0 else (amount, amount)
            first_ms, last_ms = (min(first_ms, time_ms), max(last_ms, time_ms)) if n > 0 else (time_ms, time_ms)
            n += 1
            j -= 1
    if kind == kt.READ_MEAN_GAP:
        return np.float64(last_ms - first_ms) / np.float64(n - 1) / 1000.0 if n > 1 else np.nan
    if n == 0:
        return np.nan
    if kind == kt.READ_RECENT_STD:
        return deviation(n, total, low, high) / t.minor_units[0]
    if kind == kt.READ_RECENT_MEAN:
        return np.float64(total) / n / t.minor_units[0]
    return np.float64(least if kind == kt.READ_RECENT_MIN else most) / t.minor_units[0]


@inlined
def _read_neighbours(s: State, read, slot: int, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    """NEIGHBOUR_FRAUDS: the known frauds of the different neighbours, which the latest payments in the window made."""
    count_max, limit_ms = read[kt.R_THIRD], now_ms - read[kt.R_WINDOW_MS]
    arena = np.int64(s.arena.ctypes.data)
    block, n = s.arena[slot + read[kt.R_ACCUMULATOR]], np.int64(0)
    if block == 0:
        return 0.0
    first, end = bounds(s, block)
    j = end - 1
    while j >= max(first, end - count_max) and s.pool[block + 2 + 2 * j] > limit_ms:
        place, k = s.pool[block + 3 + 2 * j] + read[kt.R_SECOND], np.int64(0)
        while k < n and scratch[k] != place:
            k += 1
        if k == n:
            prefetch(arena + 8 * place)
            scratch[n] = place
            n += 1
        j -= 1
    total = np.int64(0)
    for k in range(n):
        total += s.arena[scratch[k]]
    return np.float64(total)


@inlined
def _read_nearest(s: State, payment: int, read, slot: int, now_ms: int):  # type: ignore[no-untyped-def]
    """NEAREST_KM: from the payment's place to the nearest of the different places of the latest payments in the window.
    Both are rounded alike, so that the same place is 0 away."""
    latitude, longitude = degrees(word(payment, kt.B_LATITUDE)), degrees(word(payment, kt.B_LONGITUDE))
    block = s.arena[slot + read[kt.R_ACCUMULATOR]]
    if block == 0 or math.isnan(latitude) or math.isnan(longitude):
        return np.nan
    limit_ms, own = now_ms - read[kt.R_WINDOW_MS], place_of(latitude, longitude)
    first, end = bounds(s, block)
    first = max(first, end - read[kt.R_THIRD])
    while first < end and s.pool[block + 2 + 2 * first] <= limit_ms:
        first += 1
    if first == end:
        return np.nan
    for j in range(end - 1, first - 1, -1):  # by far most payments are made where one was made before
        if s.pool[block + 3 + 2 * j] == own:
            return 0.0
    latitude, longitude = degrees_of(own)
    least = 2.0
    for j in range(end - 1, first - 1, -1):
        north, east = degrees_of(s.pool[block + 3 + 2 * j])
        apart = (north - latitude) / 180.0
        if apart * apart < least:  # sin²(angle / 2) >= (angle / π)², the angle being that of the latitudes at least
            least = min(least, haversine(latitude, longitude, north, east))
    return arc_km(least)


@inlined
def _read_decayed(t: kt.Tables, s: State, payment: int, read, slot: int, current: bool, now_ms: int):  # type: ignore[no-untyped-def]
    """Σ 2^-(age / half_life), or of amounts; age is stream time minus event time. Mean and deviation of amounts so
    weighted, at the time of the key's newest payment: what has happened since fades all weights alike."""
    kind, accumulator = read[kt.R_KIND], slot + read[kt.R_ACCUMULATOR]
    if kind >= kt.READ_DECAYED_MEAN:
        if s.arena[accumulator] == 0 and not current:
            return np.nan
        count, total = s.arena_f[accumulator + 1], s.arena_f[accumulator + 2]
        mean, squares, amount = 0.0, 0.0, np.float64(word(payment, kt.B_AMOUNT))
        if kind == kt.READ_DECAYED_STD:
            mean, squares = s.arena_f[slot + read[kt.R_THIRD]], s.arena_f[slot + read[kt.R_THIRD] + 1]
        if current:
            fade, weight = fading(s.arena[accumulator], word(payment, kt.B_TIME), read[kt.R_HALF_LIFE_MS])
            total = total * fade + amount * weight
            count, mean, squares = weighed(count, mean, squares, fade, weight, amount)
        return (total / count if kind == kt.READ_DECAYED_MEAN else math.sqrt(squares / count)) / t.minor_units[0]
    second = 1 if kind == kt.READ_DECAYED_COUNT else 2
    half_life = np.float64(read[kt.R_HALF_LIFE_MS])
    total = 0.0
    if s.arena[accumulator] != 0:
        total = s.arena_f[accumulator + second] * halved((now_ms - s.arena[accumulator]) / half_life)
    if current:
        own = halved((now_ms - word(payment, kt.B_TIME)) / half_life)
        total += own if second == 1 else own * np.float64(word(payment, kt.B_AMOUNT))
    return total if second == 1 else total / t.minor_units[0]


@inlined
def _read_latest(t: kt.Tables, s: State, payment: int, read, slot: int, now_ms: int):  # type: ignore[no-untyped-def]
    """What is known of the key's latest (or first) payments. NaN when there is none, or none inside the window."""
    kind = read[kt.R_KIND]
    accumulator = slot + read[kt.R_ACCUMULATOR]
    limit_ms = now_ms - read[kt.R_WINDOW_MS] if read[kt.R_WINDOW_MS] >= 0 else np.int64(0)
    if kind == kt.READ_SINCE_FRAUD or kind == kt.READ_SINCE_FIRST_FRAUD:  # noqa: PLR1714
        block = s.arena[accumulator]
        if block == 0:
            return np.nan
        first, end = bounds(s, block)
        if first == end:
            return np.nan
        fraud_ms = s.pool[block + 2 * (end if kind == kt.READ_SINCE_FRAUD else first + 1)]
        return np.float64(now_ms - fraud_ms) / 1000.0 if fraud_ms > limit_ms else np.nan
    time_ms = s.arena[accumulator]
    if time_ms == 0 or time_ms <= limit_ms:
        return np.nan
    if kind == kt.READ_SINCE_LAST or kind == kt.READ_SINCE_FIRST:  # noqa: PLR1714
        return np.float64(now_ms - time_ms) / 1000.0
    if kind == kt.READ_LAST:
        return np.float64(s.arena[accumulator + 1]) / t.minor_units[0]
    if kind == kt.READ_LAST_LABEL:
        return 1.0 if s.arena[accumulator + 2] == 1 else 0.0
    # SPEED_KMH
    latitude, longitude = degrees(word(payment, kt.B_LATITUDE)), degrees(word(payment, kt.B_LONGITUDE))
    apart_ms = abs(word(payment, kt.B_TIME) - time_ms)
    if apart_ms == 0 or math.isnan(latitude) or math.isnan(longitude):
        return np.nan
    return (
        distance_km(s.arena_f[accumulator + 1], s.arena_f[accumulator + 2], latitude, longitude)
        * 3_600_000.0
        / apart_ms
    )


@inlined
def degrees(bits: np.uint64) -> float:
    return np.uint64(bits).view(np.float64)


@inlined
def _derive(read, out):  # type: ignore[no-untyped-def]
    """A column made of earlier columns of the same payment. A zero divisor gives NaN; so will a
    result beyond float32."""
    kind = read[kt.R_KIND]
    x, y = np.float64(out[read[kt.R_OPERANDS]]), np.float64(out[read[kt.R_OPERANDS + 1]])
    if kind == kt.READ_DIFFERENCE:
        return x - y
    if kind == kt.READ_RATIO:
        return x / y if y != 0.0 else np.nan
    z = np.float64(out[read[kt.R_OPERANDS + 2]])
    return (x - y) / z if z != 0.0 else np.nan


@kernel
def _read_more(c: int, payment: int, f: int, slot: int, current: bool, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    t, s = view_tables(c), view_state(c)
    read = t.reads[f]
    kind = read[kt.R_KIND]
    if kind == kt.READ_STD or (kind >= kt.READ_DISTINCT and kind <= kt.READ_FRAUD_RATE):
        return _read_numeric(t, s, payment, f, slot, current)
    if kind <= kt.READ_MEDIAN:
        return _read_series(c, t, s, word(payment, kt.B_AMOUNT), read, slot, current, now_ms, scratch)
    if kind <= kt.READ_MEAN_GAP:
        return _read_recent(t, s, payment, read, slot, current, now_ms)
    if kind == kt.READ_NEIGHBOUR_FRAUDS:
        return _read_neighbours(s, read, slot, now_ms, scratch)
    if kind == kt.READ_NEAREST_KM:
        return _read_nearest(s, payment, read, slot, now_ms)
    if kind <= kt.READ_DECAYED_STD:
        return _read_decayed(t, s, payment, read, slot, current, now_ms)
    return _read_latest(t, s, payment, read, slot, now_ms)


@inlined
def _plain(place: int, kind: int, slot: int, current: int, amount: int, minor_units: float) -> np.float32:
    """COUNT, SUM and MEAN of the slot at an address; `place` is the address of the column's read."""
    n = peek64(slot + 8 * peek64(place + 8 * kt.R_ACCUMULATOR)) + current
    if kind == kt.READ_COUNT:
        return np.float32(n)
    total = np.float64(peek64(slot + 8 * peek64(place + 8 * kt.R_SECOND)) + current * amount)
    if kind == kt.READ_SUM:
        return np.float32(total / minor_units)
    return np.float32(total / n / minor_units) if n > 0 else NAN


@inlined
def read_all(c: int, t: kt.Tables, s: State, payment: int, slots, now_ms: int, out, scratch) -> np.uint64:  # type: ignore[no-untyped-def]
    """Fill the payment's row of `out` in column order; its filter bits, after the filters on features."""
    bits = np.uint64(word(payment, kt.B_WHERE))
    time_ms, amount = word(payment, kt.B_TIME), word(payment, kt.B_AMOUNT)
    arena, minor_units = np.int64(s.arena.ctypes.data), t.minor_units[0]
    place = np.int64(t.reads.ctypes.data) - 8 * kt.READ_WORDS
    target = np.int64(out.ctypes.data) - 4
    for f in range(len(t.reads)):
        place += 8 * kt.READ_WORDS
        target += 4
        kind = peek64(place)
        if peek64(place + 8 * kt.R_PLAIN) != 0:  # by far the most common columns
            slot = peek64(slots + 8 * peek64(place + 8 * kt.R_ENTITY))
            if slot == NO_KEY:
                poke_float(target, NAN)
            else:
                current = peek64(place + 8 * kt.R_CURRENT)
                poke_float(target, _plain(place, kind, arena + 8 * slot, current, amount, minor_units))
            continue
        if kind >= kt.READ_RATIO:
            derived = np.float32(_derive(t.reads[f], out))
            out[f] = NAN if math.isinf(derived) else derived
        elif kind >= kt.READ_COUNT:
            slot = peek64(slots + 8 * peek64(place + 8 * kt.R_ENTITY))
            bit = peek64(place + 8 * kt.R_WHERE)
            current = peek64(place + 8 * kt.R_CURRENT)
            if bit >= 0 and not (bits >> np.uint64(bit)) & np.uint64(1):
                current = 0
            if slot == NO_KEY:
                out[f] = NAN
            elif kind <= kt.READ_MEAN:
                out[f] = _plain(place, kind, arena + 8 * slot, current, amount, minor_units)
            else:
                out[f] = _read_more(c, payment, f, slot, current == 1, now_ms, scratch)
        elif kind == kt.READ_AMOUNT:
            out[f] = amount / minor_units
        elif kind == kt.READ_HOUR_OF_DAY:
            out[f] = circle_place(time_ms, 0)
        elif kind == kt.READ_DAY_OF_WEEK:  # Monday is 0
            out[f] = circle_place(time_ms, 1) - kt.HOURS
        for k in range(t.test_start[f], t.test_start[f + 1]):
            value = np.float64(out[f])
            holds = False
            for j in range(t.tests[k, 1], t.tests[k, 2]):
                if t.intervals[j, 0] <= value <= t.intervals[j, 1]:
                    holds = True
            if not holds:
                bits &= ~(np.uint64(1) << np.uint64(t.tests[k, 0]))
    return bits
