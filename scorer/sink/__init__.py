"""Writes what the live engine leaves on topics to Postgres, each record exactly once by position.

It may read Kafka (through `scorer.kafka`) and write the tables of `scorer.trail`; it decides nothing.
"""

from __future__ import annotations

from scorer.sink.audit_sink import AuditSink
from scorer.sink.record_sink import RecordSink, RecordTopic
from scorer.sink.sink_errors import SinkError
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.sink_process import SinkProcess
from scorer.sink.sink_threads import SinkThreads
from scorer.sink.store import set_position

__all__ = [
    "AuditSink",
    "RecordSink",
    "RecordTopic",
    "SinkError",
    "SinkMetrics",
    "SinkProcess",
    "SinkThreads",
    "set_position",
]
