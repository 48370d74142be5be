"""The worker's metrics. Names and labels are an interface: dashboards and alerts are built on them (deploy/METRICS.md).

The first label of all but two is the shard: its series begin with `begin` and leave with `forget`, as the shard does.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

from prometheus_client import Gauge

from schemas.contract_error import DeadLetterReason
from schemas.decision import DECISIONS as DECISION_NAMES
from schemas.decision import MODES
from schemas.journal_record import Refusal
from scorer.runtime.metric_families import Families

_FAMILIES = Families()

_FAST_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)

DECISIONS = _FAMILIES.counter(
    "fraud_scorer_decisions", "Payments decided and committed.", ["shard", "decision", "mode"]
)
DEAD_LETTERS = _FAMILIES.counter("fraud_scorer_dead_letters", "Records that were refused.", ["shard", "reason"])
UNANSWERED = _FAMILIES.counter(
    "fraud_scorer_unanswered", "Refused payments records that name no payment: dead letters alone.", ["shard"]
)
REASONS = _FAMILIES.counter("fraud_scorer_reasons", "Reason codes given to flagged payments.", ["shard", "reason"])
CONFLICTS = _FAMILIES.counter("fraud_scorer_duplicate_conflicts", "Payment ids seen again with other bytes.", ["shard"])
BATCHES = _FAMILIES.counter("fraud_scorer_batches", "Micro-batches committed.", ["shard"])
BATCH_PAYMENTS = _FAMILIES.histogram(
    "fraud_scorer_batch_payments",
    "Payments in a micro-batch.",
    ["shard"],
    bounds=(1, 4, 16, 64, 256, 1024, 2048, 4096, 16_384, 65_536),
)
LATENCY = _FAMILIES.batches(
    "fraud_scorer_decision_latency_seconds", "Each payment: broker timestamp to commit.", ["shard"], _FAST_S
)
QUEUE = _FAMILIES.histogram(
    "fraud_scorer_queue_seconds",
    "Oldest payment of a micro-batch: broker timestamp to the close of the batch.",
    ["shard"],
    bounds=_FAST_S,
)
SCORES = _FAMILIES.batches(
    "fraud_scorer_scores",
    "Calibrated scores of decided payments, repeated ones included.",
    ["shard"],
    (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
TRANSACTION_BATCHES = _FAMILIES.histogram(
    "fraud_scorer_transaction_batches",
    "Micro-batches in the transaction of a micro-batch.",
    ["shard"],
    bounds=(1, 2, 3, 4, 6, 8, 16, 32, 64),
)
ORDER_APPEND = _FAMILIES.histogram(
    "fraud_scorer_order_append_seconds",
    "Append of a micro-batch's order until it is known to be durable, which is not before the batch is computed.",
    ["shard"],
    bounds=_FAST_S,
)
ORDER_LOST = _FAMILIES.counter(
    "fraud_scorer_order_lost", "Times another worker was found to have written to the order log.", ["shard"]
)
FAST = _FAMILIES.counter(
    "fraud_scorer_fast_decisions", "Decisions given to topic decisions-fast, repeats included.", ["shard"]
)
FAST_LATENCY = _FAMILIES.batches(
    "fraud_scorer_fast_decision_latency_seconds",
    "Each payment: broker timestamp to its decision being given to topic decisions-fast.",
    ["shard"],
    _FAST_S,
)
COMPUTE = _FAMILIES.histogram(
    "fraud_scorer_compute_seconds", "Decode to outcomes, a micro-batch.", ["shard"], bounds=_FAST_S
)
COMMIT = _FAMILIES.histogram(
    "fraud_scorer_commit_seconds", "Begin to commit of the transaction, a micro-batch.", ["shard"], bounds=_FAST_S
)
IN_FLIGHT = _FAMILIES.gauge(
    "fraud_scorer_batches_in_flight", "Micro-batches decided whose transaction is not known to be committed.", ["shard"]
)
LINGER = _FAMILIES.gauge(
    "fraud_scorer_gather_seconds", "Linger: seconds that a batch now waits for more payments.", ["shard"]
)
FRONTIER_WAITS = _FAMILIES.counter(
    "fraud_scorer_frontier_waits",
    "Waits for a partition that is behind: it caught up, or was passed because it was silent or slower than the clock.",
    ["shard", "outcome"],
)
RECORD_ACCESS = _FAMILIES.gauge(
    "fraud_scorer_record_access",
    "1 for the way in which records are read: borrowed (the client library's C interface) or plain.",
    ["shard", "way"],
)
LAG = _FAMILIES.gauge("fraud_scorer_lag_payments", "Payments on the topic that are not in a batch yet.", ["shard"])
LAG_RECORDS = _FAMILIES.gauge(
    "fraud_scorer_lag_records",
    "Records of a payments partition that are not in a batch yet; markers and aborted records do not count.",
    ["shard", "partition"],
)
LAG_SECONDS = _FAMILIES.gauge(
    "fraud_scorer_lag_seconds",
    "Age of the oldest record of a payments partition that is not in a batch yet; 0 when there is none.",
    ["shard", "partition"],
)
BUFFERED = _FAMILIES.gauge("fraud_scorer_buffered_payments", "Payments read and not in a batch yet.", ["shard"])
STREAM_TIME = _FAMILIES.gauge(
    "fraud_scorer_stream_time_seconds", "Largest accepted event time, epoch seconds.", ["shard"]
)
SEQUENCE = _FAMILIES.gauge("fraud_scorer_journal_sequence", "Number of the last committed batch.", ["shard"])
REBUILDS = _FAMILIES.counter(
    "fraud_scorer_rebuilds", "Times a shard dropped producer and state and rebuilt them.", ["shard", "reason"]
)
RECOVERY_OFFSETS = _FAMILIES.gauge(
    "fraud_scorer_recovery_offsets", "Journal offsets to pass in the recovery that runs or ran last.", ["shard", "of"]
)
FOLLOWED = _FAMILIES.gauge(
    "fraud_scorer_followed_sequence",
    "Batches of the shard that this process has decided again: as a standby, along journal and order log.",
    ["shard"],
)
RECOVERY_SECONDS = _FAMILIES.gauge("fraud_scorer_recovery_seconds", "How long the last recovery took.", ["shard"])
OWNED = Gauge("fraud_scorer_owned_shards", "Shards this worker owns.")
SNAPSHOTS = _FAMILIES.counter(
    "fraud_scorer_snapshots", "Snapshots written and named by a committed journal record.", ["shard"]
)
SNAPSHOTS_FAILED = _FAMILIES.counter("fraud_scorer_snapshots_failed", "Snapshots that could not be written.", ["shard"])
SNAPSHOTS_REFUSED = _FAMILIES.counter(
    "fraud_scorer_snapshots_refused", "Snapshots that recovery could not use and passed over.", ["shard"]
)
SNAPSHOT_SEQUENCE = _FAMILIES.gauge(
    "fraud_scorer_snapshot_sequence", "Journal sequence of the newest snapshot.", ["shard"]
)
SNAPSHOT_BYTES = _FAMILIES.gauge("fraud_scorer_snapshot_bytes", "Size of the newest snapshot's state.", ["shard"])
SNAPSHOT_PAUSE = _FAMILIES.histogram(
    "fraud_scorer_snapshot_pause_seconds", "How long payments waited for a snapshot.", ["shard"], bounds=_FAST_S
)
STANDBYS = Gauge("fraud_scorer_standby_shards", "Shards that this worker follows without owning them.")
WARM_STANDBYS = Gauge(
    "fraud_scorer_warm_standby_shards", "Of the shards that this worker follows, those that it has caught up with."
)
BUNDLE = _FAMILIES.gauge("fraud_scorer_bundle_info", "1 for the bundle that decides.", ["shard", "bundle"])
BUNDLES_REFUSED = _FAMILIES.counter(
    "fraud_scorer_bundles_refused",
    "Activations refused, by reason: the signature, the number, the expiry, the place, or the bundle itself.",
    ["shard", "reason"],
)
CHALLENGERS = _FAMILIES.counter(
    "fraud_scorer_challenger_payments",
    "Payments that a challenger of the bundle scored, by whose score reaches the threshold: both, neither, the model's "
    "or the challenger's.",
    ["shard", "challenger", "flagged_by"],
)
KEYS = _FAMILIES.gauge("fraud_scorer_feature_keys", "Live entity keys.", ["shard"])
KEYS_REFUSED = _FAMILIES.totals(
    "fraud_scorer_feature_keys_refused",
    "Keys not admitted because keys_max are live; their features are NaN.",
    ["shard"],
)
LOG_ROWS = _FAMILIES.gauge("fraud_scorer_feature_log_rows", "Payments in the event log.", ["shard"])
STATE_BYTES = _FAMILIES.gauge("fraud_scorer_feature_arena_bytes", "Bytes of aggregates.", ["shard"])
LABELS_APPLIED = _FAMILIES.totals("fraud_scorer_labels_applied", "Labels that reached their payment.", ["shard"])
LABELS_WAITING = _FAMILIES.gauge(
    "fraud_scorer_labels_waiting", "Labels that stream time has not reached, or whose payment has not come.", ["shard"]
)
LABELS_REFUSED = _FAMILIES.totals(
    "fraud_scorer_labels_refused",
    "Labels dropped: a bounded queue was full, or they are dated years ahead of stream time.",
    ["shard"],
)
LABELS_EXPIRED = _FAMILIES.totals(
    "fraud_scorer_labels_expired", "Labels given up because their payment did not come within the horizon.", ["shard"]
)
DEDUPE_ENTRIES = _FAMILIES.gauge("fraud_scorer_dedupe_entries", "Payment ids remembered.", ["shard"])
DEDUPE_EVICTED = _FAMILIES.totals(
    "fraud_scorer_dedupe_evicted_early",
    "Payment ids forgotten before their horizon because the table was full.",
    ["shard"],
)
LIST_REFUSED = _FAMILIES.totals(
    "fraud_scorer_list_values_refused", "List values refused because a list was full.", ["shard"]
)
DECIDING = _FAMILIES.gauge(
    "fraud_scorer_shard_deciding", "1 while the shard decides payments; 0 while it recovers or waits.", ["shard"]
)
DUPLICATES = _FAMILIES.counter("fraud_scorer_duplicates", "Payments seen again, answered as before.", ["shard"])
SCORE_PSI = _FAMILIES.gauge(
    "fraud_scorer_score_psi",
    "Population stability index of live margins against those of the bundle's golden rows.",
    ["shard"],
)
FEATURE_PSI = _FAMILIES.gauge(
    "fraud_scorer_feature_psi",
    "Population stability index of a feature against the bundle's golden rows, missing values as a class of their own.",
    ["shard", "feature"],
)
FEATURE_MISSING = _FAMILIES.gauge(
    "fraud_scorer_feature_missing_ratio",
    "Share of sampled payments for which a feature has no value.",
    ["shard", "feature"],
)

_REBUILD_REASONS = ("denied", "fenced", "standby", "transaction")
_WAIT_OUTCOMES = ("caught_up", "silent", "slow")
_COUNTED_FROM_0 = (
    BATCHES, CONFLICTS, DUPLICATES, UNANSWERED, SNAPSHOTS, SNAPSHOTS_FAILED, SNAPSHOTS_REFUSED, LATENCY, SCORES,
    DECIDING, ORDER_LOST,
)  # fmt: skip


def begin(shard: int) -> None:
    """The shard is taken up: what can be counted of it shows 0, so that a first event is seen as an increase."""
    label = str(shard)
    for family in _COUNTED_FROM_0:
        family.labels(label)
    for decision, mode in product(DECISION_NAMES, MODES):
        DECISIONS.labels(label, decision, mode)
    for dead in DeadLetterReason:
        DEAD_LETTERS.labels(label, dead.value)
    for reason in _REBUILD_REASONS:
        REBUILDS.labels(label, reason)
    for outcome in _WAIT_OUTCOMES:
        FRONTIER_WAITS.labels(label, outcome)
    for refusal in get_args(Refusal):
        BUNDLES_REFUSED.labels(label, refusal)


def forget(shard: int) -> None:
    """The shard is neither decided nor followed here any more: its series leave."""
    _FAMILIES.forget(str(shard))


def use_bundle(shard: str, bundle: str) -> None:
    """`bundle` decides in the shard from now on; the series of the one before leaves."""
    BUNDLE.labels(shard, bundle).set(1)
    BUNDLE.forget(shard, but=(shard, bundle))
