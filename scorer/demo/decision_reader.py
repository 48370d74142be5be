"""Reads decisions as a payment system would, and measures how long each took."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from confluent_kafka import KafkaError, TopicPartition

from scorer import kafka
from scorer.runtime.settings import Settings

LATENCIES_MAX = 2_000_000
# Those of the last seconds, at 20,000 a second.
LATEST_MAX = 200_000
FLAGGED_KEPT = 32
# Payments kept until they are decided, for the amount of those that are flagged: some 30 MB.
PAYMENTS_KEPT_MAX = 100_000


class _Decided(msgspec.Struct):
    payment_id: str
    decision: str = ""
    mode: str = ""
    score: float = 0.0
    reasons: tuple[str, ...] = ()


class _Amount(msgspec.Struct):
    amount_minor: int
    currency: str


_read_decision = msgspec.json.Decoder(_Decided).decode
_read_amount = msgspec.json.Decoder(_Amount).decode


@dataclass(frozen=True)
class Flagged:
    """A flagged payment: what its decision holds, and its amount where the payment was still kept."""

    payment_id: str
    score: float
    reasons: tuple[str, ...]
    amount_minor: int | None = None
    currency: str | None = None


@dataclass(frozen=True)
class Percentiles:
    """Median and 99th percentile of latencies, ms."""

    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> Percentiles | None:
        """None of no value."""
        if not values_ms:
            return None
        p50, p99 = np.percentile(np.array(values_ms), (50, 99))
        return cls(round(float(p50), 2), round(float(p99), 2))


@dataclass
class Seen:
    """What has been read from the decisions and dead-letter topics so far."""

    decisions: int = 0
    dead_letters: int = 0
    refused: int = 0
    flagged: int = 0
    duplicate_decisions: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    # (when the decision was read, time.perf_counter() s; its latency, ms)
    latest: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=LATEST_MAX))
    last_flagged: deque[Flagged] = field(default_factory=lambda: deque(maxlen=FLAGGED_KEPT))


class DecisionReader:
    """Reads decisions and dead letters as a payment system would, and measures how long each decision took."""

    def __init__(self, settings: Settings, *, fast: bool = False) -> None:
        """`fast`: of topic decisions-fast, where a repeated decision counts as a duplicate one."""
        topics = kafka.Topics.of(settings.kafka)
        self._decisions = topics.decisions_fast if fast else topics.decisions
        self._payments_kept_max = 0 if fast else PAYMENTS_KEPT_MAX
        self._consumer = kafka.reader(
            settings.kafka, group=f"{settings.kafka.topic_prefix}demo-reader", fetch_wait_ms=5
        )
        client = kafka.admin(settings.kafka)
        self._consumer.assign([
            TopicPartition(topic, p, 0)
            for topic in (self._decisions, topics.dead_letters)
            for p in range(kafka.partition_count(client, topic))
        ])  # fmt: skip
        self.seen = Seen()
        # payment id -> when it was handed over, and the payment itself while there is room, else b""
        self._handed_over: dict[str, tuple[float, bytes]] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    def sending(self, values: list[bytes]) -> None:
        """These payments are handed to the client now."""
        now = time.perf_counter()
        room = self._payments_kept_max - len(self._handed_over)
        for number, value in enumerate(values):
            # The simulator writes {"payment_id":"…" first.
            payment_id = value[15 : value.index(b'"', 15)].decode()
            self._handed_over[payment_id] = now, value if number < room else b""

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
        decided = _read_decision(kafka.present(message_value, "value"))
        seen = self.seen
        seen.decisions += 1
        seen.refused += decided.mode == "refused"
        began, payment = self._handed_over.pop(decided.payment_id, (None, b""))
        if began is None:
            seen.duplicate_decisions += 1
        else:
            now = time.perf_counter()
            seen.latencies_ms.append((now - began) * 1000.0)
            seen.latest.append((now, (now - began) * 1000.0))
        if decided.decision == "flag":
            seen.flagged += 1
            amount = _read_amount(payment) if payment else None
            seen.last_flagged.append(
                Flagged(
                    decided.payment_id,
                    decided.score,
                    decided.reasons,
                    None if amount is None else amount.amount_minor,
                    None if amount is None else amount.currency,
                )
            )

    def check(self) -> None:
        """Raise what ended the reading thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(5)
        self._consumer.close()

    def latency(self) -> Percentiles | None:
        """Of all payments so far, as far as they are kept; None before the first."""
        return Percentiles.of(list(self.seen.latencies_ms))

    def latest_latency(self, seconds: float) -> Percentiles | None:
        """Of the decisions read in the last `seconds`; None when none was."""
        since = time.perf_counter() - seconds
        return Percentiles.of([latency_ms for at, latency_ms in list(self.seen.latest) if at >= since])
