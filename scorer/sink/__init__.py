"""The audit sink: audit topic → Postgres, exactly once by position."""

from __future__ import annotations

from scorer.sink.errors import SinkError
from scorer.sink.metrics import SinkMetrics
from scorer.sink.read_batch import read_batch
from scorer.sink.sink import AuditSink
from scorer.sink.store import set_position

__all__ = ["AuditSink", "SinkError", "SinkMetrics", "read_batch", "set_position"]
