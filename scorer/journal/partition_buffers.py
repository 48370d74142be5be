"""What a shard reads: its payments partitions and the topics control and labels, buffered within a bound.

One consumer with manual assignment serves the live worker and recovery alike. Buffers are plain tuples; a partition
that runs ahead of the others is paused, so that memory stays bounded whatever the lag.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, TopicPartition

from schemas.journal_record import ControlRange, InputRange, JournalRecord, Sources
from scorer.errors import FraudScorerError
from scorer.kafka import (
    APPEND_TIME_WAY_OUT,
    Away,
    KafkaFailure,
    OutOfRange,
    Reader,
    SourceChanged,
    describe,
    log_was_cut,
    present,
    read_failure,
)
from scorer.pipeline.records import Batch, ControlRecord, Records

CONSUME_MAX = 4096
_offset = attrgetter("offset")
CONTROL_BUFFER_MAX = 20_000
# Large records are rare; without this bound a topic full of them would fill the memory, 32,768 records at a time.
BUFFER_BYTES_MAX = 64 * 1024 * 1024
NO_DEADLINE = math.inf


class MissingRange(FraudScorerError):
    """Records that the shard must read are gone from the log."""


class RawRecord(NamedTuple):
    """A record as it was read."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    deadline_ms: float = NO_DEADLINE  # epoch ms until which its decision is worth having
    created: bool = False  # its timestamp is its producer's (CreateTime), not the broker's


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
    """One partition: its records, the next position to hand out, and how far it was read.

    `reached`: the offset to read next. Transaction markers and aborted records take offsets too, so it can stand beyond
    the last record. `epoch`: leader epoch of the newest record read, -1 before the first; `epochs`: with which offset
    it and those before began, as far as batches may still ask for them. `created_end`: the offset after the newest one
    with a timestamp of its producer.
    """

    __slots__ = (
        "at_end",
        "bytes",
        "created_end",
        "epoch",
        "epochs",
        "event_time_ms",
        "partition",
        "paused",
        "position",
        "reached",
        "records",
    )

    def __init__(self, partition: TopicPartition, offset: int, epoch: int = -1) -> None:
        self.partition = partition
        self.position = self.reached = offset
        self.epoch = epoch
        self.created_end = 0
        self.epochs: list[tuple[int, int]] = []  # first offset, epoch; rising, one for each election
        self.records: deque[RawRecord] = deque()
        # Event times of the buffer's first records, as far as the batcher has asked for them.
        self.event_time_ms: deque[int] = deque()
        self.bytes = 0
        self.at_end = False
        self.paused = False

    def take_until(self, end: int) -> list[RawRecord]:
        """Hand out the records before offset `end`, which the next batch begins with."""
        count = len(self.records)
        if end < self.reached:
            count = bisect_left(self.records, end, key=_offset)
        taken = [self.records.popleft() for _ in range(count)]
        self.position = end
        if len(self.epochs) > 1:
            del self.epochs[: max(0, sum(first < end for first, _ in self.epochs) - 1)]
        self.bytes -= sum(len(raw.value or b"") for raw in taken)
        for _ in range(min(count, len(self.event_time_ms))):
            self.event_time_ms.popleft()
        return taken

    @property
    def next(self) -> TopicPartition:
        """Where to read on, with the epoch of the record before, so that the client recognises a log that was cut."""
        topic, partition = self.partition.topic, self.partition.partition
        if self.epoch < 0:
            return TopicPartition(topic, partition, self.reached)
        return TopicPartition(topic, partition, self.reached, leader_epoch=self.epoch)

    def read(self, messages: Iterable[Message]) -> None:
        """Note the leader epochs of records that came."""
        for message in messages:
            epoch = message.leader_epoch()
            if epoch is not None and epoch > self.epoch:
                self.epoch = epoch
                self.epochs.append((present(message.offset(), "offset"), epoch))

    def epoch_before(self, offset: int) -> int:
        """Leader epoch of the newest record read before `offset`; -1 when it is not known."""
        return max((epoch for first, epoch in self.epochs if first < offset), default=-1)

    def end_after(self, count: int) -> int:
        """Where a batch ends that takes the first `count` records: past what is no record, when it takes them all."""
        if count == len(self.records):
            return self.reached
        return self.records[count - 1].offset + 1 if count else self.position

    def move(self, offset: int) -> None:
        """Drop what is buffered and go on at `offset`."""
        self.records.clear()
        self.event_time_ms.clear()
        self.bytes, self.epoch = 0, -1
        self.epochs.clear()
        self.position = self.reached = offset


@dataclass(frozen=True)
class _CreatedAllowed:
    """Which records may have a timestamp of their producer: those before `ends`, by topic and partition; None: all."""

    ends: Mapping[tuple[str, int], int] | None
    ms_max: int | None

    def check(self, buffer: PartitionBuffer, end: int) -> None:
        """Raise SourceChanged when one of the records before `end` may not."""
        if self.ends is None:
            return
        topic, partition = buffer.partition.topic, buffer.partition.partition
        allowed = self.ends.get((topic, partition), 0)
        if buffer.created_end <= max(allowed, buffer.position):
            return
        for raw in buffer.records:
            if raw.offset >= end:
                return
            if raw.created and raw.offset >= allowed:
                raise SourceChanged(
                    f"{topic}/{partition} offset {raw.offset} has a timestamp of its producer: the topic's "
                    f"message.timestamp.type was set to CreateTime. {APPEND_TIME_WAY_OUT}"
                )


class ShardInputs:
    """Reads payments partitions and the topics control and labels from given positions on."""

    def __init__(
        self,
        consumer: Reader,
        *,
        payments: str,
        control: str,
        labels: str,
        positions: Mapping[int, int],
        control_position: int,
        labels_position: int,
        buffered_max: int,
        epochs: Mapping[int, int] | None = None,
        sources: Sources | None = None,
        deadlines: Deadlines = Deadlines(),
        fresh: bool = False,
    ) -> None:
        """`positions` maps each payments partition of the shard to the offset to read next.

        `epochs`: leader epochs of the records before those, where known: the client compares them with the log, and a
        log that was cut is an error (KIP-320). `sources`: ids of the topics, carried on by every batch.
        `fresh`: no batch has been taken yet, in the whole life of the journal.
        """
        self._consumer = consumer
        self._payments_topic = payments
        self._deadlines = deadlines
        # The first batch of a journal names every partition, those too of which it takes nothing: else a partition not
        # read yet would begin, after a restart, wherever retention has left it by then.
        self._name_all = fresh
        self._buffered_max = buffered_max
        self.sources = sources
        self.buffers = {
            p: PartitionBuffer(TopicPartition(payments, p), offset, (epochs or {}).get(p, -1))
            for p, offset in sorted(positions.items())
        }
        self.control = PartitionBuffer(TopicPartition(control, 0), control_position)
        self.labels = PartitionBuffer(TopicPartition(labels, 0), labels_position)
        self._created = _CreatedAllowed({}, 0)
        self._assign()

    def _assign(self) -> None:
        """(Re)assign every partition where it was read to; what is buffered stays."""
        self._all = [*self.buffers.values(), self.control, self.labels]
        self._records_max = max(1, self._buffered_max // max(1, len(self.buffers)))
        for buffer in self._all:
            buffer.paused = buffer.at_end = False
        self._consumer.assign([buffer.next for buffer in self._all])

    def add(self, positions: Mapping[int, int]) -> None:
        """Read further partitions of the payments topic, each from its offset on; the next batch names them."""
        for p, offset in positions.items():
            self.buffers[p] = PartitionBuffer(TopicPartition(self._payments_topic, p), offset)
        self.buffers = dict(sorted(self.buffers.items()))
        self._name_all = True
        self._assign()

    def move(self, positions: Mapping[int, int], control_position: int, labels_position: int | None) -> None:
        """Go on at other positions (None: at the same): what an operator accepted. What is buffered is dropped."""
        for p, offset in positions.items():
            if p not in self.buffers:
                self.buffers[p] = PartitionBuffer(TopicPartition(self._payments_topic, p), offset)
            self.buffers[p].move(offset)
        self.buffers = dict(sorted(self.buffers.items()))
        self.control.move(control_position)
        self.labels.move(self.labels.position if labels_position is None else labels_position)
        self._assign()

    def allow_created(self, ends: Sequence[int] | None, now_ms: int | None) -> None:
        """From here on records are handed out only with the broker's timestamp, but for those before `ends`, in the
        order of `all_buffers`: they were there when the topics were found to have LogAppendTime, and what their
        producers wrote counts as at most `now_ms`. None and None: all are, with what their producers wrote.
        """
        if ends is None:
            self._created = _CreatedAllowed(None, None)
            return
        places = [(buffer.partition.topic, buffer.partition.partition) for buffer in self._all]
        self._created = _CreatedAllowed(dict(zip(places, ends, strict=True)), now_ms)

    @property
    def all_buffers(self) -> Sequence[PartitionBuffer]:
        """Those of the payments partitions, then control, then labels."""
        return tuple(self._all)

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

    def _take(self, messages: Sequence[Message]) -> int:
        count = 0
        last: dict[PartitionBuffer, Message] = {}
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_error(error, message)
                continue
            offset = present(message.offset(), "offset")
            kind, timestamp_ms = message.timestamp()
            raw = RawRecord(
                offset, timestamp_ms, message.key(), message.value(), created=kind != TIMESTAMP_LOG_APPEND_TIME
            )
            buffer = self._buffer_of(message)
            if buffer.partition.topic == self._payments_topic:
                if self._deadlines:
                    raw = raw._replace(deadline_ms=self._deadlines.of(message, timestamp_ms))
                count += 1
            buffer.records.append(raw)
            buffer.bytes += len(raw.value or b"")
            last[buffer] = message
            buffer.reached, buffer.at_end = offset + 1, False
            if raw.created:
                buffer.created_end = buffer.reached
        for buffer, message in last.items():
            newest = message.leader_epoch()
            if newest is not None and newest > buffer.epoch:  # seldom: with the first records and after an election
                buffer.read(m for m in messages if m.error() is None and self._buffer_of(m) is buffer)
        return count

    def _buffer_of(self, message: Message) -> PartitionBuffer:
        topic = message.topic()
        if topic == self._payments_topic:
            return self.buffers[present(message.partition(), "partition")]
        return self.labels if topic == self.labels.partition.topic else self.control

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            buffer = self._buffer_of(message)
            buffer.at_end = True
            buffer.reached = max(buffer.reached, present(message.offset(), "offset"))
            return
        # The client gives no topic for an error that concerns several partitions.
        topic = message.topic() or self._payments_topic
        if log_was_cut(error):
            known = (
                f"{b.partition.topic}/{b.partition.partition} to offset {b.reached} under leader epoch {b.epoch}"
                for b in self._all
                if b.partition.topic == topic and message.partition() in (None, -1, b.partition.partition)
            )
            raise SourceChanged(
                f"the log of {topic} was cut below what was read already ({error.str()}), by an election of a leader "
                f"that lacked records; read was {', '.join(known)}. `fraud-scorer recover` shows what is missing"
            )
        failed = read_failure(error, topic)
        if isinstance(failed, OutOfRange):
            raise MissingRange(
                f"{failed}: records may be gone that were not decided yet. `fraud-scorer recover` shows which, and can "
                "accept that"
            )
        if not isinstance(failed, Away):  # what passes by itself is waited for
            raise failed

    def _balance(self) -> None:
        """Pause a full buffer, resume a half-empty one."""
        for buffer in self._all:
            limit = CONTROL_BUFFER_MAX if buffer in (self.control, self.labels) else self._records_max
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
        try:
            _, high = self._consumer.get_watermark_offsets(buffer.partition, cached=True)
        except KafkaException as exc:
            raise KafkaFailure(f"watermarks cannot be read: {describe(exc)}") from exc
        # Below zero: no fetch has been answered yet, so nothing is known.
        return 0 <= high <= buffer.reached

    def deadlines_ms(self, counts: dict[int, int]) -> npt.NDArray[np.float64] | None:
        """Deadlines of the first `counts[p]` records of each partition, epoch ms, in the order in which `batch` hands
        them out; None when there are no deadlines."""
        if not self._deadlines:
            return None
        rows = (raw for p, buffer in self.buffers.items() for raw in islice(buffer.records, counts.get(p, 0)))
        return np.fromiter((raw.deadline_ms for raw in rows), np.float64)

    def batch(self, counts: dict[int, int], control_count: int, labels_count: int) -> Batch:
        """Hand out the first `counts[p]` records of each partition and the first so many control records and labels.

        Raises SourceChanged when one has a timestamp of its producer that is not allowed (see `allow_created`).
        """
        ranges = []
        for p, buffer in self.buffers.items():
            end = buffer.end_after(counts.get(p, 0))
            if end > buffer.position or self._name_all:
                epoch = buffer.epoch if buffer.epoch >= 0 else None
                ranges.append(InputRange(partition=p, start=buffer.position, end=end, epoch=epoch))
        self._name_all = False
        control = ControlRange(start=self.control.position, end=self.control.end_after(control_count))
        labels = ControlRange(start=self.labels.position, end=self.labels.end_after(labels_count))
        for buffer, end in (
            *((self.buffers[r.partition], r.end) for r in ranges),
            (self.control, control.end),
            (self.labels, labels.end),
        ):
            self._created.check(buffer, end)
        return self._taken(ranges, control, labels, created_ms_max=self._created.ms_max)

    def batch_again(self, record: JournalRecord) -> Batch:
        """Hand out the very ranges of a journal record, all of which must have been read (see `holds`).

        Raises SourceChanged when the log holds later records there than the ones that were decided.
        """
        self._name_all = False
        for r in record.inputs:
            buffer = self.buffers[r.partition]
            now = buffer.epoch_before(r.end)
            if r.epoch is not None and now > r.epoch:
                raise SourceChanged(
                    f"{self._payments_topic}/{r.partition}: offsets {r.start} to {r.end - 1} were decided under leader "
                    f"epoch {r.epoch}, and the log holds records of epoch {now} there: it was cut, by an election of a "
                    "leader that lacked records, and filled again. `fraud-scorer recover` shows from where on"
                )
        return self._taken(record.inputs, record.control, record.labels, created_ms_max=record.created_ms_max)

    def holds(self, record: JournalRecord) -> bool:
        """Whether its ranges were read to their ends."""
        return (
            record.control.end <= max(self.control.reached, self.control.position)
            and (record.labels is None or record.labels.end <= max(self.labels.reached, self.labels.position))
            and all(r.end <= self.buffers[r.partition].reached for r in record.inputs)
        )

    def _taken(
        self,
        ranges: Sequence[InputRange],
        control_range: ControlRange,
        labels_range: ControlRange | None,
        *,
        created_ms_max: int | None,
    ) -> Batch:
        """`created_ms_max`: what a producer's timestamp counts as at most; None: as it is, as it did in releases that
        did not ask whose it is."""
        rows: list[RawRecord] = []
        partitions: list[int] = []
        for r in ranges:
            taken = self.buffers[r.partition].take_until(r.end)
            rows += taken
            partitions += [r.partition] * len(taken)
        control = self.control.take_until(control_range.end)
        labels = [] if labels_range is None else self.labels.take_until(labels_range.end)
        self._balance()
        if created_ms_max is not None:
            if any(raw.created for raw in rows):
                rows = [
                    raw._replace(timestamp_ms=min(raw.timestamp_ms, created_ms_max)) if raw.created else raw
                    for raw in rows
                ]
            else:
                created_ms_max = None
        return Batch(
            records=records_of(partitions, rows),
            inputs=tuple(ranges),
            control=[ControlRecord(raw.offset, raw.key, raw.value) for raw in control],
            control_range=control_range,
            labels=[ControlRecord(raw.offset, raw.key, raw.value) for raw in labels],
            labels_range=labels_range,
            created_ms_max=created_ms_max,
            sources=self.sources,
        )

    @property
    def beyond_records(self) -> bool:
        """Whether what was read beyond the last batch holds no record: only transaction markers or aborted records."""
        return any(not buffer.records and buffer.reached > buffer.position for buffer in self._all)

    def lag(self) -> int:
        """Offsets that the broker has beyond what was decided. Markers and aborted records do not count once read."""
        return sum(self.lag_of(p) for p in self.buffers)

    def lag_of(self, partition: int) -> int:
        """The same for one payments partition."""
        buffer = self.buffers[partition]
        _, high = self._consumer.get_watermark_offsets(buffer.partition, cached=True)
        return len(buffer.records) + max(0, high - buffer.reached)

    def oldest_ms(self, partition: int) -> int | None:
        """Broker timestamp of the oldest record of a payments partition that waits here; None when none does."""
        records = self.buffers[partition].records
        return records[0].timestamp_ms if records else None

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
