"""The sink's side of Postgres: one connection that holds the partitions' locks and writes rows and positions together.

The order inside the one transaction of `write`:

    1. positions, from the offset they must have to the new one (compare and set: a second writer fails here)
    2. feature sets and bundles not yet known
    3. COPY of all rows, binary
    4. one row for each batch, one for each quarantined record (table set_aside)
    5. commit

Where the transaction before is still under way on another connection (`scorer.sink.write_lanes`), 3 comes first and the
rest waits for that one's commit: COPY needs nothing of it, positions and bundles do.

Partitions of new days are made before it, in a transaction of their own: to have one too many is no harm.

Behind a pooler that gives each transaction another server connection (PgBouncer's transaction mode), a lock of a
session would belong to nothing and stay for ever. There each transaction takes the locks of its partitions for itself,
and a position that another sink has moved is read again instead of being an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from schemas.audit_record import AuditContext
from scorer import kafka
from scorer.runtime import fault_points
from scorer.sink.assembler import Batch, Position, Quarantined
from scorer.sink.batch_rows import batch_row, date_of, position_row, quarantine_row
from scorer.sink.postgres_errors import postgres_errors
from scorer.sink.sink_errors import RowsRefused, SchemaMismatch, SinkError, StoreUnavailable
from scorer.trail import audit_database, audit_tables, copy_encode, copy_format

_KNOWN_MAX = 1024
_LOCK_TIMEOUT = "10s"  # then the sink drops its connection, logs the reason and begins again

Moves = dict[int, tuple[Position, Position]]


class Store:
    """One connection to the audit database. Every method raises StoreUnavailable when trying again later may help."""

    def __init__(self, url: str, topic: str, origin_topic: str = "payments", *, lane: int | None = None) -> None:
        """Connects. Raises StoreUnavailable; SchemaMismatch when the database is not at this version's migration.

        `lane`: a further connection of a sink, which has locks of its own beside those of the first: when it breaks, no
        other sink begins while the server may still be committing what came over it.
        """
        self._topic = topic
        self._lane = lane
        self._origin_topic = origin_topic
        self._contexts: dict[str, AuditContext] = {}
        self._days: set[int] = set()
        self._pooled = False
        with postgres_errors():
            self._connection = audit_database.engine(url).connect()
        try:
            self._pooled = self._examine()
            with self._transaction() as connection:
                if not self._pooled:
                    connection.execute(sa.text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
                revision = audit_database.current_revision(self._connection)
            if revision != audit_database.REVISION:
                raise SchemaMismatch(
                    f"the audit database is at migration {revision or 'none'}, this version needs "
                    f"{audit_database.REVISION}: run `fraud-scorer setup`"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the locks back. Never raises: a connection that is broken is closed already."""
        self._connection.invalidate()
        self._connection.close()

    @property
    def pooled(self) -> bool:
        """Whether a pooler gives each transaction another connection of the server."""
        return self._pooled

    def _examine(self) -> bool:
        """Whether a pooler stands between. Raises StoreUnavailable where nothing can be written."""
        with self._transaction() as connection:
            found = connection.execute(
                sa.text(
                    "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('transaction_read_only')::boolean"
                )
            ).one()
        pid, standby, read_only = found
        if standby or read_only:
            raise StoreUnavailable(
                "Postgres takes no rows now: "
                + ("it is a standby" if standby else "its transactions are read only (default_transaction_read_only)")
            )
        return bool(pid != self._driver().info.backend_pid)  # a pooler gives a number of its own

    def lock(self, partitions: Sequence[int]) -> list[int]:
        """Takes the lock of every partition, held as long as the connection; returns those that another sink holds.

        All or none: when one is held elsewhere, none is kept. Behind a pooler the locks end with this call, and each
        transaction takes its own again.
        """
        with self._transaction() as connection:
            held = self._not_locked(connection, partitions)
        if held:
            self.unlock()
        return held

    def unlock(self) -> None:
        """Gives all locks back."""
        if not self._pooled:
            with self._transaction() as connection:
                connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))

    def _not_locked(self, connection: sa.Connection, partitions: Iterable[int]) -> list[int]:
        function = "pg_try_advisory_xact_lock" if self._pooled else "pg_try_advisory_lock"
        statement = sa.text(f"SELECT {function}(hashtextextended(:name, 0))")
        return [p for p in partitions if not connection.scalar(statement, {"name": self._lock_name(p)})]

    def positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        """The position of each partition; one seen for the first time starts at 0."""
        table = audit_tables.positions
        with self._transaction() as connection:
            found = connection.execute(sa.select(table).where(table.c.topic == self._topic)).all()
            positions = {p: Position() for p in partitions}
            positions |= {
                row.partition: Position(row.next_offset, row.shard, row.sequence, row.head, row.gap)
                for row in found
                if row.partition in positions
            }
            new = positions.keys() - {row.partition for row in found}
            if new:
                rows = [{"topic": self._topic, "partition": p} | position_row(positions[p]) for p in sorted(new)]
                connection.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
        return positions

    def check_topic(self, partitions: Sequence[int], topic_id: str) -> None:
        """Compare the topic's id with the one that the positions are of, which is stored where there is none yet.

        Raises SinkError for another one: offsets of a topic made anew mean other records.
        """
        if topic_id == kafka.NO_ID:
            return
        table = audit_tables.positions
        where = sa.and_(table.c.topic == self._topic, table.c.partition.in_(partitions))
        with self._transaction() as connection:
            found = connection.execute(sa.select(table.c.partition, table.c.topic_id).where(where)).all()
            other = sorted(row.partition for row in found if row.topic_id not in (None, topic_id))
            if other:
                known = next(row.topic_id for row in found if row.partition == other[0])
                raise SinkError(
                    f"topic {self._topic} was made anew: the position of partition {other[0]} in Postgres is of the "
                    f"topic with id {known}, the broker has {topic_id}. Give a new topic its own database, or go on "
                    f"from the end of each partition: fraud-scorer audit accept-gap --topic {self._topic} --partition "
                    f"{other[0]} --to OFFSET"
                )
            if any(row.topic_id is None for row in found):
                connection.execute(sa.update(table).where(where, table.c.topic_id.is_(None)).values(topic_id=topic_id))

    def forget_topic(self, partition: int) -> None:
        """The position of `partition` is of whatever topic the next sink finds."""
        with self._transaction() as connection:
            connection.execute(sa.update(audit_tables.positions).where(self._place(partition)).values(topic_id=None))

    def write(self, items: Sequence[Batch | Quarantined], turn: Callable[[], None] | None = None) -> None:
        """Rows, batch rows, quarantine and positions of `items` (in order) in one transaction.

        `turn` waits for the transaction before, where that is not committed yet; what it raises rolls this one back.
        Raises RowsRefused (nothing is written; with one batch at a time one learns which), StoreRefused, SinkError;
        StoreUnavailable: then only the positions in Postgres show what is committed.
        """
        batches = [item for item in items if isinstance(item, Batch)]
        quarantine = [quarantine_row(self._topic, item) for item in items if isinstance(item, Quarantined)]
        self._make_days({batch.day for batch in batches})
        known = dict(self._contexts)
        with self._transaction() as connection:
            if turn is not None:
                self._copy(batches)
                turn()
            self._move(connection, moves_of(items))
            for batch in batches:
                self._context(connection, known, batch)
            if turn is None:
                self._copy(batches)
            if batches:
                rows = [batch_row(self._topic, self._origin_topic, batch) for batch in batches]
                connection.execute(sa.insert(audit_tables.batches), rows)
            if quarantine:
                # Between the chunks of a batch the position does not move: after a restart the same record comes again.
                connection.execute(postgresql.insert(audit_tables.set_aside).on_conflict_do_nothing(), quarantine)
            fault_points.point("sink_before_commit")
        fault_points.point("sink_after_commit")
        # Only now: what a transaction that failed had inserted is not known to the database.
        self._contexts = known if len(known) <= _KNOWN_MAX else {}

    def write_records(self, rows: Mapping[sa.Table, list[dict[str, Any]]], moves: Moves) -> None:
        """Rows of other tables, keyed by the records they came from, and positions, in one transaction."""
        with self._transaction() as connection:
            self._move(connection, moves)
            for table, new in rows.items():
                if new:
                    connection.execute(sa.insert(table), new)

    def try_record(self, table: sa.Table, row: dict[str, Any]) -> None:
        """Writes a row and takes it back. Raises RowsRefused when Postgres would not take it."""
        with postgres_errors(), self._connection.begin() as transaction:
            self._connection.execute(sa.insert(table), row)
            transaction.rollback()

    def write_late(self, batch: Batch) -> None:
        """A batch from quarantine, in one transaction; its position was passed before, and moves only where no
        later batch was written since. Needs the owner's login: the writer may not correct a bundle's first batch.

        Raises as `write` does, and SinkError when a sink is at work right behind it.
        """
        table, where = audit_tables.positions, self._place(batch.partition)
        self._make_days({batch.day})
        with self._transaction() as connection:
            position = connection.execute(sa.select(table).where(where)).one_or_none()
            last = -1 if position is None or position.sequence is None else position.sequence
            if position is not None and last < batch.journal.sequence:
                lock = sa.text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
                if not connection.scalar(lock, {"name": self._lock_name(batch.partition)}):
                    raise SinkError(
                        f"a sink is working on {self._topic}/{batch.partition}, and no batch came after this one: stop "
                        f"it for a moment, or wait for the next batch"
                    )
                named = {"shard": batch.journal.shard, "sequence": batch.journal.sequence, "head": batch.journal.head}
                kept = audit_tables.set_aside.c
                later = sa.select(sa.func.count()).where(
                    kept.topic == self._topic,
                    kept.partition == batch.partition,
                    kept.offset > batch.offset,
                    # As the assembler has it: what cannot be the next batch leaves no gap.
                    kept.sequence.is_(None)
                    | ((kept.shard == batch.journal.shard) & (kept.sequence > batch.journal.sequence)),
                )
                connection.execute(sa.update(table).where(where).values(**named, gap=bool(connection.scalar(later))))
            known = dict(self._contexts)
            self._context(connection, known, batch)
            self._copy([batch])
            connection.execute(sa.insert(audit_tables.batches), [batch_row(self._topic, self._origin_topic, batch)])
            bundles = audit_tables.bundles
            connection.execute(
                sa.update(bundles)
                .where(
                    bundles.c.bundle == batch.header.bundle,
                    bundles.c.first_shard == batch.journal.shard,
                    bundles.c.first_sequence > batch.journal.sequence,
                )
                .values(first_sequence=batch.journal.sequence)
            )

    def _place(self, partition: int) -> sa.ColumnElement[bool]:
        return sa.and_(audit_tables.positions.c.topic == self._topic, audit_tables.positions.c.partition == partition)

    def _lock_name(self, partition: int) -> str:
        lane = "" if self._lane is None or self._pooled else f" lane {self._lane}"
        return f"fraud-scorer audit sink {self._topic}/{partition}{lane}"

    def forget(self) -> None:
        """Asks the database again for days and bundles, which others may have removed."""
        self._days, self._contexts = set(), {}

    def _copy(self, batches: Sequence[Batch]) -> None:
        if not batches:
            return
        with self._driver().cursor() as cursor, cursor.copy(copy_format.COPY_IN) as copy:
            copy.write(copy_format.HEADER)
            for batch in batches:
                for header, rows in batch.chunks:
                    copy.write(copy_encode.rows_bytes(header, rows, batch.day).data)
                    fault_points.point("sink_copy")
            copy.write(copy_format.TRAILER)

    def _driver(self) -> psycopg.Connection[Any]:
        driver = self._connection.connection.driver_connection
        if not isinstance(driver, psycopg.Connection):
            raise TypeError(f"the sink writes through psycopg, not {type(driver).__name__}")
        return driver

    def _make_days(self, days: set[int]) -> None:
        """Partitions of the days, in transactions of their own: their locks must not last as long as a COPY."""
        for day in sorted(days - self._days):
            with self._transaction() as connection:
                connection.execute(sa.select(sa.func.audit_day(date_of(day))))
            self._days = self._days | {day} if len(self._days) < _KNOWN_MAX else {day}

    def advance(self, moves: Moves) -> None:
        """Moves positions over transaction markers, where there is nothing to write."""
        with self._transaction() as connection:
            self._move(connection, moves)

    def _move(self, connection: sa.Connection, moves: Moves) -> None:
        if self._pooled and (held := self._not_locked(connection, moves)):
            raise StoreUnavailable(f"another sink writes {self._topic}, partitions {held}")
        table = audit_tables.positions
        for partition, (before, after) in moves.items():
            statement = sa.update(table).where(self._place(partition), table.c.next_offset == before.next_offset)
            if connection.execute(statement.values(**position_row(after))).rowcount == 1:
                continue
            moved = (
                f"the position of {self._topic}/{partition} is no longer {before.next_offset}: another writer moved it"
            )
            if self._pooled:
                raise StoreUnavailable(f"{moved}; it is read again")
            raise SinkError(f"{moved}. Nothing was written; run one sink for a partition and start it again")

    def _context(self, connection: sa.Connection, known: dict[str, AuditContext], batch: Batch) -> None:
        """The feature set and the bundle of a batch, added where they are new. Raises RowsRefused for other names."""
        header = batch.header
        if (found := known.get(header.bundle)) is not None and _same_bundle(found, header):
            return
        sets = audit_tables.feature_sets
        fingerprint, names = header.feature_fingerprint, header.feature_names
        row = {"fingerprint": fingerprint, "feature_names": list(names)}
        connection.execute(postgresql.insert(sets).on_conflict_do_nothing(), row)
        stored = connection.scalar(sa.select(sets.c.feature_names).where(sets.c.fingerprint == fingerprint))
        if tuple(stored or ()) != names:
            raise RowsRefused(
                f"feature set {fingerprint} has other feature names in the database than in the audit record"
            )
        bundle = {
            "bundle": header.bundle,
            "threshold": header.threshold,
            "feature_fingerprint": fingerprint,
            "first_shard": header.shard,
            "first_sequence": header.sequence,
        }
        connection.execute(postgresql.insert(audit_tables.bundles).on_conflict_do_nothing(), bundle)
        known[header.bundle] = header

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with postgres_errors(), self._connection.begin():
            if self._pooled:  # a setting of the session would be that of others
                self._connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            yield self._connection


def set_position(url: str, topic: str, partition: int, next_offset: int) -> None:
    """An operator's choice: the sink goes on at `next_offset`, whatever lies before it, with any batch as the next.

    Raises StoreUnavailable, SinkError when a sink holds the partition.
    """
    with Store(url, topic) as store:
        if store.lock([partition]):
            raise SinkError(f"a sink is working on {topic}/{partition}; stop it before moving its position")
        before = store.positions([partition])[partition]
        store.forget_topic(partition)
        store.advance({partition: (before, Position(next_offset, head=None))})


def moves_of(items: Sequence[Batch | Quarantined]) -> Moves:
    """From where to where the items move each partition."""
    moves: Moves = {}
    for item in items:
        first, _ = moves.get(item.partition, (item.before, item.before))
        moves[item.partition] = (first, item.after)
    return moves


def _same_bundle(known: AuditContext, header: AuditContext) -> bool:
    return (known.feature_fingerprint, known.feature_names) == (header.feature_fingerprint, header.feature_names)
