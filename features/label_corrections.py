"""Labels of payments: when one becomes known, every window that holds its payment is corrected at once. A label whose
payment has not come yet waits as an unmatched label.

Of several labels of one payment the one that became known last counts, of those known at one time the one that came
last. So one that comes after it, known earlier, changes nothing. A label that was applied BY_ARRIVAL has no time: any
other replaces it.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.engine_state import (
    BY_ARRIVAL,
    DIRTY_PAGE_SHIFT,
    LABELS_APPLIED,
    UNMATCHED,
    UNMATCHED_DROPPED,
    UNMATCHED_EXPIRED,
    UNMATCHED_HEAD,
    UNMATCHED_MAX,
    UNMATCHED_RING,
    UNMATCHED_TAIL,
    view_state,
    view_tables,
)
from features.event_log import (
    NO_SLOT_NUMBER,
    TIME_SHIFT,
    find_row,
    known_of,
    label_of,
    passes,
    row_address,
    write_label,
)
from features.hash_table import find, put, remove_at
from features.raw_memory import kernel, peek32, peek64
from features.series import push_fraud, remove_pair

FRAUD = 1


@kernel
def set_label(c: int, seq: int, label: int, known_ms: int, now_ms: int) -> None:
    """Give row `seq` its label, known from `known_ms` on (BY_ARRIVAL: not recorded), and correct what depends on it at
    stream time `now_ms`. Nothing changes where the row has a label that became known later."""
    t, s = view_tables(c), view_state(c)
    before = label_of(t, s, seq)
    if before != 0 and known_ms != BY_ARRIVAL and known_ms < known_of(c, seq):
        return
    write_label(c, seq, label, max(known_ms, 0))
    if before == label:
        return
    s.scalars[LABELS_APPLIED] += 1
    change = (1 if label == FRAUD else 0) - (1 if before == FRAUD else 0)
    row = row_address(t, s, seq)
    time_ms = peek64(row) >> TIME_SHIFT
    settled_ms = now_ms - t.boundary_offset[t.limits[kt.RETENTION]]
    for k in range(len(t.label_ops)):
        o = t.label_ops[k]
        e = t.ops[o, kt.O_ENTITY]
        slot_number = peek32(row + t.limits[kt.ROW_SLOTS] + 4 * e)
        release = t.entity[e, 1]
        # Once its key no longer counts the row, the slot may belong to another key.
        if slot_number == NO_SLOT_NUMBER or (release >= 0 and time_ms <= now_ms - t.boundary_offset[release]):
            continue
        if not passes(t, row, t.ops[o, kt.O_WHERE]):
            continue
        slot = np.int64(slot_number) << kt.SLOT_SHIFT
        accumulator = slot + t.ops[o, kt.O_ACCUMULATOR]
        kind = t.ops[o, kt.O_KIND]
        if kind == kt.OP_NUMERIC:
            enters, leaves = t.ops[o, kt.O_ENTERS], t.ops[o, kt.O_LEAVES]
            if time_ms <= now_ms - t.boundary_offset[leaves]:
                continue
            if enters >= 0 and time_ms > now_ms - t.boundary_offset[enters]:
                continue
            s.arena[slot + t.ops[o, kt.O_FRAUD]] += change
            s.arena_dirty[(slot + t.ops[o, kt.O_FRAUD]) >> DIRTY_PAGE_SHIFT] = 1
        elif kind == kt.OP_KNOWN_FRAUDS:
            if change > 0:
                push_fraud(c, accumulator, time_ms, seq, settled_ms)
            elif change < 0:
                remove_pair(c, accumulator, time_ms, seq)
            s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
        else:  # OP_LABEL: the label of the key's latest payment that has one
            latest_ms = s.arena[accumulator]
            if time_ms > latest_ms or (time_ms == latest_ms and seq + 1 >= s.arena[accumulator + 1]):
                s.arena[accumulator], s.arena[accumulator + 1], s.arena[accumulator + 2] = time_ms, seq + 1, label
                s.arena_dirty[accumulator >> DIRTY_PAGE_SHIFT] = 1
                s.arena_dirty[(accumulator + 2) >> DIRTY_PAGE_SHIFT] = 1


@kernel
def apply_label(c: int, low: np.uint64, high: np.uint64, label: int, known_ms: int, now_ms: int) -> None:
    """Apply a label known from `known_ms` on (0 to `now_ms`, or BY_ARRIVAL), or keep it as unmatched for a payment that
    has not come yet."""
    t, s = view_tables(c), view_state(c)
    if not t.limits[kt.LABELS_MATTER]:
        return
    seq = find_row(c, low, high, now_ms)
    if seq >= 0:
        set_label(c, seq, label, known_ms, now_ms)
        return
    # The payment has not come yet, or never will: its label is kept within bounds of time and number.
    _expire_unmatched(c, now_ms)
    place = find(s.unmatched, low, high)
    if place >= 0:
        at = (np.int64(s.unmatched[place, 2]) - 1) & (UNMATCHED_RING - 1)
        if known_ms == BY_ARRIVAL or known_ms >= np.int64(s.unmatched_ring[at, 3]):
            s.unmatched_ring[at, 2] = np.uint64((np.int64(s.unmatched_ring[at, 2]) >> 2 << 2) | label)
            s.unmatched_ring[at, 3] = np.uint64(max(known_ms, 0))
        return
    if s.scalars[UNMATCHED] >= UNMATCHED_MAX:
        _drop_oldest(c)
        s.scalars[UNMATCHED_DROPPED] += 1
    if s.scalars[UNMATCHED_TAIL] - s.scalars[UNMATCHED_HEAD] >= UNMATCHED_RING:
        _close_gaps(c)
    seq = s.scalars[UNMATCHED_TAIL]
    at = seq & (UNMATCHED_RING - 1)
    s.unmatched_ring[at, 0], s.unmatched_ring[at, 1] = low, high
    s.unmatched_ring[at, 2], s.unmatched_ring[at, 3] = np.uint64(now_ms << 2 | label), np.uint64(max(known_ms, 0))
    put(s.unmatched, low, high, seq)
    s.scalars[UNMATCHED_TAIL] += 1
    s.scalars[UNMATCHED] += 1


@kernel
def take_unmatched(c: int, low: np.uint64, high: np.uint64, now_ms: int) -> int:
    """The unmatched label of a payment that comes now, and the time from which it is known: time << 2 | label; 0 when
    there is none."""
    s = view_state(c)
    _expire_unmatched(c, now_ms)
    place = find(s.unmatched, low, high)
    if place < 0:
        return 0
    at = (np.int64(s.unmatched[place, 2]) - 1) & (UNMATCHED_RING - 1)
    label = (np.int64(s.unmatched_ring[at, 2]) & 3) | np.int64(s.unmatched_ring[at, 3]) << 2
    s.unmatched_ring[at, 2] = np.uint64(0)
    remove_at(s.unmatched, place)
    s.scalars[UNMATCHED] -= 1
    return label


@kernel
def _expire_unmatched(c: int, now_ms: int) -> None:
    """Drop labels that have waited for as long as a payment stays in the log."""
    t, s = view_tables(c), view_state(c)
    limit_ms = now_ms - t.boundary_offset[t.limits[kt.RETENTION]]
    while s.scalars[UNMATCHED_HEAD] < s.scalars[UNMATCHED_TAIL]:
        entry = np.int64(s.unmatched_ring[s.scalars[UNMATCHED_HEAD] & (UNMATCHED_RING - 1), 2])
        if entry == 0:
            s.scalars[UNMATCHED_HEAD] += 1
        elif entry >> 2 <= limit_ms:
            _drop_oldest(c)
            s.scalars[UNMATCHED_EXPIRED] += 1
        else:
            break


@kernel
def _drop_oldest(c: int) -> None:
    """Drop the label that has waited longest; there is one."""
    s = view_state(c)
    while True:
        at = s.scalars[UNMATCHED_HEAD] & (UNMATCHED_RING - 1)
        s.scalars[UNMATCHED_HEAD] += 1
        if s.unmatched_ring[at, 2] != 0:
            break
    remove_at(s.unmatched, find(s.unmatched, s.unmatched_ring[at, 0], s.unmatched_ring[at, 1]))
    s.unmatched_ring[at, 2] = np.uint64(0)
    s.scalars[UNMATCHED] -= 1


@kernel
def _close_gaps(c: int) -> None:
    """Move the labels of the ring together. At least half of it is gaps, so a label is moved once on average."""
    s = view_state(c)
    following, ring = s.scalars[UNMATCHED_HEAD], s.unmatched_ring
    for seq in range(s.scalars[UNMATCHED_HEAD], s.scalars[UNMATCHED_TAIL]):
        at = seq & (UNMATCHED_RING - 1)
        if ring[at, 2] == 0:
            continue
        to = following & (UNMATCHED_RING - 1)
        for k in range(ring.shape[1]):
            ring[to, k] = ring[at, k]
        s.unmatched[find(s.unmatched, ring[to, 0], ring[to, 1]), 2] = np.uint64(following + 1)
        following += 1
    s.scalars[UNMATCHED_TAIL] = following
