"""What the topics control, labels and dead-letters bring to Postgres, exactly once by position as well.

One sink at a time does it for a topic (a lock in Postgres); the others stand by.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
import structlog

from scorer import kafka
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.sink.assembler import Position
from scorer.sink.postgres_errors import postgres_url_now
from scorer.sink.readiness import Readiness
from scorer.sink.record_rows import Row, control_row, dead_letter_row, label_row, refused_row
from scorer.sink.sink_errors import KafkaUnavailable, RowsRefused, StoreUnavailable
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.store import Moves, Store
from scorer.sink.topic_lag import TopicLag
from scorer.sink.topic_offsets import TopicOffsets
from scorer.sink.topic_reader import End, Record, TopicReader

_READ_TIMEOUT_S = 0.5
_LOCK_RETRY_S = 1.0
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.1, 10.0
_PARTITIONS_CHECK_S = 2.0


class RecordTopic(StrEnum):
    """The topics that a RecordSink can write, by their names in `kafka.Topics`."""

    CONTROL = "control"
    LABELS = "labels"
    DEAD_LETTERS = "dead_letters"

    @property
    def row_of(self) -> Callable[[str, Record], Row | None]:
        """What makes a row of one of its records."""
        return _ROW_OF[self]


_ROW_OF = {
    RecordTopic.CONTROL: control_row,
    RecordTopic.LABELS: label_row,
    RecordTopic.DEAD_LETTERS: dead_letter_row,
}


class RecordSink:
    """Writes one topic's records to their tables until it is stopped. One thread runs it."""

    def __init__(self, settings: Settings, topic: RecordTopic, metrics: SinkMetrics) -> None:
        """Connects to nothing yet."""
        self._settings, self._kind, self._metrics = settings, topic, metrics
        self._topic: str = getattr(kafka.Topics.of(settings.kafka), topic.value)
        self._offsets = TopicOffsets(settings.kafka, self._topic)
        self._log = structlog.get_logger().bind(part="sink", topic=self._topic)
        self._pause_s = _PAUSE_MIN_S
        self._readiness = Readiness()
        self._lag = TopicLag(self._topic, metrics)

    def readiness(self) -> tuple[bool, str]:
        """Whether rows can flow, or another sink writes the topic; and if not, why."""
        return self._readiness.now(self._offsets.silent_s)

    def drained(self) -> bool:
        """Whether everything in the topic is in Postgres. Asks the broker, for up to 10 s."""
        ends = self._lag.done
        if not ends or not self.readiness()[0]:
            return False
        try:
            return all(end <= ends[p] for p, end in self._offsets.ends(ends).items())
        except KafkaUnavailable:
            return False

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Raises SinkError when it cannot go on."""
        try:
            while not stop.is_set():
                try:
                    self._run_session(stop)
                except StoreUnavailable as exc:
                    self._unavailable("postgres", exc, stop)
                except KafkaUnavailable as exc:
                    self._unavailable("kafka", exc, stop)
        finally:
            self._readiness.waits("stopped")

    def _unavailable(self, kind: str, exc: Exception, stop: threading.Event) -> None:
        self._readiness.waits(f"waiting for {kind.capitalize()}: {exc}")
        self._metrics.errors.labels(kind).inc()
        self._log.warning("sink.waiting", on=kind, reason=str(exc), pause_s=self._pause_s)
        self._lag.wait(stop, self._pause_s, self._offsets)
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)

    def _run_session(self, stop: threading.Event) -> None:
        with (
            closing(TopicReader(self._settings.kafka, self._topic, self._offsets)) as reader,
            Store(postgres_url_now(self._settings), self._topic) as store,
        ):
            partitions = self._offsets.partitions()
            while store.lock(partitions):  # another sink writes this topic: stand by
                self._readiness.works()
                self._lag.begin({})
                self._offsets.probe(partitions)  # readiness shows that Kafka is away, also of a sink that stands by
                if stop.wait(_LOCK_RETRY_S):
                    return
            positions = store.positions(partitions)
            store.check_topic(partitions, self._offsets.facts().id)
            reader.assign({p: position.next_offset for p, position in positions.items()})
            self._lag.begin({p: position.next_offset for p, position in positions.items()})
            checked_at_s = time.monotonic()
            while not stop.is_set():
                self._readiness.works()
                fault_points.point(f"sink_{self._kind.value}")
                self._write(store, positions, reader.read(_READ_TIMEOUT_S))
                self._lag.show(self._offsets.probe(partitions))
                if time.monotonic() - checked_at_s > _PARTITIONS_CHECK_S:
                    checked_at_s = time.monotonic()
                    facts = self._offsets.facts()
                    if facts.partitions != len(partitions):
                        return
                    store.check_topic(partitions, facts.id)

    def _write(self, store: Store, positions: dict[int, Position], events: Sequence[Record | End]) -> None:
        made: list[tuple[Record, Row]] = []
        after: dict[int, int] = {}
        for event in events:
            if isinstance(event, End):
                after[event.partition] = max(event.offset, after.get(event.partition, 0))
                continue
            after[event.partition] = event.offset + 1
            self._lag.read(event.partition, event.offset, event.message.timestamp()[1])
            found = self._kind.row_of(self._topic, event)
            if found is not None:
                made.append((event, found))
        moves: Moves = {
            p: (positions[p], replace(positions[p], next_offset=offset, head=None))
            for p, offset in after.items()
            if offset > positions[p].next_offset
        }
        if not moves:
            return
        try:
            rows = _by_table(row for _, row in made)
            store.write_records(rows, moves)
        except RowsRefused as exc:
            self._log.warning("sink.records_written_singly", reason=str(exc))
            rows = _by_table(self._accepted(store, record, row) for record, row in made)
            store.write_records(rows, moves)
        positions |= {p: new for p, (_, new) in moves.items()}
        for partition, (_, new_position) in moves.items():
            self._lag.written(partition, new_position.next_offset)
        for table, new in rows.items():
            self._metrics.records.labels(table.name).inc(len(new))
        self._pause_s = _PAUSE_MIN_S

    def _accepted(self, store: Store, record: Record, row: Row) -> Row:
        """The row, if Postgres takes it (tried and rolled back); else the one that stands for its record."""
        try:
            store.try_record(*row)
        except RowsRefused as exc:
            if exc.key:  # written before: its position was moved back, and it is for an operator to say why
                raise
            self._metrics.set_aside.labels("refused").inc()
            place = {"partition": record.partition, "offset": record.offset}
            self._log.error("sink.record_set_aside", **place, reason=str(exc))
            return refused_row(row[0], self._topic, record, str(exc))
        return row


def _by_table(rows: Iterable[Row]) -> dict[sa.Table, list[dict[str, Any]]]:
    tables: dict[sa.Table, list[dict[str, Any]]] = {}
    for table, row in rows:
        tables.setdefault(table, []).append(row)
    return tables
