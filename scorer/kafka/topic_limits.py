"""What a topic's own settings let in: the size of a record, whose timestamp, how many replicas must be in sync."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from confluent_kafka import KafkaException, TopicCollection, TopicPartitionInfo
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from scorer.kafka.admin_answers import answer_of
from scorer.kafka.failures import Kind, failure, meaning
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S

RECORD_BYTES_MAX: Final = 1_048_588  # Kafka's own default of max.message.bytes
_SIZE, _IN_SYNC, _TIMESTAMP = "max.message.bytes", "min.insync.replicas", "message.timestamp.type"
_UNCLEAN = "unclean.leader.election.enable"
COPIES_MIN: Final = 2
APPEND_TIME: Final = "LogAppendTime"
APPEND_TIME_WAY_OUT: Final = (
    "`fraud-scorer setup --append-time` sets LogAppendTime; what is in the topics by then is decided as well"
)


def record_bytes_max(client: AdminClient, names: Sequence[str]) -> dict[str, int]:
    """The max.message.bytes of each topic; Kafka's default where this client may not see it.

    Raises KafkaFailure when the broker does not answer.
    """
    return {
        name: found.get(_SIZE, RECORD_BYTES_MAX) for name, found in _settings(client, names, METADATA_TIMEOUT_S).items()
    }


def timestamp_types(client: AdminClient, names: Sequence[str]) -> dict[str, str]:
    """The message.timestamp.type of each topic that shows it to this client.

    Raises KafkaFailure when the broker does not answer.
    """
    return {
        name: found[_TIMESTAMP]
        for name, found in topic_settings(client, names, (_TIMESTAMP,), timeout_s=METADATA_TIMEOUT_S).items()
        if found
    }


def obstacle(client: AdminClient, names: Sequence[str], needed: Mapping[str, int], *, timeout_s: float) -> str:
    """What of the topics' settings keeps a transaction from being committed, for people; empty when nothing is found.

    `needed`: by topic, the size of a record that it must take. Raises KafkaFailure when the broker does not answer.
    """
    settings = _settings(client, names, timeout_s)
    for name, size in needed.items():
        limit = settings[name].get(_SIZE, RECORD_BYTES_MAX)
        if limit < size:
            return f"topic {name}: a record of {size} bytes must be written, and its {_SIZE} is {limit}. Raise it"
    for name, partitions in _described(client, names, timeout_s):
        for partition in partitions:
            # As the broker does: a topic with fewer replicas than the setting is content with those.
            wanted = min(settings[name].get(_IN_SYNC, 1), len(partition.replicas))
            if len(partition.isr) < wanted:
                return (
                    f"{name}/{partition.id} has {len(partition.isr)} of {len(partition.replicas)} replicas in sync, "
                    f"and its {_IN_SYNC} is {settings[name][_IN_SYNC]}: start the brokers that are missing, or lower it"
                )
    return ""


def forgettable(client: AdminClient, names: Sequence[str]) -> str:
    """What lets the broker lose records of these topics that it has acknowledged, for people; empty when nothing is
    found.

    Raises KafkaFailure when the broker does not answer.
    """
    settings = topic_settings(client, names, (_IN_SYNC, _UNCLEAN), timeout_s=METADATA_TIMEOUT_S)
    topics: dict[str, list[str]] = {}
    for name, partitions in _described(client, names, METADATA_TIMEOUT_S):
        replicas = min((len(partition.replicas) for partition in partitions), default=0)
        reason = _forgets(settings[name], replicas)
        if reason:
            topics.setdefault(reason, []).append(name)
    return ". ".join(f"{', '.join(of)}: {reason}" for reason, of in topics.items())


def _forgets(settings: Mapping[str, str], replicas: int) -> str:
    if settings.get(_UNCLEAN) == "true":
        return f"{_UNCLEAN}=true, so a leader that lacks acknowledged records may be elected. Set false"
    if _IN_SYNC not in settings and replicas >= COPIES_MIN:
        return (
            f"{_IN_SYNC} is not shown to this client (the right DescribeConfigs is missing), so how many replicas hold "
            "what is acknowledged is not known"
        )
    copies = min(int(settings.get(_IN_SYNC, 1)), replicas)
    if copies < COPIES_MIN:
        return (
            f"a record counts as written when {copies} of {replicas} replicas hold it, and what one broker loses is "
            f"lost. Set three replicas and {_IN_SYNC}=2"
        )
    return ""


def _described(
    client: AdminClient, names: Sequence[str], timeout_s: float
) -> Iterator[tuple[str, Sequence[TopicPartitionInfo]]]:
    """The partitions of each topic. Raises KafkaFailure when the broker does not answer."""
    for name, future in client.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s).items():
        try:
            yield name, answer_of(future, timeout_s).partitions
        except KafkaException as exc:
            raise failure(exc, f"topic {name} cannot be described", needs=f"Write on topic {name}") from exc


def _settings(client: AdminClient, names: Sequence[str], timeout_s: float) -> dict[str, dict[str, int]]:
    """The two settings of each topic, as far as they are shown."""
    texts = topic_settings(client, names, (_SIZE, _IN_SYNC), timeout_s=timeout_s)
    return {name: {key: int(value) for key, value in found.items()} for name, found in texts.items()}


def topic_settings(
    client: AdminClient, names: Sequence[str], wanted: Sequence[str], *, timeout_s: float
) -> dict[str, dict[str, str]]:
    """The `wanted` settings of each topic, as far as they are shown to this client.

    Raises KafkaFailure when the broker does not answer.
    """
    found: dict[str, dict[str, str]] = {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    if not resources:
        return found
    for resource, future in client.describe_configs(resources, request_timeout=timeout_s).items():
        found[resource.name] = {}
        try:
            entries = answer_of(future, timeout_s)
        except KafkaException as exc:
            if meaning(exc.args[0]) is Kind.DENIED:
                continue  # the right DescribeConfigs is missing; `acls worker --check` names it
            raise failure(exc, f"the settings of topic {resource.name} cannot be read") from exc
        for name in wanted:
            if name in entries and entries[name].value is not None:
                found[resource.name][name] = str(entries[name].value)
    return found
