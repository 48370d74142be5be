"""One micro-batch, one Kafka transaction: decisions, audit, journal, dead letters and offsets, all or nothing.

The order inside a transaction does not matter to read_committed readers. What matters: nothing of batch n+1 is produced
before batch n is committed, and after any failure neither the producer nor the state it came from is used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from schemas.audit import AuditHeader, encode
from schemas.dead_letter import dead_letter_record
from schemas.decision import encode_decisions
from scorer import faults
from scorer.kafka import OLDER_GENERATION, KafkaFailure, Rebuild, Topics, describe, failure, present
from scorer.pipeline import Outcomes

COMMIT_TIMEOUT_S = 30.0
# A rebalance changes the group's generation; the batch is committed again under the new one once this member knows it.
GENERATION_WAIT_S = 5.0
GENERATION_RETRY_S = 0.05
MODES = ("normal", "degraded", "duplicate", "late")


@dataclass(frozen=True)
class Committed:
    """A batch that is decided for good."""

    outcomes: Outcomes
    commit_s: float
    audit_bytes: int
    journal_offset: int


class Publisher:
    """Commits one batch at a time on a thread of its own, while the worker prepares the next one."""

    def __init__(self, producer: Producer, topics: Topics, *, shard: int, group_metadata: Callable[[], Any]) -> None:
        self._producer = producer
        self._topics = topics
        self._shard = shard
        self._group_metadata = group_metadata
        self._journal_offset = -1
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"commit-{shard}")

    def submit(self, outcomes: Outcomes) -> Future[Committed]:
        """Start to commit; the future gives Committed, or raises Fenced or Rebuild."""
        return self._thread.submit(self._commit, outcomes)

    def close(self) -> None:
        """Wait for a commit that runs, and stop."""
        self._thread.shutdown(wait=True)

    def _commit(self, outcomes: Outcomes) -> Committed:
        started = time.perf_counter()
        audit = encode(
            outcomes.columns,
            AuditHeader(
                **dict(outcomes.context),
                shard=self._shard,
                sequence=outcomes.journal.sequence,
                journal=outcomes.journal.to_bytes().decode(),
            ),
        )
        until = time.monotonic() + GENERATION_WAIT_S
        while True:
            try:
                self._transaction(outcomes, audit)
                self._producer.poll(0)  # delivery reports of what the commit has flushed
                seconds = time.perf_counter() - started
                return Committed(outcomes, seconds, sum(map(len, audit)), self._journal_offset)
            except KafkaException as exc:
                if not _of_an_older_generation(exc) or time.monotonic() > until:
                    raise failure(exc) from exc
                self._abort()
                time.sleep(GENERATION_RETRY_S)
            except BufferError as exc:
                raise Rebuild("the producer's queue did not drain") from exc

    def _abort(self) -> None:
        """Roll back a transaction that the group refused; the producer and the outcomes can then be used again."""
        try:
            self._producer.abort_transaction(COMMIT_TIMEOUT_S)
        except KafkaException as exc:
            raise failure(exc) from exc

    def _transaction(self, outcomes: Outcomes, audit: list[bytes]) -> None:
        self._producer.begin_transaction()
        self._produce_decisions(outcomes)
        faults.point("in_transaction")
        self._produce_dead_letters(outcomes)
        for chunk in audit:
            self._produce(self._topics.audit, chunk, partition=self._shard)
        self._produce(
            self._topics.journal, outcomes.journal.to_bytes(), partition=self._shard, on_delivery=self._on_journal
        )
        positions = [TopicPartition(self._topics.payments, r.partition, r.end) for r in outcomes.journal.inputs]
        if positions:  # fresh group metadata every time: the member's generation changes with each rebalance
            self._producer.send_offsets_to_transaction(positions, self._group_metadata(), COMMIT_TIMEOUT_S)
        faults.point("before_commit")
        self._producer.commit_transaction(COMMIT_TIMEOUT_S)
        faults.point("after_commit")

    def _on_journal(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._journal_offset = present(message.offset(), "offset")

    def _produce_decisions(self, outcomes: Outcomes) -> None:
        """One message per payment, with the payment's own key, to the partition of the same number."""
        columns = outcomes.columns
        values = encode_decisions(
            outcomes.payments.column("payment_id").tolist(),
            columns.decision,
            columns.score,
            columns.margin,
            columns.reasons,
            columns.mode,
            outcomes.bundles,
        )
        keys = outcomes.records.keys
        # One call for each partition: the client takes a partition of a single message and then does not heed it.
        by_partition: dict[int, list[dict[str, bytes | None]]] = {}
        for value, row, partition in zip(values, outcomes.rows.tolist(), columns.partition.tolist(), strict=True):
            by_partition.setdefault(partition, []).append({"value": value, "key": keys[row]})
        for partition, messages in by_partition.items():
            if self._producer.produce_batch(self._topics.decisions, messages, partition) != len(messages):
                raise BufferError

    def _produce_dead_letters(self, outcomes: Outcomes) -> None:
        records = outcomes.records
        for item in outcomes.rejected:
            key, value, headers = dead_letter_record(
                topic=self._topics.payments,
                partition=int(records.partition[item.index]),
                offset=int(records.offset[item.index]),
                key=records.keys[item.index],
                value=records.values[item.index],
                error=item.error,
                timestamp_ms=int(records.timestamp_ms[item.index]),
            )
            self._produce(self._topics.dead_letters, value, key=key, headers=headers)
        for item in outcomes.rejected_control:
            record = outcomes.control[item.index]
            key, value, headers = dead_letter_record(
                topic=self._topics.control,
                partition=0,
                offset=record.offset,
                key=record.key,
                value=record.value,
                error=item.error,
            )
            self._produce(self._topics.dead_letters, value, key=key, headers=headers)

    def _produce(self, topic: str, value: bytes | None, **options: Any) -> None:
        try:
            self._producer.produce(topic, value, **options)
        except BufferError:
            # The queue holds several whole batches: it drains in a moment, or the transaction times out.
            self._producer.poll(1.0)
            self._producer.produce(topic, value, **options)
        except KafkaException as exc:  # such as a record above message.max.bytes, which is the client's word against it
            raise KafkaFailure(f"a record for {topic} was refused ({describe(exc)})") from exc


def _of_an_older_generation(exc: KafkaException) -> bool:
    """Whether the group refused the offsets because a rebalance is on or has just been; all else is well."""
    error = exc.args[0]
    return error.txn_requires_abort() and error.code() in OLDER_GENERATION | {KafkaError.REBALANCE_IN_PROGRESS}
