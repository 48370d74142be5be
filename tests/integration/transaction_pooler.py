"""A pooler before Postgres in transaction mode, as PgBouncer is: each transaction gets another server connection.

No PgBouncer is needed to run the tests: this one has two server connections and gives them in turn, so that what a
session would have kept (locks, prepared statements, settings) is missing at once and not only under load.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.conninfo import make_conninfo

_SSL, _GSS = 80877103, 80877104
_PARAMETERS = {"server_version": "16.0", "client_encoding": "UTF8", "standard_conforming_strings": "on",
               "integer_datetimes": "on", "DateStyle": "ISO, MDY", "TimeZone": "UTC"}  # fmt: skip


class _Server:
    """A server connection whose handshake libpq has made; its socket is then ours."""

    def __init__(self, url: str) -> None:
        self._session = psycopg.connect(url, autocommit=True)
        self.socket = socket.socket(fileno=os.dup(self._session.fileno()))
        self.socket.setblocking(True)

    def close(self) -> None:
        self.socket.close()
        self._session.close()


class TransactionPooler:
    """Listens on 127.0.0.1:port from `with` on."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._servers = [_Server(url), _Server(url)]
        self._free: queue.SimpleQueue[_Server] = queue.SimpleQueue()
        for server in self._servers:
            self._free.put(server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.transactions = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for server in self._servers:
            server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError), client:
            length, code = struct.unpack("!ii", _exactly(client, 8))
            while code in (_SSL, _GSS):
                client.sendall(b"N")
                length, code = struct.unpack("!ii", _exactly(client, 8))
            _exactly(client, length - 8)
            client.sendall(_message(b"R", struct.pack("!i", 0)))
            for name, value in _PARAMETERS.items():
                client.sendall(_message(b"S", f"{name}\0{value}\0".encode()))
            client.sendall(_message(b"K", struct.pack("!ii", 1, 2)) + _message(b"Z", b"I"))
            while True:
                self._transaction(client)

    def _transaction(self, client: socket.socket) -> None:
        """From the first message of a transaction to the answer that ends it, on one server connection."""
        kind, content = _read(client)
        if kind == b"X":
            raise EOFError
        server = self._free.get()
        self.transactions += 1
        whole = False
        try:
            unanswered, simple = 0, False
            while True:
                server.socket.sendall(_message(kind, content))
                if kind in (b"Q", b"S"):
                    unanswered, simple = unanswered + 1, kind == b"Q"
                elif kind in (b"c", b"f") and simple:
                    unanswered += 1  # the end of COPY; in the extended protocol a Sync follows
                while unanswered:
                    answer, content = _read(server.socket)
                    client.sendall(_message(answer, content))
                    if answer == b"G":
                        unanswered = 0  # COPY: rows come now, and a Sync before them is passed over
                    elif answer == b"Z":
                        unanswered -= 1
                        if content == b"I" and not unanswered:
                            whole = True
                            return
                kind, content = _read(client)
                if kind == b"X":
                    raise EOFError
        finally:
            if not whole:  # as PgBouncer does with a client that goes in the middle
                server.close()
                self._servers.remove(server)
                server = _Server(self._url)
                self._servers.append(server)
            self._free.put(server)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = source.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def _read(source: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(source, 1)
    (length,) = struct.unpack("!i", _exactly(source, 4))
    return kind, _exactly(source, length - 4)


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


@contextmanager
def transaction_pooler(url: str) -> Iterator[tuple[TransactionPooler, str]]:
    """A pooler before the server of `url`, and the address through it."""
    pooler = TransactionPooler(url)
    try:
        yield pooler, make_conninfo(url, host="127.0.0.1", port=str(pooler.port))
    finally:
        pooler.close()
