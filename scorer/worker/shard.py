"""One shard, owned: recover its state from the journal, then decide its payments batch after batch.

1. claim the order log (with fast decisions off: after 3)
2. init_transactions: fences the former owner and settles what it left open
3. bring the state to the journal's end (scorer.worker.follower), from a warm standby's state or from scratch
4. decide again what stands in the order log before the claim and not in the journal (scorer.worker.settlement); stop
   where more than that was answered (scorer.journal.answered_batches)
5. decide: append a batch's order, compute it meanwhile, publish its decisions, hand it to the publisher. While that
   commits, the next batches are gathered and computed; state runs ahead of the journal by a bounded number of them
6. any failed append or transaction: stop using producers and state at once (the caller rebuilds from 1, or exits when
   fenced)
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import structlog

from features.log_segments import SegmentError
from schemas.audit_digest import SALT_BYTES
from schemas.decision import MODES
from scorer import kafka
from scorer.errors import FraudScorerError, UsageError
from scorer.journal.activated_bundles import Bundles
from scorer.journal.answered_batches import AnsweredBatches
from scorer.journal.partition_buffers import ShardInputs
from scorer.pipeline import Decided, Pipeline
from scorer.pipeline.records import Batch
from scorer.policy import FLAG
from scorer.runtime import fault_points
from scorer.runtime.metric_families import Buckets, Family
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Thread, Threads
from scorer.worker import worker_metrics
from scorer.worker.activator import Activator
from scorer.worker.answers import answers_of
from scorer.worker.batch_traces import PUBLISHED, Tracer
from scorer.worker.batcher import Batcher
from scorer.worker.card_watch import CardWatch
from scorer.worker.challenger_watch import ChallengerWatch
from scorer.worker.drift_watch import DriftWatch
from scorer.worker.follower import Follower
from scorer.worker.lag_gauges import LagGauges
from scorer.worker.order_log import OrderLog
from scorer.worker.owner_clients import OwnerClients
from scorer.worker.pending_commits import TRANSACTION_LARGE, PendingCommits, ahead_max
from scorer.worker.ports import Ports
from scorer.worker.publisher import Committed, Publisher
from scorer.worker.settlement import order_log, owner_name, settle
from scorer.worker.snapshotter import Snapshotter
from scorer.worker.standby import Standby
from scorer.worker.topic_watch import TopicWatch

log = structlog.get_logger()

GAUGES_EVERY_S = 1.0


class _Steps:
    """How long each step of taking a shard up takes."""

    def __init__(self, threads: Threads) -> None:
        self._threads, self._at = threads, threads.monotonic()
        self.taken_ms: dict[str, float] = {}

    def end(self, name: str) -> None:
        """The step of this name ends now."""
        now = self._threads.monotonic()
        self.taken_ms[name], self._at = round(1000.0 * (now - self._at), 1), now


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
        left: Thread | None = None,
    ) -> None:
        """`left`: what this process has left running of this shard's snapshots when it owned it before."""
        self._settings = settings
        self._ports = ports
        self._threads = ports.threads
        self._number = number
        self._label = str(number)
        worker_metrics.begin(number)
        self._topics = kafka.Topics.of(settings.kafka)
        self._group_metadata = group_metadata
        self._watch = watch
        self._payments = 0  # partitions of the payments topic that were looked at
        self._bundles = bundles
        self._log = log.bind(shard=number)
        self._gauges_at = 0.0
        self._lag = LagGauges(number, ports.threads)
        self._snapshotter: Snapshotter | None = None
        # A copy or a write of a snapshot that has not ended with its state: its store alone, or the end of the process,
        # ends it.
        self.left = left
        self._batcher: Batcher | None = None
        self._steps = _Steps(ports.threads)
        self.waits_for = ""  # what keeps it from recovering, for people
        self.recovered = self._threads.event()
        self.batches_committed = 0  # batches committed

    def run(self, stop: Event, standby: Standby | None = None) -> None:
        """Own the shard until `stop` is set; then the batches in flight are committed and everything closed.

        `standby`: whose state to start from; it is ended here. Raises kafka.Fenced, kafka.Rebuild or another
        FraudScorerError; then nothing after the last commit took effect.
        """
        self.recovered.clear()
        self._steps = _Steps(self._threads)
        self._payments = 0  # a follower from a snapshot may not know partitions that the one before had taken up
        follower: Follower | None = None
        publisher, order, claim = None, None, None
        answered: AnsweredBatches | None = None
        self._tracer = Tracer(self._settings, self._ports, self._number)
        worker = self._settings.worker
        clients = None if standby is None else standby.clients()
        clients = clients or OwnerClients(self._settings, self._ports, self._number)
        try:
            limits = clients.limits()
            self._steps.end("limits")
            if worker.fast_decisions and not stop.is_set():
                # Claimed before the former owner is fenced: who claims later than another has claimed fences it as
                # well, also where that one, with fast decisions off, appends nothing that would show it the claim.
                order = order_log(self._settings, self._ports, self._number, limits, producer=clients.log_producer)
                sequence = 0 if standby is None else standby.sequence
                if order is not None:
                    claim = order.claim(owner_name(self._settings), sequence)
                    answered = self._answered()
            self._steps.end("claim")
            follower = None if standby is None else standby.take()
            self._steps.end("standby")
            publisher = Publisher(
                clients.fencing_producer(),
                self._topics,
                self._threads,
                shard=self._number,
                group_metadata=self._group_metadata,
                offsets_timeout_s=worker.transaction_timeout_ms / 1000.0,
                limits=limits,
                columns=self._ports.clients.columns,
                batches_max=worker.transaction_batches_max,
                payments_max=TRANSACTION_LARGE * worker.batch_payments_max,
                # Without fast decisions the transaction is what answers: it waits for nothing.
                gather_s=worker.transaction_gather_ms / 1000.0 if worker.fast_decisions else 0.0,
            )
            self._steps.end("fence")
            follower = follower or Follower(
                self._settings, self._bundles, self._number, self._ports, stop=stop, waits=self._wait
            )
            follower.waits = self._wait
            follower.catch_up(stop)
            self._steps.end("journal")
            follower.release_journal()
            store = self._ports.states.store(self._number)
            if store is not None:
                self._snapshotter = Snapshotter(
                    self._settings, self._number, store, self._bundles.location, self._ports,
                    kept=follower.snapshot_places, last_commit=follower.last_commit, former=self.left,
                )  # fmt: skip
            commits = PendingCommits(publisher, ahead_max(worker), self._committed)
            if not worker.fast_decisions and not stop.is_set():
                order = order_log(
                    self._settings, self._ports, self._number, limits,
                    producer=clients.log_producer, named=follower.settled,
                )  # fmt: skip
            if order is not None and not stop.is_set():  # else the state may not be at the journal's end
                if claim is None:
                    claim = order.claim(owner_name(self._settings), follower.sequence)
                answered = answered or self._answered()
                settle(
                    order, claim, follower, publisher, commits, stop, settings=self._settings, ports=self._ports,
                    tracer=self._tracer, answered=answered,
                )  # fmt: skip
                answered.close()
            follower.release_orders()
            self._steps.end("orders")
            if stop.is_set():
                commits.finish()
            else:
                follower.allow_created()
                self._steps.end("timestamps")
                self.recovered.set()
                worker_metrics.DECIDING.labels(self._label).set(1)
                self._decide(follower, publisher, commits, order if worker.fast_decisions else None, claim, stop)
        finally:
            self.recovered.clear()
            worker_metrics.DECIDING.labels(self._label).set(0)
            self._batcher = None
            self._lag.close()
            worker_metrics.BUFFERED.remove(self._label)
            worker_metrics.IN_FLIGHT.remove(self._label)
            try:
                if self._snapshotter is not None:
                    self._snapshotter.end()  # while the publisher's last commit is waited for
                if publisher is not None:
                    publisher.close()
                if order is not None:
                    order.close()
                if answered is not None:
                    answered.close()
                if self._snapshotter is not None:
                    self._snapshotter.close()
                    self.left, self._snapshotter = self._snapshotter.running, None
            finally:
                clients.close()
                if standby is not None:
                    standby.close()
                if follower is not None:
                    follower.close()

    def _wait(self, reason: str) -> None:
        self.waits_for = reason

    def _answered(self) -> AnsweredBatches:
        """What was answered until now; to be closed."""
        return AnsweredBatches(self._settings, self._number, self._ports.clients, self._threads)

    def _decide(
        self,
        follower: Follower,
        publisher: Publisher,
        commits: PendingCommits,
        order: OrderLog | None,
        settled: int | None,
        stop: Event,
    ) -> None:
        """`order`: where batches are appended before they are published; None: they are not. `settled`: the offset up
        to which the order log is settled then."""
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
        batcher = self._batcher = Batcher(
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
        self._log.info(
            "shard.deciding", bundle=pipeline.bundle.id, sequence=pipeline.sequence, steps_ms=self._steps.taken_ms
        )
        worker_metrics.use_bundle(self._label, pipeline.bundle.id)
        cards, drift = CardWatch(feature_set.cards, self._threads, self._log), DriftWatch(self._label, self._threads)
        challengers = ChallengerWatch(self._label)
        while not stop.is_set():
            self._watch.check()
            if self._watch.payments > self._payments:
                self._take_up(follower)
            batch = batcher.next()
            closed_at = self._threads.monotonic()
            commits.see()
            self._gauges(pipeline, inputs, batcher, len(commits))
            if batch is None:
                if self._snapshotter is not None:
                    self._snapshotter.between_batches(pipeline, inputs, 0)
                continue
            if self._snapshotter is not None:
                batch = self._snapshotter.named_by(batch, pipeline.sequence)
            fault_points.point("after_consume")
            self._watch.check()
            batch = replace(
                self._activate(pipeline, activator, batch),
                salt=secrets.token_bytes(SALT_BYTES),
                order=settled if order is None else order.next,
            )
            if order is not None:
                order.append(batch, pipeline)
            started = self._threads.monotonic()
            try:
                decided = pipeline.decide(batch)
            except SegmentError as exc:  # the disk is full, say: nothing of this batch was committed
                raise FraudScorerError(str(exc)) from exc
            compute_s = self._threads.monotonic() - started
            fault_points.point("after_compute")
            traces = self._tracer.of(decided, inputs.carried, pipeline.sequence, self._epoch_s(closed_at))
            traces.reached("decided", self._threads.epoch_s())
            answers, delivery = traces.given_back(answers_of(decided)), None
            if order is not None:
                order.appended()
                traces.reached("ordered", self._threads.epoch_s())
                delivery = order.publish(answers, pipeline.sequence)
                traces.reached(PUBLISHED, published_s := self._threads.epoch_s())
                batcher.committed(commit_s=order.append_s, total_s=self._threads.monotonic() - closed_at)
                self._observe_latency(decided, worker_metrics.FAST_LATENCY, published_s)
                traces.show(worker_metrics.FAST_LATENCY.labels(self._label), published_s)
            started = self._threads.monotonic()
            outcomes = pipeline.seal(batch, decided)  # no answer waits for the digest
            cards.see(outcomes)
            compute_s += self._threads.monotonic() - started
            worker_metrics.COMPUTE.labels(self._label).observe(compute_s)
            commits.make_room()
            self._watch.check()
            commit = publisher.submit(outcomes, answers, delivery)
            commits.add(commit, closed_at, outcomes)
            # At once: should this commit hang, the next call that waits for it is the last one for long.
            worker_metrics.IN_FLIGHT.labels(self._label).set(len(commits))
            batcher.submitted(commit.done if delivery is None else delivery.done, compute_s=compute_s)
            drift.see(pipeline.bundle, outcomes.columns)  # while the batch commits
            challengers.see(pipeline.bundle, outcomes.columns)
            if self._snapshotter is not None:
                self._snapshotter.between_batches(pipeline, inputs, len(outcomes.records))
        self._log.info("shard.stopped_deciding", sequence=pipeline.sequence, uncommitted=len(commits))
        if self._snapshotter is not None:
            self._snapshotter.end()  # while the last commits are waited for
        publisher.end_gathering()
        commits.finish()

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

    def _committed(self, committed: Committed, closed_at: float) -> None:
        """A batch, closed at `closed_at` (monotonic), is committed."""
        self.batches_committed += 1
        if self._batcher is not None and not self._settings.worker.fast_decisions:
            self._batcher.committed(commit_s=committed.commit_s, total_s=committed.at - closed_at)
        outcomes, label = committed.outcomes, self._label
        if self._snapshotter is not None:
            self._snapshotter.committed(outcomes.journal.sequence, committed.journal_offset)
        worker_metrics.COMMIT.labels(label).observe(committed.commit_s)
        worker_metrics.TRANSACTION_BATCHES.labels(label).observe(committed.batches)
        worker_metrics.BATCHES.labels(label).inc()
        worker_metrics.SEQUENCE.labels(label).set(outcomes.journal.sequence)
        worker_metrics.BATCH_PAYMENTS.labels(label).observe(len(outcomes.rows))
        if len(outcomes.records):
            closed_s = self._epoch_s(closed_at)
            oldest_s = int(outcomes.records.timestamp_ms.min()) / 1000.0
            worker_metrics.QUEUE.labels(label).observe(max(0.0, closed_s - oldest_s))
        # A commit is seen only after the wait for the next payment.
        committed_s = self._epoch_s(committed.at)
        self._observe_latency(outcomes, worker_metrics.LATENCY, committed_s)
        self._tracer.committed(outcomes.journal.sequence, committed_s, worker_metrics.LATENCY.labels(label))
        worker_metrics.SCORES.labels(label).observe_many(outcomes.columns.score)
        worker_metrics.DUPLICATES.labels(label).inc(outcomes.duplicates)
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
        flagged = np.flatnonzero(outcomes.columns.decision == FLAG).tolist()
        reasons = Counter(chain.from_iterable(outcomes.columns.reasons[i] for i in flagged))
        for reason, count in reasons.items():
            worker_metrics.REASONS.labels(label, reason).inc(count)
        if outcomes.conflicts:
            worker_metrics.CONFLICTS.labels(label).inc(outcomes.conflicts)
            self._log.warning(
                "payments.conflicting_duplicates", count=outcomes.conflicts, sequence=outcomes.journal.sequence
            )

    def _epoch_s(self, monotonic_s: float) -> float:
        """When that was, epoch."""
        return self._threads.epoch_s() - (self._threads.monotonic() - monotonic_s)

    def _observe_latency(self, decided: Decided, latency: Family[Buckets], at_s: float) -> None:
        """Of each payment, from the broker's timestamp to `at_s` (epoch)."""
        if len(decided.records):
            since_ms = at_s * 1000.0 - decided.records.timestamp_ms[decided.rows]
            latency.labels(self._label).observe_many(np.maximum(0.0, since_ms / 1000.0))

    def _activate(self, pipeline: Pipeline, activator: Activator, batch: Batch) -> Batch:
        """The batch with what became of its activations; the bundle of the one that was taken decides from it on."""
        verdicts, bundle = activator.of(batch.control_range)
        before = pipeline.bundle.id
        if bundle is not None and bundle.id != before:
            pipeline.activate(bundle)
            worker_metrics.use_bundle(self._label, bundle.id)
            self._log.info("bundle.activated", bundle=bundle.id, before=before, sequence=pipeline.sequence)
        return replace(batch, activations=verdicts) if verdicts else batch

    def _gauges(self, pipeline: Pipeline, inputs: ShardInputs, batcher: Batcher, in_flight: int) -> None:
        now = self._threads.monotonic()
        if now - self._gauges_at < GAUGES_EVERY_S:
            return
        self._gauges_at = now
        label, counts = self._label, pipeline.engine.counts()
        self._lag.show(inputs)
        worker_metrics.BUFFERED.labels(label).set(inputs.buffered)
        for way in ("borrowed", "plain"):
            worker_metrics.RECORD_ACCESS.labels(label, way).set(way == inputs.way)
        worker_metrics.LINGER.labels(label).set(batcher.linger_s)
        worker_metrics.IN_FLIGHT.labels(label).set(in_flight)
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
