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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from features.engine_image import StateMismatch
from features.log_segments import SegmentError
from features.snapshot_store import SnapshotError
from schemas.journal import FIRST_PREVIOUS, JournalRecord
from scorer import kafka
from scorer.bundle import BundleError
from scorer.errors import UsageError
from scorer.journal import journal_reader
from scorer.journal.partition_buffers import Deadlines, MissingRange, ShardInputs
from scorer.journal.rerun import Bundles, rerun
from scorer.pipeline import Pipeline
from scorer.pipeline.state_image import restored
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.worker import worker_metrics
from scorer.worker.snapshotter import Stored, newest_first, refused, store_of

log = structlog.get_logger()

PROGRESS_EVERY_S = 2.0
WAIT_S = 0.2
# Owner and standbys of one shard on one machine, and one that is just ending.
LOG_FOLDERS_MAX = 8


class _Start(NamedTuple):
    """Where following begins."""

    pipeline: Pipeline
    journal: journal_reader.JournalReader
    positions: dict[int, int]
    control_position: int
    fresh: bool


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
        self._journal_start, self._journal_end = journal_reader.journal_bounds(settings.kafka, self._client, shard)
        self._released = False
        at = self._from_snapshot() or self._from_scratch(partitions)
        self.pipeline, self._journal = at.pipeline, at.journal
        self.inputs = self._inputs(at)

    def _from_scratch(self, partitions: list[int]) -> _Start:
        topics = [TopicPartition(self._topics.payments, p) for p in partitions]
        starts = kafka.starts(self._client, [*topics, TopicPartition(self._topics.control, 0)])
        return _Start(
            with_log_folder(
                self._settings,
                self._shard,
                lambda folder: Pipeline(self._bundles.initial, shard=self._shard, folder=folder),
            ),
            journal_reader.JournalReader(
                self._settings.kafka, self._shard, position=self._journal_start, sequence=0, previous=FIRST_PREVIOUS
            ),
            dict(zip(partitions, starts[:-1], strict=True)),
            starts[-1],
            fresh=True,
        )

    def _from_snapshot(self) -> _Start | None:
        """The newest snapshot that is whole, of this feature set, and of this very journal."""
        store = store_of(self._settings, self._shard)
        if store is None:
            return None
        try:
            for stored in newest_first(store, self._shard):
                try:
                    return self._start_of(stored)
                except (StateMismatch, SegmentError, BundleError, UsageError, MissingRange) as exc:
                    refused(self._shard, str(exc))
        except SnapshotError as exc:  # the store itself: the journal can do without
            refused(self._shard, str(exc))
        return None

    def _start_of(self, stored: Stored) -> _Start:
        known = stored.known
        offset, sequence = int(known["journal_offset"]), int(known["sequence"])
        name = f"snapshot {sequence}"
        if not self._journal_start <= offset < self._journal_end:
            raise StateMismatch(f"{name} ends at journal offset {offset}, which this journal does not have")
        # Its own record is read first and must be the one that the state ends with: else it is of another journal.
        journal = journal_reader.JournalReader(
            self._settings.kafka, self._shard, position=offset, sequence=sequence - 1, previous=None
        )
        try:
            last = self._first_record(journal)
            if last.head != known["head"]:
                raise StateMismatch(
                    f"{name} ends with head {known['head'][:12]}, the journal has {last.head[:12]} there"
                )
            bundle = self._bundles.at(str(known["bundle"]), str(known["bundle_location"]))
            started = time.monotonic()
            pipeline = with_log_folder(
                self._settings, self._shard, lambda folder: restored(bundle, known, stored.parts, folder=folder)
            )
        except BaseException:
            journal.close()
            raise
        self._log.info(
            "snapshot.restored", sequence=sequence, keys=pipeline.engine.counts().keys,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip
        positions = {int(p): int(position) for p, position in known["positions"].items()}
        return _Start(pipeline, journal, positions, int(known["control_position"]), fresh=False)

    def _first_record(self, journal: journal_reader.JournalReader) -> JournalRecord:
        patience_s = self._settings.worker.no_progress_s
        for found in journal.until(self._journal_end, no_progress_s=patience_s, wait_s=WAIT_S, records_max=1):
            for _, record in found:
                return record
        raise StateMismatch(f"the journal ends at offset {self._journal_end} without the record of a snapshot's batch")

    def follow(self, stop: threading.Event) -> None:
        """Decide again whatever is committed, until `stop` is set. Raises as `catch_up` does, but for NoProgress."""
        while not stop.is_set():
            self._rerun(self._journal.read(WAIT_S))

    def catch_up(self, stop: threading.Event) -> None:
        """Decide again up to the journal's end as it is now, or until `stop` is set.

        Raises PromiseBroken at the first digest that differs, MissingRange when records are gone, NoProgress when
        reading stalls.
        """
        settings, started = self._settings, time.monotonic()
        begin = self._journal.position
        _, end = journal_reader.journal_bounds(settings.kafka, self._client, self._shard)
        if self.pipeline.sequence == 0 and self._journal_start > 0 and self._journal_start == end:
            raise journal_reader.emptied(settings.kafka, self._shard, end)
        worker_metrics.RECOVERY_OFFSETS.labels(self._label, "all").set(max(0, end - begin))
        shown, batches = time.monotonic(), 0
        for records in self._journal.until(end, no_progress_s=settings.worker.no_progress_s, wait_s=WAIT_S):
            batches += self._rerun(records, stop)
            now, done = time.monotonic(), self._journal.position - begin
            worker_metrics.RECOVERY_OFFSETS.labels(self._label, "done").set(done)
            if stop.is_set():
                break
            if done and now - shown > PROGRESS_EVERY_S:
                shown = now
                left = (now - started) / done * (end - begin - done)
                self._log.info(
                    "shard.recovering", batches=batches, offsets_left=end - begin - done, left_s=round(left, 1)
                )
        seconds = time.monotonic() - started
        worker_metrics.RECOVERY_SECONDS.labels(self._label).set(seconds)
        self._log.info("shard.recovered", batches=batches, sequence=self.pipeline.sequence, seconds=round(seconds, 3))

    def _rerun(self, records: list[tuple[int, JournalRecord]], stop: threading.Event | None = None) -> int:
        """Decide again what the journal has given; gives how many batches. Not to its end when `stop` is set: then
        this state is not used any more.
        """
        for n, (_, record) in enumerate(records):
            if stop is not None and stop.is_set():
                return n
            self._check(record)
            batch = journal_reader.reread(record, self.inputs, no_progress_s=self._settings.worker.no_progress_s)
            rerun(self.pipeline, record, batch, self._bundles)
            fault_points.point("in_recovery")
        worker_metrics.FOLLOWED.labels(self._label).set(self.pipeline.sequence)
        return len(records)

    def _check(self, record: JournalRecord) -> None:
        strangers = {r.partition for r in record.inputs} - set(self.inputs.buffers)
        if strangers:
            raise UsageError(
                f"the journal of shard {self._shard} holds partitions {sorted(strangers)} that are not this shard's "
                "now: the number of shards or partitions was changed. Set it back, or start a new application "
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
        self.pipeline.close()

    def _inputs(self, at: _Start) -> ShardInputs:
        worker, prefix = self._settings.worker, self._settings.kafka.topic_prefix
        return ShardInputs(
            kafka.reader(self._settings.kafka, group=f"{prefix}{worker.application}-reader-{self._shard}"),
            payments=self._topics.payments,
            control=self._topics.control,
            positions=at.positions,
            control_position=at.control_position,
            buffered_max=worker.buffered_payments_max,
            deadlines=Deadlines(worker.deadline_ms, worker.deadline_header),
            fresh=at.fresh,
        )


def with_log_folder(settings: Settings, shard: int, make: Callable[[Path | None], Pipeline]) -> Pipeline:
    """What `make` gives for the first folder of the shard that no other engine holds; in memory without a setting.

    A standby of this machine, or a worker that is just ending, may hold another one. Raises SegmentError.
    """
    if settings.worker.log_folder is None:
        return make(None)
    base = settings.worker.log_folder.expanduser() / f"shard-{shard}"
    for number in range(LOG_FOLDERS_MAX):
        try:
            return make(base / str(number))
        except SegmentError as exc:
            error = exc
    raise error


def payments_partitions(settings: Settings, client: AdminClient, shard: int) -> list[int]:
    """The payments partitions of a shard. Raises UsageError when the topics' partition counts do not fit each other."""
    topics = kafka.Topics.of(settings.kafka)
    payments = kafka.partition_count(client, topics.payments)
    decisions = kafka.partition_count(client, topics.decisions)
    if payments != decisions:
        raise UsageError(
            f"{topics.payments} has {payments} partitions, {topics.decisions} has {decisions}: one was changed, and a "
            "decision goes to the partition of its payment's number. Keys may have moved to other partitions: make "
            "both counts equal if that is meant, or start with other topics (FRAUD_SCORER_KAFKA__TOPIC_PREFIX)"
        )
    return [p for p in range(payments) if p % settings.worker.shards == shard]
