"""Reads blocks of records through librdkafka's C interface, from a consumer that stays confluent-kafka's.

    partition queues ──forwarded──▶ a queue of our own ──▶ kernels ──▶ blocks      records, ends of partitions, errors
    the client's main queue ──────▶ Consumer.poll(0)                               callbacks, errors of no partition

A callback may run in confluent-kafka's own calls alone (scorer.kafka.borrowed_library). The main queue is served by
these. Our queue is taken as events (rd_kafka_queue_poll): what librdkafka would else hand to a callback is an event
too, such as the error that it puts into a partition's queue when the topic's metadata no longer show that partition.
The calls that consume messages from a queue (rd_kafka_consume_batch_queue, rd_kafka_consume_queue) call the client's
error callback for that one. An event holds one record, so the reading thread takes about 0.1 µs of CPU a record more
than with the call for many.

The forward is set before the first `assign`, which respects it. At a new one the client stops its partitions first and
clears their forwards with that, so they are set once more; an error of the assignment before carries no version by
which the client would drop it, so the queue is a new one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.byte_column import ByteColumn
from scorer.kafka import borrowed_kernels as kernels
from scorer.kafka.borrowed_library import Library, handle_of, library
from scorer.kafka.clients import log_error
from scorer.kafka.failures import present
from scorer.kafka.record_blocks import NO_TRACES, Found, RecordBlock, blocks_of
from scorer.kafka.topic_errors import CODES, TopicErrors
from scorer.runtime.trace_context import TRACEPARENT_BYTES_MAX, Carried

TAKEN_MAX: Final = 4_096
_DRAINED_AT_ONCE: Final = 1_000
_TRACE_NAMES: Final = np.frombuffer(kernels.TRACE_NAMES, dtype=np.uint8)
_NO_NUMBERS: npt.NDArray[np.float64] = np.zeros(0, dtype=np.float64)


class BorrowedReader:
    """A FlatReader over a consumer for manual assignment, which ends with it. All calls from one thread."""

    way: Final = "borrowed"

    def __init__(self, consumer: Consumer, client_id: str, errors: TopicErrors | None = None) -> None:
        """`client_id`: as the consumer was given it. `errors`: what its error callback notes. Raises NotBorrowed when
        the handle does not prove itself."""
        self._queue = 0
        self._partition_queues: dict[tuple[str, int], int] = {}
        self._consumer = consumer
        self._errors = TopicErrors() if errors is None else errors
        self._library: Library = library()
        self._handle = handle_of(consumer, client_id)
        self._forwarded: set[tuple[str, int]] = set()
        self._number_headers: dict[str, str] = {}
        self._traced: set[str] = set()
        self._topics: dict[int, str] = {}  # by rd_kafka_topic_t, which lives as long as the assignment
        at = self._library.addresses
        # Two words at its end are the kernel's to work in.
        functions = (at.timestamp, at.leader_epoch, at.event_destroy, at.headers, at.header_get, 0, 0)
        self._functions = np.array(functions, dtype=np.int64)
        self._events = np.empty(TAKEN_MAX, dtype=np.int64)
        self._pointers = np.empty(TAKEN_MAX, dtype=np.int64)
        self._following = np.empty(TAKEN_MAX, dtype=np.int64)
        self._places = np.empty((1, kernels.PLACE_COLUMNS), dtype=np.int64)
        self._queue = self._library.queue_new(self._handle)
        self._compile()

    def number_header(self, topic: str, name: str) -> None:
        """From here on blocks of `topic` hold the number that the header `name` says."""
        self._number_headers[topic] = name

    def trace_headers(self, topic: str) -> None:
        """From here on blocks of `topic` hold the trace context that their records carry."""
        self._traced.add(topic)

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions from their offsets on, and no others."""
        self._check_open()
        if self._forwarded:
            self._consumer.unassign()
            while self._consumer.consume(_DRAINED_AT_ONCE, 0):  # what came by the main queue, of the places before
                pass
            self._errors.taken()
        self._drop_queues()
        self._queue = self._library.queue_new(self._handle)
        self._topics.clear()
        self._places = np.empty((len(partitions) + 8, kernels.PLACE_COLUMNS), dtype=np.int64)
        for each in partitions:
            if (each.topic, each.partition) not in self._forwarded:
                self._forward(each.topic, each.partition)
        # The client's main thread handles this call after the stops that `unassign` has asked for.
        self._consumer.assign(partitions)
        for each in partitions:
            self._forward(each.topic, each.partition)

    def read(self, wait_s: float, room: int) -> Found:
        """What is there, waiting at most `wait_s` for the first; about `room` records at most."""
        self._check_open()
        served = self._serve_callbacks()
        noted = self._errors.taken()
        wait_ms = 0 if served is not None or noted else max(0, int(wait_s * 1000))
        count = self._take(wait_ms, max(1, min(room, TAKEN_MAX)))
        if count == 0:  # would a partition ever lose its forward otherwise, its records would wait for good
            for queue in self._partition_queues.values():
                self._library.queue_forward(queue, self._queue)
        found = self._found(count)
        if served is None:
            return Found(found.blocks, [*noted, *found.events]) if noted else found
        return Found([*served.blocks, *found.blocks], [*noted, *served.events, *found.events])

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Fetch nothing of these partitions until `resume`."""
        self._consumer.pause(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Fetch these partitions again."""
        self._consumer.resume(partitions)

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        """First and end offset of a partition, as the client knows them."""
        return self._consumer.get_watermark_offsets(partition, cached=cached)

    def close(self) -> None:
        """End the consumer, and before it what was borrowed: what waits in a queue would keep it from ending."""
        if self._queue:
            self._drop_queues()
            self._consumer.close()

    def __del__(self) -> None:
        """One that was not closed: its consumer ends with its last reference, and may not find a queue then."""
        if self._queue:
            self._drop_queues()

    def _compile(self) -> None:
        """Compile the kernels, or find them in their cache, before there is a record that would wait for it."""
        self._take(0, 1)
        kernels.sort(self._pointers, 0, self._places, self._following)
        self._block([0, 0, 0, 0, 0, 0, 0], topic="")

    def _check_open(self) -> None:
        if not self._queue:
            raise RuntimeError("the reader is closed")

    def _drop_queues(self) -> None:
        """What waits in the queue, and what still comes there, is given back."""
        for queue in self._partition_queues.values():
            self._library.queue_destroy(queue)
        self._partition_queues.clear()
        self._library.queue_destroy(self._queue)
        self._queue = 0

    def _forward(self, topic: str, partition: int) -> None:
        queue = self._library.queue_of_partition(self._handle, topic.encode(), partition)
        if queue:  # without one its records come by the main queue
            self._library.queue_forward(queue, self._queue)
            before = self._partition_queues.pop((topic, partition), 0)
            self._partition_queues[topic, partition] = queue
            self._forwarded.add((topic, partition))
            if before:
                self._library.queue_destroy(before)

    def _serve_callbacks(self) -> Found | None:
        """Let confluent-kafka serve its callbacks. What concerns no single partition comes from here as well; a record
        only if the client has made its partition anew, which is then forwarded again. Its records are all taken here
        before those of the queue, which are newer."""
        first = self._consumer.poll(0)
        if first is None:
            return None
        messages, came = [], [first]
        while came:
            messages += came
            for topic, partition in {(m.topic(), m.partition()) for m in came if m.error() is None}:
                self._forward(present(topic, "topic"), present(partition, "partition"))
            came = self._consumer.consume(_DRAINED_AT_ONCE, 0)
        return blocks_of(messages, self._number_headers, self._traced)

    def _take(self, wait_ms: int, room: int) -> int:
        at, events = self._library.addresses, self._events[:room]
        taken: int = kernels.take(at.queue_poll, at.event_message, self._queue, wait_ms, events, self._pointers)
        return taken

    def _found(self, count: int) -> Found:
        if count == 0:
            return Found((), ())
        places, following = self._places, self._following
        while (used := kernels.sort(self._pointers, count, places, following)) < 0:
            places = self._places = np.empty((2 * len(places), kernels.PLACE_COLUMNS), dtype=np.int64)
        rows = places[:used].tolist()
        in_error = sum(row[kernels.COUNT] for row in rows) < count
        events = self._messages(self._events[:count][following[:count] == -2].tolist()) if in_error else []
        return Found([self._block(row, self._topic(row[kernels.TOPIC])) for row in rows], events)

    def _block(self, row: list[int], topic: str) -> RecordBlock:
        """The records of one row of `places`, which are given back."""
        n = row[kernels.COUNT]
        header = self._number_headers.get(topic)
        name = np.frombuffer(b"\0" if header is None else header.encode() + b"\0", dtype=np.uint8)
        words, flags = np.empty(4 * n + 2, dtype=np.int64), np.empty(3 * n, dtype=np.bool_)
        offset, timestamp_ms = words[:n], words[n : 2 * n]
        key_offsets, value_offsets = words[2 * n : 3 * n + 1], words[3 * n + 1 :]
        epoch = np.empty(n, dtype=np.int32)
        numbers = _NO_NUMBERS if header is None else np.empty(n, dtype=np.float64)
        key_data = np.empty(max(1, row[kernels.KEY_BYTES]), dtype=np.uint8)
        value_data = np.empty(max(1, row[kernels.VALUE_BYTES]), dtype=np.uint8)
        # What no record fills takes no memory: pages come when they are written to.
        traced = n if topic in self._traced else 0
        traces = np.empty(3 * traced, dtype=np.int64)
        trace_data = np.empty(kernels.TRACE_BYTES * traced, dtype=np.uint8)
        created, key_absent, value_absent = flags[:n], flags[n : 2 * n], flags[2 * n :]
        keys_absent, values_absent, carrying = kernels.copy(
            self._functions, name, self._events, self._pointers, self._following, row[kernels.FIRST],
            offset, timestamp_ms, created, epoch, key_offsets, value_offsets, key_absent, value_absent,
            key_data, value_data, numbers, traces, trace_data, _TRACE_NAMES,
        )  # fmt: skip
        return RecordBlock(
            topic,
            row[kernels.PARTITION],
            offset=offset,
            timestamp_ms=timestamp_ms,
            created=created,
            epoch=epoch,
            keys=ByteColumn(key_data, key_offsets, key_absent if keys_absent else None),
            values=ByteColumn(value_data, value_offsets, value_absent if values_absent else None),
            numbers=None if header is None else numbers,
            traces=_traces(traces[: 3 * carrying], trace_data, offset) if carrying else NO_TRACES,
        )

    def _topic(self, pointer: int) -> str:
        name = self._topics.get(pointer)
        if name is None:
            name = self._topics[pointer] = self._library.topic_name(pointer).decode()
        return name

    def _messages(self, events: list[int]) -> list[Message]:
        """What is no record as confluent-kafka's own messages; the client's events are given back."""
        messages = []
        for event in events:
            try:
                found = self._library.error(event)
            finally:
                self._library.event_destroy(event)
            if found is not None:
                error = KafkaError(found.code, found.text, found.fatal)
                if found.code in CODES:  # as the client's error callback does by the plain way
                    log_error(error)
                messages.append(
                    Message(topic=found.topic or None, partition=found.partition, offset=found.offset, error=error)  # type: ignore[arg-type]
                )
        return messages


def _traces(
    found: npt.NDArray[np.int64], data: npt.NDArray[np.uint8], offset: npt.NDArray[np.int64]
) -> dict[int, Carried]:
    """By offset what `kernels.copy` has found."""
    rows = found.reshape(-1, 3)
    text = data[: kernels.TRACE_BYTES * len(rows)].tobytes()
    traces, first = {}, 0
    for at, parent, state in zip(offset[rows[:, 0]].tolist(), rows[:, 1].tolist(), rows[:, 2].tolist(), strict=True):
        second = first + TRACEPARENT_BYTES_MAX
        traces[at] = Carried(text[first : first + parent], text[second : second + state])
        first += kernels.TRACE_BYTES
    return traces
