"""From records of one audit partition to whole, checked micro-batches. Pure: no Kafka and no Postgres here.

Only a whole batch is handed on: readers of Postgres never see part of one, and it can be checked before it is written,
by counts, digest, journal record and chain (each record names the head of the one before it). What cannot be a batch
is handed on as Quarantined, in the order of the topic; the position moves over it, and where it may have been the batch
that is expected, `gap` allows the next one to be a later one.

    kind            unreadable      no audit chunk
                    incomplete      a chunk whose batch lacks other chunks
                    contradiction   digest, counts, journal record or place in the chain do not hold
                    card_number     a text of it is a card number
                    refused         Postgres refuses its rows (decided in the store)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pyarrow as pa

from schemas.audit_record import EVENT_TIME_MS_MAX, AuditError, AuditHeader, Chunk, decode_parts, digests_of_chunks
from schemas.journal_record import FIRST_PREVIOUS, JournalError, JournalRecord
from scorer.sink.card_screen import column_with_card_number
from scorer.sink.sink_errors import AuditBroken

DAY_MS = 86_400_000
KINDS = ("unreadable", "incomplete", "contradiction", "card_number", "refused")


@dataclass(frozen=True)
class Position:
    """How far one partition has come, and what the next batch of an audit partition must follow.

    `sequence` None: no batch came before. `head` None: any batch may follow, an operator moved the position.
    `gap`: records that may be the next batch went to quarantine since the last one, so that a later one may be next.
    """

    next_offset: int = 0
    shard: int | None = None
    sequence: int | None = None
    head: str | None = FIRST_PREVIOUS
    gap: bool = False


@dataclass(frozen=True)
class Batch:
    """A whole micro-batch whose digest, counts and place in the chain hold."""

    partition: int
    offset: int  # of the last chunk
    header: AuditHeader  # of the last chunk
    chunks: tuple[tuple[AuditHeader, pa.RecordBatch], ...]
    values: tuple[tuple[int, bytes], ...]  # offset and bytes of each chunk; `chunks` point into them
    journal: JournalRecord
    before: Position
    after: Position
    size_bytes: int

    @property
    def rows(self) -> int:
        return self.header.rows

    @property
    def day(self) -> int:
        """The UTC day of stream time after the batch, in days since 1970-01-01: where its rows are kept."""
        return max(0, self.journal.stream_time_ms) // DAY_MS

    def quarantined(self, kind: str, reason: str) -> list[Quarantined]:
        """Its chunks for quarantine. The batch keeps its place in the chain."""
        return [
            Quarantined(
                partition=self.partition,
                offset=offset,
                kind=kind,
                reason=reason,
                value=value,
                shard=self.journal.shard,
                sequence=self.journal.sequence,
                before=self.before,
                after=self.after,
            )
            for offset, value in self.values
        ]


@dataclass(frozen=True)
class Quarantined:
    """A record that cannot be written as decisions: it goes to table set_aside."""

    partition: int
    offset: int
    kind: str
    reason: str
    value: bytes | None
    shard: int | None
    sequence: int | None
    before: Position
    after: Position

    def without_content(self, reason: str) -> Quarantined:
        """What is left to write when Postgres refuses the row of a quarantined record."""
        return replace(self, reason=reason, value=None, shard=None, sequence=None)


def _unknown(_record: JournalRecord) -> None:
    return None


@dataclass
class Assembler:
    """Gathers the chunks of one partition. `position` is that after what was handed on last (or of the start).

    `in_journal`: whether the worker's journal holds a record; None when that cannot be known. Asked of a batch that
    comes before its turn, and of one that contradicts itself: what the worker did not write explains no gap, and stops
    nothing.
    """

    topic: str
    partition: int
    position: Position
    batch_bytes_max: int
    in_journal: Callable[[JournalRecord], bool | None] = _unknown
    _chunks: list[Chunk] = field(default_factory=list)
    _values: list[tuple[int, bytes]] = field(default_factory=list)
    _size_bytes: int = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes of a batch begun and not yet whole."""
        return self._size_bytes

    def add(self, offset: int, value: bytes | None) -> list[Batch | Quarantined]:
        """Takes the next record; returns what it completes, in order. Raises AuditBroken."""
        if value is None:
            return [self._alone(offset, value, "unreadable", "it has no value")]
        try:
            chunk = decode_parts(value)
        except AuditError as exc:
            return [self._alone(offset, value, "unreadable", str(exc))]
        header = chunk.header
        done: list[Batch | Quarantined] = []
        if self._chunks and header.chunk == 0:
            done += self._pending("incomplete", "another batch begins before its last chunk")
        if why := self._misplaced(header):
            return [*done, self._alone(offset, value, "incomplete", why, header)]
        self._chunks.append(chunk)
        self._values.append((offset, value))
        self._size_bytes += len(value)
        if self._size_bytes > self.batch_bytes_max:
            reason = f"the batch is larger than {self.batch_bytes_max} bytes"
            return [*done, *self._pending("incomplete", reason)]
        if header.chunk + 1 < header.chunks:
            return done
        return [*done, *self._last(offset)]

    def advance(self, next_offset: int) -> Position:
        """Moves over transaction markers, between batches only; what follows in the chain stays."""
        self.position = replace(self.position, next_offset=next_offset)
        return self.position

    def _misplaced(self, header: AuditHeader) -> str | None:
        """Why this chunk does not go on with what is pending."""
        if not self._chunks:
            if header.chunk != 0 or header.first_row != 0:
                return f"it is chunk {header.chunk} of a batch whose first chunk is not before it"
            return None
        last, rows, _ = self._chunks[-1]
        expected = last.model_copy(update={"chunk": last.chunk + 1, "first_row": last.first_row + rows.num_rows})
        if header != expected:
            return f"it is not chunk {last.chunk + 1} of batch {last.shard}/{last.sequence}"
        return None

    def _last(self, offset: int) -> list[Batch | Quarantined]:
        header, rows, _ = self._chunks[-1]
        if header.first_row + rows.num_rows != header.rows:
            return self._pending(
                "incomplete", f"the batch ends after {header.first_row + rows.num_rows} of {header.rows} rows"
            )
        try:
            journal = JournalRecord.from_bytes(header.journal.encode())
        except JournalError as exc:
            return self._pending("contradiction", f"its journal record cannot be read: {exc}")
        if problem := self._contradiction(header, journal):
            return self._pending("contradiction", problem, journal)
        if self._forged(journal):
            reason = "it comes before its turn, and the journal does not hold its record: the worker did not write it"
            return self._pending("contradiction", reason, journal)
        if problem := self._chain(offset, journal):
            return self._pending("contradiction", problem, journal)
        for chunk in self._chunks:
            if (name := column_with_card_number(chunk.header, chunk.rows)) is not None:
                return self._pending("card_number", f"column {name} holds a card number")
        before, self.position = self.position, Position(offset + 1, journal.shard, journal.sequence, journal.head)
        batch = Batch(
            partition=self.partition,
            offset=offset,
            header=header,
            chunks=tuple((chunk.header, chunk.rows) for chunk in self._chunks),
            values=tuple(self._values),
            journal=journal,
            before=before,
            after=self.position,
            size_bytes=self._size_bytes,
        )
        self._clear()
        return [batch]

    def _contradiction(self, header: AuditHeader, journal: JournalRecord) -> str | None:
        """Where its two accounts of itself, header and journal record, differ."""
        if journal.stream_time_ms > EVENT_TIME_MS_MAX:
            return "the stream time in its journal record is past the year 9999"
        if header.rows > (journal.refused or 0) and journal.stream_time_ms < 0:
            return "it has decisions, and by its journal record no payment was accepted yet"
        for what, ours, theirs in (
            ("shard", header.shard, journal.shard),
            ("sequence", header.sequence, journal.sequence),
            ("bundle", header.bundle, journal.bundle),
            ("number of decisions", header.rows, journal.decisions),
        ):
            if ours != theirs:
                return f"{what} is {ours} in the audit record and {theirs} in its journal record"
        if (header.salt is None) != (journal.decided is None):
            return "of salt and `decided`, which belong together, it has one"
        found = digests_of_chunks(self._chunks)
        if found.decided != journal.decided:
            return f"its rows give `decided` {found.decided}, its journal record has {journal.decided}"
        if found.digest != journal.digest:
            return f"its rows have the digest {found.digest}, its journal record has {journal.digest}"
        return None

    def _forged(self, journal: JournalRecord) -> bool:
        """Whether it would leave a gap that is none."""
        before = self.position
        if before.head is None or (before.shard is not None and journal.shard != before.shard):
            return False
        expected = 0 if before.sequence is None else before.sequence + 1
        return journal.sequence > expected and self.in_journal(journal) is False

    def _chain(self, offset: int, journal: JournalRecord) -> str | None:
        """Why it does not follow the batch before; None when it does, or when quarantined records explain the gap.

        Raises AuditBroken when batches are missing that are not in quarantine: they are lost, and every later batch
        would go to quarantine for it.
        """
        before = self.position
        if before.head is None:
            return None
        expected = 0 if before.sequence is None else before.sequence + 1
        if before.shard is not None and journal.shard != before.shard:
            return f"it is of shard {journal.shard}, the partition holds those of shard {before.shard}"
        if journal.sequence == expected and journal.previous == before.head:
            return None
        if journal.sequence > expected:
            if before.gap:
                return None
            raise AuditBroken(
                f"batch {journal.shard}/{journal.sequence} (audit record {self.topic}/{self.partition} at offset "
                f"{offset}) comes where batch {expected} should: a batch is missing between them. Restore the topic, "
                f"or accept the gap: fraud-scorer audit accept-gap --topic {self.topic} --partition {self.partition} "
                f"--to {offset}"
            )
        if journal.sequence == expected:
            return f"it names {journal.previous} as the record before it; that one is {before.head}"
        return f"batch {journal.sequence} was written before"

    def _leaves_gap(self, header: AuditHeader | None, journal: JournalRecord | None = None) -> bool:
        """Whether what goes to quarantine may be the batch that is expected, so that the next one may be a later one.

        A batch that was written before, one of another shard, and one that the journal does not have is not it: were a
        gap allowed for it, the loss of a batch behind it would stop nothing. `header` None: nothing is known of it.
        """
        before = self.position
        if before.gap or header is None:
            return True
        expected = 0 if before.sequence is None else before.sequence + 1
        claims = [(header.shard, header.sequence), *([] if journal is None else [(journal.shard, journal.sequence)])]
        if not any(before.shard in (None, shard) and sequence >= expected for shard, sequence in claims):
            return False
        return journal is None or self.in_journal(journal) is not False

    def _pending(self, kind: str, reason: str, journal: JournalRecord | None = None) -> list[Batch | Quarantined]:
        """Everything gathered so far, into quarantine; the position moves behind it. `journal`: the batch's record,
        where it can be read."""
        done: list[Batch | Quarantined] = []
        gap = self._leaves_gap(self._chunks[-1].header, journal)
        for (header, _, _), (offset, value) in zip(self._chunks, self._values, strict=True):
            before, self.position = self.position, replace(self.position, next_offset=offset + 1, gap=gap)
            done.append(self._quarantined(offset, value, kind, reason, header, before))
        self._clear()
        return done

    def _alone(
        self, offset: int, value: bytes | None, kind: str, reason: str, header: AuditHeader | None = None
    ) -> Quarantined:
        """One record, into quarantine. While a batch is pending the position stays: its chunks are still needed."""
        before = self.position
        if not self._chunks:
            self.position = replace(before, next_offset=offset + 1, gap=self._leaves_gap(header))
        return self._quarantined(offset, value, kind, reason, header, before)

    def _quarantined(
        self, offset: int, value: bytes | None, kind: str, reason: str, header: AuditHeader | None, before: Position
    ) -> Quarantined:
        return Quarantined(
            partition=self.partition,
            offset=offset,
            kind=kind,
            reason=reason,
            value=value,
            shard=header.shard if header else None,
            sequence=header.sequence if header else None,
            before=before,
            after=self.position,
        )

    def _clear(self) -> None:
        self._chunks, self._values, self._size_bytes = [], [], 0
