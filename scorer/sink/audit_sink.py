"""The audit sink: audit topic → Postgres, each micro-batch exactly once by position.

One round of `run`:

    1. connect, lock the partitions, read their positions, read the topic from there
    2. gather what has come, put chunks together to whole batches, check them
    3. write rows, batch rows and positions in one transaction, on a thread and connection of its own, while 2 goes on;
       several such transactions overlap, and are committed in order (`scorer.sink.write_lanes`)
    4. on trouble with Postgres or Kafka: drop everything in memory, pause, begin again at 1

Step 4 also covers a commit whose outcome is unknown: the positions in Postgres show what was committed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace

import structlog
from prometheus_client import CollectorRegistry

from scorer import kafka
from scorer.runtime.settings import Settings
from scorer.runtime.span_export import SpanSink
from scorer.sink.assembler import Assembler, Batch, Position, Quarantined
from scorer.sink.audit_partitions import AuditPartitions
from scorer.sink.audit_traces import AuditTraces
from scorer.sink.journal_lookup import JournalLookup
from scorer.sink.postgres_errors import postgres_url_now
from scorer.sink.readiness import Readiness
from scorer.sink.sink_errors import (
    KafkaUnavailable,
    RowsRefused,
    SinkError,
    StatementTooLong,
    StoreUnavailable,
)
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.store import Store
from scorer.sink.topic_lag import TopicLag
from scorer.sink.topic_offsets import TopicOffsets
from scorer.sink.topic_reader import End, Record, TopicReader
from scorer.sink.write_lanes import Flight, WriteLanes

_READ_TIMEOUT_S = 0.2  # how long stop may wait for an idle topic
_BUSY_READ_TIMEOUT_S = 0.01  # the same while transactions are under way: what they committed is noticed soon
_LOCK_RETRY_S = 1.0
# Doubling: a restart of Postgres costs a second or two, an outage ten at its end.
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.1, 10.0
_PARTITIONS_CHECK_S = 2.0
_GROUP_WAIT_S = 30.0
_LAG_S = 0.5  # asked in one round and shown in the next: the lag metric is about a second old
# Idle this long: positions move over the trailing transaction markers, so that retention may take them.
_MARKERS_SAVE_S = 1.0
# A transaction that Postgres ended for its length is tried again with half the bytes, down to single batches.
_TRANSACTION_BYTES_MIN = 1


class _PartitionsChanged(Exception):
    """The group has given this sink other partitions than at the start of the session."""


@dataclass
class _Session:
    """What is known about the partitions while one connection lasts."""

    assemblers: dict[int, Assembler]
    committed: dict[int, Position]
    traces: AuditTraces
    ready: list[Batch | Quarantined] = field(default_factory=list)
    ready_bytes: int = 0
    ready_ends: dict[int, int] = field(default_factory=dict)  # reached behind what is ready
    topic_id: str | None = None  # to be compared with that of the positions, by whoever writes next
    written_at_s: float = 0.0

    def end_at(self, partition: int, offset: int) -> None:
        """Nothing but transaction markers and aborted records stands before `offset`, behind the last that is ready."""
        for number in range(len(self.ready) - 1, -1, -1):
            item = self.ready[number]
            if item.partition == partition:
                if offset > item.after.next_offset:
                    self.ready[number] = replace(item, after=self.assemblers[partition].advance(offset))
                return


class AuditSink:
    """Writes the audit topic to Postgres until it is stopped. One thread runs it; the other methods serve any."""

    def __init__(
        self,
        settings: Settings,
        *,
        partitions: Sequence[int] | None = None,
        transaction_bytes_max: int = 8 * 1024 * 1024,
        lanes: int = 2,
        batch_bytes_max: int = 256 * 1024 * 1024,
        metrics: SinkMetrics | None = None,
        spans: SpanSink | None = None,
    ) -> None:
        """Connects to nothing yet.

        `partitions`: those of the topic to write; None for those that the group of sinks gives this one.
        `transaction_bytes_max`: audit bytes after which a transaction is closed; a larger batch still goes whole.
        `lanes`: transactions at once, each over a connection of its own; one behind a pooler of transactions, and fewer
        where Postgres gives no more connections.
        `batch_bytes_max`: a larger micro-batch is set aside (memory is bounded by it).
        `spans`: where those of sampled rows go.
        """
        topics = kafka.Topics.of(settings.kafka)
        self._settings = settings
        self._topic, self._origin_topic = topics.audit, topics.payments
        self._only = None if partitions is None else sorted(partitions)
        self._transaction_bytes_max = self._transaction_bytes = transaction_bytes_max
        self._batch_bytes_max = batch_bytes_max
        self._lanes = lanes
        self._spans = spans
        self._metrics = metrics or SinkMetrics(CollectorRegistry())
        self._log = structlog.get_logger().bind(part="sink", topic=self._topic)
        self._member: AuditPartitions | None = None
        self._offsets = TopicOffsets(settings.kafka, self._topic)
        self._journal = JournalLookup(settings.kafka)
        self._readiness = Readiness()
        self._lag = TopicLag(self._topic, self._metrics)
        self._pause_s = _PAUSE_MIN_S

    def readiness(self) -> tuple[bool, str]:
        """Whether rows can flow, and if not, why: Postgres and Kafka answer and the partitions are this sink's, be it
        none of them."""
        return self._readiness.now(self._offsets.silent_s)

    def ready(self) -> bool:
        """The first of `readiness`."""
        return self.readiness()[0]

    def lag(self) -> dict[int, int]:
        """Records not yet in Postgres, by partition, as last probed; empty before the first session."""
        return self._lag.records()

    def drained(self) -> bool:
        """Whether everything in the topic is in Postgres and no transaction is open on it.

        Asks the broker, for up to 10 s; False when it does not answer.
        """
        ends = self._lag.done
        if not ends or not self.ready():
            return False
        try:
            return all(offset <= ends[partition] for partition, offset in self._offsets.ends(ends).items())
        except KafkaUnavailable:
            return False

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set; what it has read by then is written. Raises SinkError when it cannot go on."""
        with ExitStack() as stack:
            if self._only is None:
                self._member = stack.enter_context(AuditPartitions(self._settings.kafka, self._topic))
            self._run(stop)

    def _run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                try:
                    self._run_session(stop)
                except _PartitionsChanged:
                    self._log.info("sink.partitions_changed")
                    self._readiness.waits("the group of sinks has given this one other partitions")
                except StoreUnavailable as exc:
                    if isinstance(exc, StatementTooLong):
                        self._transaction_bytes = max(_TRANSACTION_BYTES_MIN, self._transaction_bytes // 2)
                    self._unavailable("postgres", exc, stop)
                except KafkaUnavailable as exc:
                    self._unavailable("kafka", exc, stop)
        except SinkError as exc:
            self._metrics.errors.labels("fatal").inc()
            self._log.error("sink.stopped", error=type(exc).__name__, reason=str(exc))
            raise
        finally:
            self._readiness.waits("stopped")
            self._metrics.postgres_up.set(0)
            self._metrics.kafka_up.set(0)

    def _unavailable(self, kind: str, exc: Exception, stop: threading.Event) -> None:
        self._readiness.waits(f"waiting for {kind.capitalize()}: {exc}")
        self._metrics.errors.labels(kind).inc()
        (self._metrics.postgres_up if kind == "postgres" else self._metrics.kafka_up).set(0)
        self._log.warning("sink.waiting", on=kind, reason=str(exc), pause_s=self._pause_s)
        self._lag.wait(stop, self._pause_s, self._offsets)
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)

    def _run_session(self, stop: threading.Event) -> None:
        """Steps 1 to 3 until `stop`, with a consumer and connections of its own: what failed is not used again."""
        url = postgres_url_now(self._settings)
        with ExitStack() as stack:
            reader = stack.enter_context(closing(TopicReader(self._settings.kafka, self._topic, self._offsets)))
            stores = self._stores(url, stack)
            store = stores[0]
            partitions = self._partitions(stop)
            if not self._lock(stores, partitions, stop):
                return
            committed = store.positions(partitions)
            self._metrics.postgres_up.set(1)
            if committed:
                store.check_topic(partitions, self._offsets.facts().id)
                reader.assign({p: position.next_offset for p, position in committed.items()})
            self._metrics.kafka_up.set(1)
            session = _Session(
                {
                    p: Assembler(self._topic, p, at, self._batch_bytes_max, self._journal.holds)
                    for p, at in committed.items()
                },
                committed,
                AuditTraces(self._spans, self._topic),
            )
            self._lag.begin({p: position.next_offset for p, position in committed.items()})
            self._metrics.sequence.clear()
            self._show_sequences(committed.values())
            self._readiness.works()
            self._log.info("sink.reading", positions={p: position.next_offset for p, position in committed.items()})
            lanes = stack.enter_context(WriteLanes(stores, self._write_flight))
            try:
                self._work(reader, store, lanes, session, stop)
            finally:
                # After an error: what is under way is committed or fails, and is counted.
                with suppress(SinkError):
                    self._drain(lanes, session)

    def _stores(self, url: str, stack: ExitStack) -> list[Store]:
        """A connection for each lane; fewer where Postgres gives no more. Raises StoreUnavailable for the first."""
        stores = [stack.enter_context(Store(url, self._topic, self._origin_topic))]
        for lane in range(1, 1 if stores[0].pooled else self._lanes):
            try:
                stores.append(stack.enter_context(Store(url, self._topic, self._origin_topic, lane=lane)))
            except StoreUnavailable as exc:
                self._log.warning("sink.fewer_connections", connections=len(stores), reason=str(exc))
                break
        return stores

    def _work(
        self, reader: TopicReader, store: Store, lanes: WriteLanes, session: _Session, stop: threading.Event
    ) -> None:
        session.written_at_s = checked_at_s = lag_at_s = time.monotonic()
        while not stop.is_set():
            if self._member is not None and self._member.given != tuple(session.assemblers):
                self._write_all(lanes, session)
                raise _PartitionsChanged
            if not session.assemblers:
                self._readiness.works()
                self._offsets.probe([0])  # readiness shows that Kafka is away, also of a sink that stands by
                stop.wait(_READ_TIMEOUT_S)
                continue
            if lanes.idle:  # else by `_committed`: where none comes, Postgres hangs
                self._readiness.works()
            events = reader.read(_READ_TIMEOUT_S if lanes.idle else _BUSY_READ_TIMEOUT_S)
            try:
                ends = self._take(lanes, session, events)
            except SinkError:
                # What was whole before the bad record is good: the position then stands right at it.
                self._write_all(lanes, session)
                raise
            self._collect(lanes, session)
            self._reached(lanes, session, ends)
            if lanes.room:
                self._submit(lanes, session)
            now_s = time.monotonic()
            if now_s - lag_at_s > _LAG_S:
                lag_at_s = now_s
                self._lag.show(self._offsets.probe(session.assemblers))
            if lanes.idle and not events and now_s - session.written_at_s > _MARKERS_SAVE_S:
                self._save_markers(store, session)
                session.written_at_s = now_s
            if now_s - checked_at_s > _PARTITIONS_CHECK_S:
                checked_at_s = now_s
                if self._member is None:
                    self._partitions(stop)
                session.topic_id = self._offsets.facts().id
            if lanes.idle and session.topic_id is not None:
                store.check_topic(list(session.assemblers), session.topic_id)
                session.topic_id = None
        self._write_all(lanes, session)
        self._save_markers(store, session)

    def _take(self, lanes: WriteLanes, session: _Session, events: Sequence[Record | End]) -> dict[int, int]:
        """Puts records together; begins to write when a transaction is full. Returns ends reached with no batch half.

        What was gathered last before an end takes the end as its position: the markers behind it, which retention may
        remove before the sink reads again, are then stored as read together with its rows.
        """
        ends: dict[int, int] = {}
        for event in events:
            assembler = session.assemblers[event.partition]
            if isinstance(event, End):
                if not assembler.pending_bytes:
                    ends[event.partition] = event.offset
                    session.end_at(event.partition, event.offset)
                continue
            self._lag.read(event.partition, event.offset, event.message.timestamp()[1])
            session.traces.read(event)
            for item in assembler.add(event.offset, event.value):
                session.ready.append(item)
                session.ready_bytes += item.size_bytes if isinstance(item, Batch) else len(item.value or b"")
            if session.ready_bytes >= self._transaction_bytes:
                self._submit(lanes, session)
        return ends

    def _reached(self, lanes: WriteLanes, session: _Session, ends: dict[int, int]) -> None:
        """Notes ends of partitions, which count once what is before them is in Postgres."""
        if session.ready:
            session.ready_ends |= ends
        elif not lanes.reached(ends):
            for partition, offset in ends.items():
                self._lag.written(partition, offset)

    def _submit(self, lanes: WriteLanes, session: _Session) -> None:
        """Begins to write what is ready; waits for a lane where all are busy."""
        if not session.ready:
            return
        while not lanes.room:
            self._collect(lanes, session, wait=True)
        lanes.submit(session.ready, session.ready_ends, session.topic_id)
        session.topic_id = None
        session.ready, session.ready_bytes, session.ready_ends = [], 0, {}

    def _write_all(self, lanes: WriteLanes, session: _Session) -> None:
        """Everything that is ready is in Postgres after this."""
        self._submit(lanes, session)
        self._drain(lanes, session)

    def _drain(self, lanes: WriteLanes, session: _Session) -> None:
        while not lanes.idle:
            self._collect(lanes, session, wait=True)

    def _collect(self, lanes: WriteLanes, session: _Session, *, wait: bool = False) -> None:
        """Counts what is committed; `wait`: for the oldest transaction. Raises the error that ended one."""
        while (flight := lanes.take_back(wait=wait)) is not None:
            wait = False
            self._committed(session, flight)

    def _committed(self, session: _Session, flight: Flight) -> None:
        for item in flight.items:
            session.committed[item.partition] = item.after
            session.traces.committed(item)
            self._lag.written(item.partition, item.after.next_offset)
            if isinstance(item, Quarantined):
                self._metrics.set_aside.labels(item.kind).inc()
                self._log.error(
                    "sink.record_set_aside",
                    partition=item.partition,
                    offset=item.offset,
                    kind=item.kind,
                    reason=item.reason,
                )
            else:
                self._metrics.batches.inc()
                self._metrics.rows.inc(item.rows)
        self._show_sequences({item.partition: item.after for item in flight.items}.values())
        for partition, offset in flight.ends.items():
            self._lag.written(partition, offset)
        self._readiness.works()
        session.written_at_s = time.monotonic()
        self._pause_s = _PAUSE_MIN_S
        self._transaction_bytes = min(self._transaction_bytes_max, 2 * self._transaction_bytes)

    def _show_sequences(self, positions: Iterable[Position]) -> None:
        for position in positions:
            if position.shard is not None and position.sequence is not None:
                self._metrics.sequence.labels(str(position.shard)).set(position.sequence)

    def _write_flight(self, store: Store, flight: Flight) -> None:
        """On the thread of a lane."""
        if flight.topic_id is not None:
            store.check_topic(sorted({item.partition for item in flight.items}), flight.topic_id)
        try:
            with self._metrics.commit_seconds.time():
                store.write(flight.items, flight.turn_to_wait_for())
        except RowsRefused as exc:
            flight.turn()
            self._log.warning("sink.batches_written_singly", reason=str(exc))
            store.forget()
            flight.items = [self._write_alone(store, item) for item in flight.items]

    def _write_alone(self, store: Store, item: Batch | Quarantined) -> Batch | Quarantined:
        """One item in a transaction of its own; a batch whose rows Postgres refuses goes to quarantine by chunks."""
        try:
            store.write([item])
        except RowsRefused as exc:
            if isinstance(item, Quarantined):
                # Its place and the reason alone; the record itself stays on the topic.
                store.write([item.without_content(str(exc))])
                return item
            # In the chain it has its place: the next batch follows it, though its rows are not in the tables.
            chunks = item.quarantined("refused", str(exc))
            store.write(chunks)
            return chunks[-1]
        return item

    def _save_markers(self, store: Store, session: _Session) -> None:
        """Moves positions behind the transaction markers after the last batch, so that retention may remove those."""
        moves = {}
        for partition, end in self._lag.done.items():
            before = session.committed[partition]
            if end > before.next_offset and not session.assemblers[partition].pending_bytes:
                moves[partition] = (before, session.assemblers[partition].advance(end))
        if moves:
            store.advance(moves)
            session.committed |= {partition: after for partition, (_, after) in moves.items()}

    def _lock(self, stores: Sequence[Store], partitions: Sequence[int], stop: threading.Event) -> bool:
        """Waits until all partitions are this sink's, on every connection. False when stopped before."""
        logged = False
        while held := next((held for store in stores if (held := store.lock(partitions))), []):
            for store in stores:
                store.unlock()
            if not logged:
                self._log.warning("sink.waiting", on="another sink", partitions=held)
                self._readiness.waits(f"another sink writes partitions {held}")
                logged = True
            self._metrics.errors.labels("waiting").inc()
            if stop.wait(_LOCK_RETRY_S):
                return False
        return True

    def _partitions(self, stop: threading.Event) -> list[int]:
        """This sink's partitions, once they are known. Raises KafkaUnavailable; SinkError without those asked for."""
        found = self._offsets.partitions()
        if self._only is not None:
            if missing := set(self._only) - set(found):
                raise SinkError(f"topic {self._topic} has no partition {sorted(missing)}; it has {found}")
            return self._only
        deadline_s = time.monotonic() + _GROUP_WAIT_S
        while not stop.is_set():
            if self._member is not None and (given := self._member.given) is not None:
                return list(given)
            if time.monotonic() > deadline_s:
                raise KafkaUnavailable(f"the group of sinks on {self._topic} gives no partitions yet")
            stop.wait(0.02)
        return []
