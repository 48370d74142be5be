"""Audit sinks in threads, for the tests that break what they stand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import psycopg
import sqlalchemy as sa
from psycopg import sql

from schemas.audit_record import digest
from scorer.runtime.settings import Settings
from scorer.sink import AuditSink, SinkError
from scorer.trail import audit_database, audit_tables
from tests.integration.audit_batches import CONTEXT, Shard
from tests.integration.running import test_settings
from tests.integration.running import wait_for as wait_within
from tests.integration.stored_batch import read_batch

DEADLINE_S = 120.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Waits for what other processes do; the deadline only bounds a failure."""
    wait_within(condition, DEADLINE_S, what, every_s=0.02)


def slowed(url: str, table: str, seconds: float) -> None:
    """Have each statement that writes to a table take so long, so that whoever looks meets a sink at work."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END'"
        )
        owner.execute(
            sql.SQL("CREATE TRIGGER pause BEFORE INSERT ON {} FOR EACH STATEMENT EXECUTE FUNCTION pause()").format(
                sql.Identifier(table)
            )
        )


def sink_settings(servers: str, topic: str, url: str) -> Settings:
    """Settings of a sink that writes `topic`, some prefix and "audit", to the database at `url`."""
    return test_settings(servers, topic.removesuffix("audit"), postgres={"url": url})


class Running:
    """A sink in a thread of its own."""

    def __init__(self, servers: str, topic: str, url: str, **settings: object) -> None:
        self._start(AuditSink(sink_settings(servers, topic, url), **settings))

    @classmethod
    def of(cls, sink: AuditSink) -> Self:
        """A given sink, started."""
        self = cls.__new__(cls)
        self._start(sink)
        return self

    def _start(self, sink: AuditSink) -> None:
        self.sink = sink
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.sink.run(self.stop)
        except SinkError as exc:
            self.error = exc

    def finish(self) -> None:
        self.stop.set()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()

    def fails(self) -> BaseException:
        """The error that ended it."""
        self.thread.join(DEADLINE_S)
        assert self.error is not None
        return self.error


@contextmanager
def running(servers: str, topic: str, url: str, **settings: object) -> Iterator[Running]:
    sink = Running(servers, topic, url, **settings)
    try:
        yield sink
    finally:
        sink.finish()


def query(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()


def assert_equal_to(url: str, *shards: Shard) -> None:
    """Postgres holds exactly the batches that the shards wrote, and each digest can be made again from its rows."""
    expected = sum(len(columns) for shard in shards for columns in shard.written.values())
    assert query(url, "SELECT count(*) FROM decisions") == [(expected,)]
    assert query(url, "SELECT count(*) FROM batches") == [(sum(len(shard.written) for shard in shards),)]
    with audit_database.engine(url).connect() as connection:
        for shard in shards:
            for sequence, columns in shard.written.items():
                context, back = read_batch(connection, shard.number, sequence)
                assert context == CONTEXT
                assert list(back.payment_id) == list(columns.payment_id)
                assert digest(back, context) == shard.records[sequence].digest
            heads = sa.select(audit_tables.batches.c.sequence, audit_tables.batches.c.head).where(
                audit_tables.batches.c.shard == shard.number
            )
            assert dict(connection.execute(heads).all()) == {s: r.head for s, r in shard.records.items()}
