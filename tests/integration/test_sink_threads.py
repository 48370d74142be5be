"""FAULTS row 35 for the sink: an exception that no code expects, in any of its threads, ends the process loudly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scorer.errors import FraudScorerError
from scorer.local_services import Services
from scorer.runtime.fault_points import SETTING
from scorer.runtime.settings import PREFIX, Settings
from scorer.sink import SinkThreads
from scorer.sink.sink_errors import AuditBroken
from scorer.trail import audit_database
from tests.integration.audit_batches import Shard, make_topic, rows
from tests.integration.running import environment, process, test_settings, wait_for
from tests.integration.sinks import query
from tests.ports import free_ports


@pytest.fixture
def settings(services: Services, topics_prefix: str, database: str) -> Settings:
    """Topics with a batch on the audit topic, and tables."""
    servers = services.kafka.bootstrap_servers
    for name in ("audit", "control", "labels", "dead-letters"):
        make_topic(servers, topics_prefix + name)
    audit_database.migrate(database)
    Shard(servers, f"{topics_prefix}audit").write(rows(1, 50))
    return test_settings(servers, topics_prefix, postgres={"url": database})


@pytest.mark.parametrize(
    "point", ["sink_copy:1", "sink_control:2", "sink_labels:2", "sink_dead_letters:2", "sink_membership:4"]
)
def test_an_unexpected_exception_in_any_thread_ends_the_sink(settings: Settings, point: str) -> None:
    """Whichever thread of `fraud-scorer sink` meets it (audit, control, labels, dead letters, membership), the process
    ends by itself within its bound, with a non-zero code and the error on stderr."""
    (port,) = free_ports(1)
    done = subprocess.run(
        [sys.executable, "-m", "scorer", "sink"],
        env=environment(settings, **{SETTING: f"{point}:error", f"{PREFIX}HTTP__SINK_PORT": str(port)}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"RuntimeError: fault at {point.split(':', maxsplit=1)[0]}" in done.stderr
    assert "sink.thread_failed" in done.stderr


def test_a_stopped_sink_still_ends_with_success(settings: Settings, tmp_path: Path) -> None:
    """SIGTERM drains: everything on the audit topic is in the tables, and the exit code is 0."""
    with process("sink", [], settings, tmp_path / "sink.log") as child:
        url = settings.postgres_url
        wait_for(lambda: query(url, "SELECT count(*) FROM decisions") == [(50,)], 60, "the rows")
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait(60) == 0, (tmp_path / "sink.log").read_text()[-3000:]


def test_the_first_error_is_raised_and_its_exit_code_kept() -> None:
    """An error of one sink stops the others and comes out of `run` as it is; a hanging one does not hide it."""
    stopped = threading.Event()

    def works(stop: threading.Event) -> None:
        stop.wait(30)
        stopped.set()

    def breaks(_stop: threading.Event) -> None:
        raise AuditBroken("the chain is broken")

    with pytest.raises(FraudScorerError, match="the chain is broken") as caught:
        SinkThreads({"audit": breaks, "control": works}).run(threading.Event())
    assert caught.value.exit_code == 3
    assert stopped.is_set()


def test_a_sink_that_returns_early_is_an_error() -> None:
    """A thread that ends without an error and without being stopped is never taken for success."""
    with pytest.raises(RuntimeError, match="the sink of control returned before it was stopped"):
        SinkThreads({"control": lambda _stop: None, "audit": lambda stop: stop.wait(30)}).run(threading.Event())


def test_a_hanging_sink_does_not_hide_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When another sink hangs in a call, the error comes out after a bound."""
    monkeypatch.setattr("scorer.sink.sink_threads._CLOSE_S", 0.5)
    hang = threading.Event()

    def breaks(_stop: threading.Event) -> None:
        raise ValueError("unexpected")

    began = time.monotonic()
    try:
        with pytest.raises(ValueError, match="unexpected"):
            SinkThreads({"hangs": lambda _stop: hang.wait(60), "breaks": breaks}).run(threading.Event())  # type: ignore[dict-item]
        assert time.monotonic() - began < 10
    finally:
        hang.set()


def test_the_end_does_not_wait_for_what_writes_nothing() -> None:
    """A count in Postgres that takes a minute makes no error of a clean stop."""
    stop, hang, written = threading.Event(), threading.Event(), []

    def writes(until: threading.Event) -> None:
        until.wait(30)
        written.append(True)

    threads = SinkThreads({"audit": writes}, {"label-quality": lambda _stop: hang.wait(60)})  # type: ignore[dict-item]
    try:
        stop.set()
        threads.run(stop)
        assert written == [True]
    finally:
        hang.set()
