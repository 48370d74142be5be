"""When a batch closes, and with which records.

Waiting: none when payments are rare; up to half a commit when they come faster than commits do, because a broker that
commits three payments at a time saturates. Choosing: everything buffered, as long as that is one batch and every
partition is caught up. Otherwise scorer.worker.batch_choice chooses, so that partitions advance together in event time
and none starves another, and scorer.worker.frontier_wait bounds how long one is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from itertools import islice

import numpy as np

from schemas.card_fields import UNDECLARED, CardFields
from schemas.payment_decoder import event_times
from scorer.journal.partition_buffers import PartitionBuffer, RawRecord, ShardInputs
from scorer.pipeline.records import Batch
from scorer.runtime.threads import Threads
from scorer.worker.batch_choice import NO_TIME, Rules, Times, choose
from scorer.worker.frontier_wait import FrontierWait

# A control record with no payment to carry it is committed alone after this long, so that its lag stays small.
CONTROL_ALONE_S = 1.0
CONTROL_PER_BATCH_MAX = 4096
# Transaction markers and aborted records at the end of a log are committed as read after this long without a payment:
# else retention that takes them would look like a loss, and lag would not reach zero.
MARKERS_ALONE_S = 5.0
IDLE_WAIT_S = 0.1
# Weight of the newest observation in the running averages: about the last ten batches.
_WEIGHT = 0.2


class Batcher:
    """Closes batches from a shard's inputs."""

    def __init__(
        self,
        inputs: ShardInputs,
        threads: Threads,
        *,
        shard: int,
        batch_max: int,
        gather_ms_max: float,
        frontier_wait_ms: int,
        skew_ms: int,
        lateness_ms: int,
        stream_ms: Callable[[], int | None],
        cards: CardFields = UNDECLARED,
        takeable: Callable[[Sequence[RawRecord]], int] = len,
        noted: Callable[[], bool] = lambda: False,
    ) -> None:
        """`skew_ms`, `lateness_ms`, `cards`: as the feature set says. `stream_ms`: gives stream time after the last
        batch. `takeable`: how many of the control records a batch may begin with. `noted`: whether something waits for
        a journal record to name it.
        """
        self._noted = noted
        self._inputs = inputs
        self._threads = threads
        self._cards = cards
        self._batch_max = batch_max
        self._gather_s_max = gather_ms_max / 1000.0
        self._skew_ms = skew_ms
        self._stream_ms = stream_ms
        self._takeable = takeable
        self._rules = Rules(batch_max=batch_max, lateness_ms=lateness_ms, ahead_ms=frontier_wait_ms)
        self._wait = FrontierWait(
            shard=shard,
            wait_s=frontier_wait_ms / 1000.0,
            share=max(1, batch_max // max(1, len(inputs.buffers))),
            monotonic=threads.monotonic,
        )
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
        control = self._takeable(inputs.control.records) if inputs.control.records else 0
        labels = len(inputs.labels.records)
        now = self._threads.monotonic()
        if payments == 0 and not self._alone(now, control, labels):
            return None
        self._control_since = self._markers_since = None
        elapsed = max(1e-6, now - self._last_batch_at)
        self._rate += _WEIGHT * (payments / elapsed - self._rate)
        self._last_batch_at = now
        # Lists and rules alone are quick; whatever the queue has eaten, the commit still has to come. Each payment by
        # its own deadline: one that is past takes the model from no other.
        deadlines = inputs.deadlines_ms(counts)
        degraded = None
        if deadlines is not None:
            degraded = self._threads.epoch_s() * 1000.0 + self._total_s * 1000.0 > deadlines
        batch = inputs.batch(counts, min(control, CONTROL_PER_BATCH_MAX), min(labels, CONTROL_PER_BATCH_MAX))
        return replace(batch, degraded=degraded)

    def _alone(self, now: float, control: int, labels: int) -> bool:
        """Whether a batch without payments is due: for control records or labels, to move positions past markers, or
        for what the journal is to note."""
        if control or labels:
            self._control_since = self._control_since or now
            more_behind = 0 < control < len(self._inputs.control.records)
            full = max(control, labels) >= CONTROL_PER_BATCH_MAX
            return now - self._control_since >= CONTROL_ALONE_S or more_behind or full
        self._control_since = None
        noted = self._noted()
        if self._inputs.buffered or not (noted or self._inputs.beyond_records):
            self._markers_since = None
            return False
        self._markers_since = self._markers_since or now
        return now - self._markers_since >= (CONTROL_ALONE_S if noted else MARKERS_ALONE_S)

    def _choose(self) -> dict[int, int]:
        """How many records to take from each partition."""
        buffers = self._inputs.buffers
        counts = {p: len(buffer.records) for p, buffer in buffers.items()}
        if len(buffers) == 1:
            return {p: min(count, self._batch_max) for p, count in counts.items()}
        behind = {p for p, buffer in buffers.items() if not self._inputs.caught_up(buffer)}
        total = sum(counts.values())
        self._wait.see(counts, behind)
        if total == 0 or (not behind and total <= self._batch_max):
            self._wait.none()
            return counts
        # What a silent partition holds next is not known yet: wait for it, but not for ever.
        silent = {p for p in behind - self._wait.passed if counts[p] == 0}
        if silent and not self._wait.hold(silent, None):
            return dict.fromkeys(buffers, 0)
        if silent - self._wait.passed:
            return dict.fromkeys(buffers, 0)
        return self._in_time_order(behind)

    def _in_time_order(self, behind: Set[int]) -> dict[int, int]:
        # More than a whole batch of one partition cannot be taken anyway.
        times = {
            p: self._event_times(buffer, min(len(buffer.records), self._batch_max))
            for p, buffer in self._inputs.buffers.items()
        }
        stream_ms = self._stream_ms()
        stream_ms = NO_TIME if stream_ms is None else stream_ms
        choice = choose(times, behind, stream_ms, self._rules, self._wait.passed)
        if not choice.held:
            self._wait.none()
        elif self._wait.hold(choice.holders, choice.frontier_ms):
            choice = choose(times, behind, stream_ms, self._rules, self._wait.passed)
        return choice.counts

    def _event_times(self, buffer: PartitionBuffer, count: int) -> Times:
        """Event times of the buffer's first records; one that is no payment, or has a poisoned clock,
        takes part without one.

        Kept in the buffer: a partition that waits for the others is asked for its times again with every batch.
        """
        known = len(buffer.event_time_ms)
        if known < count:
            rows = list(islice(buffer.records, known, count))
            times = event_times([raw.value for raw in rows], missing=NO_TIME, cards=self._cards)
            stamps = np.fromiter((raw.timestamp_ms for raw in rows), np.int64, len(rows))
            times[times > stamps + self._skew_ms] = NO_TIME
            buffer.event_time_ms.extend(times.tolist())
        return np.fromiter(islice(buffer.event_time_ms, count), np.int64, count)
