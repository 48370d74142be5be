"""The order log, written by one shard's owner: what is appended here decides a batch before its decisions are known.

    claim      a record whose offset is the epoch of what follows; owners before cannot append what counts any more
    append     one record a batch; its offset must be the one after the last: a compare-and-set by acknowledged offset
    publish    the batch's decisions to topic decisions-fast, only after that

Another offset, an error or no answer in time: nothing of the batch is published, and the log is given up with the
state (the caller rebuilds, and reads what became of the record). Whoever publishes a batch publishes the same bytes,
so an owner that is frozen between append and publish does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Message

from schemas.fast_decision_bytes import placed
from schemas.order_record import ClaimRecord, OrderRecord
from scorer.kafka import (
    Away,
    ColumnProducer,
    Fenced,
    KafkaFailure,
    LogProducer,
    Rebuild,
    Topics,
    Unfit,
    failure,
    reported_offset,
)
from scorer.pipeline import Pipeline
from scorer.pipeline.records import Batch
from scorer.runtime import fault_points
from scorer.runtime.threads import Threads
from scorer.runtime.trace_context import Headers, HeadersOfRows, header_bytes
from scorer.worker import worker_metrics
from scorer.worker.answers import Answers

# How long one call waits for reports: another thread may have taken the one that is waited for.
POLL_S = 0.001
ANSWER_TIMEOUT_S = 10.0
# How long the cause of an error is waited for that says only that the client has given up.
CAUSE_S = 3.0
_WITHOUT_CAUSE: Final = frozenset({KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
# What a record takes beside key, value and headers, with the head of a batch of its own.
RECORD_OVERHEAD_BYTES: Final = 256


class _Cause:
    """The first error that says why a client has given up. A refused record comes as an error of some call or as the
    report of one record, on whichever thread is served first; all that follows says only that the client has given
    up."""

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """`error` has come."""
        if self.error is None and error.code() not in _WITHOUT_CAUSE:
            self.error = error


class _Report:
    """What the broker reports of so many messages. Delivery callbacks hold this and `cause`, which is their client's:
    a report that never comes keeps what they hold."""

    def __init__(self, messages: int, cause: _Cause) -> None:
        self._cause = cause
        self.left = messages
        self.offset = -1
        self.error: KafkaError | None = None

    def take(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._cause.note(error)
            self.error = self.error or error
        else:
            self.offset = reported_offset(message)
        self.left -= 1


class Delivery:
    """The decisions of one batch on their way to topic decisions-fast."""

    def __init__(self, log: OrderLog, report: _Report) -> None:
        self._log, self._report = log, report

    def done(self) -> bool:
        """Whether the broker has all of them, or has refused one."""
        return self._log.has_answered(self._report)

    def wait(self) -> None:
        """Wait until the broker has all of them. Raises KafkaFailure."""
        self._log.wait(self._report, "publishing decisions")


class OrderLog:
    """One shard's. It has the only reference to its producer, which ends with it.

    `append`, `appended` and `publish` are called by the shard's thread, a Delivery by any.
    """

    def __init__(
        self,
        producer: LogProducer,
        topics: Topics,
        threads: Threads,
        *,
        shard: int,
        columns: Callable[[LogProducer], ColumnProducer],
        limits: Mapping[str, int] = MappingProxyType({}),
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """`limits`: the largest record of each topic, where it is known. `timeout_s`: longest wait for an answer of the
        broker."""
        self._limits = limits
        self._producer = producer
        self._columns = columns(producer)
        self._topics, self._threads = topics, threads
        self._shard, self._label = shard, str(shard)
        self._timeout_s = timeout_s
        self._cause = _Cause()
        self._last = self._epoch = -1
        self._append: _Report | None = None
        self._began_at = 0.0
        self.append_s = 0.0  # how long the last one took

    @property
    def next(self) -> int:
        """The offset that the next record must have."""
        return self._last + 1

    def claim(self, owner: str, sequence: int) -> int:
        """Take the log: from here on nothing that another owner appends counts. Gives the claim's offset; what counts
        before it stands in the log for good. `sequence`: of the batch that follows the journal.

        Raises KafkaFailure when that is not known.
        """
        record = ClaimRecord(shard=self._shard, sequence=sequence, owner=owner[:200])
        report = self._send(record.to_bytes())
        self.wait(report, "claiming the order log")
        if report.offset < 0:  # sent again, and the broker does not know any more where the first one stands
            raise Rebuild("the offset of the claim on the order log is not known")
        self._last = self._epoch = report.offset
        return self._epoch

    def append(self, batch: Batch, pipeline: Pipeline) -> None:
        """Begin to append the order of `batch`, which `pipeline` decides next."""
        record = order_record(batch, pipeline, self._epoch)
        self._began_at = self._threads.monotonic()
        self._append = self._send(record.to_bytes())
        fault_points.point("in_order")

    def appended(self) -> None:
        """Wait until the order that was begun to append is durable, at the very offset after the last one.

        Raises Fenced when another owner has written to the log, another KafkaFailure when it is not known.
        """
        report, self._append = self._append, None
        if report is None:
            raise KafkaFailure("no order was begun to append")
        self.wait(report, "appending to the order log")
        if report.offset < 0:
            raise Rebuild("the offset of an order on the order log is not known")
        if report.offset != self.next:
            worker_metrics.ORDER_LOST.labels(self._label).inc()
            meant = "another worker has written there" if report.offset > self.next else "its newest records are gone"
            raise Fenced(
                f"{self._topics.order}/{self._shard}: the order of this batch stands at offset {report.offset}, after "
                f"{self._last} of this owner: {meant}. Nothing of the batch was published"
            )
        self._last = report.offset
        self.append_s = self._threads.monotonic() - self._began_at
        worker_metrics.ORDER_APPEND.labels(self._label).observe(self.append_s)
        fault_points.point("after_order")

    def publish(self, answers: Answers, sequence: int) -> Delivery:
        """Begin to publish the decisions of batch `sequence`, whose order is durable.

        Raises KafkaFailure when the client refuses one.
        """
        values, keys, partitions = placed(answers.values, self._shard, sequence), answers.keys, answers.partition
        sizes, topic = values.lengths + keys.lengths, self._topics.decisions_fast
        self._check(topic, sizes)
        headers = fitting(answers.headers, sizes, self._limits.get(topic))
        # A column is handed over without reports. The last message of each partition has one; a producer that never
        # gives up one of a partition and goes on with the next has then delivered all.
        last = _last_of_each(partitions)
        rest = np.ones(len(values), dtype=np.bool_)
        rest[last] = False
        others = np.flatnonzero(rest)
        report = _Report(len(last), self._cause)
        of_others = headers and {at: headers[row] for at, row in enumerate(others.tolist()) if row in headers}
        try:
            self._columns.know(topic, int(partitions.max(initial=-1)) + 1)  # `others` may lack the newest of them
            self._columns.produce(topic, values.take(others), keys.take(others), partitions[others], of_others)
            for row in last.tolist():
                self._produce(topic, values[row], keys[row], int(partitions[row]), report, headers.get(row))
            self._serve(0)
        except KafkaException as exc:
            raise self._failed(exc.args[0], f"a record for {topic} was refused") from exc
        except BufferError as exc:
            raise Rebuild("the producer's queue did not drain") from exc
        worker_metrics.FAST.labels(self._label).inc(len(values))
        fault_points.point("after_publish")
        return Delivery(self, report)

    def close(self) -> None:
        """Give the log up: what waits is not sent any more. The producer ends."""
        self._columns.close()
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.poll(0)
        del self._producer

    def _send(self, value: bytes) -> _Report:
        report = _Report(1, self._cause)
        self._check(self._topics.order, np.array([len(value)]))
        try:
            self._produce(self._topics.order, value, None, self._shard, report)
            self._serve(0)
        except KafkaException as exc:
            raise self._failed(exc.args[0], "appending to the order log failed") from exc
        except BufferError as exc:
            raise Rebuild("the producer's queue did not drain") from exc
        return report

    def _check(self, topic: str, sizes: npt.NDArray[np.int64]) -> None:
        """Raise Unfit for records that the topic does not take: the broker would only name a request."""
        size = int(sizes.max(initial=0)) + RECORD_OVERHEAD_BYTES
        limit = self._limits.get(topic)
        if limit is not None and size > limit:
            raise unfit(topic, size, limit)

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        report: _Report,
        headers: Headers | None = None,
    ) -> None:
        try:
            self._producer.produce(topic, value, key, partition, on_delivery=report.take, headers=headers)
        except BufferError:
            self._serve(1.0)
            self._producer.produce(topic, value, key, partition, on_delivery=report.take, headers=headers)

    def has_answered(self, report: _Report) -> bool:
        """Whether all that is reported has come, or an error."""
        self._serve(0)
        return report.left <= 0 or report.error is not None or self._cause.error is not None

    def wait(self, report: _Report, doing: str) -> None:
        """Wait until the broker has acknowledged everything. Raises KafkaFailure."""
        deadline = self._threads.monotonic() + self._timeout_s
        while report.left > 0 or report.error is not None:
            error = report.error or self._cause.error
            if error is not None:
                raise self._failed(error, f"{doing} failed")
            if self._threads.monotonic() > deadline:
                raise Away(f"{doing}: no answer for {self._timeout_s:g} s")
            self._serve(POLL_S)

    def _serve(self, wait_s: float) -> None:
        """Have reports come. An error of the client itself is noted: whoever waits for a report raises it."""
        try:
            self._producer.poll(wait_s)
        except KafkaException as exc:
            self._cause.note(exc.args[0])

    def _failed(self, error: KafkaError, doing: str) -> KafkaFailure:
        """What an error means, or the cause of one that has none: another thread may be served with it just now."""
        self._cause.note(error)
        until = self._threads.monotonic() + CAUSE_S
        while self._cause.error is None and self._threads.monotonic() < until:
            self._serve(POLL_S)
        return failure(self._cause.error or error, doing)


def unfit(topic: str, size: int, limit: int) -> Unfit:
    """For a record of `size` bytes, where the topic takes `limit`."""
    return Unfit(
        f"topic {topic}: a record of {size} bytes must be written, and its max.message.bytes is {limit}", {topic: size}
    )


def fitting(headers: HeadersOfRows, sizes: npt.NDArray[np.int64], limit: int | None) -> HeadersOfRows:
    """Those of `headers` with which a record of `sizes` bytes, int64 [n], is still one that its topic takes: a sender
    that fills them must not keep a decision from its topic. `limit`: None where it is not known."""
    if not headers or limit is None:
        return headers
    room = limit - RECORD_OVERHEAD_BYTES - sizes
    return {row: found for row, found in headers.items() if header_bytes(found) <= room[row]}


def order_record(batch: Batch, pipeline: Pipeline, epoch: int) -> OrderRecord:
    """All that the decisions of `batch` depend on beside the state of `pipeline`, which decides it next."""
    degraded, degraded_rows = batch.degraded_fields()
    return OrderRecord(
        shard=pipeline.shard,
        sequence=pipeline.sequence,
        inputs=tuple(batch.inputs),
        control=batch.control_range,
        labels=batch.labels_range,
        bundle=pipeline.bundle.id,
        degraded=degraded,
        degraded_rows=degraded_rows,
        sources=batch.sources,
        activations=tuple(batch.activations),
        created_ms_max=batch.created_ms_max,
        labels_by=batch.labels_by,
        snapshot=batch.snapshot,
        pseudonym_key=pipeline.key_id(batch),
        epoch=epoch,
        records=len(batch.records),
    )


def _last_of_each(partitions: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The row of the last message of each partition, int64, ascending."""
    if not len(partitions):
        return np.zeros(0, dtype=np.int64)
    _, from_end = np.unique(partitions[::-1], return_index=True)
    return np.sort(len(partitions) - 1 - from_end)
