"""A warm standby: a thread that follows journal and order log of a shard that another worker owns, to take it over.

Its state is that after the newest order; the clients that an owner needs are made, have their ids and know the topics.
"""

from __future__ import annotations

from collections import deque

import structlog

from scorer import kafka
from scorer.journal.activated_bundles import Bundles
from scorer.journal.order_reader import OrderUnreadable
from scorer.journal.partition_buffers import MissingRange
from scorer.runtime.settings import Settings
from scorer.worker import worker_metrics
from scorer.worker.follower import Follower
from scorer.worker.owner_clients import OwnerClients
from scorer.worker.ports import Ports

log = structlog.get_logger()

RETRY_S = 5.0


class Standby:
    """Follows until its state is taken, or until it is closed.

    A broker that is away, records that are gone before they were followed, orders that an operator gave up or has to
    give up begin it anew after a pause. Anything else, a digest that differs above all, ends it and stands in
    `failure`: this process must not take the shard over.
    """

    def __init__(self, settings: Settings, bundles: Bundles, shard: int, ports: Ports) -> None:
        self._settings, self._bundles, self._shard, self._ports = settings, bundles, shard, ports
        self._stop = ports.threads.event()
        self._follower: Follower | None = None
        # None or one. Its own thread may drop what the shard's thread takes: `pop` gives them to one of the two.
        self._clients: deque[OwnerClients] = deque()
        self.failure: BaseException | None = None
        self.began_at = ports.threads.monotonic()
        self._obstacle = ""  # why it began anew, or what it waits for
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
            clients = self._prepared()
            self._follower = Follower(
                self._settings, self._bundles, self._shard, self._ports, stop=self._stop, waits=self._wait
            )
            follower, begun = self._follower, self._follower.sequence

            def between() -> None:
                clients.keep()
                if follower.sequence > begun:  # what it began anew for is passed
                    self._wait("")

            follower.follow(self._stop, between)
        except (kafka.KafkaFailure, MissingRange, OrderUnreadable) as exc:
            if self.warm:
                self.began_at = self._ports.threads.monotonic()
            self._drop()
            worker_metrics.REBUILDS.labels(str(self._shard), "standby").inc()
            self._wait(str(exc))
            log.warning("standby.restarted", shard=self._shard, reason=str(exc), wait_s=RETRY_S)
            self._stop.wait(RETRY_S)
        except BaseException:
            self._drop()
            raise

    def _wait(self, reason: str) -> None:
        self._obstacle = reason

    def _prepared(self) -> OwnerClients:
        clients = OwnerClients(self._settings, self._ports, self._shard)
        try:
            clients.prepare()
        except BaseException:
            clients.close()
            raise
        self._clients.append(clients)  # from here on the shard's thread may take them
        return clients

    def _drop(self) -> None:
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self._drop_clients()

    def _drop_clients(self) -> None:
        if (clients := self._given()) is not None:
            clients.close()

    def _given(self) -> OwnerClients | None:
        """The clients, the first time."""
        try:
            return self._clients.pop()
        except IndexError:
            return None

    @property
    def sequence(self) -> int:
        """Of the batch that follows the journal, as far as it was read; 0 when that is not known."""
        follower = self._follower
        return 0 if follower is None else follower.sequence

    @property
    def warm(self) -> bool:
        """Whether its state has been the one after the newest order, and it has followed since."""
        follower = self._follower
        return follower is not None and follower.caught_up

    @property
    def state(self) -> str:
        """How far it is, for people."""
        follower = self._follower
        if self.warm:
            return "warm"
        if self._obstacle:
            return f"cannot catch up: {self._obstacle}"
        if follower is None:
            return "restores its state"
        return f"catches up, {follower.offsets_left} offsets of the journal left"

    def end(self) -> None:
        """Ask it to end, without waiting. It may wait for an order just then: a claim on the order log ends that."""
        self._stop.set()

    def clients(self) -> OwnerClients | None:
        """The owner's clients, which are now the caller's to close; None when there are none. Asks it to end."""
        self.end()
        return self._given()

    def take(self) -> Follower | None:
        """End following and give the state, which is now the caller's to close; None when there is none. Clients that
        were not taken before are dropped."""
        self.end()
        self._thread.join()
        self._drop_clients()
        follower, self._follower = self._follower, None
        return follower

    def close(self, wait_s: float | None = None) -> bool:
        """End following and drop what there is. False for what has not ended after `wait_s`: it is left to the end of
        the process."""
        self.end()
        self._thread.join(wait_s)
        if self._thread.is_alive():
            log.warning("standby.not_ended", shard=self._shard, waited_s=wait_s)
            return False
        self._drop()
        return True
