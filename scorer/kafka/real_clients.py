"""The real `Clients` of scorer.kafka.client_ports: made from the settings, with nothing around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import TopicPartition

from scorer.kafka import client_ports, clients, log_bounds, rights, topic_identity
from scorer.kafka.topic_identity import TopicFacts
from scorer.runtime.settings import Settings


class RealClients:
    """Clients of the broker that `settings` name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> client_ports.Reader:
        return clients.reader(self._settings.kafka, group=group, fetch_wait_ms=fetch_wait_ms, memory_kib=memory_kib)

    def member(self, group: str) -> client_ports.Member:
        return clients.member(self._settings, group)

    def transactional_producer(self, owner: str) -> client_ports.TransactionalProducer:
        return clients.transactional_producer(self._settings, owner)

    def broker(self) -> client_ports.Broker:
        return _Questions(self._settings)

    def lacking_rights(self) -> str:
        return rights.lacking(self._settings, rights.Role.WORKER)


class _Questions:
    """Questions to the broker, by an admin client."""

    def __init__(self, settings: Settings) -> None:
        self._client = clients.admin(settings.kafka)

    def topic_facts(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        return topic_identity.topic_facts(self._client, names)

    def starts(self, partitions: list[TopicPartition]) -> list[int]:
        return log_bounds.starts(self._client, partitions)

    def ends(self, partitions: list[TopicPartition]) -> list[int]:
        return log_bounds.ends(self._client, partitions)

    def close(self) -> None:
        del self._client  # an admin client ends with its last reference
