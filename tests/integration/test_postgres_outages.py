"""FAULTS row 36: what an operator's Postgres does to a sink. It waits, shows the reason that Postgres gave, goes on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from scorer.local_services import Services
from scorer.runtime.settings import PREFIX, load
from scorer.sink import AuditSink
from scorer.sink.store import Store, set_position
from scorer.trail import audit_database
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.sinks import Running, assert_equal_to, query, running, wait_for
from tests.integration.transaction_pooler import transaction_pooler


@pytest.fixture
def shard(services: Services, topics_prefix: str) -> Shard:
    """A topic with four batches of 200 rows."""
    topic = f"{topics_prefix}audit"
    make_topic(services.kafka.bootstrap_servers, topic)
    shard = Shard(services.kafka.bootstrap_servers, topic)
    for number in range(4):
        shard.write(rows(number, 200))
    return shard


@pytest.fixture
def url(database: str) -> str:
    audit_database.migrate(database)
    return database


@pytest.fixture
def writer(url: str) -> Iterator[str]:
    """A login of the writer role, as an operator gives the sink one."""
    name = f"writer_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'first' IN ROLE fraud_scorer_writer").format(_id(name)))
        try:
            yield name
        finally:
            owner.execute(sql.SQL("DROP ROLE {}").format(_id(name)))


def _id(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def _as(url: str, role: str, password: str = "first") -> str:
    return make_conninfo(url, user=role, password=password)


def _reason(sink: Running, text: str) -> None:
    wait_for(lambda: text in sink.sink.readiness()[1], f"readiness to say {text!r}")
    assert not sink.sink.ready()


def test_the_reason_of_a_connection_limit_is_shown(shard: Shard, url: str, writer: str) -> None:
    """The role's connections are used up: readiness says so in the words of Postgres, and the sink goes on when one
    is free."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 1").format(_id(writer)))
    with (
        psycopg.connect(_as(url, writer)) as taken,
        running(shard.bootstrap_servers, shard.topic, _as(url, writer), partitions=[0]) as sink,
    ):
        _reason(sink, f'too many connections for role "{writer}"')
        taken.close()
        wait_for(sink.sink.drained, "the sink to go on")
        assert sink.sink.readiness() == (True, "writing")
    assert sink.error is None
    assert_equal_to(url, shard)


def test_a_read_only_server_is_waited_for(shard: Shard, url: str, writer: str) -> None:
    """The server turns read only under a sink that writes, as one does that a failover has demoted: not ready with
    that reason, and every row once when it takes rows again."""
    read_only = sql.SQL("ALTER ROLE {} SET default_transaction_read_only = {}")
    with (
        psycopg.connect(url, autocommit=True) as owner,
        running(shard.bootstrap_servers, shard.topic, _as(url, writer), partitions=[0]) as sink,
    ):
        wait_for(sink.sink.drained, "the first rows")
        owner.execute(read_only.format(_id(writer), sql.Literal("on")))
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (writer,))
        shard.write(rows(100, 200))
        _reason(sink, "read only")
        owner.execute(read_only.format(_id(writer), sql.Literal("off")))
        wait_for(sink.sink.drained, "the sink to go on")
    assert sink.error is None
    assert_equal_to(url, shard)


def test_a_statement_timeout_makes_transactions_smaller(shard: Shard, url: str, writer: str) -> None:
    """A statement is ended by the time-out that the operator gave the role: the reason is shown, what follows is tried
    in smaller transactions, and the sink goes on when statements are fast enough."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(sql.SQL("ALTER ROLE {} SET statement_timeout = '400ms'").format(_id(writer)))
        owner.execute("SELECT audit_day('2026-01-01')")
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE decisions IN SHARE MODE")
        with running(shard.bootstrap_servers, shard.topic, _as(url, writer), partitions=[0]) as sink:
            _reason(sink, "canceling statement due to statement timeout")
            assert sink.sink._transaction_bytes < sink.sink._transaction_bytes_max
            holder.rollback()
            # No statement of a busy machine is too slow from here on: of the next session, for the role is asked then.
            with psycopg.connect(url, autocommit=True) as owner:
                owner.execute(sql.SQL("ALTER ROLE {} RESET statement_timeout").format(_id(writer)))
                owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (writer,))
            wait_for(sink.sink.drained, "the sink to go on")
    assert sink.error is None
    assert_equal_to(url, shard)


@contextmanager
def _passwords_are_asked(url: str, role: str) -> Iterator[None]:
    """The server asks this role for its password, whatever it does with others."""
    with psycopg.connect(url, autocommit=True) as owner:
        (path,) = owner.execute("SHOW hba_file").fetchone() or ("",)
        (before,) = owner.execute("SELECT pg_read_file(%s)", (path,)).fetchone() or ("",)

        def write(lines: list[str]) -> None:
            values = sql.SQL(", ").join(sql.SQL("({})").format(sql.Literal(line)) for line in lines if line)
            owner.execute(sql.SQL("COPY (VALUES {}) TO {}").format(values, sql.Literal(path)))
            owner.execute("SELECT pg_reload_conf()")

        write([f'host all "{role}" all scram-sha-256', *before.splitlines()])
        try:
            yield
        finally:
            write(before.splitlines())


def test_a_rotated_password_is_read_from_its_file_again(
    shard: Shard, url: str, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password of the role is changed and its connections are ended: the sink is refused, shows that, and goes on
    by itself once the file holds the new one."""
    secret = tmp_path / "password"
    secret.write_text("first\n")
    address = make_conninfo(url, user=writer)
    monkeypatch.setenv(f"{PREFIX}POSTGRES__PASSWORD_FILE", str(secret))
    settings = load(
        kafka={"bootstrap_servers": shard.bootstrap_servers, "topic_prefix": shard.topic.removesuffix("audit")},
        postgres={"url": address},
    )
    with _passwords_are_asked(url, writer), psycopg.connect(url, autocommit=True) as owner:
        sink = Running.of(AuditSink(settings, partitions=[0]))
        try:
            wait_for(sink.sink.drained, "the first rows")
            owner.execute(sql.SQL("ALTER ROLE {} PASSWORD 'second'").format(_id(writer)))
            owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (writer,))
            _reason(sink, f'password authentication failed for user "{writer}"')
            shard.write(rows(100, 200))
            secret.unlink()
            _reason(sink, "the file cannot be read")
            secret.write_text("second\n")
            wait_for(sink.sink.drained, "the sink to go on")
        finally:
            sink.finish()
    assert sink.error is None
    assert_equal_to(url, shard)


def test_behind_a_pooler_of_transactions_nothing_is_lost_doubled_or_locked_for_ever(shard: Shard, url: str) -> None:
    """Each transaction runs on another server connection: one sink writes, a second one waits or shares without an
    error, an operator may move the position, and no lock of a sink is left on the pooler's connections."""
    with transaction_pooler(url) as (pooler, through):
        with running(
            shard.bootstrap_servers, shard.topic, through, transaction_bytes_max=20_000, partitions=[0]
        ) as one:
            with running(
                shard.bootstrap_servers, shard.topic, through, transaction_bytes_max=20_000, partitions=[0]
            ) as two:
                for number in range(10, 20):
                    shard.write(rows(number, 200))
                wait_for(lambda: query(url, "SELECT count(*) FROM batches") == [(14,)], "all rows")
            wait_for(one.sink.drained, "the sink to drain")
        assert (one.error, two.error) == (None, None)
        assert pooler.transactions > 14
        assert_equal_to(url, shard)
        locks = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory' "
        assert query(url, locks + "AND datname = current_database()") == [(0,)]
        set_position(through, shard.topic, 0, query(url, "SELECT next_offset FROM positions")[0][0])
        with Store(url, shard.topic) as direct:
            assert direct.lock([0]) == []
            with Store(through, shard.topic) as pooled:
                assert pooled.lock([0]) == [0]
