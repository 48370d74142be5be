"""A feature set lowered to the tables of integers that the kernels interpret (words: features/kernel_tables.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.feature_set import BY_VALUE, CIRCULAR, LATEST_MAX, NEIGHBOURS_MAX, PLACED, PLACES_MAX, Feature, FeatureSet
from features.filters import intervals, is_field
from features.group_layout import Accumulators, Group, Layout, Needs
from features.kernel_tables import I64, Change, Extent, Limits, Op, OpKind, Read, ReadKind, Tables, words
from schemas.currencies import CURRENCY_EXPONENT

LABEL_AGGREGATES = ("fraud_count", "fraud_rate", "neighbour_frauds", "since_fraud", "since_first_fraud", "last_label")
_OF_PAYMENT = {
    "amount": ReadKind.AMOUNT, "hour_of_day": ReadKind.HOUR_OF_DAY, "day_of_week": ReadKind.DAY_OF_WEEK,
}  # fmt: skip
# Ops that keep pairs of (time, value) in the pool.
SERIES = (OpKind.EXTREME, OpKind.RECENT, OpKind.KNOWN_FRAUDS, OpKind.NEIGHBOURS, OpKind.PLACES)


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


def lower(feature_set: FeatureSet, *, segment_shift: int) -> Plan:
    """Lower `feature_set` to tables. Everything that could be wrong in it was refused when it was read."""
    entities = list(feature_set.entities)
    names = {name: i for i, name in enumerate(feature_set.names)}
    layout = Layout(entities)
    pinned: set[str] = set()  # entities whose keys are kept for life
    horizon: dict[str, int] = {}
    for feature in feature_set.features:
        if feature.kind != "aggregate":
            continue
        layout.add(feature)
        # A neighbour's key stays as long as a payment that made it one: its place in a series is never another's.
        for entity in feature.read_entities:
            if feature.window is None:
                pinned.add(entity)
            else:
                horizon[entity] = max(horizon.get(entity, 0), feature.window + feature.delay)
    labels = any(f.aggregate in LABEL_AGGREGATES for f in feature_set.features)

    accumulators, slot_words = layout.accumulators()
    boundaries = _boundaries(layout, horizon, pinned, feature_set if labels else None)
    boundary_of = {offset: g for g, offset in enumerate(boundaries)}
    ops, distincts = _ops(layout, accumulators, boundary_of)
    entity_table = np.zeros((len(entities), 2), dtype=np.int64)
    for e, entity in enumerate(entities):
        leaves = -1 if entity in pinned or entity not in horizon else boundary_of[horizon[entity]]
        entity_table[e] = (-(-slot_words[entity] >> kt.SLOT_SHIFT) << kt.SLOT_SHIFT, leaves)
        ops.append(Op(kind=OpKind.RELEASE, entity=e, accumulator=kt.LIVE, leaves=leaves))
    limits = _limits(feature_set, layout, ops, boundary_of[max(boundaries)], labels, segment_shift)
    changes, touches = _boundary_tables(ops, len(boundaries), limits.row_slots)
    test_start, tests, bounds = _tests(layout, names)
    reads = [_read(f, layout, accumulators, names) for f in feature_set.features]
    read_table = _table([words(read) for read in reads], kt.READ_WORDS)
    counted = np.isin(read_table[:, kt.R_KIND], (ReadKind.COUNT, ReadKind.SUM, ReadKind.MEAN))
    read_table[:, kt.R_PLAIN] = counted & (read_table[:, kt.R_WHERE] < 0) & (np.diff(test_start) == 0)
    immediate = [
        o for o, op in enumerate(ops)
        if op.enters < 0 and op.kind not in (OpKind.KNOWN_FRAUDS, OpKind.LABEL, OpKind.RELEASE)
    ]  # fmt: skip
    immediate.sort(key=lambda o: (ops[o].entity, ops[o].accumulator))
    boundary_start, touch_start = _starts(changes), _starts(touches)
    tables = Tables(
        boundary_offset=np.array(boundaries, dtype=np.int64),
        boundary_start=boundary_start,
        boundary_changes=_table([words(change) for each in changes for change in each], kt.CHANGE_WORDS),
        touch_start=touch_start,
        boundary_touches=_table([touch for each in touches for touch in each], 2),
        boundary_grows=np.array([any(c.extent == Extent.MORE for c in each) for each in changes], dtype=np.int64),
        ops=_table([words(op) for op in ops], kt.OP_WORDS),
        immediate=_table([words(_change(ops, o, 1, limits.row_slots)) for o in immediate], kt.CHANGE_WORDS),
        label_ops=np.array(
            [o for o, op in enumerate(ops) if op.kind in (OpKind.KNOWN_FRAUDS, OpKind.LABEL) or op.fraud],
            dtype=np.int64,
        ),
        distincts=_table(distincts, 2),
        entity=entity_table,
        reads=read_table,
        test_start=test_start,
        tests=tests,
        intervals=bounds,
        limits=np.array(words(limits), dtype=np.int64),
        priors=_priors(feature_set),
        circle=_circle(),
        minor_units=np.array([10.0 ** CURRENCY_EXPONENT[feature_set.currency]]),
    )
    return Plan(
        tables=tables,
        entities=tuple(tuple(fields) for fields in feature_set.entities.values()),
        wheres=tuple({k: v for k, v in clause.items() if is_field(k)} for clause in layout.clauses),
        distinct_fields=tuple(layout.distinct_fields),
        payment_columns=tuple(
            (f, feature)
            for f, feature in enumerate(feature_set.features)
            if feature.kind == "payment" and feature.payment not in _OF_PAYMENT
        ),
        positions=any(f.aggregate in PLACED for f in feature_set.features),
        labels=labels,
    )


def _table(rows: list[list[int]] | list[tuple[int, int]], width: int) -> I64:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def _starts(groups: list[list[Change]] | list[list[tuple[int, int]]]) -> I64:
    return np.cumsum([0] + [len(group) for group in groups], dtype=np.int64)


def _ops(
    layout: Layout, accumulators: Mapping[Group, Accumulators], boundary_of: Mapping[int, int]
) -> tuple[list[Op], list[tuple[int, int]]]:
    """An op for each group, and the rows of Tables.distincts."""
    ops: list[Op] = []
    distincts: list[tuple[int, int]] = []
    for group, needs in layout.groups.items():
        its, start = accumulators[group], len(distincts)
        distincts += [(layout.distinct_fields.index(name), at) for name, at in its.distincts.items()]
        ops.append(
            Op(
                kind=group.kind,
                entity=layout.entities.index(group.entity),
                accumulator=its.first,
                where=group.where,
                enters=boundary_of[group.delay_ms] if group.delay_ms else -1,
                leaves=boundary_of[group.leaves_ms] if group.kind == OpKind.NUMERIC else -1,
                sum=its.sum,
                squares=its.squares,
                fraud=its.fraud,
                distinct=start,
                distinct_end=len(distincts),
                expires_ms=needs.expires_ms,
                parameter=_parameter(group, needs),
                width=its.width,
                hours=its.circles.get("hour_of_day", 0),
                days=its.circles.get("day_of_week", 0),
                neighbour=layout.entities.index(group.neighbour) if group.neighbour else 0,
            )
        )
    return ops, distincts


def _parameter(group: Group, needs: Needs) -> int:
    """What an op of this group needs beside places: see Op.parameter."""
    if group.kind == OpKind.DECAY:
        return group.half_life_ms
    return needs.latest if group.kind in (OpKind.RECENT, OpKind.NEIGHBOURS, OpKind.PLACES) else int(group.largest)


def _change(ops: list[Op], o: int, sign: int, row_slots: int) -> Change:
    op = ops[o]
    more = op.kind != OpKind.NUMERIC or op.squares or op.distinct != op.distinct_end or op.hours or op.days
    return Change(
        op=o,
        sign=sign,
        slot_number=row_slots + 4 * op.entity,
        accumulator=8 * op.accumulator,
        where=op.where,
        sum=8 * op.sum,
        fraud=8 * op.fraud,
        extent=Extent.RELEASING if op.kind == OpKind.RELEASE else Extent.MORE if more else Extent.COUNT_AND_SUM,
    )


def _boundary_tables(
    ops: list[Op], boundaries: int, row_slots: int
) -> tuple[list[list[Change]], list[list[tuple[int, int]]]]:
    """The changes and the touches of each boundary."""
    per_boundary: list[list[tuple[int, int]]] = [[] for _ in range(boundaries)]
    for o, op in enumerate(ops):
        if op.enters >= 0:
            per_boundary[op.enters].append((o, 1))
        if op.leaves >= 0:
            per_boundary[op.leaves].append((o, -1))
    touches: list[list[tuple[int, int]]] = []
    for each in per_boundary:
        each.sort(key=lambda change: (ops[change[0]].entity, ops[change[0]].kind == OpKind.RELEASE, change[0]))
        # One prefetch for each 32 bytes that the boundary's ops of an entity can touch: slots are aligned so far, no
        # further.
        pieces = {
            (ops[o].entity, word >> kt.SLOT_SHIFT)
            for o, _ in each
            for word in (ops[o].accumulator, ops[o].accumulator + ops[o].width - 1)
        }
        touches.append([(row_slots + 4 * e, piece << (kt.SLOT_SHIFT + 3)) for e, piece in sorted(pieces)])
    return [[_change(ops, o, sign, row_slots) for o, sign in each] for each in per_boundary], touches


def _read(
    feature: Feature, layout: Layout, accumulators: Mapping[Group, Accumulators], names: Mapping[str, int]
) -> Read:
    if feature.kind == "payment":
        return Read(kind=_OF_PAYMENT.get(feature.payment or "", ReadKind.PAYMENT))
    if feature.kind != "aggregate":
        x, y, z = (*(names[operand] for operand in feature.operands), 0)[:3]
        return Read(kind=ReadKind[feature.kind.upper()], entity=x, accumulator=y, where=z)
    group = layout.group(feature)
    its = accumulators[group]
    second, third = its.sum, its.squares
    if feature.aggregate in ("fraud_count", "fraud_rate"):
        second = its.fraud
    elif feature.aggregate in BY_VALUE:
        second, third = its.distincts[feature.of or ""], layout.distinct_fields.index(feature.of or "")
    elif feature.aggregate in CIRCULAR:
        second, third = its.circles[feature.of or ""], int(feature.of == "day_of_week")
    elif feature.aggregate == "neighbour_frauds":
        second, third = accumulators[layout.neighbours(feature)].fraud, feature.latest or NEIGHBOURS_MAX
    elif feature.aggregate == "nearest_km":
        third = feature.latest or PLACES_MAX
    name = (feature.aggregate or "").upper()
    if group.kind == OpKind.RECENT:
        third = feature.latest or LATEST_MAX
        name = name if name in ("MEDIAN", "MEAN_GAP") else f"RECENT_{name}"
    return Read(
        kind=ReadKind[name],
        entity=layout.entities.index(group.entity),
        accumulator=its.first,
        where=group.where,
        current=int(feature.include_current),
        window_ms=-1 if feature.window is None else feature.window + feature.delay,
        second=second,
        third=third,
        half_life_ms=feature.half_life or 0,
    )


def _priors(feature_set: FeatureSet) -> npt.NDArray[np.float64]:
    pairs = [(f.prior.rate * f.prior.weight, f.prior.weight) if f.prior else (0.0, 0.0) for f in feature_set.features]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _circle() -> I64:
    """Directions of the hours of a day, then of the days of a week. No cosine or sine of them lies near the middle
    between two units, so every C library rounds them alike."""
    angles = [2 * math.pi * k / parts for parts in (kt.HOURS, kt.DAYS) for k in range(parts)]
    return _table([[round(kt.CIRCLE_UNIT * turn(a)) for turn in (math.cos, math.sin)] for a in angles], 2)


def _boundaries(layout: Layout, horizon: Mapping[str, int], pinned: set[str], labelled: FeatureSet | None) -> list[int]:
    """All distinct boundary offsets in ms, ascending; the last one is where the log itself ends. `labelled`: the set
    when it reads labels."""
    offsets = {group.delay_ms for group in layout.groups if group.delay_ms}
    offsets |= {group.leaves_ms for group in layout.groups if group.kind == OpKind.NUMERIC}
    offsets |= {length for entity, length in horizon.items() if entity not in pinned}
    # The windows of minimum, maximum and median have no boundary of their own, but the log must reach back as far.
    offsets |= {max(horizon.values())} if horizon else set()
    if labelled is not None:
        offsets.add(max(labelled.label_horizon, *offsets, 1))
    return sorted(offsets) or [1]


def _tests(layout: Layout, names: Mapping[str, int]) -> tuple[I64, I64, npt.NDArray[np.float64]]:
    """Filters on earlier features. Value and bound are compared as the float32 that the column holds."""
    per_column: list[list[list[int]]] = [[] for _ in names]
    pairs: list[tuple[float, float]] = []
    for bit, clause in enumerate(layout.clauses):
        for name, condition in clause.items():
            if not is_field(name):
                first = len(pairs)
                pairs += intervals(condition)
                per_column[names[name]].append([bit, first, len(pairs)])
    return (
        np.cumsum([0] + [len(tests) for tests in per_column], dtype=np.int64),
        _table([test for tests in per_column for test in tests], 3),
        np.array(pairs, dtype=np.float64).reshape(-1, 2),
    )


def _limits(
    feature_set: FeatureSet, layout: Layout, ops: list[Op], retention: int, labels: bool, segment_shift: int
) -> Limits:
    """Bounds, and the layout of a row: time and flags, amount, more filter bits, distinct values, id; then 4-byte slot
    numbers and the rest of the id (features/event_log.py)."""
    wide = len(layout.clauses) > kt.WHERES_INLINE
    row_where = 16
    row_distinct = row_where + (8 if wide else 0)
    row_id = row_distinct + 8 * len(layout.distinct_fields)
    row_slots = row_id + (8 if labels else 0)
    return Limits(
        lateness_ms=feature_set.allowed_lateness,
        keys_max=feature_set.keys_max,
        distinct_columns=len(layout.distinct_fields),
        retention=retention,
        labels_matter=int(labels),
        series_ops=sum(op.kind in SERIES for op in ops),
        distinct_ops=sum(op.distinct_end - op.distinct for op in ops),
        row_bytes=row_slots + 4 * len(layout.entities) + (4 if labels else 0),
        row_where=row_where if wide else 0,
        row_distinct=row_distinct,
        row_id=row_id if labels else 0,
        row_slots=row_slots,
        segment_shift=segment_shift,
        # Load 2/3: a miss looks at 5 places on average, neighbours in one or two cache lines (Knuth, TAOCP 6.4).
        index_capacity=3 * (1 << segment_shift) // 2 if labels else 0,
    )
