"""The sink's side of Kafka: reads a topic from positions that Postgres gives, committed transactions only.

Nothing is assigned by a group here and no offset is committed: the position is Postgres' alone (which partitions are
this sink's is another matter, `scorer.sink.audit_partitions`). Only the thread that runs it touches the consumer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from scorer.sink.sink_errors import KafkaUnavailable, MissingRange, SinkError
from scorer.sink.topic_offsets import TopicOffsets, kafka_errors

_TIMEOUT_S = 5.0
_MESSAGES_MAX = 1024  # a read; the queue below bounds it in bytes first


@dataclass(frozen=True)
class Record:
    """A record of the topic; `value` None for one without a value. `message` has timestamp and headers."""

    partition: int
    offset: int
    value: bytes | None
    message: Message


@dataclass(frozen=True)
class End:
    """The committed end of a partition was reached: all records before `offset` were handed out."""

    partition: int
    offset: int


class TopicReader:
    """One topic, read with manual assignment. Methods raise KafkaUnavailable when trying again later may help."""

    def __init__(
        self,
        bootstrap_servers: str,
        client_config: Mapping[str, str | int | float | bool],
        topic: str,
        offsets: TopicOffsets,
    ) -> None:
        self._topic = topic
        self._offsets = offsets
        self._brokers_down = False
        self._consumer = Consumer(
            {
                "group.id": "fraud-scorer-sink",  # asked for by the client; never joined, nothing is committed
                # 16 MiB ready plus one fetch of 8 MiB, whatever the backlog (64 MiB and 50 MiB by default).
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
        with kafka_errors():
            metadata = self._consumer.list_topics(self._topic, timeout=_TIMEOUT_S).topics[self._topic]
        if metadata.error is not None or not metadata.partitions:
            raise KafkaUnavailable(f"topic {self._topic} does not exist (yet); `fraud-scorer setup` makes it")
        return sorted(metadata.partitions)

    def assign(self, positions: Mapping[int, int]) -> None:
        """Reads on from these. Raises MissingRange when retention was faster, SinkError for one past the end."""
        starts, ends = self._offsets.starts(positions), self._offsets.committed_ends(positions)
        for partition, position in positions.items():
            if position < starts[partition]:
                raise self._missing(partition, str(position), starts[partition])
            if position > ends[partition]:
                raise SinkError(
                    f"{self._topic}/{partition} ends at {ends[partition]}, before the position {position} in Postgres: "
                    f"the topic was made anew or truncated. Give a new topic its own database, or go on from its end: "
                    f"fraud-scorer audit accept-gap --topic {self._topic} --partition {partition} "
                    f"--to {ends[partition]}"
                )
        with kafka_errors():
            self._consumer.assign([TopicPartition(self._topic, p, position) for p, position in positions.items()])

    def read(self, timeout_s: float) -> list[Record | End]:
        """What has come, in order; waits up to `timeout_s` for the first. Raises MissingRange, SinkError too."""
        with kafka_errors():
            first = self._consumer.poll(timeout_s)
            # poll, then take what is there: consume(n, timeout) would wait for n.
            messages = [] if first is None else [first, *self._consumer.consume(_MESSAGES_MAX, 0)]
        if not messages and self._brokers_down:
            raise KafkaUnavailable("no broker answers")
        events = [self._event(message) for message in messages]
        if events:
            self._brokers_down = False
        return events

    def _event(self, message: Message) -> Record | End:
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is None:
            if partition is None or offset is None:
                raise SinkError(f"a record of {self._topic} came without partition or offset")
            return Record(partition, offset, message.value(), message)
        code = error.code()
        if code == KafkaError._PARTITION_EOF and partition is not None and offset is not None:
            return End(partition, offset)
        if code == KafkaError._AUTO_OFFSET_RESET and partition is not None:
            raise self._missing(partition, "the position", self._offsets.starts([partition])[partition])
        if error.fatal():
            raise SinkError(f"the Kafka client cannot go on: {error.name()}")
        raise KafkaUnavailable(f"reading {self._topic}: {error.name()}")

    def _missing(self, partition: int, position: str, start: int) -> MissingRange:
        return MissingRange(
            f"records {self._topic}/{partition} from {position} up to {start} are gone from the topic and not in "
            f"Postgres. Restore them, or accept the gap: "
            f"fraud-scorer audit accept-gap --topic {self._topic} --partition {partition} --to {start}"
        )

    def _on_error(self, error: KafkaError) -> None:
        # Called from within poll. Only the state is kept: read() reports it.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._brokers_down = True
