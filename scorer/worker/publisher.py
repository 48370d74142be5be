"""Micro-batches in Kafka transactions: decisions, audit, journal, dead letters and offsets, all or nothing.

One transaction holds the batches that waited when it began, in their order, up to a bound. What matters: nothing of the
next transaction is produced before this one is committed; it commits only when topic decisions-fast has what it is to
have of these batches; and after any failure neither the producer nor the state it came from is used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from schemas.audit_record import CHUNK_BYTES_MAX, AuditHeader, ChunkTooSmall, encode
from schemas.dead_letter import VALUE_BYTES_MAX, Headers, dead_letter_record
from schemas.json_document import VALUE_BYTES_MAX as DECODED_BYTES_MAX
from scorer.kafka import (
    OLDER_GENERATION,
    ColumnProducer,
    KafkaFailure,
    Kind,
    PlainColumns,
    Rebuild,
    Topics,
    TransactionalProducer,
    Unfit,
    failure,
    meaning,
    reported_offset,
)
from scorer.pipeline import Outcomes
from scorer.runtime import fault_points
from scorer.runtime.threads import Empty, Future, Queue, Threads
from scorer.runtime.trace_context import header_bytes
from scorer.worker.answers import Answers, answers_of
from scorer.worker.order_log import RECORD_OVERHEAD_BYTES, Delivery, fitting, unfit

COMMIT_TIMEOUT_S = 30.0
# Sending offsets takes milliseconds, and the client does not keep the timeout that it is given for it: when the group's
# coordinator goes away at a bad moment, as in the roll of a cluster, the call never comes back (librdkafka#5456,
# #5511). So it is watched from outside, and a call that is late by so much is given up together with its producer and
# its thread, which then only wait for the end of the process.
OFFSETS_TIMEOUT_S = 10.0
LATE_S = 2.0
GIVEN_UP_MAX = 8
# With decisions, dead letters and audit chunks well below what the producer's queue holds, 200,000 messages.
PAYMENTS_MAX = 65_536
UNLIMITED_BYTES = 1 << 40  # for a topic whose limit is not known
# A rebalance changes the group's generation; the batch is committed again under the new one once this member knows it.
GENERATION_WAIT_S = 5.0
GENERATION_RETRY_S = 0.05
# No decision is larger: a key of 4 KiB, two ids of 128 characters, 16 reasons.
DECISION_BYTES_MAX = 8_192


_Letter = tuple[bytes | None, bytes | None, Headers]  # key, value, headers


@dataclass(frozen=True)
class Committed:
    """A batch that is decided for good."""

    outcomes: Outcomes
    commit_s: float
    audit_bytes: int
    journal_offset: int  # -1 where it is not known
    batches: int  # in its transaction
    at: float  # monotonic, when the transaction had committed


class _Work(NamedTuple):
    """A batch to commit. `delivery`: of its fast decisions, where it has some."""

    outcomes: Outcomes
    answers: Answers
    delivery: Delivery | None
    future: Future[Committed]


class _Reports:
    """What the broker reports of a batch's records. Delivery callbacks hold this and nothing else: a report that
    never comes keeps what they hold."""

    def __init__(self) -> None:
        self.journal_offset = -1

    def on_journal(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.journal_offset = reported_offset(message)


class Publisher:
    """Commits batches on a thread of its own, while the worker prepares the next ones.

    It has the only reference to its producer, which ends with it.
    """

    given_up: ClassVar[int] = 0  # calls of this process that have not come back

    def __init__(
        self,
        producer: TransactionalProducer,
        topics: Topics,
        threads: Threads,
        *,
        shard: int,
        group_metadata: Callable[[], Any],
        offsets_timeout_s: float = OFFSETS_TIMEOUT_S,
        limits: Mapping[str, int] = MappingProxyType({}),
        columns: Callable[[TransactionalProducer], ColumnProducer] = PlainColumns,
        batches_max: int = 1,
        payments_max: int = PAYMENTS_MAX,
        gather_s: float = 0.0,
    ) -> None:
        """`offsets_timeout_s`: no longer than the transaction's own, for then the broker aborts it anyway. `limits`:
        the largest record of each topic, where it is known. `columns`: gives what hands decisions to the producer.
        `batches_max`, `payments_max`: a transaction takes no further batch once it has so many batches or payments.
        `gather_s`: those that have room begin so far apart at least, and take the batches that come meanwhile."""
        self._limits = limits
        self._producer = producer
        self._columns = columns(producer)
        self._threads = threads
        self._offsets_timeout_s = min(OFFSETS_TIMEOUT_S, offsets_timeout_s)
        self._topics = topics
        self._shard = shard
        self._group_metadata = group_metadata
        self._batches_max, self._payments_max, self._gather_s = batches_max, payments_max, gather_s
        self._failed = self._ended = False
        self._began_at = -math.inf  # the last transaction, monotonic
        self._due = math.inf  # when the call that runs must have come back, monotonic
        self._lost = False
        self._work: Queue[Sequence[_Work] | None] = threads.queue()
        self._thread = threads.spawn(self._run, name=f"commit-{shard}")

    def submit(
        self, outcomes: Outcomes, answers: Answers | None = None, delivery: Delivery | None = None
    ) -> Future[Committed]:
        """Start to commit; the future, given to `wait`, gives Committed, or raises Fenced or Rebuild.

        `answers`: the batch's decisions, where they are made already. `delivery`: what must be there before.
        """
        work = _Work(outcomes, answers or answers_of(outcomes), delivery, self._threads.future())
        self._work.put([work])
        return work.future

    def submit_together(self, batches: Sequence[Outcomes]) -> list[Future[Committed]]:
        """The same for batches that are committed all or not at all, in one transaction."""
        works = [_Work(outcomes, answers_of(outcomes), None, self._threads.future()) for outcomes in batches]
        self._work.put(works)
        return [work.future for work in works]

    def end_gathering(self) -> None:
        """No other batch comes: what waits is committed at once."""
        self._work.put(None)

    @property
    def overdue(self) -> bool:
        """Whether a call of the client has not come back in time: then it never will."""
        return self._threads.monotonic() > self._due

    def wait(self, commit: Future[Committed]) -> Committed:
        """Wait for a commit. Raises what made it fail; Rebuild as well when a call of the client does not come back."""
        while True:
            try:
                return commit.result(LATE_S)
            except TimeoutError:
                if self.overdue:
                    raise self._give_up() from None

    def close(self) -> None:
        """Wait for a commit that runs, stop, and end the producer, unless one of its calls never comes back."""
        self.end_gathering()
        while self._thread.is_alive() and not self._lost:
            self._thread.join(LATE_S)
            if self.overdue:
                self._give_up()
        self._columns.close()
        if not self._lost:
            # Records that still wait would keep the client's threads and connections busy while it ends.
            with suppress(KafkaException):  # a fenced one raises its fatal error here once more
                self._producer.purge()
                self._producer.poll(0)
        del self._producer

    def _give_up(self) -> KafkaFailure:
        self._lost = True
        Publisher.given_up += 1
        reason = "a call of the Kafka client has not come back (librdkafka#5456)"
        if Publisher.given_up > GIVEN_UP_MAX:
            return KafkaFailure(f"{reason}, for the {Publisher.given_up}th time: this process ends")
        return Rebuild(reason)

    def _run(self) -> None:
        while works := self._next():
            try:
                self._commit_next(works)
            except BaseException as exc:  # noqa: BLE001 - raised to the shard by the futures
                self._failed = True
                for work in works:
                    work.future.set_exception(exc)

    def _next(self) -> list[_Work]:
        """The batches of the next transaction, in order; none at the end."""
        works: list[_Work] = []
        deadline, payments = self._began_at + self._gather_s, 0
        while not self._ended and len(works) < self._batches_max and payments < self._payments_max:
            try:
                if not works:
                    given = self._work.get()
                elif (remaining := deadline - self._threads.monotonic()) > 0:
                    given = self._work.get(timeout=remaining)
                else:
                    given = self._work.get_nowait()
            except Empty:
                break
            if given is None:
                self._ended = True
            else:
                works += given
                payments += sum(len(work.outcomes.records) for work in given)
        self._began_at = self._threads.monotonic()
        return works

    def _commit_next(self, works: Sequence[_Work]) -> None:
        if self._failed:  # state has gone on beyond what was committed
            raise Rebuild("the transaction before was not committed")
        for work, committed in zip(works, self._commit(works), strict=True):
            work.future.set_result(committed)

    def _commit(self, works: Sequence[_Work]) -> list[Committed]:
        started = self._threads.monotonic()
        # Before the transaction begins, which ends by time: masking what is refused may take seconds.
        made = [(self._audit(work.outcomes), self._dead_letters(work.outcomes)) for work in works]
        until = self._threads.monotonic() + GENERATION_WAIT_S
        while True:
            try:
                reports = self._transaction(works, made)
                self._producer.poll(0)  # delivery reports of what the commit has flushed
                ended = self._threads.monotonic()
                return [
                    Committed(
                        work.outcomes, ended - started, sum(map(len, audit)), report.journal_offset, len(works), ended
                    )
                    for work, (audit, _), report in zip(works, made, reports, strict=True)
                ]
            except KafkaException as exc:
                if not _of_an_older_generation(exc) or self._threads.monotonic() > until:
                    raise failure(exc) from exc
                self._abort()
                self._threads.sleep(GENERATION_RETRY_S)
            except BufferError as exc:
                raise Rebuild("the producer's queue did not drain") from exc

    def _audit(self, outcomes: Outcomes) -> list[bytes]:
        """The audit chunks, as large as the topic takes them."""
        header = AuditHeader(
            **dict(outcomes.context),
            shard=self._shard,
            sequence=outcomes.journal.sequence,
            journal=outcomes.journal.to_bytes().decode(),
            salt=None if outcomes.salt is None else outcomes.salt.hex(),
        )
        room = min(CHUNK_BYTES_MAX, self._limit(self._topics.audit) - RECORD_OVERHEAD_BYTES)
        try:
            return encode(outcomes.columns, header, chunk_bytes_max=room)
        except ChunkTooSmall as exc:
            if room == CHUNK_BYTES_MAX:  # not the topic's limit but the contract's
                raise
            raise self._unfit(self._topics.audit, exc.needed + RECORD_OVERHEAD_BYTES) from exc

    def _limit(self, topic: str) -> int:
        return self._limits.get(topic, UNLIMITED_BYTES)

    def _unfit(self, topic: str, size: int) -> Unfit:
        return unfit(topic, size, self._limits[topic])

    def _abort(self) -> None:
        """Roll back a transaction that the group refused; the producer and the outcomes can then be used again."""
        try:
            self._producer.abort_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as exc:
            raise failure(exc) from exc

    def _transaction(self, works: Sequence[_Work], made: Sequence[tuple[list[bytes], list[_Letter]]]) -> list[_Reports]:
        """`made`: the audit chunks and dead letters of each."""
        self._producer.begin_transaction()
        reports: list[_Reports] = []
        ends: dict[int, int] = {}
        for work, (audit, letters) in zip(works, made, strict=True):
            reports.append(self._produce_batch(work, audit, letters))
            ends |= {r.partition: r.end for r in work.outcomes.journal.inputs}
        positions = [TopicPartition(self._topics.payments, partition, end) for partition, end in ends.items()]
        metadata = self._group_metadata()  # none without a membership: what a command commits
        if (
            positions and metadata is not None
        ):  # fresh group metadata every time: the member's generation changes with each rebalance
            self._due = self._threads.monotonic() + self._offsets_timeout_s + LATE_S
            try:
                fault_points.point("in_offsets")
                self._producer.send_offsets_to_transaction(positions, metadata, self._offsets_timeout_s)
            finally:
                self._due = math.inf
            if self._lost:
                raise Rebuild("the client's call came back after it was given up")
        for work in works:
            if work.delivery is not None:
                work.delivery.wait()
        fault_points.point("before_commit")
        self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        fault_points.point("after_commit")
        return reports

    def _produce_batch(self, work: _Work, audit: list[bytes], letters: list[_Letter]) -> _Reports:
        outcomes, reports = work.outcomes, _Reports()
        self._produce_decisions(work.answers)
        fault_points.point("in_transaction")
        for key, value, letter_headers in letters:
            self._produce(self._topics.dead_letters, value, key=key, headers=letter_headers)
        for number, chunk in enumerate(audit):
            headers = list(work.answers.audit_headers) if number == 0 else []
            if len(chunk) + header_bytes(headers) + RECORD_OVERHEAD_BYTES > self._limit(self._topics.audit):
                headers = []  # the topic takes the record, and no more with it
            self._produce(self._topics.audit, chunk, partition=self._shard, headers=headers or None)
        self._produce(
            self._topics.journal, outcomes.journal.to_bytes(), partition=self._shard, on_delivery=reports.on_journal
        )
        return reports

    def _produce_decisions(self, answers: Answers) -> None:
        """One message per answer, with the payment's own key, to the partition of the same number."""
        values, keys, partition = answers.values, answers.keys, answers.partition
        topic = self._topics.decisions
        sizes = values.lengths + keys.lengths + RECORD_OVERHEAD_BYTES
        too_large = np.flatnonzero(sizes > self._limit(topic))
        if len(too_large):  # the broker would only name a request
            raise self._unfit(topic, int(sizes[too_large[0]]))
        headers = fitting(answers.headers, values.lengths + keys.lengths, self._limits.get(topic))
        try:
            self._columns.produce(topic, values, keys, partition, headers)
        except KafkaException as exc:
            raise self._refused(topic, exc.args[0]) from exc

    def _dead_letters(self, outcomes: Outcomes) -> list[_Letter]:
        """Dead letters of everything that was refused."""
        records, rejected, letters = outcomes.records, outcomes.rejected, list[_Letter]()
        # What could be sent again is kept whole, whatever the topic takes: a longer value would be refused once more.
        room = self._limit(self._topics.dead_letters) - 2 * DECISION_BYTES_MAX
        value_bytes_max = min(VALUE_BYTES_MAX, max(DECODED_BYTES_MAX, room))
        if rejected:
            at = np.fromiter((item.index for item in rejected), np.int64, len(rejected))
            # Plain numbers from one call each: taking them out of the arrays one by one costs more than the letter.
            origins = zip(
                records.partition[at].tolist(),
                records.offset[at].tolist(),
                records.timestamp_ms[at].tolist(),
                strict=True,
            )
            for item, (partition, offset, timestamp_ms) in zip(rejected, origins, strict=True):
                letters.append(
                    dead_letter_record(
                        topic=self._topics.payments,
                        partition=partition,
                        offset=offset,
                        key=records.keys[item.index],
                        value=records.values[item.index],
                        error=item.error,
                        timestamp_ms=timestamp_ms,
                        value_bytes_max=value_bytes_max,
                        cards=outcomes.cards,
                    )
                )
        # Every shard reads the topics control and labels; one speaks for all, so that a record has one dead letter.
        if self._shard == 0:
            for origin, shared, refused in (
                (self._topics.control, outcomes.control, outcomes.rejected_control),
                (self._topics.labels, outcomes.labels, outcomes.rejected_labels),
            ):
                letters += [
                    dead_letter_record(
                        topic=origin,
                        partition=0,
                        offset=shared[item.index].offset,
                        key=shared[item.index].key,
                        value=shared[item.index].value,
                        error=item.error,
                        value_bytes_max=value_bytes_max,
                    )
                    for item in refused
                ]
        return letters

    def _produce(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None, **more: Any
    ) -> None:
        self._check(topic, value, key, headers)
        try:
            try:
                self._producer.produce(topic, value, key=key, headers=headers, **more)
            except BufferError:
                # The queue holds several whole batches: it drains in a moment, or the transaction times out.
                self._producer.poll(1.0)
                self._producer.produce(topic, value, key=key, headers=headers, **more)
        except KafkaException as exc:
            raise self._refused(topic, exc.args[0]) from exc

    def _check(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers | None = None) -> None:
        """Raise Unfit for a record that the topic does not take: the broker would only name a request."""
        size = len(value or b"") + len(key or b"") + sum(len(name) + len(text) for name, text in headers or ())
        if size + RECORD_OVERHEAD_BYTES > self._limit(topic):
            raise self._unfit(topic, size + RECORD_OVERHEAD_BYTES)

    def _refused(self, topic: str, error: KafkaError) -> KafkaFailure:
        """What it means that the client did not take a record at all."""
        if error.code() == KafkaError._FATAL:  # the transaction's own calls give the cause
            try:
                self._producer.abort_transaction(COMMIT_TIMEOUT_S)
            except KafkaException as exc:
                return failure(exc)
        if meaning(error) is Kind.UNFIT:  # by a setting of this client, which does not pass
            return KafkaFailure(
                f"a record for {topic} was refused by the client ({error.name()}): its message.max.bytes, in "
                "FRAUD_SCORER_KAFKA__SECURITY, is too small"
            )
        return failure(error, f"a record for {topic} was refused")


def _of_an_older_generation(exc: KafkaException) -> bool:
    """Whether the group refused the offsets because a rebalance is on or has just been; all else is well."""
    error = exc.args[0]
    return error.txn_requires_abort() and error.code() in OLDER_GENERATION | {KafkaError.REBALANCE_IN_PROGRESS}
