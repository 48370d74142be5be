"""Whether this worker may join the group: not beside another application, nor beside workers of releases before 0.2.

Group and transactional ids belong to the journal, so two deployments on the same topics never both own a shard. Yet one
with another application name, another bundle perhaps, would be given shards as any worker is: it is refused, and the
one that is there goes on. Releases before 0.2 made group and ids of the application's name: while workers of such a
release are there, this one stands by. What they left open is settled before it joins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from confluent_kafka import KafkaException

from scorer import kafka
from scorer.errors import UsageError
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event
from scorer.worker.first_questions import answered
from scorer.worker.ports import Ports

log = structlog.get_logger()

RETRY_S = 1.0
LOGGED_S = 15.0
# Of one try; a coordinator that is not there by then is asked anew.
INIT_TIMEOUT_S = 15.0

_Answer = TypeVar("_Answer")


class Admission:
    """Asked before the group is joined, and once when it has been. `waits_for`: why it is not joined yet."""

    def __init__(self, settings: Settings, ports: Ports, group: str) -> None:
        self._settings, self._ports, self._group = settings, ports, group
        self._application = settings.worker.application
        self._former_group = f"{settings.kafka.topic_prefix}{self._application}"
        self._checked = False
        self._ask_at = float("-inf")
        self.waits_for = ""

    def wait(self, stop: Event) -> None:
        """Return when the group may be joined, or `stop` is set. Raises UsageError beside another application, Denied
        as `answered` does."""
        logged_at, known = float("-inf"), False
        while not stop.is_set():
            answer = self._answered(lambda: (self._members(self._former_group), self._others()), stop)
            if answer is None:
                break
            members, others = answer
            known = known or members is not None
            if not members:
                self._refuse(others)
                break
            self.waits_for = (
                f"{len(members)} workers of a release before 0.2 are in the group {self._former_group}: standing by "
                "until they have left"
            )
            if self._ports.threads.monotonic() - logged_at > LOGGED_S:
                logged_at = self._ports.threads.monotonic()
                log.warning("worker.stands_by", reason=self.waits_for)
            stop.wait(RETRY_S)
        if known and not stop.is_set():
            self._settle(stop)
        self.waits_for = ""

    def _answered(self, question: Callable[[], _Answer], stop: Event) -> _Answer | None:
        return answered(question, stop, self._ports.threads, self._settings)

    def check_once(self) -> None:
        """Ask again after joining: another application may have joined in the same moment. Raises UsageError."""
        if self._checked or self._ports.threads.monotonic() < self._ask_at:
            return
        try:
            others = self._others()
        except kafka.Rebuild as exc:  # not answered now
            log.debug("worker.group_not_asked", reason=str(exc))
            self._ask_at = self._ports.threads.monotonic() + RETRY_S
            return
        self._checked = True
        self._refuse(others)

    def _others(self) -> set[str]:
        return {kafka.application_of(client) for client in self._members(self._group) or ()} - {self._application}

    def _refuse(self, others: set[str]) -> None:
        if others:
            raise UsageError(
                f"workers of the application {', '.join(sorted(others))} decide these payments already (group "
                f"{self._group}), and FRAUD_SCORER_WORKER__APPLICATION is {self._application}. Give it the same name "
                "to work beside them, or topics of its own (FRAUD_SCORER_KAFKA__TOPIC_PREFIX)"
            )

    def _members(self, group: str) -> list[str] | None:
        broker = self._ports.clients.broker()
        try:
            found = broker.group_clients(group)
        finally:
            broker.close()
        return None if found is None else list(found)

    def _settle(self, stop: Event) -> None:
        """End what a worker of a release before 0.2 may have left open, frozen in the middle of a commit, say."""
        for shard in range(self._settings.worker.shards):
            owner = f"shard-{shard}"
            if self._answered(lambda owner=owner: self._end_former(owner), stop) is False:  # type: ignore[misc]
                # The right was taken away already: the broker ends such a transaction by itself within its timeout.
                stop.wait(self._settings.worker.transaction_timeout_ms / 1000.0)
                return

    def _end_former(self, owner: str) -> bool:
        """Whether this worker is allowed to."""
        producer = self._ports.clients.transactional_producer(owner, former=True)
        try:
            producer.init_transactions(INIT_TIMEOUT_S)
        except KafkaException as exc:
            del producer  # the error keeps this frame, and the client's threads would live as long
            name = kafka.former_transactional_id(self._settings, owner)
            failed = kafka.failure(exc, needs=f"Write on transactional-id {name}")
            if not isinstance(failed, kafka.Denied):
                raise failed from exc
            log.warning("worker.former_id_denied", reason=str(failed))
            return False
        return True
