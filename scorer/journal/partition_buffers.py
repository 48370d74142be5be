"""What a shard reads: its payments partitions and the topics control and labels, buffered within a bound.

One consumer with manual assignment serves the live worker and recovery alike. Buffers hold the blocks that were read; a
partition that runs ahead of the others is paused, so that memory stays bounded whatever the lag.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, Message, TopicPartition

from schemas.journal_record import BatchOrder, ControlRange, InputRange, Sources
from scorer.errors import FraudScorerError
from scorer.journal.record_queue import RecordQueue
from scorer.kafka import (
    APPEND_TIME_WAY_OUT,
    NO_TRACES,
    Away,
    FlatReader,
    LastRecord,
    OutOfRange,
    RecordBlock,
    SourceChanged,
    log_was_cut,
    present,
    read_failure,
    surfaced,
)
from scorer.pipeline.records import Batch, ControlRecord, Records
from scorer.runtime.trace_context import Carried

CONSUME_MAX = 4096
CONTROL_BUFFER_MAX = 20_000
# Large records are rare; without this bound a topic full of them would fill the memory, 32,768 records at a time.
BUFFER_BYTES_MAX = 64 * 1024 * 1024
NO_DEADLINE = math.inf
_NO_TIMES: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)


class MissingRange(FraudScorerError):
    """Records that the shard must read are gone from the log."""


@dataclass(frozen=True)
class Deadlines:
    """Until when a payment's decision is worth having: so long after its timestamp, or as a header of its own says."""

    after_ms: float | None = None
    header: str | None = None

    def of(self, block: RecordBlock) -> npt.NDArray[np.float64]:
        """Of each record, epoch ms; NO_DEADLINE without one. A header that holds no number counts as none."""
        after_ms = NO_DEADLINE if self.after_ms is None else self.after_ms
        found: npt.NDArray[np.float64] = block.timestamp_ms + np.float64(after_ms)
        numbers = block.numbers
        return found if numbers is None else np.where(np.isnan(numbers), found, numbers)

    def __bool__(self) -> bool:
        return self.after_ms is not None or self.header is not None


class PartitionBuffer:
    """One partition: its records, the next position to hand out, and how far it was read.

    `event_time_ms`: int64, event times of the first records, as far as the batcher has asked for them.

    `reached`: the offset to read next. Transaction markers and aborted records take offsets too, so it can stand beyond
    `records_end`, the offset after the newest record read; `taken_end` is that of the newest one handed out.
    `epoch`: leader epoch of the newest record read, -1 before the first; `epochs`: with which offset it and those
    before began, as far as batches may still ask for them. `created_end`: the offset after the newest one with a
    timestamp of its producer.
    """

    __slots__ = (
        "at_end",
        "created_end",
        "epoch",
        "epochs",
        "event_time_ms",
        "partition",
        "paused",
        "position",
        "reached",
        "records",
        "records_end",
        "taken_end",
    )

    def __init__(self, partition: TopicPartition, offset: int, last: LastRecord | None = None) -> None:
        """`last`: the newest record before `offset`, where it is known."""
        self.partition = partition
        self.position = self.reached = offset
        self.records_end = self.taken_end = 0 if last is None else last.end
        self.epoch = -1 if last is None else last.epoch
        self.created_end = 0
        # First offset, epoch; rising, one for each election.
        self.epochs: list[tuple[int, int]] = [] if last is None else [(last.end - 1, last.epoch)]
        self.records = RecordQueue(partition.topic, partition.partition)
        self.event_time_ms = _NO_TIMES
        self.at_end = False
        self.paused = False

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.partition.topic, self.partition.partition

    @property
    def bytes(self) -> int:
        """What the records take in memory, about."""
        return self.records.bytes

    def take_until(self, end: int) -> RecordBlock:
        """Hand out the records before offset `end`, which the next batch begins with."""
        count = len(self.records) if end >= self.reached else self.records.before(end)
        self.position, self.taken_end = end, self.records_end_after(count)
        if len(self.epochs) > 1:
            del self.epochs[: max(0, sum(first < end for first, _ in self.epochs) - 1)]
        self.event_time_ms = self.event_time_ms[count:]
        return self.records.take(count)

    @property
    def next(self) -> TopicPartition:
        """Where to read on, with the epoch of the record before, so that the client recognises a log that was cut.

        The client compares that epoch's end with the position, which therefore is the one after the record: markers
        that follow it may be of a later leader.
        """
        topic, partition = self.partition.topic, self.partition.partition
        if self.epoch < 0:
            return TopicPartition(topic, partition, self.reached)
        return TopicPartition(topic, partition, self.records_end, leader_epoch=self.epoch)

    @property
    def last_taken(self) -> LastRecord | None:
        """The newest record handed out, where its epoch is known."""
        epoch = self.epoch_before(self.taken_end)
        return None if epoch < 0 else LastRecord(self.taken_end, epoch)

    def read(self, block: RecordBlock) -> None:
        """Add what was read next. Raises SourceChanged when it stands where no record was before."""
        if block.offset[0] < self.reached:
            raise SourceChanged(
                f"{self.partition.topic}/{self.partition.partition}: a record at offset {block.offset[0]}, where none "
                f"was when the log was read to offset {self.reached}: it was cut, by an election of a leader that "
                "lacked records, and filled again. `fraud-scorer recover` shows from where on"
            )
        self.records.append(block)
        self.reached, self.at_end = int(block.offset[-1]) + 1, False
        self.records_end = self.reached
        if block.created.any():
            self.created_end = int(block.offset[np.flatnonzero(block.created)[-1]]) + 1
        if block.epoch.max() > self.epoch:  # seldom: with the first records and after an election
            for offset, epoch in zip(block.offset.tolist(), block.epoch.tolist(), strict=True):
                if epoch > self.epoch:
                    self.epoch = epoch
                    self.epochs.append((offset, epoch))

    def epoch_before(self, offset: int) -> int:
        """Leader epoch of the newest record read before `offset`; -1 when it is not known."""
        return max((epoch for first, epoch in self.epochs if first < offset), default=-1)

    def end_after(self, count: int) -> int:
        """Where a batch ends that takes the first `count` records: past what is no record, when it takes them all."""
        if count == len(self.records):
            return self.reached
        return self.records.offset_of(count - 1) + 1 if count else self.position

    def records_end_after(self, count: int) -> int:
        """The offset after the last record of such a batch, or of the batches before it when it takes none."""
        if count == len(self.records):
            return self.records_end
        return self.records.offset_of(count - 1) + 1 if count else self.taken_end

    def range_after(self, count: int) -> InputRange:
        """What a batch reads that takes the first `count` records."""
        end, records_end = self.end_after(count), self.records_end_after(count)
        known = self.epoch >= 0
        return InputRange(
            partition=present(self.partition.partition, "partition"),
            start=self.position,
            end=end,
            epoch=self.epoch if known else None,
            records_end=records_end if known and records_end < end else None,
        )

    def move(self, offset: int) -> None:
        """Drop what is buffered and go on at `offset`."""
        self.records.clear()
        self.event_time_ms = _NO_TIMES
        self.epoch = -1
        self.epochs.clear()
        self.records_end = self.taken_end = 0
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
        block = buffer.records.part(0, buffer.records.before(end))
        refused = block.offset[block.created & (block.offset >= allowed)]
        if len(refused):
            raise SourceChanged(
                f"{topic}/{partition} offset {refused[0]} has a timestamp of its producer: the topic's "
                f"message.timestamp.type was set to CreateTime. {APPEND_TIME_WAY_OUT}"
            )


class ShardInputs:
    """Reads payments partitions and the topics control and labels from given positions on."""

    def __init__(
        self,
        reader: FlatReader,
        *,
        payments: str,
        control: str,
        labels: str,
        positions: Mapping[int, int],
        control_position: int,
        labels_position: int,
        buffered_max: int,
        last: Mapping[str, LastRecord] = MappingProxyType({}),
        sources: Sources | None = None,
        deadlines: Deadlines = Deadlines(),
        fresh: bool = False,
        traced: bool = False,
    ) -> None:
        """`positions` maps each payments partition of the shard to the offset to read next.

        `last`: the record before each position, where known, by the number of the payments partition, `control` and
        `labels`: the client compares its epoch with the log, and a log that was cut is an error (KIP-320).
        `sources`: ids of the topics, carried on by every batch.
        `fresh`: no batch has been taken yet, in the whole life of the journal. `traced`: trace contexts are read.
        """
        self._reader = reader
        self._payments_topic = payments
        self._deadlines = deadlines
        if deadlines.header is not None:
            reader.number_header(payments, deadlines.header)
        if traced:
            reader.trace_headers(payments)
        self.carried: Mapping[int, Carried] = NO_TRACES  # of the batch handed out last, by the place of the record
        # The first batch of a journal names every partition, those too of which it takes nothing: else a partition not
        # read yet would begin, after a restart, wherever retention has left it by then.
        self._name_all = fresh
        self._buffered_max = buffered_max
        self.sources = sources
        self.buffers = {
            p: PartitionBuffer(TopicPartition(payments, p), offset, last.get(str(p)))
            for p, offset in sorted(positions.items())
        }
        self.control = PartitionBuffer(TopicPartition(control, 0), control_position, last.get("control"))
        self.labels = PartitionBuffer(TopicPartition(labels, 0), labels_position, last.get("labels"))
        self._created = _CreatedAllowed({}, 0)
        self._gone: dict[tuple[str, int], str] = {}  # partitions whose next records are gone, with what to say of it
        self._assign()

    def _assign(self) -> None:
        """(Re)assign every partition where it was read to; what is buffered stays."""
        self._all = [*self.buffers.values(), self.control, self.labels]
        self._records_max = max(1, self._buffered_max // max(1, len(self.buffers)))
        # The client goes on pausing what was paused: to assign it anew changes nothing of that.
        if paused := [buffer.partition for buffer in self._all if buffer.paused]:
            with surfaced():
                self._reader.resume(paused)
        for buffer in self._all:
            buffer.paused = buffer.at_end = False
        self._gone.clear()
        with surfaced():
            self._reader.assign([buffer.next for buffer in self._all])

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
        places = [buffer.place for buffer in self._all]
        self._created = _CreatedAllowed(dict(zip(places, ends, strict=True)), now_ms)

    @property
    def last_records(self) -> dict[str, LastRecord]:
        """The newest record handed out of each partition, where its leader epoch is known, named as `last` has them."""
        return {name: last for name, buffer in self._named.items() if (last := buffer.last_taken) is not None}

    @property
    def places(self) -> dict[str, int]:
        """Up to where each partition was handed out, named as `last` has them."""
        return {name: buffer.position for name, buffer in self._named.items()}

    @property
    def _named(self) -> dict[str, PartitionBuffer]:
        return {str(p): buffer for p, buffer in self.buffers.items()} | {"control": self.control, "labels": self.labels}

    @property
    def all_buffers(self) -> Sequence[PartitionBuffer]:
        """Those of the payments partitions, then control, then labels."""
        return tuple(self._all)

    @property
    def way(self) -> str:
        """Which way the records are read (FlatReader.way)."""
        return self._reader.way

    @property
    def buffered(self) -> int:
        """Payments read and not yet handed out."""
        return sum(len(buffer.records) for buffer in self.buffers.values())

    def fill(self, wait_s: float, needed: Collection[PartitionBuffer] | None = None) -> int:
        """Read what is there, waiting at most `wait_s` for the first record. Returns how many payments came.

        Raises MissingRange when what comes next in one of `needed` is gone; without it, in any partition.
        """
        count = self._read(wait_s)
        if self._gone:
            for buffer in self._all if needed is None else needed:
                if buffer.place in self._gone:
                    raise MissingRange(self._gone[buffer.place])
        return count

    def _read(self, wait_s: float) -> int:
        room = sum(self._records_max - len(buffer.records) for buffer in self.buffers.values() if not buffer.paused)
        with surfaced():
            blocks, events = self._reader.read(wait_s, max(1, min(CONSUME_MAX, room)))
        if not blocks and not events:
            return 0
        count = 0
        for block in blocks:
            self._buffer_at(block.topic, block.partition).read(block)
            if block.topic == self._payments_topic:
                count += len(block)
        for message in events:
            self._on_error(present(message.error(), "error"), message)
        self._balance()
        return count

    def _buffer_at(self, topic: str, partition: int) -> PartitionBuffer:
        if topic == self._payments_topic:
            return self.buffers[partition]
        return self.labels if topic == self.labels.partition.topic else self.control

    def _on_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            topic, partition = present(message.topic(), "topic"), present(message.partition(), "partition")
            buffer, end = self._buffer_at(topic, partition), present(message.offset(), "offset")
            if end >= buffer.reached:  # records that were read with it may have come after it
                buffer.at_end, buffer.reached = True, end
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
                f"that lacked records; read was {', '.join(known)}. "
                + (
                    "`fraud-scorer recover` shows what is missing"
                    if topic == self._payments_topic
                    else "`fraud-scorer recover --new-journal` begins with empty windows, and reads it from its start"
                )
            )
        failed = read_failure(error, topic)
        if isinstance(failed, OutOfRange):
            if self._is_before(message):
                self._assign()
                return
            reason = (
                f"{failed}: records may be gone that were not decided yet. `fraud-scorer recover` shows which, and can "
                "accept that"
            )
            place = message.topic(), message.partition()
            gone = {buffer.place: reason for buffer in self._all if buffer.place == place}
            if not gone:
                raise MissingRange(reason)
            self._gone |= gone  # the others are read on
            return
        if not isinstance(failed, Away):  # what passes by itself is waited for
            raise failed

    def _is_before(self, message: Message) -> bool:
        """Whether an error is of an offset that was passed: reading goes on when it is asked for again.

        Either it answers the assignment before, and the client takes it for one to this; or retention has removed the
        last record that was read, so that nothing is left to compare with behind it.
        """
        place, offset = (message.topic(), message.partition()), message.offset()
        for buffer in self._all:
            if place == buffer.place and offset is not None:
                if offset == buffer.records_end < buffer.reached:
                    buffer.epoch = -1
                return 0 <= offset < buffer.reached
        return False

    def _balance(self) -> None:
        """Pause a full buffer, resume a half-empty one."""
        for buffer in self._all:
            limit = CONTROL_BUFFER_MAX if buffer in (self.control, self.labels) else self._records_max
            if not buffer.paused and (len(buffer.records) >= limit or buffer.bytes >= BUFFER_BYTES_MAX):
                with surfaced():
                    self._reader.pause([buffer.partition])
                buffer.paused = True
            elif buffer.paused and len(buffer.records) <= limit // 2 and buffer.bytes <= BUFFER_BYTES_MAX // 2:
                self.resume(buffer)

    def resume(self, buffer: PartitionBuffer) -> None:
        """Read on in a paused buffer, whatever its bound says: a batch that was decided once must fit again."""
        if buffer.paused:
            with surfaced():
                self._reader.resume([buffer.partition])
            buffer.paused = False

    def caught_up(self, buffer: PartitionBuffer) -> bool:
        """Whether everything the broker has announced is in the buffer (or handed out)."""
        if buffer.at_end:
            return True
        # Below zero: no fetch has been answered yet, so nothing is known.
        return 0 <= self._announced(buffer) <= buffer.reached

    def _announced(self, buffer: PartitionBuffer) -> int:
        """The end of a partition as the client knows it."""
        with surfaced():
            return self._reader.get_watermark_offsets(buffer.partition, cached=True)[1]

    def deadlines_ms(self, counts: dict[int, int]) -> npt.NDArray[np.float64] | None:
        """Deadlines of the first `counts[p]` records of each partition, epoch ms, in the order in which `batch` hands
        them out; None when there are no deadlines."""
        if not self._deadlines:
            return None
        blocks = (buffer.records.part(0, counts.get(p, 0)) for p, buffer in self.buffers.items())
        return np.concatenate([self._deadlines.of(block) for block in blocks])

    def batch(self, counts: dict[int, int], control_count: int, labels_count: int) -> Batch:
        """Hand out the first `counts[p]` records of each partition and the first so many control records and labels.

        Raises SourceChanged when one has a timestamp of its producer that is not allowed (see `allow_created`).
        """
        ranges = [
            buffer.range_after(count)
            for buffer, count in ((buffer, counts.get(p, 0)) for p, buffer in self.buffers.items())
            if self._name_all or buffer.end_after(count) > buffer.position
        ]
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

    def batch_again(self, record: BatchOrder) -> Batch:
        """Hand out the very ranges of a journal or order record, all of which must have been read (see `holds`).

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

    def holds(self, record: BatchOrder) -> bool:
        """Whether its ranges were read to their ends."""
        return not self.lacking(record)

    def lacking(self, record: BatchOrder) -> list[PartitionBuffer]:
        """The partitions of which its ranges were not read to their ends."""
        ends = [(self.buffers[r.partition], r.end) for r in record.inputs]
        ends += [(self.control, record.control.end)]
        ends += [] if record.labels is None else [(self.labels, record.labels.end)]
        return [buffer for buffer, end in ends if end > max(buffer.reached, buffer.position)]

    def pass_gone(self, ranges: Sequence[InputRange]) -> None:
        """Of `ranges`, which hold no record, take those for read that are gone from their log: reading goes on behind
        them."""
        gone = [(self.buffers[r.partition], r.end) for r in ranges if self.buffers[r.partition].place in self._gone]
        gone = [(buffer, end) for buffer, end in gone if end > buffer.reached]
        for buffer, end in gone:
            buffer.reached, buffer.epoch = end, -1  # nothing is left to compare with
        if gone:
            self._assign()

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
        blocks = [self.buffers[r.partition].take_until(r.end) for r in ranges]
        records = records_of(blocks, created_ms_max)
        self.carried = _carried(blocks)
        control = self.control.take_until(control_range.end)
        labels = None if labels_range is None else self.labels.take_until(labels_range.end)
        self._balance()
        return Batch(
            records=records.records,
            inputs=tuple(ranges),
            control=_control_records(control),
            control_range=control_range,
            labels=[] if labels is None else _control_records(labels),
            labels_range=labels_range,
            created_ms_max=created_ms_max if records.created else None,
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
        return len(buffer.records) + max(0, self._announced(buffer) - buffer.reached)

    def oldest_ms(self, partition: int) -> int | None:
        """Broker timestamp of the oldest record of a payments partition that waits here; None when none does."""
        first = self.buffers[partition].records.part(0, 1)
        return int(first.timestamp_ms[0]) if len(first) else None

    def close(self) -> None:
        """Leave the consumer."""
        self._reader.close()


class _Taken(NamedTuple):
    """Records that were handed out; whether a timestamp among them is a producer's."""

    records: Records
    created: bool


def _carried(blocks: Sequence[RecordBlock]) -> Mapping[int, Carried]:
    """The trace contexts of the records of all `blocks`, by the place of the record in `records_of`."""
    found: dict[int, Carried] = {}
    before = 0
    for block in blocks:
        if block.traces:
            offsets = np.fromiter(block.traces, np.int64, len(block.traces))
            places = np.searchsorted(block.offset, offsets)
            known = places < len(block)
            known[known] = block.offset[places[known]] == offsets[known]
            for place, offset in zip(places[known].tolist(), offsets[known].tolist(), strict=True):
                found[before + place] = block.traces[offset]
        before += len(block)
    return found or NO_TRACES


def no_records() -> Records:
    """Records of a batch that has none."""
    return records_of([], None).records


def records_of(blocks: Sequence[RecordBlock], created_ms_max: int | None) -> _Taken:
    """The records of all `blocks`, one block after the other. `created_ms_max`: what a producer's timestamp counts as
    at most; None: as it is."""
    found = [block for block in blocks if len(block)]
    whole = RecordBlock.concatenated(found) if found else RecordBlock.empty("", 0)
    timestamp_ms, created = whole.timestamp_ms, bool(whole.created.any())
    if created and created_ms_max is not None:
        timestamp_ms = np.where(whole.created, np.minimum(timestamp_ms, created_ms_max), timestamp_ms)
    records = Records(
        partition=np.repeat(
            np.array([block.partition for block in found], dtype=np.int32), [len(block) for block in found]
        ),
        offset=whole.offset,
        timestamp_ms=timestamp_ms,
        keys=whole.keys,
        values=whole.values,
    )
    return _Taken(records, created)


def _control_records(block: RecordBlock) -> list[ControlRecord]:
    return list(map(ControlRecord, block.offset.tolist(), block.keys, block.values)) if len(block) else []
