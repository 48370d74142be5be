"""`audit set-aside`: batches that could not be written, and writing them once the cause is gone.

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
from scorer.sink.assembler import Assembler, Batch, Position, SetAside
from scorer.sink.sink_errors import SinkError
from scorer.sink.store import Store
from scorer.trail.tables import connect_text

_BATCH_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True)
class Aside:
    """The records of one batch that were set aside together; `sequence` None where that could not be read."""

    topic: str
    partition: int
    shard: int | None
    sequence: int | None
    kind: str
    reason: str
    offsets: tuple[int, ...]
    at: datetime
    written: bool  # the batch stands in the tables: another record brought it, or it was redriven


def set_aside(url: str) -> list[Aside]:
    """Everything set aside, in the order of its topics. Raises psycopg.Error."""
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        rows = connection.execute(
            "SELECT s.topic, s.partition, s.shard, s.sequence, min(s.kind), min(s.reason), "
            """array_agg(s."offset" ORDER BY s."offset"), min(s.at), EXISTS (SELECT 1 FROM batches b """
            "WHERE b.shard = s.shard AND b.sequence = s.sequence) FROM set_aside s "
            "GROUP BY s.topic, s.partition, s.shard, s.sequence, "
            """CASE WHEN s.sequence IS NULL THEN s."offset" END ORDER BY s.topic, s.partition, min(s."offset")"""
        ).fetchall()
    return [
        Aside(topic, partition, shard, sequence, kind, reason, tuple(offsets), at, written)
        for topic, partition, shard, sequence, kind, reason, offsets, at, written in rows
    ]


@dataclass(frozen=True)
class Redriven:
    """What came of one batch: written with so many rows, or why not."""

    aside: Aside
    rows: int = 0
    why_not: str | None = None


def redrive(url: str, settings: Settings | None, *, dry_run: bool = False) -> Iterator[Redriven]:
    """Writes what can be written of all that was set aside, batch by batch in order. Needs the owner's login.

    `settings` None: without Kafka, from set_aside's own bytes, and nothing but the chain vouches for a batch.
    Raises psycopg.Error, KafkaFailure, SinkError.
    """
    for aside in set_aside(url):
        if aside.written:
            continue
        try:
            batch = _batch(url, settings, aside)
        except FraudScorerError as exc:
            yield Redriven(aside, why_not=str(exc))
            continue
        if not dry_run:
            try:
                with Store(url, aside.topic, _origin(settings)) as store:
                    store.write_late(batch)
            except SinkError as exc:
                yield Redriven(aside, why_not=str(exc))
                continue
        yield Redriven(aside, batch.rows)


def _origin(settings: Settings | None) -> str:
    return "payments" if settings is None else kafka.Topics.of(settings.kafka).payments


def _batch(url: str, settings: Settings | None, aside: Aside) -> Batch:
    """The batch, whole and checked. Raises FraudScorerError when it cannot be had."""
    if aside.shard is None or aside.sequence is None:
        raise FraudScorerError("which batch it is of cannot be read")
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        before = connection.execute(
            "SELECT head FROM batches WHERE shard = %s AND sequence = %s", (aside.shard, aside.sequence - 1)
        ).fetchone()
        after = connection.execute(
            "SELECT previous FROM batches WHERE shard = %s AND sequence = %s", (aside.shard, aside.sequence + 1)
        ).fetchone()
    head = FIRST_PREVIOUS if aside.sequence == 0 else None if before is None else before[0]
    position = Position(aside.offsets[0], aside.shard, aside.sequence - 1 if aside.sequence else None, head)
    assembler = Assembler(aside.topic, aside.partition, position, _BATCH_BYTES_MAX)
    found: list[Batch | SetAside] = []
    for offset, value in _values(url, settings, aside):
        found += assembler.add(offset, value)
    batches = [item for item in found if isinstance(item, Batch)]
    if not batches:
        reasons = [item.reason for item in found if isinstance(item, SetAside)]
        raise FraudScorerError(reasons[0] if reasons else "its records are not a whole batch")
    batch = batches[0]
    if after is not None and after[0] != batch.journal.head:
        raise FraudScorerError(f"batch {aside.shard}/{aside.sequence + 1} follows another one")
    named = None if settings is None else next(
        (said.head for said in journal_heads(settings, aside.shard, from_sequence=aside.sequence)
         if said.sequence == aside.sequence), None,
    )  # fmt: skip
    if named is not None and named != batch.journal.head:
        raise FraudScorerError("the journal topic names another head: it is not the batch that was decided")
    if named is None and head is None and after is None:
        raise FraudScorerError("neither journal topic nor a batch beside it vouches for it")
    return batch


def _values(url: str, settings: Settings | None, aside: Aside) -> Iterator[tuple[int, bytes | None]]:
    """The records of the batch: from the topic, where it has them all, else as they were kept."""
    wanted = set(aside.offsets)
    if settings is not None:
        try:
            read = messages(settings, aside.topic, aside.partition, aside.offsets[0], aside.offsets[-1] + 1)
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
            (aside.topic, aside.partition, list(aside.offsets)),
        ).fetchall()
    if any(masked or value is None for _, value, masked in rows):
        raise SinkError("the topic no longer has its records, and digits in those kept here were masked")
    yield from ((offset, value) for offset, value, _ in rows)
