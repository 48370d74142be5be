"""Collects what the demo's view shows, on a thread of its own; worker and sink are asked for metrics once a second."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from prometheus_client.parser import text_string_to_metric_families

from scorer.demo.demo_processes import ANSWER_TIMEOUT_S, answer
from scorer.demo.demo_view import LATENCY_S, RATE_S, DemoState

if TYPE_CHECKING:
    from scorer.demo.demo_run import Demo

EVERY_S = 0.5
_METRICS_EVERY_S = 1.0
_LAG = "fraud_scorer_lag_payments"
_ROWS = "fraud_scorer_sink_rows_total"


def metric(text: str | None, name: str) -> int | None:
    """The sum of a metric's samples in what /metrics answered; None where there is no sample."""
    lines = [line for line in (text or "").splitlines() if line.startswith(name)]
    values = [
        sample.value
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
        if sample.name == name
    ]
    return int(sum(values)) if values else None


class Rate:
    """A count's growth a second over the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._counts: deque[tuple[float, int]] = deque()

    def of(self, count: int, at_s: float) -> float | None:
        """With the newest count; None before the second one."""
        self._counts.append((at_s, count))
        while len(self._counts) > 2 and self._counts[1][0] <= at_s - self._seconds:
            self._counts.popleft()
        first_s, first = self._counts[0]
        return (count - first) / (at_s - first_s) if at_s > first_s else None


class DemoWatch:
    """Calls `show` with the state every `every_s` seconds, from its own thread, until the `with` block is left."""

    def __init__(
        self, demo: Demo, rate_asked: float, show: Callable[[DemoState], None], *, every_s: float = EVERY_S
    ) -> None:
        self._demo, self._rate_asked, self._show, self._every_s = demo, rate_asked, show, every_s
        self.phase = "running"
        self._began_at = self._asked_at = time.monotonic()
        self._sent_rate, self._decided_rate = Rate(RATE_S), Rate(RATE_S)
        self._lag: int | None = None
        self._rows: int | None = None
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)

    def state(self) -> DemoState:
        """As it is now."""
        demo, now = self._demo, time.monotonic()
        if now >= self._asked_at:
            self._asked_at = now + _METRICS_EVERY_S
            self._lag = metric(answer(demo.metrics), _LAG)
            self._rows = metric(answer(demo.sink_metrics), _ROWS)
        seen, sent = demo.reader.seen, demo.sender.sent.payments
        return DemoState(
            running_s=now - self._began_at,
            phase=self.phase,
            bundle=demo.bundle_id,
            sent=sent,
            decisions=seen.decisions,
            flagged=seen.flagged,
            refused=seen.refused,
            dead_letters=seen.dead_letters,
            rate_asked=self._rate_asked,
            sent_rate=self._sent_rate.of(sent, now),
            decided_rate=self._decided_rate.of(seen.decisions, now),
            fast=None if demo.fast_reader is None else demo.fast_reader.latest_latency(LATENCY_S),
            committed=demo.reader.latest_latency(LATENCY_S),
            lag_payments=self._lag,
            # The sink may have written what this process has not read yet.
            audit_rows_behind=None if self._rows is None else max(0, seen.decisions - self._rows),
            last_flagged=tuple(reversed(list(seen.last_flagged))),
            places=demo.places,
        )

    def check(self) -> None:
        """Raise what ended the thread."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._show(self.state())
            while not self._ended.wait(self._every_s):
                self._show(self.state())
            self._show(self.state())  # the counts that the summary has
        except BaseException as exc:  # noqa: BLE001 - shown by `check` in the main thread
            self._error = exc

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(2 * ANSWER_TIMEOUT_S + 1.0)
