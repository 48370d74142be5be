"""A warm standby: a thread that follows the journal of a shard that another worker owns, to take over at once."""

from __future__ import annotations

import structlog

from scorer import kafka
from scorer.journal.activated_bundles import Bundles
from scorer.journal.partition_buffers import MissingRange
from scorer.runtime.settings import Settings
from scorer.worker import worker_metrics
from scorer.worker.follower import Follower
from scorer.worker.ports import Ports

log = structlog.get_logger()

RETRY_S = 5.0


class Standby:
    """Follows until its state is taken, or until it is closed.

    A broker that is away, or records that are gone before they were followed, begin it anew after a pause. Anything
    else, a digest that differs above all, ends it and stands in `failure`: this process must not take the shard over.
    """

    def __init__(self, settings: Settings, bundles: Bundles, shard: int, ports: Ports) -> None:
        self._settings, self._bundles, self._shard, self._ports = settings, bundles, shard, ports
        self._stop = ports.threads.event()
        self._follower: Follower | None = None
        self.failure: BaseException | None = None
        self._thread = ports.threads.spawn(self._run, name=f"standby-{shard}")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._follow()
        except BaseException as exc:  # noqa: BLE001 - handed to the main thread, which ends the process with it
            self.failure = exc

    def _follow(self) -> None:
        """Follow until stopped, or until what a new beginning repairs. Raises anything else."""
        try:
            self._follower = Follower(self._settings, self._bundles, self._shard, self._ports, stop=self._stop)
            self._follower.follow(self._stop)
        except (kafka.KafkaFailure, MissingRange) as exc:
            self._drop()
            worker_metrics.REBUILDS.labels(str(self._shard), "standby").inc()
            log.warning("standby.restarted", shard=self._shard, reason=str(exc), wait_s=RETRY_S)
            self._stop.wait(RETRY_S)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None

    def take(self) -> Follower | None:
        """End following and give the state, which is now the caller's to close; None when there is none."""
        self._stop.set()
        self._thread.join()
        follower, self._follower = self._follower, None
        return follower

    def close(self) -> None:
        """End following and drop the state."""
        follower = self.take()
        if follower is not None:
            follower.close()
