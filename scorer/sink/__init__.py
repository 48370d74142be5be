"""The audit sink: audit topic → Postgres, exactly once by position."""

from __future__ import annotations

from scorer.sink.audit_sink import AuditSink
from scorer.sink.record_sink import RecordSink, Together, control_row, dead_letter_row
from scorer.sink.sink_errors import SinkError
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.store import set_position
from scorer.trail.batch_reader import read_batch

__all__ = [
    "AuditSink",
    "RecordSink",
    "SinkError",
    "SinkMetrics",
    "Together",
    "control_row",
    "dead_letter_row",
    "read_batch",
    "set_position",
]
