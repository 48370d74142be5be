"""What a shard's inputs make of events that a client gives at moments that no test can choose."""

from __future__ import annotations

from collections import deque

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition

from scorer.journal.partition_buffers import MissingRange, ShardInputs
from scorer.kafka import Found, LastRecord


class Given:
    """A reader that gives what it was given."""

    way = "given"

    def __init__(self, *found: Found) -> None:
        self.found = deque(found)
        self.assigned: list[list[tuple[str, int, int]]] = []
        self.places: list[TopicPartition] = []

    def number_header(self, topic: str, name: str) -> None:
        raise AssertionError((topic, name))

    def trace_headers(self, topic: str) -> None:
        raise AssertionError(topic)

    def read(self, wait_s: float, room: int) -> Found:
        return self.found.popleft()

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.places = partitions
        self.assigned.append([(p.topic, p.partition, p.offset) for p in partitions])

    def pause(self, partitions: list[TopicPartition]) -> None:
        raise AssertionError(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        raise AssertionError(partitions)

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        return


def test_every_topic_is_compared_with_the_epoch_of_the_last_record_before_its_position() -> None:
    """An election of a leader that lacked records may have cut any of them while no worker ran."""
    reader = Given()
    last = {"0": LastRecord(39, 3), "control": LastRecord(7, 1), "labels": LastRecord(20, 2)}
    inputs = ShardInputs(
        reader,
        payments="payments",
        control="control",
        labels="labels",
        positions={0: 40, 1: 11},
        control_position=8,
        labels_position=20,
        buffered_max=10,
        last=last,
    )
    asked = {(p.topic, p.partition): (p.offset, p.leader_epoch) for p in reader.places}
    assert asked == {
        ("payments", 0): (39, 3),
        ("payments", 1): (11, None),
        ("control", 0): (7, 1),
        ("labels", 0): (20, 2),
    }
    assert inputs.last_records == last


def outside(offset: int) -> Found:
    """The error of an offset outside the log."""
    error = KafkaError(KafkaError._AUTO_OFFSET_RESET, "fetch failed: offset out of range")
    return Found((), [Message(topic="payments", partition=0, offset=offset, error=error)])


def test_an_error_of_an_offset_that_was_passed_is_no_loss() -> None:
    """After an operator accepted a loss the client may still say that the old offset is gone, and stops reading with
    that: everything is assigned anew where it stands. An error of what is to be read is a loss."""
    reader = Given(outside(40), outside(43))
    inputs = ShardInputs(
        reader,
        payments="payments",
        control="control",
        labels="labels",
        positions={0: 40},
        control_position=0,
        labels_position=0,
        buffered_max=10,
    )
    inputs.move({0: 43}, 0, 0)
    assert inputs.fill(0.0) == 0
    assert [places[0] for places in reader.assigned] == [("payments", 0, 40), ("payments", 0, 43), ("payments", 0, 43)]
    with pytest.raises(MissingRange, match="payments"):
        inputs.fill(0.0)
