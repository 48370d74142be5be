"""How far a sink is behind its topic, in records and in seconds, by partition. Serves any thread but for `show`.

Transaction markers and aborted records count while nothing was read past them, and no longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from scorer.sink.sink_metrics import SinkMetrics
from scorer.sink.topic_offsets import TopicOffsets

_ASK_S = 0.5


class TopicLag:
    """The lag of one topic's partitions, as the metrics show it."""

    def __init__(self, topic: str, metrics: SinkMetrics) -> None:
        self._topic, self._metrics = topic, metrics
        self._done: dict[int, int] = {}  # partition → offset up to which everything is in Postgres
        self._ends: dict[int, int] = {}  # partition → end of the topic as the broker gave it last
        self._oldest: dict[int, tuple[int, float]] = {}  # offset and time of the oldest record read, not in Postgres
        self._shown: set[int] = set()
        self._behind_at_s: dict[int, float] = {}  # since when, where that is not known

    @property
    def done(self) -> Mapping[int, int]:
        """By partition, the offset up to which everything is in Postgres; empty before the first session."""
        return dict(self._done)

    def begin(self, positions: Mapping[int, int]) -> None:
        """These partitions, and no others, are written from here on."""
        for partition in self._done.keys() - positions.keys():
            self._forget(partition)
        self._done = dict(positions)

    def read(self, partition: int, offset: int, timestamp_ms: int) -> None:
        """A record came."""
        if partition not in self._oldest:
            self._oldest[partition] = offset, timestamp_ms / 1000.0

    def written(self, partition: int, next_offset: int) -> None:
        """Everything before `next_offset` is in Postgres, or is no record."""
        self._done[partition] = max(self._done.get(partition, 0), next_offset)
        if self._oldest.get(partition, (next_offset, 0.0))[0] < next_offset:
            del self._oldest[partition]

    def records(self) -> dict[int, int]:
        """Records not yet in Postgres, by partition, as far as the broker was asked."""
        ends = dict(self._ends)
        return {p: max(0, ends.get(p, done) - done) for p, done in self.done.items()}

    def show(self, ends: Mapping[int, int]) -> None:
        """The broker gave these ends: set the metrics."""
        self._ends |= ends
        for partition, records in self.records().items():
            labels = self._topic, str(partition)
            self._shown.add(partition)
            self._metrics.lag_records.labels(*labels).set(records)
            self._metrics.lag_seconds.labels(*labels).set(self._seconds(partition, records))

    def _seconds(self, partition: int, records: int) -> float:
        """Age of the oldest record that is not in Postgres; of one not read yet, for how long there has been a lag."""
        if not records:
            self._behind_at_s.pop(partition, None)
            return 0.0
        now_s = time.monotonic()
        behind_s = now_s - self._behind_at_s.setdefault(partition, now_s)
        oldest = self._oldest.get(partition)
        return behind_s if oldest is None else max(0.0, time.time() - oldest[1])

    def _forget(self, partition: int) -> None:
        self._ends.pop(partition, None)
        self._oldest.pop(partition, None)
        self._behind_at_s.pop(partition, None)
        if partition in self._shown:
            self._shown.remove(partition)
            for gauge in (self._metrics.lag_records, self._metrics.lag_seconds):
                gauge.remove(self._topic, str(partition))

    def wait(self, stop: threading.Event, seconds: float, offsets: TopicOffsets) -> None:
        """Wait until `stop` is set, for so long at most, while the lag that grows meanwhile is shown."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and not stop.wait(min(_ASK_S, left_s)):
            self.show(offsets.probe(self.done))
