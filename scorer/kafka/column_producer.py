"""Columns of values and keys to messages of a topic: by the plain way or the borrowed one.

Neither waits for delivery, and neither reports it: in a transaction what the broker refuses comes out of
`commit_transaction`; of a LogProducer the report of a later message to the same partition is for all before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaError, KafkaException, Producer

from schemas.byte_column import ByteColumn
from scorer.kafka import borrowed_kernels as kernels
from scorer.kafka.borrowed_library import Library, handle_of, library
from scorer.runtime.trace_context import NO_HEADERS, Headers, HeadersOfRows

if TYPE_CHECKING:
    from scorer.kafka.client_ports import LogProducer

DRAIN_S: Final = 1.0
METADATA_TIMEOUT_S: Final = 10.0
_TOGETHER_MIN: Final = 16  # a call for many costs about as much as so many single ones
_NOWHERE: Final = np.frombuffer(b"", dtype=np.bool_)  # not to be written, as a column's
_FULL: Final = KafkaError._QUEUE_FULL

Partitions = npt.NDArray[np.int32]


class PlainColumns:
    """A ColumnProducer over confluent-kafka's own call: one dictionary for each message."""

    way: Final = "plain"

    def __init__(self, producer: LogProducer) -> None:
        self._producer = producer
        self._partitions: dict[str, int] = {}

    def know(self, topic: str, partitions: int) -> None:
        """As of a ColumnProducer."""
        if self._partitions.get(topic, 0) < partitions:
            self._partitions[topic] = _shown(self._producer, topic, partitions)

    def produce(
        self,
        topic: str,
        values: ByteColumn,
        keys: ByteColumn,
        partitions: Partitions,
        headers: HeadersOfRows = NO_HEADERS,
    ) -> None:
        """Hand over one message for each value, `headers` by row. Raises BufferError when the client's queue does not
        drain, KafkaException when it refuses a message."""
        self.know(topic, int(partitions.max(initial=-1)) + 1)
        if headers:  # which a call for many messages drops
            for row, (value, key, partition) in enumerate(zip(values, keys, partitions.tolist(), strict=True)):
                self._producer.produce(topic, value, key, partition, headers=headers.get(row))
            return
        # One call for each partition: the client takes a partition of a single message and then does not heed it.
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for value, key, partition in zip(values, keys, partitions.tolist(), strict=True):
            by_partition.setdefault(partition, []).append({"value": value, "key": key})
        for partition, messages in by_partition.items():
            if self._producer.produce_batch(topic, messages, partition) != len(messages):
                # A message that was refused has its error in it; a full queue is the usual one.
                refused = [message["_error"] for message in messages if "_error" in message]
                for error in refused:
                    if error.code() != _FULL:
                        raise KafkaException(error)
                raise BufferError

    def close(self) -> None:
        """Let the producer go: a traceback may keep this object."""
        del self._producer


class BorrowedColumns:
    """A ColumnProducer over librdkafka's own call, which takes many messages from one buffer and copies them. It has to
    be closed before the producer ends."""

    way: Final = "borrowed"

    def __init__(self, producer: Producer, client_id: str) -> None:
        """`client_id`: as the producer was given it. Raises NotBorrowed when the handle does not prove itself."""
        self._topics: dict[str, tuple[int, int]] = {}  # rd_kafka_topic_t, partitions
        self._producer = producer
        self._library: Library = library()
        self._handle = handle_of(producer, client_id)
        nothing = ByteColumn.of([])  # compiles the kernel, or finds it in its cache, before there is a transaction
        self._refused(0, nothing, nothing, np.zeros(0, dtype=np.int32))

    def know(self, topic: str, partitions: int) -> None:
        """As of a ColumnProducer."""
        self._known(topic, partitions)

    def produce(
        self,
        topic: str,
        values: ByteColumn,
        keys: ByteColumn,
        partitions: Partitions,
        headers: HeadersOfRows = NO_HEADERS,
    ) -> None:
        """Hand over one message for each value, `headers` by row. Raises BufferError when the client's queue does not
        drain, KafkaException when it refuses a message."""
        if not len(values):
            return
        pointer = self._known(topic, int(partitions.max()) + 1)
        if headers:
            self._with_headers(topic, values, keys, partitions, headers)
            return
        refused = self._refused(pointer, values, keys, partitions)
        while len(refused):
            # The queue holds several whole batches: it drains in a moment, or the transaction times out.
            self._producer.poll(DRAIN_S)
            values, keys, partitions = values.take(refused), keys.take(refused), partitions[refused]
            refused = self._refused(pointer, values, keys, partitions)
            if len(refused) == len(values):
                raise BufferError

    def _with_headers(
        self, topic: str, values: ByteColumn, keys: ByteColumn, partitions: Partitions, headers: HeadersOfRows
    ) -> None:
        """In their order, because readers rely on that of a partition: rows with headers one after the other, since the
        call for many messages takes none, and what lies between them together where it is worth that call."""
        start = 0
        for row in (*sorted(headers), len(values)):
            if row - start >= _TOGETHER_MIN:
                rest = np.arange(start, row)
                self.produce(topic, values.take(rest), keys.take(rest), partitions[rest])
            else:
                for between in range(start, row):
                    self._one(topic, values[between], keys[between], int(partitions[between]), None)
            if row < len(values):
                self._one(topic, values[row], keys[row], int(partitions[row]), headers[row])
            start = row + 1

    def _one(self, topic: str, value: bytes | None, key: bytes | None, partition: int, headers: Headers | None) -> None:
        try:
            self._producer.produce(topic, value, key, partition, headers=headers)
        except BufferError:
            self._producer.poll(DRAIN_S)
            self._producer.produce(topic, value, key, partition, headers=headers)

    def close(self) -> None:
        """Give back what was borrowed, without which the client would not end, and let the producer go: a traceback
        may keep this object."""
        self.__del__()
        del self._producer

    def __del__(self) -> None:
        for pointer, _ in self._topics.values():
            self._library.topic_destroy(pointer)
        self._topics.clear()

    def _refused(
        self, pointer: int, values: ByteColumn, keys: ByteColumn, partitions: Partitions
    ) -> npt.NDArray[np.int64]:
        """The places of the messages that found the queue full. Raises KafkaException for another error."""
        n = len(values)
        messages = np.empty(n * kernels.MESSAGE_WORDS, dtype=np.int64)
        taken = kernels.produce(
            self._library.addresses.produce_batch, pointer, np.ascontiguousarray(partitions, dtype=np.int32),
            keys.data, keys.offsets, _NOWHERE if keys.absent is None else keys.absent,
            values.data, values.offsets, _NOWHERE if values.absent is None else values.absent,
            messages,
        )  # fmt: skip
        if taken == n:
            return np.zeros(0, dtype=np.int64)
        errors = messages.view(np.int32)[:: 2 * kernels.MESSAGE_WORDS]
        for code in np.unique(errors).tolist():
            if code not in (0, _FULL):
                raise KafkaException(KafkaError(code))
        return np.flatnonzero(errors == _FULL)

    def _known(self, topic: str, partitions: int) -> int:
        """The client's object of the topic. Its partitions have to be known: messages for one that is not would not
        stand in the transaction, which then fails."""
        pointer, known = self._topics.get(topic, (0, 0))
        if known >= partitions:
            return pointer
        shown = _shown(self._producer, topic, partitions)
        if not pointer:
            pointer = self._library.topic_new(self._handle, topic.encode(), None)
            if not pointer:
                raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))
        self._topics[topic] = pointer, shown
        return pointer


def _shown(producer: LogProducer, topic: str, partitions: int) -> int:
    """How many partitions the topic has, which the client knows from here on: by itself it asks every five minutes, and
    refuses a message to a partition that was added since. Raises KafkaException where it has fewer than `partitions`,
    or the broker does not answer."""
    shown = producer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
    if shown.error is not None:
        raise KafkaException(shown.error)
    if len(shown.partitions) < partitions:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))
    return len(shown.partitions)
