"""The batches that are handed to the publisher and not known to be committed: bounded, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from scorer.pipeline import Outcomes
from scorer.runtime.settings import WorkerSettings
from scorer.runtime.threads import Future
from scorer.worker.publisher import Committed, Publisher

# A transaction takes no further batch when it has as many payments as so many full batches: under load few large ones
# bound the memory, at low rates many small ones share a commit.
TRANSACTION_LARGE = 3
# Keys and values of their records, which each batch keeps until it is committed: 24,576 payments of up to 10 KiB. It
# is larger records, or refused ones, that would take more.
BYTES_AHEAD_MAX = 256 * 1024 * 1024


class AheadMax(NamedTuple):
    """How far a shard's state may be ahead of its journal: no batch follows once there is so much of any. One batch
    may always be, however large."""

    batches: int
    payments: int
    record_bytes: int = BYTES_AHEAD_MAX

    def reached(self, batches: int, payments: int, record_bytes: int) -> bool:
        """Whether there is so much of any."""
        return batches >= self.batches or payments >= self.payments or record_bytes >= self.record_bytes


def ahead_max(worker: WorkerSettings) -> AheadMax:
    """Of an owner: a transaction that runs, and one that waits."""
    return AheadMax(2 * worker.transaction_batches_max, 2 * TRANSACTION_LARGE * worker.batch_payments_max)


class _InFlight(NamedTuple):
    commit: Future[Committed]
    closed_at: float  # monotonic, when its batch was closed
    payments: int
    record_bytes: int


class PendingCommits:
    """So far a shard's state runs ahead of its journal."""

    def __init__(self, publisher: Publisher, ahead: AheadMax, finished: Callable[[Committed, float], None]) -> None:
        """`finished` is called with each commit and with when its batch was closed."""
        self._publisher, self._finished = publisher, finished
        self._max = ahead
        self._waiting: deque[_InFlight] = deque()
        self._payments = self._record_bytes = 0

    def __len__(self) -> int:
        """Batches handed over and not known to be committed."""
        return len(self._waiting)

    def add(self, commit: Future[Committed], closed_at: float, outcomes: Outcomes) -> None:
        """Another batch was handed over."""
        added = _InFlight(commit, closed_at, len(outcomes.records), outcomes.record_bytes)
        self._waiting.append(added)
        self._payments += added.payments
        self._record_bytes += added.record_bytes

    def make_room(self) -> None:
        """Wait until another batch may be handed over. What made a commit fail is raised here, before anything else is
        done with the state."""
        while self._waiting and self._max.reached(len(self._waiting), self._payments, self._record_bytes):
            self._finish()

    def see(self) -> None:
        """Note what is committed by now, without waiting. Raises as `make_room` does."""
        while self._waiting and (self._waiting[0].commit.done() or self._publisher.overdue):
            self._finish()

    def finish(self) -> None:
        """Wait for all. Raises as `make_room` does."""
        while self._waiting:
            self._finish()

    def _finish(self) -> None:
        first = self._waiting[0]
        committed = self._publisher.wait(first.commit)
        self._waiting.popleft()
        self._payments -= first.payments
        self._record_bytes -= first.record_bytes
        self._finished(committed, first.closed_at)
