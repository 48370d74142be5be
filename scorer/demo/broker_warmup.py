"""Transactions on a topic of no interest until the broker answers quickly.

A broker that has just started runs interpreted: its first transactions take 100 ms and more each, later ones a few.
One in production has been up for weeks, so the demo shows what that is like.
"""

from __future__ import annotations

import time

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import NewTopic

from scorer import kafka
from scorer.runtime.settings import Settings

# Enough for the broker's compiler to have seen the way of a transaction; bounded by time on a slow machine.
TRANSACTIONS = 100
RECORDS = 20
SECONDS_MAX = 15.0
CREATE_TIMEOUT_S = 10.0


def warm_broker(settings: Settings, topic: str) -> None:
    """Make `topic`, run small transactions over it and read them back, and delete it again. Raises KafkaFailure."""
    client = kafka.admin(settings.kafka)
    try:
        made = client.create_topics([NewTopic(topic, 4)], request_timeout=CREATE_TIMEOUT_S)
        kafka.answer_of(made[topic], CREATE_TIMEOUT_S)
        producer = kafka.transactional_producer(settings, "demo-warm-up")
        producer.init_transactions(CREATE_TIMEOUT_S)
        reader = kafka.reader(settings.kafka, group=topic)
        reader.assign([TopicPartition(topic, p, 0) for p in range(4)])
        ends_at = time.monotonic() + SECONDS_MAX
        for _ in range(TRANSACTIONS):
            if time.monotonic() > ends_at:
                break
            producer.begin_transaction()
            producer.produce_batch(topic, [{"value": bytes(300), "partition": n % 4} for n in range(RECORDS)])
            producer.commit_transaction(CREATE_TIMEOUT_S)
            reader.consume(RECORDS, 0.0)
        reader.close()
        client.delete_topics([topic])[topic].exception(CREATE_TIMEOUT_S)
    except KafkaException as exc:
        raise kafka.failure(exc) from exc
