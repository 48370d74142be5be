"""An idempotent producer without transactions over the simulated broker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Message

from tests.simulation.broker import COMMITTED, Entry, Refused, TimedOut

if TYPE_CHECKING:
    from tests.simulation.incarnation import Incarnation
    from tests.simulation.world import World

SENT_SHARE = 0.4  # of the records that the client has sent before `produce` comes back
IDLE_S = 0.001


class SimLogProducer:
    """What the product holds of it: see SimProducer."""

    def __init__(self, appends: Appends) -> None:
        self._appends = appends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._appends, name)


class _Request:
    """Records of one partition that are sent together. A repeated request is known by its number, also a late one."""

    def __init__(self, place: tuple[str, int], items: list[tuple[Entry, Any]]) -> None:
        self.place, self.items = place, items
        self.first: int | None = None
        self.is_sent = False

    def arrive(self, world: World) -> int:
        if self.first is None:
            log = world.broker.log(*self.place)
            self.first = log.end
            for entry, _ in self.items:
                log.append(entry)
        return self.first


class Appends:
    """Records wait in a queue for each partition and are sent in the background, one request of a partition after the
    other: the next one only once the one before is answered."""

    def __init__(self, world: World, process: Incarnation) -> None:
        self._world, self._process, self._scheduler = world, process, world.scheduler
        self._queues: dict[tuple[str, int], deque[tuple[Entry, Any]]] = {}
        self._requests: dict[tuple[str, int], _Request] = {}
        self._reports: list[Callable[[], None]] = []
        self._fatal: KafkaException | None = None
        self._refusal: KafkaException | None = None  # raised once by `poll`, before the reports

    def produce(
        self, topic: str, value: bytes | None = None, key: bytes | None = None, partition: int = -1, *,
        on_delivery: Any = None, headers: Any = None,
    ) -> None:  # fmt: skip
        self._scheduler.check()
        if self._fatal is not None:
            raise self._fatal
        entry = Entry(key, value, COMMITTED, self._world.broker.timestamp_ms(), headers)
        self._queues.setdefault((topic, partition), deque()).append((entry, on_delivery))
        if self._world.random() < SENT_SHARE:
            self._send((topic, partition))

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> int:
        for message in messages:
            self.produce(topic, message["value"], message["key"], partition)
        return len(messages)

    def list_topics(self, topic: str, timeout: float) -> Any:
        self._scheduler.check()
        return self._world.broker.metadata(topic)

    def poll(self, timeout: float) -> int:
        self._scheduler.check()
        for place in list(self._queues):
            self._send(place)
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal
        reports, self._reports = self._reports, []
        for report in reports:
            report()
        if not reports and timeout > 0:
            self._scheduler.sleep(timeout)
        return len(reports)

    def purge(self) -> None:
        """Reports come with the next `poll`. What is on its way may still arrive."""
        self._scheduler.check()
        error = KafkaError(KafkaError._PURGE_QUEUE)
        for place in list(self._queues):
            self._fail(place, error)
        self._requests.clear()

    def _refused(self, place: tuple[str, int], code: int) -> None:
        """With enable.gapless.guarantee: the records that were sent are reported with the broker's answer, all that
        wait as purged, and the client is of no further use."""
        self._fatal = KafkaException(KafkaError(KafkaError._FATAL, "Unable to produce message: Local: Fatal error"))
        text = f"ProduceRequest for {place[0]} failed: {KafkaError(code).str()}: unable to satisfy gap-less guarantee"
        self._refusal = KafkaException(KafkaError(KafkaError._GAPLESS_GUARANTEE, text, fatal=True))
        self._report(self._requests.pop(place).items, KafkaError(code))
        for queue in self._queues.values():
            self._report(list(queue), KafkaError(KafkaError._PURGE_QUEUE))
        self._queues.clear()

    def _fail(self, place: tuple[str, int], error: KafkaError) -> None:
        request = self._requests.pop(place, None)
        self._report([*(request.items if request else ()), *self._queues.pop(place, ())], error)

    def _report(self, items: list[tuple[Entry, Any]], error: KafkaError) -> None:
        for _, report in items:
            if report is not None:
                self._reports.append(lambda report=report: report(error, None))

    def _send(self, place: tuple[str, int]) -> None:
        request = self._requests.get(place)
        if request is None:
            queue = self._queues.get(place)
            if not queue:
                return
            count = 1 + int(len(queue) * self._world.random())
            request = self._requests[place] = _Request(place, [queue.popleft() for _ in range(min(count, len(queue)))])
        if request.is_sent:  # by another thread, which waits for the answer
            return
        request.is_sent = True
        try:
            first = self._world.network.call(lambda: request.arrive(self._world), f"append to {place[0]}")
        except TimedOut:  # sent again by the next call
            if "log_producers_give_nothing_up" in self._world.broken and self._requests.get(place) is request:
                del self._requests[place]  # a later report of the partition is taken for this one's as well
            return
        except Refused as exc:  # no gap may follow: the client sends nothing more
            if self._requests.get(place) is request:  # not purged meanwhile
                self._refused(place, exc.code)
            return
        finally:
            request.is_sent = False
        if self._requests.get(place) is not request:  # purged meanwhile
            return
        del self._requests[place]
        for n, (_, on_delivery) in enumerate(request.items):
            if on_delivery is not None:
                message = Message(topic=place[0], partition=place[1], offset=first + n)
                self._reports.append(lambda on_delivery=on_delivery, message=message: on_delivery(None, message))
