"""What every reader of decisions may rely on, checked on real topics: a payment never has two different decisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import KafkaError, TopicPartition

from schemas.decision import Decision
from schemas.fast_decision import FastDecision
from scorer import kafka
from scorer.runtime.settings import Settings

# A decision that was made from the payment; the others repeat it (duplicate), or are about the record alone (refused).
DECIDED = ("normal", "degraded", "late")
READ_TIMEOUT_S = 60.0


def check_answers(settings: Settings, *, anew: str | None = None) -> tuple[int, int]:
    """Raise AssertionError when topics decisions and decisions-fast, read to their ends with all repeats, hold two
    different decisions of one payment, or other bytes at a place of decisions-fast that was written before. Gives how
    many records were read of each; 0 of a topic that does not exist.

    An id that was sent to two shards is two payments: each shard knows its own. `anew`: ids that begin so may have two:
    of a topic that was made anew some payments are decided before the worker knows that, and again with empty windows
    once an operator has accepted it."""
    topics, shards = kafka.Topics.of(settings.kafka), settings.worker.shards
    known: dict[tuple[int, str], bytes] = {}
    places: dict[tuple[int, int, int], bytes] = {}
    slow = fast = 0
    for partition, value in _records(settings, topics.decisions):
        slow += 1
        _same(known, partition % shards, Decision.from_bytes(value), anew)
    for partition, value in _records(settings, topics.decisions_fast):
        fast += 1
        found = FastDecision.model_validate_json(value)
        before = places.setdefault((partition, found.sequence, found.row), value)
        assert before == value, f"decisions-fast/{partition}, repeated with other bytes: {before!r}, {value!r}"
        decision = Decision.model_validate(found.model_dump(exclude={"shard", "sequence", "row"}))
        _same(known, partition % shards, decision, anew)
    return slow, fast


def _same(known: dict[tuple[int, str], bytes], shard: int, decision: Decision, anew: str | None) -> None:
    if decision.mode in DECIDED and not (anew and decision.payment_id.startswith(anew)):
        value = decision.to_bytes()
        before = known.setdefault((shard, decision.payment_id), value)
        assert before == value, f"payment {decision.payment_id} has two decisions: {before!r}, {value!r}"


def _records(settings: Settings, topic: str) -> Iterator[tuple[int, bytes]]:
    """Partition and value of each record that readers of committed records see."""
    client = kafka.admin(settings.kafka)
    if topic not in client.list_topics(timeout=READ_TIMEOUT_S).topics:
        return
    partitions = [
        TopicPartition(topic, p) for p in range(kafka.partition_count(client, topic, timeout_s=READ_TIMEOUT_S))
    ]
    starts = kafka.starts(client, partitions, timeout_s=READ_TIMEOUT_S)
    ends = kafka.stable_ends(client, partitions, timeout_s=READ_TIMEOUT_S)
    left = {p.partition: end for p, start, end in zip(partitions, starts, ends, strict=True) if start < end}
    consumer: Any = kafka.reader(settings.kafka, group="test-answers")
    try:
        consumer.assign(
            [TopicPartition(topic, p.partition, start) for p, start in zip(partitions, starts, strict=True)]
        )
        deadline = time.monotonic() + READ_TIMEOUT_S
        while left:
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end: {left}"
            for message in consumer.consume(5_000, 0.1):
                error, partition = message.error(), message.partition()
                if error is None:
                    deadline = time.monotonic() + READ_TIMEOUT_S
                    yield partition, message.value()
                elif error.code() != KafkaError._PARTITION_EOF:
                    continue
                if message.offset() + (error is None) >= left.get(partition, 0):
                    left.pop(partition, None)
    finally:
        consumer.close()
