"""An HTTP server on this machine that serves a bundle as it is, or as an attacker would: by the first part of the path.

/good/…       the folder's files                        /more/…       10 bytes announced, 200 MB sent
/slow/…       a byte now and then, without end          /redirect/…   elsewhere, to the good ones
/headers/…    headers that do not end                   /endless/…    chunks without end
/broken/…     no HTTP at all                            /other/…      404
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class HostileServer(ThreadingHTTPServer):
    """`folder`: what is served as good; None: 404. `sent`: bytes of /more and /endless so far."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.sent = 0
        self.asked: list[str] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client went away: that is what these tests are for."""


@contextmanager
def hostile_server(folder: Path | None) -> Iterator[HostileServer]:
    server = HostileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HostileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.close_connection = True
        kind, _, name = self.path.lstrip("/").partition("/")
        getattr(self, f"_{kind}", self._missing)(name)

    def _missing(self, name: str) -> None:
        self.send_error(404)

    def _good(self, name: str) -> None:
        file = self.server.folder and self.server.folder / name
        if not file or not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        self._begin({"Content-Length": str(len(data))})
        self.wfile.write(data)

    def _begin(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()

    def _more(self, name: str) -> None:
        self._begin({"Content-Length": "10"})
        for _ in range(200):
            self.wfile.write(b" " * (1 << 20))
            self.server.sent += 1 << 20

    def _slow(self, name: str) -> None:
        self._begin({"Content-Length": "1000000"})
        while not self.server.ended.is_set():
            self.wfile.write(b" ")
            time.sleep(0.1)

    def _headers(self, name: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.server.ended.is_set():
            self.wfile.write(b"x")
            time.sleep(0.1)

    def _endless(self, name: str) -> None:
        self._begin({"Transfer-Encoding": "chunked"})
        while not self.server.ended.is_set():
            self.wfile.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
            self.server.sent += 65_536

    def _redirect(self, name: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.server.url}/good/{name}?secret=hunter2")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _broken(self, name: str) -> None:
        self.wfile.write(b"\x00\xff" * 10_000)
