"""Spans of audit rows: the last part of a sampled payment's trace.

Which rows of a batch are sampled stands in a header of its audit record, which no digest covers and nothing but this
reads. A header that is not as the worker writes it gives no span and no error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from scorer import kafka
from scorer.runtime import trace_context
from scorer.runtime.span_export import Span, SpanSink
from scorer.runtime.trace_context import SampledRow
from scorer.sink.assembler import Batch, Quarantined
from scorer.sink.topic_reader import Record

AUDIT_SPAN: Final = "fraud_scorer.audit_row"
ROWS_MAX: Final = 8_192  # read and not in Postgres yet; of more the oldest give no span


class _Read(NamedTuple):
    rows: Sequence[SampledRow]
    at_s: float


class AuditTraces:
    """Of the audit records of one session; without `spans` no header is looked at. One thread."""

    def __init__(self, spans: SpanSink | None, topic: str) -> None:
        self._spans, self._topic = spans, topic
        self._waiting: dict[tuple[int, int], _Read] = {}  # by partition and offset
        self._rows = 0  # of all of them

    def read(self, record: Record) -> None:
        """A record of the topic was read."""
        if self._spans is None:
            return
        rows = trace_context.sampled_rows(kafka.headers_of(record.message) or ())
        if rows:
            self._rows += len(rows)
            self._waiting[record.partition, record.offset] = _Read(rows, time.time())
            while self._rows > ROWS_MAX:
                self._taken(next(iter(self._waiting)))

    def _taken(self, place: tuple[int, int]) -> _Read | None:
        found = self._waiting.pop(place, None)
        self._rows -= 0 if found is None else len(found.rows)
        return found

    def committed(self, item: Batch | Quarantined) -> None:
        """A batch is in Postgres, or quarantined there."""
        first = item.values[0][0] if isinstance(item, Batch) else item.offset
        found = self._taken((item.partition, first))
        if found is None or self._spans is None:
            return
        error = item.kind if isinstance(item, Quarantined) else None
        shard, sequence = _place(item)
        self._spans.offer(
            [
                Span(
                    AUDIT_SPAN,
                    row.trace_id,
                    trace_context.span_id(AUDIT_SPAN, row.span_id, shard, sequence, row.row),
                    row.span_id,
                    start_s=found.at_s,
                    end_s=time.time(),
                    kind="consumer",
                    attributes={
                        "messaging.system": "kafka",
                        "messaging.destination.name": self._topic,
                        "messaging.destination.partition.id": str(item.partition),
                        "messaging.kafka.offset": first,
                        "db.system.name": "postgresql",
                        "fraud_scorer.shard": shard,
                        "fraud_scorer.sequence": sequence,
                        "fraud_scorer.row": row.row,
                    },
                    error=error,
                )
                for row in found.rows
            ]
        )


def _place(item: Batch | Quarantined) -> tuple[int, int]:
    """Shard and sequence; of what is unreadable the partition, which is the shard's number, and -1."""
    if isinstance(item, Batch):
        return item.journal.shard, item.journal.sequence
    return (
        item.partition if item.shard is None else item.shard,
        -1 if item.sequence is None else item.sequence,
    )
