"""A feature set lowered to flat tables of integers that one kernel interprets.

Words used here and in the kernel:

    row     one payment in the event log
    edge    one distinct distance behind stream time at which rows enter or leave a window; all entities share its pointer
    slot    one live key of one entity: a strip of 64-bit words in the arena
    cell    one of those words that holds a running aggregate
    group   (entity, window, delay, filter): the aggregates that change together

A strip is a header (who the key is, how many of its rows are live, its latest payment …) followed by the cells of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.feature_set import Feature, FeatureSet
from schemas.currencies import CURRENCY_EXPONENT

I64 = npt.NDArray[np.int64]

# Header words of a strip. A key's own hash is there so that the strip can take itself out of the key table.
KEY_LOW, KEY_HIGH, LIVE, SEEN, FIRST_MS, LAST_MS, LAST_AMOUNT, POSITION_MS, LATITUDE, LONGITUDE, FRAUD_MS, CHAIN = (
    range(12)
)
HEADER_WORDS = 12
# Strips start at multiples of four words, so that a slot number of 32 bits reaches 137 GB of arena.
STRIP_WORDS = 4

# What happens to a cell when a row enters or leaves a group.
ADD_COUNT, ADD_SUM, ADD_SQUARES, ADD_FRAUD, ADD_DISTINCT, ADD_EXTREME = range(6)
# What happens when a row passes the last edge of an entity, or of the log.
RELEASE, FORGET = 6, 7

# How a column is read.
(
    PAYMENT, COUNT, SUM, MEAN, STD, MIN, MAX, MEDIAN, DISTINCT, FRAUD_COUNT, FRAUD_RATE,
    SINCE_LAST, SINCE_FIRST, LAST, SPEED_KMH, SINCE_FRAUD, RATIO, DIFFERENCE, ZSCORE,
) = range(19)  # fmt: skip
_READ = {
    "count": COUNT, "sum": SUM, "mean": MEAN, "std": STD, "min": MIN, "max": MAX, "median": MEDIAN, "distinct": DISTINCT,
    "fraud_count": FRAUD_COUNT, "fraud_rate": FRAUD_RATE, "since_last": SINCE_LAST, "since_first": SINCE_FIRST, "last": LAST,
    "speed_kmh": SPEED_KMH, "since_fraud": SINCE_FRAUD,
}  # fmt: skip

WHERES_MAX = 63
MEDIAN_MAX = 128


class Tables(NamedTuple):
    """What the kernel reads; every array is constant during the life of an engine.

    edge_offset  int64 [G]      distance behind stream time, ms; a row has passed edge g when event_time <= T - edge_offset[g]
    edge_start   int64 [G+1]    its operations are edge_ops[edge_start[g]:edge_start[g+1]]
    edge_ops     int64 [·, 6]   kind, entity, cell, where bit, distinct column, +1 entering or -1 leaving
    insert_ops   int64 [·, 8]   kind, entity, cell, where bit, distinct column, edge that enters or -1, edge that leaves, 0 for min or 1 for max
    entity       int64 [E, 3]   words of a strip, edge that releases a row or -1 (never), chain column or -1
    reads        int64 [F, 8]   kind, entity or operand, cell or operand, second cell or operand, third cell, include_current, where bit, auxiliary
    scalars      int64 [6]      allowed lateness ms, keys at most, distinct columns, chain columns, retention edge, 1 when labels matter
    minor_units  float64        minor units in one major unit of the set's currency
    """

    edge_offset: I64
    edge_start: I64
    edge_ops: I64
    insert_ops: I64
    entity: I64
    reads: I64
    scalars: I64
    minor_units: float


@dataclass(frozen=True)
class Plan:
    """The tables, and what the columns of a batch must be prepared from."""

    tables: Tables
    entities: tuple[tuple[str, ...], ...]
    wheres: tuple[dict[str, object], ...]
    distinct_fields: tuple[str, ...]
    payment_columns: tuple[tuple[int, Feature], ...]


@dataclass
class _Layout:
    """Collects cells and operations while the features are walked once."""

    entities: list[str]
    words: dict[str, int] = field(default_factory=dict)
    cells: dict[tuple[object, ...], int] = field(default_factory=dict)
    wheres: list[dict[str, object]] = field(default_factory=list)
    distinct_fields: list[str] = field(default_factory=list)
    inserts: list[tuple[int, str, int, int, int, int, int, int]] = field(default_factory=list)

    def where(self, feature: Feature) -> int:
        clause = {name: condition for name, condition in sorted(feature.where.items())}
        if clause not in self.wheres:
            self.wheres.append(clause)
        if len(self.wheres) > WHERES_MAX:
            raise ValueError(f"a feature set has at most {WHERES_MAX} different where clauses")
        return self.wheres.index(clause)

    def distinct(self, name: str) -> int:
        if name not in self.distinct_fields:
            self.distinct_fields.append(name)
        return self.distinct_fields.index(name)

    def cell(self, feature: Feature, kind: int, *, distinct: int = 0, extreme: int = 0) -> int:
        """The cell of `kind` in the feature's group, made on first use."""
        assert feature.entity is not None and feature.window is not None  # noqa: PT018 - windowed aggregates only
        bit = self.where(feature)
        key = (feature.entity, feature.window, feature.delay, bit, kind, distinct, extreme)
        if key not in self.cells:
            self.cells[key] = self.words[feature.entity]
            self.words[feature.entity] += 2 if kind in (ADD_SQUARES, ADD_EXTREME) else 1
            self.inserts.append(
                (kind, feature.entity, self.cells[key], bit, distinct, feature.delay, feature.window, extreme)
            )
        return self.cells[key]


def lower(feature_set: FeatureSet) -> Plan:
    """Lower `feature_set` to tables. Everything that could be wrong in it was refused when it was read."""
    names = {name: i for i, name in enumerate(feature_set.names)}
    entities = list(feature_set.entities)
    layout = _Layout(entities, words=dict.fromkeys(entities, HEADER_WORDS))
    reads = np.zeros((len(feature_set.features), 8), dtype=np.int64)
    pinned: set[str] = set()
    chained: set[str] = set()
    horizon: dict[str, int] = {}
    payment_columns: list[tuple[int, Feature]] = []

    for f, feature in enumerate(feature_set.features):
        if feature.kind == "payment":
            reads[f, 0] = PAYMENT
            payment_columns.append((f, feature))
            continue
        if feature.kind != "aggregate":
            reads[f, 0] = {"ratio": RATIO, "difference": DIFFERENCE, "zscore": ZSCORE}[feature.kind]
            reads[f, 1 : 1 + len(feature.operands)] = [names[operand] for operand in feature.operands]
            continue
        assert feature.entity is not None and feature.aggregate is not None  # noqa: PT018 - checked by Feature
        entity = feature.entity
        kind = _READ[feature.aggregate]
        reads[f, 0], reads[f, 1], reads[f, 5] = kind, entities.index(entity), int(feature.include_current)
        if feature.window is None:
            pinned.add(entity)
            reads[f, 7] = -1
        else:
            horizon[entity] = max(horizon.get(entity, 0), feature.window + feature.delay)
            reads[f, 7] = feature.window
        if kind in (MIN, MAX, MEDIAN, SINCE_FRAUD):
            chained.add(entity)
        if kind < SINCE_LAST:
            _cells_of(feature, kind, layout, reads[f])

    edges = _edges(layout, horizon, pinned, feature_set)
    edge_index = {offset: g for g, offset in enumerate(edges)}
    retention = edge_index[max(edges)]
    chain_columns = [entity for entity in entities if entity in chained]
    entity_table = np.array(
        [
            [
                -(-layout.words[entity] // STRIP_WORDS) * STRIP_WORDS,
                -1 if entity in pinned or entity not in horizon else edge_index[horizon[entity]],
                chain_columns.index(entity) if entity in chained else -1,
            ]
            for entity in entities
        ],
        dtype=np.int64,
    ).reshape(len(entities), 3)

    inserts = [
        (
            kind,
            entities.index(entity),
            cell,
            bit,
            distinct,
            edge_index[delay] if delay else -1,
            edge_index[delay + window],
            extreme,
        )
        for kind, entity, cell, bit, distinct, delay, window, extreme in layout.inserts
    ]
    per_edge: list[list[tuple[int, ...]]] = [[] for _ in edges]
    for kind, e, cell, bit, distinct, enters, leaves, _extreme in inserts:
        if enters >= 0:
            per_edge[enters].append((kind, e, cell, bit, distinct, 1))
        per_edge[leaves].append((kind, e, cell, bit, distinct, -1))
    for e in range(len(entities)):
        if entity_table[e, 1] >= 0:
            per_edge[entity_table[e, 1]].append((RELEASE, e, 0, 0, 0, -1))
    per_edge[retention].append((FORGET, 0, 0, 0, 0, -1))

    labels = any(f.aggregate in ("fraud_count", "fraud_rate", "since_fraud") for f in feature_set.features)
    tables = Tables(
        edge_offset=np.array(edges, dtype=np.int64),
        edge_start=np.cumsum([0] + [len(ops) for ops in per_edge], dtype=np.int64),
        edge_ops=np.array([op for ops in per_edge for op in ops], dtype=np.int64).reshape(-1, 6),
        insert_ops=np.array(inserts, dtype=np.int64).reshape(-1, 8),
        entity=entity_table,
        reads=reads,
        scalars=np.array(
            [
                feature_set.allowed_lateness,
                feature_set.keys_max,
                len(layout.distinct_fields),
                len(chain_columns),
                retention,
                int(labels),
            ],
            dtype=np.int64,
        ),
        minor_units=float(10 ** CURRENCY_EXPONENT[feature_set.currency]),
    )
    return Plan(
        tables=tables,
        entities=tuple(tuple(fields) for fields in feature_set.entities.values()),
        wheres=tuple(layout.wheres),
        distinct_fields=tuple(layout.distinct_fields),
        payment_columns=tuple(payment_columns),
    )


def _cells_of(feature: Feature, kind: int, layout: _Layout, read: I64) -> None:
    """Allot the cells a windowed aggregate reads, and write their places into its read operation."""
    read[2] = layout.cell(feature, ADD_COUNT)
    read[6] = layout.where(feature)
    if kind in (SUM, MEAN, STD):
        read[3] = layout.cell(feature, ADD_SUM)
    if kind == STD:
        read[4] = layout.cell(feature, ADD_SQUARES)
    if kind in (MIN, MAX):
        read[3] = layout.cell(feature, ADD_EXTREME, extreme=int(kind == MAX))
    if kind == DISTINCT:
        assert feature.of is not None
        column = layout.distinct(feature.of)
        read[3] = layout.cell(feature, ADD_DISTINCT, distinct=column)
        read[4] = column
    if kind in (FRAUD_COUNT, FRAUD_RATE):
        read[3] = layout.cell(feature, ADD_FRAUD)


def _edges(layout: _Layout, horizon: dict[str, int], pinned: set[str], feature_set: FeatureSet) -> list[int]:
    """All distinct edge offsets in ms, ascending; the last one is where the log itself ends."""
    offsets = {delay + window for _, _, _, _, _, delay, window, _ in layout.inserts}
    offsets |= {delay for _, _, _, _, _, delay, _, _ in layout.inserts if delay}
    offsets |= {length for entity, length in horizon.items() if entity not in pinned}
    since_fraud = [f.window or 0 for f in feature_set.features if f.aggregate == "since_fraud"]
    if since_fraud:
        offsets.add(max(*since_fraud, feature_set.label_horizon, *offsets, 1))
    return sorted(offsets) or [1]
