"""Sink and audit: is everything in Postgres, what was set aside, is the chain anchored."""

from __future__ import annotations

from scorer.operate.dashboards.board import SHARD, Board, Panel, Query, Row, Unit, or_zero

_COMMIT = "fraud_scorer_sink_commit_seconds"


def _rate(metric: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}[$__rate_interval]))"


AUDIT = Board(
    name="audit",
    title="fraud-scorer: sink and audit",
    meaning="Audit rows on their way to Postgres, what was set aside, the chain and its anchors.",
    rows=(
        Row(
            "Now",
            (
                Panel(
                    "Sinks",
                    "Sinks to which Kafka answers, and from which Postgres takes rows.",
                    (
                        Query("sum(fraud_scorer_sink_kafka_up)", "Kafka"),
                        Query("sum(fraud_scorer_sink_postgres_up)", "Postgres"),
                    ),
                    number=True,
                    good_from=1,
                    alerts=("SinkGone", "SinkWithoutPostgres"),
                ),
                Panel(
                    "Age of the anchors",
                    "Since the file of the anchors was appended to, as far as a process has it on its machine.",
                    (
                        Query(
                            or_zero("min(time() - (fraud_scorer_anchors_changed_timestamp_seconds > 0))"),
                            "age",
                        ),
                    ),
                    unit=Unit.SECONDS,
                    zero="0: no process has FRAUD_SCORER_AUDIT__ANCHORS on a local disk.",
                    number=True,
                    alerts=("AnchorsTooOld",),
                ),
            ),
        ),
        Row(
            "Sink",
            (
                Panel(
                    "Oldest record that is not in Postgres",
                    "Its age, by topic.",
                    (Query("max by (topic) (fraud_scorer_sink_lag_seconds)", "{{topic}}"),),
                    unit=Unit.SECONDS,
                    zero="0: everything is in Postgres.",
                    bad_from=300,
                    alerts=("AuditLag",),
                ),
                Panel(
                    "Records that are not in Postgres",
                    "By topic. Markers of transactions count until they are read.",
                    (Query("sum by (topic) (fraud_scorer_sink_lag_records)", "{{topic}}"),),
                    zero="0: everything is in Postgres.",
                ),
                Panel(
                    "Rows written",
                    "A second: decisions, and rows of control, labels and dead letters.",
                    (
                        Query(_rate("fraud_scorer_sink_rows_total"), "decisions"),
                        Query(or_zero(_rate("fraud_scorer_sink_records_total", "table")), "{{table}}"),
                    ),
                    unit=Unit.PER_SECOND,
                    zero="0: nothing was to be written.",
                ),
                Panel(
                    "Seconds of a transaction",
                    "Seconds of one transaction in Postgres: rows, batches, positions, commit.",
                    tuple(
                        Query(f"histogram_quantile({share}, {_rate(f'{_COMMIT}_bucket', 'le')})", name)
                        for share, name in ((0.5, "p50"), (0.99, "p99"))
                    ),
                    unit=Unit.SECONDS,
                ),
                Panel(
                    "Batches written",
                    "Micro-batches committed to Postgres a second.",
                    (Query(_rate("fraud_scorer_sink_batches_total"), "batches"),),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Errors",
                    "In the time shown: of Postgres and Kafka, which are tried again; waits for another sink; fatal.",
                    (Query("sum by (kind) (increase(fraud_scorer_sink_errors_total[$__range]))", "{{kind}}"),),
                    zero="0: none.",
                ),
            ),
        ),
        Row(
            "Trail",
            (
                Panel(
                    "Records set aside",
                    "Audit records quarantined instead of written, in the time shown, by kind; look at each.",
                    (Query("sum by (kind) (increase(fraud_scorer_sink_set_aside_total[$__range]))", "{{kind}}"),),
                    zero="0: none, as it should be.",
                    bad_from=1,
                    alerts=("AuditRecordSetAside",),
                ),
                Panel(
                    "Batches of the chain that are not in Postgres",
                    "The shard's last committed batch less the last one in Postgres, each as it was scraped last.",
                    (
                        Query(
                            f"clamp_min(max by (shard) (fraud_scorer_journal_sequence{{{SHARD}}}) - "
                            f"max by (shard) (fraud_scorer_sink_sequence{{{SHARD}}}), 0)",
                            "shard {{shard}}",
                        ),
                    ),
                    zero="0: the chain in Postgres is complete.",
                ),
                Panel(
                    "Head of the chain",
                    "The last batch of each shard that is in Postgres.",
                    (Query(f"max by (shard) (fraud_scorer_sink_sequence{{{SHARD}}})", "shard {{shard}}"),),
                ),
            ),
        ),
    ),
)
