"""Verdicts on payments: when one becomes known, every window its payment stands in is corrected at once."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import plan as p
from features.log import NO_SLOT, TIME_SHIFT, find_row, label_of, passes, row_address, write_label
from features.memory import kernel, peek32, peek64
from features.series import push_fraud, remove_pair
from features.state import GRANULE_SHIFT, LABELS_APPLIED, ORPHANS, ORPHANS_DROPPED, ORPHANS_MAX, State
from features.table import find, put

FRAUD = 1


@kernel
def set_label(t: p.Tables, s: State, seq: int, label: int, now_ms: int) -> None:
    """Give row `seq` its label and correct what depends on it at stream time `now_ms`."""
    before = label_of(t, s, seq)
    if before == label:
        return
    write_label(t, s, seq, label)
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
                push_fraud(s, cell, time_ms, seq, settled_ms)
            elif change < 0:
                remove_pair(s, cell, time_ms, seq)
            s.arena_dirty[cell >> GRANULE_SHIFT] = 1
        else:  # VERDICT: the label of the key's latest payment that has one
            latest_ms = s.arena[cell]
            if time_ms > latest_ms or (time_ms == latest_ms and seq + 1 >= s.arena[cell + 1]):
                s.arena[cell], s.arena[cell + 1], s.arena[cell + 2] = time_ms, seq + 1, label
                s.arena_dirty[cell >> GRANULE_SHIFT] = 1
                s.arena_dirty[(cell + 2) >> GRANULE_SHIFT] = 1


@kernel
def apply_label(t: p.Tables, s: State, low: np.uint64, high: np.uint64, label: int, now_ms: int) -> None:
    """Apply a verdict that has become known, or keep it for a payment that has not come yet."""
    seq = find_row(t, s, low, high, now_ms) if t.scalars[p.LABELS_MATTER] else np.int64(-1)
    if seq >= 0:
        set_label(t, s, seq, label, now_ms)
        return
    # The payment has not come yet (or left the log long ago): keep the label for it, within bounds.
    place = find(s.orphans, low, high)
    if place >= 0:
        s.orphans[place, 2] = np.uint64(label + 1)
    elif s.scalars[ORPHANS] < ORPHANS_MAX:
        put(s.orphans, low, high, label)
        s.scalars[ORPHANS] += 1
    else:
        s.scalars[ORPHANS_DROPPED] += 1
