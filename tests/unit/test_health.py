"""The health port: a part of it that fails is answered, logged and never silent."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from scorer.errors import UsageError
from scorer.runtime import health as health_port
from scorer.runtime import logs
from scorer.runtime.health import Access, HealthServer
from scorer.runtime.settings import HttpSettings, load
from tests.integration.certificates import Authority

REGISTRY = CollectorRegistry()


def fetch(
    address: str, path: str, *, login: str | None = None, context: ssl.SSLContext | None = None
) -> tuple[int, str]:
    request = urllib.request.Request(f"{address}{path}")
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
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
            assert stop.wait(30)

    with pytest.raises(RuntimeError, match="accept loop"):
        serve()
    assert json.loads(capsys.readouterr().err.splitlines()[0])["event"] == "health.failed"


def served(**more: Any) -> HealthServer:
    alive = {"live": lambda: (True, "alive"), "ready": lambda: (False, "no broker at 10.1.2.3"), "registry": REGISTRY}
    return HealthServer("127.0.0.1", 0, **(alive | more))


def health_threads() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_idle_connections_neither_pile_up_nor_keep_a_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients connect and send nothing, or half a request, threads stay bounded, a probe is answered at
    once, and each connection ends within its time."""
    monkeypatch.setattr(health_port, "CONNECTION_S_MAX", 0.5)
    before = health_threads()
    with served() as health, contextlib.ExitStack() as clients:
        host, port = health.address.removeprefix("http://").split(":")
        for k in range(60):
            client = clients.enter_context(socket.create_connection((host, int(port))))
            client.sendall(b"GET /metr"[: k % 9])
            assert health_threads() - before <= health_port.CONNECTIONS_MAX
            if k % 10 == 9:
                assert fetch(health.address, "/livez") == (200, "alive\n")
        give_up = time.monotonic() + 30
        while health_threads() > before and time.monotonic() < give_up:
            time.sleep(0.05)
        assert health_threads() <= before  # one of an earlier test may have ended meanwhile


def test_metrics_need_the_login_and_probes_say_no_more_than_their_status() -> None:
    """With a name and a password /metrics answers no one else, and what a probe tells others has no reason in it."""
    settings = HttpSettings(user="prometheus", password=SecretStr("s3cret-p:ß"))
    with served(access=Access.of(settings)) as health:
        assert fetch(health.address, "/metrics")[0] == 401
        for wrong in ("prometheus:s3cret", "x:s3cret-p:ß", "", ":"):
            assert fetch(health.address, "/metrics", login=wrong)[0] == 401
        assert fetch(health.address, "/metrics", login="prometheus:s3cret-p:ß")[0] == 200
        assert fetch(health.address, "/readyz") == (503, "Service Unavailable\n")
        assert fetch(health.address, "/readyz", login="prometheus:s3cret-p:ß") == (503, "no broker at 10.1.2.3\n")


def test_the_port_speaks_tls(tmp_path: Path) -> None:
    """With a certificate the port is read by https alone; a client that does not shake hands keeps nothing busy."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1", password="key-secret")
    settings = HttpSettings(certificate=certificate, key=key, key_password=SecretStr("key-secret"))
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    trusting.check_hostname = False
    with served(access=Access.of(settings)) as health:
        assert health.address.startswith("https://")
        with socket.create_connection(("127.0.0.1", int(health.address.rpartition(":")[2]))) as silent:
            silent.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert fetch(health.address, "/livez", context=trusting) == (200, "alive\n")
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(health.address, "/livez", context=ssl.create_default_context())
    for wrong in ({"key_password": SecretStr("other")}, {"key": tmp_path / "none"}, {"certificate": key}):
        with pytest.raises(UsageError, match="FRAUD_SCORER_HTTP__CERTIFICATE") as refused:
            Access.of(settings.model_copy(update=wrong))
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("half", [{"certificate": "x"}, {"key": "x"}, {"user": "x"}, {"password": "x"}])
def test_half_of_a_pair_is_no_protection(half: dict[str, str]) -> None:
    """A certificate without its key, or a name without a password, is refused at start: never an open port instead."""
    with pytest.raises(UsageError, match="belong together"):
        load(http=half)


def test_a_default_port_that_is_taken_gives_way_to_the_next_free_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A second process on one machine serves beside the first and logs where; a port that somebody chose stays an
    error that names it."""
    logs.configure()

    def serving(port: int, *, chosen: bool) -> HealthServer:
        good = lambda: (True, "alive")  # noqa: E731
        return HealthServer("127.0.0.1", port, live=good, ready=good, registry=CollectorRegistry(), chosen=chosen)

    with serving(0, chosen=True) as first:
        taken = int(first.address.rpartition(":")[2])
        with serving(taken, chosen=False) as second:
            port = int(second.address.rpartition(":")[2])
            assert taken + 1 < port < taken + 22  # the one after it is the other process's own
            assert fetch(second.address, "/livez") == (200, "alive\n")
        with pytest.raises(UsageError, match=f"port {taken} on 127.0.0.1 cannot be used"):
            serving(taken, chosen=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "health.port_taken" in line]
    assert (json.loads(line)["wanted"], json.loads(line)["instead"]) == (taken, port)
