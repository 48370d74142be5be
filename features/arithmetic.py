"""Arithmetic of the kernel: 128-bit integers, the standard deviation, distances, and a power of two that is the same
everywhere."""

from __future__ import annotations

import math

import numpy as np

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


@kernel
def distance_km(lat1, lon1, lat2, lon2):  # type: ignore[no-untyped-def]
    """Great-circle distance by the haversine formula, degrees in, km out."""
    f1, f2 = math.radians(lat1), math.radians(lat2)
    a = math.sin((f2 - f1) / 2.0) ** 2 + math.cos(f1) * math.cos(f2) * math.sin(math.radians(lon2 - lon1) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, a)))


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
