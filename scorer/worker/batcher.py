"""When a batch closes, and with which records.

Waiting: none when nothing is being committed, so that a rare payment goes at once. While a batch is being committed the
next one could not be handed over anyway: it is closed when that commit is expected to end, less what deciding it takes.
So batches grow with the rate by themselves, and each has the company that the broker needs.

Choosing: everything buffered, as long as that is one batch and every partition is caught up. Otherwise
scorer.worker.batch_choice chooses, so that partitions advance together in event time and none starves another, and
scorer.worker.frontier_wait bounds how long one is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import numpy as np

from schemas.card_fields import UNDECLARED, CardFields
from schemas.payment_decoder import event_times
from scorer.journal.partition_buffers import PartitionBuffer, ShardInputs
from scorer.journal.record_queue import RawRecord
from scorer.kafka import RecordBlock
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
FILL_WAIT_S = 0.002  # how often a batch that gathers looks whether the commit before it has ended
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
        self._compute_s = 0.0
        self._total_s = 0.01
        self._in_flight: Callable[[], bool] | None = None  # whether that commit has ended
        self._submitted_at = 0.0
        self.linger_s = 0.0  # what the last batch waited for company
        self._control_since: float | None = None
        self._markers_since: float | None = None

    def submitted(self, done: Callable[[], bool], *, compute_s: float) -> None:
        """A batch, whose deciding took so long, is being committed from now on until `done`."""
        self._in_flight, self._submitted_at = done, self._threads.monotonic()
        self._compute_s += _WEIGHT * (compute_s - self._compute_s)

    def committed(self, *, commit_s: float, total_s: float) -> None:
        """The commit took so long, and its batch so long from closing to there."""
        self._in_flight = None
        self._commit_s += _WEIGHT * (commit_s - self._commit_s)
        self._total_s += _WEIGHT * (total_s - self._total_s)

    def _close_at(self, began: float) -> float:
        """When the batch that has gathered since `began` should be closed, monotonic."""
        if self._in_flight is None or self._in_flight():
            return began
        return min(began + self._gather_s_max, self._submitted_at + self._commit_s - self._compute_s)

    def next(self) -> Batch | None:
        """The next batch, or None when nothing came within a moment."""
        inputs = self._inputs
        if inputs.buffered == 0:
            inputs.fill(IDLE_WAIT_S)
        if inputs.buffered:
            began = self._threads.monotonic()
            while inputs.buffered < self._batch_max:
                remaining = self._close_at(began) - self._threads.monotonic()
                if inputs.fill(max(0.0, min(remaining, FILL_WAIT_S))) == 0 and remaining <= 0:
                    break
            self.linger_s = self._threads.monotonic() - began
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
            times = buffer.records.each(known, count, self._times_of)
            buffer.event_time_ms = np.concatenate([buffer.event_time_ms, times])
        return buffer.event_time_ms[:count]

    def _times_of(self, block: RecordBlock) -> Times:
        times = event_times(block.values, missing=NO_TIME, cards=self._cards)
        return np.where(times > block.timestamp_ms + self._skew_ms, NO_TIME, times)
