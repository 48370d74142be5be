"""How many partitions a topic has, and where its logs begin and end."""

from __future__ import annotations

import time
from contextlib import suppress

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from scorer.kafka.admin_answers import answer_of
from scorer.kafka.failures import DENIED, TRANSIENT, TRANSIENT_RETRY_S, Away, Denied, KafkaFailure, describe
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, topic_facts

# A partition that was just added has no leader yet, as far as this client knows.
_ASK_AGAIN = TRANSIENT | {KafkaError._NOENT}


def partition_count(client: AdminClient, topic: str, *, timeout_s: float = METADATA_TIMEOUT_S) -> int:
    """Partitions of `topic`. Raises KafkaFailure when it does not exist or the broker does not answer."""
    return topic_facts(client, [topic], timeout_s=timeout_s)[topic].partitions


def offsets(
    client: AdminClient,
    partitions: list[TopicPartition],
    spec: OffsetSpec,
    *,
    isolation: IsolationLevel = IsolationLevel.READ_UNCOMMITTED,
    timeout_s: float = METADATA_TIMEOUT_S,
) -> list[int]:
    """Offsets of `partitions` by `spec`, as readers of `isolation` see them. Raises KafkaFailure within about twice
    `timeout_s`."""
    until = time.monotonic() + timeout_s
    while True:
        futures = client.list_offsets(
            dict.fromkeys(partitions, spec), isolation_level=isolation, request_timeout=timeout_s
        )
        try:
            found = {(tp.topic, tp.partition): answer_of(f, timeout_s).offset for tp, f in futures.items()}
            return [found[tp.topic, tp.partition] for tp in partitions]
        except KafkaException as exc:
            if exc.args[0].code() in DENIED:
                names = ", ".join(sorted({partition.topic for partition in partitions}))
                raise Denied(f"Kafka's authoriser refused: missing Read or Write on one of the topics {names}") from exc
            if exc.args[0].code() not in TRANSIENT:
                topic_facts(client, sorted({p.topic for p in partitions}))  # its error names a topic that is not there
            if exc.args[0].code() not in _ASK_AGAIN:
                raise KafkaFailure(f"offsets cannot be read: {describe(exc)}") from exc
            if time.monotonic() > until:
                raise Away(f"offsets cannot be read: {describe(exc)}") from exc
        time.sleep(TRANSIENT_RETRY_S)
        with suppress(KafkaException):
            client.list_topics(timeout=timeout_s)  # learns the new leaders and their epochs


def ends(client: AdminClient, partitions: list[TopicPartition], *, timeout_s: float = METADATA_TIMEOUT_S) -> list[int]:
    """Offset after the last record of each partition, aborted and open transactions included: the logs' true ends."""
    return offsets(client, partitions, OffsetSpec.latest(), timeout_s=timeout_s)


def stable_ends(
    client: AdminClient, partitions: list[TopicPartition], *, timeout_s: float = METADATA_TIMEOUT_S
) -> list[int]:
    """The last stable offset of each partition: before the true end while a transaction is open."""
    # Not a consumer's `get_watermark_offsets`: it outstays its timeout, and hung the whole process when another thread
    # was polling (confluent-kafka-python#412 and #413).
    committed = IsolationLevel.READ_COMMITTED
    return offsets(client, partitions, OffsetSpec.latest(), isolation=committed, timeout_s=timeout_s)


def starts(
    client: AdminClient, partitions: list[TopicPartition], *, timeout_s: float = METADATA_TIMEOUT_S
) -> list[int]:
    """Offset of the first record still there."""
    return offsets(client, partitions, OffsetSpec.earliest(), timeout_s=timeout_s)
