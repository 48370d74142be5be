"""The batches that are handed to the publisher and not known to be committed: bounded, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from scorer.runtime.settings import WorkerSettings
from scorer.runtime.threads import Future
from scorer.worker.publisher import Committed, Publisher

# A transaction takes no further batch when it has as many payments as so many full batches: under load few large ones
# bound the memory, at low rates many small ones share a commit.
TRANSACTION_LARGE = 3


def ahead_max(worker: WorkerSettings) -> tuple[int, int]:
    """So many batches, and payments, a shard's state may be ahead of its journal: a transaction that runs, and one that
    waits."""
    return 2 * worker.transaction_batches_max, 2 * TRANSACTION_LARGE * worker.batch_payments_max


class _InFlight(NamedTuple):
    commit: Future[Committed]
    closed_at: float  # monotonic, when its batch was closed
    payments: int


class PendingCommits:
    """So far a shard's state runs ahead of its journal."""

    def __init__(
        self, publisher: Publisher, batches_max: int, payments_max: int, finished: Callable[[Committed, float], None]
    ) -> None:
        """Once there are so many batches or payments, no other is handed over. `finished` is called with each commit
        and with when its batch was closed."""
        self._publisher, self._finished = publisher, finished
        self._batches_max, self._payments_max = batches_max, payments_max
        self._waiting: deque[_InFlight] = deque()
        self._payments = 0

    def __len__(self) -> int:
        """Batches handed over and not known to be committed."""
        return len(self._waiting)

    def add(self, commit: Future[Committed], closed_at: float, payments: int) -> None:
        """Another batch, of so many payments, was handed over."""
        self._waiting.append(_InFlight(commit, closed_at, payments))
        self._payments += payments

    def make_room(self) -> None:
        """Wait until another batch may be handed over. What made a commit fail is raised here, before anything else is
        done with the state."""
        while self._waiting and (len(self._waiting) >= self._batches_max or self._payments >= self._payments_max):
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
        self._finished(committed, first.closed_at)
