"""Columns produced through the client library's C interface are the messages that its Python objects make."""

from __future__ import annotations

import gc
import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions, NewTopic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from scorer import kafka
from scorer.kafka.borrowed_library import NotBorrowed
from scorer.kafka.column_producer import BorrowedColumns, PlainColumns
from scorer.kafka.real_clients import LOG_PRODUCER
from scorer.local_services import Services
from scorer.runtime.settings import Settings
from scorer.runtime.threads import SystemThreads
from scorer.runtime.trace_context import NO_HEADERS, HeadersOfRows
from scorer.worker.answers import Answers
from scorer.worker.order_log import OrderLog
from tests.integration.running import test_settings, wait_for
from tests.integration.test_record_access import Topic, read
from tests.topic_made_anew import grow

PARTITIONS = 3
TEXT = st.none() | st.just(b"") | st.binary(max_size=40)
MESSAGES = st.lists(st.tuples(st.integers(0, PARTITIONS - 1), TEXT, TEXT), max_size=30)
Message = tuple[int, bytes | None, bytes | None]
Way = Callable[[Producer], kafka.ColumnProducer]


def borrowed(producer: Producer) -> BorrowedColumns:
    """The borrowed way over a producer of the settings' client.id."""
    return BorrowedColumns(producer, "fraud-scorer")


WAYS = pytest.mark.parametrize("way", [PlainColumns, borrowed], ids=["plain", "borrowed"])


@pytest.fixture
def where(services: Services, topics_prefix: str) -> Settings:
    return test_settings(services.kafka.bootstrap_servers, topics_prefix)


@pytest.fixture
def topic(where: Settings) -> Topic:
    return Topic(where, f"{where.kafka.topic_prefix}written")


@pytest.fixture
def producer(where: Settings) -> Iterator[Producer]:
    made = kafka.transactional_producer(where, "columns")
    made.init_transactions(30)
    yield made
    del made


def produce(
    columns: kafka.ColumnProducer, topic: str, messages: Sequence[Message], headers: HeadersOfRows = NO_HEADERS
) -> None:
    """The messages, as columns."""
    columns.produce(
        topic,
        ByteColumn.of([value for _, _, value in messages]),
        ByteColumn.of([key for _, key, _ in messages]),
        np.array([partition for partition, _, _ in messages], dtype=np.int32),
        headers,
    )


def stored(topic: Topic, begin: dict[int, int]) -> list[Message]:
    """What is committed since `begin`, partition by partition."""
    wait_for(lambda: kafka.stable_ends(topic.client, topic.places) == kafka.ends(topic.client, topic.places), 30, "it")
    places = topic.places
    for place in places:
        place.offset = begin[place.partition]
    reader = topic.plain()
    try:
        blocks, _ = read(reader, places, topic.ends())
    finally:
        reader.close()
    return [(p, *row) for (_, p), block in sorted(blocks.items()) for row in zip(block.keys, block.values, strict=True)]


@WAYS
def test_what_is_produced_is_what_is_read(topic: Topic, producer: Producer, way: Way) -> None:
    """Values and keys that are missing or empty, to their own partitions in their order, beside a message of the
    client's own in the same transaction; of an aborted transaction nothing."""
    columns = way(producer)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MESSAGES, st.booleans())
    def equal(messages: list[Message], commit: bool) -> None:
        begin = topic.ends()
        producer.begin_transaction()
        produce(columns, topic.name, messages)
        producer.produce(topic.name, b"beside", partition=0)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
        want = [*messages, (0, None, b"beside")] if commit else []
        assert stored(topic, begin) == sorted(want, key=lambda message: message[0])

    equal()
    columns.close()


HEADERS = st.none() | st.lists(
    st.tuples(st.sampled_from(["traceparent", "tracestate"]), st.binary(max_size=20)), min_size=1
)


@WAYS
def test_headers_come_with_their_own_message_and_no_message_overtakes_another(
    where: Settings, topic: Topic, producer: Producer, way: Way
) -> None:
    """Any rows with headers among any without, single ones and long stretches: each partition has its messages in
    their order, each with the headers that it was given."""
    columns = way(producer)
    consumer = kafka.reader(where.kafka, group="headers")

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, PARTITIONS - 1), HEADERS, st.sampled_from([1, 1, 40])), max_size=12))
    def equal(runs: list[tuple[int, list[tuple[str, bytes]] | None, int]]) -> None:
        begin = topic.ends()
        sent = [(p, b"%d" % n, headers) for n, (p, headers, times) in enumerate(runs) for _ in range(times)]
        producer.begin_transaction()
        columns.produce(
            topic.name,
            ByteColumn.of([value for _, value, _ in sent]),
            ByteColumn.of([None] * len(sent)),
            np.array([p for p, _, _ in sent], dtype=np.int32),
            {row: list(headers) for row, (_, _, headers) in enumerate(sent) if headers is not None},
        )
        producer.commit_transaction(30)
        consumer.assign([TopicPartition(topic.name, p, begin[p]) for p in range(PARTITIONS)])
        found: dict[int, list[tuple[bytes | None, Any]]] = {p: [] for p in range(PARTITIONS)}
        wait_for(lambda: take(consumer, found) >= len(sent), 30, "the messages")
        for p in range(PARTITIONS):
            assert found[p] == [(value, headers) for q, value, headers in sent if p == q]

    equal()
    consumer.close()
    columns.close()


def take(consumer: Consumer, found: dict[int, list[tuple[bytes | None, Any]]]) -> int:
    """Adds what has come, by partition; how many messages there are."""
    for message in consumer.consume(1_000, 0.1):
        if message.error() is None:
            found[kafka.present(message.partition(), "partition")].append((message.value(), message.headers()))
    return sum(map(len, found.values()))


@WAYS
def test_a_topic_made_a_moment_ago_takes_the_first_transaction(where: Settings, producer: Producer, way: Way) -> None:
    """What the client does not know of the topic yet is asked for first; a partition that is added later as well."""
    topic = Topic(where, f"{where.kafka.topic_prefix}new")
    columns = way(producer)
    producer.begin_transaction()
    produce(columns, topic.name, [(p, b"k", b"v") for p in range(PARTITIONS)])
    producer.commit_transaction(30)
    columns.close()
    assert len(stored(topic, dict.fromkeys(range(PARTITIONS), 0))) == PARTITIONS


@WAYS
@pytest.mark.parametrize("headers", [{}, {0: [("traceparent", b"t")]}], ids=["plain", "with headers"])
def test_a_partition_that_was_added_is_known_before_it_is_written(
    where: Settings, producer: Producer, way: Way, headers: HeadersOfRows
) -> None:
    """Beyond the partitions that the client knows it asks; for one that is not there it says so."""
    name = f"{where.kafka.topic_prefix}grown"
    client = kafka.admin(where.kafka)
    client.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    columns = way(producer)
    for partitions in (1, 2):
        producer.begin_transaction()
        produce(columns, name, [(partitions - 1, None, b"v")], headers)
        producer.commit_transaction(30)
        with pytest.raises(KafkaException) as refused:
            produce(columns, name, [(partitions, None, b"v")], headers)
        assert refused.value.args[0].code() == KafkaError._UNKNOWN_PARTITION
        if partitions == 1:
            client.create_partitions([NewPartitions(name, 2)])[name].result(30)
            wait_for(lambda: kafka.topic_facts(client, [name])[name].partitions == 2, 30, "the partition")
    columns.close()


@WAYS
def test_the_first_decision_of_a_partition_that_was_added_leaves(where: Settings, way: Way) -> None:
    """A decision of a batch may be the only one of a partition that the client does not know yet, which it refuses."""
    topics = kafka.Topics.of(where.kafka)
    client = kafka.admin(where.kafka)
    client.create_topics([NewTopic(topics.decisions_fast, 1, 1)])[topics.decisions_fast].result(30)
    kafka.wait_until_visible(where.kafka, {topics.decisions_fast: 1}, timeout_s=30.0)
    log = OrderLog(kafka.plain_producer(where.kafka, **LOG_PRODUCER), topics, SystemThreads(), shard=0, columns=way)
    try:
        for sequence, partitions in enumerate(([0, 0], [0, 0, 1])):
            values = ByteColumn.of([b'{"payment_id":"p"}'] * len(partitions))
            keys = ByteColumn.absent_everywhere(len(partitions))
            log.publish(Answers(values, keys, np.array(partitions, dtype=np.int32)), sequence).wait()
            grow(where.kafka, topics.decisions_fast, 2 + sequence)
    finally:
        log.close()
    places = [TopicPartition(topics.decisions_fast, partition) for partition in range(2)]
    assert kafka.ends(client, places) == [4, 1]


@WAYS
def test_what_the_broker_refuses_comes_out_of_the_commit(where: Settings, producer: Producer, way: Way) -> None:
    """A record that is too large for its topic fails the transaction: without a callback of its own nothing is lost."""
    name = f"{where.kafka.topic_prefix}small"
    client = kafka.admin(where.kafka)
    client.create_topics([NewTopic(name, 1, 1, config={"max.message.bytes": "1000"})])[name].result(30)
    columns = way(producer)
    producer.begin_transaction()
    produce(columns, name, [(0, None, secrets.token_bytes(5_000))])
    with pytest.raises(KafkaException) as refused:
        producer.commit_transaction(30)
    assert refused.value.args[0].txn_requires_abort()
    columns.close()


def test_a_message_that_the_client_refuses_is_an_error_with_its_code(topic: Topic, producer: Producer) -> None:
    """Larger than the client's own limit: refused at once, by its name, and not taken for a full queue."""
    columns = borrowed(producer)
    producer.begin_transaction()
    with pytest.raises(KafkaException) as refused:
        produce(columns, topic.name, [(0, None, b"fits"), (0, None, bytes(1_100_000)), (1, None, b"fits")])
    assert refused.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE
    producer.abort_transaction(30)
    columns.close()


def test_a_full_queue_is_waited_for(where: Settings, topic: Topic) -> None:
    """More messages than the client's queue takes: it drains, and all of them arrive once and in their order."""
    small = Producer(
        {
            "bootstrap.servers": where.kafka.bootstrap_servers,
            "client.id": "fraud-scorer",
            "transactional.id": f"{topic.name}-small",
            "queue.buffering.max.messages": 1_000,
        }
    )
    small.init_transactions(30)
    columns = borrowed(small)
    messages = [(n % PARTITIONS, None, b"%d" % n) for n in range(3_500)]
    small.begin_transaction()
    produce(columns, topic.name, messages)
    small.commit_transaction(30)
    columns.close()
    want = sorted(messages, key=lambda message: message[0])
    assert stored(topic, dict.fromkeys(range(PARTITIONS), 0)) == want


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts Linux's own threads")
def test_a_producer_ends_with_its_last_reference(where: Settings, topic: Topic) -> None:
    """What was borrowed keeps neither the object nor the client's threads, also where it was not closed."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    for closed in (True, False):
        made = kafka.transactional_producer(where, "ends")
        made.init_transactions(30)
        columns = borrowed(made)
        made.begin_transaction()
        produce(columns, topic.name, [(0, None, b"v")])
        made.commit_transaction(30)
        if closed:
            columns.close()
        gone = weakref.ref(columns)
        del columns, made
        gc.collect()
        assert gone() is None
        wait_for(lambda: threads() <= before, 30, "the end of the client's threads")


def test_a_producers_handle_has_to_have_its_name(producer: Producer) -> None:
    """One of another client.id is not borrowed."""
    with pytest.raises(NotBorrowed, match="another#producer-"):
        BorrowedColumns(producer, "another")
