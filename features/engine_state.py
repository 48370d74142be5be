"""What an engine remembers, as arrays, and the one small array of addresses through which kernels reach them.

    arena      entity slots: 64-bit words of one live key each: who the key is, how many of its rows are live, its
               accumulators. Divided into chunks that hold slots of one entity, so that all keys can be listed without
               the key table.
    pool       blocks of sorted pairs (features/series.py)
    late       late payments still in the log, (event time, seq) sorted by time; the log itself is in order of arrival,
               in which rows that came in time are sorted already
    keys, distincts, unmatched   hash tables (features/hash_table.py)
    unmatched_ring   labels whose payment has not come yet, in order of arrival: id low, id high, stream time at arrival
               << 2 | label (0: the place is empty), time from which the label is known, ms; `unmatched` gives the
               number of the place, counted from the first label ever
    row_addresses, index_addresses, label_addresses, known_addresses   where the parts of the log's segments lie
               (features/log_segments.py), entry (seq >> shift) & (segments - 1)

Arena, pool, late and distincts each have a dirty map: one byte for each page of 256 bytes that says "written since
the map was cleared". With them a snapshot is taken while payments go on (features/state_capture.py). A kernel may leave
out marks of the arena while MARKING is 0.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.hash_table import new_table
from features.raw_memory import ArrayLayout, addresses_of, aligned_zeros, viewer

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

# Words of State.scalars, which are part of a snapshot in this order.
(
    STREAM_MS, NEXT_SEQ, LATE_COUNT, KEYS, DISTINCTS, UNMATCHED, KEYS_REFUSED, UNMATCHED_DROPPED, LABELS_APPLIED,
    POOL_NEXT, POOL_CLASS_MAX, CHUNKS, UNMATCHED_HEAD, UNMATCHED_TAIL, UNMATCHED_EXPIRED, MARKING,
) = range(16)  # fmt: skip
SCALARS = MARKING + 1

DIRTY_PAGE_SHIFT = 5  # words: 256 bytes
DIRTY_PAGE_BYTES = 8 << DIRTY_PAGE_SHIFT
CHUNK_WORDS = 1 << 13  # 64 KiB
POOL_CLASSES = 40
LATE_FIRST_ROWS = 1 << 10
# Labels whose payment has not come. When full, the one that has waited longest is dropped and counted.
UNMATCHED_MAX = 65_536
# Places of those in order of arrival; the gaps of labels that have found their payment are closed when it is full.
UNMATCHED_RING = 2 * UNMATCHED_MAX
# Labels of 4,096 rows are one page of a snapshot; segments are at least that long.
LABEL_SHIFT = 12
# Of the time from which a label is known: event times are below 2^48 ms.
KNOWN_BYTES = 6
# In place of that time: the label replaces whatever label its payment has, as in releases before 0.2.
BY_ARRIVAL = -1

_Flat = Annotated[I64, ArrayLayout(np.int64)]
_Pairs = Annotated[I64, ArrayLayout(np.int64, 2)]
_Dirty = Annotated[U8, ArrayLayout(np.uint8)]
_Table = Annotated[npt.NDArray[np.uint64], ArrayLayout(np.uint64, 3)]
_Ring = Annotated[npt.NDArray[np.uint64], ArrayLayout(np.uint64, 4)]


class State(NamedTuple):
    """The arrays; they grow between calls of a kernel, never inside one. E entities, G boundaries."""

    scalars: _Flat  # [16]
    passed: _Pairs  # [G, 2] first seq, and first position in `late`, that has not passed boundary g
    arena: _Flat
    arena_f: Annotated[npt.NDArray[np.float64], ArrayLayout(np.float64)]  # the same memory
    arena_dirty: _Dirty
    pool: _Flat
    pool_free: _Flat  # [40] first free block of each class
    pool_dirty: _Dirty
    late: _Pairs
    late_dirty: _Dirty
    keys: _Table
    distincts: _Table
    distincts_dirty: _Dirty
    unmatched: _Table
    free_slots: Annotated[I64, ArrayLayout(np.int64, 3)]  # [E, 3] first free slot (0: none), next slot and end of the
    # entity's newest chunk
    owner: _Flat  # [chunks] entity of each chunk, -1: none
    row_addresses: _Flat  # [segments]
    index_addresses: _Flat  # [segments]
    label_addresses: _Flat  # [segments]
    known_addresses: _Flat  # [segments]
    labels_dirty: _Dirty
    unmatched_ring: _Ring  # [131072, 4]


# What a kernel sees at the address of `addresses`.
view_tables = viewer(kt.Tables, 0)
view_state = viewer(State, len(kt.Tables._fields))


def addresses(s: State, t: kt.Tables) -> I64:
    """(address, length) of every array of the tables and the state, for `view_tables` and `view_state`; the arrays must
    outlive it."""
    return np.array(addresses_of(t) + addresses_of(s), dtype=np.int64).reshape(-1)


def dirty_pages(words: int) -> int:
    """Bytes of the dirty map of an array of `words`."""
    return -(-words // (1 << DIRTY_PAGE_SHIFT))


def fresh_state(t: kt.Tables, *, arena_words: int = 2 * CHUNK_WORDS, pool_words: int = 1 << 12) -> State:
    """A state without any history."""
    entities = len(t.entity)
    scalars = np.zeros(SCALARS, np.int64)
    scalars[STREAM_MS] = -(1 << 62)  # no stream time yet: far below any event time
    scalars[POOL_NEXT] = 8  # block 0 means none
    arena = aligned_zeros(arena_words, np.int64)
    distincts = new_table(1 << 6)
    return State(
        scalars=scalars,
        passed=np.zeros((len(t.boundary_offset), 2), np.int64),
        arena=arena,
        arena_f=arena.view(np.float64),
        arena_dirty=np.zeros(dirty_pages(arena_words), np.uint8),
        pool=aligned_zeros(pool_words, np.int64),
        pool_free=np.zeros(POOL_CLASSES, np.int64),
        pool_dirty=np.zeros(dirty_pages(pool_words), np.uint8),
        late=np.zeros((LATE_FIRST_ROWS, 2), np.int64),
        late_dirty=np.zeros(dirty_pages(2 * LATE_FIRST_ROWS), np.uint8),
        keys=new_table(1 << 10),
        distincts=distincts,
        distincts_dirty=np.zeros(dirty_pages(distincts.size), np.uint8),
        unmatched=new_table(1 << 6),
        free_slots=np.zeros((entities, 3), np.int64),
        owner=np.full(len(arena) // CHUNK_WORDS, -1, np.int64),
        row_addresses=np.zeros(1, np.int64),
        index_addresses=np.zeros(1, np.int64),
        label_addresses=np.zeros(1, np.int64),
        known_addresses=np.zeros(1, np.int64),
        labels_dirty=np.zeros(1, np.uint8),
        unmatched_ring=np.zeros((UNMATCHED_RING, 4), np.uint64),
    )


def enlarged(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """A longer copy of a flat array or of rows, zeros behind."""
    width = int(np.prod(array.shape[1:], dtype=np.int64))
    larger = aligned_zeros(length * width, array.dtype).reshape((length, *array.shape[1:]))
    larger[: len(array)] = array
    return larger
