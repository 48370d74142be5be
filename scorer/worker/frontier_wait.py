"""How long the partitions of a shard wait for one that holds the frontier: bounded, counted, logged.

A wait goes on as long as the frontier gains on the clock: then a backlog is being caught up, and what waits would be
out of order otherwise. It is over when the frontier has not gained for `wait_s`: because a partition is behind and
silent (its leader is away or slow), or because what it holds moves event time on more slowly than the clock does.
Such a partition is passed: the others are decided without it, until it has caught up, or, if it was silent, until it
shows a share of a batch again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Final

import structlog

from scorer.worker import worker_metrics

log = structlog.get_logger()

# A partition not read yet since the start is waited for longer: a leader may just be elected, and whoever starts after
# an outage has hours of every partition before it, which would be late for good.
FIRST_READ_WAITS: Final = 5
# Between two looks no more than this counts as waited: the time that a commit or a snapshot took is not the
# partition's.
STEP_S_MAX: Final = 0.25
# The moments until the client hands over what it has already fetched are no waits.
COUNTED_S: Final = 0.05
LOGGED_EVERY_S: Final = 10.0


class FrontierWait:
    """The wait that runs, and the partitions that are passed."""

    def __init__(self, *, shard: int, wait_s: float, share: int, monotonic: Callable[[], float]) -> None:
        """`share`: records of a partition that count as showing again."""
        self._shard = shard
        self._wait_s = wait_s
        self._share = share
        self._monotonic = monotonic
        self._passed: dict[int, str] = {}
        self._read: set[int] = set()
        self._looked_at: float | None = None  # None: nothing waits
        self._waited_s = 0.0  # since the frontier gained last
        self._episode_s = 0.0
        self._frontier_ms: int | None = None
        self._logged_at = float("-inf")
        self._suppressed = 0

    @property
    def passed(self) -> Set[int]:
        """Partitions that the others wait for no more."""
        return self._passed.keys()

    def see(self, buffered: Mapping[int, int], behind: Set[int]) -> None:
        """Take note of how many records each partition shows, and of which are behind."""
        self._read.update(p for p, count in buffered.items() if count or p not in behind)
        for p, outcome in list(self._passed.items()):
            if p not in behind or (outcome == "silent" and buffered[p] >= self._share):
                del self._passed[p]

    def hold(self, holders: Set[int], frontier_ms: int | None) -> bool:
        """Others wait for `holders` now; `frontier_ms`: None when these are silent. True when some of them are passed
        from now on."""
        now = self._monotonic()
        step_s = 0.0 if self._looked_at is None else min(STEP_S_MAX, now - self._looked_at)
        self._looked_at = now
        self._waited_s += step_s
        self._episode_s += step_s
        if frontier_ms is not None:
            if self._frontier_ms is None:
                self._frontier_ms = frontier_ms
            elif frontier_ms - self._frontier_ms > self._waited_s * 1000.0:
                self._frontier_ms, self._waited_s = frontier_ms, 0.0
        late = {p for p in holders if self._waited_s >= self._patience_s(p)}
        if not late:
            return False
        outcome = "silent" if frontier_ms is None else "slow"
        self._passed.update(dict.fromkeys(late, outcome))
        self._end(outcome)
        self._report(late, outcome, now)
        return True

    def none(self) -> None:
        """Nothing waits now."""
        if self._looked_at is not None:
            self._end("caught_up")

    def _patience_s(self, partition: int) -> float:
        return self._wait_s if partition in self._read else FIRST_READ_WAITS * self._wait_s

    def _end(self, outcome: str) -> None:
        if self._episode_s >= COUNTED_S or outcome != "caught_up":
            worker_metrics.FRONTIER_WAITS.labels(str(self._shard), outcome).inc()
        self._looked_at, self._frontier_ms = None, None
        self._waited_s = self._episode_s = 0.0

    def _report(self, partitions: Set[int], outcome: str, now: float) -> None:
        if now - self._logged_at < LOGGED_EVERY_S:
            self._suppressed += 1
            return
        log.warning(
            "batcher.partition_passed",
            shard=self._shard,
            partitions=sorted(partitions),
            reason="it is behind and silent" if outcome == "silent" else "its payments gain less than the clock does",
            waited_s=self._wait_s,
            suppressed=self._suppressed,
        )
        self._logged_at, self._suppressed = now, 0
