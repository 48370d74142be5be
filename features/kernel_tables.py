"""The tables that a feature set becomes, and the numbers by which kernels read them.

Words used here and in the kernels:

    row          one payment in the event log
    boundary     one distinct distance behind stream time at which rows enter or leave a window; all entities share its
                 pointer
    entity slot  the place of one live key of one entity: words of 64 bits in the arena
    accumulator  a running number in a slot, of one word or more; the first word of a slot is word 0
    group        (entity, window, delay, filter): the aggregates that change together, in neighbouring words
    op           what a row does to the accumulators of one group when it enters, and undoes when it leaves

A slot is a header (the key's own hash, so that the slot can be taken out of the key table, and how many of its rows are
live) followed by the accumulators of all groups.

Records of tables are frozen dataclasses; a table holds their fields as int64 words, in this order. Kernels see plain
integers (O_ words of an op, C_ of a change, R_ of a read, OP_ and READ_ kinds), because a kernel compiles slower with
enums and cannot index by them. That these numbers are those of the fields and members is checked at import.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.feature_set import LATEST_MAX
from features.raw_memory import ArrayLayout

I64 = npt.NDArray[np.int64]

# Header words of a slot. LIVE is 2 · (rows inside the entity's longest window) + 1, and 0 in a slot that is free.
KEY_LOW, KEY_HIGH, LIVE = range(3)
HEADER_WORDS = 3
# Slots start at multiples of four words, so that a slot number of 32 bits reaches 137 GB of arena.
SLOT_SHIFT = 2
RECENT_MAX = LATEST_MAX
# Of cosines and sines in sums: 2^32 payments of a key fit. Values are rounded to 1 / CIRCLE_STEPS, which is more than
# the sums' error, so that what always happens at the same hour has a variance of exactly 0.
CIRCLE_UNIT, CIRCLE_STEPS = 1 << 30, 1 << 24
HOURS, DAYS = 24, 7
# Of places in series: 180 degrees fit 32 bits with their sign.
PLACE_UNIT = 10_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# A mark in a dirty map covers its page and so many words behind it: groups up to this width need one mark.
MARK_WORDS = 8
# Filter bits that fit beside the event time in the first word of a row.
WHERES_INLINE = 12


class OpKind(IntEnum):
    """What the accumulators of a group hold."""

    NUMERIC = 0  # count, and as needed sum, squares, frauds, numbers of different values
    EXTREME = 1  # a block: minimum or maximum
    RECENT = 2  # a block: the latest amounts
    LAST_PAYMENT = 3  # time and amount
    FIRST_PAYMENT = 4  # time
    POSITION = 5  # time, latitude, longitude
    DECAY = 6  # time and two sums; as needed mean and squared distances from it
    KNOWN_FRAUDS = 7  # a block: times of payments known to be fraud
    LABEL = 8  # time, seq + 1 and label of the latest payment with a label
    NEIGHBOURS = 9  # a block: slots of another entity's keys, those of the latest payments
    PLACES = 10  # a block: different places, those of the latest payments
    RELEASE = 11  # no group: the row leaves the entity's longest window


OP_NUMERIC, OP_EXTREME, OP_RECENT, OP_LAST_PAYMENT, OP_FIRST_PAYMENT = range(5)
OP_POSITION, OP_DECAY, OP_KNOWN_FRAUDS, OP_LABEL, OP_NEIGHBOURS, OP_PLACES, OP_RELEASE = range(5, 12)


class ReadKind(IntEnum):
    """How a column is read. Their order matters: kernels compare ranges of them."""

    PAYMENT = 0  # filled in before the kernel runs
    AMOUNT = 1
    HOUR_OF_DAY = 2
    DAY_OF_WEEK = 3
    COUNT = 4
    SUM = 5
    MEAN = 6
    STD = 7
    MIN = 8
    MAX = 9
    MEDIAN = 10
    RECENT_MEAN = 11
    RECENT_STD = 12
    RECENT_MIN = 13
    RECENT_MAX = 14
    MEAN_GAP = 15
    NEIGHBOUR_FRAUDS = 16
    NEAREST_KM = 17
    DISTINCT = 18
    SHARE = 19
    CIRCULAR_DISPERSION = 20
    CIRCULAR_VARIANCE = 21
    FRAUD_COUNT = 22
    FRAUD_RATE = 23
    DECAYED_COUNT = 24
    DECAYED_SUM = 25
    DECAYED_MEAN = 26
    DECAYED_STD = 27
    SINCE_LAST = 28
    SINCE_FIRST = 29
    LAST = 30
    SPEED_KMH = 31
    SINCE_FRAUD = 32
    SINCE_FIRST_FRAUD = 33
    LAST_LABEL = 34
    RATIO = 35
    DIFFERENCE = 36
    ZSCORE = 37


READ_PAYMENT, READ_AMOUNT, READ_HOUR_OF_DAY, READ_DAY_OF_WEEK = range(4)
READ_COUNT, READ_SUM, READ_MEAN, READ_STD, READ_MIN, READ_MAX, READ_MEDIAN = range(4, 11)
READ_RECENT_MEAN, READ_RECENT_STD, READ_RECENT_MIN, READ_RECENT_MAX, READ_MEAN_GAP = range(11, 16)
READ_NEIGHBOUR_FRAUDS, READ_NEAREST_KM = range(16, 18)
READ_DISTINCT, READ_SHARE, READ_CIRCULAR_DISPERSION, READ_CIRCULAR_VARIANCE = range(18, 22)
READ_FRAUD_COUNT, READ_FRAUD_RATE = range(22, 24)
READ_DECAYED_COUNT, READ_DECAYED_SUM, READ_DECAYED_MEAN, READ_DECAYED_STD = range(24, 28)
READ_SINCE_LAST, READ_SINCE_FIRST, READ_LAST, READ_SPEED_KMH = range(28, 32)
READ_SINCE_FRAUD, READ_SINCE_FIRST_FRAUD, READ_LAST_LABEL = range(32, 35)
READ_RATIO, READ_DIFFERENCE, READ_ZSCORE = range(35, 38)


class Extent(IntEnum):
    """How far a change goes."""

    COUNT_AND_SUM = 0  # count, sum and frauds alone
    MORE = 1
    RELEASING = 2  # the entity slot no longer counts the row


COUNT_AND_SUM, MORE, RELEASING = range(3)


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op. Accumulators are words of the slot, 0 for those that the group does not have; boundaries are their
    numbers, -1 for none."""

    kind: OpKind
    entity: int
    accumulator: int
    where: int = -1  # filter bit, or -1
    enters: int = -1
    leaves: int = -1
    sum: int = 0
    squares: int = 0  # of NUMERIC; of DECAY the mean, and squared distances from it
    fraud: int = 0
    distinct: int = 0  # its rows of Tables.distincts: from here to distinct_end
    distinct_end: int = 0
    expires_ms: int = 0
    parameter: int = 0  # EXTREME: 1 for a maximum; RECENT, NEIGHBOURS, PLACES: how many pairs; DECAY: half-life in ms
    width: int = 1  # words of the group
    hours: int = 0  # two words: sums of the cosines and sines of hours of the day
    days: int = 0  # the same of days of the week
    neighbour: int = 0  # NEIGHBOURS: the other entity


(
    O_KIND, O_ENTITY, O_ACCUMULATOR, O_WHERE, O_ENTERS, O_LEAVES, O_SUM, O_SQUARES, O_FRAUD, O_DISTINCT,
    O_DISTINCT_END, O_EXPIRES_MS, O_PARAMETER, O_WIDTH, O_HOURS, O_DAYS,
    O_NEIGHBOUR,
) = range(17)  # fmt: skip
OP_WORDS = 17


@dataclass(frozen=True, kw_only=True)
class Change:
    """One op done or undone, as inner loops read it: places in bytes, 0 for none."""

    op: int
    sign: int  # 1 entering, -1 leaving
    slot_number: int  # place in the row
    accumulator: int
    where: int
    sum: int
    fraud: int
    extent: Extent


C_OP, C_SIGN, C_SLOT_NUMBER, C_ACCUMULATOR, C_WHERE, C_SUM, C_FRAUD, C_EXTENT = range(8)
CHANGE_WORDS = 8


@dataclass(frozen=True, kw_only=True)
class Read:
    """How one column is read. Of a derived column `entity`, `accumulator` and `where` are its operands: columns before
    it."""

    kind: ReadKind
    entity: int = 0
    accumulator: int = 0
    where: int = 0
    current: int = 0  # 1: the payment itself is included
    window_ms: int = 0  # -1: no window
    second: int = 0  # a further accumulator
    third: int = 0  # squares, column of different values, 1 for days of the week, or number of latest payments
    half_life_ms: int = 0
    plain: int = 0  # 1: a count, sum or mean without filters


R_KIND, R_ENTITY, R_ACCUMULATOR, R_WHERE, R_CURRENT, R_WINDOW_MS, R_SECOND, R_THIRD, R_HALF_LIFE_MS, R_PLAIN = range(10)
R_OPERANDS = 1
READ_WORDS = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Tables.limits: bounds, and where the parts of a row lie (bytes; 0 for a part that it does not have)."""

    lateness_ms: int
    keys_max: int
    distinct_columns: int
    retention: int  # the boundary where the log ends
    labels_matter: int
    series_ops: int
    distinct_ops: int
    row_bytes: int
    row_where: int
    row_distinct: int
    row_id: int
    row_slots: int
    segment_shift: int
    index_capacity: int


(
    LATENESS_MS, KEYS_MAX, DISTINCT_COLUMNS, RETENTION, LABELS_MATTER, SERIES_OPS, DISTINCT_OPS, ROW_BYTES, ROW_WHERE,
    ROW_DISTINCT, ROW_ID, ROW_SLOTS, SEGMENT_SHIFT, INDEX_CAPACITY,
) = range(14)  # fmt: skip

# Words of a prepared payment (features/prepared_payments.py); keys, 2 words an entity, and distinct values follow.
B_TIME, B_AMOUNT, B_WHERE, B_PRESENT, B_ID, B_ID_HIGH, B_LATITUDE, B_LONGITUDE = range(8)
B_KEYS = 8


def words(record: Any) -> list[int]:
    """A record as a row of its table."""
    return [int(getattr(record, f.name)) for f in fields(record)]


def _check(prefix: str, names: Iterable[str], width: int | None = None) -> None:
    """A number that is not that of its field or member would let a kernel write into foreign memory."""
    expected = {prefix + name.upper(): number for number, name in enumerate(names)}
    wrong = [name for name, number in expected.items() if globals()[name] != number]
    if wrong or (width is not None and width != len(expected)):
        raise AssertionError(f"{wrong or 'the width'} of {prefix or 'limits'}: not as the fields are declared")


_check("OP_", [kind.name for kind in OpKind])
_check("READ_", [kind.name for kind in ReadKind])
_check("", [extent.name for extent in Extent])
_check("O_", [f.name for f in fields(Op)], OP_WORDS)
_check("C_", [f.name for f in fields(Change)], CHANGE_WORDS)
_check("R_", [f.name for f in fields(Read)], READ_WORDS)
_check("", [f.name for f in fields(Limits)])

Flat = Annotated[I64, ArrayLayout(np.int64)]
Pairs = Annotated[I64, ArrayLayout(np.int64, 2)]
Changes = Annotated[I64, ArrayLayout(np.int64, CHANGE_WORDS)]


class Tables(NamedTuple):
    """What the kernels read; every array is constant during the life of an engine. E entities, F columns, G boundaries.

    boundary_offset   int64 [G]      distance behind stream time, ms; a row has passed boundary g when
                                     event_time <= T - boundary_offset[g]
    boundary_start    int64 [G+1]    its changes are boundary_changes[boundary_start[g]:boundary_start[g+1]]
    boundary_changes  int64 [·, 8]   changes; those of one entity stand together
    touch_start       int64 [G+1]    and what they touch: boundary_touches[touch_start[g]:touch_start[g+1]]
    boundary_touches  int64 [·, 2]   place of the slot's number in the row, of the accumulator in the slot, bytes: for
                                     prefetching
    boundary_grows    int64 [G]      1 when a row that passes it can need more memory
    ops               int64 [·, 17]
    immediate         int64 [·, 8]   changes without a delay, which a payment in time makes at once
    label_ops         int64 [·]      ops that a label changes
    distincts         int64 [·, 2]   distinct column, accumulator
    entity            int64 [E, 2]   words of a slot, boundary that releases a row or -1 (never)
    reads             int64 [F, 10]
    test_start        int64 [F+1]    filters on column f: tests[test_start[f]:test_start[f+1]]
    tests             int64 [·, 3]   where bit, first and end of its intervals
    intervals         float64 [·, 2] closed intervals, of which the column's value must be in one
    limits            int64 [14]     see Limits
    priors            float64 [F, 2] of a smoothed share: rate · weight, weight; 0 without a prior
    circle            int64 [31, 2] cosine and sine of each hour of the day, then of each day of the week, in units of
                                     1 / CIRCLE_UNIT
    minor_units       float64 [1]    minor units in one major unit of the set's currency
    """

    boundary_offset: Flat
    boundary_start: Flat
    boundary_changes: Changes
    touch_start: Flat
    boundary_touches: Pairs
    boundary_grows: Flat
    ops: Annotated[I64, ArrayLayout(np.int64, OP_WORDS)]
    immediate: Changes
    label_ops: Flat
    distincts: Pairs
    entity: Pairs
    reads: Annotated[I64, ArrayLayout(np.int64, READ_WORDS)]
    test_start: Flat
    tests: Annotated[I64, ArrayLayout(np.int64, 3)]
    intervals: Annotated[npt.NDArray[np.float64], ArrayLayout(np.float64, 2)]
    limits: Flat
    priors: Annotated[npt.NDArray[np.float64], ArrayLayout(np.float64, 2)]
    circle: Pairs
    minor_units: Annotated[npt.NDArray[np.float64], ArrayLayout(np.float64)]
