"""Short sorted lists that belong to a key: what min, max, median and known frauds need beyond a running number.

A series is a block of the pool, an int64 array shared by all keys. Its accumulator in the entity slot holds the place
of the block (0: no block yet).

    block of class c, 8 << c words:  word 0  count | first << 32      word 1  c      then (time, value) pairs, sorted by
    time

Blocks double when they fill; when their key is freed they go to a list of free blocks of their class. A minimum keeps
only payments that no later one undercuts (and a maximum likewise), so every payment is written once and dropped once
however long the window is: a hot key costs the same as any other (the monotonic queue; Tangwongsan et al., "In-Order
Sliding-Window Aggregation", 2017, section 1).
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.engine_state import DIRTY_PAGE_SHIFT, POOL_CLASS_MAX, POOL_NEXT, State, view_state
from features.raw_memory import inlined, kernel
from schemas.byte_copy import move

BLOCK_WORDS = 8
_LOW = (1 << 32) - 1


@inlined
def _mark(s: State, first: int, end: int) -> None:
    for g in range(first >> DIRTY_PAGE_SHIFT, ((end - 1) >> DIRTY_PAGE_SHIFT) + 1):
        s.pool_dirty[g] = 1


@inlined
def holds_series(kind: int) -> bool:
    """Whether the accumulator of an op of this kind holds the place of a block."""
    of_amounts = kind == kt.OP_EXTREME or kind == kt.OP_RECENT  # noqa: PLR1714
    return of_amounts or kind == kt.OP_KNOWN_FRAUDS or kind == kt.OP_NEIGHBOURS or kind == kt.OP_PLACES  # noqa: PLR1714


@kernel
def _take_block(c: int, size_class: int) -> int:
    s = view_state(c)
    block = s.pool_free[size_class]
    if block != 0:
        s.pool_free[size_class] = s.pool[block]
    else:  # the engine has made room
        block = s.scalars[POOL_NEXT]
        s.scalars[POOL_NEXT] += BLOCK_WORDS << size_class
        s.scalars[POOL_CLASS_MAX] = max(s.scalars[POOL_CLASS_MAX], size_class)
    s.pool[block] = 0
    s.pool[block + 1] = size_class
    return block


@kernel
def free_block(c: int, block: int) -> None:
    """Free a block; its series is lost."""
    s = view_state(c)
    size_class = s.pool[block + 1]
    s.pool[block] = s.pool_free[size_class]
    s.pool_free[size_class] = block
    _mark(s, block, block + 2)


@inlined
def bounds(s: State, block: int):  # type: ignore[no-untyped-def]
    """(first, end) of the pairs of a block; pair k is at block + 2 + 2·k."""
    word = s.pool[block]
    first = word >> 32
    return first, first + (word & _LOW)


@inlined
def _set(s: State, block: int, first: int, end: int) -> None:
    s.pool[block] = (first << 32) | (end - first)


@inlined
def expire(s: State, block: int, limit_ms: int):  # type: ignore[no-untyped-def]
    """Drop pairs with time <= limit from the front; (first, end) of what is left."""
    first, end = bounds(s, block)
    before = first
    while first < end and s.pool[block + 2 + 2 * first] <= limit_ms:
        first += 1
    if first != before:
        _set(s, block, first, end)
        _mark(s, block, block + 1)
    return first, end


@kernel
def _spacious(c: int, accumulator: int) -> int:
    """The accumulator's block with room for one more pair behind the last: pairs are moved to its front, or to a block
    of another size."""
    s = view_state(c)
    block = s.arena[accumulator]
    if block == 0:
        block = _take_block(c, 0)
        s.arena[accumulator] = block
        return block
    first, end = bounds(s, block)
    size_class = s.pool[block + 1]
    capacity = ((BLOCK_WORDS << size_class) - 2) // 2
    if end < capacity:
        return block
    count = end - first
    target = block
    if count * 2 > capacity:
        target = _take_block(c, size_class + 1)
    for k in range(2 * count):
        s.pool[target + 2 + k] = s.pool[block + 2 + 2 * first + k]
    _set(s, target, 0, count)
    if target != block:
        free_block(c, block)
        s.arena[accumulator] = target
    _mark(s, target, target + 2 + 2 * count)
    return target


@kernel
def push_extreme(c: int, accumulator: int, time_ms: int, amount: int, largest: int, limit_ms: int) -> None:
    """Add a payment to a minimum (or, with `largest`, a maximum) over payments later than `limit_ms`."""
    s = view_state(c)
    if s.arena[accumulator] != 0:
        expire(s, s.arena[accumulator], limit_ms)
    block = _spacious(c, accumulator)
    first, end = bounds(s, block)
    base = block + 2
    j = end
    while j > first and s.pool[base + 2 * (j - 1)] > time_ms:
        j -= 1
    if j < end:  # a late payment: a younger one that is as extreme outlives it
        younger = s.pool[base + 2 * j + 1]
        if younger >= amount if largest else younger <= amount:
            return
    k = j
    while k > first and (s.pool[base + 2 * k - 1] <= amount if largest else s.pool[base + 2 * k - 1] >= amount):
        k -= 1
    shift = k + 1 - j
    if shift > 0:
        for m in range(2 * end - 1, 2 * j - 1, -1):
            s.pool[base + m + 2] = s.pool[base + m]
    elif shift < 0:
        for m in range(2 * j, 2 * end):
            s.pool[base + m + 2 * shift] = s.pool[base + m]
    s.pool[base + 2 * k] = time_ms
    s.pool[base + 2 * k + 1] = amount
    _set(s, block, first, end + shift)
    _mark(s, block, block + 1)
    _mark(s, base + 2 * k, base + 2 * (end + shift))


@inlined
def _after(s: State, base: int, first: int, end: int, time_ms: int) -> int:
    """The first pair later than `time_ms`, or `end`. Most often that is the end, hence by doubling steps from there."""
    step = np.int64(1)
    high = end
    low = end - 1
    while low >= first and s.pool[base + 2 * low] > time_ms:
        high = low
        low -= step
        step *= 2
    low = max(low + 1, first)
    while low < high:
        middle = (low + high) >> 1
        if s.pool[base + 2 * middle] > time_ms:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def push_sorted(c: int, accumulator: int, time_ms: int, value: int, count_max: int, limit_ms: int) -> None:
    """Insert a pair by time, after those of equal time; expired pairs go, and beyond `count_max` the oldest one
    does."""
    s = view_state(c)
    if s.arena[accumulator] != 0:
        first, end = expire(s, s.arena[accumulator], limit_ms)
        if end - first >= count_max:
            if s.pool[s.arena[accumulator] + 2 + 2 * first] > time_ms:
                return
            _set(s, s.arena[accumulator], first + 1, end)
    block = _spacious(c, accumulator)
    first, end = bounds(s, block)
    base = block + 2
    j = _after(s, base, first, end, time_ms)
    at = np.int64(s.pool.ctypes.data) + 8 * (base + 2 * j)
    move(at + 16, at, 16 * (end - j))
    s.pool[base + 2 * j] = time_ms
    s.pool[base + 2 * j + 1] = value
    _set(s, block, first, end + 1)
    _mark(s, block, block + 1)
    _mark(s, base + 2 * j, base + 2 * (end + 1))


@kernel
def push_fraud(c: int, accumulator: int, time_ms: int, seq: int, settled_ms: int) -> None:
    """Insert a known fraud. Of those at or before `settled_ms`, which no label can change any more, the first and the
    last are kept."""
    s = view_state(c)
    block = s.arena[accumulator]
    if block != 0:
        base = block + 2
        first, end = bounds(s, block)
        while end - first >= 3 and s.pool[base + 2 * (first + 2)] <= settled_ms:
            s.pool[base + 2 * (first + 1)] = s.pool[base + 2 * first]
            s.pool[base + 2 * (first + 1) + 1] = s.pool[base + 2 * first + 1]
            first += 1
            _set(s, block, first, end)
            _mark(s, block, block + 1)
            _mark(s, base + 2 * first, base + 2 * first + 2)
    push_sorted(c, accumulator, time_ms, seq, 1 << 30, -1)


@kernel
def remove_pair(c: int, accumulator: int, time_ms: int, value: int) -> None:
    """Remove one pair, if it is there."""
    s = view_state(c)
    block = s.arena[accumulator]
    if block == 0:
        return
    base = block + 2
    first, end = bounds(s, block)
    for j in range(_after(s, base, first, end, time_ms) - 1, first - 1, -1):
        if s.pool[base + 2 * j] < time_ms:
            return
        if s.pool[base + 2 * j + 1] == value:
            at = np.int64(s.pool.ctypes.data) + 8 * (base + 2 * j)
            move(at, at + 16, 16 * (end - 1 - j))
            _set(s, block, first, end - 1)
            _mark(s, block, block + 1)
            _mark(s, base + 2 * j, base + 2 * end)
            return


@inlined
def push_different(c: int, s: State, accumulator: int, time_ms: int, value: int, count_max: int, limit_ms: int) -> None:
    """As `push_sorted`, for values of which each stands once, at its latest time. One that went beyond `count_max` was
    older than `count_max` others, whose times only grow until they expire after it: it is never missed."""
    block = s.arena[accumulator]
    if block != 0:
        first, end = bounds(s, block)
        for j in range(end - 1, first - 1, -1):
            if s.pool[block + 3 + 2 * j] == value:
                before_ms = s.pool[block + 2 + 2 * j]
                if before_ms > time_ms:
                    return
                remove_pair(c, accumulator, before_ms, value)
                break
    push_sorted(c, accumulator, time_ms, value, count_max, limit_ms)


@kernel
def median(c: int, accumulator: int, limit_ms: int, current: int, count_max: int, scratch):  # type: ignore[no-untyped-def]
    """Median of the amounts later than `limit_ms` among the last `count_max`; `current` >= 0 is the last of them. NaN
    for none."""
    s = view_state(c)
    n = 0
    if current >= 0:
        scratch[0] = current
        n = 1
    block = s.arena[accumulator] if accumulator >= 0 else np.int64(0)
    if block != 0:
        first, end = bounds(s, block)
        j = end - 1
        while j >= first and n < count_max and s.pool[block + 2 + 2 * j] > limit_ms:
            scratch[n] = s.pool[block + 3 + 2 * j]
            n += 1
            j -= 1
    if n == 0:
        return np.nan
    upper = _select(scratch, n, n // 2)
    if n % 2:
        return np.float64(upper)
    lower = scratch[0]  # what is left of the place n / 2 is not larger: its largest
    for k in range(1, n // 2):
        lower = max(lower, scratch[k])
    return (np.float64(lower) + np.float64(upper)) / 2.0


@inlined
def _select(values, n: int, place: int):  # type: ignore[no-untyped-def]
    """The value at `place` were the first n sorted; smaller ones end up left of it (Hoare, "Algorithm 65: FIND")."""
    left, right = np.int64(0), np.int64(n - 1)
    while left < right:
        pivot = values[place]
        i, j = left, right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if j < place:
            left = i
        if place < i:
            right = j
    return values[place]
