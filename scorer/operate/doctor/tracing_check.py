"""Traces: whether their packages are there, whether the collector takes spans, and what the settings give away."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from scorer.errors import UsageError
from scorer.operate.doctor.diagnosis import Diagnosis
from scorer.operate.doctor.process_check import is_here
from scorer.runtime import span_export
from scorer.runtime.settings import PREFIX, Settings

_OFF = "OTEL_SDK_DISABLED"  # of OpenTelemetry's own variables


def check_tracing(found: Diagnosis, settings: Settings) -> None:
    """Asks the collector with a request without spans, as a process would send its own; nothing where traces are off.
    A decision never waits for a collector, so that one which does not answer is a warning."""
    tracing = settings.tracing
    if tracing.exporter == "none":
        if "endpoint" in tracing.model_fields_set:
            found.warning(
                "tracing",
                f"{PREFIX}TRACING__ENDPOINT is set and {PREFIX}TRACING__EXPORTER is none: no span is sent",
                f"set {PREFIX}TRACING__EXPORTER to otlp, or leave the endpoint out",
            )
        return
    found.checked.append("tracing")
    try:
        refusal = span_export.refusal_of(tracing)
    except UsageError as exc:
        found.error("tracing", str(exc), "workers and sinks do not start so: give what the message asks for")
        return
    if os.environ.get(_OFF, "").strip().lower() == "true":
        found.warning("tracing", f"{_OFF} is true: no span is made", "unset it")
    where = urlsplit(tracing.endpoint)
    if refusal is not None:
        found.warning(
            "tracing",
            f"the collector at {where.hostname} does not take spans: {refusal}. They are dropped and counted",
            f"see that it runs, and compare {PREFIX}TRACING__ENDPOINT (with the path for traces), its headers and its "
            "certificates with what it wants; a network policy may be in between",
        )
    if where.scheme == "http" and not is_here(where.netloc):
        what = "spans" if tracing.headers is None else "spans and headers"
        found.warning(
            "tracing",
            f"{what} go to {where.hostname} by http: whoever is on the network reads them",
            f"give {PREFIX}TRACING__ENDPOINT with https://",
        )
