"""The kernel: payments in journal order in, feature values out, the state moved on. Numba throughout, no allocation, no
GIL.

For each payment: move stream time; let rows pass the window boundaries; apply the labels that are known by now; read
the features; write the row into the log and into the accumulators. Everything is computed in integers, so that adding
and removing never drifts, but for the last step, from exact integers to a value, and for decayed sums and deviations,
from which nothing is ever subtracted.

Memory is fetched ahead: a payment's keys are looked up a few payments early, and what a row will touch when it passes
a boundary is prefetched a few rows early, so that with millions of keys the waits overlap.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.engine_state import BY_ARRIVAL, LATE_COUNT, NEXT_SEQ, STREAM_MS, State, view_state, view_tables
from features.event_log import index_home
from features.feature_values import NO_KEY, NO_SLOT, key_of, read_all, word
from features.group_updates import lacks_room
from features.hash_table import get
from features.label_corrections import apply_label
from features.raw_memory import CACHE_LINE, entry, inlined, peek64, poke64, prefetch
from features.row_insertion import insert
from features.window_boundaries import advance

# How far ahead of use, in payments: each is about 1 µs. Further ahead, and the first-level cache has already dropped
# what was fetched: a payment touches some 60 lines of its 512.
PAYMENTS_AHEAD, KEYS_AHEAD, SLOTS_AHEAD, BLOCKS_AHEAD = 32, 8, 4, 2
# Working space in units of E words: the slots of this payment, and of those ahead.
SPACE_ROWS = 1 + SLOTS_AHEAD

# What `apply` returns.
DONE, NEEDS_ROOM = 0, 1
# Words of `progress`: payments done, labels applied, and 1 where the label that comes last counts, as in releases
# before 0.2, instead of the one that became known last.
PAYMENTS_DONE, LABELS_DONE, LABELS_BY_ARRIVAL = range(3)
PROGRESS_WORDS = 3


@inlined
def _fetch_ahead(t: kt.Tables, s: State, b: int, width: int, i: int, n: int, found: int) -> None:
    """Prefetch payment i + 32 itself, the key-table places of payment i + 8, the slots of i + 4 and the blocks of
    i + 2.

    `b` is the address of payment 0, `width` the bytes of each. `found`, int64 [4, E], remembers the slots: between
    looking ahead and using one it may be freed, so its key must be compared again."""
    entities = len(t.entity)
    arena, table = np.int64(s.arena.ctypes.data), np.int64(s.keys.ctypes.data)
    for at in range(0, width, CACHE_LINE):
        prefetch(b + width * (i + PAYMENTS_AHEAD) + at)
    if i + KEYS_AHEAD < n:
        payment = b + width * (i + KEYS_AHEAD)
        mask = np.uint64(len(s.keys) - 1)
        for e in range(entities):
            low, _ = key_of(payment, e)
            place = table + 24 * np.int64(low & mask)
            prefetch(place)
            prefetch(place + 40)
    j = i + SLOTS_AHEAD
    if j < n:
        payment = b + width * j
        present = word(payment, kt.B_PRESENT)
        kept = found + 8 * entities * (j % SLOTS_AHEAD)
        for e in range(entities):
            if (present >> e) & 1:
                low, high = key_of(payment, e)
                slot = np.int64(get(s.keys, low, high))
                poke64(kept + 8 * e, slot)
                if slot >= 0:
                    for at in range(0, 8 * t.entity[e, 0], CACHE_LINE):
                        prefetch(arena + 8 * slot + at)
        if t.limits[kt.LABELS_MATTER]:
            shift = t.limits[kt.SEGMENT_SHIFT]
            index = s.index_addresses[(s.scalars[NEXT_SEQ] >> shift) & (len(s.row_addresses) - 1)]
            prefetch(index + 4 * index_home(t, np.uint64(word(payment, kt.B_ID))))
    j = i + BLOCKS_AHEAD
    if t.limits[kt.SERIES_OPS] > 0 and j < n:
        pool = np.int64(s.pool.ctypes.data)
        kept = found + 8 * entities * (j % SLOTS_AHEAD)
        for k in range(len(t.immediate)):
            o = t.immediate[k, kt.C_OP]
            kind = t.ops[o, kt.O_KIND]
            if kind == kt.OP_EXTREME or kind == kt.OP_RECENT or kind == kt.OP_PLACES:  # noqa: PLR1714
                slot = peek64(kept + 8 * t.ops[o, kt.O_ENTITY])
                if slot > 0:
                    block = pool + 8 * s.arena[slot + t.ops[o, kt.O_ACCUMULATOR]]
                    prefetch(block)
                    prefetch(block + CACHE_LINE)


@inlined
def _look_up(t: kt.Tables, s: State, payment: int, kept: int, slots: int) -> None:
    """The slots of a payment's keys: those found ahead, where they still belong to the same keys."""
    arena = np.int64(s.arena.ctypes.data)
    present = word(payment, kt.B_PRESENT)
    for e in range(len(t.entity)):
        slot = np.int64(NO_KEY)
        if (present >> e) & 1:
            low, high = key_of(payment, e)
            slot = peek64(kept + 8 * e)
            header = arena + 8 * slot
            if slot <= 0 or (
                peek64(header + 8 * kt.KEY_LOW) != np.int64(low)
                or peek64(header + 8 * kt.KEY_HIGH) != np.int64(high)
                or peek64(header + 8 * kt.LIVE) == 0
            ):
                slot = max(np.int64(NO_SLOT), np.int64(get(s.keys, low, high)))
        poke64(slots + 8 * e, slot)


@entry
def apply(
    context: npt.NDArray[np.int64],
    b: npt.NDArray[np.uint64],
    labels: npt.NDArray[np.int64],
    out: npt.NDArray[np.float32],
    late: npt.NDArray[np.bool_],
    progress: npt.NDArray[np.int64],
    scratch: npt.NDArray[np.int64],
    space: npt.NDArray[np.int64],
) -> int:
    """Run a batch, from `progress` on.

    `context` are the addresses of tables and state; `b` uint64 [n, ·] prepared payments (B_ words);
    `labels` int64 [m, 4] (known_at ms, id low, id high, 1 fraud or 2 genuine) sorted by known_at; `out` float32 [n, F]
    comes with its PAYMENT columns filled in; `late` bool [n] is set for payments beyond the allowed lateness, which are
    scored and change no state; `scratch` int64 [128] and `space` int64 [5 · E] are
    working space. Returns DONE, or NEEDS_ROOM
    when pool, distinct table or late list must grow first: then everything before `progress` is done, and calling again
    goes on.
    """
    c = np.int64(context.ctypes.data)
    t, s = view_tables(c), view_state(c)
    arena = np.int64(s.arena.ctypes.data)
    i = progress[PAYMENTS_DONE]
    applied = progress[LABELS_DONE]
    status = DONE
    first, width = np.int64(b.ctypes.data), 8 * b.shape[1]
    slots = np.int64(space.ctypes.data)
    found = slots + 8 * len(t.entity)
    for k in range(SLOTS_AHEAD * len(t.entity)):
        poke64(found + 8 * k, -1)
    while i < len(b):
        payment = first + width * i
        time_ms = word(payment, kt.B_TIME)
        # Before and after stream time has moved this gives the same, so that going on after NEEDS_ROOM does.
        late[i] = time_ms < s.scalars[STREAM_MS] - t.limits[kt.LATENESS_MS]
        s.scalars[STREAM_MS] = max(s.scalars[STREAM_MS], time_ms)
        now_ms = s.scalars[STREAM_MS]
        _fetch_ahead(t, s, first, width, i, len(b), found)
        if not advance(c, t, s, arena, now_ms):
            status = NEEDS_ROOM
            break
        while applied < len(labels) and labels[applied, 0] <= now_ms and not lacks_room(t, s):
            low, high = np.uint64(labels[applied, 1]), np.uint64(labels[applied, 2])
            known_ms = BY_ARRIVAL if progress[LABELS_BY_ARRIVAL] else max(labels[applied, 0], 0)
            apply_label(c, low, high, labels[applied, 3], known_ms, now_ms)
            applied += 1
        if lacks_room(t, s) or s.scalars[LATE_COUNT] >= len(s.late):
            status = NEEDS_ROOM
            break
        _look_up(t, s, payment, found + 8 * len(t.entity) * (i % SLOTS_AHEAD), slots)
        bits = read_all(c, t, s, payment, slots, now_ms, out[i], scratch)
        if not late[i]:
            insert(c, t, s, payment, bits, slots, now_ms)
        i += 1
    progress[PAYMENTS_DONE] = i
    progress[LABELS_DONE] = applied
    return status
