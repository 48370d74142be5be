"""A shard's state brought up along its journal: what a standby keeps warm, and what an owner starts from.

    follower = Follower(settings, bundles, shard)
    follower.follow(stop)          # a standby: whatever the owner commits, decided again here, each digest checked
    follower.catch_up(stop)        # the new owner, after fencing the former one: to the journal's end
    follower.pipeline, follower.inputs      # ready to decide the next batch

Reads only. Nothing here writes to Kafka, so any number of standbys may follow one shard.
"""

from __future__ import annotations

import threading
import time

import structlog
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.journal import FIRST_PREVIOUS, JournalRecord
from scorer import history, kafka, metrics
from scorer.errors import UsageError
from scorer.inputs import Deadlines, Inputs
from scorer.pipeline import Pipeline
from scorer.recovery import Bundles, rerun
from scorer.settings import Settings

log = structlog.get_logger()

PROGRESS_EVERY_S = 2.0
WAIT_S = 0.2


class Follower:
    """Pipeline, inputs and journal position of one shard, moved together."""

    def __init__(self, settings: Settings, bundles: Bundles, shard: int) -> None:
        """Raises UsageError when the topics do not fit the settings, KafkaFailure when Kafka does not answer."""
        self._settings = settings
        self._bundles = bundles
        self._shard = shard
        self._label = str(shard)
        self._log = log.bind(shard=shard)
        self._client = kafka.admin(settings.kafka)
        self._topics = kafka.Topics.of(settings.kafka)
        partitions = payments_partitions(settings, self._client, shard)
        self.pipeline = Pipeline(bundles.initial, shard=shard)
        start, _ = history.journal_bounds(settings.kafka, self._client, shard)
        self._journal_start = start
        self._released = False
        self._journal = history.JournalReader(
            settings.kafka, shard, position=start, sequence=self.pipeline.sequence, previous=FIRST_PREVIOUS
        )
        self.inputs = self._inputs(partitions)

    @property
    def journal_position(self) -> int:
        """Offset that comes next on the journal."""
        return self._journal.position

    def follow(self, stop: threading.Event) -> None:
        """Decide again whatever is committed, until `stop` is set. Raises what `catch_up` raises, but for NoProgress."""
        while not stop.is_set():
            self._step()

    def catch_up(self, stop: threading.Event) -> None:
        """Decide again up to the journal's end as it is now, or until `stop` is set.

        Raises PromiseBroken at the first digest that differs, MissingRange when records are gone, NoProgress when
        reading stalls.
        """
        settings, started = self._settings, time.monotonic()
        begin = self._journal.position
        _, end = history.journal_bounds(settings.kafka, self._client, self._shard)
        if self.pipeline.sequence == 0 and self._journal_start > 0 and self._journal_start == end:
            raise history.emptied(settings.kafka, self._shard, end)
        metrics.RECOVERY_OFFSETS.labels(self._label, "all").set(max(0, end - begin))
        deadline, shown, batches = time.monotonic() + settings.worker.no_progress_s, time.monotonic(), 0
        while self._journal.position < end and not stop.is_set():
            before = self._journal.position
            batches += self._step()
            now, done = time.monotonic(), self._journal.position - begin
            metrics.RECOVERY_OFFSETS.labels(self._label, "done").set(done)
            if self._journal.position > before:
                deadline = now + settings.worker.no_progress_s
            elif now > deadline:
                raise history.stalled(settings.kafka, self._shard, end, settings.worker.no_progress_s)
            if done and now - shown > PROGRESS_EVERY_S:
                shown = now
                left = (now - started) / done * (end - begin - done)
                self._log.info(
                    "shard.recovering", batches=batches, offsets_left=end - begin - done, left_s=round(left, 1)
                )
        seconds = time.monotonic() - started
        metrics.RECOVERY_SECONDS.labels(self._label).set(seconds)
        self._log.info("shard.recovered", batches=batches, sequence=self.pipeline.sequence, seconds=round(seconds, 3))

    def _step(self) -> int:
        """Decide again what the journal gives now; gives how many batches."""
        records = self._journal.read(WAIT_S)
        for _, record in records:
            self._check(record)
            batch = history.reread(record, self.inputs, no_progress_s=self._settings.worker.no_progress_s)
            rerun(self.pipeline, record, batch, self._bundles)
        metrics.FOLLOWED.labels(self._label).set(self.pipeline.sequence)
        return len(records)

    def _check(self, record: JournalRecord) -> None:
        strangers = {r.partition for r in record.inputs} - set(self.inputs.lanes)
        if strangers:
            raise UsageError(
                f"the journal of shard {self._shard} holds partitions {sorted(strangers)} that are not this shard's now: "
                "the number of shards or partitions was changed. Set it back, or start a new application "
                "(FRAUD_SCORER_WORKER__APPLICATION)"
            )
        if record.sequence == 0 and record.bundle != self._bundles.initial.id:
            self._log.info("shard.other_bundle", journal=record.bundle, given=self._bundles.initial.id)

    def release_journal(self) -> None:
        """The owner writes the journal from here on: reading it ends, the inputs go on."""
        if not self._released:
            self._released = True
            self._journal.close()

    def close(self) -> None:
        """Leave journal and inputs."""
        self.release_journal()
        self.inputs.close()

    def _inputs(self, partitions: list[int]) -> Inputs:
        worker, prefix = self._settings.worker, self._settings.kafka.topic_prefix
        starts = kafka.starts(
            self._client,
            [*(TopicPartition(self._topics.payments, p) for p in partitions), TopicPartition(self._topics.control, 0)],
        )
        return Inputs(
            kafka.reader(self._settings.kafka, group=f"{prefix}{worker.application}-reader-{self._shard}"),
            payments=self._topics.payments,
            control=self._topics.control,
            positions=dict(zip(partitions, starts[:-1], strict=True)),
            control_position=starts[-1],
            buffered_max=worker.buffered_payments_max,
            deadlines=Deadlines(worker.deadline_ms, worker.deadline_header),
        )


def payments_partitions(settings: Settings, client: AdminClient, shard: int) -> list[int]:
    """The payments partitions of a shard. Raises UsageError when the topics' partition counts do not fit each other."""
    topics = kafka.Topics.of(settings.kafka)
    payments = kafka.partition_count(client, topics.payments)
    decisions = kafka.partition_count(client, topics.decisions)
    if payments != decisions:
        raise UsageError(
            f"{topics.payments} has {payments} partitions, {topics.decisions} has {decisions}: one of them was changed, "
            "and a decision goes to the partition of its payment's number. Keys may have moved to other partitions: make "
            "both counts equal if that is meant, or start with other topics (FRAUD_SCORER_KAFKA__TOPIC_PREFIX)"
        )
    return [p for p in range(payments) if p % settings.worker.shards == shard]
