"""Which records make the next micro-batch, and how long it waits for more (linger).

Waiting: none when payments are rare; up to half a commit when they come faster than commits do, because a broker that
commits three payments at a time saturates. Choosing: everything buffered, as long as that is one batch and every
partition is caught up. Otherwise the partitions advance together in event time: a batch takes from each only what is
not newer than the frontier, the smallest newest buffered time among partitions that are not caught up; so nothing is
late merely because it was read late.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from schemas.payment_decoder import event_times
from scorer.journal.partition_buffers import PartitionBuffer, ShardInputs
from scorer.pipeline.ordering import journal_order, running_maximum
from scorer.pipeline.records import Batch
from scorer.runtime.threads import Threads

# A control record with no payment to carry it is committed alone after this long, so that its lag stays small.
CONTROL_ALONE_S = 1.0
CONTROL_PER_BATCH_MAX = 4096
# Transaction markers and aborted records at the end of a log are committed as read after this long without a payment:
# else retention that takes them would look like a loss, and lag would not reach zero.
MARKERS_ALONE_S = 5.0
IDLE_WAIT_S = 0.1
# Weight of the newest observation in the running averages: about the last ten batches.
_WEIGHT = 0.2
_NO_TIME = -(1 << 62)


class Batcher:
    """Closes batches from a shard's inputs."""

    def __init__(
        self, inputs: ShardInputs, threads: Threads, *, batch_max: int, gather_ms_max: float, skew_ms: int
    ) -> None:
        self._inputs = inputs
        self._threads = threads
        self._batch_max = batch_max
        self._gather_s_max = gather_ms_max / 1000.0
        self._skew_ms = skew_ms
        self._commit_s = 0.005
        self._total_s = 0.01
        self._rate = 0.0
        self._last_batch_at = self._threads.monotonic()
        self._control_since: float | None = None
        self._markers_since: float | None = None

    def committed(self, *, commit_s: float, total_s: float) -> None:
        """A commit took so long, and its batch so long from closing to there."""
        self._commit_s += _WEIGHT * (commit_s - self._commit_s)
        self._total_s += _WEIGHT * (total_s - self._total_s)

    @property
    def linger_s(self) -> float:
        """Linger: how long a batch now waits for more payments."""
        if self._rate * self._commit_s < 1.0:
            return 0.0
        return min(self._gather_s_max, self._commit_s / 2.0)

    def next(self) -> Batch | None:
        """The next batch, or None when nothing came within a moment."""
        inputs = self._inputs
        if inputs.buffered == 0:
            inputs.fill(IDLE_WAIT_S)
        if inputs.buffered:
            deadline = self._threads.monotonic() + self.linger_s
            while inputs.buffered < self._batch_max:
                remaining = deadline - self._threads.monotonic()
                if inputs.fill(max(0.0, remaining)) == 0 and remaining <= 0:
                    break
        counts = self._choose()
        payments = sum(counts.values())
        if payments == 0 and inputs.buffered:
            inputs.fill(
                IDLE_WAIT_S
            )  # a partition that is behind has shown nothing yet: the others wait for it, and it must be read
        control = len(inputs.control.records)
        now = self._threads.monotonic()
        if payments == 0 and not self._alone(now, control):
            return None
        self._control_since = self._markers_since = None
        elapsed = max(1e-6, now - self._last_batch_at)
        self._rate += _WEIGHT * (payments / elapsed - self._rate)
        self._last_batch_at = now
        # Lists and rules alone are quick; whatever the queue has eaten, the commit still has to come.
        degraded = self._threads.epoch_s() * 1000.0 + self._total_s * 1000.0 > inputs.earliest_deadline_ms(counts)
        return replace(inputs.batch(counts, min(control, CONTROL_PER_BATCH_MAX)), degraded=degraded)

    def _alone(self, now: float, control: int) -> bool:
        """Whether a batch without payments is due: for control records, or to move positions past markers."""
        if control:
            self._control_since = self._control_since or now
            return now - self._control_since >= CONTROL_ALONE_S or control >= CONTROL_PER_BATCH_MAX
        self._control_since = None
        if self._inputs.buffered or not self._inputs.beyond_records:
            self._markers_since = None
            return False
        self._markers_since = self._markers_since or now
        return now - self._markers_since >= MARKERS_ALONE_S

    def _choose(self) -> dict[int, int]:
        """How many records to take from each partition."""
        buffers = self._inputs.buffers
        counts = {p: len(buffer.records) for p, buffer in buffers.items()}
        if len(buffers) == 1:
            return {p: min(count, self._batch_max) for p, count in counts.items()}
        behind = [p for p, buffer in buffers.items() if not self._inputs.caught_up(buffer)]
        if not behind and sum(counts.values()) <= self._batch_max:
            return counts
        if any(counts[p] == 0 for p in behind):
            return dict.fromkeys(buffers, 0)  # what this partition holds next is not known yet: wait for it
        return self._in_time_order(behind)

    def _in_time_order(self, behind: list[int]) -> dict[int, int]:
        buffers = self._inputs.buffers
        # More than a whole batch of one partition cannot be taken anyway.
        times = {
            p: self._event_times(buffer, min(len(buffer.records), self._batch_max)) for p, buffer in buffers.items()
        }
        partition = np.repeat(np.fromiter(times, np.int32, len(times)), [len(part) for part in times.values()])
        place = np.concatenate([np.arange(len(part)) for part in times.values()])
        reached = running_maximum(partition, np.concatenate(list(times.values())))
        counts = dict.fromkeys(buffers, 0)
        chosen = np.arange(len(reached))
        if behind:
            frontier = min(int(reached[partition == p][-1]) for p in behind)
            chosen = np.flatnonzero(reached <= frontier)
        first = chosen[journal_order(partition[chosen], place[chosen], reached[chosen])][: self._batch_max]
        for p, count in zip(*np.unique(partition[first], return_counts=True), strict=True):
            counts[int(p)] = int(count)
        return counts

    def _event_times(self, buffer: PartitionBuffer, count: int) -> npt.NDArray[np.int64]:
        """Event times of the buffer's first records; one that is no payment, or has a poisoned clock,
        takes part without one.

        Kept in the buffer: a partition that waits for the others is asked for its times again with every batch.
        """
        known = len(buffer.event_time_ms)
        if known < count:
            rows = list(islice(buffer.records, known, count))
            times = event_times([raw.value for raw in rows], missing=_NO_TIME)
            stamps = np.fromiter((raw.timestamp_ms for raw in rows), np.int64, len(rows))
            times[times > stamps + self._skew_ms] = _NO_TIME
            buffer.event_time_ms.extend(times.tolist())
        return np.fromiter(islice(buffer.event_time_ms, count), np.int64, count)
