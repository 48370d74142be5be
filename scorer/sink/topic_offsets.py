"""Where the audit topic begins and ends, asked through an admin client. Serves any thread.

Not through the consumer: its `get_watermark_offsets` outstays its timeout and hung the whole process here when another
thread was polling (see also confluent-kafka-python#412 and #413). And never twice through a client that failed: after a
broker's restart an old one kept its leader epoch and got FENCED_LEADER_EPOCH for as long as it was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from scorer.sink.sink_errors import KafkaUnavailable, SinkError

_EARLIEST, _LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
_TIMEOUT_S = 5.0

Places = dict[TopicPartition, "Future[Any]"]


class TopicOffsets:
    """Offsets of one topic. Connects when first asked."""

    def __init__(
        self, bootstrap_servers: str, client_config: Mapping[str, str | int | float | bool], topic: str
    ) -> None:
        self._config = {**client_config, "bootstrap.servers": bootstrap_servers}
        self._topic = topic
        self._admin: AdminClient | None = None
        self._probe: tuple[AdminClient, Places] | None = None  # futures end only while their client lives

    def starts(self, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset of each partition. Raises KafkaUnavailable after at most 10 s."""
        return self._offsets(partitions, _EARLIEST, IsolationLevel.READ_UNCOMMITTED)

    def committed_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The last stable offset of each partition. Raises KafkaUnavailable after at most 10 s."""
        return self._offsets(partitions, _LATEST, IsolationLevel.READ_COMMITTED)

    def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The end of each partition, open transactions included. Raises KafkaUnavailable after at most 10 s.

        A commit returns before its markers are written; until then the stable end stands before records just committed.
        """
        return self._offsets(partitions, _LATEST, IsolationLevel.READ_UNCOMMITTED)

    def probe(self, partitions: Iterable[int]) -> dict[int, int]:
        """Committed ends as the last probe found them, or nothing; starts the next one. Never waits. For one thread."""
        if self._probe is None:
            self._probe = self._ask(partitions, _LATEST, IsolationLevel.READ_COMMITTED)
            return {}
        admin, asked = self._probe
        if not all(future.done() for future in asked.values()):
            return {}
        self._probe = None
        if any(future.exception() is not None for future in asked.values()):
            self._drop(admin)
            return {}
        return {place.partition: future.result().offset for place, future in asked.items()}

    def _offsets(self, partitions: Iterable[int], which: OffsetSpec, isolation: IsolationLevel) -> dict[int, int]:
        with kafka_errors():
            admin, asked = self._ask(partitions, which, isolation)
            try:
                # Twice the broker's time: the client then has answered by itself, be it with a failure.
                return {place.partition: future.result(2 * _TIMEOUT_S).offset for place, future in asked.items()}
            except FutureTimeoutError as exc:
                self._drop(admin)
                raise KafkaUnavailable(f"{self._topic}: no answer about its offsets") from exc
            except KafkaException:
                self._drop(admin)
                raise

    def _ask(
        self, partitions: Iterable[int], which: OffsetSpec, isolation: IsolationLevel
    ) -> tuple[AdminClient, Places]:
        admin = self._admin
        if admin is None:
            admin = self._admin = AdminClient(self._config)
        places = {TopicPartition(self._topic, partition): which for partition in partitions}
        return admin, admin.list_offsets(places, isolation_level=isolation, request_timeout=_TIMEOUT_S)

    def _drop(self, admin: AdminClient) -> None:
        if self._admin is admin:
            self._admin = None


@contextmanager
def kafka_errors() -> Iterator[None]:
    """Errors of Kafka as ours: whatever is not fatal to the client is waited for.

    A broker that has just started names its topics unknown (_NOENT); credentials and ACLs are repaired while processes
    run. Positions are Postgres' own, so trying again is always safe.
    """
    try:
        yield
    except KafkaException as exc:
        error = exc.args[0]
        if error.fatal():
            raise SinkError(f"the Kafka client cannot go on: {error.name()}") from exc
        raise KafkaUnavailable(f"Kafka: {error.name()}") from exc
