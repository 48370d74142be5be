"""One micro-batch, one Kafka transaction: decisions, audit, journal, dead letters and offsets, all or nothing.

The order inside a transaction does not matter to read_committed readers. What matters: nothing of batch n+1 is produced
before batch n is committed, and after any failure neither the producer nor the state it came from is used again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from schemas.audit_record import CHUNK_BYTES_MAX, AuditHeader, ChunkTooSmall, encode
from schemas.dead_letter import VALUE_BYTES_MAX, Headers, dead_letter_record
from schemas.decision import encode_decisions
from schemas.json_document import VALUE_BYTES_MAX as DECODED_BYTES_MAX
from scorer.kafka import (
    OLDER_GENERATION,
    KafkaFailure,
    Kind,
    Rebuild,
    Topics,
    TransactionalProducer,
    Unfit,
    failure,
    meaning,
    present,
)
from scorer.pipeline import Outcomes
from scorer.pipeline.records import ControlRecord, Rejected
from scorer.runtime import fault_points
from scorer.runtime.threads import Future, Queue, Threads

COMMIT_TIMEOUT_S = 30.0
# Sending offsets takes milliseconds, and the client does not keep the timeout that it is given for it: when the group's
# coordinator goes away at a bad moment, as in the roll of a cluster, the call never comes back (librdkafka#5456,
# #5511). So it is watched from outside, and a call that is late by so much is given up together with its producer and
# its thread, which then only wait for the end of the process.
OFFSETS_TIMEOUT_S = 10.0
LATE_S = 2.0
GIVEN_UP_MAX = 8
UNLIMITED_BYTES = 1 << 40  # for a topic whose limit is not known
# A rebalance changes the group's generation; the batch is committed again under the new one once this member knows it.
GENERATION_WAIT_S = 5.0
GENERATION_RETRY_S = 0.05
# What a record takes beside key, value and headers, with the head of a batch of its own.
RECORD_OVERHEAD_BYTES = 256
# No decision is larger: a key of 4 KiB, two ids of 128 characters, 16 reasons.
DECISION_BYTES_MAX = 8_192


@dataclass(frozen=True)
class Committed:
    """A batch that is decided for good."""

    outcomes: Outcomes
    commit_s: float
    audit_bytes: int
    journal_offset: int


class _Reports:
    """What the broker reports of a transaction's records. Delivery callbacks hold this and nothing else: a report that
    never comes keeps what they hold."""

    def __init__(self) -> None:
        self.journal_offset = -1

    def on_journal(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.journal_offset = present(message.offset(), "offset")


class Publisher:
    """Commits one batch at a time on a thread of its own, while the worker prepares the next one.

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
    ) -> None:
        """`offsets_timeout_s`: no longer than the transaction's own, for then the broker aborts it anyway. `limits`:
        the largest record of each topic, where it is known."""
        self._limits = limits
        self._producer = producer
        self._threads = threads
        self._offsets_timeout_s = min(OFFSETS_TIMEOUT_S, offsets_timeout_s)
        self._topics = topics
        self._shard = shard
        self._group_metadata = group_metadata
        self._reports = _Reports()
        self._due = math.inf  # when the call that runs must have come back, monotonic
        self._lost = False
        self._work: Queue[tuple[Outcomes, Future[Committed]] | None] = threads.queue()
        self._thread = threads.spawn(self._run, name=f"commit-{shard}")

    def submit(self, outcomes: Outcomes) -> Future[Committed]:
        """Start to commit; the future, given to `landed`, gives Committed, or raises Fenced or Rebuild."""
        future: Future[Committed] = self._threads.future()
        self._work.put((outcomes, future))
        return future

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
        self._work.put(None)
        while self._thread.is_alive() and not self._lost:
            self._thread.join(LATE_S)
            if self.overdue:
                self._give_up()
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
        while (work := self._work.get()) is not None:
            outcomes, future = work
            try:
                future.set_result(self._commit(outcomes))
            except BaseException as exc:  # noqa: BLE001 - raised to the shard by its future
                future.set_exception(exc)

    def _commit(self, outcomes: Outcomes) -> Committed:
        started = self._threads.monotonic()
        audit = self._audit(outcomes)
        until = self._threads.monotonic() + GENERATION_WAIT_S
        while True:
            try:
                self._transaction(outcomes, audit)
                self._producer.poll(0)  # delivery reports of what the commit has flushed
                seconds = self._threads.monotonic() - started
                return Committed(outcomes, seconds, sum(map(len, audit)), self._reports.journal_offset)
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
        return Unfit(
            f"topic {topic}: a record of {size} bytes must be written, and its max.message.bytes is "
            f"{self._limits[topic]}",
            {topic: size},
        )

    def _abort(self) -> None:
        """Roll back a transaction that the group refused; the producer and the outcomes can then be used again."""
        try:
            self._producer.abort_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as exc:
            raise failure(exc) from exc

    def _transaction(self, outcomes: Outcomes, audit: list[bytes]) -> None:
        self._producer.begin_transaction()
        self._produce_decisions(outcomes)
        fault_points.point("in_transaction")
        self._produce_dead_letters(outcomes)
        for chunk in audit:
            self._produce(self._topics.audit, chunk, partition=self._shard)
        self._produce(
            self._topics.journal,
            outcomes.journal.to_bytes(),
            partition=self._shard,
            on_delivery=self._reports.on_journal,
        )
        positions = [TopicPartition(self._topics.payments, r.partition, r.end) for r in outcomes.journal.inputs]
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
        fault_points.point("before_commit")
        self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        fault_points.point("after_commit")

    def _produce_decisions(self, outcomes: Outcomes) -> None:
        """One message per answer, with the payment's own key, to the partition of the same number."""
        columns = outcomes.columns
        values = encode_decisions(
            _texts(columns.payment_id),
            columns.decision,
            columns.score,
            columns.margin,
            columns.reasons,
            columns.mode,
            outcomes.bundles,
        )
        keys = outcomes.keys()
        # One call for each partition: the client takes a partition of a single message and then does not heed it.
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for value, key, partition in zip(values, keys, columns.partition.tolist(), strict=True):
            by_partition.setdefault(partition, []).append({"value": value, "key": key})
        topic = self._topics.decisions
        if self._limit(topic) < DECISION_BYTES_MAX + RECORD_OVERHEAD_BYTES:
            for value, key in zip(values, keys, strict=True):
                self._check(topic, value, key)
        for partition, messages in by_partition.items():
            if self._producer.produce_batch(topic, messages, partition) != len(messages):
                # A message that was refused has its error in it; a full queue is the usual one.
                for refused in (m["_error"] for m in messages if "_error" in m):
                    if refused.code() != KafkaError._QUEUE_FULL:
                        raise self._refused(topic, refused)
                raise BufferError

    def _produce_dead_letters(self, outcomes: Outcomes) -> None:
        records, rejected = outcomes.records, outcomes.rejected
        topic = self._topics.dead_letters
        # What could be sent again is kept whole, whatever the topic takes: a longer value would be refused once more.
        room = self._limit(topic) - 2 * DECISION_BYTES_MAX
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
                key, value, headers = dead_letter_record(
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
                self._produce(topic, value, key=key, headers=headers)
        # Every shard reads the topics control and labels; one speaks for all, so that a record has one dead letter.
        if self._shard == 0:
            self._produce_refused(self._topics.control, outcomes.control, outcomes.rejected_control, value_bytes_max)
            self._produce_refused(self._topics.labels, outcomes.labels, outcomes.rejected_labels, value_bytes_max)

    def _produce_refused(
        self, origin: str, records: Sequence[ControlRecord], rejected: Sequence[Rejected], value_bytes_max: int
    ) -> None:
        """Dead letters of a topic that every shard reads."""
        for item in rejected:
            record = records[item.index]
            key, value, headers = dead_letter_record(
                topic=origin,
                partition=0,
                offset=record.offset,
                key=record.key,
                value=record.value,
                error=item.error,
                value_bytes_max=value_bytes_max,
            )
            self._produce(self._topics.dead_letters, value, key=key, headers=headers)

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


def _texts(column: Sequence[str]) -> list[str]:
    return column.to_pylist() if isinstance(column, pa.Array) else list(column)
