"""The real `Clients` of scorer.kafka.client_ports: made from the settings, with nothing around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaException, Producer, TopicPartition

from scorer.kafka import client_ports, clients, log_bounds, rights, topic_identity, topic_limits
from scorer.kafka.failures import Away, failure
from scorer.kafka.group_members import group_clients, is_idle
from scorer.kafka.record_access import RecordAccess
from scorer.kafka.topic_identity import METADATA_TIMEOUT_S, TopicFacts
from scorer.kafka.topics import Topics
from scorer.runtime.settings import Settings

REFRESH_S: Final = 1.0
# Of a log that is compared by offsets: a record waits for no other, is sent again until it is answered for or purged,
# and none is given up while a later one of its partition goes on.
LOG_PRODUCER: Final[Mapping[str, Any]] = {
    "linger.ms": 0,
    "message.timeout.ms": 0,
    "enable.gapless.guarantee": True,
    "queue.buffering.max.kbytes": 262_144,
    "retry.backoff.ms": 10,
    "retry.backoff.max.ms": 200,
}
_Answer = TypeVar("_Answer")


class RealClients:
    """Clients of the broker that `settings` name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        kafka = settings.kafka
        self._access = RecordAccess(plain=kafka.record_access == "plain", client_id=kafka.client_id)

    def reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> client_ports.Reader:
        return clients.reader(self._settings.kafka, group=group, fetch_wait_ms=fetch_wait_ms, memory_kib=memory_kib)

    def flat_reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> client_ports.FlatReader:
        return self._access.reader(
            lambda on_error: clients.reader(
                self._settings.kafka,
                group=group,
                fetch_wait_ms=fetch_wait_ms,
                memory_kib=memory_kib,
                on_error=on_error,
            )
        )

    def member(self, group: str) -> client_ports.Member:
        return clients.member(self._settings, group)

    def transactional_producer(
        self, owner: str, *, batch_bytes_max: int = clients.BATCH_BYTES_MAX, former: bool = False
    ) -> client_ports.TransactionalProducer:
        return clients.transactional_producer(self._settings, owner, batch_bytes_max=batch_bytes_max, former=former)

    def log_producer(self, *, batch_bytes_max: int = clients.BATCH_BYTES_MAX) -> client_ports.LogProducer:
        sizes = {
            "batch.size": min(clients.BATCH_BYTES_MAX, batch_bytes_max),
            "queue.buffering.max.messages": clients.queued_messages(self._settings),
        }
        return clients.plain_producer(self._settings.kafka, **LOG_PRODUCER, **sizes)

    def columns(self, producer: client_ports.LogProducer) -> client_ports.ColumnProducer:
        return self._access.columns(producer)

    def connect(self, producer: client_ports.LogProducer, topics: Sequence[str]) -> None:
        assert isinstance(producer, Producer)
        try:
            for topic in topics:
                producer.list_topics(topic, timeout=REFRESH_S)
        except KafkaException as exc:
            raise failure(exc, "connecting a producer failed") from exc

    def broker(self) -> client_ports.Broker:
        return _Questions(self._settings)

    def lacking_rights(self) -> str:
        return rights.lacking(self._settings, rights.Role.WORKER)


class _Questions:
    """Questions to the broker, by an admin client."""

    def __init__(self, settings: Settings) -> None:
        self._client = clients.admin(settings.kafka)
        self._written = Topics.of(settings.kafka).outputs

    def topic_facts(self, names: Sequence[str], *, timeout_s: float = METADATA_TIMEOUT_S) -> Mapping[str, TopicFacts]:
        return self._asked(lambda: topic_identity.topic_facts(self._client, names, timeout_s=timeout_s))

    def starts(self, partitions: list[TopicPartition]) -> list[int]:
        return log_bounds.starts(self._client, partitions)

    def ends(self, partitions: list[TopicPartition]) -> list[int]:
        return log_bounds.ends(self._client, partitions)

    def record_bytes_max(self, names: Sequence[str]) -> Mapping[str, int]:
        return self._asked(lambda: topic_limits.record_bytes_max(self._client, names))

    def obstacle(self, needed: Mapping[str, int], *, timeout_s: float = METADATA_TIMEOUT_S) -> str:
        return self._asked(lambda: topic_limits.obstacle(self._client, self._written, needed, timeout_s=timeout_s))

    def forgettable(self, names: Sequence[str]) -> str:
        return self._asked(lambda: topic_limits.forgettable(self._client, names))

    def timestamp_types(self, names: Sequence[str]) -> Mapping[str, str]:
        return self._asked(lambda: topic_limits.timestamp_types(self._client, names))

    def group_clients(self, group: str) -> Sequence[str] | None:
        return group_clients(self._client, group)

    def is_idle(self, group: str, member_id: str, *, timeout_s: float) -> bool:
        return is_idle(self._client, group, member_id, timeout_s=timeout_s)

    def _asked(self, question: Callable[[], _Answer]) -> _Answer:
        """The client sends questions about topics to the node that it knows as controller, and by itself learns only
        every five minutes that this one is gone: what it knows is refreshed when there was no answer."""
        try:
            return question()
        except Away:
            with suppress(KafkaException):
                self._client.list_topics(timeout=REFRESH_S)
            raise

    def close(self) -> None:
        del self._client  # an admin client ends with its last reference
