"""A full partition is paused; whatever happens then, it is read on."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from scorer import kafka
from scorer.journal.partition_buffers import ShardInputs
from scorer.local_services import Services
from tests.integration.running import test_settings

RECORDS = 6_000
BUFFERED_MAX = 1_000


def _take_up_another(inputs: ShardInputs) -> None:
    inputs.add({2: 0})


def _accept_a_loss(inputs: ShardInputs) -> None:
    inputs.move({0: inputs.buffers[0].position}, 0, 0)


@pytest.mark.parametrize("change", [_take_up_another, _accept_a_loss])
@pytest.mark.parametrize("way", ["auto", "plain"])
def test_a_partition_that_was_full_is_read_on_when_all_are_assigned_anew(
    services: Services, topics_prefix: str, way: str, change: Callable[[ShardInputs], None]
) -> None:
    """The client keeps a pause over an assignment: a partition that was taken up, or a loss that was accepted, while
    another one was full, would leave that one unread until the next start."""
    settings = test_settings(services.kafka.bootstrap_servers, topics_prefix)
    settings.kafka.record_access = way  # type: ignore[assignment]
    payments, control, labels = (f"{topics_prefix}paused-{name}" for name in ("payments", "control", "labels"))
    client = kafka.admin(settings.kafka)
    topics = [NewTopic(payments, 3, 1), NewTopic(control, 1, 1), NewTopic(labels, 1, 1)]
    for made in client.create_topics(topics).values():
        made.result(30)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for _ in range(RECORDS):
        producer.produce(payments, b"x" * 50, partition=0)
    assert producer.flush(30) == 0
    inputs = ShardInputs(
        kafka.RealClients(settings).flat_reader(f"{topics_prefix}reader"),
        payments=payments,
        control=control,
        labels=labels,
        positions={0: 0, 1: 0},
        control_position=0,
        labels_position=0,
        buffered_max=BUFFERED_MAX,
    )
    try:
        inputs.allow_created(None, None)
        full = inputs.buffers[0]
        _fill(inputs, lambda: full.paused)
        inputs.batch({0: len(full.records) - BUFFERED_MAX * 3 // 10}, 0, 0)
        assert full.paused  # still more than half full
        change(inputs)

        def taken() -> bool:
            inputs.batch({p: len(buffer.records) for p, buffer in inputs.buffers.items()}, 0, 0)
            return full.position == RECORDS

        _fill(inputs, taken)
    finally:
        inputs.close()


def _fill(inputs: ShardInputs, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        inputs.fill(0.05)
        assert time.monotonic() < deadline, inputs.buffers[0].position
