"""What one row does to one group: its accumulators changed, series entered, entity slots taken and freed."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import math

import numpy as np

from features import kernel_tables as kt
from features.arithmetic import add_square, circle_place, fading, place_of, weighed
from features.engine_state import (
    CHUNK_WORDS,
    CHUNKS,
    DIRTY_PAGE_SHIFT,
    DISTINCTS,
    KEYS,
    KEYS_REFUSED,
    MARKING,
    POOL_CLASS_MAX,
    POOL_NEXT,
    State,
    view_state,
    view_tables,
)
from features.event_log import NO_SLOT_NUMBER, TIME_SHIFT
from features.feature_values import NO_SLOT, degrees, distinct_low, word
from features.hash_table import find, put, remove_at
from features.raw_memory import inlined, kernel, peek32, peek64, poke8, poke64
from features.series import BLOCK_WORDS, free_block, holds_series, push_different, push_extreme, push_sorted


@inlined
def lacks_room(t: kt.Tables, s: State) -> bool:
    """Whether one more row might need more memory than there is; the engine makes room and calls again."""
    series = t.limits[kt.SERIES_OPS]
    if series > 0 and s.scalars[POOL_NEXT] + series * ((2 * BLOCK_WORDS) << s.scalars[POOL_CLASS_MAX]) > len(s.pool):
        return True
    distincts = t.limits[kt.DISTINCT_OPS]
    return distincts > 0 and (s.scalars[DISTINCTS] + distincts) * 8 > len(s.distincts) * 5


@inlined
def _mark_place(s: State, place: int) -> None:
    s.distincts_dirty[(3 * place) >> DIRTY_PAGE_SHIFT] = 1
    s.distincts_dirty[(3 * place + 2) >> DIRTY_PAGE_SHIFT] = 1


@kernel
def _count_value(c: int, accumulator: int, value: np.uint64, sign: int) -> None:
    """One more (or less) payment with `value` in the window that counts its different values in `accumulator`."""
    s = view_state(c)
    low = distinct_low(accumulator, value)
    place = find(s.distincts, low, np.uint64(accumulator))
    if sign > 0:
        if place >= 0:
            s.distincts[place, 2] += np.uint64(1)
        else:
            place = put(s.distincts, low, np.uint64(accumulator), 1)
            s.scalars[DISTINCTS] += 1
            s.arena[accumulator] += 1
        _mark_place(s, place)
    elif place < 0:
        return
    elif s.distincts[place, 2] == np.uint64(2):  # stored as count + 1: this was the last one
        last = remove_at(s.distincts, place)
        while place != last:  # later keys of the run may have moved back
            _mark_place(s, place)
            place = (place + 1) & (len(s.distincts) - 1)
        _mark_place(s, last)
        s.scalars[DISTINCTS] -= 1
        s.arena[accumulator] -= 1
    else:
        s.distincts[place, 2] -= np.uint64(1)
        _mark_place(s, place)


@inlined
def change_numeric(
    c: int, t: kt.Tables, s: State, o: int, slot: int, sign: int, row: int, amount: int, fraud: int
) -> None:
    """Add (sign 1) or subtract (-1) a row's share of a NUMERIC group."""
    accumulator = slot + t.ops[o, kt.O_ACCUMULATOR]
    s.arena[accumulator] += sign
    if t.ops[o, kt.O_SUM]:
        s.arena[slot + t.ops[o, kt.O_SUM]] += sign * amount
    if t.ops[o, kt.O_SQUARES]:
        add_square(s.arena, slot + t.ops[o, kt.O_SQUARES], amount, sign)
    if t.ops[o, kt.O_FRAUD]:
        s.arena[slot + t.ops[o, kt.O_FRAUD]] += sign * fraud
    time_ms = peek64(row) >> TIME_SHIFT
    for by_day in range(2):  # O_DAYS follows O_HOURS
        directions = t.ops[o, kt.O_HOURS + by_day]
        if directions:
            place = circle_place(time_ms, by_day)
            s.arena[slot + directions] += sign * t.circle[place, 0]
            s.arena[slot + directions + 1] += sign * t.circle[place, 1]
    for d in range(t.ops[o, kt.O_DISTINCT], t.ops[o, kt.O_DISTINCT_END]):
        value = np.uint64(peek64(row + t.limits[kt.ROW_DISTINCT] + 8 * t.distincts[d, 0]))
        if value != 0:
            _count_value(c, slot + t.distincts[d, 1], value, sign)
    s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
    s.arena_dirty[(accumulator + t.ops[o, kt.O_WIDTH] - 1) >> DIRTY_PAGE_SHIFT] = 1


@inlined
def arena_marks(s: State) -> int:
    """Address of the arena's dirty map, or 0 while no snapshot is taken."""
    return np.int64(s.arena_dirty.ctypes.data) if s.scalars[MARKING] != 0 else np.int64(0)


@inlined
def add(arena: int, dirty: int, slot: int, change: int, sign: int, amount: int) -> None:
    """Count, and sum where there is one, of a group whose slot lies at the address `slot`."""
    at = slot + peek64(change + 8 * kt.C_ACCUMULATOR)
    poke64(at, peek64(at) + sign)
    total = peek64(change + 8 * kt.C_SUM)
    if total != 0:
        poke64(slot + total, peek64(slot + total) + sign * amount)
    if dirty != 0:
        poke8(dirty + ((at - arena) >> (DIRTY_PAGE_SHIFT + 3)), np.uint8(1))


@inlined
def enter_series(c: int, t: kt.Tables, s: State, o: int, slot: int, time_ms: int, amount: int, now_ms: int) -> None:
    accumulator = slot + t.ops[o, kt.O_ACCUMULATOR]
    limit_ms = now_ms - t.ops[o, kt.O_EXPIRES_MS]
    if t.ops[o, kt.O_KIND] == kt.OP_EXTREME:
        push_extreme(c, accumulator, time_ms, amount, t.ops[o, kt.O_PARAMETER], limit_ms)
    else:
        push_sorted(c, accumulator, time_ms, amount, t.ops[o, kt.O_PARAMETER], limit_ms)
    s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1


@kernel
def enter(c: int, payment: int, o: int, slot: int, row: int, now_ms: int) -> None:  # type: ignore[no-untyped-def]
    """What a payment does to a group that it belongs to from now on."""
    t, s = view_tables(c), view_state(c)
    kind = t.ops[o, kt.O_KIND]
    time_ms, amount = word(payment, kt.B_TIME), word(payment, kt.B_AMOUNT)
    if kind == kt.OP_NUMERIC:
        change_numeric(c, t, s, o, slot, 1, row, amount, 0)
        return
    if kind == kt.OP_EXTREME or kind == kt.OP_RECENT:  # noqa: PLR1714
        enter_series(c, t, s, o, slot, time_ms, amount, now_ms)
        return
    accumulator = slot + t.ops[o, kt.O_ACCUMULATOR]
    if kind == kt.OP_NEIGHBOURS:
        number = np.int64(peek32(row + t.limits[kt.ROW_SLOTS] + 4 * t.ops[o, kt.O_NEIGHBOUR]))
        if number != NO_SLOT_NUMBER:
            limit_ms = now_ms - t.ops[o, kt.O_EXPIRES_MS]
            push_sorted(c, accumulator, time_ms, number << kt.SLOT_SHIFT, t.ops[o, kt.O_PARAMETER], limit_ms)
            s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
        return
    latitude, longitude = degrees(word(payment, kt.B_LATITUDE)), degrees(word(payment, kt.B_LONGITUDE))
    placed = not (math.isnan(latitude) or math.isnan(longitude))
    if kind == kt.OP_PLACES:
        if placed:
            limit_ms = now_ms - t.ops[o, kt.O_EXPIRES_MS]
            place = place_of(latitude, longitude)
            push_different(c, s, accumulator, time_ms, place, t.ops[o, kt.O_PARAMETER], limit_ms)
            s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
        return
    before_ms = s.arena[accumulator]
    if kind == kt.OP_LAST_PAYMENT:
        if time_ms >= before_ms:
            s.arena[accumulator], s.arena[accumulator + 1] = time_ms, amount
    elif kind == kt.OP_FIRST_PAYMENT:
        if before_ms == 0 or time_ms < before_ms:
            s.arena[accumulator] = time_ms
    elif kind == kt.OP_POSITION:
        if time_ms >= before_ms and placed:
            s.arena[accumulator] = time_ms
            s.arena_f[accumulator + 1] = latitude
            s.arena_f[accumulator + 2] = longitude
    elif kind == kt.OP_DECAY:
        fade, weight = fading(before_ms, time_ms, t.ops[o, kt.O_PARAMETER])
        s.arena[accumulator] = max(before_ms, time_ms)
        count = s.arena_f[accumulator + 1]
        s.arena_f[accumulator + 1] = count * fade + weight
        s.arena_f[accumulator + 2] = s.arena_f[accumulator + 2] * fade + np.float64(amount) * weight
        if t.ops[o, kt.O_SQUARES]:
            mean = slot + t.ops[o, kt.O_SQUARES]
            _, middle, squares = weighed(count, s.arena_f[mean], s.arena_f[mean + 1], fade, weight, np.float64(amount))
            s.arena_f[mean], s.arena_f[mean + 1] = middle, squares
    s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
    s.arena_dirty[(accumulator + t.ops[o, kt.O_WIDTH] - 1) >> DIRTY_PAGE_SHIFT] = 1


@kernel
def new_slot(c: int, e: int, low: np.uint64, high: np.uint64) -> int:
    """An entity slot for a key seen for the first time, or NO_SLOT when the set's `keys_max` are live."""
    t, s = view_tables(c), view_state(c)
    if s.scalars[KEYS] >= t.limits[kt.KEYS_MAX]:
        s.scalars[KEYS_REFUSED] += 1
        return NO_SLOT
    words = t.entity[e, 0]
    slot = s.free_slots[e, 0]
    if slot != 0:
        s.free_slots[e, 0] = s.arena[slot]
    else:
        if s.free_slots[e, 1] + words > s.free_slots[e, 2]:
            s.scalars[CHUNKS] += 1  # chunk 0 stays empty: slot 0 means none
            s.owner[s.scalars[CHUNKS]] = e
            s.free_slots[e, 1] = s.scalars[CHUNKS] * CHUNK_WORDS
            s.free_slots[e, 2] = s.free_slots[e, 1] + CHUNK_WORDS
        slot = s.free_slots[e, 1]
        s.free_slots[e, 1] += words
    s.arena[slot + kt.KEY_LOW] = np.int64(low)
    s.arena[slot + kt.KEY_HIGH] = np.int64(high)
    s.arena[slot + kt.LIVE] = 1
    put(s.keys, low, high, slot)
    s.scalars[KEYS] += 1
    return slot


@kernel
def _free_slot(c: int, e: int, slot: int) -> None:
    """Free the slot of a key whose windows are all empty."""
    t, s = view_tables(c), view_state(c)
    remove_at(s.keys, find(s.keys, np.uint64(s.arena[slot + kt.KEY_LOW]), np.uint64(s.arena[slot + kt.KEY_HIGH])))
    s.scalars[KEYS] -= 1
    for o in range(len(t.ops)):
        kind = t.ops[o, kt.O_KIND]
        if t.ops[o, kt.O_ENTITY] == e and holds_series(kind):
            block = s.arena[slot + t.ops[o, kt.O_ACCUMULATOR]]
            if block != 0:
                free_block(c, block)
    words = t.entity[e, 0]
    s.arena[slot : slot + words] = 0
    s.arena[slot] = s.free_slots[e, 0]
    s.free_slots[e, 0] = slot
    for g in range(slot >> DIRTY_PAGE_SHIFT, ((slot + words - 1) >> DIRTY_PAGE_SHIFT) + 1):
        s.arena_dirty[g] = 1


@inlined
def release(c: int, t: kt.Tables, s: State, o: int, slot: int) -> None:
    """A row leaves the longest window of its key, whose slot is freed when it was the last one."""
    live = s.arena[slot + kt.LIVE] - 2
    s.arena[slot + kt.LIVE] = live
    s.arena_dirty[(slot + kt.LIVE) >> DIRTY_PAGE_SHIFT] = 1
    if live == 1:
        _free_slot(c, t.ops[o, kt.O_ENTITY], slot)
