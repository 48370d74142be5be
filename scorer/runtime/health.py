"""The process's own port: /metrics for Prometheus, /livez (the process works), /readyz (it can do its job now).

Its threads are bounded, and so is the time of a connection: when all are taken, the oldest connection is closed for the
new one, so that idle clients cannot keep a probe out. With a certificate it speaks TLS; with a name and a password
/metrics is for those who have them, and others get a probe's status without its reason.

A request that fails is answered with 500 and logged; the others are served. A server that ends by itself ends the
process: `on_failure` is called at once, and leaving the `with` block raises what ended it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hmac
import io
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, make_wsgi_app

from scorer.errors import UsageError
from scorer.runtime import fault_points
from scorer.runtime.settings import HttpSettings

CONNECTIONS_MAX = 16  # threads; a scrape takes milliseconds
CONNECTION_S_MAX = 10.0
_THREAD_WAIT_S = 0.25  # for the thread of a connection that was closed
# Beside a port that is only the default: the first free one of these. The next one is the other process's own.
_OTHER_PORTS = range(2, 22)
Check = Callable[[], tuple[bool, str]]
log = structlog.get_logger()

# A gauge `_created` for each counter and histogram would double the lines of a scrape, and nothing of ours uses it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Quiet(WSGIRequestHandler):
    timeout = 5  # a client that sends nothing must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002 - the base class's signature
        return

    def get_stderr(self) -> TextIO:
        return io.StringIO()  # wsgiref writes its traceback there; `HealthServer` has logged the failure as JSON


@dataclass(frozen=True)
class Access:
    """Who may read, and whether it is encrypted."""

    tls: ssl.SSLContext | None = None
    login: bytes | None = None  # user:password

    @classmethod
    def of(cls, settings: HttpSettings) -> Access:
        """Raises UsageError for a certificate or key that cannot be used."""
        context = None
        if settings.certificate is not None and settings.key is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            password = settings.key_password.get_secret_value() if settings.key_password is not None else ""
            try:
                context.load_cert_chain(settings.certificate, settings.key, password)
            except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
                raise UsageError(
                    f"FRAUD_SCORER_HTTP__CERTIFICATE {settings.certificate} and FRAUD_SCORER_HTTP__KEY {settings.key} "
                    f"cannot be used ({type(exc).__name__}): give PEM files of one pair, and KEY_PASSWORD if encrypted"
                ) from None
        if settings.user is None or settings.password is None:
            return cls(context)
        return cls(context, f"{settings.user}:{settings.password.get_secret_value()}".encode())

    def allows(self, header: str) -> bool:
        """Whether an Authorization header has the name and the password. Takes as long for any wrong one."""
        if self.login is None:
            return True
        scheme, _, coded = header.partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(
            coded.strip().encode("utf-8", "replace"), base64.b64encode(self.login)
        )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: dict[socket.socket, float] = {}  # by age
        self._guard = threading.Lock()
        super().__init__(*arguments)

    def service_actions(self) -> None:
        """Called between requests and every half second."""
        fault_points.point("health")
        with self._guard:
            for connection, since in list(self._open.items()):
                if time.monotonic() - since > CONNECTION_S_MAX:
                    self._end(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            with self._guard:
                if self._open:
                    self._end(next(iter(self._open)))
            if not self._free.acquire(timeout=_THREAD_WAIT_S):
                self.shutdown_request(request)
                return
        with self._guard:
            self._open[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._left(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._left(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_Quiet.timeout)
        # A copy of the descriptor: this one stays, so that the connection can be ended from outside.
        with self.tls.wrap_socket(request.dup(), server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)
            with contextlib.suppress(OSError):
                encrypted.unwrap()

    def _left(self, request: socket.socket) -> None:
        with self._guard:
            self._open.pop(request, None)
        self._free.release()

    def _end(self, connection: socket.socket) -> None:
        self._open.pop(connection, None)
        with contextlib.suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        error = sys.exception()
        if not isinstance(error, OSError):  # an OSError: the client went away or sent nothing in time
            log.error("health.request_failed", exc_info=error)


def _listening(host: str, ports: Sequence[int], app: WSGIApplication) -> _Server:
    """A server on the first of `ports` that is free. Raises UsageError where none can be used."""
    for port in ports:
        try:
            server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or port == ports[-1]:
                raise UsageError(
                    f"port {port} on {host} cannot be used ({exc.strerror}); "
                    "set FRAUD_SCORER_HTTP__… to another, or to 0 for any"
                ) from exc
            continue
        if port != ports[0]:
            log.warning("health.port_taken", wanted=ports[0], instead=port)
        return server
    raise ValueError("no port was given")


class HealthServer:
    """Serves until closed. `live` and `ready` answer (yes or no, one line why)."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: Check,
        ready: Check,
        registry: CollectorRegistry = REGISTRY,
        access: Access = Access(),
        on_failure: Callable[[], None] = lambda: None,
        chosen: bool = True,
    ) -> None:
        """`chosen`: whether someone chose `port`. Else the first free one after it is taken where it is in use, as by a
        second worker on this machine. Raises UsageError when none can be used."""
        metrics: WSGIApplication = make_wsgi_app(registry)
        self._on_failure = on_failure
        self._failure: BaseException | None = None

        def logged(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
            try:
                return app(environ, start)
            except Exception as error:
                log.error("health.request_failed", exc_info=error)
                raise  # wsgiref answers 500

        def app(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            known = access.allows(environ.get("HTTP_AUTHORIZATION", ""))
            if path == "/metrics" and not known:
                start("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="fraud-scorer"')])
                return [b"/metrics needs a name and a password\n"]
            if path == "/metrics":
                return metrics(environ, start)
            check = {"/livez": live, "/readyz": ready}.get(path)
            if check is None:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics /livez /readyz\n"]
            good, why = check()
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
            return [f"{why if known else status.phrase}\n".encode()]

        self._server = _listening(host, [port] if chosen else [port, *(port + step for step in _OTHER_PORTS)], logged)
        self._server.tls = access.tls
        self._scheme = "http" if access.tls is None else "https"
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._server.serve_forever()
        except BaseException as error:
            log.error("health.failed", exc_info=error)
            self._failure = error
            self._on_failure()

    @property
    def address(self) -> str:
        """http://host:port, or https"""
        name = self._server.server_name
        host = "127.0.0.1" if name == "0.0.0.0" else name  # noqa: S104 - compared, not bound
        return f"{self._scheme}://{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> HealthServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._failure is not None and value is None:
            raise self._failure
