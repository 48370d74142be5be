"""TLS to Postgres, by libpq's own rules.

The local Postgres wheel is built without TLS, so a front before it ends it, as pgbouncer does: it answers libpq's
SSLRequest, shows a certificate, and takes nothing in clear.
"""

from __future__ import annotations

import io
import json
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from psycopg.conninfo import conninfo_to_dict

from scorer.audit.verify.verification import verify
from scorer.cli import app
from scorer.errors import FraudScorerError
from scorer.runtime.settings import PREFIX
from scorer.sink.sink_errors import StoreUnavailable
from scorer.sink.store import Store
from scorer.trail import audit_database
from tests.integration.audit_trail import Trail
from tests.integration.certificates import Authority

_SSL_REQUEST, _GSS_REQUEST = (80_877_103).to_bytes(4, "big"), (80_877_104).to_bytes(4, "big")


class Front:
    """Ends TLS before a Postgres."""

    def __init__(self, target: tuple[str, int], certificate: Path, key: Path) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.encrypted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            while (request := client.recv(8))[4:] == _GSS_REQUEST:
                client.sendall(b"N")
            if request[4:] != _SSL_REQUEST:
                return
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as secure:
                self.encrypted += 1
                with socket.create_connection(self._target) as server:
                    _both_ways(secure, server)


def _both_ways(secure: ssl.SSLSocket, server: socket.socket) -> None:
    """In one thread, since a TLS connection is not for two at once; never waiting inside TLS: what is readable there
    need not be data."""
    secure.setblocking(False)
    while True:
        ready = [secure] if secure.pending() else select.select([secure, server], [], [], 60)[0]
        if secure in ready:
            with suppress(ssl.SSLWantReadError):
                block = secure.recv(8_192)
                if not block:
                    return
                server.sendall(block)
        if server in ready:
            block = server.recv(8_192)
            if not block:
                return
            while block:
                with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    block = block[secure.send(block) :]
                    continue
                select.select([], [secure], [], 60)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority(tmp_path / "ca")


@pytest.fixture
def front(database: str, authority: Authority) -> Iterator[tuple[Front, str]]:
    """The front with a certificate for 127.0.0.1, and the URL through it without its TLS options."""
    audit_database.migrate(database)
    parts = conninfo_to_dict(database)
    certificate, key = authority.issue("server")
    one = Front((str(parts["host"]), int(parts["port"])), certificate, key)
    yield one, f"postgresql://{parts['user']}@127.0.0.1:{one.port}/{parts['dbname']}"
    one.close()


def test_verify_full_writes_and_verifies(front: tuple[Front, str], authority: Authority, tmp_path: Path) -> None:
    """With sslmode=verify-full and the authority's file, from a URL that stands in a secret's file: the sink's store
    writes, and `audit verify` reads over several connections, all of it encrypted."""
    one, url = front
    url += f"?sslmode=verify-full&sslrootcert={authority.certificate}"
    Trail(url).write(0, (50, 20))
    assert verify(url, parallel=2).decisions == 70
    secret = tmp_path / "postgres-url"
    secret.write_text(url + "\n")
    before, output = one.encrypted, io.StringIO()
    environment = {f"{PREFIX}POSTGRES__URL_FILE": str(secret), "PATH": os.environ["PATH"]}
    with patch.dict(os.environ, environment, clear=True), redirect_stdout(output):
        app(["audit", "verify", "--no-journal", "--json"], standalone_mode=False)
    assert json.loads(output.getvalue())["verified"] is True
    assert one.encrypted > before >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("other authority", "certificate verify failed"),
        ("other name", "does not match host name"),
        ("no file", "root certificate file"),
    ],
)
def test_a_server_that_is_not_vouched_for_is_refused(
    front: tuple[Front, str], authority: Authority, tmp_path: Path, change: str, message: str
) -> None:
    """Another authority's certificate, one for another name, no file of the authority: nothing is sent, and sink and
    command name the reason."""
    _, url = front
    root = authority.certificate
    if change == "other authority":
        (tmp_path / "other").mkdir()
        root = Authority(tmp_path / "other").certificate
    elif change == "no file":
        root = tmp_path / "nowhere.pem"
    else:
        url = url.replace("127.0.0.1", "localhost")
    url += f"?sslmode=verify-full&sslrootcert={root}"
    with pytest.raises(StoreUnavailable, match=message):
        Store(url, "audit")
    environment = {f"{PREFIX}POSTGRES__URL": url, "PATH": os.environ["PATH"]}
    with patch.dict(os.environ, environment, clear=True), pytest.raises(FraudScorerError, match=message):
        app(["audit", "verify", "--no-journal", "--json"], standalone_mode=False)


def test_a_server_without_tls_is_refused(database: str) -> None:
    """Where TLS is asked for, a server that has none gets nothing."""
    with pytest.raises(StoreUnavailable, match="does not support SSL"):
        Store(f"{database}?sslmode=require", "audit")
