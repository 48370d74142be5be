"""Rows pass window boundaries as stream time moves: they leave the windows that end there and enter those that begin
there."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.engine_state import LATE_COUNT, NEXT_SEQ, State, view_state, view_tables
from features.event_log import CAME_LATE, NO_SLOT_NUMBER, TIME_SHIFT, WHERE_SHIFT, label_of, row_address
from features.group_updates import add, arena_marks, change_numeric, enter_series, lacks_room, release
from features.raw_memory import inlined, kernel, peek32, peek64, poke64, prefetch

# How far ahead of use, in rows of a boundary: each is about 1 µs.
ROWS_AHEAD = 4


@inlined
def _pass_boundary(c: int, t: kt.Tables, s: State, g: int, seq: int, row: int, now_ms: int) -> None:
    """Row `seq` passes boundary g: it leaves the windows that end there and enters those that begin there."""
    head, amount = peek64(row), peek64(row + 8)
    where = peek64(row + t.limits[kt.ROW_WHERE]) if t.limits[kt.ROW_WHERE] else head >> WHERE_SHIFT
    arena, dirty = np.int64(s.arena.ctypes.data), arena_marks(s)
    change = np.int64(t.boundary_changes.ctypes.data) + t.boundary_start[g] * (8 * kt.CHANGE_WORDS)
    for _ in range(t.boundary_start[g + 1] - t.boundary_start[g]):
        slot_number = np.int64(peek32(row + peek64(change + 8 * kt.C_SLOT_NUMBER)))
        bit = peek64(change + 8 * kt.C_WHERE)
        if slot_number != NO_SLOT_NUMBER and (bit < 0 or (where >> bit) & 1 == 1):
            sign = peek64(change + 8 * kt.C_SIGN)
            extent = peek64(change + 8 * kt.C_EXTENT)
            if extent == kt.COUNT_AND_SUM:
                add(arena, dirty, arena + (slot_number << (kt.SLOT_SHIFT + 3)), change, sign, amount)
                fraud = peek64(change + 8 * kt.C_FRAUD)
                if fraud != 0 and label_of(t, s, seq) == 1:
                    at = arena + (slot_number << (kt.SLOT_SHIFT + 3)) + fraud
                    poke64(at, peek64(at) + sign)
            elif extent == kt.RELEASING:
                release(c, t, s, peek64(change), slot_number << kt.SLOT_SHIFT)
            else:
                _pass_more(c, peek64(change), sign, slot_number << kt.SLOT_SHIFT, seq, row, now_ms)
        change += 8 * kt.CHANGE_WORDS


@kernel
def _pass_more(c: int, o: int, sign: int, slot: int, seq: int, row: int, now_ms: int) -> None:
    """The rarer changes of a row at a boundary."""
    t, s = view_tables(c), view_state(c)
    kind = t.ops[o, kt.O_KIND]
    if kind == kt.OP_NUMERIC:
        fraud = 1 if t.ops[o, kt.O_FRAUD] and label_of(t, s, seq) == 1 else 0
        change_numeric(c, t, s, o, slot, sign, row, peek64(row + 8), fraud)
    else:
        enter_series(c, t, s, o, slot, peek64(row) >> TIME_SHIFT, peek64(row + 8), now_ms)


@inlined
def _fetch_slots(t: kt.Tables, g: int, row: int, arena: int) -> None:
    """Prefetch what a row will touch when it passes boundary g. NO_SLOT_NUMBER gives an address far away, which does
    nothing."""
    touch = np.int64(t.boundary_touches.ctypes.data) + 16 * t.touch_start[g]
    for _ in range(t.touch_start[g + 1] - t.touch_start[g]):
        slot_number = np.int64(peek32(row + peek64(touch)))
        prefetch(arena + (slot_number << (kt.SLOT_SHIFT + 3)) + peek64(touch + 8))
        touch += 16


@inlined
def advance(c: int, t: kt.Tables, s: State, arena: int, now_ms: int) -> bool:
    """Let every row that has passed a boundary by stream time `now_ms` change its accumulators. False: more room is
    needed first.

    Late rows pass by their own list, but `passed[g, 0]` stays before each that has not: segments are kept and searched
    from there on. Rows in time behind it are newer, so they have not passed either."""
    count = s.scalars[NEXT_SEQ]
    late_count = s.scalars[LATE_COUNT]
    row_bytes = t.limits[kt.ROW_BYTES]
    for g in range(len(t.boundary_offset)):
        limit_ms, grows = now_ms - t.boundary_offset[g], t.boundary_grows[g] != 0
        following, position = s.passed[g, 0], s.passed[g, 1]
        while True:
            seq, late = np.int64(-1), False
            if following < count:
                row = row_address(t, s, following)
                head = peek64(row)
                if head >> TIME_SHIFT <= limit_ms:
                    if head & CAME_LATE:
                        following += 1
                        continue
                    seq = following
            if seq < 0 and position < late_count and s.late[position, 0] <= limit_ms:
                seq, late = s.late[position, 1], True
                row = row_address(t, s, seq)
            if seq < 0:
                break
            if grows and lacks_room(t, s):
                s.passed[g, 0], s.passed[g, 1] = following, position
                return False
            if late:
                position += 1
            else:
                following += 1
                prefetch(row + 3 * ROWS_AHEAD * row_bytes)
                if seq + ROWS_AHEAD < count:
                    _fetch_slots(t, g, row_address(t, s, seq + ROWS_AHEAD), arena)
            _pass_boundary(c, t, s, g, seq, row, now_ms)
        s.passed[g, 0], s.passed[g, 1] = following, position
    return True
