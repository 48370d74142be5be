"""A trail in Postgres for the tests of `audit`: written by the real store, with or without Kafka behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psycopg

from schemas.audit_record import AuditColumns, AuditContext, AuditHeader, digests, encode
from schemas.journal_record import ControlRange, InputRange, JournalRecord
from scorer.sink.assembler import Assembler, Position
from scorer.sink.store import Store
from scorer.trail import audit_database
from tests.integration.audit_batches import CONTEXT, rows
from tests.integration.stored_batch import read_batch

DAY_MS = 86_400_000
START_MS = 1_767_225_600_000  # 2026-01-01


@dataclass
class Trail:
    """Shards whose batches are written as the sink writes them, at stream times of our choosing."""

    url: str
    topic: str = "audit"
    salted: bool = True  # False: as releases before 0.2 wrote
    positions: dict[int, Position] = field(default_factory=dict)
    heads: dict[int, tuple[int, str]] = field(default_factory=dict)
    made: dict[tuple[int, int], AuditColumns] = field(default_factory=dict)

    def chunks(
        self, shard: int, columns: AuditColumns, *, day: int, context: AuditContext = CONTEXT
    ) -> tuple[list[bytes], JournalRecord]:
        """The next batch of `shard`, on the day-th day of 2026, as it would stand on the audit topic."""
        sequence, head = self.heads.get(shard, (-1, "0" * 64))
        salt = hashlib.sha256(f"{shard} {sequence}".encode()).digest() if self.salted else None
        made = digests(columns, context, salt)
        record = JournalRecord(
            shard=shard,
            sequence=sequence + 1,
            inputs=(InputRange(partition=0, start=0, end=len(columns)),),
            control=ControlRange(start=0, end=0),
            stream_time_ms=START_MS + day * DAY_MS,
            bundle=context.bundle,
            decisions=len(columns),
            dead_letters=0,
            digest=made.digest,
            decided=made.decided,
            previous=head,
        )
        header = AuditHeader(
            **context.model_dump(),
            shard=shard,
            sequence=sequence + 1,
            journal=record.to_bytes().decode(),
            salt=None if salt is None else salt.hex(),
        )
        return encode(columns, header), record

    def write(self, shard: int, sizes: Sequence[int], *, day: int = 0, seed: int = 0) -> None:
        """Batches of these sizes."""
        first = len(self.made)
        made = [in_order(rows(1000 * seed + 100 * shard + first + n, size)) for n, size in enumerate(sizes)]
        self.write_columns(shard, made, day=day)

    def write_columns(
        self, shard: int, made: Sequence[AuditColumns], *, day: int = 0, context: AuditContext = CONTEXT
    ) -> None:
        """These batches, in one transaction."""
        with Store(self.url, self.topic) as store:
            before = self.positions.get(shard) or store.positions([shard])[shard]
            assembler = Assembler(self.topic, shard, before, 1 << 28)
            items = []
            for columns in made:
                chunks, record = self.chunks(shard, columns, day=day, context=context)
                for chunk in chunks:
                    items += assembler.add(assembler.position.next_offset + len(items), chunk)
                self.heads[shard] = (record.sequence, record.head)
                self.made[shard, record.sequence] = columns
            store.write(items)
            self.positions[shard] = assembler.position


def in_order(columns: AuditColumns) -> AuditColumns:
    """Offsets that rise along the rows of each partition, as those of real payments do."""
    offset = columns.offset.copy()
    offset.sort()
    return replace(columns, offset=offset)


def sql(url: str, *statements: str) -> None:
    """What the database's owner does."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


def migrated(url: str) -> str:
    audit_database.migrate(url)
    return url


def forge(url: str, shard: int, sequence: int, *, onwards: bool) -> None:
    """The best an owner can do: an edit with digest, journal record and head made again, and every later link too."""
    sql(url, f"UPDATE decisions SET decision = 'approve' WHERE shard = {shard} AND sequence = {sequence}")
    sql(url, f"UPDATE batches SET flagged = 0 WHERE shard = {shard} AND sequence = {sequence}")
    with audit_database.engine(url).connect() as connection:
        context, columns = read_batch(connection, shard, sequence)
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT sequence, journal, salt FROM batches WHERE shard = %s AND sequence >= %s ORDER BY sequence",
            (shard, sequence),
        ).fetchall()
        previous = None
        for number, journal, salt in found if onwards else found[:1]:
            if number == sequence:
                made = digests(columns, context, salt)
                journal["digest"] = made.digest
                if made.decided is not None:
                    journal["decided"] = made.decided
            else:
                journal["previous"] = previous
            record = JournalRecord.model_validate_json(json.dumps(journal))
            connection.execute(
                "UPDATE batches SET journal = %s, digest = %s, previous = %s, head = %s "
                "WHERE shard = %s AND sequence = %s",
                (record.to_bytes().decode(), record.digest, record.previous, record.head, shard, number),
            )
            previous = record.head
        if onwards:
            connection.execute("UPDATE positions SET head = %s WHERE shard = %s", (previous, shard))
