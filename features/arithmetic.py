"""Arithmetic of the kernel: 128-bit integers, the standard deviation, distances, and a power of two that is the same
everywhere."""

from __future__ import annotations

import math

import numpy as np

from features import kernel_tables as kt
from features.raw_memory import inlined, kernel

EARTH_RADIUS_KM = 6371.0088
# Below 2^-1074 a double is zero.
_HALVINGS_MAX = 1074.0


@inlined
def multiply(a: np.uint64, b: np.uint64):  # type: ignore[no-untyped-def]
    """The 128-bit product of two 64-bit numbers, as (high, low)."""
    m = np.uint64(0xFFFFFFFF)
    w = np.uint64(32)
    ll = (a & m) * (b & m)
    lh = (a & m) * (b >> w)
    hl = (a >> w) * (b & m)
    mid = (ll >> w) + (lh & m) + (hl & m)
    return (a >> w) * (b >> w) + (lh >> w) + (hl >> w) + (mid >> w), (mid << w) | (ll & m)


@inlined
def circle_place(time_ms: int, by_day: int) -> int:
    """Row of Tables.circle: of the hour of the day or, with `by_day` 1, of the day of the week. Of 1970-01-01, a
    Thursday, that is HOURS + 3."""
    if by_day:
        return kt.HOURS + (time_ms // kt.DAY_MS + 3) % kt.DAYS
    return time_ms // kt.HOUR_MS % kt.HOURS


@inlined
def circular(n: int, cosines: int, sines: int, cosine: int, sine: int, dispersion: bool) -> float:
    """Of n directions with these sums, in units of 1 / CIRCLE_UNIT: their dispersion about (cosine, sine), the mean of
    1 - cos(angle between), from 0 to 2; or their variance 1 - R, R the length of their mean, from 0 to 1. NaN for none.

    Mardia and Jupp, "Directional Statistics", 2000, sections 2.3.1 and 2.3.2.
    """
    if n == 0:
        return np.nan
    unit, steps = np.float64(kt.CIRCLE_UNIT), np.float64(kt.CIRCLE_STEPS)
    x, y = np.float64(cosines) / unit, np.float64(sines) / unit
    along = (x * np.float64(cosine) + y * np.float64(sine)) / unit if dispersion else math.sqrt(x * x + y * y)
    value = math.floor((1.0 - along / np.float64(n)) * steps + 0.5) / steps
    return max(0.0, value)


@inlined
def add_square(arena, at, amount, sign):  # type: ignore[no-untyped-def]
    """Add (sign 1) or subtract (-1) amount² in the 128-bit number at (at = low, at + 1 = high)."""
    high, low = multiply(np.uint64(amount), np.uint64(amount))
    old = np.uint64(arena[at])
    if sign > 0:
        new = old + low
        carry = np.uint64(1) if new < old else np.uint64(0)
        arena[at + 1] = np.int64(np.uint64(arena[at + 1]) + high + carry)
    else:
        new = old - low
        carry = np.uint64(1) if old < low else np.uint64(0)
        arena[at + 1] = np.int64(np.uint64(arena[at + 1]) - high - carry)
    arena[at] = np.int64(new)


@kernel
def deviation(n, total, low, high):  # type: ignore[no-untyped-def]
    """Population standard deviation from exact sums: sqrt(n·Σx² - (Σx)²) / n, the difference taken in 128-bit
    integers."""
    # n·Σx² modulo 2^128: the wrapped difference is the true one as long as that is below 2^128, which n² · range² / 4
    # is.
    h1, l1 = multiply(np.uint64(n), low)
    h1 += np.uint64(n) * high
    h2, l2 = multiply(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if l1 < l2 else np.uint64(0)
    return math.sqrt(np.float64(h1 - h2 - borrow) * 18446744073709551616.0 + np.float64(l1 - l2)) / n


@inlined
def fading(before_ms: int, time_ms: int, half_life_ms: int):  # type: ignore[no-untyped-def]
    """Factors of what an accumulator holds at `before_ms` (0: nothing) and of a payment, at the later of both times:
    one of them is 1. A late payment has faded already."""
    half_life = np.float64(half_life_ms)
    if before_ms == 0:
        return 0.0, 1.0
    if time_ms >= before_ms:
        return halved((time_ms - before_ms) / half_life), 1.0
    return 1.0, halved((before_ms - time_ms) / half_life)


@inlined
def weighed(count: float, mean: float, squares: float, fade: float, weight: float, amount: float):  # type: ignore[no-untyped-def]
    """Sum of weights, weighted mean, and weighted sum of squared distances from it, after `fade` of those before and
    one amount of `weight`.

    West, "Updating Mean and Variance Estimates", 1979, with the smaller step to the new mean, so that it lies between
    the two to the last place, and amounts that are all equal give exactly 0. Nothing is ever subtracted from a sum.
    """
    before = count * fade
    after = before + weight
    apart = amount - mean
    middle = mean + apart * (weight / after) if before >= weight else amount - apart * (before / after)
    return after, middle, squares * fade + apart * apart * (before * (weight / after))


@inlined
def haversine(lat1, lon1, lat2, lon2):  # type: ignore[no-untyped-def]
    """sin²(angle / 2) of the angle between two places in degrees, seen from the middle of the earth."""
    f1, f2 = math.radians(lat1), math.radians(lat2)
    return math.sin((f2 - f1) / 2.0) ** 2 + math.cos(f1) * math.cos(f2) * math.sin(math.radians(lon2 - lon1) / 2.0) ** 2


@kernel
def distance_km(lat1, lon1, lat2, lon2):  # type: ignore[no-untyped-def]
    """Great-circle distance by the haversine formula, degrees in, km out."""
    return arc_km(haversine(lat1, lon1, lat2, lon2))


@inlined
def arc_km(a: float) -> float:
    """Length of an arc on the earth whose `haversine` is a."""
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, a)))


@inlined
def place_of(latitude: float, longitude: float) -> np.int64:
    """A place as one number: latitude and longitude in units of 1 / PLACE_UNIT degree, 1.1 cm at most, 32 bits each."""
    unit = np.float64(kt.PLACE_UNIT)
    north, east = np.int64(math.floor(latitude * unit + 0.5)), np.int64(math.floor(longitude * unit + 0.5))
    return (north << np.int64(32)) | (east & np.int64(0xFFFFFFFF))


@inlined
def degrees_of(place: int):  # type: ignore[no-untyped-def]
    """Latitude and longitude of a `place_of`."""
    unit = np.float64(kt.PLACE_UNIT)
    return np.float64(place >> np.int64(32)) / unit, np.float64((place << np.int64(32)) >> np.int64(32)) / unit


@kernel
def halved(times):  # type: ignore[no-untyped-def]
    """2^-times for times >= 0, to 3 units in the last place.

    Additions and multiplications only, in a fixed order, and no call of the C library: the same bits on every machine,
    so that a decayed sum replays to the digit.
    """
    if times >= _HALVINGS_MAX:
        return 0.0
    whole = math.floor(times)
    # Taylor's series of e^y, y = -fraction · ln 2 in (-0.6932, 0]: 0.6932^18 / 18! < 2^-62.
    y = -(times - whole) * 0.6931471805599453
    value = 1.0
    for k in range(17, 0, -1):
        value = 1.0 + value * y / k
    power = np.float64(1.0)
    half = np.float64(0.5)
    exponent = np.int64(whole)
    while exponent > 0:  # powers of two are exact
        if exponent & 1:
            power *= half
        half *= half
        exponent >>= 1
    return value * power
