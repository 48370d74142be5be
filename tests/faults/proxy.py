"""A TCP proxy that can delay, cut and half-open connections: between clients and Kafka, or a sink and Postgres."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_PIECE = 65_536


class Proxy:
    """Forwards 127.0.0.1:port to `target`. Its state may be changed at any time, from any thread.

    delay_s: every piece waits so long, in each direction.
    hang(): connections stay open and nothing passes any more, new ones are taken and left waiting (half open).
    cut(): every connection ends with a reset; new ones are refused until `heal()`.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def hang(self) -> None:
        """Half open: no more bytes pass, and neither side is closed."""
        self._passing.clear()

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._refusing = True
        self._drop()

    def heal(self) -> None:
        """Everything passes again. What hung meanwhile is delivered now, late."""
        self.delay_s = 0.0
        self._refusing = False
        self._passing.set()

    def close(self) -> None:
        self._closed = True
        self._passing.set()
        self._listener.close()
        self._drop()

    def _drop(self) -> None:
        with self._lock:
            dropped, self._sockets = self._sockets, set()
        for each in dropped:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {client, server}
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._passing.wait()
                sink.sendall(piece)
        except OSError:
            pass
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
            with self._lock:
                self._sockets.discard(each)
