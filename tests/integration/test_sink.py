"""The audit sink on real Kafka and Postgres: every decision once, in whole batches, whatever is killed."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg import sql

from scorer.local_services import Services
from scorer.runtime import assets
from scorer.sink import set_position
from scorer.sink.sink_errors import AuditBroken, MissingRange, SchemaMismatch
from scorer.trail import audit_database, audit_tables
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.sinks import Running, assert_equal_to, query, running, slowed, wait_for


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
    audit_database.migrate(database)
    return database


def test_migrations_go_up_and_down(database: str) -> None:
    """Up makes exactly the tables the code knows, every one and every column with a comment; down leaves nothing."""
    audit_database.migrate(database)
    audit_database.migrate(database)
    with audit_database.engine(database).connect() as connection:
        assert audit_database.current_revision(connection) == audit_database.REVISION
        context = MigrationContext.configure(connection)
        differences = [d for d in compare_metadata(context, audit_tables.metadata) if "comment" not in str(d[0])]
        assert differences == []
    assert ScriptDirectory(str(assets.path("migrations"))).get_current_head() == audit_database.REVISION
    uncommented = query(
        database,
        """
        SELECT c.relname, a.attname FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
          AND c.relname <> 'alembic_version'
          AND ((col_description(c.oid, a.attnum) IS NULL AND c.relkind <> 'v')
               OR obj_description(c.oid, 'pg_class') IS NULL)
        """,
    )
    assert uncommented == []
    audit_database.downgrade(database)
    left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic%'"
    assert query(database, left) == []
    audit_database.migrate(database)


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
    with psycopg.connect(migrated) as setup:
        setup.execute("SELECT audit_day('2026-01-01')")  # to make the day needs the lock that is held below
    slowed(migrated, "decisions", 0.1)
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


def test_a_database_restored_from_a_backup_catches_up(
    servers: str, topic: str, migrated: str, services: Services
) -> None:
    """A copy of the database as it was some time ago: a sink that is started on it writes what came after, once, in the
    chain's order, though another sink had written all of it to the database that was lost."""
    shard = Shard(servers, topic)
    with psycopg.connect(services.postgres.url, autocommit=True) as server:
        backup = sql.Identifier(f"test_{secrets.token_hex(4)}")
        for number in range(12):
            if number == 6:
                server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(backup, _database_of(migrated)))
            shard.write(rows(number, 200))
            if number in (5, 11):
                with running(servers, topic, migrated) as sink:
                    wait_for(sink.sink.drained, "the batches so far")
        try:
            restored = migrated.rsplit("/", 1)[0] + "/" + backup.as_string().strip('"')
            assert query(restored, "SELECT count(*) FROM batches") == [(6,)]
            with running(servers, topic, restored) as sink:
                wait_for(sink.sink.drained, "what came after the backup")
            assert sink.error is None
            assert_equal_to(restored, shard)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(backup))


def _database_of(url: str) -> sql.Identifier:
    return sql.Identifier(url.rsplit("/", 1)[1])


def test_postgres_restarted_in_the_middle(servers: str, topic: str, services: Services) -> None:
    """Postgres stopped, killed and started while rows are written: the sink waits, not ready, and loses nothing."""
    name = f"test_{secrets.token_hex(4)}"
    url = services.postgres.url.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(services.postgres.url, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        audit_database.migrate(url)
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
            wait_for(
                lambda: query(url, "SELECT count(*) FROM batches")[0][0] > seen or sink.sink.drained(),
                "rows after the restart",
            )
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
    slowed(migrated, "decisions", 0.1)
    with (
        running(servers, topic, migrated, transaction_bytes_max=40_000) as sink,
        psycopg.connect(migrated, autocommit=True) as killer,
    ):
        cuts = 0

        def cut_thrice() -> bool:
            nonlocal cuts
            found = killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'fraud-scorer' AND query LIKE 'COPY%' AND state <> 'idle'"
            ).fetchall()
            cuts += len(found)
            return cuts >= 3 or sink.sink.drained()

        wait_for(cut_thrice, "three cuts")
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert cuts > 0
    assert_equal_to(migrated, shard)


def test_partitions_are_shared_out(servers: str, topics_prefix: str, migrated: str) -> None:
    """Two sinks share two shards; when one leaves, the other writes both. A sink too many stands by, ready."""
    topic = f"{topics_prefix}audit"
    make_topic(servers, topic, 2)
    shards = [Shard(servers, topic, 0), Shard(servers, topic, 1)]

    def write(seed: int) -> None:
        for shard in shards:
            shard.write(rows(seed + shard.number, 100))

    write(0)
    with running(servers, topic, migrated) as first:
        wait_for(lambda: len(first.sink.lag()) == 2 and first.sink.drained(), "the first sink")
        with running(servers, topic, migrated) as second, running(servers, topic, migrated) as third:
            sinks = (first.sink, second.sink, third.sink)
            wait_for(
                lambda: sorted(len(sink.lag()) for sink in sinks) == [0, 1, 1] and all(s.ready() for s in sinks),
                "the partitions to be shared out",
            )
            write(10)
            wait_for(lambda: all(sink.drained() for sink in sinks if sink.lag()), "both to drain")
            first.finish()
            second.finish()
            write(20)
            wait_for(lambda: len(third.sink.lag()) == 2 and third.sink.drained(), "the third to take over")
    assert [sink.error for sink in (first, second, third)] == [None] * 3
    assert_equal_to(migrated, *shards)


def test_two_sinks_on_one_partition(servers: str, topic: str, migrated: str) -> None:
    """Sinks started for the same partition: the second is not ready until the first has gone, and then goes on."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 100))
    with running(servers, topic, migrated, partitions=[0]) as first:
        wait_for(first.sink.drained, "the first sink")
        with running(servers, topic, migrated, partitions=[0]) as second:
            waits = second.sink._metrics.errors.labels("waiting")._value
            wait_for(lambda: waits.get() >= 1, "the second sink to be refused")
            assert not second.sink.ready()
            first.finish()
            shard.write(rows(2, 100))
            wait_for(second.sink.drained, "the second sink to take over")
    assert (first.error, second.error) == (None, None)
    assert_equal_to(migrated, shard)


def set_aside(url: str) -> list[tuple]:
    return query(url, 'SELECT "offset", kind, shard, sequence, value FROM set_aside ORDER BY "offset"')


@pytest.mark.parametrize("value", [None, b"", b"not arrow"], ids=["null", "empty", "junk"])
def test_poison_is_set_aside_and_the_sink_goes_on(servers: str, topic: str, migrated: str, value: bytes | None) -> None:
    """A record that is no audit chunk is kept in set_aside and counted; every batch around it is written."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    shard.send([value])
    shard.write(rows(3, 30))
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
        assert sink.sink._metrics.set_aside.labels("unreadable")._value.get() == 1
    assert sink.error is None
    assert_equal_to(migrated, shard)
    assert [(kind, raw) for _, kind, _, _, raw in set_aside(migrated)] == [("unreadable", value)]


def test_poison_between_chunks(servers: str, topic: str, migrated: str) -> None:
    """Junk between the chunks of a batch does not cost the batch; a batch cut short is set aside, the next written."""
    shard = Shard(servers, topic)
    first, record = shard.chunks(rows(1, 20_000))
    assert len(first) > 2
    shard.send([first[0], b"junk", *first[1:]])
    shard.sequence, shard.head = 0, record.head
    shard.written[0], shard.records[0] = rows(1, 20_000), record
    second, lost = shard.chunks(rows(2, 20_000))
    shard.send(second[:-1])  # without its last chunk
    shard.sequence, shard.head = 1, lost.head
    shard.write(rows(3, 10))
    for _ in range(2):  # and again from the positions
        with running(servers, topic, migrated, transaction_bytes_max=1) as sink:
            wait_for(sink.sink.drained, "the sink to drain")
        assert sink.error is None
        assert_equal_to(migrated, shard)
        kinds = [(kind, sequence) for _, kind, _, sequence, _ in set_aside(migrated)]
        assert kinds == [("unreadable", None), *[("incomplete", 1)] * (len(second) - 1)]


@pytest.mark.parametrize(
    "changes",
    [{"digest": "0" * 64}, {"previous": "1" * 64}, {"decisions": 11}, {"bundle": "other"}, {"stream_time_ms": 2**60}],
    ids=lambda value: next(iter(value)),
)
def test_batch_that_contradicts_its_journal_is_set_aside(
    servers: str, topic: str, migrated: str, changes: dict[str, object]
) -> None:
    """A digest, chain, count or bundle that does not hold is never written as decisions; later batches are."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    shard.write(rows(2, 10), **changes)
    shard.write(rows(3, 10))
    del shard.written[1], shard.records[1]
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert_equal_to(migrated, shard)
    assert [row[1:4] for row in set_aside(migrated)] == [("contradiction", 0, 1)]


def test_a_repeated_or_forged_batch_is_set_aside(servers: str, topic: str, migrated: str) -> None:
    """A batch sent again, and one from another writer, go to quarantine; the true chain goes on without a gap."""
    shard = Shard(servers, topic)
    chunks, record = shard.chunks(rows(1, 10))
    shard.send(chunks)
    shard.send(chunks)
    shard.sequence, shard.head = 0, record.head
    shard.written[0], shard.records[0] = rows(1, 10), record
    shard.send(shard.chunks(rows(5, 10), previous="2" * 64)[0])
    shard.write(rows(2, 10))
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert_equal_to(migrated, shard)
    assert [row[3] for row in set_aside(migrated)] == [0, 1]


def test_a_batch_lost_on_the_topic_stops_the_sink(servers: str, topic: str, migrated: str) -> None:
    """Batches that are missing without having been set aside are lost: the sink stops with exit code 3."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    good = dict(shard.written), dict(shard.records)
    shard.write(rows(2, 10), sequence=5)
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, AuditBroken)
    assert "missing between" in str(error)
    assert error.exit_code == 3
    shard.written, shard.records = good
    assert_equal_to(migrated, shard)


@pytest.mark.parametrize("poison", ["sent again", "of another shard"])
def test_what_is_not_the_next_batch_hides_no_loss(servers: str, topic: str, migrated: str, poison: str) -> None:
    """A batch that was written before, or one of another shard, goes to quarantine; a loss behind it stops the sink."""
    shard = Shard(servers, topic)
    first, record = shard.chunks(rows(1, 10))
    shard.send(first)
    shard.sequence, shard.head = 0, record.head
    shard.written[0], shard.records[0] = rows(1, 10), record
    shard.write(rows(2, 10))
    if poison == "of another shard":
        shard.number = 7
        first, _ = shard.chunks(rows(3, 10))
        shard.number = 0
    shard.send(first)
    good = dict(shard.written), dict(shard.records)
    shard.write(rows(4, 10), sequence=5)
    error = Running(servers, topic, migrated).fails()
    assert isinstance(error, AuditBroken)
    assert "missing between" in str(error)
    shard.written, shard.records = good
    assert_equal_to(migrated, shard)
    assert [row[1] for row in set_aside(migrated)] == ["contradiction"]


def test_rows_that_postgres_refuses_are_set_aside(servers: str, topic: str, migrated: str) -> None:
    """A batch whose rows cannot be stored is set aside alone; those in the same transaction are written."""
    shard = Shard(servers, topic)
    shard.write(rows(1, 10))
    # 9,000 characters that no compression shortens: more than an index entry holds.
    endless = "".join(hashlib.sha512(str(i).encode()).hexdigest() for i in range(70))
    shard.write(replace(rows(2, 3), payment_id=["a", endless, "b"]))
    shard.write(rows(3, 10))
    del shard.written[1], shard.records[1]
    with running(servers, topic, migrated) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert_equal_to(migrated, shard)
    assert [row[1:4] for row in set_aside(migrated)] == [("refused", 0, 1)]


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
