"""A feature set lowered to flat tables of integers that one kernel interprets.

Words used here and in the kernel:

    row     one payment in the event log
    edge    one distinct distance behind stream time at which rows enter or leave a window; all entities share its
            pointer
    strip   one live key of one entity: words of 64 bits in the arena
    cell    one of those words
    op      what a row does to the cells of one group when it enters it, and undoes when it leaves
    group   (entity, window, delay, filter): the aggregates that change together, in neighbouring cells

A strip is a header (the key's own hash, so that the strip can take itself out of the key table, and how many of its
rows are live) followed by the cells of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.feature_set import Feature, FeatureSet
from features.filters import intervals, is_field
from schemas.currencies import CURRENCY_EXPONENT

I64 = npt.NDArray[np.int64]

# Header words of a strip. LIVE is 2 · (rows inside the entity's longest window) + 1, and 0 in a strip that is free.
KEY_LOW, KEY_HIGH, LIVE = range(3)
HEADER_WORDS = 3
# Strips start at multiples of four words, so that a slot number of 32 bits reaches 137 GB of arena.
STRIP_SHIFT = 2
MEDIAN_MAX = 128

# Kinds of ops.
NUMERIC, EXTREME, MEDIAN_OF, LAST_ONE, FIRST_ONE, PLACE, DECAY, FRAUDS, VERDICT, RELEASE = range(10)
# Words of an op. Cells are places in the strip.
(
    O_KIND, O_ENTITY, O_CELL, O_WHERE, O_ENTERS, O_LEAVES, O_SUM, O_SQUARES, O_FRAUD, O_DISTINCT, O_DISTINCT_END,
    O_EXPIRES_MS, O_AUX, O_WIDTH,
    O_VOID,
) = range(15)  # fmt: skip
OP_WORDS = 15

# A change of one group, as inner loops read it: op, sign, place of the slot in a row and of cells in a strip (bytes; 0:
# none), where bit or -1, and how far it goes: count, sum and frauds; more than those; or letting go of the row.
C_OP, C_SIGN, C_SLOT, C_CELL, C_WHERE, C_SUM, C_FRAUD, C_EXTENT = range(8)
COUNT_AND_SUM, MORE, RELEASING = range(3)
CHANGE_WORDS = 8
# A mark in a dirty map covers its granule and so many words behind it: groups up to this width need one mark.
MARK_WORDS = 8

# How a column is read. PAYMENT columns are filled in before the kernel runs.
(
    PAYMENT, AMOUNT, HOUR, DAY, COUNT, SUM, MEAN, STD, MIN, MAX, MEDIAN, DISTINCT, FRAUD_COUNT, FRAUD_RATE,
    DECAYED_COUNT, DECAYED_SUM,
    SINCE_LAST, SINCE_FIRST, LAST, SPEED_KMH, SINCE_FRAUD, SINCE_FIRST_FRAUD, LAST_LABEL, RATIO, DIFFERENCE, ZSCORE,
) = range(26)  # fmt: skip
_READ = {
    "count": COUNT, "sum": SUM, "mean": MEAN, "std": STD, "min": MIN, "max": MAX, "median": MEDIAN,
    "distinct": DISTINCT,
    "fraud_count": FRAUD_COUNT, "fraud_rate": FRAUD_RATE, "decayed_count": DECAYED_COUNT, "decayed_sum": DECAYED_SUM,
    "since_last": SINCE_LAST, "since_first": SINCE_FIRST, "last": LAST, "speed_kmh": SPEED_KMH,
    "since_fraud": SINCE_FRAUD,
    "since_first_fraud": SINCE_FIRST_FRAUD, "last_label": LAST_LABEL,
}  # fmt: skip
LABEL_AGGREGATES = ("fraud_count", "fraud_rate", "since_fraud", "since_first_fraud", "last_label")
# Words of a read operation: kind, entity or operand, cell or operand, where bit or operand, include_current, window ms,
# two more cells, half-life ms, and 1 for a count, sum or mean without filters.
R_KIND, R_ENTITY, R_CELL, R_WHERE, R_CURRENT, R_WINDOW, R_SECOND, R_THIRD, R_HALF_LIFE, R_PLAIN = range(10)
READ_WORDS = 10

WHERES_MAX = 64
# Filter bits that fit beside the event time in the first word of a row.
WHERES_INLINE = 12

# Words of Tables.scalars.
(
    LATENESS_MS, KEYS_MAX, DISTINCT_COLUMNS, RETENTION, LABELS_MATTER, SERIES_OPS, DISTINCT_OPS, ROW_BYTES, ROW_WHERE,
    ROW_DISTINCT, ROW_ID,
    ROW_SLOT, SEGMENT_SHIFT, INDEX_CAPACITY, KEY_PREFETCH,
) = range(15)  # fmt: skip

# Words of a prepared payment (features/columns.py); keys, 2 words an entity, and distinct values follow.
B_TIME, B_AMOUNT, B_WHERE, B_PRESENT, B_ID, B_ID_HIGH, B_LATITUDE, B_LONGITUDE = range(8)
B_KEYS = 8


class Tables(NamedTuple):
    """What the kernel reads; every array is constant during the life of an engine.

    edge_offset  int64 [G]      distance behind stream time, ms; a row has passed edge g when event_time <= T -
                                edge_offset[g]
    edge_start   int64 [G+1]    its operations are edge_ops[edge_start[g]:edge_start[g+1]]
    edge_ops     int64 [·, 8]   C_ words below, +1 entering or -1 leaving; ops of one entity stand together
    touch_start  int64 [G+1]    and what they touch: edge_touches[touch_start[g]:touch_start[g+1]]
    edge_touches int64 [·, 2]   slot's place in the row, cell's in the strip, bytes: for prefetching
    edge_grows   int64 [G]      1 when a row that passes it can need more memory
    ops          int64 [·, 15]  O_ words above
    prompt       int64 [·, 8]   C_ words: ops without a delay, which a payment in time does at once
    label_ops    int64 [·]      ops that a label changes
    distincts    int64 [·, 2]   distinct column, cell
    entity       int64 [E, 2]   words of a strip, edge that releases a row or -1 (never)
    reads        int64 [F, 10]  R_ words above
    test_start   int64 [F+1]    filters on column f: tests[test_start[f]:test_start[f+1]]
    tests        int64 [·, 4]   where bit, first and end of its intervals, unused
    intervals    float64 [·, 2] closed intervals, of which the column's value must be in one
    scalars      int64 [15]     see above
    minor_units  float64 [1]    minor units in one major unit of the set's currency
    """

    edge_offset: I64
    edge_start: I64
    edge_ops: I64
    touch_start: I64
    edge_touches: I64
    edge_grows: I64
    ops: I64
    prompt: I64
    label_ops: I64
    distincts: I64
    entity: I64
    reads: I64
    test_start: I64
    tests: I64
    intervals: npt.NDArray[np.float64]
    scalars: I64
    minor_units: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """The tables, and what the columns of a batch must be prepared from.

    `wheres` are the filters' conditions on fields of the payment, by bit; conditions on earlier features are in the
    tables."""

    tables: Tables
    entities: tuple[tuple[str, ...], ...]
    wheres: tuple[dict[str, object], ...]
    distinct_fields: tuple[str, ...]
    payment_columns: tuple[tuple[int, Feature], ...]
    positions: bool
    labels: bool


Group = tuple[object, ...]


@dataclass
class _Layout:
    """Collects ops and cells while the features are walked."""

    entities: list[str]
    clauses: list[dict[str, object]] = field(default_factory=list)
    distinct_fields: list[str] = field(default_factory=list)
    # Group → what it needs: of a NUMERIC group sum, squares, fraud and distinct columns.
    groups: dict[Group, set[str]] = field(default_factory=dict)
    expires: dict[Group, int] = field(default_factory=dict)

    def where(self, feature: Feature) -> int:
        clause: dict[str, object] = dict(sorted(feature.where.items()))
        if not clause:
            return -1
        if clause not in self.clauses:
            self.clauses.append(clause)
        if len(self.clauses) > WHERES_MAX:
            raise ValueError(
                f"a feature set has at most {WHERES_MAX} different where clauses; let features share theirs"
            )
        return self.clauses.index(clause)

    def distinct(self, name: str) -> int:
        if name not in self.distinct_fields:
            self.distinct_fields.append(name)
        return self.distinct_fields.index(name)


def lower(feature_set: FeatureSet, *, segment_shift: int) -> Plan:
    """Lower `feature_set` to tables. Everything that could be wrong in it was refused when it was read."""
    entities = list(feature_set.entities)
    names = {name: i for i, name in enumerate(feature_set.names)}
    layout = _Layout(entities)
    pinned: set[str] = set()
    horizon: dict[str, int] = {}
    payment_columns: list[tuple[int, Feature]] = []
    for f, feature in enumerate(feature_set.features):
        if feature.kind == "payment" and feature.payment not in ("amount", "hour_of_day", "day_of_week"):
            payment_columns.append((f, feature))
        if feature.kind != "aggregate":
            continue
        assert feature.entity is not None
        group = _group(feature, layout)
        layout.groups.setdefault(group, set()).update(_needs(feature))
        if feature.window is None:
            pinned.add(feature.entity)
        else:
            length = feature.window + feature.delay
            horizon[feature.entity] = max(horizon.get(feature.entity, 0), length)
            layout.expires[group] = max(layout.expires.get(group, 0), length)

    cells, words = _cells(layout)
    edges = _edges(layout, horizon, pinned, feature_set)
    edge_of = {offset: g for g, offset in enumerate(edges)}
    ops, distincts = _ops(layout, cells, edge_of)
    entity_table = np.zeros((len(entities), 2), dtype=np.int64)
    for e, entity in enumerate(entities):
        entity_table[e, 0] = -(-words[entity] >> STRIP_SHIFT) << STRIP_SHIFT
        entity_table[e, 1] = -1 if entity in pinned or entity not in horizon else edge_of[horizon[entity]]
        release = [0] * OP_WORDS
        release[O_KIND], release[O_ENTITY], release[O_CELL], release[O_WHERE] = RELEASE, e, LIVE, -1
        release[O_ENTERS], release[O_LEAVES], release[O_WIDTH], release[O_VOID] = -1, int(entity_table[e, 1]), 1, 1
        ops.append(release)
    op_table = np.array(ops, dtype=np.int64).reshape(-1, OP_WORDS)
    labels = any(f.aggregate in LABEL_AGGREGATES for f in feature_set.features)
    scalars = _scalars(feature_set, layout, op_table, edge_of[max(edges)], labels, segment_shift)
    row_slot = int(scalars[ROW_SLOT])
    edge_start, edge_ops, touch_start, touches = _edge_tables(op_table, len(edges), row_slot)
    growing = edge_ops[:, C_EXTENT] == MORE
    reads = np.zeros((len(feature_set.features), READ_WORDS), dtype=np.int64)
    for f, feature in enumerate(feature_set.features):
        reads[f] = _read(feature, layout, cells, names, entities)
    test_start, tests, intervals = _tests(layout, names)
    counted = np.isin(reads[:, R_KIND], (COUNT, SUM, MEAN))
    reads[:, R_PLAIN] = counted & (reads[:, R_WHERE] < 0) & (np.diff(test_start) == 0)
    prompt = [o for o, op in enumerate(ops) if op[O_ENTERS] < 0 and op[O_KIND] not in (FRAUDS, VERDICT, RELEASE)]
    tables = Tables(
        edge_offset=np.array(edges, dtype=np.int64),
        edge_start=edge_start,
        edge_ops=edge_ops,
        touch_start=touch_start,
        edge_touches=touches,
        edge_grows=np.array([growing[a:b].any() for a, b in pairwise(edge_start)], dtype=np.int64),
        ops=op_table,
        prompt=np.array(
            [
                _change(op_table, o, 1, row_slot)
                for o in sorted(prompt, key=lambda o: (ops[o][O_ENTITY], ops[o][O_CELL]))
            ],
            dtype=np.int64,
        ).reshape(-1, CHANGE_WORDS),
        label_ops=np.array(
            [
                o
                for o, op in enumerate(ops)
                if op[O_KIND] in (FRAUDS, VERDICT) or (op[O_KIND] == NUMERIC and op[O_FRAUD])
            ],
            dtype=np.int64,
        ),
        distincts=np.array(distincts, dtype=np.int64).reshape(-1, 2),
        entity=entity_table,
        reads=reads,
        test_start=test_start,
        tests=tests,
        intervals=intervals,
        scalars=scalars,
        minor_units=np.array([10.0 ** CURRENCY_EXPONENT[feature_set.currency]]),
    )
    return Plan(
        tables=tables,
        entities=tuple(tuple(fields) for fields in feature_set.entities.values()),
        wheres=tuple({k: v for k, v in clause.items() if is_field(k)} for clause in layout.clauses),
        distinct_fields=tuple(layout.distinct_fields),
        payment_columns=tuple(payment_columns),
        positions=any(f.aggregate == "speed_kmh" for f in feature_set.features),
        labels=labels,
    )


def _needs(feature: Feature) -> set[str]:
    """What a NUMERIC group must keep beside its count for this feature."""
    needs = {
        "sum": {"sum"}, "mean": {"sum"}, "std": {"sum", "squares"}, "fraud_count": {"fraud"}, "fraud_rate": {"fraud"},
        "distinct": {f"distinct:{feature.of}"}, "decayed_count": {"count"}, "decayed_sum": {"sum"},
    }  # fmt: skip
    return needs.get(feature.aggregate or "", set())


def _group(feature: Feature, layout: _Layout) -> Group:
    """The group an aggregate belongs to: op kind, entity, filter bit, and what else tells groups apart."""
    entity, kind, bit = feature.entity, feature.aggregate, layout.where(feature)
    if kind in ("min", "max"):
        return (EXTREME, entity, bit, feature.delay, feature.window, kind == "max")
    if kind == "median":
        return (MEDIAN_OF, entity, bit, feature.delay)
    if kind in ("decayed_count", "decayed_sum"):
        return (DECAY, entity, bit, feature.half_life)
    latest = {
        "since_last": LAST_ONE, "last": LAST_ONE, "since_first": FIRST_ONE, "speed_kmh": PLACE, "since_fraud": FRAUDS,
        "since_first_fraud": FRAUDS,
        "last_label": VERDICT,
    }  # fmt: skip
    if kind in latest:
        return (latest[kind], entity, bit)
    if kind == "distinct":
        layout.distinct(feature.of or "")
    return (NUMERIC, entity, bit, feature.delay, feature.window)


# Cells of a group beside NUMERIC ones: a block; last time and amount; first time; time and position; time and two sums;
# a block; time, seq, label.
_CELLS = {EXTREME: 1, MEDIAN_OF: 1, LAST_ONE: 2, FIRST_ONE: 1, PLACE: 3, DECAY: 3, FRAUDS: 1, VERDICT: 3}


def _cells(layout: _Layout) -> tuple[dict[tuple[Group, str], int], dict[str, int]]:
    """The cell of every part of every group, and the words of each entity's strip."""
    words = dict.fromkeys(layout.entities, HEADER_WORDS)
    cells: dict[tuple[Group, str], int] = {}
    for group, needs in layout.groups.items():
        entity = str(group[1])
        parts = [("count", 1)]
        if group[0] == NUMERIC:
            parts += [("sum", 1)] if "sum" in needs else []
            parts += [("squares", 2)] if "squares" in needs else []
            parts += [("fraud", 1)] if "fraud" in needs else []
            parts += [(need, 1) for need in sorted(needs) if need.startswith("distinct:")]
        else:
            parts = [("count", _CELLS[int(str(group[0]))])]
        for part, width in parts:
            cells[group, part] = words[entity]
            words[entity] += width
    return cells, words


def _ops(
    layout: _Layout, cells: dict[tuple[Group, str], int], edge_of: dict[int, int]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    ops: list[list[int]] = []
    distincts: list[tuple[int, int]] = []
    for group, needs in layout.groups.items():
        op = [0] * OP_WORDS
        kind = int(str(group[0]))
        op[O_KIND], op[O_ENTITY], op[O_WHERE] = kind, layout.entities.index(str(group[1])), int(str(group[2]))
        op[O_CELL], op[O_ENTERS], op[O_LEAVES] = cells[group, "count"], -1, -1
        op[O_EXPIRES_MS] = layout.expires.get(group, 0)
        op[O_WIDTH] = max(cells[g, part] for g, part in cells if g == group) - op[O_CELL] + 1 + int("squares" in needs)
        op[O_DISTINCT] = op[O_DISTINCT_END] = len(distincts)
        delay = int(str(group[3])) if kind in (NUMERIC, EXTREME, MEDIAN_OF) else 0
        if delay:
            op[O_ENTERS] = edge_of[delay]
        if kind == NUMERIC:
            op[O_LEAVES] = edge_of[delay + int(str(group[4]))]
            op[O_SUM] = cells.get((group, "sum"), 0)
            op[O_SQUARES] = cells.get((group, "squares"), 0)
            op[O_FRAUD] = cells.get((group, "fraud"), 0)
            for need in sorted(needs):
                if need.startswith("distinct:"):
                    column = layout.distinct_fields.index(need.removeprefix("distinct:"))
                    distincts.append((column, cells[group, need]))
            op[O_DISTINCT_END] = len(distincts)
        elif kind == EXTREME:
            op[O_AUX] = int(bool(group[5]))
        elif kind == DECAY:
            op[O_AUX] = int(str(group[3]))
        ops.append(op)
    return ops, distincts


def _change(ops: I64, o: int, sign: int, row_slot: int) -> list[int]:
    op = ops[o]
    more = op[O_KIND] != NUMERIC or op[O_SQUARES] or op[O_DISTINCT] != op[O_DISTINCT_END]
    extent = RELEASING if op[O_KIND] == RELEASE else MORE if more else COUNT_AND_SUM
    entity, cells = int(op[O_ENTITY]), [int(op[word]) * 8 for word in (O_CELL, O_SUM, O_FRAUD)]
    return [o, sign, row_slot + 4 * entity, cells[0], int(op[O_WHERE]), cells[1], cells[2], extent]


def _edge_tables(ops: I64, edges: int, row_slot: int) -> tuple[I64, I64, I64, I64]:
    per_edge: list[list[tuple[int, int]]] = [[] for _ in range(edges)]
    for o, op in enumerate(ops):
        if op[O_ENTERS] >= 0:
            per_edge[op[O_ENTERS]].append((o, 1))
        if op[O_LEAVES] >= 0:
            per_edge[op[O_LEAVES]].append((o, -1))
    touches: list[list[tuple[int, int]]] = []
    for changes in per_edge:
        changes.sort(key=lambda change: (ops[change[0], O_ENTITY], ops[change[0], O_KIND] == RELEASE, change[0]))
        # One prefetch for each 32 bytes that the edge's ops of an entity can touch: strips are aligned so far, no
        # further.
        pieces = {
            (int(ops[o, O_ENTITY]), int(c) >> STRIP_SHIFT)
            for o, _ in changes
            for c in (ops[o, O_CELL], ops[o, O_CELL] + ops[o, O_WIDTH] - 1)
        }
        touches.append([(row_slot + 4 * e, piece << (STRIP_SHIFT + 3)) for e, piece in sorted(pieces)])
    flat = [_change(ops, o, sign, row_slot) for changes in per_edge for o, sign in changes]
    flat_touches = [touch for group in touches for touch in group]
    return (
        np.cumsum([0] + [len(changes) for changes in per_edge], dtype=np.int64),
        np.array(flat, dtype=np.int64).reshape(-1, CHANGE_WORDS),
        np.cumsum([0] + [len(group) for group in touches], dtype=np.int64),
        np.array(flat_touches, dtype=np.int64).reshape(-1, 2),
    )


def _read(
    feature: Feature, layout: _Layout, cells: dict[tuple[Group, str], int], names: dict[str, int], entities: list[str]
) -> list[int]:
    row = [0] * READ_WORDS
    if feature.kind == "payment":
        row[R_KIND] = {"amount": AMOUNT, "hour_of_day": HOUR, "day_of_week": DAY}.get(feature.payment or "", PAYMENT)
        return row
    if feature.kind != "aggregate":
        row[R_KIND] = {"ratio": RATIO, "difference": DIFFERENCE, "zscore": ZSCORE}[feature.kind]
        row[1 : 1 + len(feature.operands)] = [names[operand] for operand in feature.operands]
        return row
    group = _group(feature, layout)
    row[R_KIND], row[R_ENTITY] = _READ[feature.aggregate or ""], entities.index(feature.entity or "")
    row[R_CELL], row[R_WHERE] = cells[group, "count"], layout.where(feature)
    row[R_CURRENT] = int(feature.include_current)
    row[R_WINDOW] = -1 if feature.window is None else feature.window + feature.delay
    row[R_HALF_LIFE] = feature.half_life or 0
    second = {"fraud_count": "fraud", "fraud_rate": "fraud", "distinct": f"distinct:{feature.of}"}.get(
        feature.aggregate or "", "sum"
    )
    row[R_SECOND] = cells.get((group, second), 0)
    row[R_THIRD] = cells.get((group, "squares"), 0)
    if feature.aggregate == "distinct":
        row[R_THIRD] = layout.distinct_fields.index(feature.of or "")
    return row


def _edges(layout: _Layout, horizon: dict[str, int], pinned: set[str], feature_set: FeatureSet) -> list[int]:
    """All distinct edge offsets in ms, ascending; the last one is where the log itself ends."""
    offsets: set[int] = set()
    for group in layout.groups:
        delay = int(str(group[3])) if group[0] in (NUMERIC, EXTREME, MEDIAN_OF) else 0
        offsets |= {delay} if delay else set()
        if group[0] == NUMERIC:
            offsets.add(delay + int(str(group[4])))
    offsets |= {length for entity, length in horizon.items() if entity not in pinned}
    # The windows of minimum, maximum and median end no edge of their own, but the log must reach back as far.
    offsets |= {max(horizon.values())} if horizon else set()
    if any(f.aggregate in LABEL_AGGREGATES for f in feature_set.features):
        offsets.add(max(feature_set.label_horizon, *offsets, 1))
    return sorted(offsets) or [1]


def _tests(layout: _Layout, names: dict[str, int]) -> tuple[I64, I64, npt.NDArray[np.float64]]:
    """Filters on earlier features. Value and bound are compared as the float32 that the column holds."""
    per_column: list[list[tuple[int, int, int, int]]] = [[] for _ in names]
    pairs: list[tuple[float, float]] = []
    for bit, clause in enumerate(layout.clauses):
        for name, condition in clause.items():
            if not is_field(name):
                first = len(pairs)
                pairs += intervals(condition)
                per_column[names[name]].append((bit, first, len(pairs), 0))
    return (
        np.cumsum([0] + [len(tests) for tests in per_column], dtype=np.int64),
        np.array([test for tests in per_column for test in tests], dtype=np.int64).reshape(-1, 4),
        np.array(pairs, dtype=np.float64).reshape(-1, 2),
    )


def _scalars(
    feature_set: FeatureSet, layout: _Layout, ops: I64, retention: int, labels: bool, segment_shift: int
) -> I64:
    """Limits and the layout of a row: time and flags, amount, more filter bits, distinct values, id; then 4-byte slots
    and the rest of the id."""
    words = np.zeros(16, dtype=np.int64)
    words[LATENESS_MS], words[KEYS_MAX] = feature_set.allowed_lateness, feature_set.keys_max
    words[DISTINCT_COLUMNS], words[RETENTION], words[LABELS_MATTER] = (
        len(layout.distinct_fields),
        retention,
        int(labels),
    )
    words[SERIES_OPS] = int(np.isin(ops[:, O_KIND], (EXTREME, MEDIAN_OF, FRAUDS)).sum())
    words[DISTINCT_OPS] = int((ops[:, O_DISTINCT_END] - ops[:, O_DISTINCT]).sum())
    at = 16
    words[ROW_WHERE] = at if len(layout.clauses) > WHERES_INLINE else 0
    at += 8 if len(layout.clauses) > WHERES_INLINE else 0
    words[ROW_DISTINCT] = at
    at += 8 * len(layout.distinct_fields)
    words[ROW_ID] = at if labels else 0
    at += 8 if labels else 0
    words[ROW_SLOT] = at
    at += 4 * len(layout.entities) + (4 if labels else 0)
    words[ROW_BYTES] = at
    words[SEGMENT_SHIFT] = segment_shift
    # Load 2/3: a miss looks at 5 places on average, neighbours in one or two cache lines (Knuth, TAOCP 6.4).
    words[INDEX_CAPACITY] = 3 * (1 << segment_shift) // 2 if labels else 0
    return words
