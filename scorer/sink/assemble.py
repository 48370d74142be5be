"""From records of one audit partition to whole, checked micro-batches. Pure: no Kafka and no Postgres here.

Only a whole batch is handed on: readers of Postgres never see part of one, and it can be checked before it is written,
by counts, digest, journal record and chain (each record names the head of the one before it).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from schemas.audit import EVENT_TIME_MS_MAX, AuditError, AuditHeader, decode_chunk, digest_chunks
from schemas.journal import FIRST_PREVIOUS, JournalError, JournalRecord
from scorer.sink.errors import AuditBroken, PoisonChunk, SinkError


@dataclass(frozen=True)
class Position:
    """How far one audit partition has come, and what the next batch must follow.

    `sequence` None: no batch came before. `head` None: any batch may follow, an operator moved the position.
    """

    next_offset: int = 0
    shard: int | None = None
    sequence: int | None = None
    head: str | None = FIRST_PREVIOUS


@dataclass(frozen=True)
class Batch:
    """A whole micro-batch whose digest, counts and place in the chain hold."""

    partition: int
    offset: int  # of the last chunk
    header: AuditHeader  # of the last chunk
    chunks: tuple[tuple[AuditHeader, pa.RecordBatch], ...]
    journal: JournalRecord
    before: Position
    after: Position
    size_bytes: int

    @property
    def rows(self) -> int:
        return self.header.rows


@dataclass
class Assembler:
    """Gathers the chunks of one partition. `position` is that of the last batch handed out (or of the start)."""

    topic: str
    partition: int
    position: Position
    batch_bytes_max: int
    _chunks: list[tuple[AuditHeader, pa.RecordBatch]] = field(default_factory=list)
    _size_bytes: int = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of a batch begun and not yet whole."""
        return self._size_bytes

    def add(self, offset: int, value: bytes | None) -> Batch | None:
        """Takes the next record; returns the batch that it completes. Raises PoisonChunk, AuditBroken, SinkError."""
        if value is None:
            raise self._poison(offset, "it has no value")
        try:
            header, rows = decode_chunk(value)
        except AuditError as exc:
            raise self._poison(offset, str(exc)) from exc
        self._check_place(offset, header, rows)
        self._chunks.append((header, rows))
        self._size_bytes += len(value)
        if self._size_bytes > self.batch_bytes_max:
            raise SinkError(
                f"the batch that goes on at {self.topic}/{self.partition} offset {offset} is larger than "
                f"{self.batch_bytes_max} bytes; make the worker's micro-batches smaller or raise batch_bytes_max"
            )
        if header.chunk + 1 < header.chunks:
            return None
        batch = self._whole(offset)
        self._chunks, self._size_bytes = [], 0
        self.position = batch.after
        return batch

    def advance(self, next_offset: int) -> Position:
        """Moves over transaction markers, between batches only; what follows in the chain stays."""
        self.position = Position(next_offset, self.position.shard, self.position.sequence, self.position.head)
        return self.position

    def _check_place(self, offset: int, header: AuditHeader, rows: pa.RecordBatch) -> None:
        if not self._chunks:
            if header.chunk != 0 or header.first_row != 0:
                raise self._poison(offset, f"it is chunk {header.chunk} of a batch whose first chunk is not before it")
        else:
            last, last_rows = self._chunks[-1]
            expected = last.model_copy(
                update={"chunk": last.chunk + 1, "first_row": last.first_row + last_rows.num_rows}
            )
            if header != expected:
                raise self._poison(offset, f"it is not chunk {last.chunk + 1} of batch {last.shard}/{last.sequence}")
        if header.chunk + 1 == header.chunks and header.first_row + rows.num_rows != header.rows:
            raise self._poison(offset, f"the batch ends after {header.first_row + rows.num_rows} of {header.rows} rows")

    def _whole(self, offset: int) -> Batch:
        header = self._chunks[-1][0]
        try:
            journal = JournalRecord.from_bytes(header.journal.encode())
        except JournalError as exc:
            raise self._poison(offset, f"its journal record cannot be read: {exc}") from exc
        if journal.stream_time_ms > EVENT_TIME_MS_MAX:
            raise self._poison(offset, "the stream time in its journal record is past the year 9999")
        place = (
            f"batch {header.shard}/{header.sequence} (audit record {self.topic}/{self.partition} at offset {offset})"
        )
        for what, ours, theirs in (
            ("shard", header.shard, journal.shard),
            ("sequence", header.sequence, journal.sequence),
            ("bundle", header.bundle, journal.bundle),
            ("number of decisions", header.rows, journal.decisions),
        ):
            if ours != theirs:
                raise AuditBroken(f"{place}: {what} is {ours} in the audit record and {theirs} in its journal record")
        digest = digest_chunks([rows for _, rows in self._chunks], header)
        if digest != journal.digest:
            raise AuditBroken(f"{place}: its rows have the digest {digest}, its journal record says {journal.digest}")
        before = self.position
        if before.sequence is not None and (journal.shard, journal.sequence) != (before.shard, before.sequence + 1):
            raise AuditBroken(
                f"{place} follows batch {before.shard}/{before.sequence}: a batch is missing between them"
            )
        if before.head is not None and journal.previous != before.head:
            raise AuditBroken(f"{place} names {journal.previous} as the record before it; that one is {before.head}")
        after = Position(offset + 1, journal.shard, journal.sequence, journal.head)
        return Batch(self.partition, offset, header, tuple(self._chunks), journal, before, after, self._size_bytes)

    def _poison(self, offset: int, why: str) -> PoisonChunk:
        return PoisonChunk(self.topic, self.partition, offset, why)
