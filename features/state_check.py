"""Whether a restored state is one that kernels may run on: every place, count, chain and list of it looked at.

A kernel follows the places that a state holds without looking at them, so a state that lies could let it write into
foreign memory, or follow a chain for ever. These checks are complete in that sense: in a state that passes them every
place is inside its array and of its kind, every chain ends, no two owners share a block or a slot, and every table has
empty places and short runs. They do not tell a wrong sum from a right one: for that a snapshot is compared with its
digest in the journal (scorer/worker/follower.py).

Each kernel gives 0, or the number of the part that does not hold (PARTS).
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.arithmetic import degrees_of
from features.engine_state import (
    CHUNK_WORDS,
    CHUNKS,
    DISTINCTS,
    KEYS,
    LATE_COUNT,
    NEXT_SEQ,
    POOL_CLASS_MAX,
    POOL_CLASSES,
    POOL_NEXT,
    STREAM_MS,
    State,
)
from features.event_log import CAME_LATE, NO_SLOT_NUMBER, TIME_SHIFT, index_row, row_address
from features.hash_table import put_new
from features.raw_memory import entry, inlined, peek32, peek64
from features.series import BLOCK_WORDS, holds_series

# What a kernel reports; 0 is sound.
PARTS = (
    "", "rows of the log", "late payments", "blocks of the pool", "free blocks", "chunks", "free slots", "slots",
    "series of a key", "keys", "distinct values", "index of payment ids",
)  # fmt: skip
SOUND, ROWS, LATE, BLOCKS, FREE_BLOCKS, OWNERS, FREE_SLOTS, SLOTS, SERIES, KEY_TABLE, DISTINCT, INDEX = range(12)

_FREE = np.uint8(255)
# Of a segment's index: a whole one of a sound state takes 5 a row on average.
_INDEX_STEPS_A_ROW, _INDEX_STEPS = 64, 1 << 16


@inlined
def _is_slot(t: kt.Tables, s: State, slot: int, e: int) -> bool:
    """Whether an entity slot of e begins here."""
    chunk = slot // CHUNK_WORDS
    if slot <= 0 or chunk < 1 or chunk > s.scalars[CHUNKS] or s.owner[chunk] != e:
        return False
    at = slot - chunk * CHUNK_WORDS
    return at % t.entity[e, 0] == 0 and at + t.entity[e, 0] <= CHUNK_WORDS


@inlined
def _is_untouched(s: State, slot: int, e: int) -> bool:
    """Whether the slot lies in the part of e's newest chunk that was never given away."""
    return s.free_slots[e, 1] <= slot < s.free_slots[e, 2]


@entry
def check_log(t: kt.Tables, s: State, first: int, live) -> int:  # type: ignore[no-untyped-def]
    """Rows from `first` on, all mapped, and the list of late ones. Counts in `live`, int64 by slot number, the rows
    that still count for a key."""
    latest_ms = np.int64(-1)
    slots_at = t.limits[kt.ROW_SLOTS]
    for seq in range(first, s.scalars[NEXT_SEQ]):
        row = row_address(t, s, seq)
        head = peek64(row)
        time_ms, late = head >> TIME_SHIFT, head & CAME_LATE
        if time_ms < 0 or time_ms > s.scalars[STREAM_MS]:
            return ROWS
        if not late:
            if time_ms < latest_ms:
                return ROWS
            latest_ms = time_ms
        for e in range(len(t.entity)):
            number = np.int64(peek32(row + slots_at + 4 * e))
            if number == NO_SLOT_NUMBER:
                continue
            if not _is_slot(t, s, number << kt.SLOT_SHIFT, e):
                return ROWS
            release = t.entity[e, 1]
            if release < 0 or (not late and seq >= s.passed[release, 0]):
                live[number] += 1
    needed = s.scalars[LATE_COUNT]
    for g in range(len(s.passed)):
        needed = min(needed, s.passed[g, 1])
    for position in range(s.scalars[LATE_COUNT]):
        time_ms, seq = s.late[position, 0], s.late[position, 1]
        if position > 0 and time_ms < s.late[position - 1, 0]:
            return LATE
        if position < needed:  # nothing looks at it any more
            continue
        if seq < first or seq >= s.scalars[NEXT_SEQ]:
            return LATE
        row = row_address(t, s, seq)
        head = peek64(row)
        if head >> TIME_SHIFT != time_ms or not head & CAME_LATE:
            return LATE
        for e in range(len(t.entity)):
            release = t.entity[e, 1]
            number = np.int64(peek32(row + slots_at + 4 * e))
            if number != NO_SLOT_NUMBER and release >= 0 and position >= s.passed[release, 1]:
                live[number] += 1
    return SOUND


@entry
def check_pool(s: State, blocks) -> int:  # type: ignore[no-untyped-def]
    """Blocks fill the pool without gaps, and free ones stand in one list each. Notes in `blocks`, uint8 by place / 8,
    size class + 1 where a block begins that is in use."""
    end = s.scalars[POOL_NEXT]
    at, largest = np.int64(BLOCK_WORDS), np.int64(0)
    while at < end:
        size_class = s.pool[at + 1]
        if size_class < 0 or size_class >= POOL_CLASSES - 1 or (np.int64(BLOCK_WORDS) << size_class) > end - at:
            return BLOCKS
        blocks[at // BLOCK_WORDS] = np.uint8(size_class + 1)
        largest = max(largest, size_class)
        at += np.int64(BLOCK_WORDS) << size_class
    if largest != s.scalars[POOL_CLASS_MAX]:
        return BLOCKS
    for size_class in range(POOL_CLASSES):
        block = s.pool_free[size_class]
        while block != 0:
            if block < BLOCK_WORDS or block >= end or block % BLOCK_WORDS != 0:
                return FREE_BLOCKS
            if blocks[block // BLOCK_WORDS] != size_class + 1:
                return FREE_BLOCKS
            blocks[block // BLOCK_WORDS] = _FREE
            block = s.pool[block]
    return SOUND


@inlined
def _series(t: kt.Tables, s: State, o: int, block: int, blocks) -> bool:  # type: ignore[no-untyped-def]
    """Whether a key's series for op o is a block in use that no other has, with its pairs inside it and in order of
    time; and whether neighbours are slots of their entity (one that has been freed is one still), and places are on
    the earth."""
    if block < BLOCK_WORDS or block >= s.scalars[POOL_NEXT] or block % BLOCK_WORDS != 0:
        return False
    mark = blocks[block // BLOCK_WORDS]
    if mark == 0 or mark == _FREE:  # noqa: PLR1714
        return False
    blocks[block // BLOCK_WORDS] = _FREE
    word = s.pool[block]
    first, count = word >> 32, word & ((np.int64(1) << 32) - 1)
    if first < 0 or first + count > ((np.int64(BLOCK_WORDS) << np.int64(mark - 1)) - 2) // 2:
        return False
    sound, kind = True, t.ops[o, kt.O_KIND]
    for k in range(first, first + count):
        sound &= k == first or s.pool[block + 2 + 2 * k] >= s.pool[block + 2 * k]
        if kind == kt.OP_NEIGHBOURS:
            sound &= _is_slot(t, s, s.pool[block + 3 + 2 * k], t.ops[o, kt.O_NEIGHBOUR])
        elif kind == kt.OP_PLACES:
            latitude, longitude = degrees_of(s.pool[block + 3 + 2 * k])
            sound &= abs(latitude) <= 90.0 and abs(longitude) <= 180.0
    return sound


@entry
def check_slots(t: kt.Tables, s: State, live, free, blocks, keys) -> int:  # type: ignore[no-untyped-def]
    """Every slot of every chunk, and the lists of free ones; live keys go into the table `keys`.

    `live` and `blocks` come from check_log and check_pool; `free` int64 [E] is zero.
    """
    for e in range(len(t.entity)):
        following, end = s.free_slots[e, 1], s.free_slots[e, 2]
        if end == 0:
            if following != 0:
                return FREE_SLOTS
            continue
        if end % CHUNK_WORDS != 0 or end < 2 * CHUNK_WORDS or end > (s.scalars[CHUNKS] + 1) * CHUNK_WORDS:
            return FREE_SLOTS
        begin = end - CHUNK_WORDS
        if s.owner[begin // CHUNK_WORDS] != e or following < begin or following > end:
            return FREE_SLOTS
        if (following - begin) % t.entity[e, 0] != 0:
            return FREE_SLOTS
    found = 0
    for chunk in range(1, s.scalars[CHUNKS] + 1):
        e = s.owner[chunk]
        if e < 0 or e >= len(t.entity):
            return OWNERS
        words, release = t.entity[e, 0], t.entity[e, 1]
        for k in range(CHUNK_WORDS // words):
            slot = chunk * CHUNK_WORDS + k * words
            count, rows = s.arena[slot + kt.LIVE], live[slot >> kt.SLOT_SHIFT]
            if count == 0:
                untouched = _is_untouched(s, slot, e)
                for w in range(0 if untouched else 1, words):
                    if s.arena[slot + w] != 0:
                        return SLOTS
                if rows != 0:
                    return SLOTS
                free[e] += 0 if untouched else 1
                continue
            if _is_untouched(s, slot, e) or count < 0 or count & 1 == 0:
                return SLOTS
            if release >= 0 and count != 2 * rows + 1:
                return SLOTS
            for o in range(len(t.ops)):
                kind = t.ops[o, kt.O_KIND]
                if t.ops[o, kt.O_ENTITY] == e and holds_series(kind):
                    block = s.arena[slot + t.ops[o, kt.O_ACCUMULATOR]]
                    if block != 0 and not _series(t, s, o, block, blocks):
                        return SERIES
            low, high = np.uint64(s.arena[slot + kt.KEY_LOW]), np.uint64(s.arena[slot + kt.KEY_HIGH])
            found += 1
            if found > s.scalars[KEYS] or put_new(keys, low, high, slot) < 0:
                return KEY_TABLE
    if found != s.scalars[KEYS]:
        return KEY_TABLE
    for e in range(len(t.entity)):
        slot, steps = s.free_slots[e, 0], np.int64(0)
        while slot != 0:
            if steps >= free[e] or not _is_slot(t, s, slot, e):
                return FREE_SLOTS
            if s.arena[slot + kt.LIVE] != 0 or _is_untouched(s, slot, e):
                return FREE_SLOTS
            steps += 1
            slot = s.arena[slot]
        if steps != free[e]:
            return FREE_SLOTS
    return SOUND


@inlined
def _counts_distinct(t: kt.Tables, s: State, accumulator: int) -> bool:
    """Whether this word of the arena belongs to a live slot and counts different values."""
    chunk = accumulator // CHUNK_WORDS
    if chunk < 1 or chunk > s.scalars[CHUNKS]:
        return False
    e = s.owner[chunk]
    words = t.entity[e, 0]
    slot = accumulator - (accumulator - chunk * CHUNK_WORDS) % words
    if not _is_slot(t, s, slot, e) or s.arena[slot + kt.LIVE] == 0:
        return False
    for o in range(len(t.ops)):
        if t.ops[o, kt.O_ENTITY] == e and t.ops[o, kt.O_KIND] == kt.OP_NUMERIC:
            for d in range(t.ops[o, kt.O_DISTINCT], t.ops[o, kt.O_DISTINCT_END]):
                if slot + t.distincts[d, 1] == accumulator:
                    return True
    return False


@entry
def check_distincts(t: kt.Tables, s: State, source, counts) -> int:  # type: ignore[no-untyped-def]
    """The entries of the image's table `source` go into the state's own, which is empty and has room for them.
    `counts`, zeros, as long as the arena."""
    found = 0
    for i in range(len(source)):
        stored = np.int64(source[i, 2])
        if stored == 0:
            continue
        accumulator = np.int64(source[i, 1])
        found += 1
        if stored < 2 or found > s.scalars[DISTINCTS] or accumulator <= 0:
            return DISTINCT
        if not _counts_distinct(t, s, accumulator):
            return DISTINCT
        counts[accumulator] += 1
        if put_new(s.distincts, source[i, 0], source[i, 1], stored - 1) < 0:
            return DISTINCT
    if found != s.scalars[DISTINCTS]:
        return DISTINCT
    for i in range(len(source)):
        if source[i, 2] != 0 and counts[source[i, 1]] != s.arena[source[i, 1]]:
            return DISTINCT
    return SOUND


@entry
def index_all(t: kt.Tables, rows: int, index: int, count: int) -> int:
    """Make all rows of a segment findable by their payment's id, with an effort that is bounded."""
    steps = np.int64(0)
    for i in range(count):
        steps += index_row(t, index, i, np.uint64(peek64(rows + i * t.limits[kt.ROW_BYTES] + t.limits[kt.ROW_ID])))
        if steps > _INDEX_STEPS + _INDEX_STEPS_A_ROW * i:
            return INDEX
    return SOUND
