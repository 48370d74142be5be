"""Consumers over the simulated broker: the one for manual assignment, and the group member."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, Message, TopicPartition

from tests.simulation.broker import Entry, Log, Refused, TimedOut
from tests.simulation.errors import as_exception, no_answer
from tests.simulation.scheduler import Waiters

if TYPE_CHECKING:
    from tests.simulation.incarnation import Incarnation
    from tests.simulation.world import World

SLOW_FETCH_SHARE = 0.2


class _Client:
    """One that has to be closed: the process's list of open ones must not grow."""

    def __init__(self, world: World, process: Incarnation) -> None:
        self._world, self._process, self._scheduler = world, process, world.scheduler
        self.closed = False
        process.open_consumers.append(self)

    def close(self) -> None:
        self._scheduler.check()
        if not self.closed:
            self.closed = True
            self._process.open_consumers.remove(self)

    def _check_open(self) -> None:
        self._scheduler.check()
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")


class SimReader(_Client):
    """A consumer with manual assignment, read_committed, auto.offset.reset=error, enable.partition.eof."""

    def __init__(self, world: World, process: Incarnation) -> None:
        super().__init__(world, process)
        self._at: dict[tuple[str, int], int] = {}
        self._epoch: dict[tuple[str, int], int] = {}
        self._high: dict[tuple[str, int], int] = {}
        self._paused: set[tuple[str, int]] = set()
        self._at_end: set[tuple[str, int]] = set()
        self._waiters: Waiters = []
        self._watched: list[Log] = []

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Also again: what was fetched and not given is fetched anew, and what is paused stays so."""
        self._check_open()
        self._unwatch()
        self._at = {(p.topic, p.partition): p.offset for p in partitions}
        # Of the record before, where it is known: the client asks the leader where that epoch ended (KIP-320).
        self._epoch = {(p.topic, p.partition): p.leader_epoch for p in partitions if p.leader_epoch is not None}
        self._high.clear()
        self._at_end.clear()
        for topic, partition in self._at:
            log = self._world.broker.log(topic, partition)
            log.watchers.append(self._more)
            self._watched.append(log)

    def poll(self, timeout: float) -> Message | None:
        self._check_open()
        self._scheduler.pause()
        until_s = self._scheduler.deadline(timeout)
        while (message := self._next()) is None:
            if timeout <= 0 or not self._scheduler.wait(self._waiters, until_s):
                return self._next() if timeout > 0 else None
        return message

    def consume(self, num_messages: int, timeout: float) -> list[Message]:
        self._check_open()
        found: list[Message] = []
        while len(found) < num_messages and self._world.random() < 0.9 and (message := self._next()) is not None:
            found.append(message)
        return found

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused.update((p.topic, p.partition) for p in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused.difference_update((p.topic, p.partition) for p in partitions)

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        self._check_open()
        return 0, self._high.get((partition.topic, partition.partition), -1001)

    def close(self) -> None:
        super().close()
        self._unwatch()

    def _unwatch(self) -> None:
        for log in self._watched:
            if self._more in log.watchers:
                log.watchers.remove(self._more)
        self._watched.clear()

    def _more(self) -> None:
        self._scheduler.wake(self._waiters)

    def _next(self) -> Message | None:
        """What a fetch of some partition gives; partitions differ in speed."""
        if self._world.network.away:
            return None
        places = list(self._at)
        first = int(self._world.random() * len(places))
        for n in range(len(places)):
            place = places[(first + n) % len(places)]
            if place in self._paused or self._world.random() < SLOW_FETCH_SHARE:
                continue
            message = self._fetched(place)
            if message is not None:
                return message
        return None

    def _fetched(self, place: tuple[str, int]) -> Message | None:
        log, at = self._world.broker.log(*place), self._at[place]
        epoch = self._epoch.get(place, log.epochs[-1][0])
        if epoch < log.epochs[-1][0] and at > log.epoch_end(epoch):
            del self._at[place]
            cut = KafkaError(KafkaError._LOG_TRUNCATION).str()
            return self._message(place, at, error=KafkaError(KafkaError._AUTO_OFFSET_RESET, cut))
        if not log.start <= at <= log.end:
            del self._at[place]
            return self._message(place, at, error=KafkaError(KafkaError._AUTO_OFFSET_RESET, "outside the log"))
        stable = self._high[place] = log.stable_end
        for offset, entry in log.committed(at):
            self._at[place] = offset + 1
            self._epoch[place] = log.epoch_at(offset)
            self._at_end.discard(place)
            return self._message(place, offset, entry)
        if at < stable or (at == stable and place not in self._at_end):
            self._at[place] = stable
            if stable > 0:  # of what it has passed over too: markers and aborted records are batches of the log
                self._epoch[place] = log.epoch_at(stable - 1)
            self._at_end.add(place)
            return self._message(place, stable, error=KafkaError(KafkaError._PARTITION_EOF, "end"))
        return None

    def _message(
        self, place: tuple[str, int], offset: int, entry: Entry | None = None, error: KafkaError | None = None
    ) -> Message:
        if entry is None:
            return Message(topic=place[0], partition=place[1], offset=offset, error=error)
        return Message(
            topic=place[0], partition=place[1], offset=offset, key=entry.key, value=entry.value,
            timestamp=(2, entry.timestamp_ms), leader_epoch=self._epoch[place],
        )  # fmt: skip


class SimMember(_Client):
    """A consumer in the group; heartbeats go on by themselves as long as its process is not frozen."""

    def __init__(self, world: World, process: Incarnation) -> None:
        super().__init__(world, process)
        self._name = process.name
        self._assignment: list[int] = []
        self._known_generation = -1
        self._handled_generation = -1
        self._was_in = self._leaving = False

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        (self._topic,) = topics
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    def poll(self, timeout: float) -> Message | None:
        self._check_open()
        group = self._world.group
        if self._handled_generation == group.generation:
            self._scheduler.wait(self._world.group_waiters, self._scheduler.deadline(timeout))
        else:
            self._scheduler.pause()
        if self._world.network.away:
            return None
        if self._name not in group.members:
            if self._was_in:
                self._was_in = False
                lost, self._handled_generation = list(self._assignment), -1
                self._on_lost(self, self._partitions(lost))
            else:
                group.join(self._name)
                self._was_in = True
            return None
        self._handled_generation = self._known_generation = group.generation
        revoked = [shard for shard in group.revoked(self._name) if shard in self._assignment]
        if revoked:
            self._on_revoke(self, self._partitions(revoked))
        for shard in group.revoked(self._name):
            if shard not in self._assignment:
                group.released(self._name, shard)
        if self._name in group.members and self._handled_generation == group.generation:
            new = sorted(group.assigned(self._name) - set(self._assignment))
            self._on_assign(self, self._partitions(new))
        return None

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self._check_open()
        metadata = self.consumer_group_metadata()
        try:
            self._world.network.call(lambda: self._committed(offsets, metadata), "commit of a group offset")
        except TimedOut:
            raise no_answer() from None
        except Refused as exc:
            raise as_exception(exc.code) from None

    def _committed(self, offsets: list[TopicPartition], metadata: tuple[str, int]) -> None:
        refusal = self._world.group.refusal(metadata)
        if refusal is not None:
            raise Refused(refusal)
        self._world.broker.offsets.update({(p.topic, p.partition): p.offset for p in offsets})

    def consumer_group_metadata(self) -> tuple[str, int]:
        self._check_open()
        if self._leaving:  # as the real one does where its group has ended before the callback
            raise RuntimeError("Consumer group metadata not available")
        return self._name, self._known_generation

    def memberid(self) -> str:
        return self._name

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._check_open()
        self._assignment += [p.partition for p in partitions]

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self._check_open()
        for partition in partitions:
            self._assignment.remove(partition.partition)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._check_open()

    def close(self) -> None:
        self._check_open()
        self._leaving = True
        if self._assignment and self._name in self._world.group.members:
            self._on_revoke(self, self._partitions(list(self._assignment)))
        self._world.group.leave(self._name)
        super().close()

    def _partitions(self, shards: list[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, shard) for shard in shards]
