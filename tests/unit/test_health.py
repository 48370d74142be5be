"""The health port: a part of it that fails is answered, logged and never silent."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from scorer.runtime import logs
from scorer.runtime.health import HealthServer


def fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_check_that_raises_is_answered_500_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """The probe fails, the log names the reason as one JSON line, and later requests are served."""
    logs.configure()

    def ready() -> tuple[bool, str]:
        raise ZeroDivisionError("the check is broken")

    with HealthServer(
        "127.0.0.1", 0, live=lambda: (True, "alive"), ready=ready, registry=CollectorRegistry()
    ) as health:
        assert fetch(health.address, "/readyz")[0] == 500
        assert fetch(health.address, "/livez") == (200, "alive\n")
    (line,) = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert (logged["event"], logged["level"]) == ("health.request_failed", "error")
    assert "the check is broken" in logged["exception"]


def test_a_client_that_goes_away_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """A port scanner or a probe that gives up leaves no line in the log."""
    logs.configure()
    with HealthServer(
        "127.0.0.1", 0, live=lambda: (True, "alive"), ready=lambda: (True, "ready"), registry=CollectorRegistry()
    ) as health:
        host, port = health.address.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        client.sendall(b"GET /livez")
        client.close()
        assert fetch(health.address, "/readyz") == (200, "ready\n")
    assert capsys.readouterr().err == ""


def test_a_server_that_ends_by_itself_ends_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    """Its failure asks the process to stop, and is raised once it has: never exit 0, never a process without probes."""
    logs.configure()
    stop = threading.Event()

    def broken() -> None:
        raise RuntimeError("the accept loop is broken")

    def serve() -> None:
        alive = {"live": lambda: (True, ""), "ready": lambda: (True, ""), "registry": CollectorRegistry()}
        with HealthServer("127.0.0.1", 0, on_failure=stop.set, **alive) as health:  # type: ignore[arg-type]
            health._server.service_actions = broken  # type: ignore[method-assign]
            assert stop.wait(5)

    with pytest.raises(RuntimeError, match="accept loop"):
        serve()
    assert json.loads(capsys.readouterr().err.splitlines()[0])["event"] == "health.failed"
