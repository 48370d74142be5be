"""A micro-batch read back from Postgres row by row: the plain way, by which tests check the sink and its digests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from schemas.audit_record import NULLABLE, AuditColumns, AuditContext
from schemas.decision import DECISIONS, MODES
from scorer.errors import PromiseBroken
from scorer.trail import audit_tables

# Whole milliseconds: extract() of a timestamptz is numeric, hence exact.
_EVENT_TIME_MS = sa.cast(sa.extract("epoch", audit_tables.decisions.c.event_time) * 1000, sa.BigInteger).label(
    "event_time_ms"
)
_AS_THEY_ARE = ("payment_id", "currency", *NULLABLE, "reasons", "fired")


def read_batch(connection: sa.Connection, shard: int, sequence: int) -> tuple[AuditContext, AuditColumns]:
    """The rows of one batch as the audit columns they came from: `digest(columns, context)` must be `batches.digest`.

    Raises PromiseBroken when the batch is not there, or its rows cannot be what the sink wrote.
    """
    place = f"batch {shard}/{sequence}"
    batches, sets, rows = audit_tables.batches, audit_tables.feature_sets, audit_tables.decisions
    header = connection.execute(
        sa.select(batches, sets.c.feature_names)
        .join(sets, sets.c.fingerprint == batches.c.feature_fingerprint)
        .where(batches.c.shard == shard, batches.c.sequence == sequence)
    ).one_or_none()
    if header is None:
        raise PromiseBroken(f"{place} is not in the database")
    context = AuditContext(
        bundle=header.bundle,
        threshold=header.threshold,
        feature_fingerprint=header.feature_fingerprint,
        feature_names=tuple(header.feature_names),
        challengers=tuple(header.challengers),
    )
    found = connection.execute(
        sa.select(rows, _EVENT_TIME_MS)
        .where(rows.c.shard == shard, rows.c.sequence == sequence)
        .order_by(rows.c.row_number)
    ).all()
    if [row.row_number for row in found] != list(range(len(found))):
        raise PromiseBroken(f"{place}: the row numbers of its {len(found)} rows are not 0..{len(found) - 1}")
    for row in found:
        if (row.bundle, row.threshold) != (context.bundle, context.threshold):
            raise PromiseBroken(f"{place}: row {row.row_number} names another bundle or threshold than its batch")
        if len(row.features) != len(context.feature_names):
            raise PromiseBroken(f"{place}: row {row.row_number} holds {len(row.features)} features")
        if len(row.challenger_margins) != len(context.challengers):
            raise PromiseBroken(f"{place}: row {row.row_number} holds {len(row.challenger_margins)} challenger margins")
    return context, _columns(found, context, place)


def _columns(found: Sequence[sa.Row[tuple[object, ...]]], context: AuditContext, place: str) -> AuditColumns:
    try:
        decision = np.array([DECISIONS.index(row.decision) for row in found], np.uint8)
        mode = np.array([MODES.index(row.mode) for row in found], np.uint8)
    except ValueError:
        raise PromiseBroken(f"{place}: a row holds a decision or mode that the sink never writes") from None
    matrices = {
        name: np.array([getattr(row, name) for row in found], np.float32).reshape(len(found), len(names))
        for name, names in (("features", context.feature_names), ("challenger_margins", context.challengers))
    }
    columns: dict[str, Any] = {name: [getattr(row, name) for row in found] for name in _AS_THEY_ARE} | matrices
    return AuditColumns(
        partition=np.array([row.origin_partition for row in found], np.int32),
        offset=np.array([row.origin_offset for row in found], np.int64),
        event_time_ms=np.array([row.event_time_ms for row in found], np.int64),
        amount_minor=np.array([row.amount_minor for row in found], np.int64),
        decision=decision,
        mode=mode,
        margin=np.array([row.margin for row in found], np.float32),
        score=np.array([row.score for row in found], np.float64),
        **columns,
    )
