"""What a shard reads: its payments partitions and the control topic, buffered by partition within a bound.

One consumer with manual assignment serves the live worker and recovery alike. Buffers are plain tuples; a partition
that runs ahead of the others is paused, so that memory stays bounded whatever the lag.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.journal_record import ControlRange, InputRange
from scorer.errors import FraudScorerError
from scorer.kafka import DENIED, TRANSIENT, Denied, KafkaFailure, describe, present
from scorer.pipeline.records import Batch, ControlRecord, Records

CONSUME_MAX = 4096
CONTROL_BUFFER_MAX = 20_000
# Large records are rare; without this bound a topic full of them would fill the memory, 32,768 records at a time.
BUFFER_BYTES_MAX = 64 * 1024 * 1024
NO_DEADLINE = math.inf
# A leader that has just been elected may not know the partition yet.
_READ_AGAIN = TRANSIENT | {KafkaError.UNKNOWN_TOPIC_OR_PART}


class MissingRange(FraudScorerError):
    """Records that the shard must read are gone from the log."""


class RawRecord(NamedTuple):
    """A record as it was read."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    deadline_ms: float = NO_DEADLINE  # epoch ms until which its decision is worth having


@dataclass(frozen=True)
class Deadlines:
    """Until when a payment's decision is worth having: so long after its timestamp, or as a header of its own says."""

    after_ms: float | None = None
    header: str | None = None

    def of(self, message: Message, timestamp_ms: int) -> float:
        """Epoch ms; NO_DEADLINE without one. A header that holds no number counts as none."""
        headers: Iterable[tuple[str, bytes | None]] = (message.headers() or ()) if self.header else ()  # type: ignore[assignment]
        for name, value in headers:
            if name == self.header and value is not None and value.isdigit():
                return float(value)
        return NO_DEADLINE if self.after_ms is None else timestamp_ms + self.after_ms

    def __bool__(self) -> bool:
        return self.after_ms is not None or self.header is not None


class PartitionBuffer:
    """One partition: its buffer, the next position to hand out, and how far the log is known to reach."""

    __slots__ = ("at_end", "bytes", "event_time_ms", "partition", "paused", "position", "records")

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.position = partition.offset
        self.records: deque[RawRecord] = deque()
        # Event times of the buffer's first records, as far as the batcher has asked for them.
        self.event_time_ms: deque[int] = deque()
        self.bytes = 0
        self.at_end = False
        self.paused = False

    def take(self, count: int) -> list[RawRecord]:
        """Hand out the first `count` records."""
        taken = [self.records.popleft() for _ in range(count)]
        self.bytes -= sum(len(raw.value or b"") for raw in taken)
        for _ in range(min(count, len(self.event_time_ms))):
            self.event_time_ms.popleft()
        return taken


class ShardInputs:
    """Reads payments partitions and the control topic from given positions on."""

    def __init__(
        self,
        consumer: Consumer,
        *,
        payments: str,
        control: str,
        positions: dict[int, int],
        control_position: int,
        buffered_max: int,
        deadlines: Deadlines = Deadlines(),
        fresh: bool = False,
    ) -> None:
        """`positions` maps each payments partition of the shard to the offset to read next.

        `fresh`: no batch has been taken yet, in the whole life of the journal.
        """
        self._consumer = consumer
        self._payments_topic = payments
        self._deadlines = deadlines
        # The first batch of a journal names every partition, those too of which it takes nothing: else a partition not
        # read yet would begin, after a restart, wherever retention has left it by then.
        self._name_all = fresh
        self._records_max = max(1, buffered_max // max(1, len(positions)))
        self.buffers = {
            p: PartitionBuffer(TopicPartition(payments, p, offset)) for p, offset in sorted(positions.items())
        }
        self.control = PartitionBuffer(TopicPartition(control, 0, control_position))
        self._all = [*self.buffers.values(), self.control]
        consumer.assign(
            [
                TopicPartition(buffer.partition.topic, buffer.partition.partition, buffer.position)
                for buffer in self._all
            ]
        )

    @property
    def buffered(self) -> int:
        """Payments read and not yet handed out."""
        return sum(len(buffer.records) for buffer in self.buffers.values())

    def fill(self, wait_s: float) -> int:
        """Read what is there, waiting at most `wait_s` for the first record. Returns how many payments came."""
        # consume(n, t) waits for n records or the whole of t; poll returns with the first one.
        first = self._consumer.poll(wait_s)
        if first is None:
            return 0
        count = self._take([first])
        room = sum(self._records_max - len(buffer.records) for buffer in self.buffers.values() if not buffer.paused)
        count += self._take(self._consumer.consume(max(1, min(CONSUME_MAX, room)), 0))
        self._balance()
        return count

    def _take(self, messages: Iterable[Message]) -> int:
        count = 0
        for message in messages:
            error = message.error()
            is_payment = message.topic() == self._payments_topic
            if error is not None:
                self._on_error(error, message, is_payment)
                continue
            offset = present(message.offset(), "offset")
            timestamp_ms = message.timestamp()[1]
            raw = RawRecord(offset, timestamp_ms, message.key(), message.value())
            if is_payment:
                if self._deadlines:
                    raw = raw._replace(deadline_ms=self._deadlines.of(message, timestamp_ms))
                buffer = self.buffers[present(message.partition(), "partition")]
                count += 1
            else:
                buffer = self.control
            buffer.records.append(raw)
            buffer.bytes += len(raw.value or b"")
            buffer.at_end = False
        return count

    def _on_error(self, error: KafkaError, message: Message, is_payment: bool) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            buffer = self.buffers[present(message.partition(), "partition")] if is_payment else self.control
            buffer.at_end = True
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            # librdkafka gives no topic for this error when it concerns several partitions.
            raise MissingRange(
                f"a position of {message.topic() or self._payments_topic} is outside the log ({error.str()}): "
                "records that were not decided yet are gone. Restore the topic, or accept the loss by starting "
                "a new application (FRAUD_SCORER_WORKER__APPLICATION)"
            )
        elif code in DENIED:
            topic = message.topic() or self._payments_topic
            raise Denied(f"Kafka's authoriser refused: missing Read on topic {topic}")
        elif error.fatal() or not (error.retriable() or code in _READ_AGAIN):
            raise KafkaFailure(f"reading failed: {error.name()}: {error.str()}")

    def _balance(self) -> None:
        """Pause a full buffer, resume a half-empty one."""
        for buffer in self._all:
            limit = CONTROL_BUFFER_MAX if buffer is self.control else self._records_max
            if not buffer.paused and (len(buffer.records) >= limit or buffer.bytes >= BUFFER_BYTES_MAX):
                self._consumer.pause([buffer.partition])
                buffer.paused = True
            elif buffer.paused and len(buffer.records) <= limit // 2 and buffer.bytes <= BUFFER_BYTES_MAX // 2:
                self.resume(buffer)

    def resume(self, buffer: PartitionBuffer) -> None:
        """Read on in a paused buffer, whatever its bound says: a batch that was decided once must fit again."""
        if buffer.paused:
            self._consumer.resume([buffer.partition])
            buffer.paused = False

    def caught_up(self, buffer: PartitionBuffer) -> bool:
        """Whether everything the broker has announced is in the buffer (or handed out)."""
        if buffer.at_end:
            return True
        known = buffer.records[-1].offset + 1 if buffer.records else buffer.position
        try:
            _, high = self._consumer.get_watermark_offsets(buffer.partition, cached=True)
        except KafkaException as exc:
            raise KafkaFailure(f"watermarks cannot be read: {describe(exc)}") from exc
        # Below zero: no fetch has been answered yet, so nothing is known.
        return 0 <= high <= known

    def earliest_deadline_ms(self, counts: dict[int, int]) -> float:
        """The first deadline among the first `counts[p]` records of each partition, epoch ms."""
        if not self._deadlines:
            return NO_DEADLINE
        rows = (raw for p, count in counts.items() for raw in islice(self.buffers[p].records, count))
        return min((raw.deadline_ms for raw in rows), default=NO_DEADLINE)

    def batch(self, counts: dict[int, int], control_count: int) -> Batch:
        """Hand out the first `counts[p]` records of each partition and the first `control_count` control records."""
        rows: list[RawRecord] = []
        partitions: list[int] = []
        ranges = []
        for p, buffer in self.buffers.items():
            count = counts.get(p, 0)
            if count == 0 and not self._name_all:
                continue
            taken = buffer.take(count)
            end = taken[-1].offset + 1 if taken else buffer.position
            ranges.append(InputRange(partition=p, start=buffer.position, end=end))
            buffer.position = end
            rows += taken
            partitions += [p] * count
        self._name_all = False
        start = self.control.position
        control = self.control.take(control_count)
        if control:
            self.control.position = control[-1].offset + 1
        self._balance()
        return Batch(
            records=records_of(partitions, rows),
            inputs=tuple(ranges),
            control=[ControlRecord(raw.offset, raw.key, raw.value) for raw in control],
            control_range=ControlRange(start=start, end=self.control.position),
        )

    def lag(self) -> int:
        """Payments known to the broker and not yet handed out (offsets, so transaction markers count too)."""
        total = 0
        for buffer in self.buffers.values():
            _, high = self._consumer.get_watermark_offsets(buffer.partition, cached=True)
            total += max(0, high - buffer.position) if high >= 0 else 0
        return total

    def close(self) -> None:
        """Leave the consumer."""
        self._consumer.close()


def records_of(partitions: Sequence[int], rows: Sequence[RawRecord]) -> Records:
    """Columns of raw records."""
    n = len(rows)
    return Records(
        partition=np.array(partitions, dtype=np.int32).reshape(n),
        offset=np.fromiter((raw.offset for raw in rows), np.int64, n),
        timestamp_ms=np.fromiter((raw.timestamp_ms for raw in rows), np.int64, n),
        keys=[raw.key for raw in rows],
        values=[raw.value for raw in rows],
    )
