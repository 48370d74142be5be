"""Payments and labels onto the topics: from a file, or from the simulator.
What a payment system would do, for people who try things."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from scorer import kafka
from scorer.runtime.settings import Settings

QUEUE_FULL_WAIT_S = 0.05
# Sent in slices, so that a rate is kept evenly and a stop is heard.
SLICE_S = 0.01


@dataclass(frozen=True)
class Outgoing:
    """n payments in the order in which they happened, and the labels that became known.

    keys and values: bytes · event_time_ms int64 [n] ·
    labels: records of topic labels with the event time at which each is known, sorted
    """

    keys: Sequence[bytes | None]
    values: list[bytes]
    event_time_ms: npt.NDArray[np.int64]
    labels: list[tuple[int, bytes]]


@dataclass
class Sent:
    """What reached the topics."""

    payments: int = 0
    labels: int = 0
    failed: int = 0


class Sender:
    """Sends at a rate, at a multiple of real time, or as fast as the broker takes it.
    Labels go when stream time reaches them."""

    def __init__(
        self, settings: Settings, *, on_payments: Callable[[list[bytes]], None] = lambda _values: None
    ) -> None:
        """`on_payments` is called with the values that are about to be handed to the client."""
        self._topics = kafka.Topics.of(settings.kafka)
        # Names `setup` when one does not exist; sending to it would make it, where the broker does that.
        self._admin = kafka.admin(settings.kafka)
        kafka.topic_facts(self._admin, [self._topics.payments])
        self._producer: Producer = kafka.plain_producer(settings.kafka)
        self._on_payments = on_payments
        self.sent = Sent()
        self._error: str | None = None

    def run(
        self,
        blocks: Iterable[Outgoing],
        *,
        stop: threading.Event,
        rate: float | None = None,
        speed: float | None = None,
        limit: int | None = None,
        seconds: float | None = None,
        with_labels: bool = True,
    ) -> Sent:
        """Send `blocks`, paced by `rate` (payments/s) or `speed` (event time over real time), until the end, `limit`,
        `seconds` or `stop`."""
        waiting: list[tuple[int, bytes]] = []
        started = time.monotonic()
        origin_ms: int | None = None
        if with_labels:
            kafka.topic_facts(self._admin, [self._topics.labels])
        for block in blocks:
            if with_labels:
                waiting = sorted(waiting + block.labels)
            n = len(block.values)
            i = 0
            while i < n:
                elapsed = time.monotonic() - started
                if (
                    stop.is_set()
                    or (seconds is not None and elapsed >= seconds)
                    or (limit is not None and self.sent.payments >= limit)
                ):
                    self._finish()
                    return self.sent
                origin_ms = int(block.event_time_ms[0]) if origin_ms is None else origin_ms
                due = self._due(block, i, elapsed, rate, speed, origin_ms)
                if limit is not None:
                    due = min(due, i + limit - self.sent.payments)
                if due > i:
                    waiting = self._labels(waiting, int(block.event_time_ms[due - 1]))
                    self._payments(block, i, due)
                    i = due
                if rate is not None or speed is not None:
                    self._producer.poll(SLICE_S)
        if with_labels and waiting and not stop.is_set():
            self._labels(waiting, None)
        self._finish()
        return self.sent

    def _due(
        self, block: Outgoing, i: int, elapsed: float, rate: float | None, speed: float | None, origin_ms: int
    ) -> int:
        """Up to which row of the block payments should have gone by now."""
        n = len(block.values)
        if rate is not None:
            return min(n, i + max(0, int(elapsed * rate) - self.sent.payments))
        if speed is not None:
            return max(i, int(np.searchsorted(block.event_time_ms, origin_ms + elapsed * 1000.0 * speed, side="right")))
        return min(n, i + 1000)

    def _payments(self, block: Outgoing, start: int, end: int) -> None:
        self._on_payments(block.values[start:end])
        for i in range(start, end):
            self._produce(self._topics.payments, block.values[i], block.keys[i])
        self.sent.payments += end - start
        self._producer.poll(0)

    def _labels(self, waiting: list[tuple[int, bytes]], until_ms: int | None) -> list[tuple[int, bytes]]:
        n = 0
        while n < len(waiting) and (until_ms is None or waiting[n][0] <= until_ms):
            self._produce(self._topics.labels, waiting[n][1], None)
            n += 1
        self.sent.labels += n
        return waiting[n:] if n else waiting

    def _produce(self, topic: str, value: bytes, key: bytes | None) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key=key, on_delivery=self._delivered)
                return
            except BufferError:
                self._producer.poll(QUEUE_FULL_WAIT_S)
            except KafkaException as exc:
                raise kafka.failure(exc, f"a record for {topic} was refused") from exc

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.sent.failed += 1
            self._error = f"{error.name()}: {error.str()}"

    def _finish(self) -> None:
        remaining = self._producer.flush(30)
        if remaining or self.sent.failed:
            raise kafka.KafkaFailure(
                f"{remaining + self.sent.failed} records did not reach Kafka ({self._error or 'no answer within 30 s'})"
            )


def outgoing_pairs(labels: list[bytes], known_at_ms: Iterable[int]) -> list[tuple[int, bytes]]:
    """Labels with the time each is known, sorted by it."""
    return sorted(zip(map(int, known_at_ms), labels, strict=True))
