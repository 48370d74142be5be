"""A shard's state brought up along its journal: what a standby keeps warm, and what an owner starts from.

    follower = Follower(settings, bundles, shard, ports)
    follower.follow(stop)          # a standby: whatever the owner has ordered, decided again here, each digest checked
                                   # against the journal as soon as that is committed
    follower.catch_up(stop)        # the new owner, after fencing the former one: to the journal's end
    follower.take_ahead()          # what it has decided beyond the journal
    follower.unsettled(claim)      # what the order log holds beyond that
    follower.pipeline, follower.inputs      # ready to decide the next batch

Reads only. Nothing here writes to Kafka, so any number of standbys may follow one shard.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import structlog
from confluent_kafka import TopicPartition

from features.engine_image import StateMismatch
from features.log_segments import SegmentError
from features.snapshot_store import Manifest, SnapshotError
from schemas.audit_digest import SALT_BYTES
from schemas.journal_record import FIRST_PREVIOUS, BatchOrder, JournalRecord, Sources
from schemas.order_record import OrderRecord
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import PromiseBroken, UsageError
from scorer.journal import journal_reader, order_reader
from scorer.journal.activated_bundles import Bundles, BundleUnavailable
from scorer.journal.partition_buffers import Deadlines, MissingRange, ShardInputs
from scorer.journal.rerun import rerun
from scorer.pipeline import Outcomes, Pipeline
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.worker import worker_metrics
from scorer.worker.decided_ahead import Ahead, DecidedAhead
from scorer.worker.pending_commits import ahead_max
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
    last: Mapping[str, kafka.LastRecord]
    settled: order_reader.Settled | None = None
    journal_offset: int = -1  # of a snapshot's own record


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
        self._left: deque[tuple[int, JournalRecord]] = deque()  # read, and not decided again yet
        self._orders: order_reader.OrderLogReader | None = None
        self._orders_from: order_reader.Settled | None = None  # where they were read from
        self._held: deque[order_reader.Ordered] = deque()  # orders, read and not decided yet
        owner = ahead_max(settings.worker)
        # The owner has the next batch ordered before it waits for room.
        self._ahead = DecidedAhead(
            owner._replace(batches=owner.batches + 1, payments=owner.payments + 2 * settings.worker.batch_payments_max)
        )
        partitions = shard_partitions(settings, shard, payments.partitions)
        self._journal_start, self._journal_end = journal_reader.journal_bounds(settings.kafka, self._broker, shard)
        self._released = False
        self.caught_up = False  # whether following has been at the end of journal and order log once
        at = self._from_snapshot() or self._from_scratch(partitions)
        self.pipeline, self._journal = at.pipeline, at.journal
        # Of the batch that follows the journal, as far as it was read; and the head of the one before.
        self.sequence, self._head = self.pipeline.sequence, self.pipeline.head
        self._settled = at.settled
        self._journal_offset = at.journal_offset
        self.inputs = self._inputs(at)
        # Of the snapshot that the state was made from; None without one.
        self.snapshot_places = self.inputs.places if at.journal_offset >= 0 else None

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
            return _Start(
                pipeline,
                journal,
                positions,
                record.control.end,
                labels,
                fresh=False,
                last={},
                settled=_settled_by(record),
            )
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
            last={},
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
            return journal_reader.last_new_state(self._all_of(journal))
        finally:
            journal.close()

    def _journal_from(
        self, position: int, *, sequence: int, previous: str | None, containing: bytes | None = None
    ) -> journal_reader.JournalReader:
        return journal_reader.JournalReader(
            self._settings.kafka, self._shard, clients=self._ports.clients, threads=self._ports.threads,
            position=position, sequence=sequence, previous=previous, containing=containing,
        )  # fmt: skip

    def _all_of(self, journal: journal_reader.JournalReader) -> Iterator[journal_reader.Found]:
        """What it finds up to the end that was noted. Raises Rebuild when the follower is asked to end meanwhile: there
        is nothing yet that could be handed over."""
        for found in journal.until(self._journal_end, no_progress_s=self._settings.worker.no_progress_s):
            if self._stop.is_set():
                raise kafka.Rebuild("asked to end before a snapshot was chosen")
            yield found

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
                    if self._stop.is_set():  # which ends a wait for a bundle, and says nothing of the snapshot
                        raise kafka.Rebuild("asked to end before a snapshot was chosen") from exc
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
            named = journal_reader.snapshot_digests(self._all_of(journal))
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
            if self._new_state(offset + 1) is not None:  # its own record may be that very beginning
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
        # Not in snapshots of before: those name the epoch of the position alone, which says nothing of markers.
        noted = known.get("last_records", {}).items()
        records = {str(place): kafka.LastRecord(*map(int, each)) for place, each in noted}
        labels = known.get("labels_position")  # not in snapshots of before there was that topic
        return _Start(
            pipeline,
            journal,
            positions,
            int(known["control_position"]),
            self._labels_start() if labels is None else int(labels),
            fresh=False,
            last=records,
            settled=_settled_by(last),
            journal_offset=offset,
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
            for found in self._all_of(journal):
                for _, record in found:
                    if record.taken is not None and record.taken.bundle == bundle_id:
                        location = _location(record)
        finally:
            journal.close()
        return location

    def _first_record(self, journal: journal_reader.JournalReader) -> JournalRecord:
        patience_s = self._settings.worker.no_progress_s
        for found in journal.until(self._journal_end, no_progress_s=patience_s, wait_s=WAIT_S, records_max=1):
            if self._stop.is_set():
                raise kafka.Rebuild("asked to end before a snapshot was chosen")
            for _, record in found:
                return record
        raise StateMismatch(f"the journal ends at offset {self._journal_end} without the record of a snapshot's batch")

    def follow(self, stop: Event, between: Callable[[], None] = lambda: None) -> None:
        """Decide again whatever is committed, and what the order log holds beyond it, until `stop` is set. `between` is
        called between two steps. Raises as `catch_up` does, but for NoProgress, and Rebuild when the two differ."""
        while not stop.is_set():
            between()
            self._rerun(self._journal.read(WAIT_S if self._waits_for_journal else 0.0), stop)
            if not self._left:
                self._follow_orders(stop)
                self.caught_up = self.caught_up or (self._journal.at_end and not self._held)

    @property
    def offsets_left(self) -> int:
        """Of the journal as it was when following began."""
        return max(0, self._journal_end - self._journal.position)

    @property
    def _waits_for_journal(self) -> bool:
        if self._orders is None or self._ahead.full:
            return True
        # Of the batches before that order the journal alone may have some.
        return bool(self._held) and self._held[0][1].sequence > self.pipeline.sequence

    def _follow_orders(self, stop: Event) -> None:
        """Decide what the order log holds next, waiting a moment for it. Raises as OrderLogReader.read does.

        A claim ends that wait too: a worker that takes the shard over appends one, and waits for no more than that.
        """
        if self._orders is None and not self._begin_orders():
            return
        try:
            if not self._held and self._orders is not None:
                self._held.extend(self._orders.read(WAIT_S))
        except MissingRange as exc:  # of an idle shard, say: the journal names a later one with the next batch
            if self._ahead:  # another order may stand where those were that this state has gone on with
                raise
            self._log.warning("standby.orders_gone", reason=str(exc))
            self._release_orders()
        while self._held and not (stop.is_set() or self._ahead.full):
            offset, record = self._held[0]
            if self._follows(offset, record) and not self._decide_ahead(offset, record, stop):
                break
            self._held.popleft()
        worker_metrics.FOLLOWED.labels(self._label).set(self.pipeline.sequence)

    def _follows(self, offset: int, record: OrderRecord) -> bool:
        """Whether an order is of a batch that was not decided yet: an operator may have given up what stands before the
        record of the order log that the journal names."""
        settled = -1 if self._settled is None else self._settled.offset
        return offset > settled and record.sequence >= self.pipeline.sequence

    def _begin_orders(self) -> bool:
        """Follow the order log from the record on that the journal names, once the journal was followed to its end."""
        settled = self._settled
        if settled is None or settled == self._orders_from or self._journal.position < self._journal_end:
            return False
        self._orders_from = settled
        self._orders = order_reader.OrderLogReader(
            self._settings.kafka, self._shard, clients=self._ports.clients, settled=settled
        )
        return True

    def _decide_ahead(self, offset: int, record: OrderRecord, stop: Event) -> bool:
        """Decide a batch that the journal does not hold yet. False when it cannot be decided at this moment."""
        if record.sequence > self.pipeline.sequence:  # those before it stand in the journal alone
            return False
        self._check(record)
        if not self.inputs.holds(record):
            journal_reader.fetch(record, self.inputs, WAIT_S)
        if not self.inputs.holds(record):
            return False
        if record.bundle != self.pipeline.bundle.id and not self._has_bundle(record, stop):
            return False  # the journal is read meanwhile: the order may be one that an operator gives up
        try:
            outcomes = self._decided(offset, record, stop)
        except BundleUnavailable:  # stopped
            return False
        except PromiseBroken as exc:
            raise undecidable(self._shard, offset, record, exc) from exc
        self._ahead.add(outcomes, self.inputs.carried)
        return True

    def _has_bundle(self, record: OrderRecord, stop: Event) -> bool:
        """Whether the bundle of an order can be had now. Waits a moment when it cannot."""
        try:
            self._bundles.at(record.bundle, _location(record), stop.is_set)
        except BundleUnavailable as exc:
            self.waits(str(exc))
            self._log.error("bundle.awaited", reason=str(exc))
            stop.wait(BUNDLE_RETRY_S)
            return False
        self.waits("")
        return True

    def _release_orders(self) -> None:
        if self._orders is not None:
            self._orders.close()
            self._orders = None

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
        if not stop.is_set():
            if self.pipeline.sequence == 0 and self._journal_start > 0:  # what is left there is no batch
                raise journal_reader.emptied(settings.kafka, self._shard, self._journal_start)
            if bounds:
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
        self._left.extend(records)
        count = 0
        while self._left and not stop.is_set():
            _, record = self._left[0]
            if self._ahead:
                self._ahead.confirm(record)
                self._committed(record)
                continue
            if record.taken is not None and record.bundle != self.pipeline.bundle.id:
                try:
                    self._bundle(record.bundle, _location(record), stop)
                except BundleUnavailable:  # stopped
                    break
            self._check(record)
            patience_s, threads = self._settings.worker.no_progress_s, self._ports.threads
            try:
                if record.change is None and not journal_reader.fetch_all(
                    record, self.inputs, no_progress_s=patience_s, threads=threads, stopped=stop.is_set
                ):
                    break
                batch = journal_reader.reread(record, self.inputs, no_progress_s=patience_s, threads=threads)
            except kafka.NoProgress:
                self._check_ends(record)
                raise
            rerun(self.pipeline, record, batch, self._bundles)
            self._committed(record)
            count += 1
            fault_points.point("in_recovery")
        worker_metrics.FOLLOWED.labels(self._label).set(self.pipeline.sequence)
        return count

    def _committed(self, record: JournalRecord) -> None:
        """The first of the journal's records that are left is decided, and equal."""
        self._journal_offset, _ = self._left.popleft()
        self.sequence, self._head = record.sequence + 1, record.head
        self._settled = _settled_by(record) or self._settled
        if not self._ahead:
            self.pipeline.head = record.head

    @property
    def last_commit(self) -> tuple[int, int] | None:
        """Number and journal offset of the last of the journal's batches that the state has; None before the first."""
        return None if self._journal_offset < 0 else (self.sequence - 1, self._journal_offset)

    @property
    def settled(self) -> bool:
        """Whether the journal names a record of the order log."""
        return self._settled is not None

    def take_ahead(self) -> list[Ahead]:
        """What was decided beyond the journal, which was brought to its end; chained on that."""
        taken = self._ahead.take(self._head)
        if taken:
            self.pipeline.head = taken[-1][0].journal.head
        return taken

    def unsettled(self, claim: int) -> list[order_reader.Ordered]:
        """The batches before the claim at offset `claim` of the order log that follow the journal, which was brought
        to its end, and what was decided beyond it; each with its offset.

        Raises as order_reader.unsettled does, and Rebuild where the log goes on from what another owner has committed
        since: an owner that was frozen before its claim is none any more.
        """
        try:
            return self._unsettled(claim)
        except (MissingRange, kafka.SourceChanged) as exc:
            _, end = journal_reader.journal_bounds(self._settings.kafka, self._broker, self._shard)
            if end <= self._journal.position:
                raise
            raise kafka.Rebuild("another owner has committed since the journal was read") from exc

    def _unsettled(self, claim: int) -> list[order_reader.Ordered]:
        settled, sequence, patience_s = self._settled, self.pipeline.sequence, self._settings.worker.no_progress_s
        if self._orders is None or (settled is not None and settled.offset >= claim):
            return order_reader.unsettled(
                self._settings.kafka, self._shard, clients=self._ports.clients, threads=self._ports.threads,
                broker=self._broker, settled=settled, sequence=sequence, end=claim, no_progress_s=patience_s,
            )  # fmt: skip
        found = self._orders.up_to(claim, threads=self._ports.threads, no_progress_s=patience_s)
        # None of them, nor of those decided ahead, stands after the claim: it would count by a later one, and up_to
        # raises then.
        left = [(offset, record) for offset, record in (*self._held, *found) if self._follows(offset, record)]
        return order_reader.following(left, sequence, f"{self._topics.order}/{self._shard}")

    def decide(self, offset: int, record: OrderRecord, stop: Event) -> Outcomes:
        """Decide the batch whose order stands at `offset` of the order log: its decisions may have left already, and
        these are the same.

        Raises MissingRange or SourceChanged when it cannot be read again, BundleUnavailable once `stop` is set.
        """
        self._check_ends(record)
        return self._decided(offset, record, stop)

    def _decided(self, offset: int, record: OrderRecord, stop: Event) -> Outcomes:
        if record.bundle != self.pipeline.bundle.id:
            self.pipeline.activate(self._bundle(record.bundle, _location(record), stop))
        self._check(record)
        batch = journal_reader.reread_order(
            record,
            offset,
            self.inputs,
            no_progress_s=self._settings.worker.no_progress_s,
            threads=self._ports.threads,
        )
        return self.pipeline.run(replace(batch, salt=secrets.token_bytes(SALT_BYTES)))

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

    def _check_ends(self, record: BatchOrder) -> None:
        """Raise SourceChanged when a batch cannot be read again because its log ends before it."""
        ends = self._broker.ends([TopicPartition(self._topics.payments, r.partition) for r in record.inputs])
        for r, end in zip(record.inputs, ends, strict=True):
            if end < r.end:
                raise kafka.SourceChanged(
                    f"{self._topics.payments}/{r.partition}: everything before offset {r.end} was decided (batch "
                    f"{record.sequence}, leader epoch {r.epoch}), and the log ends at {end}: it was cut, for example "
                    f"by an election of a leader that lacked records. {journal_reader.WAY_OUT}"
                )

    def _check(self, record: BatchOrder) -> None:
        change = record.change if isinstance(record, JournalRecord) else None
        new = {r.partition: r.start for r in record.inputs if r.partition not in self.inputs.buffers}
        shards = self._settings.worker.shards
        foreign = sorted(p for p in new if p % shards != self._shard)
        if foreign and change is None:
            raise UsageError(
                f"the journal of shard {self._shard} holds partitions {foreign} that are not this shard's with "
                f"FRAUD_SCORER_WORKER__SHARDS={shards}: the number of shards was changed. Set it back"
            )
        if new and change is None:  # partitions that were added to the topic, and taken up by this batch
            self.inputs.add(new)
        if record.sequence == 0 and record.bundle != self._bundles.initial.id:
            self._log.info("shard.other_bundle", journal=record.bundle, given=self._bundles.initial.id)

    def release_journal(self) -> None:
        """The owner writes the journal from here on: reading it ends, the inputs go on."""
        if not self._released:
            self._released = True
            self._journal.close()

    def release_orders(self) -> None:
        """The owner writes the order log from here on: reading it ends."""
        self._release_orders()
        self._held.clear()

    def close(self) -> None:
        """Leave journal, order log and inputs."""
        self.release_journal()
        self.release_orders()
        self.inputs.close()
        self.pipeline.close()
        self._broker.close()

    def _inputs(self, at: _Start) -> ShardInputs:
        worker, prefix = self._settings.worker, self._settings.kafka.topic_prefix
        return ShardInputs(
            self._ports.clients.flat_reader(f"{prefix}{worker.application}-reader-{self._shard}"),
            payments=self._topics.payments,
            control=self._topics.control,
            labels=self._topics.labels,
            positions=at.positions,
            control_position=at.control_position,
            labels_position=at.labels_position,
            buffered_max=worker.buffered_payments_max,
            deadlines=Deadlines(worker.deadline_ms, worker.deadline_header),
            last=at.last,
            sources=self._sources,
            fresh=at.fresh,
            traced=self._settings.tracing.exporter != "none",
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


def _settled_by(record: JournalRecord) -> order_reader.Settled | None:
    return None if record.order is None else order_reader.Settled(record.sequence, record.order)


def shard_partitions(settings: Settings, shard: int, payments: int) -> list[int]:
    """The payments partitions of a shard: those whose number leaves its own when divided by the number of shards."""
    return list(range(shard, payments, settings.worker.shards))


def check_topics(settings: Settings, facts: Mapping[str, kafka.TopicFacts]) -> None:
    """Raise UsageError when partition counts do not fit each other or the settings; it names topic, counts, way out."""
    topics, shards = kafka.Topics.of(settings.kafka), settings.worker.shards
    payments = facts[topics.payments].partitions
    fast = (topics.decisions_fast,) if settings.worker.fast_decisions else ()
    for topic in (topics.decisions, *fast):
        if facts[topic].partitions < payments:
            raise UsageError(
                f"{topics.payments} has {payments} partitions, {topic} has {facts[topic].partitions}: a decision goes "
                "to the partition of its payment's number. `fraud-scorer recover --adopt-partitions` adds what is "
                "missing"
            )
    if payments < shards:
        raise UsageError(
            f"{topics.payments} has {payments} partitions, FRAUD_SCORER_WORKER__SHARDS is {shards}: some shards would "
            "have none. Set at most as many shards as there are partitions"
        )
    for topic in (topics.journal, topics.audit, topics.order):
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


def _location(record: BatchOrder) -> str:
    """Where the bundle lies that the batch has taken; empty when it has taken none, or does not say."""
    return "" if record.taken is None else record.taken.location or ""


def undecidable(
    shard: int, offset: int, record: OrderRecord, cause: PromiseBroken, *, end: int | None = None
) -> PromiseBroken:
    """The error when the batch at `offset` of the order log cannot be decided. `end`: of the orders that stand behind
    it, as far as they are known."""
    return PromiseBroken(
        f"batch {record.sequence}, whose order is durable, cannot be decided: {cause}. `fraud-scorer recover "
        f"--accept-loss order:{shard}:{offset}-{offset + 1 if end is None else end}` gives it up, and what follows it"
    )
