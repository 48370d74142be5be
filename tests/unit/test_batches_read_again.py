"""Batches read again where retention has taken records: only what a batch needs keeps it from being decided again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, Message

from schemas.byte_column import ByteColumn
from schemas.journal_record import FIRST_PREVIOUS, ControlRange, InputRange, JournalRecord
from schemas.order_record import OrderRecord
from scorer.journal import journal_reader
from scorer.journal.partition_buffers import MissingRange, ShardInputs
from scorer.kafka import Found, LastRecord, RecordBlock, SourceChanged
from scorer.runtime.threads import SYSTEM
from tests.unit.test_shard_inputs import Given

NOTHING = Found((), [])
NO_CONTROL = ControlRange(start=0, end=0)


class Log(Given):
    """A reader of logs of which p0's begins at `start`: whoever reads before it gets that once, and first."""

    def __init__(self, *blocks: RecordBlock, start: int) -> None:
        super().__init__(*(Found((block,), []) for block in blocks))
        self._start = start

    def read(self, wait_s: float, room: int) -> Found:
        for place in self.places:
            if (place.topic, place.partition) == ("payments", 0) and place.offset < self._start:
                self.places = [each for each in self.places if each is not place]
                error = KafkaError(KafkaError._AUTO_OFFSET_RESET, "fetch failed: offset out of range")
                return Found((), [Message(topic="payments", partition=0, offset=place.offset, error=error)])
        return self.found.popleft() if self.found else NOTHING

    def resume(self, partitions: Any) -> None:
        return


def block(partition: int, *offsets: int, epoch: int = 3) -> RecordBlock:
    n = len(offsets)
    return RecordBlock(
        "payments", partition, offset=np.array(offsets, np.int64), timestamp_ms=np.zeros(n, np.int64),
        created=np.zeros(n, np.bool_), epoch=np.full(n, epoch, np.int32), keys=ByteColumn.of([b"k"] * n),
        values=ByteColumn.of([b"{}"] * n),
    )  # fmt: skip


def made(reader: Log, last: int) -> ShardInputs:
    """Inputs at offset 600 of p0, before which the last record ends at `last`, and 50 of p1."""
    return ShardInputs(
        reader, payments="payments", control="control", labels="labels", positions={0: 600, 1: 50},
        control_position=0, labels_position=0, buffered_max=100, last={"0": LastRecord(last, 3)},
    )  # fmt: skip


def journalled(*inputs: InputRange, decisions: int) -> JournalRecord:
    return JournalRecord(
        shard=0, sequence=0, inputs=inputs, control=NO_CONTROL, labels=NO_CONTROL, stream_time_ms=0, bundle="b",
        decisions=decisions, dead_letters=0, digest="d" * 64, previous=FIRST_PREVIOUS,
    )  # fmt: skip


def ordered(*inputs: InputRange, records: int) -> OrderRecord:
    return OrderRecord(
        shard=0, sequence=0, inputs=inputs, control=NO_CONTROL, labels=NO_CONTROL, bundle="b", epoch=0, records=records
    )


MARKERS = InputRange(partition=0, start=600, end=611)
BEHIND = InputRange(partition=0, start=600, end=611, epoch=3, records_end=590)
OTHERS = InputRange(partition=1, start=50, end=52)


@pytest.mark.parametrize("last", [600, 590])
def test_a_batch_that_moved_past_markers_alone_needs_none_of_them(last: int) -> None:
    """Retention has taken what stood before offset 611, where nothing was decided: the batch is decided again, of
    journal and order log alike, and reading goes on behind it, wherever the last record before them stood."""
    for record, reread in (
        (journalled(MARKERS, decisions=0), journal_reader.reread),
        (
            ordered(MARKERS, records=0),
            lambda record, inputs, **more: journal_reader.reread_order(record, 7, inputs, **more),
        ),
    ):
        inputs = made(Log(block(0, 611, 612), start=611), last)
        batch = reread(record, inputs, no_progress_s=5.0, threads=SYSTEM)  # type: ignore[arg-type, operator]
        assert len(batch.records) == 0
        assert inputs.buffers[0].position == 611
        while not inputs.buffered:
            inputs.fill(0.0)
        assert len(inputs.batch({0: 2}, 0, 0).records) == 2


def test_markers_of_one_partition_do_not_hold_up_the_payments_of_another() -> None:
    """A range whose records end before it holds none, whatever else its batch has read."""
    inputs = made(Log(block(1, 50, 51), start=611), 590)
    record = journalled(BEHIND, OTHERS, decisions=2)
    batch = journal_reader.reread(record, inputs, no_progress_s=5.0, threads=SYSTEM)
    assert batch.records.offset.tolist() == [50, 51]


def test_payments_that_are_gone_stop_the_batch_that_read_them_and_no_other() -> None:
    """Of two partitions one lost what was not decided yet. A batch of the other can be read again; one that names the
    records that are gone cannot, and what comes next live stops as well."""
    inputs = made(Log(block(1, 50, 51), start=700), 600)
    batch = journal_reader.reread_order(ordered(OTHERS, records=2), 7, inputs, no_progress_s=5.0, threads=SYSTEM)
    assert batch.records.offset.tolist() == [50, 51]
    with pytest.raises(MissingRange, match="payments"):
        inputs.fill(0.0)
    with pytest.raises(MissingRange, match="payments"):
        journal_reader.reread_order(ordered(MARKERS, records=5), 8, inputs, no_progress_s=5.0, threads=SYSTEM)


def test_a_log_that_was_cut_and_filled_again_is_recognised_by_what_stands_where_markers_were() -> None:
    """What is still there is read, though the batch needs none of it: here records of a later leader."""
    for record, reread in (
        (journalled(BEHIND, decisions=0), journal_reader.reread),
        (
            ordered(BEHIND, records=0),
            lambda record, inputs, **more: journal_reader.reread_order(record, 7, inputs, **more),
        ),
    ):
        inputs = made(Log(block(0, 605, 611, epoch=4), start=600), 590)
        with pytest.raises(SourceChanged, match="filled again"):
            reread(record, inputs, no_progress_s=5.0, threads=SYSTEM)  # type: ignore[arg-type, operator]
