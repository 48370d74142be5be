"""The quarantine (table set_aside, command `audit set-aside`): batches that could not be written, and writing them once
the cause is gone.

A batch comes from the audit topic again, or from set_aside where the topic no longer has it and nothing of it was
masked. It goes through the same checks as at first (`scorer.sink.assembler`), must follow the batch before it and be
followed by the one after it, and have the head that the journal topic names. The rows of set_aside stay: a record of
what happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import psycopg

from schemas.journal_record import FIRST_PREVIOUS
from scorer import kafka
from scorer.audit.topic_history import journal_heads, messages
from scorer.errors import FraudScorerError
from scorer.runtime.settings import Settings
from scorer.sink.assembler import Assembler, Batch, Position, Quarantined
from scorer.sink.sink_errors import SinkError
from scorer.sink.store import Store
from scorer.trail.audit_database import connect_text

_BATCH_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True)
class QuarantinedBatch:
    """The records of one batch that went to quarantine together; `sequence` None where that could not be read."""

    topic: str
    partition: int
    shard: int | None
    sequence: int | None
    kind: str
    reason: str
    offsets: tuple[int, ...]
    at: datetime
    written: bool  # the batch stands in the tables: another record brought it, or it was redriven


def quarantined(url: str) -> list[QuarantinedBatch]:
    """Everything in quarantine, in the order of its topics. Raises psycopg.Error."""
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT s.topic, s.partition, s.shard, s.sequence, min(s.kind), min(s.reason), "
            """array_agg(s."offset" ORDER BY s."offset"), min(s.at), EXISTS (SELECT 1 FROM batches b """
            "WHERE b.shard = s.shard AND b.sequence = s.sequence) FROM set_aside s "
            "GROUP BY s.topic, s.partition, s.shard, s.sequence, "
            """CASE WHEN s.sequence IS NULL THEN s."offset" END ORDER BY s.topic, s.partition, min(s."offset")"""
        ).fetchall()
    return [
        QuarantinedBatch(topic, partition, shard, sequence, kind, reason, tuple(offsets), at, written)
        for topic, partition, shard, sequence, kind, reason, offsets, at, written in rows
    ]


@dataclass(frozen=True)
class Redriven:
    """What came of one batch: written with so many rows, or why not."""

    batch: QuarantinedBatch
    rows: int = 0
    why_not: str | None = None


def redrive(url: str, settings: Settings | None, *, dry_run: bool = False) -> Iterator[Redriven]:
    """Writes what can be written of the quarantine, batch by batch in order. Needs the owner's login.

    `settings` None: without Kafka, from the bytes in the table, and only the chain proves a batch.
    Raises psycopg.Error, KafkaFailure, SinkError.
    """
    for kept in quarantined(url):
        if kept.written:
            continue
        try:
            batch = _batch(url, settings, kept)
        except FraudScorerError as exc:
            yield Redriven(kept, why_not=str(exc))
            continue
        if not dry_run:
            try:
                with Store(url, kept.topic, _origin(settings)) as store:
                    store.write_late(batch)
            except SinkError as exc:
                yield Redriven(kept, why_not=str(exc))
                continue
        yield Redriven(kept, batch.rows)


def _origin(settings: Settings | None) -> str:
    return "payments" if settings is None else kafka.Topics.of(settings.kafka).payments


def _batch(url: str, settings: Settings | None, kept: QuarantinedBatch) -> Batch:
    """The batch, whole and checked. Raises FraudScorerError when it cannot be had."""
    if kept.shard is None or kept.sequence is None:
        raise FraudScorerError("which batch it is of cannot be read")
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        before = connection.execute(
            "SELECT head FROM batches WHERE shard = %s AND sequence = %s", (kept.shard, kept.sequence - 1)
        ).fetchone()
        after = connection.execute(
            "SELECT previous FROM batches WHERE shard = %s AND sequence = %s", (kept.shard, kept.sequence + 1)
        ).fetchone()
    head = FIRST_PREVIOUS if kept.sequence == 0 else None if before is None else before[0]
    position = Position(kept.offsets[0], kept.shard, kept.sequence - 1 if kept.sequence else None, head)
    assembler = Assembler(kept.topic, kept.partition, position, _BATCH_BYTES_MAX)
    found: list[Batch | Quarantined] = []
    for offset, value in _values(url, settings, kept):
        found += assembler.add(offset, value)
    batches = [item for item in found if isinstance(item, Batch)]
    if not batches:
        reasons = [item.reason for item in found if isinstance(item, Quarantined)]
        raise FraudScorerError(reasons[0] if reasons else "its records are not a whole batch")
    batch = batches[0]
    if after is not None and after[0] != batch.journal.head:
        raise FraudScorerError(f"batch {kept.shard}/{kept.sequence + 1} follows another one")
    named = None if settings is None else next(
        (record.head for record in journal_heads(settings, kept.shard, from_sequence=kept.sequence)
         if record.sequence == kept.sequence), None,
    )  # fmt: skip
    if named is not None and named != batch.journal.head:
        raise FraudScorerError("the journal topic names another head: it is not the batch that was decided")
    if named is None and head is None and after is None:
        raise FraudScorerError("neither the journal topic nor a batch before or after it proves it")
    return batch


def _values(url: str, settings: Settings | None, kept: QuarantinedBatch) -> Iterator[tuple[int, bytes | None]]:
    """The records of the batch: from the topic, where it has them all, else as they were kept."""
    wanted = set(kept.offsets)
    if settings is not None:
        try:
            read = messages(settings, kept.topic, kept.partition, kept.offsets[0], kept.offsets[-1] + 1)
            there = {kafka.present(m.offset(), "offset"): m.value() for m in read if m.offset() in wanted}
        except kafka.KafkaFailure:
            there = {}
        if there.keys() == wanted:
            yield from sorted(there.items())
            return
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        rows = connection.execute(
            'SELECT "offset", value, masked FROM set_aside WHERE topic = %s AND partition = %s AND "offset" = ANY (%s) '
            'ORDER BY "offset"',
            (kept.topic, kept.partition, list(kept.offsets)),
        ).fetchall()
    if any(masked or value is None for _, value, masked in rows):
        raise SinkError("the topic no longer has its records, and digits in those kept here were masked")
    yield from ((offset, value) for offset, value, _ in rows)
