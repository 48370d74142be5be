"""The sink's Prometheus metrics. One object a process, on the registry that the process exposes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scorer.trail.audit_tables import activations, control_changes, dead_letters, labels


class SinkMetrics:
    """The sink's metrics, registered in `registry`. Raises ValueError when it holds a set already."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = Counter("fraud_scorer_sink_rows", "Decision rows committed to Postgres.", registry=registry)
        self.batches = Counter("fraud_scorer_sink_batches", "Micro-batches committed to Postgres.", registry=registry)
        self.records = Counter(
            "fraud_scorer_sink_records", "Rows from control, labels, dead-letters.", ["table"], registry=registry
        )
        for table in (control_changes, activations, labels, dead_letters):
            self.records.labels(table.name)
        self.set_aside = Counter(
            "fraud_scorer_sink_set_aside",
            "Audit records quarantined in table set_aside instead of written; every one is an alert.",
            ["kind"],
            registry=registry,
        )
        for kind in ("unreadable", "incomplete", "contradiction", "card_number", "refused"):
            self.set_aside.labels(kind)
        self.sequence = Gauge(
            "fraud_scorer_sink_sequence",
            "Number of a shard's last micro-batch that is in Postgres.",
            ["shard"],
            registry=registry,
        )
        self.lag_records = Gauge(
            "fraud_scorer_sink_lag_records",
            "Records of a topic that are not in Postgres yet; markers and aborted records count until they are read.",
            ["topic", "partition"],
            registry=registry,
        )
        self.lag_seconds = Gauge(
            "fraud_scorer_sink_lag_seconds",
            "Age of the oldest record that is not in Postgres yet; 0 when there is none.",
            ["topic", "partition"],
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "fraud_scorer_sink_commit_seconds",
            "Time of one Postgres transaction: COPY, batches, positions, commit.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.postgres_up = Gauge("fraud_scorer_sink_postgres_up", "1 while Postgres takes rows.", registry=registry)
        self.kafka_up = Gauge("fraud_scorer_sink_kafka_up", "1 while Kafka answers.", registry=registry)
        self.errors = Counter(
            "fraud_scorer_sink_errors",
            "Errors: postgres and kafka are retried, waiting: another sink holds a partition, fatal: the sink stopped.",
            ["kind"],
            registry=registry,
        )
        for kind in ("postgres", "kafka", "waiting", "fatal"):
            self.errors.labels(kind)
        self.labelled = Gauge(
            "fraud_scorer_labelled_payments",
            "Payments of the last FRAUD_SCORER_AUDIT__QUALITY_DAYS days whose label is known, by bundle, decision and "
            "whether the label says fraud.",
            ["bundle", "decision", "fraud"],
            registry=registry,
        )
        self.precision = Gauge(
            "fraud_scorer_precision_ratio",
            "Flagged and fraud over flagged, of these payments; no series where none was flagged.",
            ["bundle"],
            registry=registry,
        )
        self.recall = Gauge(
            "fraud_scorer_recall_ratio",
            "Flagged and fraud over fraud, of these payments; no series where none is fraud.",
            ["bundle"],
            registry=registry,
        )
        self.labelled_at = Gauge(
            "fraud_scorer_labelled_timestamp_seconds",
            "When these payments were counted last, epoch seconds; 0 before the first time, NaN where they are not "
            "counted.",
            registry=registry,
        )
