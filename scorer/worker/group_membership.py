"""Membership in the group: the group decides who owns a shard, and no worker fences another on older news.

A worker that was frozen, or cut off, still believes in shards that the group has given to others. Were it to call
init_transactions then, it would fence the rightful owner. So before a shard is taken up again after a failure, and when
a commit was fenced, the group itself is asked: it takes an offset of the journal from none but a present member of the
present generation (KIP-447 fences transactional offset commits in the same way).
"""

from __future__ import annotations

from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from scorer import kafka
from scorer.journal.journal_reader import journal_bounds
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Future, Queue
from scorer.worker.ports import Ports

log = structlog.get_logger()

RETRY_S = 0.1
# How often, and how long, the broker is asked whether this member is in the group without a partition.
IDLE_EVERY_S = 0.5
IDLE_ANSWER_S = 2.0
# A rebalance that runs is over within the session timeout; then the answer is yes or no.
_UNDECIDED = {
    *kafka.OLDER_GENERATION,
    *kafka.TRANSIENT,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError._WAIT_COORD,
}


class Membership:
    """The group member whose assignment of journal partitions is ownership of shards."""

    def __init__(self, settings: Settings, ports: Ports) -> None:
        self._settings = settings
        self._threads = ports.threads
        self._broker = ports.clients.broker()
        self._topic = kafka.Topics.of(settings.kafka).journal
        self.group = kafka.workers_group(kafka.Topics.of(settings.kafka))
        self.consumer: kafka.Member = ports.clients.member(self.group)
        self.metadata: Any = None
        self._idle_asked_at = float("-inf")
        # One a shard at most.
        self._questions: Queue[tuple[TopicPartition, Future[KafkaError | None]]] = self._threads.queue()

    def refresh(self) -> None:
        """Note the present generation for commits; called by the thread that polls, after each poll.

        Asked for here and kept: the call waits for a poll that runs, and a commit must not (nor can it, while a
        revocation callback inside poll waits for that very commit). Questions of `confirmed` are answered here too: the
        client makes a synchronous commit of another thread wait for a gap between two polls, a minute if need be.

        A client that is leaving may have no group any more, and raises RuntimeError: the last generation stays, which
        the broker refuses where it is over.
        """
        try:
            self.metadata = self.consumer.consumer_group_metadata()
        except RuntimeError as exc:
            log.debug("worker.no_generation", group=self.group, reason=str(exc))
        self._answer()

    def idle(self) -> bool:
        """Whether this member is in the group, which has no shard for it; asked again from time to time.

        With the classic protocol the client calls back also with nothing, with the consumer protocol (KIP-848) it does
        not: a member for which there is no shard would never know that it is one.
        """
        now = self._threads.monotonic()
        if self._settings.worker.group_protocol == "classic" or now - self._idle_asked_at < IDLE_EVERY_S:
            return False
        self._idle_asked_at, member_id = now, self.consumer.memberid()
        try:
            return bool(member_id) and self._broker.is_idle(self.group, str(member_id), timeout_s=IDLE_ANSWER_S)
        except kafka.KafkaFailure as exc:
            log.debug("worker.group_not_asked", reason=str(exc))
            return False

    def confirmed(self, shard: int, stop: Event) -> bool:
        """Whether the group still counts this member as the owner of `shard`. False as well once `stop` is set.

        Waits out a rebalance, and a coordinator that is away, for as long as `stop` is not set. Raises kafka.Denied
        when the authoriser does not let the group be asked.
        """
        patience = self._threads.monotonic() + self._settings.worker.session_timeout_ms / 1000.0
        while not stop.is_set():
            error = self._ask(shard, stop)
            if error is None:
                return not stop.is_set()
            if error.code() in kafka.DENIED:
                raise kafka.Denied(f"Kafka's authoriser refused ({error.name()}) to let the group be asked")
            if error.code() not in _UNDECIDED:
                return False
            if error.code() in kafka.OLDER_GENERATION and self._threads.monotonic() > patience:
                return False
            stop.wait(RETRY_S)
        return False

    def _ask(self, shard: int, stop: Event) -> KafkaError | None:
        """Have the polling thread commit the journal's end; its error, None when the group took it."""
        try:
            _, end = journal_bounds(self._settings.kafka, self._broker, shard)
        except kafka.Denied:
            return KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        except kafka.KafkaFailure:
            return KafkaError(KafkaError._ALL_BROKERS_DOWN)
        answer: Future[KafkaError | None] = self._threads.future()
        self._questions.put((TopicPartition(self._topic, shard, end), answer))
        while not stop.is_set():
            try:
                return answer.result(RETRY_S)
            except TimeoutError:
                continue
        return None

    def _answer(self) -> None:
        while not self._questions.empty():
            position, answer = self._questions.get_nowait()
            try:
                self.consumer.commit(offsets=[position], asynchronous=False)
                answer.set_result(None)
            except KafkaException as exc:
                answer.set_result(exc.args[0])
            except RuntimeError:  # it is leaving
                answer.set_result(KafkaError(KafkaError._STATE))
