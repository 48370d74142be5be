"""scorer.kafka.client_ports.Clients over the simulated broker.

Every request may be lost, done without an answer, or done late (Network.call); whoever waits hands the baton on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition

from scorer.kafka import Away, Denied, LogProducer, PlainColumns, PlainReader, TopicFacts
from tests.simulation.broker import Log, Refused, TimedOut
from tests.simulation.consumers import SimMember, SimReader
from tests.simulation.log_producer import Appends, SimLogProducer
from tests.simulation.producer import SimProducer, Transactions

if TYPE_CHECKING:
    from tests.simulation.incarnation import Incarnation
    from tests.simulation.world import World


class SimClients:
    """Clients of one process."""

    def __init__(self, world: World, process: Incarnation) -> None:
        self._world, self._process = world, process

    def reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> SimReader:
        return SimReader(self._world, self._process)

    def flat_reader(self, group: str, *, fetch_wait_ms: int = 5, memory_kib: int = 32_768) -> PlainReader:
        return PlainReader(self.reader(group))

    def member(self, group: str) -> SimMember:
        return SimMember(self._world, self._process)

    def transactional_producer(self, owner: str, *, batch_bytes_max: int = 0, former: bool = False) -> SimProducer:
        if "one_transactional_id" in self._world.broken:
            owner = f"{owner}@{self._process.name}"
        producer = SimProducer(Transactions(self._world, self._process, owner))
        self._process.producers.append(weakref.ref(producer))
        return producer

    def log_producer(self, *, batch_bytes_max: int = 0) -> SimLogProducer:
        producer = SimLogProducer(Appends(self._world, self._process))
        self._process.log_producers.append(weakref.ref(producer))
        return producer

    def columns(self, producer: LogProducer) -> PlainColumns:
        return PlainColumns(producer)

    def connect(self, producer: LogProducer, topics: Sequence[str]) -> None:
        self._world.scheduler.pause()

    def broker(self) -> SimQuestions:
        return SimQuestions(self._world, self._process)

    def lacking_rights(self) -> str:
        self._world.scheduler.pause()
        return "a right" if self._world.network.denied else ""


class SimQuestions:
    """Answers about topics and logs."""

    def __init__(self, world: World, process: Incarnation) -> None:
        self._world, self._process = world, process

    def topic_facts(self, names: Sequence[str], *, timeout_s: float = 0.0) -> Mapping[str, TopicFacts]:
        return self._ask(lambda: self._world.broker.facts(names))

    def forgettable(self, names: Sequence[str]) -> str:
        return self._ask(lambda: "")

    def timestamp_types(self, names: Sequence[str]) -> Mapping[str, str]:
        return self._ask(lambda: dict.fromkeys(names, "LogAppendTime"))

    def starts(self, partitions: list[TopicPartition]) -> list[int]:
        return self._ask(lambda: [self._log(each).start for each in partitions])

    def ends(self, partitions: list[TopicPartition]) -> list[int]:
        whole = "journal_read_to_its_end" not in self._world.broken
        return self._ask(lambda: [self._log(p).end if whole else self._log(p).stable_end for p in partitions])

    def record_bytes_max(self, names: Sequence[str]) -> Mapping[str, int]:
        limits = self._world.broker.record_bytes_max
        return self._ask(lambda: {name: limits.get(name, 1_048_588) for name in names})

    def obstacle(self, needed: Mapping[str, int], *, timeout_s: float = 0.0) -> str:
        limits = self._world.broker.record_bytes_max
        return self._ask(
            lambda: next((f"{n} takes {limits[n]}" for n, size in needed.items() if limits.get(n, size) < size), "")
        )

    def group_clients(self, group: str) -> Sequence[str] | None:
        return None

    def is_idle(self, group: str, member_id: str, *, timeout_s: float) -> bool:
        return False  # not asked under the classic protocol

    def close(self) -> None:
        self._world.scheduler.check()

    def _log(self, partition: TopicPartition) -> Log:
        return self._world.broker.log(partition.topic, partition.partition)

    def _ask(self, function: Callable[[], Any]) -> Any:
        try:
            return self._world.network.call(function, "question")
        except TimedOut:
            raise Away("the broker does not answer") from None
        except Refused as exc:
            raise Denied(f"the authoriser refuses ({exc.code})") from None
