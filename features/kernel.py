"""The kernel: payments in journal order in, feature values out, the state moved on. All numba, no allocation, no GIL.

For each payment: move stream time; let rows pass the edges; apply the labels that are known by now; read the features; write the
row into the log and into the cells. Integers throughout, so that adding and removing never drifts; the only floating-point step
is the last one, from exact integers to a value.

State arrays (`State`) grow between calls, never inside (engine.py makes room for the worst case of a batch first).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from features import plan as p
from features.table import find, get, put, remove_at

# Words of State.scalars.
(
    STREAM_MS,
    ORDER_COUNT,
    LOG_BASE,
    NEXT_SEQ,
    ARENA_NEXT,
    KEYS,
    DISTINCTS,
    IDS,
    ORPHANS,
    KEYS_REFUSED,
    ORPHANS_DROPPED,
    LABELS_APPLIED,
) = range(12)
SCALARS = 12
NO_SLOT = -1
EARTH_RADIUS_KM = 6371.0088
ORPHANS_MAX = 65_536

NAN = np.float32(np.nan)


class State(NamedTuple):
    """Everything an engine remembers. Rows of the log stand in order of arrival; `order` sorts them by event time.

    scalars int64 [12] · pointers int64 [G] (position in `order` of the first row that has not passed edge g) · order int64 [cap] (seq) ·
    time_ms, amount int64 [cap] · where uint64 [cap] (bit per filter) · label int8 [cap] (0 unknown, 1 fraud, 2 genuine) ·
    slot int64 [cap, E] · distinct uint64 [cap, D] · chain int64 [cap, C] (seq of the key's former row, or -1) · ids uint64 [cap, 2] ·
    arena int64 [words] and the same memory as float64 · free int64 [E] (head of the entity's list of free strips, or -1) ·
    keys, distincts, id_rows, orphans: hash tables (features/table.py)
    """

    scalars: npt.NDArray[np.int64]
    pointers: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    amount: npt.NDArray[np.int64]
    where: npt.NDArray[np.uint64]
    label: npt.NDArray[np.int8]
    slot: npt.NDArray[np.int64]
    distinct: npt.NDArray[np.uint64]
    chain: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]
    arena: npt.NDArray[np.int64]
    arena_f: npt.NDArray[np.float64]
    free: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    distincts: npt.NDArray[np.uint64]
    id_rows: npt.NDArray[np.uint64]
    orphans: npt.NDArray[np.uint64]


class Rows(NamedTuple):
    """A batch's columns, n rows in journal order: times ms, base-currency minor units, filter bits, entity keys [n, E, 2] and which are
    present [n, E], distinct values [n, D] (0 = missing), payment ids [n, 2], positions in degrees (NaN = missing)."""

    time_ms: npt.NDArray[np.int64]
    amount: npt.NDArray[np.int64]
    where: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    present: npt.NDArray[np.bool_]
    distinct: npt.NDArray[np.uint64]
    ids: npt.NDArray[np.uint64]
    latitude: npt.NDArray[np.float64]
    longitude: npt.NDArray[np.float64]


class Labels(NamedTuple):
    """Labels waiting for stream time, sorted by known_at: known_at ms [m], payment ids [m, 2], 1 fraud or 2 genuine [m]."""

    known_at_ms: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]
    label: npt.NDArray[np.int8]


@nb.njit(inline="always")
def _distinct_low(cell: int, value: np.uint64) -> np.uint64:
    x = np.uint64(cell) * np.uint64(0x9E3779B97F4A7C15)
    return (x ^ (x >> np.uint64(32))) ^ value


@nb.njit(cache=True, nogil=True)
def _change(kind, cell, sign, amount, label, value, s: State):  # type: ignore[no-untyped-def]
    """Add (sign 1) or take away (sign -1) one row's share of one cell."""
    if kind == p.ADD_COUNT:
        s.arena[cell] += sign
    elif kind == p.ADD_SUM:
        s.arena[cell] += sign * amount
    elif kind == p.ADD_SQUARES:
        _add_square(s.arena, cell, amount, sign)
    elif kind == p.ADD_FRAUD:
        if label == 1:
            s.arena[cell] += sign
    elif kind == p.ADD_DISTINCT and value != 0:
        low = _distinct_low(cell, value)
        place = find(s.distincts, low, np.uint64(cell))
        if sign > 0:
            if place >= 0:
                s.distincts[place, 2] += np.uint64(1)
            else:
                put(s.distincts, low, np.uint64(cell), 1)
                s.scalars[DISTINCTS] += 1
                s.arena[cell] += 1
        elif s.distincts[place, 2] == np.uint64(2):  # stored as count + 1: this was the last one
            remove_at(s.distincts, place)
            s.scalars[DISTINCTS] -= 1
            s.arena[cell] -= 1
        else:
            s.distincts[place, 2] -= np.uint64(1)


@nb.njit(cache=True, nogil=True)
def _multiply(a: np.uint64, b: np.uint64):  # type: ignore[no-untyped-def]
    """The 128-bit product of two 64-bit numbers, as (high, low)."""
    m = np.uint64(0xFFFFFFFF)
    w = np.uint64(32)
    ll = (a & m) * (b & m)
    lh = (a & m) * (b >> w)
    hl = (a >> w) * (b & m)
    mid = (ll >> w) + (lh & m) + (hl & m)
    return (a >> w) * (b >> w) + (lh >> w) + (hl >> w) + (mid >> w), (mid << w) | (ll & m)


@nb.njit(cache=True, nogil=True)
def _add_square(arena, cell, amount, sign):  # type: ignore[no-untyped-def]
    """Add or subtract amount² in the 128-bit number at (cell = low, cell + 1 = high)."""
    high, low = _multiply(np.uint64(amount), np.uint64(amount))
    old = np.uint64(arena[cell])
    if sign > 0:
        new = old + low
        carry = np.uint64(1) if new < old else np.uint64(0)
        arena[cell + 1] = np.int64(np.uint64(arena[cell + 1]) + high + carry)
    else:
        new = old - low
        carry = np.uint64(1) if old < low else np.uint64(0)
        arena[cell + 1] = np.int64(np.uint64(arena[cell + 1]) - high - carry)
    arena[cell] = np.int64(new)


@nb.njit(cache=True, nogil=True)
def _std(n, total, low, high):  # type: ignore[no-untyped-def]
    """Population standard deviation from exact sums: sqrt(n·Σx² - (Σx)²) / n, the difference taken in 128-bit integers."""
    # n·Σx² modulo 2^128: the wrapped difference is the true one as long as that is below 2^128, which n² · range² / 4 is.
    h1, l1 = _multiply(np.uint64(n), low)
    h1 += np.uint64(n) * high
    h2, l2 = _multiply(np.uint64(total), np.uint64(total))
    borrow = np.uint64(1) if l1 < l2 else np.uint64(0)
    return math.sqrt(np.float64(h1 - h2 - borrow) * 18446744073709551616.0 + np.float64(l1 - l2)) / n


@nb.njit(cache=True, nogil=True)
def _free_strip(t: p.Tables, s: State, e: int, strip: int) -> None:
    place = find(s.keys, np.uint64(s.arena[strip + p.KEY_LOW]), np.uint64(s.arena[strip + p.KEY_HIGH]))
    remove_at(s.keys, place)
    s.scalars[KEYS] -= 1
    s.arena[strip : strip + t.entity[e, 0]] = 0
    s.arena[strip] = s.free[e]
    s.free[e] = strip


@nb.njit(cache=True, nogil=True)
def _advance(t: p.Tables, s: State, now_ms: int) -> None:
    """Let every row that has passed an edge by stream time `now_ms` change its cells."""
    base = s.scalars[LOG_BASE]
    count = s.scalars[ORDER_COUNT]
    for g in range(len(t.edge_offset)):
        limit = now_ms - t.edge_offset[g]
        pointer = s.pointers[g]
        while pointer < count:
            r = s.order[pointer] - base
            if s.time_ms[r] > limit:
                break
            for o in range(t.edge_start[g], t.edge_start[g + 1]):
                kind, e = t.edge_ops[o, 0], t.edge_ops[o, 1]
                if kind == p.FORGET:
                    place = find(s.id_rows, s.ids[r, 0], s.ids[r, 1]) if t.scalars[5] else -1
                    if place >= 0 and np.int64(s.id_rows[place, 2]) - 1 == s.order[pointer]:
                        remove_at(s.id_rows, place)
                        s.scalars[IDS] -= 1
                    continue
                strip = s.slot[r, e]
                if strip == NO_SLOT:
                    continue
                if kind == p.RELEASE:
                    s.arena[strip + p.LIVE] -= 1
                    if s.arena[strip + p.LIVE] == 0:
                        _free_strip(t, s, e, strip)
                elif (s.where[r] >> np.uint64(t.edge_ops[o, 3])) & np.uint64(1):
                    cell = strip + t.edge_ops[o, 2]
                    if kind == p.ADD_EXTREME:
                        if s.arena[cell] == s.amount[r]:
                            s.arena[cell + 1] = 2  # the extreme has left: scan when next read
                    else:
                        value = s.distinct[r, t.edge_ops[o, 4]] if kind == p.ADD_DISTINCT else np.uint64(0)
                        _change(kind, cell, t.edge_ops[o, 5], s.amount[r], s.label[r], value, s)
            pointer += 1
        s.pointers[g] = pointer


@nb.njit(cache=True, nogil=True)
def _latest_fraud(t: p.Tables, s: State, e: int, strip: int) -> int:
    """Event time of the key's latest known fraud still in the log, or 0 for none: used when a fraud is taken back."""
    best = np.int64(0)
    column = t.entity[e, 2]
    seq = s.arena[strip + p.CHAIN] - 1
    while seq >= s.scalars[LOG_BASE]:
        r = seq - s.scalars[LOG_BASE]
        if s.label[r] == 1 and s.time_ms[r] > best:
            best = s.time_ms[r]
        seq = s.chain[r, column]
    return best


@nb.njit(cache=True, nogil=True)
def _set_label(t: p.Tables, s: State, row: int, label: int, now_ms: int) -> None:
    """Give row `row` its label and correct every window it stands in at stream time `now_ms`."""
    before = s.label[row]
    if before == label:
        return
    s.label[row] = label
    s.scalars[LABELS_APPLIED] += 1
    delta = (1 if label == 1 else 0) - (1 if before == 1 else 0)
    if delta == 0:
        return
    time_ms = s.time_ms[row]
    for o in range(len(t.insert_ops)):
        if t.insert_ops[o, 0] != p.ADD_FRAUD:
            continue
        enters, leaves = t.insert_ops[o, 5], t.insert_ops[o, 6]
        strip = s.slot[row, t.insert_ops[o, 1]]
        if strip == NO_SLOT or time_ms <= now_ms - t.edge_offset[leaves]:
            continue
        if enters >= 0 and time_ms > now_ms - t.edge_offset[enters]:
            continue
        if (s.where[row] >> np.uint64(t.insert_ops[o, 3])) & np.uint64(1):
            s.arena[strip + t.insert_ops[o, 2]] += delta
    for e in range(len(t.entity)):
        released = t.entity[e, 1] >= 0 and time_ms <= now_ms - t.edge_offset[t.entity[e, 1]]
        strip = s.slot[row, e]
        if strip == NO_SLOT or released or t.entity[e, 2] < 0:
            continue
        if delta > 0:
            s.arena[strip + p.FRAUD_MS] = max(s.arena[strip + p.FRAUD_MS], time_ms)
        elif s.arena[strip + p.FRAUD_MS] == time_ms:
            s.arena[strip + p.FRAUD_MS] = _latest_fraud(t, s, e, strip)


@nb.njit(cache=True, nogil=True)
def _apply_label(t: p.Tables, s: State, low: np.uint64, high: np.uint64, label: int, now_ms: int) -> None:
    seq = get(s.id_rows, low, high)
    if seq >= 0:
        _set_label(t, s, seq - s.scalars[LOG_BASE], label, now_ms)
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


@nb.njit(cache=True, nogil=True)
def _scan_extreme(t: p.Tables, s: State, strip: int, e: int, bit: int, limit_ms: int, largest: int):  # type: ignore[no-untyped-def]
    """Rescan a key's rows later than `limit_ms` for the smallest or largest amount."""
    column = t.entity[e, 2]
    best = np.int64(0)
    found = False
    seq = s.arena[strip + p.CHAIN] - 1
    while seq >= s.scalars[LOG_BASE]:
        r = seq - s.scalars[LOG_BASE]
        # A row that came before this one is at most the allowed lateness younger: beyond that nothing more can be inside.
        if s.time_ms[r] + t.scalars[0] <= limit_ms:
            break
        if s.time_ms[r] > limit_ms and (s.where[r] >> np.uint64(bit)) & np.uint64(1):
            amount = s.amount[r]
            if not found or (amount > best if largest else amount < best):
                best = amount
                found = True
        seq = s.chain[r, column]
    return best


@nb.njit(cache=True, nogil=True)
def _median(t: p.Tables, s: State, strip, e, bit, limit_ms, scratch, current):  # type: ignore[no-untyped-def]
    """Median of the amounts inside the window among the key's last 128 payments; `current` >= 0 is one of them."""
    column = t.entity[e, 2]
    n = 0
    visited = 0
    if current >= 0:
        scratch[0] = current
        n = visited = 1
    seq = s.arena[strip + p.CHAIN] - 1 if strip != NO_SLOT else np.int64(-1)
    while seq >= s.scalars[LOG_BASE] and visited < len(scratch):
        r = seq - s.scalars[LOG_BASE]
        if s.time_ms[r] + t.scalars[0] <= limit_ms:
            break
        visited += 1
        if s.time_ms[r] > limit_ms and (s.where[r] >> np.uint64(bit)) & np.uint64(1):
            scratch[n] = s.amount[r]
            n += 1
        seq = s.chain[r, column]
    if n == 0:
        return np.nan
    ordered = np.sort(scratch[:n])
    return (
        np.float64(ordered[n // 2]) if n % 2 else (np.float64(ordered[n // 2 - 1]) + np.float64(ordered[n // 2])) / 2.0
    )


@nb.njit(cache=True, nogil=True)
def _distance_km(lat1, lon1, lat2, lon2):  # type: ignore[no-untyped-def]
    """Great-circle distance by the haversine formula, degrees in, km out."""
    f1, f2 = math.radians(lat1), math.radians(lat2)
    a = math.sin((f2 - f1) / 2.0) ** 2 + math.cos(f1) * math.cos(f2) * math.sin(math.radians(lon2 - lon1) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, a)))


@nb.njit(cache=True, nogil=True)
def _read(t: p.Tables, s: State, b: Rows, i: int, f: int, strip: int, now_ms: int, scratch):  # type: ignore[no-untyped-def]
    """The value of aggregate column f for payment i, whose key has the strip `strip` (or none yet)."""
    read = t.reads[f]
    kind, e, bit = read[0], read[1], read[6]
    current = read[5] == 1 and (b.where[i] >> np.uint64(bit)) & np.uint64(1) == np.uint64(1)
    limit_ms = now_ms - read[7]
    if kind < p.SINCE_LAST:
        n = s.arena[strip + read[2]] if strip != NO_SLOT else np.int64(0)
        if current:
            n += 1
        if kind == p.COUNT:
            return np.float64(n)
        if kind == p.FRAUD_COUNT:
            return np.float64(s.arena[strip + read[3]]) if strip != NO_SLOT else 0.0
        if kind == p.FRAUD_RATE:
            return np.float64(s.arena[strip + read[3]]) / n if n > 0 else np.nan
        if kind == p.DISTINCT:
            total = s.arena[strip + read[3]] if strip != NO_SLOT else np.int64(0)
            value = b.distinct[i, read[4]]
            if current and value != 0:
                cell = strip + read[3]
                if strip == NO_SLOT or find(s.distincts, _distinct_low(cell, value), np.uint64(cell)) < 0:
                    total += 1
            return np.float64(total)
        if kind in (p.SUM, p.MEAN, p.STD):
            total = s.arena[strip + read[3]] if strip != NO_SLOT else np.int64(0)
            if current:
                total += b.amount[i]
            if kind == p.SUM:
                return np.float64(total) / t.minor_units
            if n == 0:
                return np.nan
            if kind == p.MEAN:
                return np.float64(total) / n / t.minor_units
            low = np.uint64(s.arena[strip + read[4]]) if strip != NO_SLOT else np.uint64(0)
            high = np.uint64(s.arena[strip + read[4] + 1]) if strip != NO_SLOT else np.uint64(0)
            if current:
                square_high, square_low = _multiply(np.uint64(b.amount[i]), np.uint64(b.amount[i]))
                low += square_low
                high += square_high + (np.uint64(1) if low < square_low else np.uint64(0))
            return _std(n, total, low, high) / t.minor_units
        if n == 0:
            return np.nan
        if kind == p.MEDIAN:
            return (
                _median(t, s, strip, e, bit, limit_ms, scratch, b.amount[i] if current else np.int64(-1))
                / t.minor_units
            )
        if current and n == 1:
            return np.float64(b.amount[i]) / t.minor_units
        largest = 1 if kind == p.MAX else 0
        cell = strip + read[3]
        if s.arena[cell + 1] == 2:
            s.arena[cell] = _scan_extreme(t, s, strip, e, bit, limit_ms, largest)
            s.arena[cell + 1] = 1
        extreme = s.arena[cell]
        if current:
            extreme = max(extreme, b.amount[i]) if largest else min(extreme, b.amount[i])
        return np.float64(extreme) / t.minor_units
    if strip == NO_SLOT or s.arena[strip + p.SEEN] == 0:
        return np.nan
    bounded = read[7] >= 0
    if kind == p.SINCE_FIRST:
        return np.float64(now_ms - s.arena[strip + p.FIRST_MS]) / 1000.0
    if kind == p.SINCE_FRAUD:
        fraud_ms = s.arena[strip + p.FRAUD_MS]
        return np.nan if fraud_ms == 0 or (bounded and fraud_ms <= limit_ms) else np.float64(now_ms - fraud_ms) / 1000.0
    if kind == p.SPEED_KMH:
        position_ms = s.arena[strip + p.POSITION_MS]
        apart_ms = abs(b.time_ms[i] - position_ms)
        if (
            position_ms == 0
            or apart_ms == 0
            or math.isnan(b.latitude[i])
            or math.isnan(b.longitude[i])
            or (bounded and position_ms <= limit_ms)
        ):
            return np.nan
        km = _distance_km(s.arena_f[strip + p.LATITUDE], s.arena_f[strip + p.LONGITUDE], b.latitude[i], b.longitude[i])
        return km * 3_600_000.0 / apart_ms
    last_ms = s.arena[strip + p.LAST_MS]
    if bounded and last_ms <= limit_ms:
        return np.nan
    return (
        np.float64(now_ms - last_ms) / 1000.0
        if kind == p.SINCE_LAST
        else np.float64(s.arena[strip + p.LAST_AMOUNT]) / t.minor_units
    )


@nb.njit(cache=True, nogil=True)
def _derive(t: p.Tables, f: int, out):  # type: ignore[no-untyped-def]
    """A column made of earlier columns of the same payment. A zero divisor gives NaN."""
    kind, a, b, c = t.reads[f, 0], t.reads[f, 1], t.reads[f, 2], t.reads[f, 3]
    x, y = np.float64(out[a]), np.float64(out[b])
    if kind == p.DIFFERENCE:
        return x - y
    if kind == p.RATIO:
        return x / y if y != 0.0 else np.nan
    z = np.float64(out[c])
    return (x - y) / z if z != 0.0 else np.nan


@nb.njit(cache=True, nogil=True)
def _strip_for(t: p.Tables, s: State, e: int, low: np.uint64, high: np.uint64) -> int:
    """A new strip for a key seen for the first time, or NO_SLOT when the set's `keys_max` are live."""
    if s.scalars[KEYS] >= t.scalars[1]:
        s.scalars[KEYS_REFUSED] += 1
        return NO_SLOT
    strip = s.free[e]
    if strip >= 0:
        s.free[e] = s.arena[strip]
    else:
        strip = s.scalars[ARENA_NEXT]
        s.scalars[ARENA_NEXT] += t.entity[e, 0]
    s.arena[strip + p.KEY_LOW] = np.int64(low)
    s.arena[strip + p.KEY_HIGH] = np.int64(high)
    put(s.keys, low, high, strip)
    s.scalars[KEYS] += 1
    return strip


@nb.njit(cache=True, nogil=True)
def _insert(t: p.Tables, s: State, b: Rows, i: int, now_ms: int) -> None:
    """Write payment i into the log, the order and every cell whose window it stands in."""
    seq = s.scalars[NEXT_SEQ]
    r = seq - s.scalars[LOG_BASE]
    time_ms, amount = b.time_ms[i], b.amount[i]
    s.time_ms[r], s.amount[r], s.where[r], s.label[r] = time_ms, amount, b.where[i], 0
    s.ids[r, 0], s.ids[r, 1] = b.ids[i, 0], b.ids[i, 1]
    for d in range(t.scalars[2]):
        s.distinct[r, d] = b.distinct[i, d]
    position = s.scalars[ORDER_COUNT]
    while position > 0 and s.time_ms[s.order[position - 1] - s.scalars[LOG_BASE]] > time_ms:
        s.order[position] = s.order[position - 1]
        position -= 1
    s.order[position] = seq
    s.scalars[ORDER_COUNT] += 1
    s.scalars[NEXT_SEQ] += 1
    for g in range(len(t.edge_offset)):
        if time_ms <= now_ms - t.edge_offset[g]:
            s.pointers[g] += 1

    for e in range(len(t.entity)):
        released = t.entity[e, 1] >= 0 and time_ms <= now_ms - t.edge_offset[t.entity[e, 1]]
        s.slot[r, e] = NO_SLOT
        if not b.present[i, e] or released:
            continue
        low, high = b.keys[i, e, 0], b.keys[i, e, 1]
        strip = get(s.keys, low, high)
        if strip < 0:
            strip = _strip_for(t, s, e, low, high)
            if strip == NO_SLOT:
                continue
        s.slot[r, e] = strip
        s.arena[strip + p.LIVE] += 1
        if s.arena[strip + p.SEEN] == 0 or time_ms < s.arena[strip + p.FIRST_MS]:
            s.arena[strip + p.FIRST_MS] = time_ms
        if s.arena[strip + p.SEEN] == 0 or time_ms >= s.arena[strip + p.LAST_MS]:
            s.arena[strip + p.LAST_MS] = time_ms
            s.arena[strip + p.LAST_AMOUNT] = amount
        s.arena[strip + p.SEEN] = 1
        if not (math.isnan(b.latitude[i]) or math.isnan(b.longitude[i])) and time_ms >= s.arena[strip + p.POSITION_MS]:
            s.arena[strip + p.POSITION_MS] = time_ms
            s.arena_f[strip + p.LATITUDE] = b.latitude[i]
            s.arena_f[strip + p.LONGITUDE] = b.longitude[i]
        if t.entity[e, 2] >= 0:
            s.chain[r, t.entity[e, 2]] = s.arena[strip + p.CHAIN] - 1
            s.arena[strip + p.CHAIN] = seq + 1

    for o in range(len(t.insert_ops)):
        op = t.insert_ops[o]
        strip = s.slot[r, op[1]]
        if strip == NO_SLOT or (b.where[i] >> np.uint64(op[3])) & np.uint64(1) == np.uint64(0):
            continue
        if time_ms <= now_ms - t.edge_offset[op[6]] or (op[5] >= 0 and time_ms > now_ms - t.edge_offset[op[5]]):
            continue
        cell = strip + op[2]
        if op[0] == p.ADD_EXTREME:
            if s.arena[cell + 1] == 0:
                s.arena[cell], s.arena[cell + 1] = amount, 1
            elif s.arena[cell + 1] == 1:
                s.arena[cell] = max(s.arena[cell], amount) if op[7] else min(s.arena[cell], amount)
        else:
            value = b.distinct[i, op[4]] if op[0] == p.ADD_DISTINCT else np.uint64(0)
            _change(op[0], cell, 1, amount, 0, value, s)

    if t.scalars[5]:
        if time_ms > now_ms - t.edge_offset[t.scalars[4]]:
            place = find(s.id_rows, b.ids[i, 0], b.ids[i, 1])
            if place >= 0:
                s.id_rows[place, 2] = np.uint64(seq + 1)
            else:
                put(s.id_rows, b.ids[i, 0], b.ids[i, 1], seq)
                s.scalars[IDS] += 1
        if s.scalars[ORPHANS] > 0:
            place = find(s.orphans, b.ids[i, 0], b.ids[i, 1])
            if place >= 0:
                label = np.int64(s.orphans[place, 2]) - 1
                remove_at(s.orphans, place)
                s.scalars[ORPHANS] -= 1
                _set_label(t, s, r, label, now_ms)


@nb.njit(cache=True, nogil=True)
def apply(
    t: p.Tables, s: State, b: Rows, labels: Labels, out: npt.NDArray[np.float32], late: npt.NDArray[np.bool_]
) -> int:
    """Run a batch. `out` float32 [n, F] comes with its payment columns filled in; `late` bool [n] is set for payments beyond the allowed
    lateness, which are scored and leave no trace. Returns how many of `labels` have been applied."""
    applied = 0
    scratch = np.empty(p.MEDIAN_MAX, dtype=np.int64)
    strips = np.empty(len(t.entity), dtype=np.int64)
    for i in range(len(b.time_ms)):
        late[i] = b.time_ms[i] < s.scalars[STREAM_MS] - t.scalars[0]
        s.scalars[STREAM_MS] = max(s.scalars[STREAM_MS], b.time_ms[i])
        now_ms = s.scalars[STREAM_MS]
        _advance(t, s, now_ms)
        while applied < len(labels.known_at_ms) and labels.known_at_ms[applied] <= now_ms:
            _apply_label(t, s, labels.ids[applied, 0], labels.ids[applied, 1], labels.label[applied], now_ms)
            applied += 1
        for e in range(len(t.entity)):
            strips[e] = get(s.keys, b.keys[i, e, 0], b.keys[i, e, 1]) if b.present[i, e] else NO_SLOT
        for f in range(len(t.reads)):
            kind = t.reads[f, 0]
            if kind == p.PAYMENT:
                continue
            if kind >= p.RATIO:
                out[i, f] = _derive(t, f, out[i])
            elif b.present[i, t.reads[f, 1]]:
                out[i, f] = _read(t, s, b, i, f, strips[t.reads[f, 1]], now_ms, scratch)
            else:
                out[i, f] = NAN
        if not late[i]:
            _insert(t, s, b, i, now_ms)
    return applied


def scalars() -> Any:
    """Fresh scalars of a state: no stream time yet, which is far below any event time."""
    fresh = np.zeros(SCALARS, dtype=np.int64)
    fresh[STREAM_MS] = -(1 << 62)
    return fresh
