"""Who is in a consumer group."""

from __future__ import annotations

from typing import Final

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

from scorer.kafka.admin_answers import answer_of
from scorer.kafka.failures import failure

TIMEOUT_S: Final = 15.0


def group_clients(client: AdminClient, group: str) -> list[str] | None:
    """The client.id of each member; None when the broker knows no such group. Raises KafkaFailure."""
    found = _described(client, group, TIMEOUT_S)
    return None if found is None else [member.client_id for member in found.members]


def is_idle(client: AdminClient, group: str, member_id: str, *, timeout_s: float) -> bool:
    """Whether the member is in the group, has no partition and is to be given none: of a group whose protocol is the
    consumer protocol, for another one does not show it. Raises KafkaFailure."""
    found = _described(client, group, timeout_s)
    for member in () if found is None else found.members:
        if member.member_id == member_id:
            wanted = member.target_assignment
            return wanted is not None and not wanted.topic_partitions and not member.assignment.topic_partitions
    return False


def _described(client: AdminClient, group: str, timeout_s: float) -> ConsumerGroupDescription | None:
    """None when the broker knows no such group. Raises KafkaFailure."""
    future = client.describe_consumer_groups([group], request_timeout=timeout_s)[group]
    try:
        found: ConsumerGroupDescription = answer_of(future, timeout_s)
    except KafkaException as exc:
        if exc.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return None
        raise failure(exc, f"the group {group} cannot be described", needs=f"Describe on group {group}") from exc
    return None if found.state == ConsumerGroupState.DEAD else found
