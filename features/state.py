"""What an engine remembers, as arrays, and the one small array of addresses through which kernels reach them.

    arena     strips of 64-bit words, one a live key of an entity: who the key is, how many of its rows are live, its
              running numbers.
              Shared out in chunks that hold strips of one entity, so that all keys can be listed without their table.
    pool      blocks of sorted pairs (features/series.py)
    late      late payments still in the log, (event time, seq) sorted by time; the log itself is in order of arrival,
              where those
              in time are sorted by themselves
    keys, distincts, orphans   hash tables (features/table.py)
    ring      labels that wait for their payment, in order of arrival: id low, id high, stream time when it came << 2 |
              label (0: it has gone); `orphans` says at which place, counted from the first one ever
    segments  addresses of the log's segments (features/segments.py), entry (seq >> shift) & (ring - 1)

Beside arena, pool, late and distincts stand maps of one byte for each 256 bytes that says "written since the map was
cleared": what lets a snapshot be taken while payments go on (features/capture.py). They are true while MARKING is set.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from features import plan as p
from features.memory import aligned_zeros, array_at, peek64, rows_at
from features.table import new_table

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]

# Words of State.scalars. The first block is part of a snapshot; the rest is rebuilt.
(
    STREAM_MS, NEXT_SEQ, LATE_COUNT, KEYS, DISTINCTS, ORPHANS, KEYS_REFUSED, ORPHANS_DROPPED, LABELS_APPLIED,
    POOL_NEXT, POOL_CLASS_MAX,
    CHUNKS, ORPHAN_HEAD, ORPHAN_TAIL, ORPHANS_EXPIRED, MARKING,
) = range(16)  # fmt: skip
SCALARS = 16

GRANULE_SHIFT = 5  # words: 256 bytes
GRANULE_BYTES = 8 << GRANULE_SHIFT
CHUNK_WORDS = 1 << 13  # 64 KiB
POOL_CLASSES = 40
LATE_FIRST_ROWS = 1 << 10
# Labels whose payment has not come. When full, the one that has waited longest makes room and is counted.
ORPHANS_MAX = 65_536
# Places of those in order of arrival; the gaps of labels that have found their payment are closed when it is full.
ORPHAN_RING = 2 * ORPHANS_MAX
# Labels of 4,096 rows are one granule of a snapshot; segments are at least that long.
LABEL_SHIFT = 12


class State(NamedTuple):
    """The arrays; they grow between calls of a kernel, never inside one. E entities, G edges.

    scalars int64 [16] · passed int64 [G, 2]: first seq, and first position in `late`, that has not passed edge g ·
    arena int64 and the same memory as float64 · pool int64 · pool_free int64 [40]: first free block of each class ·
    late int64 [cap, 2] · keys, distincts, orphans uint64 [cap, 3] · slots int64 [E, 3]: first free strip (0: none),
    next strip and end of the entity's newest chunk · owner int64 [chunks]: entity of each chunk · rows, index, labels
    int64 [segments]: addresses of the segments' parts · ring uint64 [131072, 3]
    """

    scalars: I64
    passed: I64
    arena: I64
    arena_f: npt.NDArray[np.float64]
    arena_dirty: U8
    pool: I64
    pool_free: I64
    pool_dirty: U8
    late: I64
    late_dirty: U8
    keys: U64
    distincts: U64
    distincts_dirty: U8
    orphans: U64
    slots: I64
    owner: I64
    rows: I64
    index: I64
    labels: I64
    labels_dirty: U8
    ring: U64


def granules(words: int) -> int:
    """Bytes of the dirty map of an array of `words`."""
    return -(-words // (1 << GRANULE_SHIFT))


def fresh_state(t: p.Tables, *, arena_words: int = 2 * CHUNK_WORDS, pool_words: int = 1 << 12) -> State:
    """A state without any history."""
    entities = len(t.entity)
    scalars = np.zeros(SCALARS, np.int64)
    scalars[STREAM_MS] = -(1 << 62)  # no stream time yet: far below any event time
    scalars[POOL_NEXT] = 8  # block 0 means none
    arena = aligned_zeros(arena_words, np.int64)
    slots = np.zeros((entities, 3), np.int64)
    distincts = new_table(1 << 6)
    return State(
        scalars=scalars,
        passed=np.zeros((len(t.edge_offset), 2), np.int64),
        arena=arena,
        arena_f=arena.view(np.float64),
        arena_dirty=np.zeros(granules(arena_words), np.uint8),
        pool=aligned_zeros(pool_words, np.int64),
        pool_free=np.zeros(POOL_CLASSES, np.int64),
        pool_dirty=np.zeros(granules(pool_words), np.uint8),
        late=np.zeros((LATE_FIRST_ROWS, 2), np.int64),
        late_dirty=np.zeros(granules(2 * LATE_FIRST_ROWS), np.uint8),
        keys=new_table(1 << 10),
        distincts=distincts,
        distincts_dirty=np.zeros(granules(distincts.size), np.uint8),
        orphans=new_table(1 << 6),
        slots=slots,
        owner=np.full(len(arena) // CHUNK_WORDS, -1, np.int64),
        rows=np.zeros(1, np.int64),
        index=np.zeros(1, np.int64),
        labels=np.zeros(1, np.int64),
        labels_dirty=np.zeros(1, np.uint8),
        ring=np.zeros((ORPHAN_RING, 3), np.uint64),
    )


def enlarged(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """A longer copy of a flat array or of rows, zeros behind."""
    width = int(np.prod(array.shape[1:], dtype=np.int64))
    larger = aligned_zeros(length * width, array.dtype).reshape((length, *array.shape[1:]))
    larger[: len(array)] = array
    return larger


def addresses(s: State, t: p.Tables) -> I64:
    """(address, length) of every array of the tables and the state, for `view_tables` and `view_state`; the arrays must
    outlive it."""
    pairs = [(a.ctypes.data, len(a)) for a in (*t, *s)]
    return np.array(pairs, dtype=np.int64).reshape(-1)


_TABLES = 2 * len(p.Tables._fields)


@nb.njit(inline="always")
def _flat(context, k, kind):  # type: ignore[no-untyped-def]
    return array_at(peek64(context + 8 * k), peek64(context + 8 * k + 8), kind)


@nb.njit(inline="always")
def _rows(context, k, width, kind):  # type: ignore[no-untyped-def]
    return rows_at(peek64(context + 8 * k), peek64(context + 8 * k + 8), width, kind)


@nb.njit(inline="always")
def view_tables(c):  # type: ignore[no-untyped-def]
    """The tables behind the addresses `c`."""
    return p.Tables(
        _flat(c, 0, np.int64),
        _flat(c, 2, np.int64),
        _rows(c, 4, p.CHANGE_WORDS, np.int64),
        _flat(c, 6, np.int64),
        _rows(c, 8, 2, np.int64),
        _flat(c, 10, np.int64),
        _rows(c, 12, p.OP_WORDS, np.int64),
        _rows(c, 14, p.CHANGE_WORDS, np.int64),
        _flat(c, 16, np.int64),
        _rows(c, 18, 2, np.int64),
        _rows(c, 20, 2, np.int64),
        _rows(c, 22, p.READ_WORDS, np.int64),
        _flat(c, 24, np.int64),
        _rows(c, 26, 4, np.int64),
        _rows(c, 28, 2, np.float64),
        _flat(c, 30, np.int64),
        _flat(c, 32, np.float64),
    )


@nb.njit(inline="always")
def view_state(c):  # type: ignore[no-untyped-def]
    """The state behind the addresses `c`."""
    return State(
        _flat(c, _TABLES, np.int64),
        _rows(c, _TABLES + 2, 2, np.int64),
        _flat(c, _TABLES + 4, np.int64),
        _flat(c, _TABLES + 6, np.float64),
        _flat(c, _TABLES + 8, np.uint8),
        _flat(c, _TABLES + 10, np.int64),
        _flat(c, _TABLES + 12, np.int64),
        _flat(c, _TABLES + 14, np.uint8),
        _rows(c, _TABLES + 16, 2, np.int64),
        _flat(c, _TABLES + 18, np.uint8),
        _rows(c, _TABLES + 20, 3, np.uint64),
        _rows(c, _TABLES + 22, 3, np.uint64),
        _flat(c, _TABLES + 24, np.uint8),
        _rows(c, _TABLES + 26, 3, np.uint64),
        _rows(c, _TABLES + 28, 3, np.int64),
        _flat(c, _TABLES + 30, np.int64),
        _flat(c, _TABLES + 32, np.int64),
        _flat(c, _TABLES + 34, np.int64),
        _flat(c, _TABLES + 36, np.int64),
        _flat(c, _TABLES + 38, np.uint8),
        _rows(c, _TABLES + 40, 3, np.uint64),
    )
