"""Verdicts on payments: when one becomes known, every window its payment stands in is corrected at once."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import plan as p
from features.log import NO_SLOT, TIME_SHIFT, find_row, label_of, passes, row_address, write_label
from features.memory import kernel, peek32, peek64
from features.series import push_fraud, remove_pair
from features.state import (
    GRANULE_SHIFT,
    LABELS_APPLIED,
    ORPHAN_HEAD,
    ORPHAN_RING,
    ORPHAN_TAIL,
    ORPHANS,
    ORPHANS_DROPPED,
    ORPHANS_EXPIRED,
    ORPHANS_MAX,
    view_state,
    view_tables,
)
from features.table import find, put, remove_at

FRAUD = 1


@kernel
def set_label(c: int, seq: int, label: int, now_ms: int) -> None:
    """Give row `seq` its label and correct what depends on it at stream time `now_ms`."""
    t, s = view_tables(c), view_state(c)
    before = label_of(t, s, seq)
    if before == label:
        return
    write_label(c, seq, label)
    s.scalars[LABELS_APPLIED] += 1
    change = (1 if label == FRAUD else 0) - (1 if before == FRAUD else 0)
    row = row_address(t, s, seq)
    time_ms = peek64(row) >> TIME_SHIFT
    settled_ms = now_ms - t.edge_offset[t.scalars[p.RETENTION]]
    for k in range(len(t.label_ops)):
        o = t.label_ops[k]
        e = t.ops[o, p.O_ENTITY]
        slot = peek32(row + t.scalars[p.ROW_SLOT] + 4 * e)
        release = t.entity[e, 1]
        # Once its key has let go of the row, the strip may be another key's.
        if slot == NO_SLOT or (release >= 0 and time_ms <= now_ms - t.edge_offset[release]):
            continue
        if not passes(t, row, t.ops[o, p.O_WHERE]):
            continue
        strip = np.int64(slot) << p.STRIP_SHIFT
        cell = strip + t.ops[o, p.O_CELL]
        kind = t.ops[o, p.O_KIND]
        if kind == p.NUMERIC:
            enters, leaves = t.ops[o, p.O_ENTERS], t.ops[o, p.O_LEAVES]
            if time_ms <= now_ms - t.edge_offset[leaves]:
                continue
            if enters >= 0 and time_ms > now_ms - t.edge_offset[enters]:
                continue
            s.arena[strip + t.ops[o, p.O_FRAUD]] += change
            s.arena_dirty[(strip + t.ops[o, p.O_FRAUD]) >> GRANULE_SHIFT] = 1
        elif kind == p.FRAUDS:
            if change > 0:
                push_fraud(c, cell, time_ms, seq, settled_ms)
            elif change < 0:
                remove_pair(c, cell, time_ms, seq)
            s.arena_dirty[cell >> GRANULE_SHIFT] = 1
        else:  # VERDICT: the label of the key's latest payment that has one
            latest_ms = s.arena[cell]
            if time_ms > latest_ms or (time_ms == latest_ms and seq + 1 >= s.arena[cell + 1]):
                s.arena[cell], s.arena[cell + 1], s.arena[cell + 2] = time_ms, seq + 1, label
                s.arena_dirty[cell >> GRANULE_SHIFT] = 1
                s.arena_dirty[(cell + 2) >> GRANULE_SHIFT] = 1


@kernel
def apply_label(c: int, low: np.uint64, high: np.uint64, label: int, now_ms: int) -> None:
    """Apply a verdict that has become known, or keep it for a payment that has not come yet."""
    t, s = view_tables(c), view_state(c)
    if not t.scalars[p.LABELS_MATTER]:
        return
    seq = find_row(c, low, high, now_ms)
    if seq >= 0:
        set_label(c, seq, label, now_ms)
        return
    # The payment has not come yet, or never will: keep the label for it, within bounds of time and number.
    _expire_orphans(c, now_ms)
    place = find(s.orphans, low, high)
    if place >= 0:
        at = (np.int64(s.orphans[place, 2]) - 1) & (ORPHAN_RING - 1)
        s.ring[at, 2] = np.uint64((np.int64(s.ring[at, 2]) >> 2 << 2) | label)
        return
    if s.scalars[ORPHANS] >= ORPHANS_MAX:
        _drop_oldest(c)
        s.scalars[ORPHANS_DROPPED] += 1
    if s.scalars[ORPHAN_TAIL] - s.scalars[ORPHAN_HEAD] >= ORPHAN_RING:
        _close_gaps(c)
    seq = s.scalars[ORPHAN_TAIL]
    at = seq & (ORPHAN_RING - 1)
    s.ring[at, 0], s.ring[at, 1], s.ring[at, 2] = low, high, np.uint64(now_ms << 2 | label)
    put(s.orphans, low, high, seq)
    s.scalars[ORPHAN_TAIL] += 1
    s.scalars[ORPHANS] += 1


@kernel
def take_orphan(c: int, low: np.uint64, high: np.uint64, now_ms: int) -> int:
    """The label that waited for a payment, which has come now; 0 when there is none."""
    s = view_state(c)
    _expire_orphans(c, now_ms)
    place = find(s.orphans, low, high)
    if place < 0:
        return 0
    at = (np.int64(s.orphans[place, 2]) - 1) & (ORPHAN_RING - 1)
    label = np.int64(s.ring[at, 2]) & 3
    s.ring[at, 2] = np.uint64(0)
    remove_at(s.orphans, place)
    s.scalars[ORPHANS] -= 1
    return label


@kernel
def _expire_orphans(c: int, now_ms: int) -> None:
    """Let go of labels that have waited for as long as a payment stays in the log."""
    t, s = view_tables(c), view_state(c)
    limit_ms = now_ms - t.edge_offset[t.scalars[p.RETENTION]]
    while s.scalars[ORPHAN_HEAD] < s.scalars[ORPHAN_TAIL]:
        entry = np.int64(s.ring[s.scalars[ORPHAN_HEAD] & (ORPHAN_RING - 1), 2])
        if entry == 0:
            s.scalars[ORPHAN_HEAD] += 1
        elif entry >> 2 <= limit_ms:
            _drop_oldest(c)
            s.scalars[ORPHANS_EXPIRED] += 1
        else:
            break


@kernel
def _drop_oldest(c: int) -> None:
    """Forget the label that has waited longest; there is one."""
    s = view_state(c)
    while True:
        at = s.scalars[ORPHAN_HEAD] & (ORPHAN_RING - 1)
        s.scalars[ORPHAN_HEAD] += 1
        if s.ring[at, 2] != 0:
            break
    remove_at(s.orphans, find(s.orphans, s.ring[at, 0], s.ring[at, 1]))
    s.ring[at, 2] = np.uint64(0)
    s.scalars[ORPHANS] -= 1


@kernel
def _close_gaps(c: int) -> None:
    """Move the labels of the ring together. At least half of it is gaps, so a label is moved once on average."""
    s = view_state(c)
    following = s.scalars[ORPHAN_HEAD]
    for seq in range(s.scalars[ORPHAN_HEAD], s.scalars[ORPHAN_TAIL]):
        at = seq & (ORPHAN_RING - 1)
        if s.ring[at, 2] == 0:
            continue
        to = following & (ORPHAN_RING - 1)
        s.ring[to, 0], s.ring[to, 1], s.ring[to, 2] = s.ring[at, 0], s.ring[at, 1], s.ring[at, 2]
        s.orphans[find(s.orphans, s.ring[to, 0], s.ring[to, 1]), 2] = np.uint64(following + 1)
        following += 1
    s.scalars[ORPHAN_TAIL] = following
