"""A payment enters: its row is written into the log, and it joins every group whose window holds it."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.engine_state import (
    DIRTY_PAGE_SHIFT,
    LATE_COUNT,
    NEXT_SEQ,
    UNMATCHED,
    State,
    view_state,
    view_tables,
)
from features.event_log import CAME_LATE, NO_SLOT_NUMBER, TIME_SHIFT, WHERE_SHIFT, index_row, passes, row_address
from features.feature_values import NO_KEY, NO_SLOT, key_of, word
from features.group_updates import add, arena_marks, enter, new_slot
from features.label_corrections import set_label, take_unmatched
from features.raw_memory import inlined, kernel, peek64, poke8, poke32, poke64
from features.series import holds_series
from schemas.byte_copy import move


@kernel
def _insert_late(c: int, seq: int, time_ms: int, now_ms: int) -> None:
    """Put a late row into the list of late ones, sorted by event time, and move the boundaries that it has passed
    already."""
    t, s = view_tables(c), view_state(c)
    end = s.scalars[LATE_COUNT]
    position, high = np.int64(0), end
    while position < high:
        middle = (position + high) >> 1
        if s.late[middle, 0] > time_ms:
            high = middle
        else:
            position = middle + 1
    at = np.int64(s.late.ctypes.data) + 16 * position
    move(at + 16, at, 16 * (end - position))
    s.late[position, 0], s.late[position, 1] = time_ms, seq
    s.scalars[LATE_COUNT] += 1
    for g in range((2 * position) >> DIRTY_PAGE_SHIFT, ((2 * end + 1) >> DIRTY_PAGE_SHIFT) + 1):
        s.late_dirty[g] = 1
    for g in range(len(t.boundary_offset)):
        if time_ms <= now_ms - t.boundary_offset[g]:
            s.passed[g, 1] += 1


@inlined
def insert(c: int, t: kt.Tables, s: State, payment: int, bits: np.uint64, slots, now_ms: int) -> None:  # type: ignore[no-untyped-def]
    """Write a payment into the log and into every group whose window holds it."""
    seq = s.scalars[NEXT_SEQ]
    row = row_address(t, s, seq)
    time_ms = word(payment, kt.B_TIME)
    in_time = time_ms == now_ms
    head = (time_ms << TIME_SHIFT) | (0 if in_time else CAME_LATE)
    if t.limits[kt.ROW_WHERE]:
        poke64(row + t.limits[kt.ROW_WHERE], np.int64(bits))
    else:
        head |= np.int64(bits) << WHERE_SHIFT
    poke64(row, head)
    poke64(row + 8, word(payment, kt.B_AMOUNT))
    entities = len(t.entity)
    for d in range(t.limits[kt.DISTINCT_COLUMNS]):
        poke64(row + t.limits[kt.ROW_DISTINCT] + 8 * d, word(payment, kt.B_KEYS + 2 * entities + d))
    slot_numbers = row + t.limits[kt.ROW_SLOTS]
    for e in range(entities):
        poke32(slot_numbers + 4 * e, np.uint32(NO_SLOT_NUMBER))
        slot = peek64(slots + 8 * e)
        release = t.entity[e, 1]
        if slot == NO_KEY or (release >= 0 and time_ms <= now_ms - t.boundary_offset[release]):
            poke64(slots + 8 * e, NO_SLOT)
            continue
        if slot == NO_SLOT:
            low, high = key_of(payment, e)
            slot = np.int64(new_slot(c, e, low, high))
            poke64(slots + 8 * e, slot)
            if slot == NO_SLOT:
                continue
        poke32(slot_numbers + 4 * e, np.uint32(slot >> kt.SLOT_SHIFT))
        s.arena[slot + kt.LIVE] += 2
        s.arena_dirty[slot >> DIRTY_PAGE_SHIFT] = 1
        s.arena_dirty[(slot + kt.LIVE) >> DIRTY_PAGE_SHIFT] = 1
    if in_time:
        arena, dirty = np.int64(s.arena.ctypes.data), arena_marks(s)
        amount = word(payment, kt.B_AMOUNT)
        change = np.int64(t.immediate.ctypes.data)
        for _ in range(len(t.immediate)):
            slot = peek64(slots + 2 * (peek64(change + 8 * kt.C_SLOT_NUMBER) - t.limits[kt.ROW_SLOTS]))
            bit = peek64(change + 8 * kt.C_WHERE)
            if slot != NO_SLOT and (bit < 0 or (bits >> np.uint64(bit)) & np.uint64(1)):
                if peek64(change + 8 * kt.C_EXTENT) == kt.COUNT_AND_SUM:
                    add(arena, dirty, arena + 8 * slot, change, 1, amount)
                else:
                    enter(c, payment, peek64(change), slot, row, now_ms)
            change += 8 * kt.CHANGE_WORDS
    else:
        _insert_late(c, seq, time_ms, now_ms)
        for o in range(len(t.ops)):
            slot = peek64(slots + 8 * t.ops[o, kt.O_ENTITY])
            kind = t.ops[o, kt.O_KIND]
            if slot == NO_SLOT or kind == kt.OP_KNOWN_FRAUDS or kind == kt.OP_LABEL or kind == kt.OP_RELEASE:  # noqa: PLR1714
                continue
            if not passes(t, row, t.ops[o, kt.O_WHERE]):
                continue
            enters, leaves, expires_ms = t.ops[o, kt.O_ENTERS], t.ops[o, kt.O_LEAVES], t.ops[o, kt.O_EXPIRES_MS]
            if leaves >= 0 and time_ms <= now_ms - t.boundary_offset[leaves]:
                continue
            if enters >= 0 and time_ms > now_ms - t.boundary_offset[enters]:
                continue
            if holds_series(kind) and time_ms <= now_ms - expires_ms:
                continue
            enter(c, payment, o, slot, row, now_ms)
    s.scalars[NEXT_SEQ] += 1
    if t.limits[kt.LABELS_MATTER]:
        low, high = np.uint64(word(payment, kt.B_ID)), np.uint64(word(payment, kt.B_ID_HIGH))
        poke64(row + t.limits[kt.ROW_ID], np.int64(low))
        poke32(row + t.limits[kt.ROW_BYTES] - 4, np.uint32(high & np.uint64(0xFFFFFFFF)))
        shift = t.limits[kt.SEGMENT_SHIFT]
        segment, in_segment = (seq >> shift) & (len(s.row_addresses) - 1), seq & ((np.int64(1) << shift) - 1)
        poke8(s.label_addresses[segment] + in_segment, np.uint8(0))
        index_row(t, s.index_addresses[segment], in_segment, low)
        if s.scalars[UNMATCHED] > 0:
            label = take_unmatched(c, low, high, now_ms)
            if label != 0 and time_ms > now_ms - t.boundary_offset[t.limits[kt.RETENTION]]:
                set_label(c, seq, label & 3, label >> 2, now_ms)
