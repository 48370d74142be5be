"""Transactions of a sink that overlap: committed in order, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import psycopg
import pytest

from scorer.local_services import Services
from scorer.sink.store import Store
from scorer.trail import audit_database
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.sinks import assert_equal_to, query, running, wait_for

_SINK = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fraud-scorer' "
STUCK = f"SELECT pid {_SINK} AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO batches%'"
WAITS_ITS_TURN = f"SELECT pid {_SINK} AND state = 'idle in transaction' AND query LIKE 'COPY decisions%'"


@pytest.fixture
def shard(services: Services, topics_prefix: str) -> Shard:
    """An empty topic."""
    topic = f"{topics_prefix}audit"
    make_topic(services.kafka.bootstrap_servers, topic)
    return Shard(services.kafka.bootstrap_servers, topic)


@pytest.fixture
def url(database: str) -> str:
    audit_database.migrate(database)
    return database


def test_a_transaction_is_not_committed_before_the_one_before_it(shard: Shard, url: str) -> None:
    """The first transaction stands before its commit and the second has copied its rows: nothing is in the tables.
    The first loses its connection: the second is rolled back with it, and in the end every row is there once."""
    for number in range(8):
        shard.write(rows(number, 500))
    with psycopg.connect(url) as setup:
        setup.execute("SELECT audit_day('2026-01-01')")  # to make the day needs the lock that is held below
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE batches IN SHARE MODE")
        with running(shard.bootstrap_servers, shard.topic, url, transaction_bytes_max=1, partitions=[0]) as sink:
            wait_for(lambda: query(url, STUCK) and query(url, WAITS_ITS_TURN), "two transactions under way")
            assert query(url, "SELECT count(*) FROM decisions") == [(0,)]
            assert query(url, "SELECT next_offset FROM positions") == [(0,)]
            query(url, STUCK.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
            wait_for(lambda: sink.sink._metrics.errors.labels("postgres")._value.get() >= 1, "the sink to notice")
            assert query(url, "SELECT count(*) FROM decisions") == [(0,)]
            holder.rollback()
            wait_for(sink.sink.drained, "the sink to drain")
        assert sink.error is None
    assert_equal_to(url, shard)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_a_refused_batch_holds_up_nothing_and_keeps_its_place(shard: Shard, url: str, lanes: int) -> None:
    """Batches that Postgres refuses go to quarantine while others are under way beside them; all others are written."""
    # 9,000 characters that no compression shortens: more than an index entry holds.
    endless = "".join(hashlib.sha512(str(i).encode()).hexdigest() for i in range(70))
    for number in range(12):
        given = rows(number, 50)
        shard.write(replace(given, payment_id=[endless, *given.payment_id[1:]]) if number in (1, 2, 7) else given)
    for number in (1, 2, 7):
        del shard.written[number], shard.records[number]
    with running(shard.bootstrap_servers, shard.topic, url, transaction_bytes_max=1, lanes=lanes) as sink:
        wait_for(sink.sink.drained, "the sink to drain")
    assert sink.error is None
    assert_equal_to(url, shard)
    aside = query(url, "SELECT kind, sequence FROM set_aside ORDER BY sequence")
    assert aside == [("refused", 1), ("refused", 2), ("refused", 7)]


def test_no_sink_begins_while_a_connection_of_another_may_still_commit(shard: Shard, url: str) -> None:
    """The first connection of a sink is gone, a further one holds its locks: the next sink waits for their end."""
    shard.write(rows(0, 50))
    with Store(url, shard.topic, lane=1) as left_over:
        assert left_over.lock([0]) == []
        with running(shard.bootstrap_servers, shard.topic, url, partitions=[0]) as sink:
            waits = sink.sink._metrics.errors.labels("waiting")._value
            wait_for(lambda: waits.get() >= 1, "the sink to be refused")
            assert not sink.sink.ready()
            left_over.unlock()
            wait_for(sink.sink.drained, "the sink to go on")
    assert sink.error is None
    assert_equal_to(url, shard)
