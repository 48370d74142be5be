"""What the other topics bring to Postgres, exactly once by position as well: labels, activations, lists, dead letters.

One sink at a time does it for a topic (a lock in Postgres); the others stand by.

    control         labels, activations, control_changes; what is no control record is a dead letter of the worker's
    dead-letters    dead_letters: reason and origin; the refused value stays on its topic
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from schemas.contract_error import ContractError
from schemas.control_record import Activate, parse_control
from schemas.dead_letter import REDRIVEN, DeadLetter
from schemas.label_record import Label
from scorer.sink.assembler import Position
from scorer.sink.sink_errors import KafkaUnavailable, SinkError, StoreUnavailable
from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.store import Moves, Store
from scorer.sink.topic_offsets import TopicOffsets
from scorer.sink.topic_reader import End, Record, TopicReader
from scorer.trail import tables

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ_TIMEOUT_S = 0.5
_LOCK_RETRY_S = 1.0
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.1, 10.0
_PARTITIONS_CHECK_S = 60.0

Row = tuple[sa.Table, dict[str, Any]]


def control_row(topic: str, record: Record) -> Row | None:
    """Table and row of a control record; None for bytes that are none."""
    try:
        parsed = parse_control(record.value)
    except ContractError:
        return None
    key: dict[str, Any] = {"topic": topic, "offset": record.offset, "recorded_at": _recorded_at(record)}
    if isinstance(parsed, Label):
        event_time_ms = parsed.event_time_ms
        return tables.labels, key | {
            "payment_id": parsed.payment_id,
            "fraud": parsed.fraud,
            "known_at": _time(parsed.known_at_ms),
            "event_time": None if event_time_ms is None else _time(event_time_ms),
            "source": parsed.source,
            "analyst": parsed.analyst,
        }
    document = json.loads(parsed.model_dump_json())
    if isinstance(parsed, Activate):
        return tables.activations, key | {"bundle": parsed.bundle, "record": document}
    return tables.control_changes, key | {"type": document["type"], "record": document}


def dead_letter_row(topic: str, record: Record) -> Row | None:
    """Table and row of a dead letter; one that is not ours is kept too, as what it is. None for the note that a letter
    was sent again."""
    headers: Any = record.message.headers() or []  # a list of (name, bytes)
    if any(name == REDRIVEN for name, _ in headers):
        return None
    key = {
        "topic": topic,
        "partition": record.partition,
        "offset": record.offset,
        "recorded_at": _recorded_at(record),
    }
    try:
        letter = DeadLetter.from_headers(headers)
    except ValueError:
        return tables.dead_letters, key | {
            "origin_topic": topic,
            "origin_partition": record.partition,
            "origin_offset": record.offset,
            "reason": "unreadable",
            "field": None,
            "message": "not a dead letter of fraud-scorer",
            "value_bytes": -1 if record.value is None else len(record.value),
            "masked": False,
        }
    return tables.dead_letters, key | {
        "origin_topic": letter.topic,
        "origin_partition": letter.partition,
        "origin_offset": letter.offset,
        "reason": letter.reason.value,
        "field": letter.field,
        "message": letter.message,
        "value_bytes": letter.value_bytes,
        "masked": letter.masked,
    }


class RecordSink:
    """Writes one topic's records to their tables until told to stop. One thread runs it."""

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        client_config: Mapping[str, str | int | float | bool],
        topic: str,
        postgres_url: str,
        row_of: Callable[[str, Record], Row | None],
        metrics: SinkMetrics,
    ) -> None:
        """`row_of`: `control_row` or `dead_letter_row`. Connects to nothing yet."""
        self._servers, self._config, self._topic, self._url = bootstrap_servers, client_config, topic, postgres_url
        self._row_of = row_of
        self._metrics = metrics
        self._offsets = TopicOffsets(bootstrap_servers, client_config, topic)
        self._log = structlog.get_logger().bind(part="sink", topic=topic)
        self._pause_s = _PAUSE_MIN_S
        self._ends: dict[int, int] = {}

    def drained(self) -> bool:
        """Whether everything in the topic is in Postgres. Asks the broker, for up to 10 s."""
        ends = dict(self._ends)
        try:
            return bool(ends) and all(end <= ends[p] for p, end in self._offsets.ends(ends).items())
        except KafkaUnavailable:
            return False

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set. Raises SinkError when it cannot go on."""
        while not stop.is_set():
            try:
                self._session(stop)
            except StoreUnavailable as exc:
                self._unavailable("postgres", exc, stop)
            except KafkaUnavailable as exc:
                self._unavailable("kafka", exc, stop)

    def _unavailable(self, kind: str, exc: Exception, stop: threading.Event) -> None:
        self._ends = {}
        self._metrics.errors.labels(kind).inc()
        self._log.warning("sink_waits", on=kind, reason=str(exc), pause_s=self._pause_s)
        stop.wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)

    def _session(self, stop: threading.Event) -> None:
        with (
            closing(TopicReader(self._servers, self._config, self._topic, self._offsets)) as reader,
            Store(self._url, self._topic) as store,
        ):
            partitions = reader.partitions()
            while store.lock(partitions):  # another sink writes this topic: stand by
                if stop.wait(_LOCK_RETRY_S):
                    return
            positions = store.positions(partitions)
            reader.assign({p: position.next_offset for p, position in positions.items()})
            self._ends = {p: position.next_offset for p, position in positions.items()}
            looked_at_s = time.monotonic()
            while not stop.is_set():
                self._write(store, positions, reader.read(_READ_TIMEOUT_S))
                if time.monotonic() - looked_at_s > _PARTITIONS_CHECK_S:
                    looked_at_s = time.monotonic()
                    if reader.partitions() != partitions:
                        return

    def _write(self, store: Store, positions: dict[int, Position], events: Sequence[Record | End]) -> None:
        rows: dict[sa.Table, list[dict[str, Any]]] = {}
        after: dict[int, int] = {}
        for event in events:
            if isinstance(event, End):
                after[event.partition] = max(event.offset, after.get(event.partition, 0))
                continue
            after[event.partition] = event.offset + 1
            found = self._row_of(self._topic, event)
            if found is not None:
                rows.setdefault(found[0], []).append(found[1])
        moves: Moves = {
            p: (positions[p], replace(positions[p], next_offset=offset, head=None))
            for p, offset in after.items()
            if offset > positions[p].next_offset
        }
        if not moves:
            return
        store.write_records(rows, moves)
        positions |= {p: new for p, (_, new) in moves.items()}
        self._ends |= {p: new.next_offset for p, (_, new) in moves.items()}
        for table, new in rows.items():
            self._metrics.records.labels(table.name).inc(len(new))
        self._pause_s = _PAUSE_MIN_S


class Together:
    """Several sinks as one: each on a thread of its own; when one cannot go on, all stop."""

    def __init__(self, sinks: Mapping[str, Callable[[threading.Event], None]]) -> None:
        self._sinks = sinks
        self._error: SinkError | None = None

    def run(self, stop: threading.Event) -> None:
        """Runs all until `stop` is set. Raises the SinkError that ended one of them."""
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._one, args=(run, stop, ended), name=f"sink-{name}")
            for name, run in self._sinks.items()
        ]
        for thread in threads:
            thread.start()
        while not stop.is_set() and not ended.is_set():
            stop.wait(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _one(self, run: Callable[[threading.Event], None], stop: threading.Event, ended: threading.Event) -> None:
        try:
            run(stop)
        except SinkError as exc:
            self._error = self._error or exc
        finally:
            ended.set()


def _recorded_at(record: Record) -> datetime:
    kind, timestamp_ms = record.message.timestamp()
    return _time(max(0, timestamp_ms) if kind else 0)


def _time(epoch_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=epoch_ms)
