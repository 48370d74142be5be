"""Who is in a consumer group."""

from __future__ import annotations

from typing import Final

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from scorer.kafka.failures import Away, failure

TIMEOUT_S: Final = 15.0


def group_clients(client: AdminClient, group: str) -> list[str] | None:
    """The client.id of each member; None when the broker knows no such group. Raises KafkaFailure."""
    future = client.describe_consumer_groups([group], request_timeout=TIMEOUT_S)[group]
    try:
        found = future.result(TIMEOUT_S + 5.0)
    except TimeoutError as exc:
        raise Away("Kafka does not answer a question about a group") from exc
    except KafkaException as exc:
        if exc.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return None
        raise failure(exc, f"the group {group} cannot be described", needs=f"Describe on group {group}") from exc
    if found.state == ConsumerGroupState.DEAD:
        return None
    return [member.client_id for member in found.members]
