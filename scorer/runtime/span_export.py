"""Spans to an OpenTelemetry collector, on a thread of its own that no decision waits for.

    exporter = span_export.of(settings, part="worker")      # None where the setting is off; nothing is imported then
    exporter.offer([Span(…)])                               # never waits: what has no room is dropped and counted

What a collector does not take within a time-out is dropped and counted as well. OpenTelemetry's own batch processor is
not used, because it does not count what it drops; its SDK makes the spans, and its exporter sends them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

import structlog
from prometheus_client import Counter

from scorer.errors import UsageError
from scorer.runtime.settings import PREFIX, Settings, TracingSettings

log = structlog.get_logger()

Attribute = str | int | Sequence[str]

WAITING_MAX: Final = 8_192  # spans; some 4 MiB, 40 s of the default limit of a shard
TOGETHER_MAX: Final = 512  # spans in a request
GATHER_S: Final = 0.5  # how long the first span waits for others
FAILURES_LOGGED_S: Final = 60.0
REASON_LENGTH_MAX: Final = 300  # characters; a collector may answer with a whole page
_END_S: Final = 0.2
DROP_REASONS: Final = ("limit", "queue", "export")

EXPORTED = Counter("fraud_scorer_trace_spans_exported", "Spans that the collector has taken.")
DROPPED = Counter(
    "fraud_scorer_trace_spans_dropped",
    "Spans that did not reach the collector: no room in the queue, or not taken in time (export); and sampled payments "
    "beyond the limit, one for each.",
    ["reason"],
)
for _reason in DROP_REASONS:
    DROPPED.labels(_reason)


class Event(NamedTuple):
    """A stage that was reached within a span; epoch seconds."""

    name: str
    at_s: float


@dataclass(frozen=True)
class Span:
    """One span, ended. Ids in hex digits, times in epoch seconds. `kind`: consumer, producer or internal. `error`: why
    it failed, a code and no value. `resource`: of whom it is, beside the service's name."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_s: float
    end_s: float
    kind: str = "internal"
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    events: Sequence[Event] = ()
    error: str | None = None
    resource: Mapping[str, str] = field(default_factory=dict)


class SpanSink(Protocol):
    """Takes spans."""

    def offer(self, spans: Sequence[Span]) -> None:
        """Hand spans over, without waiting. Any thread."""

    def close(self) -> None:
        """Give the last ones to the collector, within a bounded time."""


def of(settings: Settings, *, part: str) -> SpanExport | None:
    """What exports the spans of this process; None where none are. `part`: worker or sink.

    Raises UsageError when the setting is on and cannot be followed, as where the packages are not installed.
    """
    if settings.tracing.exporter == "none":
        return None
    resource = {
        "service.name": settings.tracing.service_name,
        "service.namespace": settings.worker.application,
        "service.instance.id": settings.worker.instance_id or settings.kafka.client_id,
        "fraud_scorer.part": part,
    }
    return SpanExport(settings.tracing, resource)


def refusal_of(settings: TracingSettings) -> str | None:
    """Why the collector takes no spans, asked with a request that has none, in at most `timeout_s`; None where it takes
    them. Raises UsageError as `of` does."""
    exporter, _ = _exporter(settings, {})
    last = _LastMessage()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(last)
    try:
        result = exporter.export([])
    finally:
        logger.removeHandler(last)
        exporter.shutdown()
    return None if result.name == "SUCCESS" else last.text or f"no answer within {settings.timeout_s:g} s"


class _LastMessage(logging.Handler):
    """The first line of what was logged last: the exporter returns no reason."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage().strip().partition("\n")[0][:REASON_LENGTH_MAX]


class SpanExport:
    """A SpanSink that sends by OTLP over HTTP. It has a thread until it is closed."""

    def __init__(self, settings: TracingSettings, resource: Mapping[str, str]) -> None:
        """`resource`: of every span, beside its own. Raises UsageError."""
        self._flush_s = settings.flush_s
        self._exporter, self._otel = _exporter(settings, resource)
        self._waiting: Queue[Span | None] = Queue(WAITING_MAX)
        self._logged_at = float("-inf")
        self._until = float("inf")  # monotonic; after that what waits is dropped
        self._works = True
        self._thread = threading.Thread(target=self._run, name="span-export", daemon=True)
        self._thread.start()

    def offer(self, spans: Sequence[Span]) -> None:
        """Hand spans over, without waiting; what has no room is dropped and counted. Any thread."""
        for number, span in enumerate(spans):
            if not self._works:
                DROPPED.labels("export").inc(len(spans) - number)
                return
            try:
                self._waiting.put_nowait(span)
            except Full:
                DROPPED.labels("queue").inc(len(spans) - number)
                return

    def close(self) -> None:
        """Give the last ones to the collector, for `flush_s` at most; the others are dropped and counted."""
        self._until = time.monotonic() + self._flush_s
        with suppress(Full):  # then the thread does not wait, and sees the time
            self._waiting.put_nowait(None)
        self._thread.join(self._flush_s)
        self._exporter.shutdown()  # a request that is repeated ends
        self._thread.join(_END_S)
        if self._thread.is_alive() or self._waiting.qsize():
            log.warning("tracing.spans_lost", waiting=self._waiting.qsize(), flush_s=self._flush_s)

    def _run(self) -> None:
        try:
            ended = False
            while not ended and time.monotonic() < self._until:
                spans, ended = self._next()
                if spans:
                    self._export(spans)
        except BaseException as exc:  # decisions need no spans: these end, and are counted as dropped
            log.error("tracing.failed", exc_info=exc)
        finally:
            self._works = False
            DROPPED.labels("export").inc(self._waiting.qsize())

    def _next(self) -> tuple[list[Span], bool]:
        """The spans of the next request, and whether they are the last."""
        first = self._waiting.get()
        if first is None:
            return [], True
        spans, until = [first], time.monotonic() + GATHER_S
        while len(spans) < TOGETHER_MAX:
            try:
                more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if more is None:
                return spans, True
            spans.append(more)
        return spans, False

    def _export(self, spans: Sequence[Span]) -> None:
        made = self._otel.made(spans)
        DROPPED.labels("export").inc(len(spans) - len(made))  # none is made with OTEL_SDK_DISABLED
        result = self._exporter.export(made)
        if result.name == "SUCCESS":
            EXPORTED.inc(len(made))
            return
        spans = made
        DROPPED.labels("export").inc(len(spans))
        if time.monotonic() - self._logged_at > FAILURES_LOGGED_S:
            self._logged_at = time.monotonic()
            log.warning(
                "tracing.export_failed",
                spans=len(spans),
                reason=f"the collector of {PREFIX}TRACING__ENDPOINT did not take them in time, or refused them",
            )


def _exporter(settings: TracingSettings, resource: Mapping[str, str]) -> tuple[Any, Any]:
    """OpenTelemetry's exporter, and what makes its spans. Raises UsageError."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        from scorer.runtime.otel_spans import OtelSpans  # noqa: PLC0415
    except ImportError as exc:
        raise UsageError(
            f"setting {PREFIX}TRACING__EXPORTER is otlp, and a package for it is missing ({exc.name}): install "
            "fraud-scorer[tracing], or set it to none"
        ) from None
    for name in ("certificate", "client_certificate", "client_key"):
        file = getattr(settings, name)
        if file is not None and not file.is_file():
            raise UsageError(f"setting {PREFIX}TRACING__{name.upper()}: {file} is not a file")
    # Its warnings repeat what a collector answers; what fails is counted and logged here.
    quiet = logging.getLogger("opentelemetry")
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    exporter = OTLPSpanExporter(
        endpoint=settings.endpoint,
        certificate_file=_text(settings.certificate),
        client_certificate_file=_text(settings.client_certificate),
        client_key_file=_text(settings.client_key),
        headers=_headers(settings),
        timeout=settings.timeout_s,
    )
    return exporter, OtelSpans(resource)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _headers(settings: TracingSettings) -> dict[str, str]:
    """Raises UsageError without a value in it."""
    if settings.headers is None:
        return {}
    found = {}
    for number, pair in enumerate(settings.headers.get_secret_value().split(",")):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or not unquote(value).isprintable():
            raise UsageError(f"setting {PREFIX}TRACING__HEADERS: entry {number + 1} is not of the form name=value")
        found[name.strip().lower()] = unquote(value.strip())
    return found
