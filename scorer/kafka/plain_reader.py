"""Reads blocks of records through the client's own messages: what always works, and what a simulation has.

`scorer.kafka.borrowed_reader` reads the same without a Python object for each message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confluent_kafka import TopicPartition

from scorer.kafka.range_reader import take
from scorer.kafka.record_blocks import Found, blocks_of
from scorer.kafka.topic_errors import TopicErrors

if TYPE_CHECKING:
    from scorer.kafka.client_ports import Reader

_DROPPED_AT_ONCE: Final = 1_000


class PlainReader:
    """A FlatReader over a consumer for manual assignment, which ends with it."""

    way: Final = "plain"

    def __init__(self, consumer: Reader, errors: TopicErrors | None = None) -> None:
        """`errors`: what the consumer's error callback notes."""
        self._consumer = consumer
        self._errors = TopicErrors() if errors is None else errors
        self._assigned = False
        self._number_headers: dict[str, str] = {}
        self._traced: set[str] = set()

    def number_header(self, topic: str, name: str) -> None:
        """From here on blocks of `topic` hold the number that the header `name` says."""
        self._number_headers[topic] = name

    def trace_headers(self, topic: str) -> None:
        """From here on blocks of `topic` hold the trace context that their records carry."""
        self._traced.add(topic)

    def read(self, wait_s: float, room: int) -> Found:
        """What is there, waiting at most `wait_s` for the first; about `room` records at most."""
        messages = take(self._consumer, wait_s, messages_max=1 + max(1, room))
        if not messages:
            return Found((), self._errors.taken())
        found = blocks_of(messages, self._number_headers, self._traced)
        return Found(found.blocks, [*self._errors.taken(), *found.events])

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions from their offsets on, and no others."""
        if self._assigned:
            # An error of the assignment before carries no version by which the client would drop it. Its main thread
            # has stopped the partitions when it handles the second call: what is to come of them has come then.
            self._consumer.assign([])
            self._consumer.assign([])
            while self._consumer.consume(_DROPPED_AT_ONCE, 0):
                pass
            self._errors.taken()
        self._assigned = True
        self._consumer.assign(partitions)

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Fetch nothing of these partitions until `resume`."""
        self._consumer.pause(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Fetch these partitions again."""
        self._consumer.resume(partitions)

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        """First and end offset of a partition, as the client knows them."""
        return self._consumer.get_watermark_offsets(partition, cached=cached)

    def close(self) -> None:
        """End the consumer."""
        self._consumer.close()
