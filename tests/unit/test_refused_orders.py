"""What the order log's client gives up for is what the worker waits for: a right, or a topic's setting."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from confluent_kafka import KafkaError

from schemas.byte_column import ByteColumn
from scorer import kafka
from scorer.runtime.threads import SYSTEM
from scorer.worker import order_log
from scorer.worker.answers import Answers
from scorer.worker.order_log import OrderLog
from tests.refusing_cluster import PRODUCE, RefusingCluster, held_by_each_client

KINDS = [
    (KafkaError.TOPIC_AUTHORIZATION_FAILED, kafka.Denied),
    (KafkaError.MSG_SIZE_TOO_LARGE, kafka.Unfit),
    (KafkaError.INVALID_RECORD, kafka.Unfit),
    (KafkaError.UNKNOWN, kafka.Rebuild),
]
WAIT_S = 120.0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[OrderLog, RefusingCluster]:
    """A claimed order log over a broker that takes everything. Its cause is waited for on a busy machine, too."""
    monkeypatch.setattr(order_log, "CAUSE_S", WAIT_S)
    settings = held_by_each_client()
    clients, topics = kafka.RealClients(settings), kafka.Topics.of(settings.kafka)
    producer = clients.log_producer()
    cluster = RefusingCluster(producer, settings.kafka.client_id)  # type: ignore[arg-type]
    cluster.create(topics.order)
    cluster.create(topics.decisions_fast)
    log = OrderLog(producer, topics, SYSTEM, shard=0, columns=clients.columns)
    log.claim("a", 0)
    return log, cluster


def answers(count: int) -> Answers:
    values = [b'{"payment_id":"%d"}' % row for row in range(count)]
    return Answers(ByteColumn.of(values), ByteColumn.of(values), np.zeros(count, dtype=np.int32))


def until(done: Callable[[], bool]) -> None:
    """Ask again and again, as the batcher does."""
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("code", "expected"), KINDS)
def test_decisions_that_are_refused_say_why_to_whoever_asks_for_them(
    made: tuple[OrderLog, RefusingCluster], code: int, expected: type[kafka.KafkaFailure]
) -> None:
    """Asking whether decisions have arrived raises nothing: they have been answered. Waiting for them, and the next
    order, raise what the broker answered, which the client itself has no code for."""
    log, cluster = made
    cluster.refuse(PRODUCE, [code])
    delivery = log.publish(answers(1), 0)
    until(delivery.done)
    with pytest.raises(kafka.KafkaFailure) as failed:
        delivery.wait()
    assert type(failed.value) is expected
    with pytest.raises(kafka.KafkaFailure) as failed:
        log.claim("a", 1)
    assert type(failed.value) is expected


@pytest.mark.parametrize(("code", "expected"), KINDS)
def test_an_order_that_is_refused_says_why(
    made: tuple[OrderLog, RefusingCluster], code: int, expected: type[kafka.KafkaFailure]
) -> None:
    """Whoever waits for it raises what the broker answered."""
    log, cluster = made
    cluster.refuse(PRODUCE, [code])
    with pytest.raises(kafka.KafkaFailure) as failed:
        log.claim("a", 1)
    assert type(failed.value) is expected


def test_the_cause_is_known_of_decisions_that_were_never_sent(made: tuple[OrderLog, RefusingCluster]) -> None:
    """Of a batch of several requests the first one is refused; the last decision, the only one that is reported, was
    dropped unsent. What is raised is still the missing right."""
    log, cluster = made
    warm = log.publish(answers(2), 0)
    warm.wait()
    cluster.answer_after(1_000)
    cluster.refuse(PRODUCE, [KafkaError.TOPIC_AUTHORIZATION_FAILED])
    first, last = log.publish(answers(1), 1), log.publish(answers(20_000), 2)
    until(last.done)
    with pytest.raises(kafka.Denied):
        last.wait()
    with pytest.raises(kafka.Denied):
        first.wait()
