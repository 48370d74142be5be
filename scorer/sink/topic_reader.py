"""The sink's side of Kafka: reads a topic from positions that Postgres gives, committed transactions only.

Nothing is assigned by a group here and no offset is committed: the position is Postgres' alone (which partitions are
this sink's is another matter, `scorer.sink.audit_partitions`). Only the thread that runs it touches the consumer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, Message, TopicPartition

from scorer import kafka
from scorer.runtime.settings import KafkaSettings
from scorer.sink.sink_errors import KafkaUnavailable, MissingRange, SinkError, kafka_errors
from scorer.sink.topic_offsets import TopicOffsets

# When its queue is full the client looks again after a second by default: for as long there would be nothing to write.
_FETCH: dict[str, Any] = {"fetch.max.bytes": 8 * 1024 * 1024, "fetch.queue.backoff.ms": 10}
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

    def __init__(self, settings: KafkaSettings, topic: str, offsets: TopicOffsets) -> None:
        self._topic = topic
        self._offsets = offsets
        self._brokers_down = False
        self._consumer = kafka.reader(
            settings,
            group="fraud-scorer-sink",  # asked for by the client; never joined, nothing is committed
            fetch_wait_ms=500,
            # 16 MiB ready plus one fetch of 8 MiB, whatever the backlog (64 MiB and 50 MiB by default).
            memory_kib=16_384,
            on_error=self._on_error,
            **_FETCH,
        )

    def close(self) -> None:
        """Leaves Kafka. Nothing is committed by it."""
        self._consumer.close()

    def assign(self, positions: Mapping[int, int]) -> None:
        """Reads on from these. Raises MissingRange when retention was faster, SinkError for one past the end."""
        starts, ends = self._offsets.starts(positions), self._offsets.stable_ends(positions)
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
        with kafka_errors(), kafka.surfaced():
            self._consumer.assign([TopicPartition(self._topic, p, position) for p, position in positions.items()])

    def read(self, timeout_s: float) -> list[Record | End]:
        """What has come, in order; waits up to `timeout_s` for the first. Raises MissingRange, SinkError too."""
        with kafka_errors():
            messages = kafka.take(self._consumer, timeout_s, messages_max=_MESSAGES_MAX)
            if not messages and self._brokers_down:
                raise KafkaUnavailable("no broker answers")
            events = [self._event(message) for message in messages]
        if events:
            self._brokers_down = False
        return events

    def _event(self, message: Message) -> Record | End:
        error, partition = message.error(), message.partition()
        if error is None:
            offset = kafka.present(message.offset(), "offset")
            return Record(kafka.present(partition, "partition"), offset, message.value(), message)
        if error.code() == KafkaError._PARTITION_EOF:
            return End(kafka.present(partition, "partition"), kafka.present(message.offset(), "offset"))
        if kafka.log_was_cut(error) and partition is not None and partition >= 0:
            end = self._offsets.stable_ends([partition])[partition]
            raise SinkError(
                f"{self._topic}/{partition} was cut below what is in Postgres already ({error.str()}), by an election "
                f"of a leader that lacked records. Restore it, or go on from its end: "
                f"fraud-scorer audit accept-gap --topic {self._topic} --partition {partition} --to {end}"
            )
        failed = kafka.read_failure(error, self._topic)
        if isinstance(failed, kafka.OutOfRange) and partition is not None and partition >= 0:
            raise self._missing(partition, "the position", self._offsets.starts([partition])[partition])
        raise failed

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
