"""A shard's state brought up along its journal: what a standby keeps warm, and what an owner starts from.

    follower = Follower(settings, bundles, shard, ports)
    follower.follow(stop)          # a standby: whatever the owner commits, decided again here, each digest checked
    follower.catch_up(stop)        # the new owner, after fencing the former one: to the journal's end
    follower.pipeline, follower.inputs      # ready to decide the next batch

Reads only. Nothing here writes to Kafka, so any number of standbys may follow one shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import structlog
from confluent_kafka import TopicPartition

from features.engine_image import StateMismatch
from features.log_segments import SegmentError
from features.snapshot_store import Manifest, SnapshotError
from schemas.journal_record import FIRST_PREVIOUS, JournalRecord, Sources
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import PromiseBroken, UsageError
from scorer.journal import journal_reader
from scorer.journal.activated_bundles import Bundles, BundleUnavailable
from scorer.journal.partition_buffers import Deadlines, MissingRange, ShardInputs
from scorer.journal.rerun import rerun
from scorer.pipeline import Pipeline
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.worker import worker_metrics
from scorer.worker.ports import Ports, Store
from scorer.worker.snapshotter import refused

log = structlog.get_logger()

PROGRESS_EVERY_S = 2.0
WAIT_S = 0.2
# How often a bundle that cannot be had is asked for again.
BUNDLE_RETRY_S = 2.0
BUNDLE_LOGGED_S = 15.0


class _Start(NamedTuple):
    """Where following begins."""

    pipeline: Pipeline
    journal: journal_reader.JournalReader
    positions: dict[int, int]
    control_position: int
    labels_position: int
    fresh: bool
    epochs: Mapping[int, int]


class Follower:
    """Pipeline, inputs and journal position of one shard, moved together."""

    def __init__(
        self,
        settings: Settings,
        bundles: Bundles,
        shard: int,
        ports: Ports,
        *,
        stop: Event | None = None,
        waits: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`stop`: ends a wait for a bundle. `waits` is called with what is waited for, and with "" afterwards.

        Raises UsageError when the topics do not fit the settings, KafkaFailure when Kafka does not answer.
        """
        self.waits = waits
        self._stop = stop or ports.threads.event()
        self._settings = settings
        self._bundles = bundles
        self._shard = shard
        self._ports = ports
        self._label = str(shard)
        self._log = log.bind(shard=shard)
        self._broker = ports.clients.broker()
        self._topics = kafka.Topics.of(settings.kafka)
        facts = self._broker.topic_facts(self._topics.all)
        check_topics(settings, facts)
        payments = facts[self._topics.payments]
        self._sources = journal_reader.sources_of(facts, self._topics)
        self.deployment = journal_reader.deployment_of(facts, self._topics)
        self._left: deque[JournalRecord] = deque()  # read, and not decided again yet
        partitions = shard_partitions(settings, shard, payments.partitions)
        self._journal_start, self._journal_end = journal_reader.journal_bounds(settings.kafka, self._broker, shard)
        self._released = False
        at = self._from_snapshot() or self._from_scratch(partitions)
        self.pipeline, self._journal = at.pipeline, at.journal
        self.inputs = self._inputs(at)

    def _from_scratch(self, partitions: list[int]) -> _Start:
        """From the journal's first record, or the last one at which an operator let the state begin anew."""
        pipeline = self._ports.states.fresh(self._bundles.initial, self._shard)
        anew = self._new_state()
        if anew is not None:
            offset, record = anew
            pipeline.begin_at(record)
            journal = self._journal_from(offset, sequence=record.sequence, previous=record.previous)
            positions = {r.partition: r.end for r in record.inputs}
            labels = self._labels_start() if record.labels is None else record.labels.end
            return _Start(pipeline, journal, positions, record.control.end, labels, fresh=False, epochs={})
        topics = [TopicPartition(self._topics.payments, p) for p in partitions]
        starts = self._broker.starts([
            *topics, TopicPartition(self._topics.control, 0), TopicPartition(self._topics.labels, 0)
        ])  # fmt: skip
        return _Start(
            pipeline,
            self._journal_from(self._journal_start, sequence=0, previous=FIRST_PREVIOUS),
            dict(zip(partitions, starts[:-2], strict=True)),
            starts[-2],
            starts[-1],
            fresh=True,
            epochs={},
        )

    def _labels_start(self) -> int:
        """Where topic labels begins: what an upgraded shard reads first, whose journal has nothing of that topic."""
        return self._broker.starts([TopicPartition(self._topics.labels, 0)])[0]

    def _new_state(self, start: int | None = None) -> tuple[int, JournalRecord] | None:
        """Offset and record of the last time that an operator let the state begin anew; None without one.

        `start`: the journal offset from which on it is looked for; the journal's beginning without one.
        """
        journal = self._journal_from(
            self._journal_start if start is None else start, sequence=0, previous=None, containing=b'"new_state"'
        )
        try:
            return journal_reader.last_new_state(
                journal, self._journal_end, no_progress_s=self._settings.worker.no_progress_s
            )
        finally:
            journal.close()

    def _journal_from(
        self, position: int, *, sequence: int, previous: str | None, containing: bytes | None = None
    ) -> journal_reader.JournalReader:
        return journal_reader.JournalReader(
            self._settings.kafka, self._shard, clients=self._ports.clients, threads=self._ports.threads,
            position=position, sequence=sequence, previous=previous, containing=containing,
        )  # fmt: skip

    def _from_snapshot(self) -> _Start | None:
        """The newest snapshot that is whole, of this feature set, and that this very journal names."""
        store = self._ports.states.store(self._shard)
        if store is None:
            return None
        try:
            for found in store.newest_first():
                if isinstance(found, SnapshotError):
                    refused(self._shard, str(found))
                    continue
                try:
                    if self._may_use(found):
                        return self._start_of(store, found)
                except (StateMismatch, SegmentError, SnapshotError, BundleUnavailable, UsageError, MissingRange) as exc:
                    refused(self._shard, str(exc))
                except kafka.SourceChanged as exc:
                    if self._new_state() is None:
                        raise
                    refused(self._shard, str(exc))
        except SnapshotError as exc:  # the store itself: the journal can do without
            refused(self._shard, str(exc))
        return None

    def _may_use(self, found: Manifest) -> bool:
        """Whether the journal, which only workers write, names the snapshot. Nothing that it holds is believed before.

        Raises StateMismatch when it is of another journal, or differs from what the journal names.
        """
        name, offset = f"snapshot {found.sequence}", found.meta.get("journal_offset")
        if type(offset) is not int or not self._journal_start <= offset < self._journal_end:
            raise StateMismatch(f"{name} ends at a journal offset that this journal does not have")
        if self._settings.snapshots.unnamed:
            return True
        journal = self._journal_from(offset, sequence=0, previous=None, containing=b'"snapshot"')
        try:
            named = journal_reader.snapshot_digests(
                journal, self._journal_end, no_progress_s=self._settings.worker.no_progress_s
            )
        finally:
            journal.close()
        if found.digest in named.values():
            return True
        if found.sequence in named:
            raise StateMismatch(f"{name} is not the one that the journal names: it was changed in the store")
        # Its worker ended before the next batch, or others have written it.
        self._log.info("snapshot.passed_over", sequence=found.sequence, reason="no journal record names it")
        return False

    def _start_of(self, store: Store, found: Manifest) -> _Start:
        try:
            return self._restored(store, found)
        except (KeyError, ValueError, TypeError) as exc:
            raise StateMismatch(f"snapshot {found.sequence} lacks something that its format has: {exc}") from exc

    def _restored(self, store: Store, found: Manifest) -> _Start:
        known = found.meta
        offset, sequence = int(known["journal_offset"]), int(known["sequence"])
        name = f"snapshot {sequence}"
        # Its own record is read first and must be the one that the state ends with: else it is of another journal.
        journal = self._journal_from(offset, sequence=sequence - 1, previous=None)
        try:
            try:
                last = self._first_record(journal)
            except PromiseBroken as exc:  # were it the journal that is wrong, following from its start shows it
                raise StateMismatch(f"{name} is of another journal: {exc}") from exc
            if last.head != known["head"]:
                raise StateMismatch(
                    f"{name} ends with head {known['head'][:12]}, the journal has {last.head[:12]} there"
                )
            if self._new_state(offset) is not None:
                # Its positions may be of a log that is no more.
                raise StateMismatch(f"{name} is of the time before an operator let the state begin anew")
            if known.get("sources") is not None:
                journal_reader.check_sources(Sources(**known["sources"]), self._sources, name)
            if known["bundle"] != last.bundle:
                raise StateMismatch(f"{name} is of another bundle than the journal's {last.bundle}")
            # A place from a snapshot that proves nothing is not asked for anything.
            proved = self._settings.snapshots.key is not None or not self._settings.snapshots.unnamed
            bundle = self._snapshot_bundle(last.bundle, str(known["bundle_location"]) if proved else "")
            started = self._ports.threads.monotonic()
            pipeline = self._ports.states.restored(bundle, self._shard, known, store.images(found))
            pipeline.activation_number = last.activation_number
        except BaseException:
            journal.close()
            raise
        self._log.info(
            "snapshot.restored", sequence=sequence, keys=pipeline.engine.counts().keys,
            seconds=round(self._ports.threads.monotonic() - started, 3),
        )  # fmt: skip
        positions = {int(p): int(position) for p, position in known["positions"].items()}
        epochs = {int(p): int(epoch) for p, epoch in known.get("epochs", {}).items()}
        labels = known.get("labels_position")  # not in snapshots of before there was that topic
        return _Start(
            pipeline,
            journal,
            positions,
            int(known["control_position"]),
            self._labels_start() if labels is None else int(labels),
            fresh=False,
            epochs=epochs,
        )

    def _snapshot_bundle(self, bundle_id: str, hint: str) -> Bundle:
        """The bundle that decided a snapshot's last batch. Raises BundleUnavailable when nothing names its place."""
        try:
            return self._bundles.at(bundle_id, hint, self._stop.is_set)
        except BundleUnavailable:
            # A snapshot may be wrong about the place, the journal is not; it is read once more, for that alone.
            location = self._journalled_location(bundle_id)
            if not location:
                raise
        return self._bundle(bundle_id, location, self._stop)

    def _journalled_location(self, bundle_id: str) -> str:
        """Where the bundle lay when it was last activated; empty when the journal does not have it."""
        journal = self._journal_from(self._journal_start, sequence=0, previous=None, containing=b'"location"')
        location = ""
        try:
            for found in journal.until(self._journal_end, no_progress_s=self._settings.worker.no_progress_s):
                for _, record in found:
                    if record.taken is not None and record.taken.bundle == bundle_id:
                        location = record.taken.location or ""
        finally:
            journal.close()
        return location

    def _first_record(self, journal: journal_reader.JournalReader) -> JournalRecord:
        patience_s = self._settings.worker.no_progress_s
        for found in journal.until(self._journal_end, no_progress_s=patience_s, wait_s=WAIT_S, records_max=1):
            for _, record in found:
                return record
        raise StateMismatch(f"the journal ends at offset {self._journal_end} without the record of a snapshot's batch")

    def follow(self, stop: Event) -> None:
        """Decide again whatever is committed, until `stop` is set. Raises as `catch_up` does, but for NoProgress."""
        while not stop.is_set():
            self._rerun(self._journal.read(WAIT_S), stop)

    def catch_up(self, stop: Event, *, bounds: bool = True) -> None:
        """Decide again up to the journal's end as it is now, or until `stop` is set.

        Raises PromiseBroken at the first digest that differs, MissingRange when records are gone, NoProgress when
        reading stalls.
        """
        settings, monotonic = self._settings, self._ports.threads.monotonic
        started = monotonic()
        begin = self._journal.position
        _, end = journal_reader.journal_bounds(settings.kafka, self._broker, self._shard)
        batches = self._rerun([], stop)  # what a standby has read and not decided again yet
        if self.pipeline.sequence == 0 and self._journal_start > 0 and self._journal_start == end:
            raise journal_reader.emptied(settings.kafka, self._shard, end)
        worker_metrics.RECOVERY_OFFSETS.labels(self._label, "all").set(max(0, end - begin))
        shown = monotonic()
        for records in self._journal.until(end, no_progress_s=settings.worker.no_progress_s, wait_s=WAIT_S):
            try:
                batches += self._rerun(records, stop)
            except MissingRange:
                self._check_bounds()  # says which offsets are gone, where it is these
                raise
            now, done = monotonic(), self._journal.position - begin
            worker_metrics.RECOVERY_OFFSETS.labels(self._label, "done").set(done)
            if stop.is_set():
                break
            if done and now - shown > PROGRESS_EVERY_S:
                shown = now
                left = (now - started) / done * (end - begin - done)
                self._log.info(
                    "shard.recovering", batches=batches, offsets_left=end - begin - done, left_s=round(left, 1)
                )
        if bounds and not stop.is_set():
            self._check_bounds()
        seconds = monotonic() - started
        worker_metrics.RECOVERY_SECONDS.labels(self._label).set(seconds)
        self._log.info("shard.recovered", batches=batches, sequence=self.pipeline.sequence, seconds=round(seconds, 3))

    def allow_created(self) -> None:
        """Of what the topics hold now, decide records with a timestamp of their producer too: they are from before the
        topics had LogAppendTime. Raises UsageError when a topic does not have it.
        """
        if self._settings.worker.producer_timestamps:
            self._log.warning("timestamps.of_producers", setting="FRAUD_SCORER_WORKER__PRODUCER_TIMESTAMPS")
            self.inputs.allow_created(None, None)
            return
        check_append_time(self._settings, self._broker.timestamp_types(self._topics.inputs))
        ends = self._broker.ends([buffer.partition for buffer in self.inputs.all_buffers])
        self.inputs.allow_created(ends, int(self._ports.threads.epoch_s() * 1000.0))

    def _check_bounds(self) -> None:
        """Raise MissingRange or SourceChanged, naming the partition, when a position lies outside its log."""
        buffers = self.inputs.all_buffers
        where = [buffer.partition for buffer in buffers]
        bounds = zip(buffers, self._broker.starts(where), self._broker.ends(where), strict=True)
        for buffer, start, end in bounds:
            name = f"{buffer.partition.topic}/{buffer.partition.partition}"
            if buffer.position < start:
                raise MissingRange(
                    f"{name}: offsets {buffer.position} to {start - 1} are gone (retention, or records deleted by "
                    f"command) and were not decided. {journal_reader.WAY_OUT}"
                )
            if buffer.position > end:
                raise kafka.SourceChanged(
                    f"{name}: everything before offset {buffer.position} was decided, the newest under leader epoch "
                    f"{buffer.epoch if buffer.epoch >= 0 else 'unknown'}, and the log ends at {end}: it was cut, for "
                    f"example by an election of a leader that lacked records. {journal_reader.WAY_OUT}"
                )

    def _rerun(self, records: list[tuple[int, JournalRecord]], stop: Event) -> int:
        """Decide again what the journal has given; gives how many batches. What is left when `stop` is set waits for
        the next call.
        """
        self._left.extend(record for _, record in records)
        count = 0
        while self._left and not stop.is_set():
            record = self._left[0]
            taken = record.taken
            if taken is not None and record.bundle != self.pipeline.bundle.id:
                try:
                    self._bundle(record.bundle, taken.location or "", stop)
                except BundleUnavailable:  # stopped
                    break
            self._check(record)
            try:
                batch = journal_reader.reread(
                    record, self.inputs, no_progress_s=self._settings.worker.no_progress_s, threads=self._ports.threads
                )
            except kafka.NoProgress:
                self._check_ends(record)
                raise
            rerun(self.pipeline, record, batch, self._bundles)
            self._left.popleft()
            count += 1
            fault_points.point("in_recovery")
        worker_metrics.FOLLOWED.labels(self._label).set(self.pipeline.sequence)
        return count

    def _bundle(self, bundle_id: str, location: str, stop: Event) -> Bundle:
        """The bundle with which the journal goes on. While it cannot be had it is waited for, and logged: no other may
        decide. Raises BundleUnavailable once `stop` is set.
        """
        logged_at = float("-inf")
        try:
            while True:
                try:
                    return self._bundles.at(bundle_id, location, stop.is_set)
                except BundleUnavailable as exc:
                    if stop.is_set():
                        raise
                    self.waits(str(exc))
                    if self._ports.threads.monotonic() - logged_at > BUNDLE_LOGGED_S:
                        logged_at = self._ports.threads.monotonic()
                        self._log.error("bundle.awaited", reason=str(exc))
                stop.wait(BUNDLE_RETRY_S)
        finally:
            self.waits("")

    def _check_ends(self, record: JournalRecord) -> None:
        """Raise SourceChanged when a batch cannot be read again because its log ends before it."""
        ends = self._broker.ends([TopicPartition(self._topics.payments, r.partition) for r in record.inputs])
        for r, end in zip(record.inputs, ends, strict=True):
            if end < r.end:
                raise kafka.SourceChanged(
                    f"{self._topics.payments}/{r.partition}: everything before offset {r.end} was decided (batch "
                    f"{record.sequence}, leader epoch {r.epoch}), and the log ends at {end}: it was cut, for example "
                    f"by an election of a leader that lacked records. {journal_reader.WAY_OUT}"
                )

    def _check(self, record: JournalRecord) -> None:
        new = {r.partition: r.start for r in record.inputs if r.partition not in self.inputs.buffers}
        shards = self._settings.worker.shards
        foreign = sorted(p for p in new if p % shards != self._shard)
        if foreign and record.change is None:
            raise UsageError(
                f"the journal of shard {self._shard} holds partitions {foreign} that are not this shard's with "
                f"FRAUD_SCORER_WORKER__SHARDS={shards}: the number of shards was changed. Set it back"
            )
        if new and record.change is None:  # partitions that were added to the topic, and taken up by this batch
            self.inputs.add(new)
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
        self._broker.close()

    def _inputs(self, at: _Start) -> ShardInputs:
        worker, prefix = self._settings.worker, self._settings.kafka.topic_prefix
        return ShardInputs(
            self._ports.clients.reader(f"{prefix}{worker.application}-reader-{self._shard}"),
            payments=self._topics.payments,
            control=self._topics.control,
            labels=self._topics.labels,
            positions=at.positions,
            control_position=at.control_position,
            labels_position=at.labels_position,
            buffered_max=worker.buffered_payments_max,
            deadlines=Deadlines(worker.deadline_ms, worker.deadline_header),
            epochs=at.epochs,
            sources=self._sources,
            fresh=at.fresh,
        )

    def added(self, payments: int) -> list[int]:
        """Partitions of this shard that nothing reads yet, where the payments topic has `payments`."""
        return [p for p in shard_partitions(self._settings, self._shard, payments) if p not in self.inputs.buffers]

    def take_up(self, added: list[int]) -> dict[int, int]:
        """Read these partitions as well, from their first records on, whatever was sent there meanwhile.

        The next batch names them in the journal. Gives the offset of each.
        """
        starts = self._broker.starts([TopicPartition(self._topics.payments, p) for p in added]) if added else []
        positions = dict(zip(added, starts, strict=True))
        if positions:
            self.inputs.add(positions)
        return positions


def shard_partitions(settings: Settings, shard: int, payments: int) -> list[int]:
    """The payments partitions of a shard: those whose number leaves its own when divided by the number of shards."""
    return list(range(shard, payments, settings.worker.shards))


def check_topics(settings: Settings, facts: Mapping[str, kafka.TopicFacts]) -> None:
    """Raise UsageError when partition counts do not fit each other or the settings; it names topic, counts, way out."""
    topics, shards = kafka.Topics.of(settings.kafka), settings.worker.shards
    payments, decisions = facts[topics.payments].partitions, facts[topics.decisions].partitions
    if decisions < payments:
        raise UsageError(
            f"{topics.payments} has {payments} partitions, {topics.decisions} has {decisions}: a decision goes to the "
            "partition of its payment's number. `fraud-scorer recover --adopt-partitions` adds what is missing"
        )
    if payments < shards:
        raise UsageError(
            f"{topics.payments} has {payments} partitions, FRAUD_SCORER_WORKER__SHARDS is {shards}: some shards would "
            "have none. Set at most as many shards as there are partitions"
        )
    for topic in (topics.journal, topics.audit):
        if facts[topic].partitions != shards:
            raise UsageError(
                f"{topic} has {facts[topic].partitions} partitions, FRAUD_SCORER_WORKER__SHARDS is {shards}: they must "
                "be equal, for each shard writes its own. Set it back to what the topics were made with"
            )
    for topic in (topics.control, topics.labels):
        if facts[topic].partitions != 1:
            raise UsageError(
                f"{topic} has {facts[topic].partitions} partitions: its records have one order only with one. "
                "Make the topic anew with one partition, and `fraud-scorer recover --new-journal`"
            )


def check_append_time(settings: Settings, types: Mapping[str, str]) -> None:
    """Raise UsageError when a topic that workers read has timestamps of producers, naming it and the way out.

    `types`: message.timestamp.type by topic, of those that are shown.
    """
    if settings.worker.producer_timestamps:
        return
    for topic in kafka.Topics.of(settings.kafka).inputs:
        if types.get(topic, kafka.APPEND_TIME) != kafka.APPEND_TIME:
            raise UsageError(
                f"{topic} has message.timestamp.type={types[topic]}: a producer could write any timestamp, and with it "
                f"make the payments of others late. {kafka.APPEND_TIME_WAY_OUT}"
            )
