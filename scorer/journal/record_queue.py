"""Records of one partition that wait, in the blocks in which they were read: taken from the front, added at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from scorer.kafka import RecordBlock

# So many small blocks are joined into one, so that a partition that waits for others does not hold thousands of them.
_JOINED: Final = 32
_JOINED_RECORDS_MAX: Final = 4_096


class RawRecord(NamedTuple):
    """A record as it was read."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    created: bool = False  # its timestamp is its producer's (CreateTime), not the broker's


class RecordQueue(Sequence[RawRecord]):
    """Blocks of records in offset order. A sequence of RawRecord as well, made when one is looked at.

    `bytes`: what the blocks take in memory, about, those counted whole that still hold a record.
    """

    __slots__ = ("_blocks", "_count", "_none", "_skipped", "bytes")

    def __init__(self, topic: str, partition: int) -> None:
        self._none = RecordBlock.empty(topic, partition)
        self._blocks: deque[RecordBlock] = deque()
        self._skipped = 0  # records of the first block that were taken
        self._count = 0
        self.bytes = 0

    def append(self, block: RecordBlock) -> None:
        """Add what was read next."""
        blocks = self._blocks
        blocks.append(block)
        self._count += len(block)
        self.bytes += block.bytes
        if len(blocks) >= 2 * _JOINED:
            last = [blocks[place - _JOINED] for place in range(_JOINED)]
            if sum(map(len, last)) <= _JOINED_RECORDS_MAX:
                for old in last:
                    blocks.pop()
                    self.bytes -= old.bytes
                blocks.append(RecordBlock.concatenated(last))
                self.bytes += blocks[-1].bytes

    def take(self, count: int) -> RecordBlock:
        """The first `count` records, which are no longer here."""
        taken = self.part(0, count)
        self._count -= count
        count += self._skipped
        while self._blocks and len(self._blocks[0]) <= count:
            first = self._blocks.popleft()
            count -= len(first)
            self.bytes -= first.bytes
        self._skipped = count
        return taken

    def part(self, start: int, stop: int) -> RecordBlock:
        """Records `start` to `stop - 1`, by their places here."""
        found = list(self._parts(start, stop))
        return RecordBlock.concatenated(found) if found else self._none

    def offset_of(self, place: int) -> int:
        """The offset of the record at `place`, which must be there."""
        return int(next(self._parts(place, place + 1)).offset[0])

    def before(self, offset: int) -> int:
        """How many of the records have a smaller offset."""
        count = -self._skipped
        for block in self._blocks:
            if block.offset[-1] >= offset:
                return max(0, count + int(np.searchsorted(block.offset, offset)))
            count += len(block)
        return count

    def each(
        self, start: int, stop: int, column: Callable[[RecordBlock], npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.int64]:
        """What `column` gives, int64 [n], of the records `start` to `stop - 1`: it is asked for whole blocks, and so
        may keep what it finds with them."""
        found = []
        at = -self._skipped
        for block in self._blocks:
            first, last = max(0, start - at), min(len(block), stop - at)
            if first < last:
                found.append(column(block)[first:last])
            at += len(block)
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def clear(self) -> None:
        """Drop all."""
        self._blocks.clear()
        self._skipped = self._count = self.bytes = 0

    def _parts(self, start: int, stop: int) -> Iterator[RecordBlock]:
        at = -self._skipped
        for block in self._blocks:
            if at >= stop:
                return
            first, last = max(0, start - at), min(len(block), stop - at)
            if first < last:
                yield block.part(max(first, -at), last)
            at += len(block)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> RawRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RawRecord]: ...
    def __getitem__(self, index: int | slice) -> RawRecord | Sequence[RawRecord]:
        places = range(self._count)[index]
        if isinstance(places, int):
            return next(_records(self.part(places, places + 1)))
        return [self[place] for place in places]

    def __iter__(self) -> Iterator[RawRecord]:
        for block in list(self._parts(0, self._count)):
            yield from _records(block)

    def __reversed__(self) -> Iterator[RawRecord]:
        for block in reversed(list(self._parts(0, self._count))):
            yield from reversed(list(_records(block)))


def _records(block: RecordBlock) -> Iterator[RawRecord]:
    columns = block.offset.tolist(), block.timestamp_ms.tolist(), block.keys, block.values, block.created.tolist()
    return map(RawRecord._make, zip(*columns, strict=True))
