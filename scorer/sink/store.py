"""The sink's side of Postgres: one connection that holds the partitions' locks and writes rows and positions together.

The order inside the one transaction of `write`:

    1. positions, from the offset they must have to the new one (compare and set: a second writer fails here)
    2. feature sets not yet known
    3. COPY of all rows, binary
    4. one row for each batch
    5. commit
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import psycopg
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from scorer.sink import copy_rows, schema
from scorer.sink.assemble import Batch, Position
from scorer.sink.errors import AuditBroken, SchemaMismatch, SinkError, StoreRefused, StoreUnavailable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COPY = f"COPY decisions ({', '.join(copy_rows.COLUMNS)}) FROM STDIN (FORMAT BINARY)"
# SQLSTATEs that time cures: connection, transaction rollback, resources, operator intervention, system error; a lock
# not to be had, and a server that is read only (25006: a standby during a failover).
_TRANSIENT = ("08", "40", "53", "57", "58", "55P03", "25006", "25P03")
_FEATURE_SETS_KNOWN_MAX = 1024


class Store:
    """One connection to the audit database. Every method raises StoreUnavailable when trying again later may help."""

    def __init__(self, url: str, topic: str) -> None:
        """Connects. Raises StoreUnavailable; SchemaMismatch when the database is not at this version's migration."""
        self._topic = topic
        self._feature_sets: dict[str, tuple[str, ...]] = {}
        with _postgres_errors():
            self._connection = schema.engine(url).connect()
        try:
            with self._transaction():
                revision = schema.current_revision(self._connection)
            if revision != schema.REVISION:
                raise SchemaMismatch(
                    f"the audit database is at migration {revision or 'none'}, this version needs {schema.REVISION}: "
                    f"run `fraud-scorer setup`"
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

    def lock(self, partitions: Sequence[int]) -> list[int]:
        """Takes the lock of every partition, held as long as the connection; returns those that another sink holds.

        All or none: when one is held elsewhere, none is kept.
        """
        with self._transaction() as connection:
            names = {p: f"fraud-scorer audit sink {self._topic}/{p}" for p in partitions}
            statement = sa.text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
            held = [p for p, name in names.items() if not connection.scalar(statement, {"name": name})]
            if held:
                connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
        return held

    def positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        """The position of each partition; one seen for the first time starts at 0."""
        table = schema.positions
        with self._transaction() as connection:
            found = connection.execute(sa.select(table).where(table.c.topic == self._topic)).all()
            positions = {p: Position() for p in partitions}
            positions |= {
                row.partition: Position(row.next_offset, row.shard, row.sequence, row.head)
                for row in found
                if row.partition in positions
            }
            new = positions.keys() - {row.partition for row in found}
            if new:
                rows = [{"topic": self._topic, "partition": p} | _position_row(positions[p]) for p in sorted(new)]
                connection.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)
        return positions

    def write(self, batches: Sequence[Batch]) -> None:
        """Rows, batch rows and positions of `batches` (in order, at least one) in one transaction.

        Raises AuditBroken, StoreRefused; StoreUnavailable: then only the positions in Postgres say what is committed.
        """
        moves: dict[int, tuple[Position, Position]] = {}
        for batch in batches:
            first, _ = moves.get(batch.partition, (batch.before, batch.before))
            moves[batch.partition] = (first, batch.after)
        known = dict(self._feature_sets)
        with self._transaction() as connection:
            for partition, (before, after) in moves.items():
                self._move(connection, partition, before, after)
            for batch in batches:
                self._feature_set(connection, known, batch.header.feature_fingerprint, batch.header.feature_names)
            driver = connection.connection.driver_connection
            if not isinstance(driver, psycopg.Connection):
                raise TypeError(f"the sink writes through psycopg, not {type(driver).__name__}")
            with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
                copy.write(copy_rows.HEADER)
                for batch in batches:
                    for header, rows in batch.chunks:
                        copy.write(copy_rows.rows_bytes(header, rows).data)
                copy.write(copy_rows.TRAILER)
            connection.execute(sa.insert(schema.batches), [_batch_row(self._topic, batch) for batch in batches])
        # Only now: what a transaction that failed had inserted is not known to the database.
        self._feature_sets = known if len(known) <= _FEATURE_SETS_KNOWN_MAX else {}

    def advance(self, moves: dict[int, tuple[Position, Position]]) -> None:
        """Moves positions over transaction markers, where there is nothing to write."""
        with self._transaction() as connection:
            for partition, (before, after) in moves.items():
                self._move(connection, partition, before, after)

    def _move(self, connection: sa.Connection, partition: int, before: Position, after: Position) -> None:
        table = schema.positions
        place = sa.and_(table.c.topic == self._topic, table.c.partition == partition)
        statement = sa.update(table).where(place, table.c.next_offset == before.next_offset)
        if connection.execute(statement.values(**_position_row(after))).rowcount != 1:
            raise SinkError(
                f"the position of {self._topic}/{partition} is no longer {before.next_offset}: another writer "
                f"moved it. Nothing was written; run one sink for a partition and start it again"
            )

    def _feature_set(
        self, connection: sa.Connection, known: dict[str, tuple[str, ...]], fingerprint: str, names: tuple[str, ...]
    ) -> None:
        if fingerprint not in known:
            table = schema.feature_sets
            row = {"fingerprint": fingerprint, "feature_names": list(names)}
            connection.execute(postgresql.insert(table).on_conflict_do_nothing(), row)
            stored = connection.scalar(sa.select(table.c.feature_names).where(table.c.fingerprint == fingerprint))
            known[fingerprint] = tuple(stored or ())
        if known[fingerprint] != names:
            raise AuditBroken(
                f"feature set {fingerprint} has other feature names in the database than in the audit record"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with _postgres_errors(), self._connection.begin():
            yield self._connection


def set_position(url: str, topic: str, partition: int, next_offset: int) -> None:
    """An operator's choice: the sink goes on at `next_offset`, whatever lies before it, with any batch as the next.

    Raises StoreUnavailable, SinkError when a sink holds the partition.
    """
    with Store(url, topic) as store:
        if store.lock([partition]):
            raise SinkError(f"a sink is working on {topic}/{partition}; stop it before moving its position")
        before = store.positions([partition])[partition]
        store.advance({partition: (before, Position(next_offset, head=None))})


def _position_row(position: Position) -> dict[str, object]:
    return {
        "next_offset": position.next_offset,
        "shard": position.shard,
        "sequence": position.sequence,
        "head": position.head,
    }


def _batch_row(topic: str, batch: Batch) -> dict[str, object]:
    bounds = [pc.min_max(rows.column("event_time_ms")).as_py() for _, rows in batch.chunks if rows.num_rows]
    return {
        "shard": batch.journal.shard,
        "sequence": batch.journal.sequence,
        "audit_topic": topic,
        "audit_partition": batch.partition,
        "audit_offset": batch.offset,
        "stream_time": None if batch.journal.stream_time_ms < 0 else _time(batch.journal.stream_time_ms),
        "event_time_min": _time(min(bound["min"] for bound in bounds)) if bounds else None,
        "event_time_max": _time(max(bound["max"] for bound in bounds)) if bounds else None,
        "decisions": batch.journal.decisions,
        "dead_letters": batch.journal.dead_letters,
        "bundle": batch.header.bundle,
        "threshold": batch.header.threshold,
        "feature_fingerprint": batch.header.feature_fingerprint,
        "digest": batch.journal.digest,
        "previous": batch.journal.previous,
        "head": batch.journal.head,
        "journal": json.loads(batch.header.journal),
    }


def _time(epoch_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=epoch_ms)


@contextmanager
def _postgres_errors() -> Iterator[None]:
    """The one place where errors of Postgres become ours. Messages carry codes and names, never a value of a row."""
    try:
        yield
    except (sa.exc.DBAPIError, psycopg.Error) as exc:
        origin = exc.orig if isinstance(exc, sa.exc.DBAPIError) else exc
        state = getattr(origin, "sqlstate", None)
        name = type(origin).__name__
        if state is None and isinstance(origin, psycopg.OperationalError | psycopg.InterfaceError):
            raise StoreUnavailable(f"Postgres does not answer ({name})") from exc
        if state is not None and state.startswith(_TRANSIENT):
            raise StoreUnavailable(f"Postgres cannot take rows now ({name}, SQLSTATE {state})") from exc
        if state is not None and state.startswith("28"):
            # Credentials are rotated while processes run: the file they come from may be right again in a moment.
            raise StoreUnavailable(f"Postgres refuses the login ({name}, SQLSTATE {state})") from exc
        table = getattr(getattr(origin, "diag", None), "table_name", None)
        constraint = getattr(getattr(origin, "diag", None), "constraint_name", None)
        raise StoreRefused(
            f"Postgres refuses the audit rows: {name}, SQLSTATE {state}, table {table}, constraint {constraint}"
        ) from exc
