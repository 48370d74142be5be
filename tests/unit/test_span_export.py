"""Spans on their way to a collector: with their ids, never waited for, counted where they are lost."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from scorer.errors import UsageError
from scorer.runtime import settings as settings_module
from scorer.runtime import span_export
from scorer.runtime.secret_text import secrets_in
from scorer.runtime.span_export import DROPPED, Event, Span, SpanExport
from tests.otlp_collector import collector
from tests.ports import free_ports

SPAN = Span(
    "fraud_scorer.decision", "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "1234567890abcdef",
    start_s=1_700_000_000.0, end_s=1_700_000_000.5, kind="consumer",
    attributes={"fraud_scorer.row": 3, "r": ("A", "B")},
    events=[Event("decided", 1_700_000_000.2)], error="AMOUNT_NEGATIVE", resource={"fraud_scorer.shard": "1"},
)  # fmt: skip


def export(endpoint: str, **more: Any) -> SpanExport:
    settings = settings_module.load(tracing={"exporter": "otlp", "endpoint": endpoint, **more})
    made = span_export.of(settings, part="worker")
    assert made is not None
    return made


def dropped(reason: str) -> float:
    return float(DROPPED.labels(reason)._value.get())  # type: ignore[attr-defined]


def test_a_span_comes_as_it_was_made() -> None:
    """Ids, parent, times, attributes, stages, error and resource are those given; the request has the headers that are
    set; the last spans come with the end of the process."""
    with collector() as found:
        spans = export(found.address, headers="authorization=Bearer%20abcdefgh,x-tenant=7")
        spans.offer([SPAN])
        spans.close()
    (span,) = found.spans
    assert (span.trace_id, span.span_id, span.parent) == (SPAN.trace_id, SPAN.span_id, SPAN.parent_id)
    assert (span.start_ns, span.end_ns - span.start_ns) == (1_700_000_000 * 10**9, 500_000_000)
    assert span.attributes == {"fraud_scorer.row": 3, "r": ["A", "B"]}
    assert (span.events, span.error) == (("decided",), "AMOUNT_NEGATIVE")
    assert span.resource["service.name"] == "fraud-scorer"
    assert (span.resource["fraud_scorer.shard"], span.resource["fraud_scorer.part"]) == ("1", "worker")
    sent = {name.lower(): value for name, value in found.requests[0].items()}
    assert (sent["authorization"], sent["x-tenant"]) == ("Bearer abcdefgh", "7")


def test_a_collector_that_is_away_costs_no_time() -> None:
    """Spans are taken at once, and counted as lost; the process ends within its time."""
    (port,) = free_ports(1)
    before = dropped("export")
    spans = export(f"http://127.0.0.1:{port}/v1/traces", timeout_s=60, flush_s=0.2)
    spans.offer([SPAN])
    began = time.monotonic()
    spans.close()
    assert time.monotonic() - began < 30  # the request alone would be repeated for a minute
    assert dropped("export") > before


def test_what_has_no_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is full drops the newest, and says how many."""
    monkeypatch.setattr(span_export, "WAITING_MAX", 10)
    (port,) = free_ports(1)
    before = dropped("queue"), dropped("export")
    spans = export(f"http://127.0.0.1:{port}/v1/traces", timeout_s=1, flush_s=0.1)
    spans.offer([SPAN] * 1_000)
    spans.close()
    assert dropped("queue") - before[0] >= 900
    assert dropped("queue") + dropped("export") - sum(before) >= 990


def test_off_by_default_nothing_of_it_is_imported() -> None:
    """A process without the setting imports no package of OpenTelemetry, so it needs none."""
    code = (
        "import sys, scorer.worker.worker, scorer.sink\n"
        "from scorer.runtime import settings, span_export\n"
        "assert span_export.of(settings.load(), part='worker') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the setting is on and the extra is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"TRACING__EXPORTER.*fraud-scorer\[tracing\]"):
        export("http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"endpoint": "http://me:secretword@host/v1/traces"}, "ENDPOINT"),
        ({"endpoint": "host:4317"}, "ENDPOINT"),
        ({"client_key": "/k.pem"}, "TRACING"),
        ({"certificate": "/nowhere.pem"}, "CERTIFICATE"),
        ({"headers": "secretword"}, "HEADERS"),
        ({"headers": "a=secretword%0d%0ax: y"}, "HEADERS"),
        ({"ratio": 1.5}, "RATIO"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_named_without_its_secret(given: dict[str, Any], named: str) -> None:
    """At start, not at the first span."""
    with pytest.raises(UsageError, match=named) as refused:
        export(**{"endpoint": "http://127.0.0.1:4318/v1/traces", **given})
    assert "secretword" not in str(refused.value)


def test_a_token_for_the_collector_is_a_secret_of_the_process() -> None:
    """As it is set and as it is sent, no log line shows it."""
    settings = settings_module.load(tracing={"headers": "authorization=Bearer%20abcdefgh"})
    assert {"Bearer abcdefgh", "Bearer%20abcdefgh"} <= secrets_in(settings)
