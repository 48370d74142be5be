"""An open-addressing hash table from 128-bit keys to 63-bit numbers, as one flat array that kernels and snapshots
share.

Layout: uint64 [capacity, 3] of (key low, key high, value + 1); a third word of 0 is an empty place. Capacity is a power
of two, linear probing, deletion by shifting back (Knuth, TAOCP 6.4, algorithm R), so that no tombstones pile up as keys
come and go. The first word of a key decides its place, so keys are hashes under a secret key (features/hashing.py).
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.raw_memory import entry, inlined, kernel

Table = npt.NDArray[np.uint64]

# At 5/8 full a probe looks at 1.8 places on a hit and 4 on a miss (Knuth's estimates for linear probing).
_LOAD_NUMERATOR, _LOAD_DENOMINATOR = 5, 8
# A run of random keys at that load: longer with a probability below 10^-50.
PROBES_MAX = 4_096


def new_table(capacity: int = 1024) -> Table:
    """An empty table; `capacity` must be a power of two."""
    return np.zeros((capacity, 3), dtype=np.uint64)


def grown(table: Table, count: int, room: int) -> Table:
    """`table`, or a larger copy, in which `room` more keys fit beside the `count` there are."""
    capacity = len(table)
    while (count + room) * _LOAD_DENOMINATOR > capacity * _LOAD_NUMERATOR:
        capacity *= 2
    if capacity == len(table):
        return table
    larger = new_table(capacity)
    _rehash(table, larger)
    return larger


@entry
def _rehash(source: Table, target: Table) -> None:
    for i in range(len(source)):
        if source[i, 2] != 0:
            put(target, source[i, 0], source[i, 1], np.int64(source[i, 2]) - 1)


@inlined
def find(table: Table, low: np.uint64, high: np.uint64) -> int:
    """The place of a key, or -1."""
    mask = np.uint64(len(table) - 1)
    i = low & mask
    while table[i, 2] != 0:
        if table[i, 0] == low and table[i, 1] == high:
            return np.int64(i)
        i = (i + np.uint64(1)) & mask
    return -1


@inlined
def get(table: Table, low: np.uint64, high: np.uint64) -> int:
    """The value of a key, or -1."""
    i = find(table, low, high)
    return np.int64(table[i, 2]) - 1 if i >= 0 else -1


@kernel
def put(table: Table, low: np.uint64, high: np.uint64, value: int) -> int:
    """Set a key that is not in the table (the caller has looked, and has made room); its place."""
    mask = np.uint64(len(table) - 1)
    i = low & mask
    while table[i, 2] != 0:
        i = (i + np.uint64(1)) & mask
    table[i, 0] = low
    table[i, 1] = high
    table[i, 2] = np.uint64(value + 1)
    return np.int64(i)


@kernel
def put_new(table: Table, low: np.uint64, high: np.uint64, value: int) -> int:
    """As `put`, for keys of unknown origin: -1 when the key is there already, or when its run is longer than any that
    random keys make."""
    mask = np.uint64(len(table) - 1)
    i = low & mask
    for _ in range(PROBES_MAX):
        if table[i, 2] == 0:
            return put(table, low, high, value)
        if table[i, 0] == low and table[i, 1] == high:
            return -1
        i = (i + np.uint64(1)) & mask
    return -1


@kernel
def remove_at(table: Table, place: int) -> int:
    """Empty the place `place`, moving later keys of its run back so that none is cut off; the last place that
    changed."""
    if place < 0:  # `find` has not found the key: there is nothing to empty
        return place
    mask = np.uint64(len(table) - 1)
    hole = np.uint64(place)
    i = hole
    while True:
        i = (i + np.uint64(1)) & mask
        if table[i, 2] == 0:
            break
        home = table[i, 0] & mask
        # The key at i may move into the hole unless its home lies cyclically inside (hole, i].
        if ((i - home) & mask) >= ((i - hole) & mask):
            table[hole, 0] = table[i, 0]
            table[hole, 1] = table[i, 1]
            table[hole, 2] = table[i, 2]
            hole = i
    table[hole, 2] = np.uint64(0)
    return np.int64(hole)
