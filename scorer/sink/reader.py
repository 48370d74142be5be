"""The sink's side of Kafka: reads the audit topic from positions that Postgres gives, committed transactions only.

No consumer group is joined and no offset is committed: the position is Postgres' alone.

Offsets of the topic are asked through an admin client: `Consumer.get_watermark_offsets` keeps the GIL while it waits and outstays
its timeout when the broker is away (confluent-kafka-python#412, #413); seen here, it hung the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from scorer.sink.errors import KafkaUnavailable, MissingRange, SinkError

_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_TIMEOUT_S = 5.0
_MESSAGES_MAX = 1024  # a read; the queue below bounds it in bytes first
_TRANSIENT_CODES = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._AUTHENTICATION,  # credentials are rotated while processes run
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)


@dataclass(frozen=True)
class Record:
    """A record of the audit topic; `value` None for one without a value."""

    partition: int
    offset: int
    value: bytes | None


@dataclass(frozen=True)
class End:
    """The committed end of a partition was reached: all records before `offset` were handed out."""

    partition: int
    offset: int


class AuditReader:
    """A consumer of one topic with manual assignment. Methods raise KafkaUnavailable when trying again later may help."""

    def __init__(
        self, bootstrap_servers: str, client_config: Mapping[str, str | int | float | bool], topic: str
    ) -> None:
        self._topic = topic
        self._probe: dict[TopicPartition, Future[Any]] = {}
        self._admin = AdminClient({**client_config, "bootstrap.servers": bootstrap_servers})
        self._brokers_down = False
        self._consumer = Consumer(
            {
                "group.id": "fraud-scorer-sink",  # asked for by the client; never joined, nothing is committed
                # 16 MiB ready plus one fetch of 8 MiB: the sink's share of memory, whatever the backlog (64 MiB by default).
                "queued.max.messages.kbytes": 16_384,
                "fetch.max.bytes": 8 * 1024 * 1024,
                "max.partition.fetch.bytes": 1024 * 1024,
                **client_config,
                "bootstrap.servers": bootstrap_servers,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "error_cb": self._on_error,
            }
        )

    def close(self) -> None:
        """Leaves Kafka. Nothing is committed by it."""
        self._consumer.close()

    def partitions(self) -> list[int]:
        """The partitions of the topic. Raises KafkaUnavailable when there is no such topic."""
        with _kafka_errors():
            metadata = self._consumer.list_topics(self._topic, timeout=_TIMEOUT_S).topics[self._topic]
        if metadata.error is not None or not metadata.partitions:
            raise KafkaUnavailable(f"topic {self._topic} does not exist (yet); `fraud-scorer setup` makes it")
        self._brokers_down = False
        return sorted(metadata.partitions)

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Reads on from these offsets. Raises MissingRange when retention was faster, SinkError when one lies past the end."""
        lows, highs = self._offsets(offsets, _EARLIEST), self._offsets(offsets, _LATEST)
        for partition, offset in offsets.items():
            if offset < lows[partition]:
                raise self._missing(partition, offset, lows[partition])
            if offset > highs[partition]:
                raise SinkError(
                    f"{self._topic}/{partition} ends at {highs[partition]}, before the position {offset} in Postgres: the topic "
                    f"was made anew or truncated. Give a new topic a database of its own, or use scorer.sink.set_position"
                )
        with _kafka_errors():
            self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in offsets.items()])

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The end of each partition, records of open transactions included, asked of the broker. Serves any thread.

        Not the last stable offset: a commit returns before its markers are written, and until then the stable end stands before the
        records that were just committed.
        """
        return self._offsets(partitions, _LATEST, IsolationLevel.READ_UNCOMMITTED)

    def probe_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Committed ends as the last probe found them, and starts the next one; never waits. Empty while one is under way."""
        if self._probe:
            if not all(future.done() for future in self._probe.values()):
                return {}
            found = {
                place.partition: future.result().offset
                for place, future in self._probe.items()
                if future.exception() is None
            }
            self._probe = {}
            return found
        self._probe = self._ask(partitions, _LATEST, IsolationLevel.READ_COMMITTED)
        return {}

    def _offsets(
        self,
        partitions: Iterable[int],
        which: OffsetSpec,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[int, int]:
        with _kafka_errors():
            asked = self._ask(partitions, which, isolation)
            try:
                return {place.partition: future.result(2 * _TIMEOUT_S).offset for place, future in asked.items()}
            except FutureTimeoutError as exc:
                raise KafkaUnavailable(f"{self._topic}: no answer about its offsets") from exc

    def _ask(
        self, partitions: Iterable[int], which: OffsetSpec, isolation: IsolationLevel
    ) -> dict[TopicPartition, Future[Any]]:
        places = {TopicPartition(self._topic, partition): which for partition in partitions}
        asked: dict[TopicPartition, Future[Any]] = self._admin.list_offsets(
            places, isolation_level=isolation, request_timeout=_TIMEOUT_S
        )
        return asked

    def read(self, timeout_s: float) -> list[Record | End]:
        """What has come, in order; waits up to `timeout_s` for the first. Raises MissingRange, SinkError, KafkaUnavailable."""
        first = self._consumer.poll(timeout_s)
        if first is None:
            if self._brokers_down:
                raise KafkaUnavailable("no broker answers")
            return []
        # poll, then take what is there: consume(n, timeout) would wait for n.
        try:
            messages = [first, *self._consumer.consume(_MESSAGES_MAX, 0)]
        except KafkaException as exc:
            raise SinkError(f"reading {self._topic} failed: {exc.args[0].name()}") from exc
        events = []
        for message in messages:
            event = self._event(message)
            if event is not None:
                events.append(event)
        if events:
            self._brokers_down = False
        return events

    def _event(self, message: Message) -> Record | End | None:
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if error is None and partition is not None and offset is not None:
            return Record(partition, offset, message.value())
        if error is None:
            raise SinkError(f"a record of {self._topic} came without partition or offset")
        code = error.code()
        if code == KafkaError._PARTITION_EOF and partition is not None and offset is not None:
            return End(partition, offset)
        if code == KafkaError._AUTO_OFFSET_RESET and partition is not None:
            low = self._offsets([partition], _EARLIEST)[partition]
            raise self._missing(partition, offset if offset is not None and offset >= 0 else None, low)
        if error.fatal():
            raise SinkError(f"the Kafka client cannot go on: {error.name()}")
        if error.retriable() or code in _TRANSIENT_CODES:
            raise KafkaUnavailable(f"reading {self._topic}: {error.name()}")
        raise SinkError(f"reading {self._topic}/{partition} failed: {error.name()}")

    def _missing(self, partition: int, offset: int | None, low: int) -> MissingRange:
        start = "the stored position" if offset is None else str(offset)
        return MissingRange(
            f"audit records {self._topic}/{partition} from {start} up to {low} are gone from the topic and not in Postgres. "
            f"Restore them, or accept the gap with scorer.sink.set_position(url, {self._topic!r}, {partition}, {low})"
        )

    def _on_error(self, error: KafkaError) -> None:
        # Called from within poll. Only the state is kept: read() reports it.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._brokers_down = True


@contextmanager
def _kafka_errors() -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        error = exc.args[0]
        if error.retriable() or error.code() in _TRANSIENT_CODES:
            raise KafkaUnavailable(f"Kafka: {error.name()}") from exc
        raise SinkError(f"Kafka refuses: {error.name()}") from exc
