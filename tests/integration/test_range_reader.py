"""The loop that reads a range of a partition once: it ends at the true end, whatever stands there."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from scorer import kafka
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from tests.integration.audit_batches import make_topic
from tests.integration.running import test_settings


class Partition:
    """A topic of one partition, and transactions on it."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.settings, self.topic = settings, topic
        self.place = TopicPartition(topic, 0)
        self.client = kafka.admin(settings.kafka)
        make_topic(settings.kafka.bootstrap_servers, topic)
        self.producer = Producer(
            {"bootstrap.servers": settings.kafka.bootstrap_servers, "transactional.id": topic, "linger.ms": 0}
        )
        self.producer.init_transactions(30)

    def send(self, values: list[bytes], how: str) -> None:
        self.producer.begin_transaction()
        for value in values:
            self.producer.produce(self.topic, value, partition=0)
        self.producer.flush(30)
        if how == "commit":
            self.producer.commit_transaction(30)
        elif how == "abort":
            self.producer.abort_transaction(30)

    def read(self, start: int, end: int, no_progress_s: float = 30.0) -> list[tuple[int, bytes]]:
        consumer = kafka.reader(self.settings.kafka, group=f"{self.topic}-reader")
        try:
            place = TopicPartition(self.topic, 0, start)
            found = kafka.read_range(consumer, place, end, no_progress_s=no_progress_s)
            return [(message.offset(), message.value()) for message in found]  # type: ignore[misc]
        finally:
            consumer.close()

    def ends(self) -> tuple[int, int]:
        (stable,), (end,) = kafka.stable_ends(self.client, [self.place]), kafka.ends(self.client, [self.place])
        return stable, end


@pytest.fixture
def partition(services: Services, topics_prefix: str) -> Partition:
    return Partition(test_settings(services.kafka.bootstrap_servers, topics_prefix), f"{topics_prefix}range")


def test_the_true_end_is_reached_over_markers_and_aborted_records(partition: Partition) -> None:
    """Committed records come once and in order; the read ends at once at a marker or at aborted records, without
    waiting for a full batch."""
    partition.send([b"a", b"b"], "commit")  # 0, 1, marker 2
    partition.send([b"x"] * 3, "abort")  # 3 to 5, marker 6
    partition.send([b"c"], "commit")  # 7, marker 8
    partition.send([b"x"] * 2, "abort")  # 9, 10, marker 11
    deadline = time.monotonic() + 30
    while partition.ends() != (12, 12):  # markers are written a moment after the call returns
        assert time.monotonic() < deadline
    whole = [(0, b"a"), (1, b"b"), (7, b"c")]
    assert partition.read(0, 12) == whole  # the first read opens connections
    times_s = []
    for _ in range(3):
        began = time.monotonic()
        assert partition.read(0, 12) == whole
        times_s.append(time.monotonic() - began)
    assert min(times_s) < 3.0
    for start in range(13):
        for end in range(13):
            assert partition.read(start, end) == [row for row in whole if start <= row[0] < end]


def test_an_open_transaction_is_waited_for_and_named(partition: Partition) -> None:
    """Up to the true end a read waits for an open transaction, and fails with that reason after its deadline; up to
    the stable end it does not wait."""
    partition.send([b"a"], "commit")
    partition.send([b"b"], "open")
    deadline = time.monotonic() + 30
    while partition.ends() != (2, 3):
        assert time.monotonic() < deadline
    assert partition.read(0, 2) == [(0, b"a")]
    with pytest.raises(kafka.NoProgress, match="to offset 3: no progress for 1 s; a transaction may"):
        partition.read(0, 3, no_progress_s=1.0)
    partition.producer.commit_transaction(30)
    assert partition.read(0, 3) == [(0, b"a"), (2, b"b")]


def test_a_start_before_the_log_is_an_error_with_a_name(partition: Partition) -> None:
    """A range whose first records are gone is never read as if it began later."""
    partition.send([b"a", b"b", b"c"], "commit")
    gone = AdminClient({"bootstrap.servers": partition.settings.kafka.bootstrap_servers})
    for future in gone.delete_records([TopicPartition(partition.topic, 0, 2)]).values():
        future.result(30)
    with pytest.raises(kafka.OutOfRange, match=f"{partition.topic}/0 is outside the log"):
        partition.read(0, 3)
