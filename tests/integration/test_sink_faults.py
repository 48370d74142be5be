"""The sink when what lies between it and its rows fails: the network inside a COPY, an address, a disk, a lock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from scorer.local_services import Services
from scorer.runtime.fault_points import SETTING
from scorer.runtime.settings import load
from scorer.trail import audit_database
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.sinks import assert_equal_to, query, running, wait_for


class Proxy:
    """A TCP way to Postgres that can be cut after so many bytes, closed, and opened again."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.cut_after: int | None = None  # bytes from the client on one connection
        self.cuts = 0
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """No new connections, and those there are reset."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for one in list(self._sockets):
            self._reset(one)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets |= {client, server}
            threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        passed = 0
        with suppress(OSError):
            while block := source.recv(65_536):
                passed += len(block)
                if counted and self.cut_after is not None and passed > self.cut_after:
                    self.cuts += 1
                    break
                target.sendall(block)
        for one in (source, target):
            self._reset(one)

    def _reset(self, one: socket.socket) -> None:
        self._sockets.discard(one)
        with suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@contextmanager
def proxy(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the server of `url`, and the URL through it."""
    parts = conninfo_to_dict(url)
    one = Proxy(str(parts["host"]), int(parts["port"]))
    try:
        yield one, url.replace(f"{parts['host']}:{parts['port']}", f"127.0.0.1:{one.port}")
    finally:
        one.close()


@pytest.fixture
def shard(services: Services, topics_prefix: str) -> Shard:
    """A topic with 20 batches of 500 rows, some 100 kB each."""
    topic = f"{topics_prefix}audit"
    make_topic(services.kafka.bootstrap_servers, topic)
    shard = Shard(services.kafka.bootstrap_servers, topic)
    for number in range(20):
        shard.write(rows(number, 500))
    return shard


@pytest.fixture
def url(database: str) -> str:
    audit_database.migrate(database)
    return database


def test_network_cut_inside_copy(shard: Shard, url: str) -> None:
    """The connection is reset in the middle of COPY, at another byte each time: every row once in the end."""
    with proxy(url) as (network, through):
        network.cut_after = 150_000
        with running(shard.bootstrap_servers, shard.topic, through, transaction_bytes_max=80_000) as sink:
            wait_for(lambda: network.cuts >= 3, "three cuts")
            network.cut_after = None
            wait_for(sink.sink.drained, "the sink to drain")
        assert sink.error is None
    assert_equal_to(url, shard)


def test_a_commit_whose_answer_is_lost(shard: Shard, url: str) -> None:
    """The network goes away whenever the sink has asked for a commit: what was committed is not written again."""
    with proxy(url) as (network, through), psycopg.connect(url, autocommit=True) as watcher:
        with running(shard.bootstrap_servers, shard.topic, through, transaction_bytes_max=40_000) as sink:
            for seen in (2, 6, 10):
                wait_for(lambda: query(url, "SELECT count(*) FROM batches")[0][0] >= seen, "rows")  # noqa: B023
                network.close()  # at whatever it is doing
                network.open()
            wait_for(sink.sink.drained, "the sink to drain")
        assert sink.error is None
        assert watcher.execute("SELECT 1").fetchone() == (1,)
    assert_equal_to(url, shard)


def test_failover_to_another_address(shard: Shard, url: str) -> None:
    """With two hosts in the URL the sink goes on through the second when the first is gone, by libpq's own rules."""
    with proxy(url) as (first, _), proxy(url) as (second, _):
        parts = conninfo_to_dict(url)
        user = f"{parts['user']}:{parts['password']}" if parts.get("password") else parts["user"]
        both = (
            f"postgresql://{user}@127.0.0.1:{first.port},127.0.0.1:{second.port}/{parts['dbname']}"
            "?target_session_attrs=read-write"
        )
        through = load(postgres={"url": both}).postgres_url
        with running(shard.bootstrap_servers, shard.topic, through) as sink:
            wait_for(sink.sink.drained, "the first rows")
            first.close()
            shard.write(rows(100, 500))
            wait_for(sink.sink.drained, "the rows through the second address")
        assert sink.error is None
    assert_equal_to(url, shard)


@pytest.mark.parametrize("state", ["disk_full", "out_of_memory", "too_many_connections", "read_only_sql_transaction"])
def test_what_time_cures_is_waited_for(shard: Shard, url: str, state: str) -> None:
    """Postgres answers inside the transaction that its disk (memory, …) is exhausted: nothing of it stays, and the sink
    goes on when there is room again. The server itself raises the error, with the state that a full disk has."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("CREATE TABLE fault (state text)")
        owner.execute("INSERT INTO fault VALUES (%s)", (state,))
        owner.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.sequence >= 4 AND EXISTS (SELECT FROM fault) THEN "
            "RAISE EXCEPTION 'fault' USING ERRCODE = (SELECT fault.state FROM fault LIMIT 1); END IF; "
            "RETURN NEW; END $$"
        )
        owner.execute("CREATE TRIGGER fail BEFORE INSERT ON batches FOR EACH ROW EXECUTE FUNCTION fail()")
        with running(shard.bootstrap_servers, shard.topic, url, transaction_bytes_max=80_000) as sink:
            errors = sink.sink._metrics.errors.labels("postgres")._value
            wait_for(lambda: errors.get() >= 2, "the sink to meet the fault twice")
            assert not sink.sink.drained()
            assert query(url, "SELECT max(sequence) < 4 FROM batches") == [(True,)]
            assert query(url, "SELECT count(*) FROM decisions WHERE sequence >= 4") == [(0,)]
            owner.execute("DELETE FROM fault")
            wait_for(sink.sink.drained, "the sink to go on")
        assert sink.error is None
        owner.execute("DROP TRIGGER fail ON batches")
    assert_equal_to(url, shard)
    assert query(url, "SELECT count(*) FROM set_aside") == [(0,)]


def test_a_lock_held_for_long(shard: Shard, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is locked for long: the sink gives up its connection after its lock time-out, and goes on later."""
    monkeypatch.setattr("scorer.sink.store._LOCK_TIMEOUT", "200ms")
    with psycopg.connect(url) as setup:
        setup.execute("SELECT audit_day('2026-01-01')")
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE decisions IN SHARE MODE")
        with running(shard.bootstrap_servers, shard.topic, url) as sink:
            errors = sink.sink._metrics.errors.labels("postgres")._value
            wait_for(lambda: errors.get() >= 2, "the sink to give way twice")
            holder.rollback()
            wait_for(sink.sink.drained, "the sink to go on")
    assert sink.error is None
    assert_equal_to(url, shard)


@pytest.mark.parametrize("point", ["sink_copy:3", "sink_before_commit:2", "sink_after_commit:2"])
def test_row_1_killed_at_each_step_of_a_transaction(shard: Shard, url: str, point: str) -> None:
    """SIGKILL inside COPY, with all rows written but not committed, and right after the commit: the next sink goes on
    from what is committed, and every row is there once."""
    program = Path(__file__).with_name("sink_process.py")
    command = [sys.executable, str(program), shard.bootstrap_servers, shard.topic, url, "80000"]
    environment = os.environ | {SETTING: f"{point}:kill", "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    committed = query(url, "SELECT count(*) FROM batches")[0][0]
    assert 0 < committed < len(shard.written) or point.startswith("sink_copy")
    with running(shard.bootstrap_servers, shard.topic, url) as sink:
        wait_for(sink.sink.drained, "the next sink to drain")
    assert sink.error is None
    assert_equal_to(url, shard)
