"""Which topics stand behind the names: Kafka gives each topic an id once (KIP-516), so one made anew is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, TopicDescription

from scorer.errors import FraudScorerError
from scorer.kafka.admin_answers import answer_of
from scorer.kafka.failures import DENIED, TRANSIENT, Away, Denied, KafkaFailure, describe

METADATA_TIMEOUT_S = 15.0
# What a broker without topic ids (before Kafka 2.8) gives for each.
NO_ID = "A" * 22


class SourceChanged(FraudScorerError):
    """A topic is not the one that the positions belong to, or its log was cut below them. Nothing is read from it."""


@dataclass(frozen=True)
class TopicFacts:
    """A topic as the broker describes it now."""

    name: str
    id: str  # 22 characters, base64 for URLs, as Kafka's own tools print it
    partitions: int


def topic_facts(
    client: AdminClient, names: Sequence[str], *, timeout_s: float = METADATA_TIMEOUT_S
) -> dict[str, TopicFacts]:
    """Id and partition count of each topic. Creates none, also where brokers make topics that are asked for.

    Raises KafkaFailure naming the topic that does not exist, Denied, and Away when the broker does not answer.
    """
    futures = client.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
    found = {}
    for name, future in futures.items():
        try:
            found[name] = _facts(answer_of(future, timeout_s))
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() == KafkaError._UNSUPPORTED_FEATURE:
                return _facts_without_ids(client, names, timeout_s)
            raise _meaning(name, error, exc) from exc
    return found


def _facts(description: TopicDescription) -> TopicFacts:
    name = str(description.topic_id).replace("+", "-").replace("/", "_").rstrip("=")
    return TopicFacts(description.name, name or NO_ID, len(description.partitions))


def _facts_without_ids(client: AdminClient, names: Iterable[str], timeout_s: float) -> dict[str, TopicFacts]:
    """By metadata of all topics: asking for one by name would create it where brokers do that."""
    try:
        topics = client.list_topics(timeout=timeout_s).topics
    except KafkaException as exc:
        raise Away(f"Kafka does not answer: {describe(exc)}") from exc
    missing = [name for name in names if name not in topics]
    if missing:
        raise _missing(missing[0])
    return {name: TopicFacts(name, NO_ID, len(topics[name].partitions)) for name in names}


def _meaning(name: str, error: KafkaError, exc: KafkaException) -> FraudScorerError:
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return _missing(name)
    if error.code() in DENIED:
        return Denied(f"Kafka's authoriser refused: missing Read or Write on topic {name}")
    if error.code() in TRANSIENT:
        return Away(f"Kafka does not answer for topic {name} now: {describe(exc)}")
    return KafkaFailure(f"topic {name} cannot be described: {describe(exc)}")


def _missing(name: str) -> KafkaFailure:
    return KafkaFailure(f"topic {name} does not exist; run `fraud-scorer setup` first")
