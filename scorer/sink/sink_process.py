"""The sinks of `fraud-scorer sink` as one: what they write, when they are ready, and how they end."""

from __future__ import annotations

import math
import threading

from prometheus_client import CollectorRegistry

from scorer.runtime import span_export
from scorer.runtime.settings import Settings
from scorer.sink.audit_sink import AuditSink
from scorer.sink.label_quality import LabelQuality
from scorer.sink.record_sink import RecordSink, RecordTopic
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.sink_threads import SinkThreads


class SinkProcess:
    """The topics audit, control, labels and dead-letters, each on a thread of its own; and one that counts how labels
    agree with decisions."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        """Connects to nothing yet; metrics go to `registry`."""
        metrics = SinkMetrics(registry)
        self._spans = span_export.of(settings, part="sink")
        audit = AuditSink(settings, metrics=metrics, spans=self._spans)
        control = RecordSink(settings, RecordTopic.CONTROL, metrics)
        labels = RecordSink(settings, RecordTopic.LABELS, metrics)
        dead_letters = RecordSink(settings, RecordTopic.DEAD_LETTERS, metrics)
        sinks: dict[str, AuditSink | RecordSink] = {
            "audit": audit,
            "control": control,
            "labels": labels,
            "dead-letters": dead_letters,
        }
        self._readiness = {name: sink.readiness for name, sink in sinks.items()}
        beside = {}
        if settings.audit.quality_days:
            beside["label-quality"] = LabelQuality(settings, metrics).run
        else:
            metrics.labelled_at.set(math.nan)  # so that LabelCountTooOld is silent
        self._threads = SinkThreads({name: sink.run for name, sink in sinks.items()}, beside)

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Raises the first error that ended one of them."""
        try:
            self._threads.run(stop)
        finally:
            if self._spans is not None:
                self._spans.close()

    def ready(self) -> tuple[bool, str]:
        """Ready when all are; else the reasons of those that are not."""
        found = {name: readiness() for name, readiness in self._readiness.items()}
        waiting = {name: reason for name, (ready, reason) in found.items() if not ready}
        if not waiting:
            return True, "writing"
        return False, "; ".join(f"{name}: {reason}" for name, reason in waiting.items())
