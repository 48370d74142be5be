"""Spans as OpenTelemetry's SDK has them, with the ids that they are given. Imported only where spans are exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from scorer.runtime.span_export import Span

SCOPE: Final = "fraud-scorer"
RESOURCES_MAX: Final = 64  # shards and bundles whose spans one process makes at a time
_KINDS: Final = {"consumer": SpanKind.CONSUMER, "producer": SpanKind.PRODUCER, "internal": SpanKind.INTERNAL}
_NS = 1_000_000_000


class OtelSpans:
    """Makes them. One thread."""

    def __init__(self, resource: Mapping[str, str]) -> None:
        """`resource`: of every span, beside its own; OTEL_RESOURCE_ATTRIBUTES adds to it."""
        self._resource = Resource.create(dict(resource))
        self._ids = _GivenIds()
        self._ended = _Ended()
        self._tracers: dict[tuple[tuple[str, str], ...], Tracer] = {}

    def made(self, spans: Sequence[Span]) -> list[ReadableSpan]:
        """The same spans, ended."""
        for span in spans:
            self._make(span)
        made, self._ended.spans = self._ended.spans, []
        return made

    def _make(self, span: Span) -> None:
        self._ids.trace_id, self._ids.span_id = int(span.trace_id, 16), int(span.span_id, 16)
        made = self._tracer(span.resource).start_span(
            span.name,
            _parent(span),
            _KINDS[span.kind],
            attributes=span.attributes,
            start_time=int(span.start_s * _NS),
        )
        for event in span.events:
            made.add_event(event.name, timestamp=int(event.at_s * _NS))
        if span.error is not None:
            made.set_status(Status(StatusCode.ERROR, span.error))
        made.end(int(max(span.start_s, span.end_s) * _NS))

    def _tracer(self, resource: Mapping[str, str]) -> Tracer:
        key = tuple(sorted(resource.items()))
        found = self._tracers.get(key)
        if found is None:
            if len(self._tracers) >= RESOURCES_MAX:
                self._tracers.pop(next(iter(self._tracers)))
            provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=self._resource.merge(Resource(dict(resource))),
                shutdown_on_exit=False,
                id_generator=self._ids,
            )
            provider.add_span_processor(self._ended)
            found = self._tracers[key] = provider.get_tracer(SCOPE)
        return found


class _GivenIds(IdGenerator):
    """Ids of the span that is made next."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _Ended(SpanProcessor):
    """Keeps what has ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _parent(span: Span) -> Context:
    """An empty one for the first span of a trace."""
    if span.parent_id is None:
        return Context()
    context = SpanContext(int(span.trace_id, 16), int(span.parent_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context), Context())
