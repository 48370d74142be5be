"""A replay's decisions onto a topic of their own, never one that the live engine has: to compare consumers.

Each partition of the topic holds its decisions in journal order, so what an interrupted run left is a prefix of each:
one that goes on counts the records that are there and sends what follows. That needs every record kept (the topic is
made without retention) and the same replay, which a header of each record identifies.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import NewTopic

from schemas.decision import DECISIONS, MODES
from schemas.decision_bytes import encode_decisions
from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime.settings import Settings

HEADER = "fraud-scorer-replay"
_QUEUE_FULL_WAIT_S = 0.05
_READ_WAIT_S = 15.0
_CREATE_S = 30.0
_FLUSH_S = 60.0


class TopicOutput:
    """Decisions as the live engine writes them (schemas.decision), keyed by customer_id, in partitions by the payment's
    own number. Raises UsageError for a topic of the live engine or one that holds something else, KafkaFailure.
    """

    def __init__(self, settings: Settings, topic: str, about: dict[str, object]) -> None:
        refuse_live(settings, topic)
        self._topic = topic
        self._mark = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest().encode()
        client = kafka.admin(settings.kafka)
        self._partitions = kafka.partition_count(client, kafka.Topics.of(settings.kafka).payments)
        if topic not in client.list_topics(timeout=kafka.METADATA_TIMEOUT_S).topics:
            replicas = settings.topics.replication_factor
            plan = NewTopic(topic, self._partitions, replicas, config={"retention.ms": "-1"})
            try:
                kafka.answer_of(client.create_topics([plan], request_timeout=_CREATE_S)[topic], _CREATE_S)
            except KafkaException as exc:
                raise kafka.KafkaFailure(f"topic {topic} cannot be made: {kafka.describe(exc)}") from exc
        self._partitions = kafka.partition_count(client, topic)
        places = [TopicPartition(topic, p) for p in range(self._partitions)]
        starts, ends = kafka.starts(client, places), kafka.ends(client, places)
        if any(starts):
            raise UsageError(
                f"topic {topic} has lost its first records, so a replay cannot go on there; name a new one"
            )
        self._present = Counter(dict(enumerate(ends)))
        self.resumed = sum(ends)
        if self.resumed:
            self._check(settings, next(p for p, end in enumerate(ends) if end))
        self._producer = kafka.plain_producer(settings.kafka)
        self._failed: str | None = None

    def _check(self, settings: Settings, partition: int) -> None:
        """Refuse a topic whose first record is no decision of this replay."""
        consumer = kafka.reader(settings.kafka, group=f"{settings.kafka.topic_prefix}fraud-scorer-replay")
        try:
            place, end = TopicPartition(self._topic, partition, 0), self._present[partition]
            message = next(kafka.read_range(consumer, place, end, messages_max=1, no_progress_s=_READ_WAIT_S), None)
        finally:
            consumer.close()
        if message is None:
            raise kafka.KafkaFailure(f"topic {self._topic}: it has no committed record before offset {end}")
        if (HEADER, self._mark) not in (kafka.headers_of(message) or ()):
            raise UsageError(f"topic {self._topic} holds something else than this replay; name another topic")

    def write(self, table: pa.Table) -> None:
        """Send decisions (columns of scorer.replay.decision_schema), but those that are there already."""
        values = encode_decisions(
            table["payment_id"].to_pylist(),
            _codes(table["decision"], DECISIONS),
            table["score"].to_numpy(),
            table["margin"].to_numpy(),
            table["reasons"].to_pylist(),
            _codes(table["mode"], MODES),
            table["bundle"].to_pylist(),
        )
        partitions = (table["partition"].to_numpy() % self._partitions).tolist()
        for value, key, partition in zip(values, table["customer_id"].to_pylist(), partitions, strict=True):
            if self._present[partition]:
                self._present[partition] -= 1
                continue
            self._produce(value, None if key is None else key.encode(), partition)
        self._producer.poll(0)
        self._raise_failure()

    def _produce(self, value: bytes | None, key: bytes | None, partition: int) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic, value, key, partition, headers=[(HEADER, self._mark)], on_delivery=self._delivered
                )
            except BufferError:
                self._producer.poll(_QUEUE_FULL_WAIT_S)
                self._raise_failure()
                continue
            return

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed = self._failed or f"{error.name()}: {error.str()}"

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise kafka.KafkaFailure(f"decisions cannot be written to {self._topic}: {self._failed}")

    def close(self) -> None:
        """Wait until the broker has everything."""
        left = self._producer.flush(_FLUSH_S)
        self._raise_failure()
        if left:
            raise kafka.KafkaFailure(f"{left} decisions were not taken by {self._topic} within {_FLUSH_S:.0f} s")

    def abandon(self) -> None:
        """What was handed over goes out; a run that goes on counts it."""
        self._producer.flush(_FLUSH_S)


def refuse_live(settings: Settings, topic: str) -> None:
    """Raises UsageError for a topic that the live engine reads or writes."""
    if topic in kafka.Topics.of(settings.kafka).all:
        raise UsageError(f"{topic} is a topic of the live engine; a replay writes to a topic of its own")


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.array([names.index(name) for name in column.to_pylist()], dtype=np.uint8)
