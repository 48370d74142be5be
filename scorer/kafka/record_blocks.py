"""Records as a client read them, without one Python object for each: columns of one partition's records.

    blocks, events = reader.read(wait_s, room)      # FlatReader, scorer.kafka.client_ports

What is no record (the end of a partition, an error) comes beside the blocks as the client's own messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message

from schemas.byte_column import ByteColumn
from schemas.screened import SCREENED_BYTES
from scorer.kafka.failures import present
from scorer.kafka.message_headers import Headers, headers_of
from scorer.runtime.trace_context import HEADERS_OF_A_NAME_MAX, Carried, carried_of

# What a block takes beside its records: array objects, their headers, the block itself.
BLOCK_OVERHEAD_BYTES: Final = 2_048
_NO_EPOCH: Final = -1
NO_TRACES: Final[Mapping[int, Carried]] = MappingProxyType({})


class RecordBlock:
    """n records of one partition, in offset order. Nothing in it may be changed.

    offset int64 [n] · timestamp_ms int64 [n] · created bool [n], whose timestamp is its producer's (CreateTime), not
    the broker's · epoch int32 [n], leader epoch, -1 where unknown · keys, values: ByteColumn [n] · numbers float64 [n],
    what the header says that the reader was asked for, NaN where it says none; None: no header was read · traces: by
    offset the trace context of records that carry one, where the reader was asked for it; may hold those of records
    beside these
    """

    __slots__ = (
        "created",
        "epoch",
        "keys",
        "numbers",
        "offset",
        "partition",
        "timestamp_ms",
        "topic",
        "traces",
        "values",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        offset: npt.NDArray[np.int64],
        timestamp_ms: npt.NDArray[np.int64],
        created: npt.NDArray[np.bool_],
        epoch: npt.NDArray[np.int32],
        keys: ByteColumn,
        values: ByteColumn,
        numbers: npt.NDArray[np.float64] | None = None,
        traces: Mapping[int, Carried] = NO_TRACES,
    ) -> None:
        self.topic, self.partition = topic, partition
        self.offset, self.timestamp_ms = offset, timestamp_ms
        self.created, self.epoch = created, epoch
        self.keys, self.values = keys, values
        self.numbers = numbers
        self.traces = traces

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        keys, values = self.keys.offsets, self.values.offsets
        texts = int(keys[-1] - keys[0]) + int(values[-1] - values[0])
        return (
            BLOCK_OVERHEAD_BYTES
            + texts
            + len(self) * (8 + 8 + 1 + 4 + 9 + 9 + SCREENED_BYTES + (0 if self.numbers is None else 8))
            + sum(carried.bytes for carried in self.traces.values())
        )

    def part(self, start: int, stop: int) -> RecordBlock:
        """Records `start` to `stop - 1`; shares the memory of the whole."""
        if start == 0 and stop == len(self):
            return self
        return RecordBlock(
            self.topic,
            self.partition,
            offset=self.offset[start:stop],
            timestamp_ms=self.timestamp_ms[start:stop],
            created=self.created[start:stop],
            epoch=self.epoch[start:stop],
            keys=self.keys.part(start, stop),
            values=self.values.part(start, stop),
            numbers=None if self.numbers is None else self.numbers[start:stop],
            traces=self.traces,
        )

    @classmethod
    def empty(cls, topic: str, partition: int) -> RecordBlock:
        """No records."""
        return cls(
            topic,
            partition,
            offset=np.zeros(0, np.int64),
            timestamp_ms=np.zeros(0, np.int64),
            created=np.zeros(0, np.bool_),
            epoch=np.zeros(0, np.int32),
            keys=ByteColumn.of([]),
            values=ByteColumn.of([]),
        )

    @classmethod
    def concatenated(cls, blocks: Sequence[RecordBlock]) -> RecordBlock:
        """The records of all `blocks`, at least one, one block after the other; named as the first of them is."""
        first = blocks[0]
        if len(blocks) == 1:
            return first
        numbers = None
        if any(block.numbers is not None for block in blocks):
            numbers = np.concatenate([np.full(len(b), np.nan) if b.numbers is None else b.numbers for b in blocks])
        return cls(
            first.topic,
            first.partition,
            offset=np.concatenate([block.offset for block in blocks]),
            timestamp_ms=np.concatenate([block.timestamp_ms for block in blocks]),
            created=np.concatenate([block.created for block in blocks]),
            epoch=np.concatenate([block.epoch for block in blocks]),
            keys=ByteColumn.concatenated([block.keys for block in blocks]),
            values=ByteColumn.concatenated([block.values for block in blocks]),
            numbers=numbers,
            traces=_together([block.traces for block in blocks if block.traces]),
        )


class Found(NamedTuple):
    """What one read gave. `events`: ends of partitions and errors, in the order in which they came."""

    blocks: Sequence[RecordBlock]
    events: Sequence[Message]


def blocks_of(messages: Sequence[Message], number_headers: dict[str, str], traced: Set[str] = frozenset()) -> Found:
    """The same from the client's messages. `number_headers`: by topic, the header whose number is read. `traced`: the
    topics whose records' trace context is read."""
    events: list[Message] = []
    places: dict[tuple[str, int], list[Message]] = {}
    for message in messages:
        if message.error() is None:
            place = present(message.topic(), "topic"), present(message.partition(), "partition")
            places.setdefault(place, []).append(message)
        else:
            events.append(message)
    blocks = [_block(*at, found, number_headers.get(at[0]), at[0] in traced) for at, found in places.items()]
    return Found(blocks, events)


def _block(topic: str, partition: int, messages: Sequence[Message], header: str | None, traced: bool) -> RecordBlock:
    n = len(messages)
    stamps = [message.timestamp() for message in messages]
    epochs = [message.leader_epoch() for message in messages]
    headers = [] if header is None and not traced else [headers_of(message) or [] for message in messages]
    return RecordBlock(
        topic,
        partition,
        offset=np.fromiter((present(message.offset(), "offset") for message in messages), np.int64, n),
        timestamp_ms=np.fromiter((ms for _, ms in stamps), np.int64, n),
        created=np.fromiter((kind != TIMESTAMP_LOG_APPEND_TIME for kind, _ in stamps), np.bool_, n),
        epoch=np.fromiter((_NO_EPOCH if epoch is None else epoch for epoch in epochs), np.int32, n),
        keys=ByteColumn.of([message.key() for message in messages]),  # type: ignore[misc]
        values=ByteColumn.of([message.value() for message in messages]),
        numbers=None if header is None else np.fromiter((_number(h, header) for h in headers), np.float64, n),
        traces=_traces(messages, headers) if traced else NO_TRACES,
    )


def _traces(messages: Sequence[Message], headers: Sequence[Headers]) -> Mapping[int, Carried]:
    found = {}
    for message, each in zip(messages, headers, strict=True):
        if (carried := carried_of(each)) is not None:
            found[present(message.offset(), "offset")] = carried
    return found or NO_TRACES


def _together(each: Sequence[Mapping[int, Carried]]) -> Mapping[int, Carried]:
    if len(each) < 2:
        return each[0] if each else NO_TRACES
    return {offset: carried for traces in each for offset, carried in traces.items()}


def _number(headers: Headers, header: str) -> float:
    """The first number that one of the first HEADERS_OF_A_NAME_MAX headers of this name says."""
    named = (value for name, value in headers if name == header)
    for value in islice(named, HEADERS_OF_A_NAME_MAX):
        if value is not None and value.isdigit():
            return float(value)
    return float("nan")
