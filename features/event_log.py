"""The event log as kernels see it: rows and labels at addresses, the index that finds a row by its payment's id.

    row     8 bytes   event time ms << 16 | filter bits << 4 | 1 when it came late
            8         amount in minor units
            8         all filter bits, when there are more than 12
            8 each    values to count distinct ones of (0: missing)
            8         id, low word (when labels matter)
            4 each    slot number of each entity's key: slot / 4, or NO_SLOT_NUMBER
            4         id, bits 64 to 95

Beside it, by row: the label, 1 byte (0 unknown, 1 fraud, 2 genuine), and the time from which it is known, ms in 6
bytes, little-endian (0: not recorded, as of labels that releases before 0.2 applied). The latter is written where there
is a label alone, so only pages with labels take memory.

Two payments of one log share 96 bits of id with probability n² / 2^97: for 10^10 payments 6·10^-10.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

import numpy as np

from features import kernel_tables as kt
from features.engine_state import KNOWN_BYTES, LABEL_SHIFT, NEXT_SEQ, State, view_state, view_tables
from features.raw_memory import inlined, kernel, peek8, peek32, peek64, poke8, poke32

NO_SLOT_NUMBER = 0xFFFFFFFF
CAME_LATE = 1
WHERE_SHIFT = 4
TIME_SHIFT = 16


@inlined
def row_address(t: kt.Tables, s: State, seq: int) -> int:
    """Address of the row `seq`; its segment must be mapped."""
    shift = t.limits[kt.SEGMENT_SHIFT]
    return (
        s.row_addresses[(seq >> shift) & (len(s.row_addresses) - 1)]
        + (seq & ((np.int64(1) << shift) - 1)) * t.limits[kt.ROW_BYTES]
    )


@inlined
def label_of(t: kt.Tables, s: State, seq: int) -> int:
    """0 unknown, 1 fraud, 2 genuine."""
    shift = t.limits[kt.SEGMENT_SHIFT]
    return np.int64(
        peek8(s.label_addresses[(seq >> shift) & (len(s.row_addresses) - 1)] + (seq & ((np.int64(1) << shift) - 1)))
    )


@inlined
def _known_at(t: kt.Tables, s: State, seq: int) -> int:
    """Address of the time from which a row's label is known."""
    shift = t.limits[kt.SEGMENT_SHIFT]
    return s.known_addresses[(seq >> shift) & (len(s.row_addresses) - 1)] + KNOWN_BYTES * (
        seq & ((np.int64(1) << shift) - 1)
    )


@kernel
def known_of(c: int, seq: int) -> int:
    """The time from which a row's label is known, ms; 0 where that was not recorded."""
    address = _known_at(view_tables(c), view_state(c), seq)
    high = np.int64(peek8(address + 4)) | np.int64(peek8(address + 5)) << 8
    return np.int64(peek32(address)) | high << 32


@kernel
def write_label(c: int, seq: int, label: int, known_ms: int) -> None:
    """Set a row's label and the time from which it is known, and mark it for the next snapshot."""
    t, s = view_tables(c), view_state(c)
    shift = t.limits[kt.SEGMENT_SHIFT]
    poke8(
        s.label_addresses[(seq >> shift) & (len(s.row_addresses) - 1)] + (seq & ((np.int64(1) << shift) - 1)),
        np.uint8(label),
    )
    address = _known_at(t, s, seq)
    poke32(address, np.uint32(known_ms & 0xFFFFFFFF))
    poke8(address + 4, np.uint8((known_ms >> 32) & 0xFF))
    poke8(address + 5, np.uint8((known_ms >> 40) & 0xFF))
    s.labels_dirty[(seq >> min(LABEL_SHIFT, shift)) & (len(s.labels_dirty) - 1)] = 1


@inlined
def passes(t: kt.Tables, row: int, bit: int) -> bool:
    """Whether the row satisfies the filter `bit` (-1: no filter)."""
    if bit < 0:
        return True
    if t.limits[kt.ROW_WHERE]:
        return (peek64(row + t.limits[kt.ROW_WHERE]) >> bit) & 1 == 1
    return (peek64(row) >> (WHERE_SHIFT + bit)) & 1 == 1


@inlined
def index_home(t: kt.Tables, low: np.uint64) -> int:
    """The place in an index where an id is looked for first."""
    return np.int64(((low >> np.uint64(32)) * np.uint64(t.limits[kt.INDEX_CAPACITY])) >> np.uint64(32))


@inlined
def index_row(t: kt.Tables, index: int, in_segment: int, low: np.uint64) -> int:
    """Make a row findable: `index` is the address of its segment's index, an open-addressing table of 4-byte
    entries. How many of them were passed."""
    capacity = t.limits[kt.INDEX_CAPACITY]
    shift = t.limits[kt.SEGMENT_SHIFT]
    place, passed = index_home(t, low), np.int64(0)
    while peek32(index + 4 * place) != 0:
        place = place + 1 if place + 1 < capacity else 0
        passed += 1
    tag = (np.int64(low) & ((np.int64(1) << (31 - shift)) - 1)) << (shift + 1)
    poke32(index + 4 * place, np.uint32(tag | (in_segment + 1)))
    return passed


@kernel
def find_row(c: int, low: np.uint64, high: np.uint64, now_ms: int) -> int:
    """The newest row of the payment with this id that has not left the log, or -1."""
    t, s = view_tables(c), view_state(c)
    shift, row_bytes = t.limits[kt.SEGMENT_SHIFT], t.limits[kt.ROW_BYTES]
    capacity = t.limits[kt.INDEX_CAPACITY]
    ring = len(s.row_addresses) - 1
    tag_mask = (np.int64(1) << (31 - shift)) - 1
    row_mask = (np.int64(1) << (shift + 1)) - 1
    tag = np.int64(low) & tag_mask
    high32 = np.uint32(high & np.uint64(0xFFFFFFFF))
    id_at, high_at = t.limits[kt.ROW_ID], row_bytes - 4
    limit_ms = now_ms - t.boundary_offset[t.limits[kt.RETENTION]]
    home = index_home(t, low)
    segment = (s.scalars[NEXT_SEQ] - 1) >> shift
    oldest = s.passed[t.limits[kt.RETENTION], 0] >> shift
    while segment >= oldest:
        index, rows = s.index_addresses[segment & ring], s.row_addresses[segment & ring]
        place, found = home, np.int64(-1)
        while True:
            entry = np.int64(peek32(index + 4 * place))
            if entry == 0:
                break
            if entry >> (shift + 1) == tag:
                in_segment = (entry & row_mask) - 1
                row = rows + in_segment * row_bytes
                if peek64(row + id_at) == np.int64(low) and peek32(row + high_at) == high32:
                    found = max(found, in_segment)
            place = place + 1 if place + 1 < capacity else 0
        if found >= 0:
            seq = (segment << shift) + found
            return seq if peek64(rows + found * row_bytes) >> TIME_SHIFT > limit_ms else -1
        segment -= 1
    return -1
