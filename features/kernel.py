"""The kernel: payments in journal order in, feature values out, the state moved on. All numba, no allocation, no GIL.

For each payment: move stream time; let rows pass the edges; apply the labels that are known by now; read the features;
write the row into the log and into the cells. Integers throughout, so that adding and removing never drifts; the only
floating-point steps are the last one, from exact integers to a value, and decayed sums, to which is only ever added.

Memory is fetched ahead: a payment's keys are looked up a few payments early, and what a row will touch when it passes
an edge is asked for a few rows early, so that with millions of keys the waits overlap.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import math

import numba as nb
import numpy as np
import numpy.typing as npt

from features import plan as p
from features.arithmetic import add_square, halved
from features.labels import apply_label, set_label, take_orphan
from features.log import (
    CAME_LATE,
    NO_SLOT,
    TIME_SHIFT,
    WHERE_SHIFT,
    index_home,
    index_row,
    label_of,
    passes,
    row_address,
)
from features.memory import CACHE_LINE, inlined, kernel, move, peek32, peek64, poke8, poke32, poke64, prefetch
from features.reading import NO_KEY, NO_STRIP, degrees, distinct_low, key_of, read_all, word
from features.series import BLOCK_WORDS, free_block, push_extreme, push_sorted
from features.state import (
    CHUNK_WORDS,
    CHUNKS,
    DISTINCTS,
    GRANULE_SHIFT,
    KEYS,
    KEYS_REFUSED,
    LATE_COUNT,
    MARKING,
    NEXT_SEQ,
    ORPHANS,
    POOL_CLASS_MAX,
    POOL_NEXT,
    STREAM_MS,
    State,
    view_state,
    view_tables,
)
from features.table import find, get, put, remove_at

# How far ahead of use, in rows of an edge and in payments: each is about 1 µs. Further ahead, and the first-level cache
# has lost again what was fetched: a payment touches some 60 lines of its 512.
ROWS_AHEAD = 4
PAYMENTS_AHEAD, KEYS_AHEAD, STRIPS_AHEAD, BLOCKS_AHEAD = 32, 8, 4, 2
# Working space in units of E words: the strips of this payment, and of those ahead.
SPACE_ROWS = 1 + STRIPS_AHEAD

# What `apply` returns.
DONE, CRAMPED = 0, 1
# Words of `progress`: payments done, labels applied.
PAYMENTS_DONE, LABELS_DONE = 0, 1


@inlined
def _cramped(t: p.Tables, s: State) -> bool:
    """Whether one more row might need more memory than there is; the engine makes room and calls again."""
    series = t.scalars[p.SERIES_OPS]
    if series > 0 and s.scalars[POOL_NEXT] + series * ((2 * BLOCK_WORDS) << s.scalars[POOL_CLASS_MAX]) > len(s.pool):
        return True
    distincts = t.scalars[p.DISTINCT_OPS]
    return distincts > 0 and (s.scalars[DISTINCTS] + distincts) * 8 > len(s.distincts) * 5


@inlined
def _mark_place(s: State, place: int) -> None:
    s.distincts_dirty[(3 * place) >> GRANULE_SHIFT] = 1
    s.distincts_dirty[(3 * place + 2) >> GRANULE_SHIFT] = 1


@kernel
def _count_value(c: int, cell: int, value: np.uint64, sign: int) -> None:
    """One more (or less) payment with `value` in the window that counts its different values in `cell`."""
    s = view_state(c)
    low = distinct_low(cell, value)
    place = find(s.distincts, low, np.uint64(cell))
    if sign > 0:
        if place >= 0:
            s.distincts[place, 2] += np.uint64(1)
        else:
            place = put(s.distincts, low, np.uint64(cell), 1)
            s.scalars[DISTINCTS] += 1
            s.arena[cell] += 1
        _mark_place(s, place)
    elif s.distincts[place, 2] == np.uint64(2):  # stored as count + 1: this was the last one
        last = remove_at(s.distincts, place)
        while place != last:  # later keys of the run may have moved back
            _mark_place(s, place)
            place = (place + 1) & (len(s.distincts) - 1)
        _mark_place(s, last)
        s.scalars[DISTINCTS] -= 1
        s.arena[cell] -= 1
    else:
        s.distincts[place, 2] -= np.uint64(1)
        _mark_place(s, place)


@inlined
def _numeric(c: int, t: p.Tables, s: State, o: int, strip: int, sign: int, row: int, amount: int, fraud: int) -> None:
    """Add (sign 1) or take away (-1) a row's share of a NUMERIC group."""
    cell = strip + t.ops[o, p.O_CELL]
    s.arena[cell] += sign
    if t.ops[o, p.O_SUM]:
        s.arena[strip + t.ops[o, p.O_SUM]] += sign * amount
    if t.ops[o, p.O_SQUARES]:
        add_square(s.arena, strip + t.ops[o, p.O_SQUARES], amount, sign)
    if t.ops[o, p.O_FRAUD]:
        s.arena[strip + t.ops[o, p.O_FRAUD]] += sign * fraud
    for d in range(t.ops[o, p.O_DISTINCT], t.ops[o, p.O_DISTINCT_END]):
        value = np.uint64(peek64(row + t.scalars[p.ROW_DISTINCT] + 8 * t.distincts[d, 0]))
        if value != 0:
            _count_value(c, strip + t.distincts[d, 1], value, sign)
    s.arena_dirty[cell >> GRANULE_SHIFT] = 1
    s.arena_dirty[(cell + t.ops[o, p.O_WIDTH] - 1) >> GRANULE_SHIFT] = 1


@kernel
def _free_strip(c: int, e: int, strip: int) -> None:
    """A key whose windows are all empty gives its place back."""
    t, s = view_tables(c), view_state(c)
    remove_at(s.keys, find(s.keys, np.uint64(s.arena[strip + p.KEY_LOW]), np.uint64(s.arena[strip + p.KEY_HIGH])))
    s.scalars[KEYS] -= 1
    for o in range(len(t.ops)):
        kind = t.ops[o, p.O_KIND]
        if t.ops[o, p.O_ENTITY] == e and (kind == p.EXTREME or kind == p.MEDIAN_OF or kind == p.FRAUDS):  # noqa: PLR1714
            block = s.arena[strip + t.ops[o, p.O_CELL]]
            if block != 0:
                free_block(c, block)
    words = t.entity[e, 0]
    s.arena[strip : strip + words] = 0
    s.arena[strip] = s.slots[e, 0]
    s.slots[e, 0] = strip
    for g in range(strip >> GRANULE_SHIFT, ((strip + words - 1) >> GRANULE_SHIFT) + 1):
        s.arena_dirty[g] = 1


@inlined
def _pass_edge(c: int, t: p.Tables, s: State, g: int, seq: int, row: int, now_ms: int) -> None:
    """Row `seq` passes edge g: it leaves the windows that end there and enters those that begin there."""
    head, amount = peek64(row), peek64(row + 8)
    where = peek64(row + t.scalars[p.ROW_WHERE]) if t.scalars[p.ROW_WHERE] else head >> WHERE_SHIFT
    arena, dirty = np.int64(s.arena.ctypes.data), _marks(s)
    change = np.int64(t.edge_ops.ctypes.data) + t.edge_start[g] * (8 * p.CHANGE_WORDS)
    for _ in range(t.edge_start[g + 1] - t.edge_start[g]):
        slot = np.int64(peek32(row + peek64(change + 8 * p.C_SLOT)))
        bit = peek64(change + 8 * p.C_WHERE)
        if slot != NO_SLOT and (bit < 0 or (where >> bit) & 1 == 1):
            sign = peek64(change + 8 * p.C_SIGN)
            extent = peek64(change + 8 * p.C_EXTENT)
            if extent == p.COUNT_AND_SUM:
                _add(arena, dirty, arena + (slot << (p.STRIP_SHIFT + 3)), change, sign, amount)
                fraud = peek64(change + 8 * p.C_FRAUD)
                if fraud != 0 and label_of(t, s, seq) == 1:
                    at = arena + (slot << (p.STRIP_SHIFT + 3)) + fraud
                    poke64(at, peek64(at) + sign)
            elif extent == p.RELEASING:
                _release(c, t, s, peek64(change), slot << p.STRIP_SHIFT)
            else:
                _pass_more(c, peek64(change), sign, slot << p.STRIP_SHIFT, seq, row, now_ms)
        change += 8 * p.CHANGE_WORDS


@inlined
def _marks(s: State) -> int:
    """Address of the arena's dirty map, or 0 while nobody takes a snapshot."""
    return np.int64(s.arena_dirty.ctypes.data) if s.scalars[MARKING] != 0 else np.int64(0)


@inlined
def _add(arena: int, dirty: int, strip: int, change: int, sign: int, amount: int) -> None:
    """Count, and sum where there is one, of a group whose strip lies at the address `strip`."""
    at = strip + peek64(change + 8 * p.C_CELL)
    poke64(at, peek64(at) + sign)
    total = peek64(change + 8 * p.C_SUM)
    if total != 0:
        poke64(strip + total, peek64(strip + total) + sign * amount)
    if dirty != 0:
        poke8(dirty + ((at - arena) >> (GRANULE_SHIFT + 3)), np.uint8(1))


@inlined
def _release(c: int, t: p.Tables, s: State, o: int, strip: int) -> None:
    """A row leaves the longest window of its key, which gives its place back when it was the last one."""
    live = s.arena[strip + p.LIVE] - 2
    s.arena[strip + p.LIVE] = live
    s.arena_dirty[(strip + p.LIVE) >> GRANULE_SHIFT] = 1
    if live == 1:
        _free_strip(c, t.ops[o, p.O_ENTITY], strip)


@kernel
def _pass_more(c: int, o: int, sign: int, strip: int, seq: int, row: int, now_ms: int) -> None:
    """The rarer things that a row does at an edge."""
    t, s = view_tables(c), view_state(c)
    kind = t.ops[o, p.O_KIND]
    if kind == p.NUMERIC:
        fraud = 1 if t.ops[o, p.O_FRAUD] and label_of(t, s, seq) == 1 else 0
        _numeric(c, t, s, o, strip, sign, row, peek64(row + 8), fraud)
    else:
        _enter_series(c, t, s, o, strip, peek64(row) >> TIME_SHIFT, peek64(row + 8), now_ms)


@inlined
def _enter_series(c: int, t: p.Tables, s: State, o: int, strip: int, time_ms: int, amount: int, now_ms: int) -> None:
    cell = strip + t.ops[o, p.O_CELL]
    limit_ms = now_ms - t.ops[o, p.O_EXPIRES_MS]
    if t.ops[o, p.O_KIND] == p.EXTREME:
        push_extreme(c, cell, time_ms, amount, t.ops[o, p.O_AUX], limit_ms)
    else:
        push_sorted(c, cell, time_ms, amount, p.MEDIAN_MAX, limit_ms)
    s.arena_dirty[cell >> GRANULE_SHIFT] = 1


@inlined
def _advance(c: int, t: p.Tables, s: State, arena: int, now_ms: int) -> bool:
    """Let every row that has passed an edge by stream time `now_ms` change its cells. False: more room is needed
    first."""
    count = s.scalars[NEXT_SEQ]
    late_count = s.scalars[LATE_COUNT]
    row_bytes = t.scalars[p.ROW_BYTES]
    for g in range(len(t.edge_offset)):
        limit_ms, grows = now_ms - t.edge_offset[g], t.edge_grows[g] != 0
        following, position = s.passed[g, 0], s.passed[g, 1]
        while True:
            seq, late = np.int64(-1), False
            if following < count:
                row = row_address(t, s, following)
                head = peek64(row)
                if head & CAME_LATE:
                    following += 1
                    continue
                if head >> TIME_SHIFT <= limit_ms:
                    seq = following
            if seq < 0 and position < late_count and s.late[position, 0] <= limit_ms:
                seq, late = s.late[position, 1], True
                row = row_address(t, s, seq)
            if seq < 0:
                break
            if grows and _cramped(t, s):
                s.passed[g, 0], s.passed[g, 1] = following, position
                return False
            if late:
                position += 1
            else:
                following += 1
                prefetch(row + 3 * ROWS_AHEAD * row_bytes)
                if seq + ROWS_AHEAD < count:
                    _fetch_strips(t, g, row_address(t, s, seq + ROWS_AHEAD), arena)
            _pass_edge(c, t, s, g, seq, row, now_ms)
        s.passed[g, 0], s.passed[g, 1] = following, position
    return True


@inlined
def _fetch_strips(t: p.Tables, g: int, row: int, arena: int) -> None:
    """Ask for what a row will touch when it passes edge g. NO_SLOT asks for an address far away, which does nothing."""
    touch = np.int64(t.edge_touches.ctypes.data) + 16 * t.touch_start[g]
    for _ in range(t.touch_start[g + 1] - t.touch_start[g]):
        slot = np.int64(peek32(row + peek64(touch)))
        prefetch(arena + (slot << (p.STRIP_SHIFT + 3)) + peek64(touch + 8))
        touch += 16


@kernel
def _new_strip(c: int, e: int, low: np.uint64, high: np.uint64) -> int:
    """A strip for a key seen for the first time, or NO_STRIP when the set's `keys_max` are live."""
    t, s = view_tables(c), view_state(c)
    if s.scalars[KEYS] >= t.scalars[p.KEYS_MAX]:
        s.scalars[KEYS_REFUSED] += 1
        return NO_STRIP
    words = t.entity[e, 0]
    strip = s.slots[e, 0]
    if strip != 0:
        s.slots[e, 0] = s.arena[strip]
    else:
        if s.slots[e, 1] + words > s.slots[e, 2]:
            s.scalars[CHUNKS] += 1  # chunk 0 stays empty: strip 0 means none
            s.owner[s.scalars[CHUNKS]] = e
            s.slots[e, 1] = s.scalars[CHUNKS] * CHUNK_WORDS
            s.slots[e, 2] = s.slots[e, 1] + CHUNK_WORDS
        strip = s.slots[e, 1]
        s.slots[e, 1] += words
    s.arena[strip + p.KEY_LOW] = np.int64(low)
    s.arena[strip + p.KEY_HIGH] = np.int64(high)
    s.arena[strip + p.LIVE] = 1
    put(s.keys, low, high, strip)
    s.scalars[KEYS] += 1
    return strip


@kernel
def _enter(c: int, payment: int, o: int, strip: int, row: int, now_ms: int) -> None:  # type: ignore[no-untyped-def]
    """What payment i does to a group that it belongs to from now on."""
    t, s = view_tables(c), view_state(c)
    kind = t.ops[o, p.O_KIND]
    time_ms, amount = word(payment, p.B_TIME), word(payment, p.B_AMOUNT)
    if kind == p.NUMERIC:
        _numeric(c, t, s, o, strip, 1, row, amount, 0)
        return
    if kind == p.EXTREME or kind == p.MEDIAN_OF:  # noqa: PLR1714
        _enter_series(c, t, s, o, strip, time_ms, amount, now_ms)
        return
    cell = strip + t.ops[o, p.O_CELL]
    before_ms = s.arena[cell]
    if kind == p.LAST_ONE:
        if time_ms >= before_ms:
            s.arena[cell], s.arena[cell + 1] = time_ms, amount
    elif kind == p.FIRST_ONE:
        if before_ms == 0 or time_ms < before_ms:
            s.arena[cell] = time_ms
    elif kind == p.PLACE:
        latitude, longitude = degrees(word(payment, p.B_LATITUDE)), degrees(word(payment, p.B_LONGITUDE))
        if time_ms >= before_ms and not (math.isnan(latitude) or math.isnan(longitude)):
            s.arena[cell] = time_ms
            s.arena_f[cell + 1] = latitude
            s.arena_f[cell + 2] = longitude
    elif kind == p.DECAY:
        half_life = np.float64(t.ops[o, p.O_AUX])
        if before_ms == 0 or time_ms >= before_ms:
            fade = halved((time_ms - before_ms) / half_life) if before_ms != 0 else 0.0
            s.arena[cell] = time_ms
            s.arena_f[cell + 1] = s.arena_f[cell + 1] * fade + 1.0
            s.arena_f[cell + 2] = s.arena_f[cell + 2] * fade + np.float64(amount)
        else:  # late: it has faded already
            fade = halved((before_ms - time_ms) / half_life)
            s.arena_f[cell + 1] += fade
            s.arena_f[cell + 2] += np.float64(amount) * fade
    s.arena_dirty[cell >> GRANULE_SHIFT] = 1
    s.arena_dirty[(cell + t.ops[o, p.O_WIDTH] - 1) >> GRANULE_SHIFT] = 1


@kernel
def _insert_late(c: int, seq: int, time_ms: int, now_ms: int) -> None:
    """Put a late row into the list of late ones, sorted by event time, and move the edges that it has passed
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
    for g in range((2 * position) >> GRANULE_SHIFT, ((2 * end + 1) >> GRANULE_SHIFT) + 1):
        s.late_dirty[g] = 1
    for g in range(len(t.edge_offset)):
        if time_ms <= now_ms - t.edge_offset[g]:
            s.passed[g, 1] += 1


@inlined
def _insert(c: int, t: p.Tables, s: State, payment: int, bits: np.uint64, strips, now_ms: int) -> None:  # type: ignore[no-untyped-def]
    """Write payment i into the log and into every group whose window it stands in."""
    seq = s.scalars[NEXT_SEQ]
    row = row_address(t, s, seq)
    time_ms = word(payment, p.B_TIME)
    in_time = time_ms == now_ms
    head = (time_ms << TIME_SHIFT) | (0 if in_time else CAME_LATE)
    if t.scalars[p.ROW_WHERE]:
        poke64(row + t.scalars[p.ROW_WHERE], np.int64(bits))
    else:
        head |= np.int64(bits) << WHERE_SHIFT
    poke64(row, head)
    poke64(row + 8, word(payment, p.B_AMOUNT))
    entities = len(t.entity)
    for d in range(t.scalars[p.DISTINCT_COLUMNS]):
        poke64(row + t.scalars[p.ROW_DISTINCT] + 8 * d, word(payment, p.B_KEYS + 2 * entities + d))
    slots = row + t.scalars[p.ROW_SLOT]
    for e in range(entities):
        poke32(slots + 4 * e, np.uint32(NO_SLOT))
        strip = peek64(strips + 8 * e)
        release = t.entity[e, 1]
        if strip == NO_KEY or (release >= 0 and time_ms <= now_ms - t.edge_offset[release]):
            poke64(strips + 8 * e, NO_STRIP)
            continue
        if strip == NO_STRIP:
            low, high = key_of(payment, e)
            strip = np.int64(_new_strip(c, e, low, high))
            poke64(strips + 8 * e, strip)
            if strip == NO_STRIP:
                continue
        poke32(slots + 4 * e, np.uint32(strip >> p.STRIP_SHIFT))
        s.arena[strip + p.LIVE] += 2
        s.arena_dirty[strip >> GRANULE_SHIFT] = 1
        s.arena_dirty[(strip + p.LIVE) >> GRANULE_SHIFT] = 1
    if in_time:
        arena, dirty = np.int64(s.arena.ctypes.data), _marks(s)
        amount = word(payment, p.B_AMOUNT)
        change = np.int64(t.prompt.ctypes.data)
        for _ in range(len(t.prompt)):
            strip = peek64(strips + 2 * (peek64(change + 8 * p.C_SLOT) - t.scalars[p.ROW_SLOT]))
            bit = peek64(change + 8 * p.C_WHERE)
            if strip != NO_STRIP and (bit < 0 or (bits >> np.uint64(bit)) & np.uint64(1)):
                if peek64(change + 8 * p.C_EXTENT) == p.COUNT_AND_SUM:
                    _add(arena, dirty, arena + 8 * strip, change, 1, amount)
                else:
                    _enter(c, payment, peek64(change), strip, row, now_ms)
            change += 8 * p.CHANGE_WORDS
    else:
        _insert_late(c, seq, time_ms, now_ms)
        for o in range(len(t.ops)):
            strip = peek64(strips + 8 * t.ops[o, p.O_ENTITY])
            kind = t.ops[o, p.O_KIND]
            if strip == NO_STRIP or kind == p.FRAUDS or kind == p.VERDICT or kind == p.RELEASE:  # noqa: PLR1714
                continue
            if not passes(t, row, t.ops[o, p.O_WHERE]):
                continue
            enters, leaves, expires_ms = t.ops[o, p.O_ENTERS], t.ops[o, p.O_LEAVES], t.ops[o, p.O_EXPIRES_MS]
            if leaves >= 0 and time_ms <= now_ms - t.edge_offset[leaves]:
                continue
            if enters >= 0 and time_ms > now_ms - t.edge_offset[enters]:
                continue
            if (kind == p.EXTREME or kind == p.MEDIAN_OF) and time_ms <= now_ms - expires_ms:  # noqa: PLR1714
                continue
            _enter(c, payment, o, strip, row, now_ms)
    s.scalars[NEXT_SEQ] += 1
    if t.scalars[p.LABELS_MATTER]:
        low, high = np.uint64(word(payment, p.B_ID)), np.uint64(word(payment, p.B_ID_HIGH))
        poke64(row + t.scalars[p.ROW_ID], np.int64(low))
        poke32(row + t.scalars[p.ROW_BYTES] - 4, np.uint32(high & np.uint64(0xFFFFFFFF)))
        shift = t.scalars[p.SEGMENT_SHIFT]
        segment, in_segment = (seq >> shift) & (len(s.rows) - 1), seq & ((np.int64(1) << shift) - 1)
        poke8(s.labels[segment] + in_segment, np.uint8(0))
        index_row(t, s.index[segment], in_segment, low)
        if s.scalars[ORPHANS] > 0:
            label = take_orphan(c, low, high, now_ms)
            if label != 0 and time_ms > now_ms - t.edge_offset[t.scalars[p.RETENTION]]:
                set_label(c, seq, label, now_ms)


@inlined
def _fetch_ahead(t: p.Tables, s: State, b: int, width: int, i: int, n: int, found: int) -> None:
    """Ask for payment i + 32 itself, for the key-table places of payment i + 8, the strips of i + 4 and the blocks of
    i + 2.

    `b` is the address of payment 0, `width` the bytes of each. `found`, int64 [4, E], remembers the strips: between
    looking ahead and using one it may be freed, so that its key must be asked again."""
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
    j = i + STRIPS_AHEAD
    if j < n:
        payment = b + width * j
        present = word(payment, p.B_PRESENT)
        kept = found + 8 * entities * (j % STRIPS_AHEAD)
        for e in range(entities):
            if (present >> e) & 1:
                low, high = key_of(payment, e)
                strip = np.int64(get(s.keys, low, high))
                poke64(kept + 8 * e, strip)
                if strip >= 0:
                    for at in range(0, 8 * t.entity[e, 0], CACHE_LINE):
                        prefetch(arena + 8 * strip + at)
        if t.scalars[p.LABELS_MATTER]:
            shift = t.scalars[p.SEGMENT_SHIFT]
            index = s.index[(s.scalars[NEXT_SEQ] >> shift) & (len(s.rows) - 1)]
            prefetch(index + 4 * index_home(t, np.uint64(word(payment, p.B_ID))))
    j = i + BLOCKS_AHEAD
    if t.scalars[p.SERIES_OPS] > 0 and j < n:
        pool = np.int64(s.pool.ctypes.data)
        kept = found + 8 * entities * (j % STRIPS_AHEAD)
        for k in range(len(t.prompt)):
            o = t.prompt[k, p.C_OP]
            kind = t.ops[o, p.O_KIND]
            if kind == p.EXTREME or kind == p.MEDIAN_OF:  # noqa: PLR1714
                strip = peek64(kept + 8 * t.ops[o, p.O_ENTITY])
                if strip > 0:
                    block = pool + 8 * s.arena[strip + t.ops[o, p.O_CELL]]
                    prefetch(block)
                    prefetch(block + CACHE_LINE)


@inlined
def _look_up(t: p.Tables, s: State, payment: int, kept: int, strips: int) -> None:
    """The strips of a payment's keys: those found ahead where they are still theirs."""
    arena = np.int64(s.arena.ctypes.data)
    present = word(payment, p.B_PRESENT)
    for e in range(len(t.entity)):
        strip = np.int64(NO_KEY)
        if (present >> e) & 1:
            low, high = key_of(payment, e)
            strip = peek64(kept + 8 * e)
            header = arena + 8 * strip
            if strip <= 0 or (
                peek64(header + 8 * p.KEY_LOW) != np.int64(low)
                or peek64(header + 8 * p.KEY_HIGH) != np.int64(high)
                or peek64(header + 8 * p.LIVE) == 0
            ):
                strip = max(np.int64(NO_STRIP), np.int64(get(s.keys, low, high)))
        poke64(strips + 8 * e, strip)


@nb.njit(cache=True, nogil=True)
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

    `context` are the addresses of tables and state; `b` uint64 [n, ·] prepared payments (B_ words of the plan);
    `labels` int64 [m, 4] (known_at ms, id low, id high, 1 fraud or 2 genuine) sorted by known_at; `out` float32 [n, F]
    comes with its PAYMENT columns filled in; `late` bool [n] is set for payments beyond the allowed lateness, which are
    scored and leave no trace; `scratch` int64 [128] and `space` int64 [5 · E] are
    working space. Returns DONE, or CRAMPED
    when pool, distinct table or late list must grow first: then everything before `progress` is done, and calling again
    goes on.
    """
    return _run(np.int64(context.ctypes.data), b, labels, out, late, progress, scratch, space)


@kernel
def _run(c: int, b, labels, out, late, progress, scratch, space) -> int:  # type: ignore[no-untyped-def]
    t, s = view_tables(c), view_state(c)
    arena = np.int64(s.arena.ctypes.data)
    i = progress[PAYMENTS_DONE]
    applied = progress[LABELS_DONE]
    status = DONE
    first, width = np.int64(b.ctypes.data), 8 * b.shape[1]
    strips = np.int64(space.ctypes.data)
    found = strips + 8 * len(t.entity)
    for k in range(STRIPS_AHEAD * len(t.entity)):
        poke64(found + 8 * k, -1)
    while i < len(b):
        payment = first + width * i
        time_ms = word(payment, p.B_TIME)
        # Before and after stream time has moved this gives the same, so that going on after CRAMPED does.
        late[i] = time_ms < s.scalars[STREAM_MS] - t.scalars[p.LATENESS_MS]
        s.scalars[STREAM_MS] = max(s.scalars[STREAM_MS], time_ms)
        now_ms = s.scalars[STREAM_MS]
        _fetch_ahead(t, s, first, width, i, len(b), found)
        if not _advance(c, t, s, arena, now_ms):
            status = CRAMPED
            break
        while applied < len(labels) and labels[applied, 0] <= now_ms and not _cramped(t, s):
            apply_label(c, np.uint64(labels[applied, 1]), np.uint64(labels[applied, 2]), labels[applied, 3], now_ms)
            applied += 1
        if _cramped(t, s) or s.scalars[LATE_COUNT] >= len(s.late):
            status = CRAMPED
            break
        _look_up(t, s, payment, found + 8 * len(t.entity) * (i % STRIPS_AHEAD), strips)
        bits = read_all(c, t, s, payment, strips, now_ms, out[i], scratch)
        if not late[i]:
            _insert(c, t, s, payment, bits, strips, now_ms)
        i += 1
    progress[PAYMENTS_DONE] = i
    progress[LABELS_DONE] = applied
    return status
