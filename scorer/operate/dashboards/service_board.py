"""Service, for operators: are payments decided in time, what is behind, what keeps it from deciding."""

from __future__ import annotations

from scorer.operate.dashboards.board import SHARD, Board, Panel, Query, Row, Unit, mean, or_zero, quantile, rate

# The one series that workers and sinks alike have.
_OURS = "and on (instance) group by (instance) (fraud_scorer_certificate_expiry_timestamp_seconds)"


def _percentiles(histogram: str) -> tuple[Query, ...]:
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return tuple(Query(quantile(share, histogram), name) for name, share in shares.items())


def _within(histogram: str, bound: str) -> str:
    bucket = rate(f"{histogram}_bucket", where=f'{SHARD},le="{bound}"')
    return f"{bucket} / {rate(f'{histogram}_count')}"


SERVICE = Board(
    name="service",
    title="fraud-scorer: service",
    meaning="For operators: payments decided in time, what is behind, ownership and recovery, state and machines.",
    rows=(
        Row(
            "Objectives",
            (
                Panel(
                    "Shards",
                    "Shards that some worker owns, and those among them that decide payments now.",
                    (
                        Query("sum(fraud_scorer_owned_shards)", "owned"),
                        Query(f"sum(fraud_scorer_shard_deciding{{{SHARD}}})", "deciding"),
                    ),
                    number=True,
                    good_from=1,
                    alerts=("WorkersGone",),
                ),
                Panel(
                    "Decisions within 200 ms",
                    "Share of payments from the broker's timestamp to the commit within 200 ms; the objective is 99 %.",
                    (Query(_within("fraud_scorer_decision_latency_seconds", "0.2"), "within 200 ms"),),
                    unit=Unit.SHARE,
                    zero="0: every payment took longer.",
                    number=True,
                    good_from=0.99,
                    alerts=("DecisionLatencyBudgetBurnsFast", "DecisionLatencyBudgetBurnsSlowly"),
                ),
                Panel(
                    "Fast decisions within 50 ms",
                    "Share of payments whose decision was on topic decisions-fast within 50 ms; the objective is 99 %.",
                    (Query(_within("fraud_scorer_fast_decision_latency_seconds", "0.05"), "within 50 ms"),),
                    unit=Unit.SHARE,
                    zero="0: every payment took longer.",
                    number=True,
                    good_from=0.99,
                    alerts=("FastDecisionLatencyBudgetBurns",),
                ),
                Panel(
                    "Oldest payment that waits",
                    "Age of the oldest payment that is in no batch yet.",
                    (Query(f"max(fraud_scorer_lag_seconds{{{SHARD}}})", "oldest"),),
                    unit=Unit.SECONDS,
                    zero="0: everything that was sent is in a batch.",
                    number=True,
                    bad_from=2,
                    alerts=("FreshnessBudgetBurns",),
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Latency of decisions",
                    "Of each payment, from the broker's timestamp to the commit of its decision.",
                    _percentiles("fraud_scorer_decision_latency_seconds"),
                    unit=Unit.SECONDS,
                    bad_from=0.2,
                ),
                Panel(
                    "Latency of fast decisions",
                    "Of each payment, from the broker's timestamp until its decision is given to topic decisions-fast.",
                    _percentiles("fraud_scorer_fast_decision_latency_seconds"),
                    unit=Unit.SECONDS,
                    bad_from=0.05,
                ),
                Panel(
                    "Seconds by stage",
                    "Mean time of a micro-batch: of its oldest payment in the queue, until its order is durable, in "
                    "computing (beside the former), in its transaction; and how long one now waits for more payments.",
                    (
                        Query(mean("fraud_scorer_queue_seconds"), "queue"),
                        Query(mean("fraud_scorer_order_append_seconds"), "order append"),
                        Query(mean("fraud_scorer_compute_seconds"), "compute"),
                        Query(mean("fraud_scorer_commit_seconds"), "commit"),
                        Query(f"max(fraud_scorer_gather_seconds{{{SHARD}}})", "linger"),
                    ),
                    unit=Unit.SECONDS,
                    alerts=("OrderAppendsSlow",),
                ),
                Panel(
                    "Batches on their way",
                    "Micro-batches that are decided and not yet known to be committed.",
                    (Query(f"sum by (shard) (fraud_scorer_batches_in_flight{{{SHARD}}})", "shard {{shard}}"),),
                    zero="0: all is committed.",
                ),
            ),
        ),
        Row(
            "Flow",
            (
                Panel(
                    "Payments decided",
                    "Decisions committed a second.",
                    (Query(rate("fraud_scorer_decisions_total", by="shard"), "shard {{shard}}"),),
                    unit=Unit.PER_SECOND,
                ),
                Panel(
                    "Batches committed",
                    "Micro-batches committed a second, payments that were read and are in none yet, and batches whose "
                    "commit is not known. Payments in memory or batches on their way with none committed: the shard is "
                    "stuck.",
                    (
                        Query(rate("fraud_scorer_batches_total", by="shard"), "batches/s, shard {{shard}}"),
                        Query(
                            f"sum by (shard) (fraud_scorer_buffered_payments{{{SHARD}}})", "in memory, shard {{shard}}"
                        ),
                        Query(
                            f"sum by (shard) (fraud_scorer_batches_in_flight{{{SHARD}}})",
                            "on their way, shard {{shard}}",
                        ),
                    ),
                    zero="0 in memory: all that was read is in a batch.",
                    alerts=("ShardStuck",),
                ),
                Panel(
                    "Payments that wait",
                    "Payments on the topic that are in no batch yet.",
                    (Query(f"sum by (shard) (fraud_scorer_lag_payments{{{SHARD}}})", "shard {{shard}}"),),
                    zero="0: nothing waits.",
                    bad_from=1000,
                    alerts=("LagGrowing",),
                ),
                Panel(
                    "Seconds of lag by partition",
                    "Age of the oldest payment of each partition that is in no batch yet.",
                    (
                        Query(
                            f"max by (shard, partition) (fraud_scorer_lag_seconds{{{SHARD}}})",
                            "shard {{shard}}, partition {{partition}}",
                        ),
                    ),
                    unit=Unit.SECONDS,
                    zero="0: nothing waits.",
                ),
                Panel(
                    "Records of lag by partition",
                    "Payments of each partition that are in no batch yet.",
                    (
                        Query(
                            f"max by (shard, partition) (fraud_scorer_lag_records{{{SHARD}}})",
                            "shard {{shard}}, partition {{partition}}",
                        ),
                    ),
                    zero="0: nothing waits.",
                ),
                Panel(
                    "Size of batches",
                    "Payments of a micro-batch, and micro-batches of a transaction.",
                    (
                        Query(quantile(0.5, "fraud_scorer_batch_payments"), "payments, p50"),
                        Query(quantile(0.99, "fraud_scorer_batch_payments"), "payments, p99"),
                        Query(mean("fraud_scorer_transaction_batches"), "batches of a transaction, mean"),
                    ),
                ),
                Panel(
                    "Waits for a partition that is behind",
                    "By outcome: it caught up, or was passed because it was silent or slower than the clock.",
                    (Query(rate("fraud_scorer_frontier_waits_total", by="outcome"), "{{outcome}}"),),
                    unit=Unit.PER_SECOND,
                    zero="0: no partition was behind.",
                ),
            ),
        ),
        Row(
            "Ownership and recovery",
            (
                Panel(
                    "Rebuilds",
                    "Times a shard dropped producer and state and began anew, in the time shown, by reason.",
                    (
                        Query(
                            f"sum by (reason) (increase(fraud_scorer_rebuilds_total{{{SHARD}}}[$__range]))",
                            "{{reason}}",
                        ),
                        Query(
                            f"sum(increase(fraud_scorer_order_lost_total{{{SHARD}}}[$__range]))",
                            "order log written by another",
                        ),
                    ),
                    zero="0: none.",
                    alerts=("ShardRebuildsRepeatedly", "RightsTakenAway", "OrderLogLost"),
                ),
                Panel(
                    "Recovery",
                    "Journal offsets that the recovery that runs, or ran last, has to pass and has passed.",
                    (
                        Query(
                            f'sum by (shard) (fraud_scorer_recovery_offsets{{{SHARD},of="all"}})',
                            "to pass, shard {{shard}}",
                        ),
                        Query(
                            or_zero(f'sum by (shard) (fraud_scorer_recovery_offsets{{{SHARD},of="done"}})'),
                            "passed, shard {{shard}}",
                        ),
                    ),
                    zero="0: the journal was empty, or the state was there already.",
                    alerts=("RecoveryWithoutProgress",),
                ),
                Panel(
                    "Seconds of the last recovery",
                    "How long it took.",
                    (Query(f"max by (shard) (fraud_scorer_recovery_seconds{{{SHARD}}})", "shard {{shard}}"),),
                    unit=Unit.SECONDS,
                ),
                Panel(
                    "Batches that a recovery would decide again",
                    "Since the newest snapshot, or behind the journal with a warm standby.",
                    (
                        Query(
                            or_zero(
                                f"max by (shard) (fraud_scorer_journal_sequence{{{SHARD}}}) - "
                                f"max by (shard) (fraud_scorer_snapshot_sequence{{{SHARD}}})"
                            ),
                            "since the snapshot, shard {{shard}}",
                        ),
                        Query(
                            or_zero(
                                f"clamp_min(max by (shard) (fraud_scorer_journal_sequence{{{SHARD}}}) - "
                                f"max by (shard) (fraud_scorer_followed_sequence{{{SHARD}}} "
                                "unless on (instance, shard) fraud_scorer_shard_deciding"
                                f"{{{SHARD}}} == 1), 0)"
                            ),
                            "behind, standby of shard {{shard}}",
                        ),
                    ),
                    zero="0: no snapshot yet; no standby, or one that is not behind.",
                ),
                Panel(
                    "Warm standbys",
                    "Shards that a worker follows without owning them, and those of them that it has caught up with.",
                    (
                        Query("sum(fraud_scorer_standby_shards)", "followed"),
                        Query("sum(fraud_scorer_warm_standby_shards)", "warm"),
                    ),
                    zero="0: a shard that changes its worker is recovered from its snapshot and journal.",
                    alerts=("StandbyCold",),
                ),
                Panel(
                    "Snapshots",
                    "Snapshots in the time shown: written and named in the journal, failed, and refused by a recovery.",
                    (
                        Query(f"sum(increase(fraud_scorer_snapshots_total{{{SHARD}}}[$__range]))", "written"),
                        Query(f"sum(increase(fraud_scorer_snapshots_failed_total{{{SHARD}}}[$__range]))", "failed"),
                        Query(f"sum(increase(fraud_scorer_snapshots_refused_total{{{SHARD}}}[$__range]))", "refused"),
                    ),
                    zero="0 written: none was due.",
                    alerts=("SnapshotsFail", "SnapshotsRefused"),
                ),
                Panel(
                    "Pause for snapshots",
                    "How long payments waited for a snapshot, p99.",
                    (Query(or_zero(quantile(0.99, "fraud_scorer_snapshot_pause_seconds")), "p99"),),
                    unit=Unit.SECONDS,
                    zero="0: no snapshot was taken.",
                ),
            ),
        ),
        Row(
            "State and machines",
            (
                Panel(
                    "Keys and payment ids",
                    "Live entity keys and payment ids remembered.",
                    (
                        Query(f"sum by (shard) (fraud_scorer_feature_keys{{{SHARD}}})", "keys, shard {{shard}}"),
                        Query(f"sum by (shard) (fraud_scorer_dedupe_entries{{{SHARD}}})", "ids, shard {{shard}}"),
                    ),
                ),
                Panel(
                    "Bounds that were met",
                    "In the time shown: new keys not admitted, payment ids forgotten early, list values refused.",
                    (
                        Query(
                            f"sum(increase(fraud_scorer_feature_keys_refused_total{{{SHARD}}}[$__range]))",
                            "keys refused",
                        ),
                        Query(
                            f"sum(increase(fraud_scorer_dedupe_evicted_early_total{{{SHARD}}}[$__range]))",
                            "ids forgotten early",
                        ),
                        Query(
                            f"sum(increase(fraud_scorer_list_values_refused_total{{{SHARD}}}[$__range]))",
                            "list values refused",
                        ),
                    ),
                    zero="0: every bound is large enough.",
                    bad_from=1,
                    alerts=("KeysRefused", "RepeatedIdsForgotten"),
                ),
                Panel(
                    "Size of the state",
                    "Bytes of aggregates and of the newest snapshot.",
                    (
                        Query(
                            f"sum by (shard) (fraud_scorer_feature_arena_bytes{{{SHARD}}})",
                            "aggregates, shard {{shard}}",
                        ),
                        Query(
                            or_zero(f"sum by (shard) (fraud_scorer_snapshot_bytes{{{SHARD}}})"),
                            "snapshot, shard {{shard}}",
                        ),
                    ),
                    unit=Unit.BYTES,
                    zero="0: no snapshot yet.",
                ),
                Panel(
                    "Payments in the event log",
                    "Those that windows still need, with what waits to be removed.",
                    (Query(f"sum by (shard) (fraud_scorer_feature_log_rows{{{SHARD}}})", "shard {{shard}}"),),
                ),
                Panel(
                    "Free disk",
                    "Bytes free where the folders of each process lie.",
                    (Query("min by (instance, folder) (fraud_scorer_disk_free_bytes)", "{{instance}} {{folder}}"),),
                    unit=Unit.BYTES,
                    alerts=("DiskFillsUp",),
                ),
                Panel(
                    "CPU",
                    "Cores that each process uses.",
                    (
                        Query(
                            f"sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]) {_OURS})",
                            "{{instance}}",
                        ),
                    ),
                ),
                Panel(
                    "Memory",
                    "Resident memory of each process.",
                    (Query(f"sum by (instance) (process_resident_memory_bytes {_OURS})", "{{instance}}"),),
                    unit=Unit.BYTES,
                ),
                Panel(
                    "Ways to read records",
                    "Shards by the way in which records are read: borrowed (columns, cheaper) or plain (objects).",
                    (Query(f"sum by (way) (fraud_scorer_record_access{{{SHARD}}})", "{{way}}"),),
                ),
                Panel(
                    "Days left to certificates",
                    "Until the certificate of a health port expires.",
                    (
                        Query(
                            or_zero("min(((fraud_scorer_certificate_expiry_timestamp_seconds > 0) - time()) / 86400)"),
                            "days",
                        ),
                    ),
                    unit=Unit.DAYS,
                    zero="0: no process has one.",
                    number=True,
                    alerts=("CertificateExpires",),
                ),
            ),
        ),
    ),
)
