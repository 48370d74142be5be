"""A queue of blocks is a list of records, whatever is added, taken and looked at, in whatever pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.byte_column import ByteColumn
from schemas.screened import SCREENED_BYTES
from scorer.journal.partition_buffers import Deadlines, records_of
from scorer.journal.record_queue import RawRecord, RecordQueue
from scorer.kafka import RecordBlock

TEXTS = st.none() | st.binary(max_size=5)
RECORD = st.tuples(st.integers(1, 3), st.integers(0, 9), TEXTS, TEXTS, st.booleans())


def block_of(records: list[RawRecord], numbers: list[float] | None = None) -> RecordBlock:
    """The block that a reader would give."""
    n = len(records)
    return RecordBlock(
        "payments",
        3,
        offset=np.fromiter((raw.offset for raw in records), np.int64, n),
        timestamp_ms=np.fromiter((raw.timestamp_ms for raw in records), np.int64, n),
        created=np.fromiter((raw.created for raw in records), np.bool_, n),
        epoch=np.zeros(n, np.int32),
        keys=ByteColumn.of([raw.key for raw in records]),
        values=ByteColumn.of([raw.value for raw in records]),
        numbers=None if numbers is None else np.array(numbers),
    )


def records_in(block: RecordBlock) -> list[RawRecord]:
    """The records of a block, one by one."""
    columns = block.offset.tolist(), block.timestamp_ms.tolist(), block.keys, block.values, block.created.tolist()
    return [RawRecord(*row) for row in zip(*columns, strict=True)]


@dataclass
class Twin:
    """A queue and the list that it has to be."""

    queue: RecordQueue = field(default_factory=lambda: RecordQueue("payments", 3))
    plain: list[RawRecord] = field(default_factory=list)
    end: int = 0

    def add(self, rows: list[tuple[int, int, bytes | None, bytes | None, bool]]) -> None:
        new = []
        for gap, timestamp_ms, key, value, created in rows:  # markers leave gaps between offsets
            self.end += gap
            new.append(RawRecord(self.end, timestamp_ms, key, value, created))
        self.queue.append(block_of(new))
        self.plain += new

    def take(self, count: int) -> None:
        taken, self.plain = self.plain[:count], self.plain[count:]
        assert records_in(self.queue.take(count)) == taken

    def compare(self, data: st.DataObject) -> None:
        n = len(self.plain)
        assert list(self.queue) == self.plain
        assert list(reversed(self.queue)) == self.plain[::-1]
        assert len(self.queue) == n
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        assert records_in(self.queue.part(start, stop)) == self.plain[start:stop]
        assert self.queue[start:stop] == self.plain[start:stop]
        if start < n:
            assert self.queue[start] == self.plain[start]
            assert self.queue[start - n] == self.plain[start]
        offset = data.draw(st.integers(0, self.end + 2))
        assert self.queue.before(offset) == sum(raw.offset < offset for raw in self.plain)


@settings(deadline=None)
@given(st.data(), st.lists(st.lists(RECORD, min_size=1, max_size=6) | st.integers(0, 9), max_size=30))
def test_a_queue_of_blocks_is_a_list_of_records(
    data: st.DataObject, steps: list[list[tuple[int, int, bytes | None, bytes | None, bool]] | int]
) -> None:
    """Records come out as they went in and in their order, by any pieces, parts, places and offsets."""
    twin = Twin()
    for step in steps:
        if isinstance(step, int):
            twin.take(min(step, len(twin.plain)))
        else:
            twin.add(step)
        twin.compare(data)


def test_thousands_of_small_blocks_take_hardly_more_memory_than_a_large_one() -> None:
    """A partition that waits for others while its records come one by one holds few blocks of many; what it counts
    as its memory rises with each, and is nothing once all are taken."""
    twin = Twin()
    counted = []
    for n in range(5_000):
        twin.add([(1, n, b"key", b"value", False)])
        counted.append(twin.queue.bytes)
    assert counted[-1] < 5_000 * (150 + SCREENED_BYTES)
    assert list(twin.queue) == twin.plain
    twin.take(1)
    assert twin.queue.bytes > 0
    twin.take(4_999)
    assert twin.queue.bytes == 0


@settings(deadline=None)
@given(st.lists(st.lists(RECORD, max_size=5), max_size=4), st.none() | st.integers(0, 9))
def test_records_of_a_batch_are_those_of_its_blocks(
    blocks: list[list[tuple[int, int, bytes | None, bytes | None, bool]]], created_ms_max: int | None
) -> None:
    """A batch has the records of its partitions one after the other; a producer's timestamp counts as at most what is
    given, the broker's as it is."""
    rows = [[RawRecord(*row) for row in block] for block in blocks]
    found, created = records_of([block_of(block) for block in rows], created_ms_max)
    every = [raw for block in rows for raw in block]
    assert list(found.keys) == [raw.key for raw in every]
    assert list(found.values) == [raw.value for raw in every]
    assert found.offset.tolist() == [raw.offset for raw in every]
    assert found.partition.tolist() == [3] * len(every)
    assert found.partition.dtype == np.int32
    bound = 9 if created_ms_max is None else created_ms_max
    assert found.timestamp_ms.tolist() == [
        min(raw.timestamp_ms, bound) if raw.created else raw.timestamp_ms for raw in every
    ]
    assert created == any(raw.created for raw in every)


def test_a_deadline_is_its_headers_number_else_the_time_after_the_timestamp() -> None:
    """A record without a number in its header has the deadline of the setting; with neither it has none."""
    block = block_of([RawRecord(n, 1_000 + n, None, None) for n in range(3)], [5.0, float("nan"), 7.0])
    assert Deadlines(100.0, "deadline").of(block).tolist() == [5.0, 1_101.0, 7.0]
    assert Deadlines(None, "deadline").of(block).tolist() == [5.0, float("inf"), 7.0]
    without = block_of([RawRecord(0, 1_000, None, None)])
    assert Deadlines(100.0).of(without).tolist() == [1_100.0]
