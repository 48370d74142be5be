"""The broker is checked, not believed: ids and partition counts of all topics, asked again and again while deciding.

A client that reads a topic which is deleted and made anew goes on at its old offset, without an error and past all that
stands before it. So the topics' ids are asked for every second, and what does not fit stops the worker.

Every few seconds the topics' own settings are compared with the replicas in sync as well: a commit that lacks replicas
fails only after the transaction's time-out, and the error that comes then does not name the cause.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from scorer import kafka
from scorer.errors import FraudScorerError, UsageError
from scorer.kafka import KafkaFailure, SourceChanged, TopicFacts
from scorer.runtime import fault_points
from scorer.runtime.settings import Settings
from scorer.runtime.threads import Event, Thread
from scorer.worker.first_questions import answered
from scorer.worker.follower import check_append_time, check_topics
from scorer.worker.ports import Ports

log = structlog.get_logger()

EVERY_S = 1.0
# Whose timestamps records have is asked less often: each record says it as well.
TYPES_EVERY_S = 5.0
# Of one question: a node that has just died is still asked for as long as the client does not know better.
ANSWER_S = 2.0
OBSTACLE_EVERY_S = 3.0
# A topic that is not there, or too few partitions, must stay so for this long before the worker ends with it.
UNFIT_S = 3.0
# So long without an answer and the process counts as cut off from Kafka: not ready.
SILENT_S = 3.0


class TopicWatch:
    """Asks on a thread of its own from `start` to `close`. `failure`: what does not fit, and ends the process.
    `obstacle`: what keeps a commit from succeeding and can be repaired while the worker waits; empty without one."""

    def __init__(self, settings: Settings, ports: Ports) -> None:
        self._settings = settings
        self._topics = kafka.Topics.of(settings.kafka)
        self._names = self._topics.all
        self._types_at = 0.0
        self._threads = ports.threads
        self._broker = ports.clients.broker()
        self._stop = ports.threads.event()
        self._first: Mapping[str, TopicFacts] = {}
        self._answered_at = self._threads.monotonic()
        self._unfit_since: float | None = None
        self._obstacle_at = float("-inf")  # when it was asked for
        self.obstacle = ""
        self.payments = 0
        self.failure: BaseException | None = None
        self._thread: Thread | None = None

    def start(self, stop: Event) -> None:
        """Note the topics as they are now and begin to ask, or return when `stop` is set. Raises UsageError when their
        counts do not fit, Denied as `answered` does."""
        answered(self._begin, stop, self._threads, self._settings)

    def _begin(self) -> None:
        self._first = self._broker.topic_facts(self._names)
        check_topics(self._settings, self._first)
        self._see(self._first)
        self._see_types()
        if self._settings.worker.fast_decisions:
            self._check_kept()
        self._thread = self._threads.spawn(self._run, name="topic-watch")

    def _check_kept(self) -> None:
        """A fast decision stands as long as the broker has its batch's order, and all that this says was read. Raises
        UsageError where the settings say so."""
        reason = self._broker.forgettable(self._topics.decided_from)
        if reason and self._settings.worker.fast_on_one_broker == "refuse":
            raise UsageError(
                f"a fast decision could be taken back. {reason}. Or set FRAUD_SCORER_WORKER__FAST_ON_ONE_BROKER=warn, "
                "or FRAUD_SCORER_WORKER__FAST_DECISIONS=false"
            )
        if reason:
            log.warning("order.forgettable", reason=f"a fast decision could be taken back, or be missing. {reason}")

    def check(self) -> None:
        """Raise what was found not to fit."""
        if self.failure is not None:
            raise self.failure

    @property
    def silent_s(self) -> float:
        """Seconds since the broker answered last, beyond the time between two questions."""
        return max(0.0, self._threads.monotonic() - self._answered_at - EVERY_S)

    def close(self) -> None:
        """Stop asking."""
        self._stop.set()
        if self._thread is not None:  # a question that has no answer yet is left to the end of the process
            self._thread.join(ANSWER_S)

    def _run(self) -> None:
        try:
            while not self._stop.wait(EVERY_S):
                self._look()
                self._look_for_obstacles()
        except BaseException as exc:  # noqa: BLE001 - raised by the threads that check
            self.failure = self.failure or exc

    def _look(self) -> None:
        try:
            fault_points.point("topic_watch")
            self._see(self._broker.topic_facts(self._names, timeout_s=ANSWER_S))
            if self._threads.monotonic() - self._types_at > TYPES_EVERY_S:
                self._see_types()
            self._unfit_since = None
        except (kafka.Away, kafka.Denied) as exc:
            log.debug("topics.not_asked", reason=str(exc))  # readiness shows it, and clients log their own errors
        except KafkaFailure as exc:
            self._unfit(SourceChanged(f"{exc}. {self._ids()} `fraud-scorer recover` shows what is missing then"))
        except UsageError as exc:  # counts that fitted at the start and do not now: no wrong usage of a command
            self._unfit(SourceChanged(str(exc)))
        except FraudScorerError as exc:
            self._end(exc)

    def _look_for_obstacles(self) -> None:
        """Note what keeps a commit from succeeding; without an answer what was noted stands."""
        if self._threads.monotonic() - self._obstacle_at < OBSTACLE_EVERY_S:
            return
        self._obstacle_at = self._threads.monotonic()
        before = self.obstacle
        try:
            self.obstacle = self._broker.obstacle({}, timeout_s=ANSWER_S)
        except KafkaFailure as exc:
            log.debug("topics.obstacle_unknown", reason=str(exc))
        if self.obstacle and self.obstacle != before:
            log.error("topics.obstacle", reason=self.obstacle)
        elif before and not self.obstacle:
            log.info("topics.obstacle_gone", reason=before)

    def _unfit(self, failure: FraudScorerError) -> None:
        """End when it stays so: a broker that has just restarted may not know of topics or partitions for a moment."""
        now = self._threads.monotonic()
        if self._unfit_since is None:
            self._unfit_since = now
        elif now - self._unfit_since >= UNFIT_S:
            self._end(failure)

    def _ids(self) -> str:
        known = ", ".join(f"{name} with id {first.id}" for name, first in self._first.items())
        return f"When this worker began there were {known}."

    def _end(self, failure: FraudScorerError) -> None:
        if self.failure is None:
            log.error("topics.changed", reason=str(failure))
            self.failure = failure

    def _see_types(self) -> None:
        check_append_time(self._settings, self._broker.timestamp_types(self._topics.inputs))
        self._types_at = self._threads.monotonic()

    def _see(self, facts: Mapping[str, TopicFacts]) -> None:
        self._answered_at = self._threads.monotonic()
        for name, first in self._first.items():
            if facts[name].id != first.id and kafka.NO_ID not in (facts[name].id, first.id):
                raise SourceChanged(
                    f"topic {name} had id {first.id} and has {facts[name].id} now: it was deleted and made anew. "
                    "Nothing more is decided. `fraud-scorer recover` shows what is missing and what can be accepted"
                )
            if facts[name].partitions < first.partitions:
                raise UsageError(f"topic {name} lost partitions: {first.partitions} → {facts[name].partitions}")
        check_topics(self._settings, facts)
        payments = facts[self._topics.payments].partitions
        if self.payments and payments > self.payments:
            self._check_growth(payments)
        self.payments = payments

    def _check_growth(self, payments: int) -> None:
        """With one shard every partition is its own; with several, a key that moved may now be of another shard."""
        shards = self._settings.worker.shards
        if shards > 1:
            raise UsageError(
                f"the payments topic has {payments} partitions, {self.payments} before: with {shards} shards the "
                "payments of one key may now be split between two, and features would not be exact. "
                "`fraud-scorer recover --adopt-partitions` accepts that"
            )
        log.warning("topics.partitions_added", payments=payments, before=self.payments)
