"""The process's own port: /metrics for Prometheus, /livez (the process works), /readyz (it can do its job now).

A request that fails is answered with 500 and logged; the others are served. A server that ends by itself ends the
process: `on_failure` is called at once, and leaving the `with` block raises what ended it.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from scorer.errors import UsageError
from scorer.runtime import fault_points

Check = Callable[[], tuple[bool, str]]
log = structlog.get_logger()


class _Quiet(WSGIRequestHandler):
    timeout = 5  # a client that sends nothing must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002 - the base class's signature
        return

    def get_stderr(self) -> TextIO:
        return io.StringIO()  # wsgiref writes its traceback there; `HealthServer` has logged the failure as JSON


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def service_actions(self) -> None:
        fault_points.point("health")

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        error = sys.exception()
        if not isinstance(error, OSError):  # an OSError: the client went away or sent nothing in time
            log.error("health.request_failed", exc_info=error)


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
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
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
            if path == "/metrics":
                return metrics(environ, start)
            check = {"/livez": live, "/readyz": ready}.get(path)
            if check is None:
                start("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics /livez /readyz\n"]
            good, why = check()
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain")])
            return [f"{why}\n".encode()]

        try:
            self._server = make_server(host, port, logged, server_class=_Server, handler_class=_Quiet)
        except OSError as exc:
            raise UsageError(
                f"port {port} on {host} cannot be used ({exc.strerror}); "
                "set FRAUD_SCORER_HTTP__… to another, or to 0 for any"
            ) from exc
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
        """http://host:port"""
        name = self._server.server_name
        host = "127.0.0.1" if name == "0.0.0.0" else name  # noqa: S104 - compared, not bound
        return f"http://{host}:{self._server.server_port}"

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
