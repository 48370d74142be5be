"""An owned shard's thread: it rebuilds the shard after a failed transaction, asks the group whose it is, and waits for
rights that were taken away (scorer/worker/missing_rights.py) and for topics that do not take what must be written.
"""

from __future__ import annotations

import structlog

from scorer import kafka
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.worker import worker_metrics
from scorer.worker.group_membership import Membership
from scorer.worker.missing_rights import MissingRights
from scorer.worker.ports import Ports
from scorer.worker.shard import Shard
from scorer.worker.standby import Standby

log = structlog.get_logger()

# A rebuild that follows another within this time waits longer and longer: 0.2 s, 0.4 s … 10 s. A broker that is away
# for a minute costs few tries.
REBUILD_BACKOFF_S = 0.2
REBUILD_BACKOFF_S_MAX = 10.0
REBUILD_CALM_S = 60.0
# How often the group is asked again about a shard that it says is not ours, and that has not been released yet.
ASKED_AGAIN_S = 5.0
# How often the topics are looked at again while a setting of theirs keeps a batch from being committed.
OBSTACLE_RETRY_S = 1.0
# A node that has just died is still asked for as long as the client does not know better; after so long without an
# answer the shard is taken up, and only that shows whether it can be.
OBSTACLE_ANSWER_S, OBSTACLE_UNKNOWN_S = 3.0, 20.0
OBSTACLE_LOGGED_S = 15.0


class ShardThread:
    """The thread, by the shard's `number`. `failure`: why it cannot go on; the process ends with it. `waits_for`: what
    an operator must repair before it can; empty when there is nothing."""

    def __init__(
        self,
        settings: Settings,
        shard: Shard,
        number: int,
        membership: Membership,
        standby: Standby | None,
        ports: Ports,
    ) -> None:
        self._ports = ports
        self._threads = ports.threads
        self.shard = shard
        self._missing_rights = MissingRights(settings, number, ports)
        self._membership = membership
        self.number = number
        self._standby = standby
        self.stop = ports.threads.event()
        self.failure: BaseException | None = None
        self.waits_for = ""
        self._thread = ports.threads.spawn(self._run, name=f"shard-{number}")

    def _run(self) -> None:
        try:
            self._own()
        except BaseException as exc:  # noqa: BLE001 - handed to the main thread, which ends the process with it
            self.failure = exc

    def _own(self) -> None:
        """Decide, and take the shard up again after what a rebuild repairs. Raises anything else."""
        backoff_s = REBUILD_BACKOFF_S
        while not self.stop.is_set():
            began = self._threads.monotonic()
            try:
                standby, self._standby = self._standby, None
                self.shard.run(self.stop, standby)
            except kafka.Denied as exc:
                worker_metrics.REBUILDS.labels(str(self.number), "denied").inc()
                if not self._is_ours(exc):
                    return
            except kafka.Rebuild as exc:
                worker_metrics.REBUILDS.labels(str(self.number), "transaction").inc()
                backoff_s = (
                    REBUILD_BACKOFF_S
                    if self._threads.monotonic() - began > REBUILD_CALM_S
                    else min(2 * backoff_s, REBUILD_BACKOFF_S_MAX)
                )
                log.warning("shard.rebuild", shard=self.number, reason=str(exc), wait_s=backoff_s)
                self.stop.wait(backoff_s)
                self._wait_for_topics(exc)
                if not self._is_ours(exc):
                    return
            except kafka.Fenced as exc:
                # By a new owner, or by one that woke up and did not know yet that it is none: the group says which. Or
                # by the broker, which ends a transaction after its time-out in the same way: then what held the commit
                # up may hold up the next one, and init_transactions before it.
                if not self._is_ours(exc):
                    return
                worker_metrics.REBUILDS.labels(str(self.number), "fenced").inc()
                reason = f"{exc}, or the transaction took longer than its time-out: the group says it is ours"
                log.warning("shard.rebuild", shard=self.number, reason=reason)
                self._wait_for_topics(exc)
        if self._standby is not None:  # released before it was begun
            self._standby.close()

    def _wait_for_topics(self, cause: kafka.KafkaFailure) -> None:
        """Wait as long as a topic's setting keeps the next commit from succeeding as well."""
        needed = cause.needed if isinstance(cause, kafka.Unfit) else {}
        logged_at, broker = float("-inf"), self._ports.clients.broker()
        unknown_until = self._threads.monotonic() + OBSTACLE_UNKNOWN_S
        try:
            while not self.stop.is_set():
                try:
                    self.waits_for = broker.obstacle(needed, timeout_s=OBSTACLE_ANSWER_S)
                except kafka.KafkaFailure as exc:  # then only trying shows it
                    log.debug("shard.obstacle_unknown", shard=self.number, reason=str(exc))
                    self.waits_for = ""
                    if isinstance(exc, kafka.Away) and self._threads.monotonic() < unknown_until:
                        self.stop.wait(OBSTACLE_RETRY_S)
                        continue
                if not self.waits_for:
                    return
                if self._threads.monotonic() - logged_at > OBSTACLE_LOGGED_S:
                    logged_at = self._threads.monotonic()
                    log.error("shard.obstacle", shard=self.number, reason=self.waits_for)
                self.stop.wait(OBSTACLE_RETRY_S)
        finally:
            self.waits_for = ""
            broker.close()

    def _is_ours(self, cause: kafka.KafkaFailure) -> bool:
        """Whether to take the shard up again after `cause`: the group is asked, once Kafka lets it be asked."""
        fault_points.point("after_failure")
        # Its frames hold the state that is to be dropped, in a cycle with the future of the commit that failed.
        cause.__traceback__ = None
        denial = cause if isinstance(cause, kafka.Denied) else None
        while True:
            if denial is not None:
                self.failure = self._missing_rights.outlasted(denial, self.shard.batches_committed, self.stop)
                if self.failure is not None or self.stop.is_set():
                    return False
            try:
                if self._membership.confirmed(self.number, self.stop):
                    return True
            except kafka.Denied as exc:
                denial = exc
                continue
            if self.stop.is_set():  # then no answer says anything: what is not committed is the next owner's
                return False
            if isinstance(cause, kafka.Fenced):  # in a commit: the process ends
                self.failure = cause
                return False
            # It will be released. Or a rebalance came between, and the answer was one of the moment: asked again.
            if self.stop.wait(ASKED_AGAIN_S):
                return False

    def drain(self, seconds: float) -> bool:
        """Ask the shard to finish its batch in flight and wait for it. True when it has ended in time."""
        self.stop.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()
