"""Which partitions of the audit topic are this sink's: those a consumer group gives it.

The group's consumer reads nothing (its partitions are paused, positions are Postgres' own); it is only there so that
the group shares partitions out among the sinks alive. A thread polls it always, so that a sink which waits for Postgres
for an hour stays a member. Exactness does not rest on it: the locks and positions in Postgres keep two sinks apart.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

_POLL_S = 0.2


class Membership:
    """A member of the sinks' group, from `with` on. `partitions` serves any thread."""

    def __init__(self, bootstrap_servers: str, client_config: Mapping[str, object], topic: str) -> None:
        self._topic = topic
        self._partitions: tuple[int, ...] | None = None
        self._stop = threading.Event()
        self._consumer = Consumer(
            {
                **client_config,
                "bootstrap.servers": bootstrap_servers,
                "group.id": f"{topic}-sink",
                "enable.auto.commit": False,
                "auto.offset.reset": "latest",
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": 6_000,  # a dead sink's partitions move after six seconds, Kafka's own floor
                "heartbeat.interval.ms": 500,  # a cooperative hand-over takes two rounds
                "queued.max.messages.kbytes": 1024,
                "topic.metadata.refresh.interval.ms": 60_000,  # new partitions are noticed by then
            }
        )
        self._thread = threading.Thread(target=self._run, name="sink-membership", daemon=True)

    def __enter__(self) -> Self:
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    @property
    def partitions(self) -> tuple[int, ...] | None:
        """This sink's, in order: perhaps none; None while the group has not said."""
        return self._partitions

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._consumer.poll(_POLL_S)  # errors come as messages: Kafka's absence is the reader's to tell
            except KafkaException:
                self._stop.wait(_POLL_S)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)
        self._partitions = tuple(sorted({*(self._partitions or ()), *(p.partition for p in partitions)}))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        self._partitions = tuple(sorted({*(self._partitions or ())} - {p.partition for p in partitions}))
