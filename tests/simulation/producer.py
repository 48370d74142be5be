"""A transactional producer over the simulated broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from tests.simulation.broker import ABORTING, COMMITTED, Entry, Log, Refused, TimedOut
from tests.simulation.errors import as_exception, no_answer

if TYPE_CHECKING:
    from tests.simulation.incarnation import Incarnation
    from tests.simulation.world import World

HANG_SHARE = 0.002  # of the calls that send offsets, where the network has faults
FLUSH_SHARE = 0.25  # of the records that the client sends before it is asked to commit
PRODUCE_TRIES_MAX = 4


class SimProducer:
    """What the product holds of a transactional producer. Its client lives as long as somebody has it, as with
    confluent-kafka's: no frame of a call keeps it, so a traceback that is kept somewhere does not either."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transactions, name)


class Transactions:
    """A transactional producer: records wait in its queue and are sent in the background, at the latest by the commit.

    What fails in the background is raised by the next call that sends offsets or commits, as in librdkafka.
    """

    def __init__(self, world: World, process: Incarnation, owner: str) -> None:
        self._world, self._process, self._scheduler = world, process, world.scheduler
        self.owner = owner
        self._epoch = -1
        self._queue: dict[tuple[str, int], list[tuple[Entry, Any]]] = {}
        self._reports: list[Callable[[], None]] = []
        self._failed: KafkaException | None = None
        self._fatal: KafkaException | None = None
        self._asked_for = False  # the transaction has sent a request

    def init_transactions(self, timeout: float) -> None:
        self._epoch = self._asked(lambda: self._world.broker.init(self.owner), "init", timeout)

    def begin_transaction(self) -> None:
        self._scheduler.check()
        self._queue.clear()
        self._failed, self._asked_for = None, False

    def produce(
        self, topic: str, value: bytes | None = None, key: bytes | None = None, partition: int = -1, *,
        on_delivery: Any = None, headers: Any = None,
    ) -> None:  # fmt: skip
        self._scheduler.check()
        place = (topic, max(0, partition))
        entry = Entry(key, value, COMMITTED, self._world.broker.timestamp_ms(), headers)
        self._queue.setdefault(place, []).append((entry, on_delivery))
        if self._world.random() < FLUSH_SHARE:
            self._flush()

    def produce_batch(self, topic: str, messages: list[dict[str, Any]], partition: int) -> int:
        for message in messages:
            self.produce(topic, message["value"], message["key"], partition)
        return len(messages)

    def list_topics(self, topic: str, timeout: float) -> Any:
        self._scheduler.check()
        return self._world.broker.metadata(topic)

    def send_offsets_to_transaction(self, positions: list[TopicPartition], metadata: Any, timeout: float) -> None:
        self._scheduler.check()
        if metadata is None:
            raise TypeError("group metadata must not be None")
        if self._world.network.faults and self._world.random() < HANG_SHARE:
            self._world.note(self._process, "a call that sends offsets does not come back")
            self._process.hung += 1
            self._scheduler.wait([])
        if self._world.random() < 0.5:
            self._flush()
        self._raise_failed()
        offsets = {(p.topic, p.partition): p.offset for p in positions}
        owner, epoch = self.owner, self._epoch
        self._asked(
            lambda: self._world.offsets_sent(self._process, owner, epoch, offsets, metadata), "offsets", timeout
        )

    def commit_transaction(self, timeout: float) -> None:
        self._flush()
        self._raise_failed()
        owner, epoch = self.owner, self._epoch
        self._asked(lambda: self._world.committed(self._process, owner, epoch), "commit", timeout)

    def abort_transaction(self, timeout: float) -> None:
        self._queue.clear()
        if not self._asked_for:  # nothing can have reached the broker, so the client does not ask it
            return
        owner, epoch = self.owner, self._epoch
        self._asked(lambda: self._world.broker.end(owner, epoch, ABORTING), "abort", timeout)

    def poll(self, timeout: float) -> int:
        self._scheduler.check()
        if self._fatal is not None:
            raise self._fatal
        reports, self._reports = self._reports, []
        for report in reports:
            report()
        return len(reports)

    def purge(self) -> None:
        """Reports of what is queued come with the next `poll`."""
        self._scheduler.check()
        error = KafkaError(KafkaError._PURGE_QUEUE)
        for items in self._queue.values():
            for _, report in items:
                if report is not None:
                    self._reports.append(lambda report=report: report(error, None))
        self._queue.clear()

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _flush(self) -> None:
        """Send what is queued. A repeated request is known by its number, also one that arrives late."""
        self._scheduler.check()
        queue, self._queue = self._queue, {}
        owner, epoch = self.owner, self._epoch
        for place, items in queue.items():
            log = self._world.broker.log(*place)
            answered: list[int] = []

            def once(log: Log = log, items: Any = items, answered: list[int] = answered) -> int:
                if not answered:
                    answered.append(self._world.broker.produce(owner, epoch, log, [entry for entry, _ in items]))
                return answered[0]

            for _ in range(PRODUCE_TRIES_MAX):
                try:
                    first = self._asked(once, f"produce to {place[0]}", 5.0)
                    break
                except KafkaException as exc:
                    if exc.args[0].code() != KafkaError._TIMED_OUT:
                        self._failed = self._failed or exc
                        return
            else:
                self._failed = self._failed or as_exception(KafkaError._MSG_TIMED_OUT)
                return
            for n, (_, on_delivery) in enumerate(items):
                if on_delivery is not None:
                    message = Message(topic=place[0], partition=place[1], offset=first + n)
                    self._reports.append(lambda on_delivery=on_delivery, message=message: on_delivery(None, message))

    def _asked(self, function: Callable[[], Any], name: str, timeout: float) -> Any:
        """One request, repeated as long as the transaction before is being completed, as the client does."""
        self._scheduler.check()
        self._asked_for = True
        until_s = self._scheduler.now_s + timeout
        while True:
            try:
                return self._world.network.call(function, name)
            except TimedOut:
                raise no_answer() from None
            except Refused as exc:
                if exc.code != KafkaError.CONCURRENT_TRANSACTIONS:
                    failure = as_exception(exc.code)
                    if failure.args[0].fatal():  # every later call says it again, `poll` too
                        self._fatal = KafkaException(failure.args[0])
                    raise failure from None
                if self._scheduler.now_s > until_s:
                    raise no_answer() from None
                self._scheduler.sleep(0.01)
