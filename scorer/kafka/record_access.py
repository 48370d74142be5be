"""Which way records are read and decisions produced: by the client library's C interface, or by Python objects.

The borrowed way proves itself three times: the library when it is opened, each client's handle when it is made, and the
first records of the process, which are read by both ways and have to be equal in every field. Where it does not, the
plain way serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import structlog
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from schemas.byte_column import ByteColumn
from scorer.kafka.borrowed_library import NotBorrowed
from scorer.kafka.borrowed_reader import BorrowedReader
from scorer.kafka.column_producer import BorrowedColumns, PlainColumns
from scorer.kafka.plain_reader import PlainReader
from scorer.kafka.record_blocks import Found, RecordBlock, blocks_of
from scorer.kafka.topic_errors import TopicErrors
from scorer.runtime.trace_context import NO_HEADERS, HeadersOfRows

if TYPE_CHECKING:
    from scorer.kafka.client_ports import ColumnProducer, LogProducer

log = structlog.get_logger()

# The first records may take so long to be read a second time; a broker that is away by then decides for the plain way.
PROOF_TIMEOUT_S: Final = 10.0
PROOF_RECORDS: Final = 16
# A consumer with this error callback beside its own.
Make = Callable[[Callable[[KafkaError], None]], Consumer]
_COLUMNS: Final = ("offset", "timestamp_ms", "created", "epoch", "keys", "values")


class RecordAccess:
    """What is known of the borrowed way in this process. Used by several threads."""

    def __init__(self, *, plain: bool, client_id: str) -> None:
        """`plain`: the setting says so. `client_id`: of the clients that will be given."""
        self._client_id = client_id
        self.proved = False  # records were read by both ways, and were equal
        self._refused = "FRAUD_SCORER_KAFKA__RECORD_ACCESS is plain" if plain else ""
        self._logged = ""

    def reader(self, make: Make) -> ProvedReader | PlainReader:
        """A reader over a consumer that `make` gives. It is called again where the way has to be changed."""
        if not self._refused:
            errors = TopicErrors()
            consumer = make(errors.note)
            try:
                return ProvedReader(BorrowedReader(consumer, self._client_id, errors), make, self)
            except NotBorrowed as exc:
                consumer.close()
                self.refuse(str(exc))
        self.say("plain", self._refused)
        return _plain(make)

    def columns(self, producer: LogProducer) -> ColumnProducer:
        """What hands columns of messages to the producer."""
        if not self._refused and isinstance(producer, Producer):
            try:
                return ProvedColumns(BorrowedColumns(producer, self._client_id), producer, self)
            except NotBorrowed as exc:
                self.refuse(str(exc))
        return PlainColumns(producer)

    @property
    def refused(self) -> bool:
        """Whether the plain way serves from here on."""
        return bool(self._refused)

    def refuse(self, reason: str) -> None:
        """From here on the plain way serves."""
        self._refused = reason
        self.say("plain", reason)

    def say(self, way: str, reason: str = "") -> None:
        """Log the way, when it is another than before."""
        if self._logged != way:
            self._logged = way
            log.info("kafka.record_access", way=way, **({"reason": reason} if reason else {}))


class ProvedColumns:
    """A ColumnProducer of the borrowed way, until a reader finds that the library is not as it is known: producers are
    made before the first record is read, and write by the same layout."""

    def __init__(self, borrowed: BorrowedColumns, producer: LogProducer, access: RecordAccess) -> None:
        self._columns: BorrowedColumns | PlainColumns = borrowed
        self._producer, self._access = producer, access

    @property
    def way(self) -> str:
        """`borrowed` or `plain`."""
        return self._now().way

    def know(self, topic: str, partitions: int) -> None:
        """As of a ColumnProducer."""
        self._now().know(topic, partitions)

    def produce(
        self,
        topic: str,
        values: ByteColumn,
        keys: ByteColumn,
        partitions: npt.NDArray[np.int32],
        headers: HeadersOfRows = NO_HEADERS,
    ) -> None:
        """As of a ColumnProducer."""
        self._now().produce(topic, values, keys, partitions, headers)

    def close(self) -> None:
        """Let the producer go."""
        self._columns.close()
        del self._producer

    def _now(self) -> BorrowedColumns | PlainColumns:
        if self._access.refused and isinstance(self._columns, BorrowedColumns):
            self._columns.close()
            self._columns = PlainColumns(self._producer)
        return self._columns


class ProvedReader:
    """A FlatReader of the borrowed way, as soon as the first records that come are equal read by the plain one."""

    def __init__(self, borrowed: BorrowedReader, make: Make, access: RecordAccess) -> None:
        self._reader: BorrowedReader | PlainReader = borrowed
        self._make, self._access = make, access
        self._number_headers: dict[str, str] = {}
        self._traced: set[str] = set()
        self._assigned: list[TopicPartition] = []

    @property
    def way(self) -> str:
        """`borrowed` or `plain`."""
        return self._reader.way

    def number_header(self, topic: str, name: str) -> None:
        """From here on blocks of `topic` hold the number that the header `name` says."""
        self._number_headers[topic] = name
        self._reader.number_header(topic, name)

    def trace_headers(self, topic: str) -> None:
        """From here on blocks of `topic` hold the trace context that their records carry."""
        self._traced.add(topic)
        self._reader.trace_headers(topic)

    def read(self, wait_s: float, room: int) -> Found:
        """What is there, waiting at most `wait_s` for the first; about `room` records at most."""
        found = self._reader.read(wait_s, room)
        if self._access.proved or not found.blocks or isinstance(self._reader, PlainReader):
            return found
        return found if self._is_equal(found.blocks[0]) else Found((), ())

    def assign(self, partitions: list[TopicPartition]) -> None:
        """Read these partitions from their offsets on, and no others."""
        self._assigned = partitions
        self._reader.assign(partitions)

    def pause(self, partitions: list[TopicPartition]) -> None:
        """Fetch nothing of these partitions until `resume`."""
        self._reader.pause(partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        """Fetch these partitions again."""
        self._reader.resume(partitions)

    def get_watermark_offsets(self, partition: TopicPartition, *, cached: bool) -> tuple[int, int]:
        """First and end offset of a partition, as the client knows them."""
        return self._reader.get_watermark_offsets(partition, cached=cached)

    def close(self) -> None:
        """End the consumer."""
        self._reader.close()

    def _is_equal(self, block: RecordBlock) -> bool:
        """Whether the plain way gives the same records. Where it does not, it serves from here on: nothing was handed
        out yet, so it reads everything that was assigned."""
        again = self._read_again(block)
        count = 0 if again is None else min(len(block), len(again))
        wrong = "" if again is None else _difference(block.part(0, count), again.part(0, count))
        if count and not wrong:
            self._access.proved = True
            self._access.say("borrowed")
            return True
        place = f"{block.topic}/{block.partition} offset {block.offset[0]}"
        if wrong:
            self._access.refuse(f"{place}: another {wrong} than by the plain way")
        else:  # says nothing of the next reader
            self._access.say("plain", f"{place} was not read a second time within {PROOF_TIMEOUT_S:.0f} s")
        self._reader.close()
        self._reader = _plain(self._make)
        for topic, name in self._number_headers.items():
            self._reader.number_header(topic, name)
        for topic in self._traced:
            self._reader.trace_headers(topic)
        self._reader.assign(self._assigned)
        return False

    def _read_again(self, block: RecordBlock) -> RecordBlock | None:
        """The first records of the block by a client of their own and as its messages; None when they do not come."""
        wanted = min(len(block), PROOF_RECORDS)
        messages: list[Message] = []
        consumer = self._make(TopicErrors().note)
        try:
            consumer.assign([TopicPartition(block.topic, block.partition, int(block.offset[0]))])
            deadline = time.monotonic() + PROOF_TIMEOUT_S
            while len(messages) < wanted and time.monotonic() < deadline:
                came = consumer.consume(wanted - len(messages), 0.1)
                messages += [message for message in came if message.error() is None]
        finally:
            consumer.close()
        found = blocks_of(messages, self._number_headers, self._traced).blocks
        return found[0] if found else None


def _plain(make: Make) -> PlainReader:
    errors = TopicErrors()
    return PlainReader(make(errors.note), errors)


def _difference(one: RecordBlock, other: RecordBlock) -> str:
    """The field in which two blocks differ; empty when they are equal."""
    for name in ("topic", "partition"):
        if getattr(one, name) != getattr(other, name):
            return name
    for name in _COLUMNS:
        if list(getattr(one, name)) != list(getattr(other, name)):
            return name
    # The plain way reads no header of a record that has a name which is no UTF-8.
    if any(one.traces.get(offset) != carried for offset, carried in other.traces.items()):
        return "trace context"
    if one.numbers is None or other.numbers is None:
        return "" if one.numbers is other.numbers else "number in a header"
    return "" if np.array_equal(one.numbers, other.numbers, equal_nan=True) else "number in a header"
