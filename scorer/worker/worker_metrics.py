"""The worker's metrics. Names and labels are an interface: dashboards and alerts are built on them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_FAST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)

DECISIONS = Counter("fraud_scorer_decisions_total", "Payments decided and committed.", ["shard", "decision", "mode"])
DEAD_LETTERS = Counter("fraud_scorer_dead_letters_total", "Records that were refused.", ["shard", "reason"])
UNANSWERED = Counter(
    "fraud_scorer_unanswered_total", "Refused payments records that name no payment: dead letters alone.", ["shard"]
)
REASONS = Counter("fraud_scorer_reasons_total", "Reason codes given to flagged payments.", ["shard", "reason"])
CONFLICTS = Counter("fraud_scorer_duplicate_conflicts_total", "Payment ids seen again with other bytes.", ["shard"])
BATCHES = Counter("fraud_scorer_batches_total", "Micro-batches committed.", ["shard"])
BATCH_PAYMENTS = Histogram(
    "fraud_scorer_batch_payments",
    "Payments in a micro-batch.",
    ["shard"],
    buckets=(1, 4, 16, 64, 256, 1024, 2048, 4096, 16_384, 65_536),
)
LATENCY = Histogram(
    "fraud_scorer_decision_latency_seconds",
    "Oldest payment of a batch: broker timestamp to commit.",
    ["shard"],
    buckets=_FAST_S,
)
COMPUTE = Histogram("fraud_scorer_compute_seconds", "Decode to outcomes, a micro-batch.", ["shard"], buckets=_FAST_S)
COMMIT = Histogram(
    "fraud_scorer_commit_seconds", "Begin to commit of the transaction, a micro-batch.", ["shard"], buckets=_FAST_S
)
LINGER = Gauge("fraud_scorer_gather_seconds", "Linger: seconds that a batch now waits for more payments.", ["shard"])
FRONTIER_WAITS = Counter(
    "fraud_scorer_frontier_waits_total",
    "Waits for a partition that is behind: it caught up, or was passed because it was silent or slower than the clock.",
    ["shard", "outcome"],
)
LAG = Gauge("fraud_scorer_lag_payments", "Payments on the topic that are not in a batch yet.", ["shard"])
LAG_RECORDS = Gauge(
    "fraud_scorer_lag_records",
    "Records of a payments partition that are not in a batch yet; markers and aborted records do not count.",
    ["shard", "partition"],
)
LAG_SECONDS = Gauge(
    "fraud_scorer_lag_seconds",
    "Age of the oldest record of a payments partition that is not in a batch yet; 0 when there is none.",
    ["shard", "partition"],
)
BUFFERED = Gauge("fraud_scorer_buffered_payments", "Payments read and not in a batch yet.", ["shard"])
STREAM_TIME = Gauge("fraud_scorer_stream_time_seconds", "Largest accepted event time, epoch seconds.", ["shard"])
SEQUENCE = Gauge("fraud_scorer_journal_sequence", "Number of the last committed batch.", ["shard"])
REBUILDS = Counter(
    "fraud_scorer_rebuilds_total", "Times a shard dropped producer and state and rebuilt them.", ["shard", "reason"]
)
RECOVERY_OFFSETS = Gauge(
    "fraud_scorer_recovery_offsets", "Journal offsets to pass in the recovery that runs or ran last.", ["shard", "of"]
)
FOLLOWED = Gauge(
    "fraud_scorer_followed_sequence", "Batches of the shard's journal that this process has decided again.", ["shard"]
)
RECOVERY_SECONDS = Gauge("fraud_scorer_recovery_seconds", "How long the last recovery took.", ["shard"])
OWNED = Gauge("fraud_scorer_owned_shards", "Shards this worker owns.")
SNAPSHOTS = Counter(
    "fraud_scorer_snapshots_total", "Snapshots written and named by a committed journal record.", ["shard"]
)
SNAPSHOTS_FAILED = Counter("fraud_scorer_snapshots_failed_total", "Snapshots that could not be written.", ["shard"])
SNAPSHOTS_REFUSED = Counter(
    "fraud_scorer_snapshots_refused_total", "Snapshots that recovery could not use and passed over.", ["shard"]
)
SNAPSHOT_SEQUENCE = Gauge("fraud_scorer_snapshot_sequence", "Journal sequence of the newest snapshot.", ["shard"])
SNAPSHOT_BYTES = Gauge("fraud_scorer_snapshot_bytes", "Size of the newest snapshot's state.", ["shard"])
SNAPSHOT_PAUSE = Histogram(
    "fraud_scorer_snapshot_pause_seconds", "How long payments waited for a snapshot.", ["shard"], buckets=_FAST_S
)
STANDBYS = Gauge("fraud_scorer_standby_shards", "Shards that this worker follows warm without owning them.")
BUNDLE = Gauge("fraud_scorer_bundle_info", "1 for the bundle that decides.", ["shard", "bundle"])
BUNDLES_REFUSED = Counter(
    "fraud_scorer_bundles_refused_total",
    "Activations refused, by reason: the signature, the number, the expiry, the place, or the bundle itself.",
    ["shard", "reason"],
)
KEYS = Gauge("fraud_scorer_feature_keys", "Live entity keys.", ["shard"])
KEYS_REFUSED = Gauge(
    "fraud_scorer_feature_keys_refused",
    "Keys not admitted because keys_max are live; their features are NaN.",
    ["shard"],
)
LOG_ROWS = Gauge("fraud_scorer_feature_log_rows", "Payments in the event log.", ["shard"])
STATE_BYTES = Gauge("fraud_scorer_feature_arena_bytes", "Bytes of aggregates.", ["shard"])
LABELS_APPLIED = Gauge("fraud_scorer_labels_applied", "Labels that reached their payment.", ["shard"])
LABELS_WAITING = Gauge(
    "fraud_scorer_labels_waiting", "Labels that stream time has not reached, or whose payment has not come.", ["shard"]
)
LABELS_REFUSED = Gauge(
    "fraud_scorer_labels_refused",
    "Labels dropped: a bounded queue was full, or they are dated years ahead of stream time.",
    ["shard"],
)
LABELS_EXPIRED = Gauge(
    "fraud_scorer_labels_expired", "Labels given up because their payment did not come within the horizon.", ["shard"]
)
DEDUPE_ENTRIES = Gauge("fraud_scorer_dedupe_entries", "Payment ids remembered.", ["shard"])
DEDUPE_EVICTED = Gauge(
    "fraud_scorer_dedupe_evicted_early",
    "Payment ids forgotten before their horizon because the table was full.",
    ["shard"],
)
LIST_REFUSED = Gauge("fraud_scorer_list_values_refused", "List values refused because a list was full.", ["shard"])
