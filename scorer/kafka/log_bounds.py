"""How many partitions a topic has, and where its logs begin and end."""

from __future__ import annotations

import time
from contextlib import suppress

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from scorer.kafka.failures import DENIED, TRANSIENT, TRANSIENT_RETRY_S, Away, Denied, KafkaFailure, describe
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, topic_facts


def partition_count(client: AdminClient, topic: str) -> int:
    """Partitions of `topic`. Raises KafkaFailure when it does not exist or the broker does not answer."""
    return topic_facts(client, [topic])[topic].partitions


def offsets(client: AdminClient, partitions: list[TopicPartition], spec: OffsetSpec) -> list[int]:
    """Offsets of `partitions` by `spec`, aborted and open transactions included: the true ends of the logs."""
    # A consumer's watermark under read_committed is the last stable offset: before the end while a transaction is open.
    until = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        futures = client.list_offsets(
            dict.fromkeys(partitions, spec),
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=METADATA_TIMEOUT_S,
        )
        try:
            found = {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}
            return [found[tp.topic, tp.partition] for tp in partitions]
        except KafkaException as exc:
            if exc.args[0].code() in DENIED:
                names = ", ".join(sorted({partition.topic for partition in partitions}))
                raise Denied(f"Kafka's authoriser refused: missing Read or Write on one of the topics {names}") from exc
            if exc.args[0].code() not in TRANSIENT:
                raise KafkaFailure(f"offsets cannot be read: {describe(exc)}") from exc
            if time.monotonic() > until:
                raise Away(f"offsets cannot be read: {describe(exc)}") from exc
        time.sleep(TRANSIENT_RETRY_S)
        with suppress(KafkaException):
            client.list_topics(timeout=METADATA_TIMEOUT_S)  # learns the new leaders and their epochs


def ends(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """Offset after the last record of each partition."""
    return offsets(client, partitions, OffsetSpec.latest())


def starts(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """Offset of the first record still there."""
    return offsets(client, partitions, OffsetSpec.earliest())
