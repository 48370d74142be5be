"""How many partitions a topic has, and where they begin and end, asked through an admin client. Serves any thread.

Never twice through a client that failed: after a broker's restart an old one kept its leader epoch and got
FENCED_LEADER_EPOCH for as long as it was asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from scorer import kafka
from scorer.runtime.settings import KafkaSettings
from scorer.sink.sink_errors import kafka_errors

_TIMEOUT_S = 5.0

_Answer = TypeVar("_Answer")


class TopicOffsets:
    """Partitions and offsets of one topic. Connects when first asked; each answer takes at most about 10 s.

    Methods raise KafkaUnavailable when asking again later may help.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._admin: AdminClient | None = None
        # Futures end only while their client lives.
        self._probe: tuple[AdminClient, dict[TopicPartition, Future[Any]]] | None = None
        self._unanswered_at_s: float | None = None  # when the first of the probes was asked that had no answer

    def facts(self) -> kafka.TopicFacts:
        """Id and number of partitions of the topic. Raises KafkaUnavailable when there is no such topic."""
        return self._ask(lambda client: kafka.topic_facts(client, [self._topic], timeout_s=_TIMEOUT_S)[self._topic])

    def partitions(self) -> list[int]:
        """The partitions of the topic. Raises as `facts` does."""
        return list(range(self.facts().partitions))

    def starts(self, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset of each partition."""
        return self._offsets(partitions, kafka.starts)

    def stable_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The last stable offset of each partition."""
        return self._offsets(partitions, kafka.stable_ends)

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The end of each partition, open transactions included.

        A commit returns before its markers are written; until then the stable end stands before records just committed.
        """
        return self._offsets(partitions, kafka.ends)

    def probe(self, partitions: Iterable[int]) -> dict[int, int]:
        """Stable ends as the last probe found them, or nothing; starts the next one. Never waits. For one thread."""
        if self._probe is None and not (partitions := list(partitions)):
            return {}
        if self._probe is None:
            client = self._client()
            wanted = {TopicPartition(self._topic, partition): OffsetSpec.latest() for partition in partitions}
            if self._unanswered_at_s is None:
                self._unanswered_at_s = time.monotonic()
            futures = client.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_TIMEOUT_S
            )
            self._probe = client, futures
            return {}
        client, asked = self._probe
        if not all(future.done() for future in asked.values()):
            return {}
        self._probe = None
        if any(future.exception() is not None for future in asked.values()):
            self._drop(client)
            return {}
        self._unanswered_at_s = None
        return {place.partition: future.result().offset for place, future in asked.items()}

    @property
    def silent_s(self) -> float:
        """For how long probes have had no answer; 0 when the last one has, seen or not."""
        since_s, probe = self._unanswered_at_s, self._probe
        if since_s is None:
            return 0.0
        if probe is not None and all(f.done() and f.exception() is None for f in list(probe[1].values())):
            return 0.0
        return time.monotonic() - since_s

    def _offsets(self, partitions: Iterable[int], question: Callable[..., list[int]]) -> dict[int, int]:
        numbers = list(partitions)
        places = [TopicPartition(self._topic, partition) for partition in numbers]
        found = self._ask(lambda client: question(client, places, timeout_s=_TIMEOUT_S))
        return dict(zip(numbers, found, strict=True))

    def _ask(self, question: Callable[[AdminClient], _Answer]) -> _Answer:
        client = self._client()
        with kafka_errors():
            try:
                return question(client)
            except kafka.KafkaFailure:
                self._drop(client)
                raise

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = kafka.admin(self._settings)
        return self._admin

    def _drop(self, client: AdminClient) -> None:
        if self._admin is client:
            self._admin = None
