"""Whether the shards that a worker follows are caught up with: what its readiness waits for.

A rolling update stops the next worker when the last one is ready. Were a standby ready before it has caught up, the
owner would be stopped too early, and its shard would wait for a recovery. So a worker is not ready while a standby of
it is cold. That wait is bounded: a standby that cannot catch up at all (records that are gone, say) must not hold up
the very update that repairs it.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from scorer.runtime.settings import Settings
from scorer.runtime.threads import Threads
from scorer.worker import worker_metrics
from scorer.worker.standby import Standby

log = structlog.get_logger()


class StandbyWarmth:
    """Of the standbys of one worker, by shard. `look` is called by the main thread, `waits_for` by any."""

    def __init__(self, settings: Settings, threads: Threads, standbys: Mapping[int, Standby]) -> None:
        """`standbys`: the worker's own, which changes."""
        self._warm_s, self._threads, self._standbys = settings.worker.standby_warm_s, threads, standbys
        self._given_up: set[int] = set()  # shards whose standby is not waited for any more, logged once each

    def look(self) -> None:
        """Show how many there are and how many of them are warm; log those that are not waited for any more."""
        cold = {shard: standby for shard, standby in self._standbys.items() if not standby.warm}
        worker_metrics.STANDBYS.set(len(self._standbys))
        worker_metrics.WARM_STANDBYS.set(len(self._standbys) - len(cold))
        self._given_up &= cold.keys()
        for shard in cold.keys() - self._given_up:
            if self._warm_s and self._is_given_up(cold[shard]):
                self._given_up.add(shard)
                log.error(
                    "standby.cold", shard=shard, waited_s=self._warm_s, reason=cold[shard].state,
                    effect="this worker counts as ready; were the owner stopped now, the shard would have to recover",
                )  # fmt: skip

    def waits_for(self) -> str:
        """The standbys that are cold, for people; empty when there are none, or none that is still waited for."""
        cold = [
            f"standby of shard {shard}: {standby.state}"
            for shard, standby in list(self._standbys.items())
            if not (standby.warm or self._is_given_up(standby))
        ]
        return "; ".join(cold)

    def _is_given_up(self, standby: Standby) -> bool:
        return self._threads.monotonic() - standby.began_at >= self._warm_s
