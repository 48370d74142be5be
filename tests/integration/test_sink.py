"""The audit sink on real Kafka and Postgres: every decision once, in whole batches, whatever is killed."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg import sql

from schemas.audit import digest
from scorer import assets
from scorer.services import Services
from scorer.sink import AuditSink, SinkError, read_batch, schema, set_position
from scorer.sink.errors import AuditBroken, MissingRange, PoisonChunk, SchemaMismatch
from tests.integration.audit_batches import CONTEXT, Shard, make_topic, rows

DEADLINE_S = 60.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Waits for what other processes do; the deadline only bounds a failure."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S:.0f} s for {what}"
        time.sleep(0.02)


class Running:
    """A sink in a thread of its own."""

    def __init__(self, servers: str, topic: str, url: str, **settings: object) -> None:
        self.sink = AuditSink(bootstrap_servers=servers, client_config={}, topic=topic, postgres_url=url, **settings)
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


@pytest.fixture
def servers(services: Services) -> str:
    return services.kafka.bootstrap_servers


@pytest.fixture
def topic(servers: str, topics_prefix: str) -> str:
    name = f"{topics_prefix}audit"
    make_topic(servers, name)
    return name


@pytest.fixture
def migrated(database: str) -> str:
    schema.migrate(database)
    return database


def query(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()


def assert_equal_to(url: str, *shards: Shard) -> None:
    """Postgres holds exactly the batches that the shards wrote, and each digest can be made again from its rows."""
    expected = sum(len(columns) for shard in shards for columns in shard.written.values())
    assert query(url, "SELECT count(*) FROM decisions") == [(expected,)]
    assert query(url, "SELECT count(*) FROM batches") == [(sum(len(shard.written) for shard in shards),)]
    with schema.engine(url).connect() as connection:
        for shard in shards:
            for sequence, columns in shard.written.items():
                context, back = read_batch(connection, shard.number, sequence)
                assert context == CONTEXT
                assert list(back.payment_id) == list(columns.payment_id)
                assert digest(back, context) == shard.records[sequence].digest
            heads = sa.select(schema.batches.c.sequence, schema.batches.c.head).where(
                schema.batches.c.shard == shard.number
            )
            assert dict(connection.execute(heads).all()) == {s: r.head for s, r in shard.records.items()}


def test_migrations_go_up_and_down(database: str) -> None:
    """Up makes exactly the tables the code knows, every one and every column with a comment; down leaves nothing."""
    schema.migrate(database)
    schema.migrate(database)
    with schema.engine(database).connect() as connection:
        assert schema.current_revision(connection) == schema.REVISION
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, _: name != "decisions_default" or kind != "table"}
        )
        differences = [d for d in compare_metadata(context, schema.metadata) if "comment" not in str(d[0])]
        assert differences == []
    assert ScriptDirectory(str(assets.path("migrations"))).get_current_head() == schema.REVISION
    uncommented = query(
        database,
        """
        SELECT c.relname, a.attname FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND c.relname NOT IN ('alembic_version', 'decisions_default')
          AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid, 'pg_class') IS NULL)
        """,
    )
    assert uncommented == []
    schema.downgrade(database)
    left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic%'"
    assert query(database, left) == []
    schema.migrate(database)


def test_rows_and_positions_equal_what_was_produced(servers: str, topics_prefix: str, migrated: str) -> None:
    """Two shards, batches of any size, aborted transactions between: Postgres holds the committed ones, bit by bit."""
    topic = f"{topics_prefix}audit"
    make_topic(servers, topic, 2)
    shards = [Shard(servers, topic, 0), Shard(servers, topic, 1)]
    for number, size in enumerate((1, 300, 0, 5000, 3, 7000)):
        for shard in shards:
            shard.write(rows(10 * number + shard.number, size))
            shard.send(shard.chunks(rows(99, 50))[0], commit=False)
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
        assert sink.sink.ready()
        assert sum(sink.sink.lag().values()) == 0
        shards[0].write(rows(1000, 10))
        assert not sink.sink.drained() or query(migrated, "SELECT 1 FROM batches WHERE sequence = 6")
        wait_for(sink.sink.drained, "the sink to drain again")
    assert sink.error is None
    assert not sink.sink.ready()
    assert_equal_to(migrated, *shards)
    # On stopping, positions stand behind the last transaction marker: the end of the partition.
    ends = dict(query(migrated, "SELECT partition, next_offset FROM positions"))
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the second sink")
    assert dict(query(migrated, "SELECT partition, next_offset FROM positions")) == ends
    assert_equal_to(migrated, *shards)


@contextmanager
def sink_process(servers: str, topic: str, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A sink with small transactions as a process, killed by SIGKILL at the end of the block."""
    command = [sys.executable, str(Path(__file__).with_name("sink_process.py")), servers, topic, url, "40000"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_killed_in_the_middle_nothing_is_missing_or_doubled(servers: str, topic: str, migrated: str) -> None:
    """SIGKILL while rows are written and between COPY and commit, then one run to the end: every row once."""
    shard = Shard(servers, topic)
    for number in range(60):
        shard.write(rows(number, 500))
    count = "SELECT count(*) FROM batches"
    state = "SELECT (SELECT count(*) FROM decisions), (SELECT count(*) FROM batches), max(next_offset) FROM positions"
    stalled = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fraud-scorer' "
        "AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO batches%'"
    )
    for _ in range(2):
        before = query(migrated, state)
        with psycopg.connect(migrated) as holder:
            holder.execute("LOCK TABLE batches IN SHARE MODE")  # rows of batches wait, the rows of decisions are copied
            with sink_process(servers, topic, migrated):
                wait_for(lambda: query(migrated, stalled), "the sink to stand between COPY and commit")
        wait_for(lambda: not query(migrated, stalled), "the dead sink's transaction to end")
        if before != [(0, 0, None)]:
            assert query(migrated, state) == before
        assert query(migrated, "SELECT count(*) FROM decisions") == [(before[0][0],)]
        with sink_process(servers, topic, migrated):
            wait_for(lambda: query(migrated, count)[0][0] > before[0][1], "the sink to write")  # noqa: B023
        # Whole batches only, whenever one looks.
        assert query(migrated, "SELECT sequence FROM decisions GROUP BY sequence HAVING count(*) <> 500") == []
    assert 0 < query(migrated, count)[0][0] < 60, "the kills must have met a sink at work"
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the rest")
    assert sink.error is None
    assert_equal_to(migrated, shard)


def test_postgres_restarted_in_the_middle(servers: str, topic: str, services: Services) -> None:
    """Postgres stopped, killed and started while rows are written: the sink waits, not ready, and loses nothing."""
    name = f"test_{secrets.token_hex(4)}"
    url = services.postgres.url.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(services.postgres.url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        schema.migrate(url)
        shard = Shard(servers, topic)
        for number in range(40):
            shard.write(rows(number, 500))
        with running(servers, topic, url, transaction_bytes_max=40_000) as sink:
            wait_for(lambda: query(url, "SELECT count(*) FROM batches")[0][0] > 3, "the first rows")
            services.postgres.stop()
            wait_for(lambda: not sink.sink.ready(), "the sink to notice")
            shard.write(rows(100, 500))
            assert not sink.sink.drained()
            services.postgres.start()
            seen = query(url, "SELECT count(*) FROM batches")[0][0]
            wait_for(lambda: query(url, "SELECT count(*) FROM batches")[0][0] > seen, "rows after the restart")
            services.postgres.kill()
            services.postgres.start()
            wait_for(sink.sink.drained, "the sink to drain")
        assert sink.error is None
        assert_equal_to(url, shard)
    finally:
        with psycopg.connect(services.postgres.url, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_connection_cut_inside_the_transaction(servers: str, topic: str, migrated: str) -> None:
    """Backends of the sink terminated again and again while it writes: every row once."""
    shard = Shard(servers, topic)
    for number in range(40):
        shard.write(rows(number, 500))
    with (
        running(servers, topic, migrated, transaction_bytes_max=40_000) as sink,
        psycopg.connect(migrated, autocommit=True) as killer,
    ):
        cuts = 0

        def cut_thrice() -> bool:
            nonlocal cuts
            found = killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'fraud-scorer' AND query LIKE 'COPY%' AND state = 'active'"
            ).fetchall()
            cuts += len(found)
            return cuts >= 3 or sink.sink.drained()

        wait_for(cut_thrice, "three cuts")
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert cuts > 0
    assert_equal_to(migrated, shard)


def test_second_sink_waits(servers: str, topic: str, migrated: str) -> None:
    """Two sinks on one partition: the second is not ready until the first has gone, and then goes on."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 100))
    with running(servers, topic, migrated) as first:
        wait_for(first.sink.drained, "the first sink")
        with running(servers, topic, migrated) as second:
            waits = second.sink._metrics.errors.labels("waiting")._value
            wait_for(lambda: waits.get() >= 1, "the second sink to be refused")
            assert not second.sink.ready()
            first.finish()
            shard.write(rows(2, 100))
            wait_for(second.sink.drained, "the second sink to take over")
    assert (first.error, second.error) == (None, None)
    assert_equal_to(migrated, shard)


@pytest.mark.parametrize("value", [None, b"", b"not arrow"], ids=["null", "empty", "junk"])
def test_poison_stops_the_sink(servers: str, topic: str, migrated: str, value: bytes | None) -> None:
    """A record that is no audit chunk: what came before it is committed, nothing after it, and the error says where."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    shard.write(rows(2, 20))
    good = dict(shard.written), dict(shard.records)
    shard.send([value])
    shard.write(rows(3, 30))
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, PoisonChunk)
    assert (error.topic, error.partition) == (topic, 0)
    shard.written, shard.records = good
    assert_equal_to(migrated, shard)
    assert query(migrated, f"SELECT next_offset <= {error.offset} FROM positions") == [(True,)]
    # Started again it stops at the same place; moved past it by an operator it goes on.
    assert str(Running(servers, topic, migrated).fails()) == str(error)


def test_operator_moves_the_position(servers: str, topic: str, migrated: str) -> None:
    """After poison, set_position past it lets the sink go on with the batches that follow."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    shard.send([b"junk"])
    shard.write(rows(3, 30))
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, PoisonChunk)
    set_position(migrated, topic, 0, error.offset + 1)
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the rest")
    assert_equal_to(migrated, shard)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"digest": "0" * 64}, "digest"),
        ({"previous": "1" * 64}, "record before it"),
        ({"sequence": 5}, "missing between"),
        ({"decisions": 11}, "number of decisions"),
        ({"bundle": "other"}, "bundle"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_batch_that_contradicts_its_journal_stops_the_sink(
    servers: str, topic: str, migrated: str, changes: dict[str, object], named: str
) -> None:
    """A digest, chain, count or bundle that does not hold is never written."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    good = dict(shard.written), dict(shard.records)
    shard.write(rows(2, 10), **changes)
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, AuditBroken)
    assert named in str(error)
    assert error.exit_code == 3
    shard.written, shard.records = good
    assert_equal_to(migrated, shard)


def test_records_removed_before_they_were_read(servers: str, topic: str, migrated: str) -> None:
    """A topic whose start is gone stops the sink with the missing range; an operator may accept it."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    shard.write(rows(2, 10))
    low = TopicPartition(topic, 0, 2)
    admin = AdminClient({"bootstrap.servers": servers})  # kept: its futures end only while it lives
    for future in admin.delete_records([low]).values():
        future.result(30)
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, MissingRange)
    assert f"{topic}/0 from 0 up to 2" in str(error)
    set_position(migrated, topic, 0, 2)
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the rest")
    del shard.written[0], shard.records[0]
    assert_equal_to(migrated, shard)


def test_database_without_tables_is_refused(servers: str, topic: str, database: str) -> None:
    """A database that was never migrated stops the sink with the command that helps."""
    error = Running(servers, topic, database).fails()
    assert isinstance(error, SchemaMismatch)
    assert "setup" in str(error)


def test_broker_restarted_in_the_middle(servers: str, topic: str, migrated: str, services: Services) -> None:
    """Kafka stopped and started again: the sink is not ready meanwhile and goes on by itself."""
    shard = Shard(servers, topic)
    for number in range(5):
        shard.write(rows(number, 100))
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the first rows")
        services.kafka.stop()
        wait_for(lambda: not sink.sink.ready(), "the sink to notice")
        assert not sink.sink.drained()
        services.kafka.start()
        shard.write(rows(100, 100))
        wait_for(sink.sink.drained, "the rows after the restart")
    assert sink.error is None
    assert_equal_to(migrated, shard)
