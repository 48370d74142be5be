"""Which partitions of the audit topic are this sink's: those that a consumer group gives it.

The group's member reads nothing (its partitions are paused, positions are Postgres' own); it is only there so that the
group shares partitions out among the sinks alive. A thread polls it always, so that a sink which waits for Postgres for
an hour stays a member. Exactness does not rest on it: the locks and positions in Postgres keep two sinks apart.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from scorer import kafka
from scorer.runtime import fault_points
from scorer.runtime.settings import KafkaSettings

_POLL_S = 0.2


class AuditPartitions:
    """A member of the sinks' group, from `with` on. `given` serves any thread."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._topic = topic
        self._given: tuple[int, ...] | None = None
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._callbacks = kafka.KeptCallbacks()
        self._consumer = kafka.partition_member(settings, f"{topic}-sink")
        self._thread = threading.Thread(target=self._run, name="sink-membership", daemon=True)

    def __enter__(self) -> Self:
        assigned, revoked = self._callbacks.kept(self._assigned), self._callbacks.kept(self._revoked)
        self._consumer.subscribe([self._topic], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    @property
    def given(self) -> tuple[int, ...] | None:
        """This sink's partitions, in order: perhaps none; None while the group has not answered.

        Raises what ended the polling thread: without it the group would give the partitions away unnoticed.
        """
        if self._error is not None:
            raise self._error
        return self._given

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                fault_points.point("sink_membership")
                try:
                    self._consumer.poll(_POLL_S)  # errors come as messages; that Kafka is away, the reader reports
                except KafkaException:
                    self._stop.wait(_POLL_S)
                self._callbacks.check()
        except BaseException as exc:  # noqa: BLE001 - raised by `given` in the thread that asks
            self._error = exc

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_assign(partitions)
        consumer.pause(partitions)
        self._given = tuple(sorted({*(self._given or ()), *(p.partition for p in partitions)}))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        consumer.incremental_unassign(partitions)
        self._given = tuple(sorted({*(self._given or ())} - {p.partition for p in partitions}))
