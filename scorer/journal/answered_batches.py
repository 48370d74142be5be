"""Topic decisions-fast, looked at by a new owner: whatever is answered there has its order in the log.

An order is durable before its decisions leave. Where the newest decision is of a batch that neither journal nor order
log holds, the order log has lost what it had acknowledged: by an unclean election, say, or with a disk. That batch
cannot be decided the same again, so its payments must not be decided anew without an operator.
"""

from __future__ import annotations

from contextlib import closing
from typing import Final

from confluent_kafka import KafkaError, Message, TopicPartition

from schemas.fast_decision import place_of
from scorer import kafka
from scorer.journal.journal_reader import WAY_OUT
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Threads

WAIT_S: Final = 0.2
# Of each partition so many of the newest records are read: behind them may be older decisions that an owner repeated.
RECORDS: Final = 1_000


class AnsweredBatches:
    """The newest batch that a shard has answered. Reading begins at once, while the shard does other things."""

    def __init__(self, settings: Settings, shard: int, clients: kafka.Clients, threads: Threads) -> None:
        """To be made when no former owner's order counts any more that is not in the log, and before anything is
        published again: after a claim. Raises KafkaFailure."""
        self._topic = kafka.Topics.of(settings.kafka).decisions_fast
        self._shard, self._threads, self._no_progress_s = shard, threads, settings.worker.no_progress_s
        self._newest = -1
        with closing(clients.broker()) as broker:
            count = broker.topic_facts([self._topic])[self._topic].partitions
            places = [TopicPartition(self._topic, p) for p in range(shard, count, settings.worker.shards)]
            starts, ends = broker.starts(places), broker.ends(places)
        for place, start, end in zip(places, starts, ends, strict=True):
            place.offset = max(start, end - RECORDS)
        self._ends = {place.partition: end for place, end in zip(places, ends, strict=True)}
        last = [place for place in places if place.offset < self._ends[place.partition]]
        self._left = {place.partition for place in last}
        self._consumer: kafka.Reader | None = None
        if last:
            prefix = settings.kafka.topic_prefix
            self._consumer = clients.reader(f"{prefix}fraud-scorer-answered-reader", memory_kib=4096)
            try:
                with kafka.surfaced():
                    self._consumer.assign(last)
            except BaseException:
                self.close()
                raise

    def newest(self, stop: Event | None = None) -> int:
        """Number of the newest batch; -1 where there is none, or retention has taken it; of those that were read once
        `stop` is set. Raises KafkaFailure, Away when reading stalls."""
        deadline = self._threads.monotonic() + self._no_progress_s
        while self._left and self._consumer is not None and not (stop is not None and stop.is_set()):
            messages = kafka.take(self._consumer, WAIT_S, messages_max=RECORDS)
            taken = [self._take(message) for message in messages]
            if any(taken):
                deadline = self._threads.monotonic() + self._no_progress_s
            elif self._threads.monotonic() > deadline:
                raise kafka.Away(f"{self._topic}: its newest decisions were not read for {self._no_progress_s:g} s")
        return self._newest

    def check(self, following: int, stop: Event | None = None) -> None:
        """Raise SourceChanged where a batch from number `following` on is answered: the one that would be decided next
        by journal and order log. Once `stop` is set, nothing is decided."""
        newest = self.newest(stop)
        if newest >= following:
            raise kafka.SourceChanged(
                f"{self._topic}: batch {newest} of shard {self._shard} was answered, and journal and order log end "
                f"with batch {following - 1}: the order log lost records, or both are other ones now. {WAY_OUT}"
            )

    def close(self) -> None:
        """Stop reading."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _take(self, message: Message) -> bool:
        """Whether the message brings reading on."""
        partition, error = kafka.present(message.partition(), "partition"), message.error()
        if error is None:
            try:
                shard, sequence = place_of(message.value() or b"")
            except ValueError:  # of a stranger: it says nothing of ours
                shard, sequence = -1, -1
            if shard == self._shard:
                self._newest = max(self._newest, sequence)
            if kafka.present(message.offset(), "offset") + 1 < self._ends[partition]:
                return True
        elif error.code() != KafkaError._PARTITION_EOF:  # which comes earlier where the last records were removed
            failed = kafka.read_failure(error, f"{self._topic}/{partition}")
            if isinstance(failed, kafka.Away):  # passes by itself
                return False
            if not isinstance(failed, kafka.OutOfRange):  # retention has taken what was there
                raise failed
        self._left.discard(partition)
        return True
