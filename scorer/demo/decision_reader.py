"""Reads decisions as a payment system would, and measures how long each took."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import KafkaError, TopicPartition

from schemas.decision import Decision
from scorer import kafka
from scorer.runtime.settings import Settings

LATENCIES_MAX = 2_000_000
FLAGGED_SHOWN = 12


@dataclass
class Seen:
    """What has been read from the decisions and dead-letter topics so far."""

    decisions: int = 0
    dead_letters: int = 0
    refused: int = 0
    flagged: int = 0
    duplicate_decisions: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    last_flagged: deque[Decision] = field(default_factory=lambda: deque(maxlen=FLAGGED_SHOWN))


class DecisionReader:
    """Reads decisions and dead letters as a payment system would, and measures how long each decision took."""

    def __init__(self, settings: Settings) -> None:
        topics = kafka.Topics.of(settings.kafka)
        self._decisions = topics.decisions
        self._consumer = kafka.reader(
            settings.kafka, group=f"{settings.kafka.topic_prefix}demo-reader", fetch_wait_ms=5
        )
        client = kafka.admin(settings.kafka)
        self._consumer.assign([
            TopicPartition(topic, p, 0)
            for topic in (topics.decisions, topics.dead_letters)
            for p in range(kafka.partition_count(client, topic))
        ])  # fmt: skip
        self.seen = Seen()
        self._handed_over: dict[str, float] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def sending(self, values: list[bytes]) -> None:
        """These payments are handed to the client now."""
        now = time.perf_counter()
        for value in values:
            # The simulator writes {"payment_id":"…" first.
            self._handed_over[value[15 : value.index(b'"', 15)].decode()] = now

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                first = self._consumer.poll(0.1)
                if first is None:
                    continue
                for message in (first, *self._consumer.consume(2000, 0)):
                    error = message.error()
                    if error is None:
                        self._take(message.topic(), message.value())
                    elif error.code() != KafkaError._PARTITION_EOF and error.fatal():
                        raise kafka.KafkaFailure(error.str())
        except BaseException as exc:  # noqa: BLE001 - shown by `check` in the main thread
            self._error = exc

    def _take(self, topic: str | None, message_value: bytes | None) -> None:
        if topic != self._decisions:
            self.seen.dead_letters += 1
            return
        value = kafka.present(message_value, "value")
        decided = json.loads(value)
        self.seen.decisions += 1
        self.seen.refused += decided["mode"] == "refused"
        began = self._handed_over.pop(decided["payment_id"], None)
        if began is None:
            self.seen.duplicate_decisions += 1
        else:
            self.seen.latencies_ms.append((time.perf_counter() - began) * 1000.0)
        if decided.get("decision") == "flag":
            self.seen.flagged += 1
            self.seen.last_flagged.append(Decision.model_validate_json(value))

    def check(self) -> None:
        """Raise what ended the reading thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(5)
        self._consumer.close()

    def latency_ms(self) -> tuple[float, float]:
        """Median and 99th percentile so far."""
        values = np.array(list(self.seen.latencies_ms))
        if not len(values):
            return 0.0, 0.0
        return round(float(np.percentile(values, 50)), 2), round(float(np.percentile(values, 99)), 2)
