"""What the worker is measured against: every payment's own bytes back through the same client, one transaction per
batch. `Echo` by Python objects; `FlatEcho` by the client library's C interface, which is the floor.

It reads the payments topic and produces each value, with its key, to the partition of the same number of the decisions
topic, with the offsets in the same transaction: what any exactly-once consumer must at least do. No decoding, no
overlap, no waiting beyond `gather_ms`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, TopicPartition

from scorer import kafka
from scorer.runtime.settings import Settings


class Echo:
    """Echoes until stopped."""

    def __init__(self, settings: Settings, *, batch_max: int, gather_ms: float) -> None:
        self._topics = kafka.Topics.of(settings.kafka)
        client = kafka.admin(settings.kafka)
        partitions = range(kafka.partition_count(client, self._topics.payments))
        group = f"{settings.kafka.topic_prefix}echo"
        # Subscribed to nothing: the group exists for its offsets alone, as the worker's does for the payments topic.
        self._member = kafka.member(settings, group)
        self._member.subscribe([self._topics.journal])
        while not self._member.assignment():
            self._member.poll(0.1)
        self._producer = kafka.transactional_producer(settings, "echo")
        self._producer.init_transactions(30)
        self._open(settings, f"{group}-reader", [TopicPartition(self._topics.payments, p, 0) for p in partitions])
        self._batch_max = batch_max
        self._gather_s = gather_ms / 1000.0
        self.echoed = 0

    def _open(self, settings: Settings, group: str, places: list[TopicPartition]) -> None:
        self._reader: Any = kafka.reader(settings.kafka, group=group)
        self._reader.assign(places)

    def run(self, stop: threading.Event) -> None:
        """Echo batch after batch."""
        polled = 0.0
        while not stop.is_set():
            if time.monotonic() - polled > 1.0:
                self._member.poll(0)
                polled = time.monotonic()
            batch = self._gather()
            if batch:
                self._producer.begin_transaction()
                count, ends = self._produce(batch)
                self._producer.send_offsets_to_transaction(
                    [TopicPartition(self._topics.payments, p, end) for p, end in ends.items()],
                    self._member.consumer_group_metadata(),
                    30,
                )
                self._producer.commit_transaction(30)
                self.echoed += count

    def _gather(self) -> list[Any]:
        first = self._reader.poll(0.1)
        if first is None:
            return []
        messages = [first]
        deadline = time.monotonic() + self._gather_s
        while True:
            messages += self._reader.consume(self._batch_max - len(messages), 0)
            remaining = deadline - time.monotonic()
            if len(messages) >= self._batch_max or remaining <= 0:
                break
            following = self._reader.poll(remaining)
            if following is not None:
                messages.append(following)
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise kafka.KafkaFailure(error.str())
        return [message for message in messages if message.error() is None]

    def _produce(self, batch: list[Any]) -> tuple[int, dict[int, int]]:
        """How many payments were handed over, and by partition the offset after the last one."""
        ends = {}
        for message in batch:
            ends[message.partition()] = message.offset() + 1
        self._producer.produce_batch(
            self._topics.decisions,
            [{"value": m.value(), "key": m.key(), "partition": m.partition()} for m in batch],
        )
        return len(batch), ends

    def close(self) -> None:
        """Leave."""
        self._reader.close()
        self._member.close()


class FlatEcho(Echo):
    """The same by columns: no Python object for a payment."""

    def _open(self, settings: Settings, group: str, places: list[TopicPartition]) -> None:
        clients = kafka.RealClients(settings)
        self._reader = clients.flat_reader(group)
        self._reader.assign(places)
        self._columns = clients.columns(self._producer)

    def _gather(self) -> list[Any]:
        blocks = list(self._reader.read(0.1, self._batch_max).blocks)
        deadline = time.monotonic() + self._gather_s
        while blocks and (room := self._batch_max - sum(map(len, blocks))) > 0:
            remaining = deadline - time.monotonic()
            blocks += self._reader.read(max(0.0, remaining), room).blocks
            if remaining <= 0:
                break
        return blocks

    def _produce(self, batch: list[Any]) -> tuple[int, dict[int, int]]:
        ends = {}
        for block in batch:
            ends[block.partition] = int(block.offset[-1]) + 1
            partitions = np.full(len(block), block.partition, dtype=np.int32)
            self._columns.produce(self._topics.decisions, block.values, block.keys, partitions)
        return sum(map(len, batch)), ends
