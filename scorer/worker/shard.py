"""One shard, owned: recover its state from the journal, then decide its payments batch after batch.

1. init_transactions: fences the former owner and settles what it left open
2. bring the state to the journal's end (scorer.worker.follower), from a warm standby's state or from scratch
3. decide: while batch n commits, batch n+1 is gathered and computed; state runs ahead by that one batch
4. any failed transaction: stop using producer and state at once (the caller rebuilds from 1, or exits when fenced)
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import structlog
from confluent_kafka import KafkaException

from features.log_segments import SegmentError
from schemas.audit_digest import SALT_BYTES
from schemas.decision import MODES
from scorer import kafka
from scorer.errors import FraudScorerError, UsageError
from scorer.journal.activated_bundles import Bundles
from scorer.journal.partition_buffers import ShardInputs
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.policy import FLAG
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Future
from scorer.worker import worker_metrics
from scorer.worker.activator import Activator
from scorer.worker.batcher import Batcher
from scorer.worker.card_watch import CardWatch
from scorer.worker.follower import Follower
from scorer.worker.lag_gauges import LagGauges
from scorer.worker.ports import Ports
from scorer.worker.publisher import RECORD_OVERHEAD_BYTES, Committed, Publisher
from scorer.worker.snapshotter import Snapshotter
from scorer.worker.topic_watch import TopicWatch

log = structlog.get_logger()

INIT_TIMEOUT_S = 60.0
GAUGES_EVERY_S = 1.0


class _InFlight(NamedTuple):
    commit: Future[Committed]
    closed_at: float  # monotonic, when its batch was closed


class Shard:
    """Runs one shard on the calling thread until `stop` is set."""

    def __init__(
        self,
        settings: Settings,
        bundles: Bundles,
        number: int,
        ports: Ports,
        *,
        group_metadata: Callable[[], Any],
        watch: TopicWatch,
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._threads = ports.threads
        self._number = number
        self._label = str(number)
        self._topics = kafka.Topics.of(settings.kafka)
        self._group_metadata = group_metadata
        self._watch = watch
        self._payments = 0  # partitions of the payments topic that were looked at
        self._bundles = bundles
        self._log = log.bind(shard=number)
        self._gauges_at = 0.0
        self._lag = LagGauges(number, ports.threads)
        self._snapshotter: Snapshotter | None = None
        self.waits_for = ""  # what keeps it from recovering, for people
        self.recovered = self._threads.event()
        self.batches_committed = 0  # batches committed

    def run(self, stop: Event, warm: Follower | None = None) -> None:
        """Own the shard until `stop` is set; then the batch in flight is committed and everything closed.

        `warm`: a standby's state to start from; it is closed here. Raises kafka.Fenced, kafka.Rebuild or another
        FraudScorerError; then nothing after the last commit took effect.
        """
        self.recovered.clear()
        self._payments = 0  # a follower from a snapshot may not know partitions that the one before had taken up
        follower, publisher = warm, None
        try:
            limits = self._limits()
            publisher = Publisher(
                self._fencing_producer(min(limits.values()) - RECORD_OVERHEAD_BYTES),
                self._topics,
                self._threads,
                shard=self._number,
                group_metadata=self._group_metadata,
                offsets_timeout_s=self._settings.worker.transaction_timeout_ms / 1000.0,
                limits=limits,
            )
            follower = follower or Follower(
                self._settings, self._bundles, self._number, self._ports, stop=stop, waits=self._wait
            )
            follower.waits = self._wait
            follower.catch_up(stop)
            follower.release_journal()
            store = self._ports.states.store(self._number)
            if store is not None:
                self._snapshotter = Snapshotter(
                    self._settings, self._number, store, self._bundles.location, self._ports
                )
            if not stop.is_set():
                follower.allow_created()
                self.recovered.set()
                self._decide(follower, publisher, stop)
        finally:
            self.recovered.clear()
            self._lag.close()
            try:
                if publisher is not None:
                    publisher.close()
                if self._snapshotter is not None:
                    self._snapshotter.close()
                    self._snapshotter = None
            finally:
                if follower is not None:
                    follower.close()

    def _wait(self, reason: str) -> None:
        self.waits_for = reason

    def _limits(self) -> Mapping[str, int]:
        """The largest record that each topic takes which this shard writes to."""
        topics, broker = self._topics, self._ports.clients.broker()
        try:
            return broker.record_bytes_max((topics.decisions, topics.audit, topics.journal, topics.dead_letters))
        finally:
            broker.close()

    def _fencing_producer(self, batch_bytes_max: int) -> kafka.TransactionalProducer:
        """The shard's producer, with which the former owner's can do nothing any more."""
        owner = f"shard-{self._number}"
        producer = self._ports.clients.transactional_producer(owner, batch_bytes_max=max(1, batch_bytes_max))
        try:
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as exc:
            del producer  # the error keeps this frame, and the client's threads would live as long
            name = kafka.transactional_id(self._settings, owner)
            raise kafka.failure(exc, needs=f"Write on transactional-id {name}") from exc
        return producer

    def _decide(self, follower: Follower, publisher: Publisher, stop: Event) -> None:
        pipeline, inputs = follower.pipeline, follower.inputs
        worker, feature_set = self._settings.worker, pipeline.bundle.feature_set
        activator = Activator(
            self._settings.bundle,
            self._bundles,
            self._number,
            self._threads,
            deployment=follower.deployment,
            number=pipeline.activation_number,
            fingerprint=feature_set.fingerprint,
        )
        batcher = Batcher(
            inputs,
            self._threads,
            shard=self._number,
            batch_max=worker.batch_payments_max,
            gather_ms_max=worker.gather_ms_max,
            frontier_wait_ms=worker.frontier_wait_ms,
            skew_ms=feature_set.max_future_skew,
            lateness_ms=feature_set.allowed_lateness,
            cards=feature_set.cards,
            stream_ms=lambda: pipeline.engine.stream_time_ms,
            takeable=activator.takeable,
            noted=lambda: self._snapshotter is not None and self._snapshotter.unnamed,
        )
        self._log.info("shard.deciding", bundle=pipeline.bundle.id, sequence=pipeline.sequence)
        worker_metrics.BUNDLE.labels(self._label, pipeline.bundle.id).set(1)
        cards = CardWatch(feature_set.cards, self._log)
        in_flight: _InFlight | None = None
        while not stop.is_set():
            self._watch.check()
            if self._watch.payments > self._payments:
                self._take_up(follower)
            batch = batcher.next()
            closed_at = self._threads.monotonic()
            if in_flight is not None and (in_flight.commit.done() or publisher.overdue):
                self._finish(in_flight, publisher, batcher)
                in_flight = None
            self._gauges(pipeline, inputs, batcher)
            if batch is None:
                if self._snapshotter is not None:
                    self._snapshotter.between_batches(pipeline, inputs, 0)
                continue
            if self._snapshotter is not None:
                batch = self._snapshotter.named_by(batch, pipeline.sequence)
            fault_points.point("after_consume")
            batch = replace(self._activate(pipeline, activator, batch), salt=secrets.token_bytes(SALT_BYTES))
            started = self._threads.monotonic()
            try:
                outcomes = pipeline.run(batch)
            except SegmentError as exc:  # the disk is full, say: nothing of this batch was committed
                raise FraudScorerError(str(exc)) from exc
            fault_points.point("after_compute")
            cards.see(outcomes)
            worker_metrics.COMPUTE.labels(self._label).observe(self._threads.monotonic() - started)
            if in_flight is not None:
                self._finish(in_flight, publisher, batcher)
            self._watch.check()
            in_flight = _InFlight(publisher.submit(outcomes), closed_at)
            if self._snapshotter is not None:
                self._snapshotter.between_batches(pipeline, inputs, len(outcomes.records))
        if in_flight is not None:
            self._finish(in_flight, publisher, batcher)

    def _take_up(self, follower: Follower) -> None:
        self._payments = self._watch.payments
        added = follower.added(self._payments)
        if added and self._settings.worker.shards > 1 and follower.pipeline.sequence > 0:
            raise UsageError(
                f"partitions {added} were added to {self._topics.payments}: with {self._settings.worker.shards} shards "
                "the payments of one key may now be split between two, and features would not be exact. "
                "`fraud-scorer recover --adopt-partitions` accepts that"
            )
        follower.take_up(added)
        if added:
            self._log.warning("shard.partitions_added", partitions=added)

    def _finish(self, in_flight: _InFlight, publisher: Publisher, batcher: Batcher) -> None:
        """Wait for a commit; its failure is raised here, before anything else is done with the state."""
        committed = publisher.wait(in_flight.commit)
        self.batches_committed += 1
        batcher.committed(commit_s=committed.commit_s, total_s=self._threads.monotonic() - in_flight.closed_at)
        outcomes, label = committed.outcomes, self._label
        if self._snapshotter is not None:
            self._snapshotter.committed(outcomes.journal.sequence, committed.journal_offset)
        worker_metrics.COMMIT.labels(label).observe(committed.commit_s)
        worker_metrics.BATCHES.labels(label).inc()
        worker_metrics.SEQUENCE.labels(label).set(outcomes.journal.sequence)
        worker_metrics.BATCH_PAYMENTS.labels(label).observe(len(outcomes.rows))
        if len(outcomes.records):
            worker_metrics.LATENCY.labels(label).observe(
                max(0.0, self._threads.epoch_s() - int(outcomes.records.timestamp_ms.min()) / 1000.0)
            )
        kinds = np.bincount(outcomes.columns.mode * 2 + outcomes.columns.decision, minlength=2 * len(MODES))
        for kind in np.flatnonzero(kinds).tolist():
            worker_metrics.DECISIONS.labels(label, "flag" if kind % 2 == FLAG else "approve", MODES[kind // 2]).inc(
                int(kinds[kind])
            )
        rejected = (*outcomes.rejected, *outcomes.rejected_control, *outcomes.rejected_labels)
        refused = Counter(item.error.reason.value for item in rejected)
        for reason, count in refused.items():
            worker_metrics.DEAD_LETTERS.labels(label, reason).inc(count)
        worker_metrics.UNANSWERED.labels(label).inc(len(outcomes.rejected) - outcomes.refused)
        for i in np.flatnonzero(outcomes.columns.decision == FLAG).tolist():
            for reason in outcomes.columns.reasons[i]:
                worker_metrics.REASONS.labels(label, reason).inc()
        if outcomes.conflicts:
            worker_metrics.CONFLICTS.labels(label).inc(outcomes.conflicts)
            self._log.warning(
                "payments.conflicting_duplicates", count=outcomes.conflicts, sequence=outcomes.journal.sequence
            )

    def _activate(self, pipeline: Pipeline, activator: Activator, batch: Batch) -> Batch:
        """The batch with what became of its activations; the bundle of the one that was taken decides from it on."""
        verdicts, bundle = activator.of(batch.control_range)
        before = pipeline.bundle.id
        if bundle is not None and bundle.id != before:
            pipeline.activate(bundle)
            worker_metrics.BUNDLE.labels(self._label, before).set(0)
            worker_metrics.BUNDLE.labels(self._label, bundle.id).set(1)
            self._log.info("bundle.activated", bundle=bundle.id, before=before, sequence=pipeline.sequence)
        return replace(batch, activations=verdicts) if verdicts else batch

    def _gauges(self, pipeline: Pipeline, inputs: ShardInputs, batcher: Batcher) -> None:
        now = self._threads.monotonic()
        if now - self._gauges_at < GAUGES_EVERY_S:
            return
        self._gauges_at = now
        label, counts = self._label, pipeline.engine.counts()
        self._lag.show(inputs)
        worker_metrics.BUFFERED.labels(label).set(inputs.buffered)
        worker_metrics.LINGER.labels(label).set(batcher.linger_s)
        worker_metrics.STREAM_TIME.labels(label).set((pipeline.engine.stream_time_ms or 0) / 1000.0)
        worker_metrics.KEYS.labels(label).set(counts.keys)
        worker_metrics.KEYS_REFUSED.labels(label).set(counts.keys_refused)
        worker_metrics.LOG_ROWS.labels(label).set(counts.log_rows)
        worker_metrics.STATE_BYTES.labels(label).set(counts.arena_bytes)
        worker_metrics.LABELS_APPLIED.labels(label).set(counts.labels_applied)
        worker_metrics.LABELS_WAITING.labels(label).set(counts.labels_pending + counts.unmatched_labels)
        worker_metrics.LABELS_REFUSED.labels(label).set(counts.labels_refused + counts.unmatched_labels_dropped)
        worker_metrics.LABELS_EXPIRED.labels(label).set(counts.unmatched_labels_expired)
        worker_metrics.DEDUPE_ENTRIES.labels(label).set(len(pipeline.dedupe))
        worker_metrics.DEDUPE_EVICTED.labels(label).set(pipeline.dedupe.evicted_early)
        worker_metrics.LIST_REFUSED.labels(label).set(pipeline.lists.refused)
