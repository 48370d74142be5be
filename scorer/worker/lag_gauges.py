"""What a shard has still to decide, as metrics: in records and in seconds, by partition of the payments topic.

Transaction markers and aborted records take offsets and are no payments: once they were read they count for nothing,
so that the lag of a shard which has decided everything is 0.
"""

from __future__ import annotations

from scorer.journal.partition_buffers import ShardInputs
from scorer.runtime.threads import Threads
from scorer.worker import worker_metrics


class LagGauges:
    """The lag of one owned shard. All calls from the shard's own thread."""

    def __init__(self, shard: int, threads: Threads) -> None:
        self._label, self._threads = str(shard), threads
        self._behind_at: dict[int, float] = {}  # partition → since when it has a lag, monotonic
        self._shown: set[int] = set()

    def show(self, inputs: ShardInputs) -> None:
        """Set every gauge to what is so now."""
        total = 0
        for partition in inputs.buffers:
            records = inputs.lag_of(partition)
            total += records
            worker_metrics.LAG_RECORDS.labels(self._label, str(partition)).set(records)
            worker_metrics.LAG_SECONDS.labels(self._label, str(partition)).set(
                self._seconds(partition, records, inputs.oldest_ms(partition))
            )
            self._shown.add(partition)
        worker_metrics.LAG.labels(self._label).set(total)

    def _seconds(self, partition: int, records: int, oldest_ms: int | None) -> float:
        """Age of the oldest record; of one that is not fetched yet, for how long there has been a lag."""
        if not records:
            self._behind_at.pop(partition, None)
            return 0.0
        now_s = self._threads.monotonic()
        behind_s = now_s - self._behind_at.setdefault(partition, now_s)
        return behind_s if oldest_ms is None else max(0.0, self._threads.epoch_s() - oldest_ms / 1000.0)

    def close(self) -> None:
        """The shard is not decided here any more: its lag is not known."""
        for partition in self._shown:
            worker_metrics.LAG_RECORDS.remove(self._label, str(partition))
            worker_metrics.LAG_SECONDS.remove(self._label, str(partition))
        worker_metrics.LAG.remove(self._label)
        self._shown = set()
